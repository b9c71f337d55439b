"""The schema of a config: every key, its allowed values and its meaning.

docs/config.md is generated from the table `KEYS`; after changing it, regenerate the file:

  python -m star_jax.config > docs/config.md
"""

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import ml_collections
import numpy as np
from ml_collections import config_dict

from data_pipelines.errors import InputError
from data_pipelines.parts import is_path

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
INT32_MAX = 2**31 - 1
FLOAT32_MAX = float(np.finfo(np.float32).max)


class Values(NamedTuple):
    """A set of values.

    Attributes:
      text: a description that completes the sentence "use ...".
      include: returns whether a value is in the set.
      name_parts: whether values may hold paths of components from other packages.
    """

    text: str
    include: Callable[[Any], bool]
    name_parts: bool = False


def flag() -> Values:
    """Returns the set of True and False; 0 and 1 are not in it."""
    return Values("True or False", lambda value: isinstance(value, bool))


def integer(least: int, most: int = INT32_MAX) -> Values:
    """Returns the set of integers in a range; bools and floats are not in it."""
    return Values(
        f"an integer {span(least, most)}",
        lambda value: (
            isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        ),
    )


def integers(
    least: int, most: int = INT32_MAX, *, count: int | None = None, ascending: bool = False
) -> Values:
    """Returns the set of tuples and lists of integers in a range.

    Args:
      least: smallest allowed integer.
      most: largest allowed integer.
      count: number of integers; any if None.
      ascending: whether each must be larger than the one before.
    """
    words = [str(count)] * (count is not None) + ["ascending"] * ascending
    one = integer(least, most)

    def include(value: Any) -> bool:
        if not isinstance(value, list | tuple) or not all(map(one.include, value)):
            return False
        in_order = not ascending or list(value) == sorted(set(value))
        return in_order and count in (None, len(value))

    return Values(f"a tuple of {' '.join(words)} integers {span(least, most)}", include)


def span(least: int, most: int) -> str:
    """Returns the description of a range of integers."""
    return f"of {least} or more" if most == INT32_MAX else f"from {least} to {most}"


def number(text: str, inside: Callable[[Any], Any]) -> Values:
    """Returns the set of finite floats and integers that are `inside` a range as float32."""

    def include(value: Any) -> bool:
        return (
            isinstance(value, int | float)
            and not isinstance(value, bool)
            # Neither infinite nor NaN; JAX converts integers to int32.
            and abs(value) <= (INT32_MAX if isinstance(value, int) else FLOAT32_MAX)
            and bool(inside(np.float32(value)))
        )

    return Values(text, include)


def text(least: int, most: int = 1000) -> Values:
    """Returns the set of printable strings whose length is in a range."""
    return Values(
        f"printable text of {least} to {most} characters",
        lambda value: (
            isinstance(value, str) and value.isprintable() and least <= len(value) <= most
        ),
    )


def choice(*names: str) -> Values:
    """Returns the set of the given strings."""
    *others, last = map(repr, names)
    return Values(
        f"{', '.join(others)} or {last}", lambda value: isinstance(value, str) and value in names
    )


def part() -> Values:
    """Returns the set of texts that may name a component: a name, or `package.module:object`.

    Whether the name exists is checked by `find_part`, whose error lists the names: the modules with
    the dictionaries of components import JAX.
    """
    return Values(
        "the name of a component or 'package.module:object'",
        lambda value: (
            is_path(value) or (isinstance(value, str) and bool(re.fullmatch(r"[\w/-]+", value)))
        ),
        name_parts=True,
    )


def options() -> Values:
    """Returns the set of config sections with a component's options, which the component checks."""
    return Values(
        "a section of options",
        lambda value: isinstance(value, Mapping | ml_collections.ConfigDict),
        name_parts=True,  # an option of another package's component may be a component, too
    )


def optional(values: Values) -> Values:
    """Returns a set of values extended by None."""
    return values._replace(
        text=f"{values.text}, or None",
        include=lambda value: value is None or bool(values.include(value)),
    )


def weighted_parts() -> Values:
    """Returns the set of tuples of pairs: the path of a component elsewhere, and its weight."""

    def include(value: Any) -> bool:
        return isinstance(value, list | tuple) and all(
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and is_path(pair[0])
            and NOT_NEGATIVE.include(pair[1])
            for pair in value
        )

    return Values("a tuple of pairs ('package.module:object', weight)", include, name_parts=True)


