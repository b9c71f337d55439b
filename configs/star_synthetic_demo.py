"""A small STAR on the generated `demo` dataset, for two CPU cores and a few minutes.

Command:
  python launch/train.py --config=configs/star_synthetic_demo.py --workdir=runs/demo

`make demo` renders and packs the dataset first and evaluates afterwards.
"""

import ml_collections

from configs import star_hitsz_vcm


def get_config() -> ml_collections.ConfigDict:
    """Returns the config of `star_hitsz_vcm`, scaled down."""
    config = star_hitsz_vcm.get_config()
    config.data.dir = "data/synthetic_vcm_demo/hitsz_vcm/2.1.0"
    config.data.frame_size = (64, 48)
    config.data.clip_length = 4
    config.data.num_threads = 2
    config.data.validation_identities = 20  # of 300, for the curves during training

    config.augment.padding = 4
    config.augment.erasing_probability = (
        0.25  # a small network trained for few steps does not overfit
    )

    config.model.backbone = "resnet18"
    config.model.backbone_options.stage_sizes = (1, 1, 1, 1)
    config.model.backbone_options.width = 16
    config.model.dtype = "float32"

    # Features trained from scratch have no fixed scale: at full weight, these losses shrink them
    # until the batch norms that follow amplify noise and training diverges.
    config.losses.triplet = 0.1
    config.losses.defense = 0.01

    config.optim.lr = 0.1
    config.optim.backbone_lr = 0.1  # trained from scratch, like the rest
    config.optim.clip_norm = 5.0
    config.optim.warmup_epochs = 3
    config.optim.decay_epochs = (24, 31)
    config.optim.epochs = 34

    config.eval.protocol = "cross-modality"  # "hitsz_vcm/v1" is for results on HITSZ-VCM
    config.eval.every_epochs = 6
    config.checkpoint.keep = 2
    return config
