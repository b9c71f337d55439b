"""Conversion of the authors' STAR network to Flax variables."""

from collections.abc import Iterator, Mapping
from typing import Any

import jax.numpy as jnp
import ml_collections

from data_pipelines.errors import InputError
from star_jax.models import build_model
from star_jax.models.guidance import NUM_HEADS, FrameGuidance
from star_jax.models.pooling import POWERS, GuidedPooling
from star_jax.models.resnet import ResNet
from star_jax.weights.entries import (
    NEVER_USED,
    Entry,
    Variables,
    abstract_variables,
    attention_entries,
    convert,
    linear_entries,
    norm_entries,
    resnet_entries,
    squeeze,
    transpose,
    unchanged,
)

AUTHORS_STEMS = {
    "stem_visible": "visible_module.visible.",
    "stem_infrared": "thermal_module.thermal.",
}

# Unused by networks without the whole skeleton branch, guidance and pooling.
SKELETON = (r"^(gat|lstm_edge|fc1|pose_classifier|pose_bottleneck|time_guide|GuidedAggModule)\b",)


def from_authors(state_dict: Mapping[str, Any], config: ml_collections.ConfigDict) -> Variables:
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
    expected = abstract_variables(model)
    if not isinstance(model.backbone, ResNet):
        raise InputError(
            f"config.model.backbone is {config.backbone!r}: the authors' network has a ResNet"
        )
    entries = [*resnet_entries(expected, AUTHORS_STEMS, "base_resnet.base."), *head_entries()]
    if model.uses_skeletons:
        entries += skeleton_entries(model.backbone.num_channels)
    entries = [entry for entry in entries if entry[0] in expected]
    whole = isinstance(model.guidance, FrameGuidance) and isinstance(model.pooling, GuidedPooling)
    return convert(state_dict, entries, expected, NEVER_USED if whole else NEVER_USED + SKELETON)


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
        both_ways = lambda forward, backward: jnp.stack([forward.T, backward.T])  # noqa: E731
        yield f"{lstm}/{ours}_kernel", (weight, f"{weight}_reverse"), both_ways
    biases = ("lstm_edge.bias_ih_l0", "lstm_edge.bias_hh_l0")
    yield (
        f"{lstm}/bias",
        (*biases, *(f"{name}_reverse" for name in biases)),
        lambda a, b, c, d: jnp.stack([a + b, c + d]),
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
        lambda *weights: jnp.stack([weight.T for weight in weights], axis=1),
    )
    yield (
        f"{path}/bias",
        tuple(f"{layer}.bias" for layer in layers),
        lambda *biases: jnp.stack(biases),
    )
