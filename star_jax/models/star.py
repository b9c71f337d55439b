"""STAR assembled: backbone, skeleton branch, guidance and heads."""

from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections

from star_jax.config import check_section
from star_jax.models.guidance import FrameGuidance, GuidedPooling
from star_jax.models.keypoint_graph import KeypointGraphNetwork
from star_jax.models.layers import classifier, generalised_mean, head_batch_norm
from star_jax.models.resnet import Backbone, StyleSources, num_channels
from star_jax.models.skeleton import EdgeSequence


@flax.struct.dataclass
class StarOutput:
    """What the network computes for R tracklets; the letters are the paper's.

    Attributes:
      frame_features: V, float32[R, T, C].
      disturbed: V', float32[R, T, C], or None without style sources.
      edges: S, float32[R, T, C], or None without guidance.
      edges_last: S at the last step, float32[R, C], or None without guidance.
      guided: G, float32[R, T, C]; V + 1e-3 where there is no guidance of frames.
      graph: Q, float32[R, C], or None without guidance.
      skeleton: s, float32[R, 2 * C], or None without guidance.
      tracklet: z, float32[R, C].
      embedding: float32[R, C], rows of length 1.
      logits: float32[R, N].
      frame_logits: float32[R, T, N], of V.
      disturbed_logits: float32[R, T, N], of V', or None without style sources.
      skeleton_logits: float32[R, N], or None without guidance.
    """

    frame_features: jax.Array
    disturbed: jax.Array | None
    edges: jax.Array | None
    edges_last: jax.Array | None
    guided: jax.Array
    graph: jax.Array | None
    skeleton: jax.Array | None
    tracklet: jax.Array
    embedding: jax.Array
    logits: jax.Array
    frame_logits: jax.Array
    disturbed_logits: jax.Array | None
    skeleton_logits: jax.Array | None


