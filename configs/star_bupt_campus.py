r"""STAR on BUPTCampus: ResNet-50, 256x128 frames, 10 per tracklet, aligned pairs.

Command:
  python launch/train.py --config=configs/star_bupt_campus.py --workdir=runs/star_bupt_campus \
    --config.data.dir=data/bupt_campus/1.1.0 --config.init.backbone=resnet50.safetensors

Frames and batches follow the dataset's authors; the network, losses and learning rates follow STAR
on HITSZ-VCM and are not tuned for this dataset. The dataset is licensed and was not available: the
accuracy, time and memory of this config have not been measured. Pack it with `launch/prepare.py`.
`--config.eval.protocol=buptcampus/official-bs64` scores as the published loader does.
"""

import ml_collections

from configs import star_hitsz_vcm


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of `star_hitsz_vcm` with the data settings of BUPTCampus."""
    config = star_hitsz_vcm.get_config()
    config.data.dir = "data/bupt_campus/1.1.0"
    config.data.sampling = "bupt_campus"
    config.data.frame_size = (256, 128)
    config.data.clip_length = 10
    config.eval.protocol = "buptcampus/full"
    return config