def different_parts(*, including: str) -> Values:
    """Returns the set of tuples of different components, one of which is `including`."""
    one = part()

    def include(value: Any) -> bool:
        return (
            isinstance(value, list | tuple)
            and all(map(one.include, value))
            and len(set(value)) == len(value)
            and including in value
        )

    text = f"a tuple of different component names or 'package.module:object', with {including!r}"
    return Values(text, include, name_parts=True)


POSITIVE = number("a number above 0", lambda x: x > 0)
NOT_NEGATIVE = number("a number of 0 or more", lambda x: x >= 0)
BELOW_ONE = number("a number from 0 to below 1", lambda x: 0 <= x < 1)
PROBABILITY = number("a number from 0 to 1", lambda x: 0 <= x <= 1)


class Key(NamedTuple):
    """The allowed values of a key, its meaning in Markdown, and its value in `default_config`."""

    values: Values
    meaning: str
    default: Any


KEYS: Mapping[str, Key] = {
    "seed": Key(
        # JAX takes a seed modulo 2^32: larger seeds would repeat the networks of smaller ones.
        integer(0, 2**32 - 1),
        "Seed of everything random: initial parameters, batches, augmentation and dropout.",
        default=0,
    ),
    "log_every_steps": Key(
        integer(1), "Steps from one row of `metrics.jsonl` to the next.", default=10
    ),
    "data.dir": Key(
        text(1),
        "The packed dataset: the folder that `launch/prepare.py` prints, or its `gs://` URL.",
        default="data/hitsz_vcm/2.1.0",
    ),
    "data.sampling": Key(
        part(),
        "How tracklets and frames are drawn. `hitsz_vcm`: tracklets of each modality "
        "separately, one frame from each of T equal chunks. `bupt_campus`: aligned pairs of "
        "tracklets, the same T frames in both.",
        default="hitsz_vcm",
    ),
    "data.frame_size": Key(
        # Stage 3 has one value per 16 pixels. Instance normalization makes a map of a single value
        # 0, so that only its style would reach stage 4.
        integers(17, 4096, count=2),
        "Height and width in pixels to which frames are resized.",
        default=(288, 144),
    ),
    "data.clip_length": Key(integer(1, 1024), "Frames per clip, T.", default=12),
    "data.identities_per_batch": Key(
        integer(2, 2**16),
        "Identities per batch over all devices, P; at least two, since the triplet loss compares "
        "them, and at most the number of training identities.",
        default=8,
    ),
    "data.tracklets_per_identity": Key(
        integer(1, 2**16),
        "Tracklets per identity and modality in a batch, K; a batch has P * K pairs.",
        default=2,
    ),
    "data.validation_identities": Key(
        integer(0),
        "Training identities that are held out for model selection: training never sees "
        "them, and evaluations during training use them (split `validation`) instead of the "
        "test split. They are the same for every run on a dataset.",
        default=0,
    ),
    "data.num_threads": Key(
        integer(1, 256),
        "Batches that each process loads concurrently, one thread per batch.",
        default=16,
    ),
    "augment.parts": Key(
        different_parts(including="normalize"),
        "What is done to the frames of a batch, in this order. Those before `normalize` see pixels "
        "from 0 to 255: `crop_and_flip`, which pads with black; those after it see normalized "
        "ones: `erasing` and `style`. The following keys configure them.",
        default=("crop_and_flip", "normalize", "erasing", "style"),
    ),
    "augment.per_frame": Key(
        flag(),
        "Draw crop, flip and erasing for every frame instead of once per tracklet.",
        default=False,
    ),
    "augment.move_keypoints": Key(
        flag(),
        "Move the skeletons with the pixels in crop and flip; needs `model.keypoints` `relative`.",
        default=True,
    ),
    "augment.padding": Key(
        integer(0, 4095),
        "Black pixels added on each side before the crop, the largest shift; less than the frame's "
        "height and width.",
        default=10,
    ),
    "augment.flip_probability": Key(
        PROBABILITY, "Share of tracklets that are mirrored.", default=0.5
    ),
    "augment.erasing_probability": Key(
        PROBABILITY, "Share of tracklets in which a rectangle is erased.", default=0.5
    ),
    "augment.style": Key(
        flag(),
        "Apply style gains to the frames (the augmentation `style`), and run the second pass with "
        "disturbed style that the losses `disturbed_identity` and `defense` need.",
        default=True,
    ),
    "augment.style_stages": Key(
        integers(1, 100, count=2, ascending=True),
        "Backbone stages after which style is disturbed: after the first by a frame of the same "
        "modality, after the second by a frame of the other.",
        default=(2, 3),
    ),
    "model.num_identities": Key(
        optional(integer(2, 10**7)),
        "Number of identities that the classifiers distinguish. None takes that of the training "
        "split; a different number is an error.",
        default=None,
    ),
    "model.backbone": Key(
        part(),
        "The network from frames to frame features; the names are those of `BACKBONES` in "
        "`star_jax/models/backbones.py`.",
        default="resnet50",
    ),
    "model.backbone_options": Key(
        options(),
        "Values of the backbone's attributes. ResNets have `stage_sizes` (blocks in each of four "
        "stages) and `width` (channels of the stems), ResNet-50 and ResNet-101 also `ibn`; ViTs "
        "have `width`, `depth`, `num_heads`, `patch_size` and `pos_grid`.",
        default={},
    ),
    "model.guidance": Key(
        part(),
        "How the frame features are refined: `frame`, by the skeletons; `none`, not at all. "
        "Without it, and with a pooling other than `guided`, the network has no skeleton branch, "
        "and the losses `modality_consistency` and `skeleton_consistency` are left out.",
        default="frame",
    ),
    "model.pooling": Key(
        part(),
        "How frame features become a tracklet feature: `guided`, generalized means weighted by the "
        "skeletons; `gem`, one generalized mean; `mean`; `max`.",
        default="guided",
    ),
    "model.gem_power": Key(
        number("a number of 1 or more", lambda x: x >= 1),
        "Power of the pooling `gem`.",
        default=3.0,
    ),
    "model.keypoints": Key(
        choice("relative", "pixels"),
        "`relative`: divided by the frame's width and height, undetected joints masked. `pixels`: "
        "those of the stored frame, unchanged, as in the authors' code; needs "
        "`augment.move_keypoints` False.",
        default="relative",
    ),
    "model.graph_edges": Key(
        choice("every_frame", "first_frame"),
        "Frames with skeleton edges in the keypoint graph; `first_frame` as in the authors' code.",
        default="every_frame",
    ),
    "model.dropout_rate": Key(
        BELOW_ONE, "Dropout after the keypoint graph's first layer.", default=0.3
    ),
    "model.attention_dropout_rate": Key(
        BELOW_ONE, "Dropout on the attention weights of the keypoint graph.", default=0.6
    ),
    "model.dtype": Key(
        choice("float32", "bfloat16"),
        "Dtype of convolutions and large matrix products; parameters are float32.",
        default="bfloat16",
    ),
    "model.remat": Key(
        flag(),
        "Recompute blocks in the backward pass, which takes more time and less memory.",
        default=False,
    ),
    "init.backbone": Key(
        text(0),
        "ImageNet weights that the backbone starts from, a `.safetensors` or `.pth` file; empty: "
        "random weights.",
        default="",
    ),
    "init.checkpoint": Key(
        text(0),
        "A network that training starts from: the folder of a run, a checkpoint, "
        "`<run>/checkpoints/<step>`, or a `.safetensors` file of `launch/export.py`. Its arrays "
        "are taken where name and shape agree; the others, the optimizer and the step start "
        "afresh. Empty: random weights, or those of `init.backbone`.",
        default="",
    ),
    "init.other_backbone": Key(
        flag(),
        "Allow a network at `init.checkpoint` that fits less than half of the backbone's weights; "
        "its other arrays are taken.",
        default=False,
    ),
    "losses.identity": Key(
        NOT_NEGATIVE,
        "Weight of the cross entropy of the tracklets' identities; a loss of weight 0 is not "
        "computed.",
        default=1.0,
    ),
    "losses.triplet": Key(
        NOT_NEGATIVE,
        "Weight of the batch-hard triplet loss of the tracklets' features.",
        default=1.0,
    ),
    "losses.frame_identity": Key(
        NOT_NEGATIVE, "Weight of the cross entropy of the frames' identities.", default=1.0
    ),
    "losses.disturbed_identity": Key(
        NOT_NEGATIVE,
        "Weight of the cross entropy of the frames' identities with disturbed style; needs "
        "`augment.style`.",
        default=1.0,
    ),
    "losses.defense": Key(
        NOT_NEGATIVE,
        "Weight of the distance between frame features with and without disturbed style; needs "
        "`augment.style`.",
        default=1.0,
    ),
    "losses.modality_consistency": Key(
        NOT_NEGATIVE,
        "Weight of the divergence of the skeletons' identities between modalities; needs skeletons "
        "(guidance `frame` or pooling `guided`).",
        default=1.0,
    ),
    "losses.skeleton_consistency": Key(
        NOT_NEGATIVE,
        "Weight of the divergence of the joints' features from the edges'; needs skeletons "
        "(guidance `frame` or pooling `guided`).",
        default=1.0,
    ),
    "losses.extra": Key(
        weighted_parts(),
        "Losses from other packages with their weights; see `star_jax/losses.py`.",
        default=(),
    ),
    "optim.optimizer": Key(
        part(),
        "How gradients become updates, as in PyTorch: `sgd`, with Nesterov momentum; `adam`; "
        "`adamw`.",
        default="sgd",
    ),
    "optim.lr": Key(
        POSITIVE, "Learning rate of all layers but the backbone, after warm-up.", default=0.1
    ),
    "optim.backbone_lr": Key(
        NOT_NEGATIVE,
        "Learning rate of the stems and the four stages; 0 freezes their parameters, but not the "
        "running statistics of their batch norms.",
        default=0.01,
    ),
    "optim.schedule": Key(
        part(),
        "How both learning rates fall after the warm-up: `steps`, at `decay_epochs`; `cosine`, to "
        "0 at the end of `epochs`, so that another number of epochs is another schedule.",
        default="steps",
    ),
    "optim.momentum": Key(
        BELOW_ONE,
        "Nesterov momentum of `sgd`; the first beta of `adam` and `adamw`, whose second is 0.999.",
        default=0.9,
    ),
    "optim.weight_decay": Key(
        NOT_NEGATIVE,
        "Weight decay: this multiple of the parameters is added to their gradients; by `adamw`, to "
        "the update, before it is multiplied by the learning rate.",
        default=5e-4,
    ),
    "optim.clip_norm": Key(
        NOT_NEGATIVE,
        "Largest norm of the gradient of all parameters, which is clipped to it; 0 disables "
        "clipping.",
        default=0.0,
    ),
    "optim.warmup_epochs": Key(
        integer(0), "Epochs in which both learning rates rise linearly to their values.", default=10
    ),
    "optim.decay_epochs": Key(
        integers(0, ascending=True),
        "Epochs at which both learning rates drop to a tenth; of the schedule `steps`.",
        default=(60, 120),
    ),
    "optim.ema_decay": Key(
        BELOW_ONE,
        "Decay of an exponential moving average of the parameters and the running statistics, "
        "which is kept and evaluated beside them; 0 keeps none. After n steps the decay is at most "
        "(1 + n) / (10 + n), so that the initial parameters are soon forgotten.",
        default=0.0,
    ),
    "optim.epochs": Key(integer(1, 10**6), "Epochs of training.", default=130),
    "parallel.fsdp": Key(
        integer(1),
        "Number of devices over which parameters and optimizer state are split; must divide the "
        "number of device groups that share the pairs of a batch.",
        default=1,
    ),
    "eval.protocol": Key(
        part(),
        "Which tracklets are queries and gallery, and which scores are reported; the names are "
        "those of `PROTOCOLS` in `star_jax/evaluation/protocols.py`. "
        "`cross-modality` is for footage of your own, and so is `any`, in which queries search "
        "both modalities; with `/other-cameras`, gallery entries of the query's identity and "
        "camera are removed.",
        default="hitsz_vcm/v1",
    ),
    "eval.batch_size": Key(
        integer(1, 2**16), "Clips that are embedded at once, over all devices.", default=64
    ),
    "eval.clips": Key(
        choice("first", "chunk_first", "linspace", "dense"),
        "Frames of a tracklet that are embedded. `first`: one clip by the rule of `data.sampling`, "
        "which is `chunk_first` for `hitsz_vcm` and `linspace` for `bupt_campus`. `chunk_first`: "
        "one clip, the first frame of each of T equal chunks. `linspace`: one clip, T frames at "
        "equal distances. `dense`: all frames in consecutive clips, averaged.",
        default="first",
    ),
    "eval.flip": Key(
        flag(),
        "Average the embeddings of each clip and its mirror image; needs `model.keypoints` "
        "`relative`.",
        default=False,
    ),
    "eval.save_embeddings": Key(
        flag(),
        "Whether evaluations during training leave their embeddings beside the scores, for reports "
        "and searches; launch/eval.py always does.",
        default=False,
    ),
    "eval.every_epochs": Key(
        integer(0),
        "Epochs from one evaluation during training to the next; 0 never evaluates.",
        default=10,
    ),
    "checkpoint.every_steps": Key(
        integer(1), "Steps from one checkpoint to the next.", default=500
    ),
    "checkpoint.keep": Key(integer(1), "Number of most recent checkpoints to keep.", default=3),
}

