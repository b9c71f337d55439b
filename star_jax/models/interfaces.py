"""What the components of a network exchange, and how the network calls them.

Letters are the paper's. Axis 1 is always time; `*M` stands for nothing, in a batch of one modality,
or for the axis of the modalities in a batch of pairs.
"""

from typing import Protocol

import flax
from jaxtyping import Array, Bool, Float, Float32, Int32


@flax.struct.dataclass
class FrameFeatures:
    """What a backbone computes from each frame, and what guidance and pooling start from.

    A compiled program does not contain what nothing uses: maps cost nothing if no component reads
    them.

    Attributes:
      vectors: V, float32[B, T, *M, C], not negative. A pooling receives G, if there is guidance.
      maps: float[B, T, *M, h, w, C] in the dtype of the computation, not negative: the last feature
        map of a convolutional network, or the tokens of the patches; None if there are none. Its
        cells divide the frame, or the frame padded to whole patches, evenly. Guidance does not
        change them.
      disturbed: V', float32[B, T, *M, C], or None without style sources.
    """

    vectors: Float32[Array, "B T *M C"]
    maps: Float[Array, "B T *M h w C"] | None = None
    disturbed: Float32[Array, "B T *M C"] | None = None


@flax.struct.dataclass
class Skeletons:
    """The skeletons of the frames, and what the skeleton branch computes from them.

    Attributes:
      keypoints: float32[B, T, *M, 17, 3]: x, y and confidence in the network's coordinates. These
        are shares of the frame's width and height if `config.model.keypoints` is "relative", and
        an undetected joint is then (0, 0, 0); else pixels of the stored frame.
      detected: bool[B, T, *M, 17], the joints to use; all of them if `config.model.keypoints` is
        "pixels".
      edges: S, float32[B, T, *M, C]; like the following, None if no component has `uses_skeleton`.
      graph: Q, float32[B, *M, C].
      descriptor: s, float32[B, *M, 2 * C].
    """

    keypoints: Float32[Array, "B T *M 17 3"]
    detected: Bool[Array, "B T *M 17"]
    edges: Float32[Array, "B T *M C"] | None = None
    graph: Float32[Array, "B *M C"] | None = None
    descriptor: Float32[Array, "B *M 2*C"] | None = None


@flax.struct.dataclass
class StyleSources:
    """The frames whose style other frames take, and the backbone stages after which they do.

    Frames are numbered in the order of the axes: `(pair * T + t) * 2 + modality`.

    Attributes:
      same: int32[B * T * 2], for each frame one of the same modality.
      other: int32[B * T * 2], for each frame one of the other modality.
      stages: the stage after which the style of `same` is taken, and a later one for `other`.
    """

    same: Int32[Array, " frames"]
    other: Int32[Array, " frames"]
    stages: tuple[int, int] = flax.struct.field(pytree_node=False, default=(2, 3))


class Backbone(Protocol):
    """A Flax module from frames to frame features; see `star_jax.models.backbones`."""

    @property
    def num_channels(self) -> int:
        """Channels of the vectors, C."""

    @property
    def num_stages(self) -> int:
        """Number of stages after which style can be disturbed; 0 if it cannot."""

    def __call__(
        self,
        frames: Float32[Array, "B T *M H W 3"],
        *,
        modality: str | None = None,
        train: bool,
        style: StyleSources | None = None,
    ) -> FrameFeatures:
        """Computes the features of frames.

        Args:
          frames: float32[B, T, H, W, 3] of one modality, or float32[B, T, 2, H, W, 3] of both (axis
            2: visible, infrared), normalized (`star_jax.augment.normalize`).
          modality: "visible" or "infrared"; None for frames of both.
          train: whether batch norm uses the batch's statistics and updates the running ones.
          style: sources of style of the disturbed pass; None leaves it out.
        """


class SkeletonUser(Protocol):
    """What guidance and pooling say about the skeletons that they need."""

    @property
    def uses_keypoints(self) -> bool:
        """Whether it needs `Skeletons`: if no component does, the network takes no keypoints."""

    @property
    def uses_skeleton(self) -> bool:
        """Whether it needs S, Q or s: if no component does, there is no skeleton branch."""


class Guidance(SkeletonUser, Protocol):
    """A Flax module that refines the vectors of frames by their skeletons."""

    def __call__(
        self, features: FrameFeatures, skeletons: Skeletons | None
    ) -> Float32[Array, "B T *M C"]:
        """Returns G, float32[B, T, *M, C], positive: generalized means take powers of it.

        Args:
          features: of the backbone.
          skeletons: None if no component of the network uses any.
        """


class Pooling(SkeletonUser, Protocol):
    """A Flax module from the features of frames to one feature per tracklet."""

    def __call__(
        self, features: FrameFeatures, skeletons: Skeletons | None
    ) -> Float32[Array, "B *M D"]:
        """Returns z, float32[B, *M, D]; D need not be C.

        Args:
          features: of the backbone; `vectors` are G if there is guidance.
          skeletons: None if no component of the network uses any.
        """
