r"""STAR on a folder of your own footage, packed with a split of its people.

Command:
  python launch/prepare.py --dataset=folder --source=people --data_dir=data/people_split \
    --test_share=0.3
  python launch/train.py --config=configs/star_folder.py --workdir=runs/people \
    --config.data.dir=data/people_split/folder/1.1.0 --config.init.checkpoint=runs/star

Everything except the data and the protocol is that of HITSZ-VCM and not tuned for other footage.
Without a trained network to start from, pass `--config.init.backbone=resnet50.safetensors`; a batch
needs 8 people with visible and infrared tracklets (`--config.data.identities_per_batch`).
"""

import ml_collections

from configs import star_hitsz_vcm


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of `star_hitsz_vcm` for a folder of footage."""
    config = star_hitsz_vcm.get_config()
    config.data.dir = "data/people_split/folder/1.1.0"
    config.eval.protocol = "cross-modality"
    return config