OPTIONS = tuple(key for key, (values, *_) in KEYS.items() if values.text == options().text)
OPTION = Values("a value that the component accepts", lambda value: True)
SECTIONS = tuple(dict.fromkeys(key.rpartition(".")[0] for key in KEYS if "." in key))

DISTURBED_LOSSES = ("disturbed_identity", "defense")
SKELETON_LOSSES = ("modality_consistency", "skeleton_consistency")


def default_config() -> ml_collections.ConfigDict:
    """Returns the config of all keys at their defaults: STAR on HITSZ-VCM, the published recipe."""
    config = ml_collections.ConfigDict()
    for key, (_, _, default) in KEYS.items():
        section, _, name = key.rpartition(".")
        if section and section not in config:
            config[section] = ml_collections.ConfigDict()
        if default is None:
            default = config_dict.placeholder(int)
        (config[section] if section else config)[name] = (
            ml_collections.ConfigDict(default) if key in OPTIONS else default
        )
    return config


def check_config(config: ml_collections.ConfigDict) -> None:
    """Raises an InputError that names the key, its value and what to use if a value is invalid.

    Lists are accepted for tuples, as in a config read from JSON, and integers for floats.

    Args:
      config: a whole config, as in `configs/`.
    """
    check_section(config, "")
    check_together(config)


