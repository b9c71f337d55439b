r"""STAR on HITSZ-VCM: ResNet-50, 288x144 frames, 12 per tracklet, the published recipe.

Command:
  python launch/train.py --config=configs/star_hitsz_vcm.py --workdir=runs/star_hitsz_vcm \
    --config.data.dir=data/hitsz_vcm/2.1.0 --config.init.backbone=resnet50.safetensors

`--config.model.guidance=none --config.model.pooling=gem` trains the baseline without skeletons;
docs/config.md explains all keys. Pack the dataset with `launch/prepare.py` first. The dataset is
licensed, so this config has no measured result here; the authors report mAP 56.01 (infrared to
visible) and 58.56 (visible to infrared).
"""

import ml_collections
from ml_collections import config_dict


def get_config() -> ml_collections.ConfigDict:
    """Returns the default config; `star_hitsz_vcm_reference` follows the authors' code exactly."""
    config = ml_collections.ConfigDict()
    config.seed = 0

    config.data = ml_collections.ConfigDict()
    config.data.dir = "data/hitsz_vcm/2.1.0"
    config.data.sampling = "hitsz_vcm"
    config.data.frame_size = (288, 144)  # height, width
    config.data.clip_length = 12  # T
    config.data.identities_per_batch = 8  # P
    config.data.tracklets_per_identity = 2  # K
    config.data.validation_identities = 0  # held out for model selection
    config.data.num_threads = 16

    config.augment = ml_collections.ConfigDict()
    config.augment.parts = ("crop_and_flip", "normalize", "erasing", "style")
    config.augment.per_frame = False
    config.augment.move_keypoints = True
    config.augment.padding = 10
    config.augment.flip_probability = 0.5
    config.augment.erasing_probability = 0.5
    config.augment.style = True
    config.augment.style_stages = (2, 3)

    config.model = ml_collections.ConfigDict()
    config.model.num_identities = config_dict.placeholder(int)  # taken from the dataset
    config.model.backbone = "resnet50"
    config.model.backbone_options = ml_collections.ConfigDict()
    config.model.guidance = "frame"
    config.model.pooling = "guided"
    config.model.gem_power = 3.0
    config.model.keypoints = "relative"
    config.model.graph_edges = "every_frame"
    config.model.dropout_rate = 0.3
    config.model.attention_dropout_rate = 0.6
    config.model.dtype = "bfloat16"
    config.model.remat = False

    config.init = ml_collections.ConfigDict()
    config.init.backbone = ""
    config.init.checkpoint = ""
    config.init.other_backbone = False

    config.losses = ml_collections.ConfigDict()
    config.losses.identity = 1.0
    config.losses.triplet = 1.0
    config.losses.frame_identity = 1.0
    config.losses.disturbed_identity = 1.0
    config.losses.defense = 1.0
    config.losses.modality_consistency = 1.0
    config.losses.skeleton_consistency = 1.0
    config.losses.extra = ()

    config.optim = ml_collections.ConfigDict()
    config.optim.optimizer = "sgd"
    config.optim.lr = 0.1  # of all layers but the backbone
    config.optim.backbone_lr = 0.01  # of the stems and the four stages
    config.optim.schedule = "steps"
    config.optim.momentum = 0.9
    config.optim.weight_decay = 5e-4
    config.optim.clip_norm = 0.0  # no clipping, as in the authors' code
    config.optim.warmup_epochs = 10
    config.optim.decay_epochs = (60, 120)  # divides the rates by 10 at each
    config.optim.ema_decay = 0.0  # no moving average of the weights
    config.optim.epochs = 130

    config.parallel = ml_collections.ConfigDict()
    config.parallel.fsdp = 1

    config.eval = ml_collections.ConfigDict()
    config.eval.protocol = "hitsz_vcm/v1"
    config.eval.batch_size = 64
    config.eval.clips = "first"
    config.eval.flip = False
    config.eval.save_embeddings = False
    config.eval.every_epochs = 10

    config.checkpoint = ml_collections.ConfigDict()
    config.checkpoint.every_steps = 500
    config.checkpoint.keep = 3

    config.log_every_steps = 10
    return config
