r"""STAR on HITSZ-VCM exactly as the authors' code computes it, for numerical comparison.

Command:
  python launch/train.py --config=configs/star_hitsz_vcm_reference.py --workdir=runs/reference \
    --config.data.dir=data/hitsz_vcm/2.1.0 --config.init.backbone=resnet50.safetensors
"""

import ml_collections

from configs import star_hitsz_vcm


def get_config() -> ml_collections.ConfigDict:
    """Returns the `reference` config; docs/architecture.md lists what it changes."""
    config = star_hitsz_vcm.get_config()
    config.augment.per_frame = True
    config.augment.move_keypoints = False
    config.model.keypoints = "pixels"
    config.model.graph_edges = "first_frame"
    config.model.dtype = "float32"
    config.losses.skeleton_consistency = 0.0
    return config
