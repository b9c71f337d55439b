"""STAR on BUPTCampus: ResNet-50, 256x128 frames, 10 a tracklet, aligned pairs.

Command:
  python launch/train.py --config=configs/star_bupt_campus.py --workdir=runs/star_bupt_campus \
    --config.data.dir=data/bupt_campus/1.0.0 --config.init.backbone=resnet50.safetensors

Frames and batches are those of the dataset's authors; network, losses and rates those of STAR on
HITSZ-VCM, not tuned for this dataset. It is licensed and we do not have it: neither the accuracy,
nor the time, nor the memory of this config has been measured. Pack it with `launch/prepare.py`.
`--config.eval.protocol=buptcampus/official-bs64` scores as the published loader does.
"""

import ml_collections

from configs import star_hitsz_vcm


def get_config() -> ml_collections.ConfigDict:
    """Everything as in `star_hitsz_vcm`, but for the data."""
    config = star_hitsz_vcm.get_config()
    config.data.dir = "data/bupt_campus/1.0.0"
    config.data.sampling = "bupt_campus"
    config.data.frame_size = (256, 128)
    config.data.clip_length = 10
    config.eval.protocol = "buptcampus/full"
    return config
