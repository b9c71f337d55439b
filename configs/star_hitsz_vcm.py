r"""STAR on HITSZ-VCM: ResNet-50, 288x144 frames, 12 per tracklet, the published recipe.

Command:
  python launch/train.py --config=configs/star_hitsz_vcm.py --workdir=runs/star_hitsz_vcm \
    --config.data.dir=data/hitsz_vcm/2.1.0 --config.init.backbone=resnet50.safetensors

`--config.model.guidance=none --config.model.pooling=gem` trains the baseline without skeletons;
docs/config.md lists all keys with their values and their meaning. Pack the dataset with
`launch/prepare.py` first. The dataset is licensed, so this config has no measured result here; the
authors report mAP 56.01 (infrared to visible) and 58.56 (visible to infrared).
"""

import ml_collections

import star_jax


def get_config() -> ml_collections.ConfigDict:
    """Returns the default config; `star_hitsz_vcm_reference` follows the authors' code exactly."""
    return star_jax.default_config()
