"""Conversion of the authors' STAR network to Flax variables, and back."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import InputError
from star_jax.config.experiment import ModelConfig
from star_jax.models import Star, build_model
from star_jax.models.guidance import NUM_HEADS, FrameGuidance
from star_jax.models.pooling import POWERS, GuidedPooling
from star_jax.models.resnet import ResNet
from star_jax.weights.entries import (
    NEVER_USED,
    Conversion,
    Entry,
    Variables,
    abstract_variables,
    attention_entries,
    convert,
    linear_entries,
    norm_entries,
    resnet_entries,
    squeeze,
    state_dict_of,
    transpose,
    unchanged,
)

AUTHORS_STEMS = {
    "stem_visible": "visible_module.visible.",
    "stem_infrared": "thermal_module.thermal.",
}

# The authors' network; other values have no place in its state dict.
AUTHORS_PARTS = {"backbone": "resnet50", "guidance": "frame", "pooling": "guided"}

# Unused by networks without the whole skeleton branch, guidance and pooling.
SKELETON = (r"^(gat|lstm_edge|fc1|pose_classifier|pose_bottleneck|time_guide|GuidedAggModule)\b",)


def from_authors(state_dict: Mapping[str, Any], config: ModelConfig) -> Variables:
    """Converts the authors' state dict to variables of the network that `config` describes.

    Args:
      state_dict: the arrays of their PyTorch network by name.
      config: a `config.model`; `num_identities` is that of the state dict.

    Returns:
      {"params": ..., "batch_stats": ...}, float32.

    Raises:
      InputError: arrays are missing, unknown or of the wrong shape; names them.
    """
    model = build_model(config)
    if not isinstance(model.backbone, ResNet):
        raise InputError(
            f"config.model.backbone is {config.backbone!r}: the authors' network has a ResNet"
        )
    expected = abstract_variables(model)
    whole = isinstance(model.guidance, FrameGuidance) and isinstance(model.pooling, GuidedPooling)
    never_used = NEVER_USED if whole else NEVER_USED + SKELETON
    return convert(state_dict, authors_entries(model, expected), expected, never_used)


def to_authors(
    variables: Mapping[str, Any], config: ModelConfig
) -> dict[str, np.ndarray | jax.Array]:
    """Converts variables to the authors' state dict, the inverse of `from_authors`.

    Every name and shape of their network is there, so that PyTorch's `load_state_dict` is strict;
    arrays that their network has and never uses are copies of used ones, or as PyTorch initializes
    them. The second bias of the LSTM is zero, since ours is the sum of both.

    Args:
      variables: {"params": ..., "batch_stats": ...}.
      config: the `config.model` of their network. Their code computes the same with `keypoints`
        "pixels" and `graph_edges` "first_frame", as in `configs/star_hitsz_vcm_reference.py`;
        other values change neither names nor shapes. It has the default `backbone_options`.

    Returns:
      Arrays by name, float32, and int64[] for batch norms' `num_batches_tracked`.

    Raises:
      InputError: the network has a component that theirs lacks; names the key.
    """
    for key, part in AUTHORS_PARTS.items():
        if getattr(config, key) != part:
            raise InputError(
                f"config.model.{key} is {getattr(config, key)!r}: the authors' network has "
                f"{part!r} only, so that it has no place for these weights; export a safetensors "
                "file"
            )
    model = build_model(config)
    if isinstance(model.backbone, ResNet) and model.backbone.ibn:
        raise InputError(
            "config.model.backbone_options.ibn is True: the authors' network has no instance norm, "
            "so that it has no place for these weights; export a safetensors file"
        )
    entries = authors_entries(model, abstract_variables(model))
    used = state_dict_of(variables, entries)
    return used | never_used_arrays(used)


def never_used_arrays(used: Mapping[str, Any]) -> dict[str, np.ndarray | jax.Array]:
    """Returns the arrays that the authors' network has and never uses, given the others.

    Those are the trunk's layers within both stems, a stem within the trunk, and three batch norms.
    """
    unused: dict[str, Any] = {}
    trunk, (visible, _) = "base_resnet.base.", AUTHORS_STEMS.values()
    for name, array in used.items():
        if name.startswith(trunk):
            unused |= {stem + name.removeprefix(trunk): array for stem in AUTHORS_STEMS.values()}
        elif name.startswith(visible):
            unused[trunk + name.removeprefix(visible)] = array
    for norm, like in (
        ("bn", "gat.conv2.bias"),
        ("time_guide.bn_enhanced_origin", "time_guide.ffn.2.bias"),
        ("time_guide.bn_enhanced_time_guide", "time_guide.ffn.2.bias"),
    ):
        ones, zeros = jnp.ones_like(used[like]), jnp.zeros_like(used[like])
        unused |= {f"{norm}.weight": ones, f"{norm}.running_var": ones}
        unused |= {f"{norm}.bias": zeros, f"{norm}.running_mean": zeros}
    for name in [*used, *unused]:
        if name.endswith("running_mean"):
            counter = f"{name.removesuffix('running_mean')}num_batches_tracked"
            unused[counter] = np.zeros((), np.int64)
    return unused


def authors_entries(model: Star, expected: Mapping[str, Any]) -> list[Entry]:
    """Returns the entries of all arrays of a network with a ResNet, `expected` by path."""
    entries = [*resnet_entries(expected, AUTHORS_STEMS, "base_resnet.base."), *head_entries()]
    if model.has_skeleton_branch:
        entries += skeleton_entries(model.backbone.num_channels)
    return [entry for entry in entries if entry[0] in expected]


def head_entries() -> Iterator[Entry]:
    """Yields the entries of the global and the frame head."""
    for ours, theirs in (("", "global"), ("frame_", "local")):
        yield from norm_entries(f"{ours}bnneck", f"{theirs}_bottleneck", learned_bias=False)
        yield f"params/{ours}classifier/kernel", (f"{theirs}_classifier.weight",), transpose


def skeleton_entries(channels: int) -> Iterator[Entry]:
    """Yields the entries of the skeleton branch, the skeleton head, guidance and pooling."""
    yield from linear_entries("edge_sequence/embed", "fc1")
    lstm = "params/edge_sequence/lstm"
    for ours, theirs in (("input", "ih"), ("recurrent", "hh")):
        weight = f"lstm_edge.weight_{theirs}_l0"
        both_ways = Conversion(
            lambda forward, backward: jnp.stack([forward.T, backward.T]),
            lambda x: [direction.T for direction in x],
        )
        yield f"{lstm}/{ours}_kernel", (weight, f"{weight}_reverse"), both_ways
    biases = ("lstm_edge.bias_ih_l0", "lstm_edge.bias_hh_l0")
    yield (
        f"{lstm}/bias",
        (*biases, *(f"{name}_reverse" for name in biases)),
        Conversion(
            lambda a, b, c, d: jnp.stack([a + b, c + d]),
            lambda x: [x[0], jnp.zeros_like(x[0]), x[1], jnp.zeros_like(x[1])],
        ),
    )

    for i in (1, 2):
        path, name = f"params/keypoint_graph/gat{i}", f"gat.conv{i}"
        yield f"{path}/projection/kernel", (f"{name}.lin.weight",), transpose
        yield f"{path}/sender", (f"{name}.att_src",), squeeze
        yield f"{path}/receiver", (f"{name}.att_dst",), squeeze
        yield f"{path}/bias", (f"{name}.bias",), unchanged
    yield from norm_entries("skeleton_bnneck", "pose_bottleneck")
    yield from linear_entries("skeleton_classifier", "pose_classifier")

    for ours, theirs in (
        ("edges_to_features", "cross_attn"),
        ("features_to_edges", "reverse_cross_attn"),
    ):
        name = f"time_guide.{theirs}"
        heads = (NUM_HEADS, channels // NUM_HEADS)
        yield from attention_entries(
            f"guidance/{ours}", heads, f"{name}.in_proj_", f"{name}.out_proj"
        )
    yield from linear_entries("guidance/ffn1", "time_guide.ffn.0")
    yield from linear_entries("guidance/ffn2", "time_guide.ffn.2")
    layers = [f"GuidedAggModule.fc_layers.{i}" for i in range(len(POWERS))]
    path = "params/pooling/weigh"
    yield (
        f"{path}/kernel",
        tuple(f"{layer}.weight" for layer in layers),
        Conversion(
            lambda *weights: jnp.stack([weight.T for weight in weights], axis=1),
            lambda x: [x[:, i].T for i in range(len(POWERS))],
        ),
    )
    yield (
        f"{path}/bias",
        tuple(f"{layer}.bias" for layer in layers),
        Conversion(lambda *biases: jnp.stack(biases), list),
    )
