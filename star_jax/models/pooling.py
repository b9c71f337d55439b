"""Pooling over time: from frame features to one feature per tracklet.

A pooling is a module called with frame features and skeleton features. To add
one, add it to `POOLINGS`, or name it in `config.model.pooling` as `package.module:object`.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float32

from star_jax.models.layers import Dtype, gem_pool, linear

POWERS = (0.7, 1.0, 3.0, 5.0, 7.0)


class GuidedPooling(nn.Module):
    """Computes z, generalized means weighted per channel by the skeleton (sequence level, step 5).

    Attributes:
      dtype: the dtype of the matrix product.
    """

    dtype: Dtype = jnp.float32
    uses_skeleton: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, frames: Float32[Array, "B T *M C"], skeleton: Float32[Array, "B *M 2*C"]
    ) -> Float32[Array, "B *M C"]:
        """Returns the features pooled over time.

        Args:
          frames: float32[B, T, ..., C], positive.
          skeleton: s, float32[B, ..., 2 * C].

        Returns:
          float32[B, ..., C].
        """
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
    uses_skeleton: ClassVar[bool] = False

    def __call__(
        self, frames: Float32[Array, "B T *M C"], skeleton: Float32[Array, "B *M D"] | None = None
    ) -> Float32[Array, "B *M C"]:
        """Returns float32[B, ..., C] of frames float32[B, T, ..., C], not negative."""
        del skeleton
        return gem_pool(frames, self.gem_power)


class MeanPooling(nn.Module):
    """Computes the mean over time."""

    uses_skeleton: ClassVar[bool] = False

    def __call__(
        self, frames: Float32[Array, "B T *M C"], skeleton: Float32[Array, "B *M D"] | None = None
    ) -> Float32[Array, "B *M C"]:
        """Returns float32[B, ..., C] of frames float32[B, T, ..., C]."""
        del skeleton
        return frames.mean(1)


class MaxPooling(nn.Module):
    """Computes the maximum of each channel over time."""

    uses_skeleton: ClassVar[bool] = False

    def __call__(
        self, frames: Float32[Array, "B T *M C"], skeleton: Float32[Array, "B *M D"] | None = None
    ) -> Float32[Array, "B *M C"]:
        """Returns float32[B, ..., C] of frames float32[B, T, ..., C]."""
        del skeleton
        return frames.max(1)


POOLINGS: Mapping[str, Callable[..., nn.Module]] = {
    "guided": GuidedPooling,
    "gem": GemPooling,
    "mean": MeanPooling,
    "max": MaxPooling,
}