def check_section(config: ml_collections.ConfigDict, section: str) -> None:
    """Checks each key of a section, such as `model`, by itself; "" stands for all sections."""
    check_names(config, section)
    for key, value in entries(config, section):
        values = KEYS[key].values
        if not values.include(value):
            raise InputError(f"config.{key} is {shown(value)}: use {values.text}")


def check_names(config: ml_collections.ConfigDict, section: str = "") -> None:
    """Checks that a section has all of its keys and no others, whatever their values."""
    found = dict(entries(config, section))
    for key, value in found.items():
        if key in SECTIONS:
            raise InputError(f"config.{key} is {shown(value)}: use {keys_of(key)}")
        if key not in KEYS:
            raise InputError(unknown(key))
    for key, (values, *_) in KEYS.items():
        if key.startswith(f"{section}." if section else "") and key not in found:
            raise InputError(f"config.{key} is missing: use {values.text}")


def check_together(config: ml_collections.ConfigDict) -> None:
    """Checks the constraints between keys, each of which is valid by itself."""
    size, padding = tuple(config.data.frame_size), config.augment.padding
    if padding >= min(size):
        raise InputError(
            f"config.augment.padding is {padding}: use less than {min(size)}, the smaller of "
            f"height and width in config.data.frame_size, which is {size}"
        )
    parts = tuple(config.augment.parts)
    for one, next_one in (
        ("crop_and_flip", "normalize"),
        ("normalize", "erasing"),
        ("normalize", "style"),
    ):
        if {one, next_one} <= {*parts} and parts.index(one) > parts.index(next_one):
            raise InputError(f"config.augment.parts is {parts}: use {one!r} before {next_one!r}")
    if config.eval.flip and config.model.keypoints == "pixels":
        raise InputError(
            "config.eval.flip is True: use False with config.model.keypoints 'pixels', which are "
            "pixels of the stored frame, so that they cannot be mirrored in the resized one"
        )
    if config.init.backbone and config.init.checkpoint:
        raise InputError(
            f"config.init.backbone is {shown(config.init.backbone)} and config.init.checkpoint is "
            f"{shown(config.init.checkpoint)}: use one of them; a network has its own backbone"
        )
    identities, batch = config.model.num_identities, config.data.identities_per_batch
    if identities is not None and batch > identities:
        raise InputError(
            f"config.data.identities_per_batch is {batch}: use at most {identities}, which is "
            "config.model.num_identities"
        )
    computed = [name for name in config.losses if name != "extra"]
    if not config.augment.style:
        computed = [name for name in computed if name not in DISTURBED_LOSSES]
    pooling = config.model.pooling
    if config.model.guidance == "none" and pooling != "guided" and not is_path(pooling):
        computed = [name for name in computed if name not in SKELETON_LOSSES]
    weights = [config.losses[name] for name in computed]
    if not any(weights + [weight for _, weight in config.losses.extra]):
        raise InputError(
            f"config.losses is 0 for {', '.join(computed)}: use a number above 0 for one of them "
            f"(config.model.guidance is {config.model.guidance!r}, config.model.pooling is "
            f"{config.model.pooling!r} and config.augment.style is {config.augment.style}, so that "
            "no other losses are computed)"
        )


