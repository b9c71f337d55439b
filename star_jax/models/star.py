"""The STAR network: backbone, skeleton branch, guidance, pooling and heads.

Axis 1 is always time. Axes between time and the feature axes, such as the modalities of a training
batch, are batch axes.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeGuard

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32

from data_pipelines.coco17 import is_detected
from data_pipelines.errors import InputError
from data_pipelines.parts import Part, find_part
from star_jax.config.checks import as_section
from star_jax.config.experiment import ModelConfig
from star_jax.config.values import shown
from star_jax.models.backbones import BACKBONES
from star_jax.models.guidance import GUIDANCE
from star_jax.models.interfaces import (
    Backbone,
    Guidance,
    Pooling,
    Skeletons,
    StyleSources,
)
from star_jax.models.keypoint_graph import KeypointGraphNetwork
from star_jax.models.layers import Dtype, bnneck, classifier
from star_jax.models.pooling import POOLINGS
from star_jax.models.skeleton import EdgeSequence

MODULE_CLASS = "a Flax module class, or functools.partial of one"


@flax.struct.dataclass
class StarOutput:
    """The outputs of the network for B tracklets of one modality; the letters are the paper's.

    For B pairs of tracklets, the arrays have the modalities as an additional axis: after the time
    axis if there is one ([B, T, 2, C]), else after the first ([B, 2, C]).

    Attributes:
      frame_features: V, float32[B, T, C].
      disturbed: V', float32[B, T, C], or None without style sources.
      edges: S, float32[B, T, C], or None without skeleton branch.
      edges_last: S at the last step, float32[B, C], or None without skeleton branch.
      guided: G, float32[B, T, C]; V + 1e-3 without guidance.
      graph: Q, float32[B, C], or None without skeleton branch.
      skeleton: s, float32[B, 2 * C], or None without skeleton branch.
      tracklet: z, float32[B, D]; D is C with the poolings of this package.
      embedding: float32[B, D], of length 1.
      logits: float32[B, N].
      frame_logits: float32[B, T, N], of V.
      disturbed_logits: float32[B, T, N], of V', or None without style sources.
      skeleton_logits: float32[B, N], or None without skeleton branch.
    """

    frame_features: Float32[Array, "B T *M C"]
    disturbed: Float32[Array, "B T *M C"] | None
    edges: Float32[Array, "B T *M C"] | None
    edges_last: Float32[Array, "B *M C"] | None
    guided: Float32[Array, "B T *M C"]
    graph: Float32[Array, "B *M C"] | None
    skeleton: Float32[Array, "B *M 2*C"] | None
    tracklet: Float32[Array, "B *M D"]
    embedding: Float32[Array, "B *M D"]
    logits: Float32[Array, "B *M N"]
    frame_logits: Float32[Array, "B T *M N"]
    disturbed_logits: Float32[Array, "B T *M N"] | None
    skeleton_logits: Float32[Array, "B *M N"] | None


class Star(nn.Module):
    """The whole network; `build_model` creates one from a config.

    Attributes:
      num_identities: number of training identities, N.
      backbone: see `star_jax.models.backbones`.
      guidance: refines the frames' features (`star_jax.models.guidance`), or None.
      pooling: pools over time (`star_jax.models.pooling`).
      keypoints: "relative" divides coordinates by the frame's width and height and masks joints of
        zero confidence; "pixels" uses all joints unchanged, as in the authors' code, and the loader
        then yields them as stored.
      graph_edges: skeleton edges of the keypoint graph in "every_frame" or, as in the authors'
        code, in the "first_frame" only.
      dropout_rate: dropout rate after the keypoint graph's first layer.
      attention_dropout_rate: dropout rate of the keypoint graph's attention weights.
      dtype: the dtype of the computation; parameters, statistics and heads are float32.
    """

    num_identities: int
    backbone: Backbone
    guidance: Guidance | None
    pooling: Pooling
    keypoints: str
    graph_edges: str
    dropout_rate: float
    attention_dropout_rate: float
    dtype: Dtype = jnp.float32

    @property
    def uses_skeletons(self) -> bool:
        """Whether any component uses keypoints, with or without the skeleton branch."""
        return self.has_skeleton_branch or any(part.uses_keypoints for part in self._guided_parts)

    @property
    def has_skeleton_branch(self) -> bool:
        """Whether there is a skeleton branch, which guides the frames, the pooling or both."""
        return any(part.uses_skeleton for part in self._guided_parts)

    @property
    def _guided_parts(self) -> tuple[Guidance | Pooling, ...]:
        return (self.pooling,) if self.guidance is None else (self.guidance, self.pooling)

    def setup(self) -> None:
        """Creates the skeleton branch, if there is one, and the heads."""
        if self.has_skeleton_branch:
            channels = self.backbone.num_channels
            self.edge_sequence = EdgeSequence(channels, self.dtype)
            self.keypoint_graph = KeypointGraphNetwork(
                channels,
                self.graph_edges == "every_frame",
                self.dropout_rate,
                self.attention_dropout_rate,
            )
            self.skeleton_bnneck = bnneck()
            self.skeleton_classifier = classifier(self.num_identities)
        self.bnneck = bnneck(learned_bias=False)
        self.classifier = classifier(self.num_identities, use_bias=False)
        self.frame_bnneck = bnneck(learned_bias=False)
        self.frame_classifier = classifier(self.num_identities, use_bias=False)

    def __call__(
        self,
        frames: Float32[Array, "B T *M H W 3"],
        keypoints: Float32[Array, "B T *M 17 3"] | None = None,
        *,
        modality: str | None = None,
        train: bool = False,
        style: StyleSources | None = None,
    ) -> StarOutput:
        """Computes the outputs of the network.

        Args:
          frames: float32[B, T, H, W, 3] of one modality, or float32[B, T, 2, H, W, 3] of pairs,
            normalized (`star_jax.augment.normalize`).
          keypoints: float32[B, T, 17, 3] or float32[B, T, 2, 17, 3]: x, y in pixels of the H x W
            frame, confidence. None if the network uses no skeletons.
          modality: "visible" or "infrared"; None for pairs.
          train: whether batch norm uses the batch's statistics (collection `batch_stats` mutable)
            and dropout is on (random stream `dropout`).
          style: sources of style for the disturbed pass; None leaves it out.

        Returns:
          A `StarOutput`.

        Raises:
          ValueError: the modality is unknown, the shape of the frames does not fit it, or the
            network uses skeletons and there are none.
        """
        if self.uses_skeletons and keypoints is None:
            raise InputError(
                "keypoints are required: pass keypoints=..., since skeletons guide the network"
            )
        features = self.backbone(frames, modality=modality, train=train, style=style)
        skeletons = edges_last = skeleton_logits = None
        if self.uses_skeletons and keypoints is not None:
            skeletons = Skeletons(*self.prepare_keypoints(keypoints, frames.shape[-3:-1]))
            if self.has_skeleton_branch:
                skeletons, edges_last = self.described(skeletons, train)
                skeleton_logits = self.skeleton_classifier(skeletons.descriptor)
        # The offset keeps the powers of guided pooling differentiable; the baseline has none.
        guided = features.vectors + 1e-3
        if self.guidance is not None:
            guided = self.guidance(features, skeletons)
        pooled = features
        if self.guidance is not None or self.pooling.uses_skeleton:
            pooled = dataclasses.replace(features, vectors=guided)
        tracklet = self.pooling(pooled, skeletons)

        normalized = self.bnneck(tracklet, train=train)
        frame_logits = self.frame_classifier(self.frame_bnneck(features.vectors, train=train))
        disturbed_logits = None
        if features.disturbed is not None:
            disturbed = self.frame_bnneck(features.disturbed, train=train)
            disturbed_logits = self.frame_classifier(disturbed)
        return StarOutput(
            frame_features=features.vectors,
            disturbed=features.disturbed,
            edges=None if skeletons is None else skeletons.edges,
            edges_last=edges_last,
            guided=guided,
            graph=None if skeletons is None else skeletons.graph,
            skeleton=None if skeletons is None else skeletons.descriptor,
            tracklet=tracklet,
            embedding=l2_normalize(normalized),
            logits=self.classifier(normalized),
            frame_logits=frame_logits,
            disturbed_logits=disturbed_logits,
            skeleton_logits=skeleton_logits,
        )

    def described(self, skeletons: Skeletons, train: bool) -> tuple[Skeletons, jax.Array]:
        """Returns the skeletons with S, Q and s, and S at the last step, float32[B, ..., C]."""
        keypoints, detected = skeletons.keypoints, skeletons.detected
        edges = self.edge_sequence(keypoints, detected)
        edges_last = last_detected(edges, detected.any(-1))
        graph = self.keypoint_graph(keypoints, detected, train=train)
        both = jnp.concatenate([edges_last, graph], -1)
        descriptor = self.skeleton_bnneck(both, train=train)
        found = {"edges": edges, "graph": graph, "descriptor": descriptor}
        return dataclasses.replace(skeletons, **found), edges_last

    def prepare_keypoints(
        self, keypoints: Float32[Array, "*batch J 3"], frame_size: tuple[int, ...]
    ) -> tuple[Float32[Array, "*batch J 3"], Bool[Array, "*batch J"]]:
        """Returns the keypoints in the network's coordinates, and which joints are detected.

        Args:
          keypoints: float32[..., 17, 3]: x, y in pixels of the frame, confidence.
          frame_size: height and width, pixels.

        Returns:
          float32[..., 17, 3] and bool[..., 17]. Relative coordinates refer to the center of the
          joint's pixel, `(x + 0.5) / width`; an undetected joint is exactly (0, 0, 0).
        """
        if self.keypoints == "pixels":
            return keypoints, jnp.ones(keypoints.shape[:-1], bool)
        height, width = frame_size
        detected = is_detected(keypoints)
        x, y, confidence = jnp.moveaxis(keypoints, -1, 0)
        relative = jnp.stack([(x + 0.5) / width, (y + 0.5) / height, confidence], axis=-1)
        return jnp.where(detected[..., None], relative, 0.0), detected


def last_detected(
    edges: Float32[Array, "B T *M C"], detected: Bool[Array, "B T *M"]
) -> Float32[Array, "B *M C"]:
    """Returns S at the last step that has a skeleton: float32[B, ..., C].

    Args:
      edges: S, float32[B, T, ..., C].
      detected: bool[B, T, ...], steps that have a skeleton; if none has, the last step is used.
    """
    last = detected.shape[1] - 1 - jnp.argmax(detected[:, ::-1], axis=1)
    return jnp.take_along_axis(edges, last[:, None, ..., None], axis=1)[:, 0]


def l2_normalize(x: Float32[Array, "*batch C"]) -> Float32[Array, "*batch C"]:
    """Returns `x`, float32[..., C], scaled to length 1 along the last axis; zeros stay zeros."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def build_model(config: ModelConfig) -> Star:
    """Returns the network that `config` (a `config.model`) describes.

    Raises:
      InputError: a value cannot be used; names its key.
    """
    config = as_section("model", config)
    if config.num_identities is None:
        raise InputError("config.model.num_identities is not set: use the number of identities")
    values = dataclasses.asdict(config)
    values["dtype"] = jnp.dtype(config.dtype)
    options = values.pop("backbone_options")
    for key, parts, own in (
        ("backbone", BACKBONES, options),
        ("guidance", GUIDANCE, {}),
        ("pooling", POOLINGS, {}),
    ):
        where = f"config.model.{key}"
        part = find_part(parts, values[key], where, kind=MODULE_CLASS, include=is_module_class)
        values[key] = part and build_part(part, values, own, where)
    _require(values["backbone"], ("num_channels", "num_stages"), config, "backbone")
    for key in ("guidance", "pooling"):
        if values[key] is not None:
            _require(values[key], ("uses_keypoints", "uses_skeleton"), config, key)
    return build_part(Star, values, {}, "config.model")


