"""An experiment as frozen dataclasses: every config key with its type, values, meaning and default.

A key is defined here and nowhere else. docs/config.md is generated; after a change, regenerate it:

  python -m star_jax.config > docs/config.md

To read a key that did not exist in an earlier version from what that version stored, add it to
`ADDED_KEYS`.
"""

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from star_jax.config.values import (
    BELOW_ONE,
    NOT_NEGATIVE,
    POSITIVE,
    PROBABILITY,
    Values,
    choice,
    different_parts,
    flag,
    integer,
    integers,
    number,
    optional,
    options,
    part,
    text,
    weighted_parts,
)


class Key(NamedTuple):
    """The allowed values of a key, its meaning in Markdown, and its default."""

    values: Values
    meaning: str
    default: Any


def key(values: Values, meaning: str, *, default: Any) -> Any:
    """Returns the dataclass field of a key."""
    return dataclasses.field(
        default_factory=lambda: copy.copy(default),
        metadata={"key": Key(values, meaning, default)},
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The dataset and its batches."""

    dir: str = key(
        text(1),
        "The packed dataset: the folder that `launch/prepare.py` prints, or its `gs://` URL.",
        default="data/hitsz_vcm/2.1.0",
    )
    sampling: str = key(
        part(),
        "How tracklets and frames are drawn. `hitsz_vcm`: tracklets of each modality "
        "separately, one frame from each of T equal chunks. `bupt_campus`: aligned pairs of "
        "tracklets, the same T frames in both.",
        default="hitsz_vcm",
    )
    frame_size: tuple[int, int] = key(
        # Stage 3 has one value per 16 pixels. Instance normalization makes a map of a single value
        # 0, so that only its style would reach stage 4.
        integers(17, 4096, count=2),
        "Height and width in pixels to which frames are resized.",
        default=(288, 144),
    )
    clip_length: int = key(integer(1, 1024), "Frames per clip, T.", default=12)
    identities_per_batch: int = key(
        integer(2, 2**16),
        "Identities per batch over all devices, P; at least two, since the triplet loss compares "
        "them, and at most the number of training identities.",
        default=8,
    )
    tracklets_per_identity: int = key(
        integer(1, 2**16),
        "Tracklets per identity and modality in a batch, K; a batch has P * K pairs.",
        default=2,
    )
    validation_identities: int = key(
        integer(0),
        "Training identities that are held out for model selection: training never sees "
        "them, and evaluations during training use them (split `validation`) instead of the "
        "test split. They are the same for every run on a dataset.",
        default=0,
    )
    num_threads: int = key(
        integer(1, 256),
        "Batches that each process loads concurrently, one thread per batch.",
        default=16,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the frames."""

    parts: tuple[str, ...] = key(
        different_parts(including="normalize"),
        "What is done to the frames of a batch, in this order. Those before `normalize` see pixels "
        "from 0 to 255: `crop_and_flip`, which pads with black; those after it see normalized "
        "ones: `erasing` and `style`. The following keys configure them.",
        default=("crop_and_flip", "normalize", "erasing", "style"),
    )
    per_frame: bool = key(
        flag(),
        "Draw crop, flip and erasing for every frame instead of once per tracklet.",
        default=False,
    )
    move_keypoints: bool = key(
        flag(),
        "Move the skeletons with the pixels in crop and flip; needs `model.keypoints` `relative`.",
        default=True,
    )
    padding: int = key(
        integer(0, 4095),
        "Black pixels added on each side before the crop, the largest shift; less than the frame's "
        "height and width.",
        default=10,
    )
    flip_probability: float = key(PROBABILITY, "Share of tracklets that are mirrored.", default=0.5)
    erasing_probability: float = key(
        PROBABILITY, "Share of tracklets in which a rectangle is erased.", default=0.5
    )
    style: bool = key(
        flag(),
        "Apply style gains to the frames (the augmentation `style`), and run the second pass with "
        "disturbed style that the losses `disturbed_identity` and `defense` need.",
        default=True,
    )
    style_stages: tuple[int, int] = key(
        integers(1, 100, count=2, ascending=True),
        "Backbone stages after which style is disturbed: after the first by a frame of the same "
        "modality, after the second by a frame of the other.",
        default=(2, 3),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    num_identities: int | None = key(
        optional(integer(2, 10**7)),
        "Number of identities that the classifiers distinguish. None takes that of the training "
        "split; a different number is an error.",
        default=None,
    )
    backbone: str = key(
        part(),
        "The network from frames to frame features; the names are those of `BACKBONES` in "
        "`star_jax/models/backbones.py`.",
        default="resnet50",
    )
    backbone_options: Mapping[str, Any] = key(
        options(),
        "Values of the backbone's attributes. ResNets have `stage_sizes` (blocks in each of four "
        "stages) and `width` (channels of the stems), ResNet-50 and ResNet-101 also `ibn`; ViTs "
        "have `width`, `depth`, `num_heads`, `patch_size` and `pos_grid`.",
        default={},
    )
    guidance: str = key(
        part(),
        "How the frame features are refined: `frame`, by the skeletons; `none`, not at all. "
        "Without it, and with a pooling other than `guided`, the network has no skeleton branch, "
        "and the losses `modality_consistency` and `skeleton_consistency` are left out.",
        default="frame",
    )
    pooling: str = key(
        part(),
        "How frame features become a tracklet feature: `guided`, generalized means weighted by the "
        "skeletons; `gem`, one generalized mean; `mean`; `max`.",
        default="guided",
    )
    gem_power: float = key(
        number("a number of 1 or more", lambda x: x >= 1),
        "Power of the pooling `gem`.",
        default=3.0,
    )
    keypoints: Literal["relative", "pixels"] = key(
        choice("relative", "pixels"),
        "`relative`: divided by the frame's width and height, undetected joints masked. `pixels`: "
        "those of the stored frame, unchanged, as in the authors' code; needs "
        "`augment.move_keypoints` False.",
        default="relative",
    )
    graph_edges: str = key(
        choice("every_frame", "first_frame"),
        "Frames with skeleton edges in the keypoint graph; `first_frame` as in the authors' code.",
        default="every_frame",
    )
    dropout_rate: float = key(
        BELOW_ONE, "Dropout after the keypoint graph's first layer.", default=0.3
    )
    attention_dropout_rate: float = key(
        BELOW_ONE, "Dropout on the attention weights of the keypoint graph.", default=0.6
    )
    dtype: str = key(
        choice("float32", "bfloat16"),
        "Dtype of convolutions and large matrix products; parameters are float32.",
        default="bfloat16",
    )
    remat: bool = key(
        flag(),
        "Recompute blocks in the backward pass, which takes more time and less memory.",
        default=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitConfig:
    """What training starts from."""

    backbone: str = key(
        text(0),
        "ImageNet weights that the backbone starts from, a `.safetensors` or `.pth` file; empty: "
        "random weights.",
        default="",
    )
    checkpoint: str = key(
        text(0),
        "A network that training starts from: the folder of a run, a checkpoint, "
        "`<run>/checkpoints/<step>`, or a `.safetensors` file of `launch/export.py`. Its arrays "
        "are taken where name and shape agree; the others, the optimizer and the step start "
        "afresh. Empty: random weights, or those of `init.backbone`.",
        default="",
    )
    other_backbone: bool = key(
        flag(),
        "Allow a network at `init.checkpoint` that fits less than half of the backbone's weights; "
        "its other arrays are taken.",
        default=False,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossesConfig:
    """Weights of the losses."""

    identity: float = key(
        NOT_NEGATIVE,
        "Weight of the cross entropy of the tracklets' identities; a loss of weight 0 is not "
        "computed.",
        default=1.0,
    )
    triplet: float = key(
        NOT_NEGATIVE,
        "Weight of the batch-hard triplet loss of the tracklets' features.",
        default=1.0,
    )
    frame_identity: float = key(
        NOT_NEGATIVE, "Weight of the cross entropy of the frames' identities.", default=1.0
    )
    disturbed_identity: float = key(
        NOT_NEGATIVE,
        "Weight of the cross entropy of the frames' identities with disturbed style; needs "
        "`augment.style`.",
        default=1.0,
    )
    defense: float = key(
        NOT_NEGATIVE,
        "Weight of the distance between frame features with and without disturbed style; needs "
        "`augment.style`.",
        default=1.0,
    )
    modality_consistency: float = key(
        NOT_NEGATIVE,
        "Weight of the divergence of the skeletons' identities between modalities; needs skeletons "
        "(guidance `frame` or pooling `guided`).",
        default=1.0,
    )
    skeleton_consistency: float = key(
        NOT_NEGATIVE,
        "Weight of the divergence of the joints' features from the edges'; needs skeletons "
        "(guidance `frame` or pooling `guided`).",
        default=1.0,
    )
    extra: tuple[tuple[str, float], ...] = key(
        weighted_parts(),
        "Losses from other packages with their weights; see `star_jax/losses.py`.",
        default=(),
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimizer and its schedule."""

    optimizer: str = key(
        part(),
        "How gradients become updates, as in PyTorch: `sgd`, with Nesterov momentum; `adam`; "
        "`adamw`.",
        default="sgd",
    )
    lr: float = key(
        POSITIVE, "Learning rate of all layers but the backbone, after warm-up.", default=0.1
    )
    backbone_lr: float = key(
        NOT_NEGATIVE,
        "Learning rate of the stems and the four stages; 0 freezes their parameters, but not the "
        "running statistics of their batch norms.",
        default=0.01,
    )
    schedule: str = key(
        part(),
        "How both learning rates fall after the warm-up: `steps`, at `decay_epochs`; `cosine`, to "
        "0 at the end of `epochs`, so that another number of epochs is another schedule.",
        default="steps",
    )
    momentum: float = key(
        BELOW_ONE,
        "Nesterov momentum of `sgd`; the first beta of `adam` and `adamw`, whose second is 0.999.",
        default=0.9,
    )
    weight_decay: float = key(
        NOT_NEGATIVE,
        "Weight decay: this multiple of the parameters is added to their gradients; by `adamw`, to "
        "the update, before it is multiplied by the learning rate.",
        default=5e-4,
    )
    clip_norm: float = key(
        NOT_NEGATIVE,
        "Largest norm of the gradient of all parameters, which is clipped to it; 0 disables "
        "clipping.",
        default=0.0,
    )
    warmup_epochs: int = key(
        integer(0), "Epochs in which both learning rates rise linearly to their values.", default=10
    )
    decay_epochs: tuple[int, ...] = key(
        integers(0, ascending=True),
        "Epochs at which both learning rates drop to a tenth; of the schedule `steps`.",
        default=(60, 120),
    )
    ema_decay: float = key(
        BELOW_ONE,
        "Decay of an exponential moving average of the parameters and the running statistics, "
        "which is kept and evaluated beside them; 0 keeps none. After n steps the decay is at most "
        "(1 + n) / (10 + n), so that the initial parameters are soon forgotten.",
        default=0.0,
    )
    epochs: int = key(integer(1, 10**6), "Epochs of training.", default=130)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How arrays are split over devices."""

    fsdp: int = key(
        integer(1),
        "Number of devices over which parameters and optimizer state are split; must divide the "
        "number of device groups that share the pairs of a batch.",
        default=1,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalConfig:
    """Evaluation."""

    protocol: str = key(
        part(),
        "Which tracklets are queries and gallery, and which scores are reported; the names are "
        "those of `PROTOCOLS` in `star_jax/evaluation/protocols.py`. "
        "`cross-modality` is for footage of your own, and so is `any`, in which queries search "
        "both modalities; with `/other-cameras`, gallery entries of the query's identity and "
        "camera are removed.",
        default="hitsz_vcm/v1",
    )
    batch_size: int = key(
        integer(1, 2**16), "Clips that are embedded at once, over all devices.", default=64
    )
    clips: str = key(
        choice("first", "chunk_first", "linspace", "dense"),
        "Frames of a tracklet that are embedded. `first`: one clip by the rule of `data.sampling`, "
        "which is `chunk_first` for `hitsz_vcm` and `linspace` for `bupt_campus`. `chunk_first`: "
        "one clip, the first frame of each of T equal chunks. `linspace`: one clip, T frames at "
        "equal distances. `dense`: all frames in consecutive clips, averaged.",
        default="first",
    )
    flip: bool = key(
        flag(),
        "Average the embeddings of each clip and its mirror image; needs `model.keypoints` "
        "`relative`.",
        default=False,
    )
    save_embeddings: bool = key(
        flag(),
        "Whether evaluations during training leave their embeddings beside the scores, for reports "
        "and searches; launch/eval.py always does.",
        default=False,
    )
    every_epochs: int = key(
        integer(0),
        "Epochs from one evaluation during training to the next; 0 never evaluates.",
        default=10,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints."""

    every_steps: int = key(integer(1), "Steps from one checkpoint to the next.", default=500)
    keep: int = key(integer(1), "Number of most recent checkpoints to keep.", default=3)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """An experiment: STAR on HITSZ-VCM, the published recipe, by default."""

    seed: int = key(
        # JAX takes a seed modulo 2^32: larger seeds would repeat the networks of smaller ones.
        integer(0, 2**32 - 1),
        "Seed of everything random: initial parameters, batches, augmentation and dropout.",
        default=0,
    )
    log_every_steps: int = key(
        integer(1), "Steps from one row of `metrics.jsonl` to the next.", default=10
    )
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    augment: AugmentConfig = dataclasses.field(default_factory=AugmentConfig)
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    init: InitConfig = dataclasses.field(default_factory=InitConfig)
    losses: LossesConfig = dataclasses.field(default_factory=LossesConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    parallel: ParallelConfig = dataclasses.field(default_factory=ParallelConfig)
    eval: EvalConfig = dataclasses.field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)

    def to_dict(self) -> dict[str, Any]:
        """Returns the config as nested dictionaries, a copy."""
        return dataclasses.asdict(self)


def _keys(config: Any, section: str = "") -> Mapping[str, Key]:
    """Returns the keys of a config or of its sections, whose names and a dot precede theirs."""
    found: dict[str, Key] = {}
    for field in dataclasses.fields(config):
        if "key" in field.metadata:
            found[section + field.name] = field.metadata["key"]
        else:
            found |= _keys(getattr(config, field.name), f"{field.name}.")
    return found


KEYS = _keys(Config())
SECTIONS: Mapping[str, Any] = {
    field.name: field.default_factory
    for field in dataclasses.fields(Config)
    if "key" not in field.metadata
}
OPTIONS = tuple(key for key, (_, _, default) in KEYS.items() if isinstance(default, Mapping))

# Keys that were added after configs were first stored with networks, and the values with which
# networks compute what they computed before.
ADDED_KEYS: Mapping[str, Any] = {
    "augment.parts": ("crop_and_flip", "normalize", "erasing", "style"),
    "data.validation_identities": 0,
    "eval.flip": False,
    "init.checkpoint": "",
    "optim.optimizer": "sgd",
    "optim.schedule": "steps",
    "init.other_backbone": False,
    "eval.save_embeddings": False,
    "optim.ema_decay": 0.0,
}