def check_training(config: ml_collections.ConfigDict) -> None:
    """Checks the constraints between keys for training; networks from before them stay usable."""
    if config.augment.move_keypoints and config.model.keypoints == "pixels":
        raise InputError(
            "config.augment.move_keypoints is True: use False with config.model.keypoints "
            "'pixels', which are pixels of the stored frame, so that they cannot follow those of "
            "the resized one"
        )


def entries(config: Any, section: str) -> Iterator[tuple[str, Any]]:
    """Yields the keys of a section, prefixed with its name and a dot, and their values."""
    for name in config:
        try:
            value = config[name]
        except config_dict.RequiredValueError:  # a placeholder that nothing has replaced
            value = None
        key = f"{section}.{name}" if section else str(name)
        if key in SECTIONS and isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from entries(value, key)
        else:
            yield key, value


def values_of(key: str) -> Values | None:
    """Returns the allowed values of a key, or of a component's option; None if there is none."""
    if key in KEYS:
        return KEYS[key].values
    return OPTION if key.rpartition(".")[0] in OPTIONS else None


def unknown(key: str) -> str:
    """Returns the error message for a key that does not exist, or is a section of keys."""
    if key in SECTIONS:
        return f"config.{key} is {keys_of(key)}"

    def close(cutoff: float) -> list[str]:
        return difflib.get_close_matches(key, KEYS, n=1, cutoff=cutoff)

    name = key.rpartition(".")[2].replace("_", " ")
    described = [known for known, (_, meaning, _) in KEYS.items() if name in meaning.lower()]
    nearest = close(0.75) or (described if " " in name else []) or close(0.6)
    hint = f"did you mean config.{nearest[0]}? " if nearest else ""
    return f"config.{key} does not exist: {hint}docs/config.md lists all keys"