def is_module_class(part: Any) -> TypeGuard[Callable[..., Any]]:
    """Returns whether an object is a `MODULE_CLASS`."""
    created = part.func if isinstance(part, functools.partial) else part
    return isinstance(created, type) and issubclass(created, nn.Module)


def build_part(
    part: Callable[..., Part], values: Mapping[str, Any], options: Mapping[str, Any], where: str
) -> Part:
    """Returns a component, created with its options and with the values that it has as arguments.

    Raises:
      InputError: an option or its value is invalid; `where` names the component.
    """
    arguments = set(inspect.signature(part).parameters) - {"parent", "name"}
    allowed = getattr(getattr(part, "func", part), "options", {})
    for name, value in options.items():
        if name not in (allowed or arguments):
            raise InputError(
                f"{where}_options.{name} does not exist: {where} has "
                f"{', '.join(sorted(allowed or arguments))}; --{where}_options={{}} removes all "
                "options"
            )
        if name in allowed and not allowed[name].include(value):
            raise InputError(f"{where}_options.{name} is {shown(value)}: use {allowed[name].text}")
    hashable = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    shared = {name: value for name, value in values.items() if name in arguments}
    try:
        return part(**{**shared, **hashable})
    except TypeError as error:
        raise InputError(f"{where}: cannot be created ({error})") from error


def _require(part: Any, attributes: tuple[str, ...], config: ModelConfig, key: str) -> None:
    missing = [name for name in attributes if not hasattr(part, name)]
    if missing:
        raise InputError(
            f"config.model.{key} is {getattr(config, key)!r}: a {key} needs {', '.join(missing)}"
        )
