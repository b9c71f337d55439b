"""Pooling over time: from frame features to one feature per tracklet.

A pooling is a `star_jax.models.interfaces.Pooling`. To add one, add it to `POOLINGS`, or name it in
`config.model.pooling` as `package.module:object`.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float32

from star_jax.models.interfaces import FrameFeatures, Pooling, Skeletons
from star_jax.models.layers import Dtype, gem_pool, linear

POWERS = (0.7, 1.0, 3.0, 5.0, 7.0)


class GuidedPooling(nn.Module):
    """Computes z, generalized means weighted per channel by the skeleton (sequence level, step 5).

    Attributes:
      dtype: the dtype of the matrix product.
    """

    dtype: Dtype = jnp.float32
    uses_keypoints: ClassVar[bool] = True
    uses_skeleton: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, features: FrameFeatures, skeletons: Skeletons | None
    ) -> Float32[Array, "B *M C"]:
        """Returns the vectors, which must be positive, pooled as s decides: float32[B, ..., C]."""
        assert skeletons is not None and skeletons.descriptor is not None  # uses_skeleton
        frames, skeleton = features.vectors, skeletons.descriptor
        shape = (len(POWERS), frames.shape[-1])
        logits = linear(shape, skeleton.shape[-1], self.dtype, name="weigh")(skeleton)
        weights = nn.softmax(logits.astype(jnp.float32), axis=-2)
        self.sow("intermediates", "weights", weights)  # for reports; nothing unless mutable
        means = jnp.stack([gem_pool(frames, power) for power in POWERS], axis=-2)
        return (weights * means).sum(-2)


class GemPooling(nn.Module):
    """Computes the generalized mean over time.

    Attributes:
      gem_power: the power, p.
    """

    gem_power: float
    uses_keypoints: ClassVar[bool] = False
    uses_skeleton: ClassVar[bool] = False

    def __call__(
        self, features: FrameFeatures, skeletons: Skeletons | None = None
    ) -> Float32[Array, "B *M C"]:
        """Returns float32[B, ..., C] of vectors float32[B, T, ..., C], not negative."""
        del skeletons
        return gem_pool(features.vectors, self.gem_power)


class MeanPooling(nn.Module):
    """Computes the mean over time."""

    uses_keypoints: ClassVar[bool] = False
    uses_skeleton: ClassVar[bool] = False

    def __call__(
        self, features: FrameFeatures, skeletons: Skeletons | None = None
    ) -> Float32[Array, "B *M C"]:
        """Returns float32[B, ..., C] of vectors float32[B, T, ..., C]."""
        del skeletons
        return features.vectors.mean(1)


class MaxPooling(nn.Module):
    """Computes the maximum of each channel over time."""

    uses_keypoints: ClassVar[bool] = False
    uses_skeleton: ClassVar[bool] = False

    def __call__(
        self, features: FrameFeatures, skeletons: Skeletons | None = None
    ) -> Float32[Array, "B *M C"]:
        """Returns float32[B, ..., C] of vectors float32[B, T, ..., C]."""
        del skeletons
        return features.vectors.max(1)


POOLINGS: Mapping[str, Callable[..., Pooling]] = {
    "guided": GuidedPooling,
    "gem": GemPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
}