def keys_of(section: str) -> str:
    """Returns the description of a section and its keys for an error message."""
    names = [key.rpartition(".")[2] for key in KEYS if key.rpartition(".")[0] == section]
    return f"a section with the keys {', '.join(names)}"


def shown(value: Any) -> str:
    """Returns a value as shown in an error message: one line of at most 100 characters."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # an integer of thousands of digits
        text = f"a very long {type(value).__name__}"
    return text if len(text) <= 100 else f"{text[:97]}..."


def markdown() -> str:
    """Returns the content of docs/config.md."""
    lines = [
        "# Config",
        "",
        "Every config key with its allowed values and its meaning. Generated by "
        "`python -m star_jax.config > docs/config.md`",
        "from the table in `star_jax/config.py`. A run checks its config against this table before "
        "anything else.",
        "",
        "The defaults, `star_jax.default_config()`, are the published recipe, "
        "`configs/star_hitsz_vcm.py`. Override any value on the command line:",
        "",
        "| | |",
        "| --- | --- |",
        "| a number, a text or a choice | `--config.optim.lr=0.05` |",
        "| True or False | `--config.augment.style=False` or `--noconfig.augment.style` |",
        '| a tuple | `--config.optim.decay_epochs="(40, 80)"` |',
        "| None | `--config.model.num_identities=None` |",
        "| an option of the backbone, which the config may lack | "
        "`--config.model.backbone_options.width=8` |",
        "| all options of the backbone, in place of the config's | "
        "`--config.model.backbone_options=\"{'depth': 4}\"`, or `{}` for none |",
    ]
    for section in ("", *SECTIONS):
        name = f"config.{section}" if section else "config"
        lines += ["", f"## `{name}`", ""]
        lines += ["| key | values | default | meaning |", "| --- | --- | --- | --- |"]
        for key, (values, meaning, default) in KEYS.items():
            if key.rpartition(".")[0] == section:
                lines.append(f"| `{key}` | {values.text} | `{default!r}` | {meaning} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(markdown(), end="")