class Star(nn.Module):
    """The whole network; `build_model` makes one from a config.

    Attributes:
      num_identities: training identities, N.
      block, stage_sizes, width: see `star_jax.models.resnet.Backbone`.
      guidance: what the skeleton guides: "none", "frame", "sequence" or "both".
      keypoints: "relative" divides them by the frame's width and height and leaves joints of zero
        confidence out of everything; "pixels" takes all of them as they come, as the authors do,
        and the loader gives them as they are stored.
      graph_edges: skeleton edges of the keypoint graph in "every_frame" or, as in the authors'
        code, in the "first_frame" only.
      dropout_rate, attention_dropout_rate: of the keypoint graph network.
      dtype: the dtype of the computation; parameters, statistics and heads are float32.
      remat: see `star_jax.models.resnet.Backbone`.
    """

    num_identities: int
    block: str
    stage_sizes: tuple[int, ...]
    width: int
    guidance: str
    keypoints: str
    graph_edges: str
    dropout_rate: float
    attention_dropout_rate: float
    dtype: Any = jnp.float32
    remat: bool = False

    def setup(self) -> None:
        """Makes the parts that the guidance needs."""
        self.backbone = Backbone(self.block, self.stage_sizes, self.width, self.dtype, self.remat)
        channels = num_channels(self.block, self.width)
        if self.guidance != "none":
            self.edge_sequence = EdgeSequence(channels, self.dtype)
            self.keypoint_graph = KeypointGraphNetwork(
                channels,
                self.graph_edges == "every_frame",
                self.dropout_rate,
                self.attention_dropout_rate,
            )
            self.skeleton_norm = head_batch_norm()
            self.skeleton_classifier = classifier(self.num_identities)
        if self.guidance in ("frame", "both"):
            self.frame_guidance = FrameGuidance(self.dtype)
        if self.guidance in ("sequence", "both"):
            self.guided_pooling = GuidedPooling(self.dtype)
        self.global_norm = head_batch_norm(learned_bias=False)
        self.global_classifier = classifier(self.num_identities, use_bias=False)
        self.frame_norm = head_batch_norm(learned_bias=False)
        self.frame_classifier = classifier(self.num_identities, use_bias=False)

    def __call__(
        self,
        frames: jax.Array,
        keypoints: jax.Array,
        *,
        modality: str,
        train: bool = False,
        style: StyleSources | None = None,
    ) -> StarOutput:
        """Runs the network.

        Args:
          frames: float32[R, T, H, W, 3], normalised (`star_jax.augment.normalise`).
          keypoints: float32[R, T, 17, 3]: x, y in pixels of the H x W frame, confidence.
          modality: "visible", "infrared", or "paired": even rows visible, odd rows infrared.
          train: whether batch norm uses the batch's statistics (collection `batch_stats` mutable)
            and dropout is on (random stream `dropout`).
          style: sources of style for the disturbed pass; None leaves it out.

        Returns:
          A `StarOutput`.

        Raises:
          ValueError: for an unknown modality, or a paired batch with an odd number of rows.
        """
        features, disturbed = self.backbone(frames, modality=modality, train=train, style=style)
        edges = edges_last = graph = skeleton = skeleton_logits = None
        guided = features + 1e-3
        if self.guidance != "none":
            keypoints, detected = self.prepare_keypoints(keypoints, frames.shape[2:4])
            edges = self.edge_sequence(keypoints, detected)
            edges_last = last_detected(edges, detected.any(-1))
            graph = self.keypoint_graph(keypoints, detected, train=train)
            skeleton = self.skeleton_norm(jnp.concatenate([edges_last, graph], -1), train=train)
            skeleton_logits = self.skeleton_classifier(skeleton)
            if self.guidance in ("frame", "both"):
                guided = self.frame_guidance(features, edges, detected.any(-1))
        if skeleton is not None and self.guidance in ("sequence", "both"):
            tracklet = self.guided_pooling(guided, skeleton)
        else:
            tracklet = generalised_mean(features if self.guidance == "none" else guided, 3.0)

        normalised = self.global_norm(tracklet, train=train)
        frame_logits = self.frame_classifier(self.frame_norm(features, train=train))
        disturbed_logits = None
        if disturbed is not None:
            disturbed_logits = self.frame_classifier(self.frame_norm(disturbed, train=train))
        return StarOutput(
            frame_features=features,
            disturbed=disturbed,
            edges=edges,
            edges_last=edges_last,
            guided=guided,
            graph=graph,
            skeleton=skeleton,
            tracklet=tracklet,
            embedding=unit_length(normalised),
            logits=self.global_classifier(normalised),
            frame_logits=frame_logits,
            disturbed_logits=disturbed_logits,
            skeleton_logits=skeleton_logits,
        )

    def prepare_keypoints(
        self, keypoints: jax.Array, frame_size: tuple[int, ...]
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the keypoints as the network takes them, and which joints are detected.

        Args:
          keypoints: float32[R, T, 17, 3]: x, y in pixels of the frame, confidence.
          frame_size: height and width, pixels.

        Returns:
          float32[R, T, 17, 3] and bool[R, T, 17]. Relative coordinates are those of the joint's
          pixel, `(x + 0.5) / width`; an undetected joint is exactly (0, 0, 0).
        """
        if self.keypoints == "pixels":
            return keypoints, jnp.ones(keypoints.shape[:-1], bool)
        height, width = frame_size
        detected = keypoints[..., 2] > 0
        size = jnp.array([width, height], jnp.float32)
        xy = (keypoints[..., :2] + 0.5) / size[None, None, None]
        relative = jnp.concatenate([xy, keypoints[..., 2:]], axis=-1)
        return jnp.where(detected[..., None], relative, 0.0), detected


def last_detected(edges: jax.Array, detected: jax.Array) -> jax.Array:
    """S at the last step that has a skeleton: float32[R, T, C], bool[R, T] to float32[R, C]."""
    time = detected.shape[1]
    last = time - 1 - jnp.argmax(detected[:, ::-1], axis=1)
    return jnp.take_along_axis(edges, last[:, None, None], axis=1)[:, 0]


def unit_length(x: jax.Array) -> jax.Array:
    """Rows of length 1: float32[R, C] to float32[R, C]; a row of zeros stays zeros."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.square(x).sum(-1, keepdims=True), 1e-24))


def build_model(config: ml_collections.ConfigDict) -> Star:
    """The network that `config` (a `config.model`) describes.

    Raises:
      InputError: naming the key whose value is none of those that `star_jax.config` allows.
    """
    check_section(config, "model")
    values = config.to_dict()
    values["dtype"] = jnp.dtype(config.dtype)
    values["stage_sizes"] = tuple(config.stage_sizes)
    return Star(**values)
