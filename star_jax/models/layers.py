"""Layers that follow PyTorch where Flax differs: batch norm, linear layers, GeM."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

Dtype = Any

MOMENTUM = 0.9  # PyTorch writes it as 0.1
EPSILON = 1e-5


def precision_of(dtype: Dtype) -> jax.lax.Precision | None:
    """Returns the precision for convolutions and matrix products with operands of a dtype.

    By default, float32 products are exact only on CPUs: TPUs round their operands to bfloat16,
    recent NVIDIA GPUs to TF32. Gradients inherit the precision of the forward operation.
    """
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


class BatchNorm(nn.Module):
    """Batch normalization over all axes but the last, with PyTorch's unbiased running variance.

    Statistics are computed and applied in float32, over the global batch under any sharding; the
    result has the input's dtype.

    Attributes:
      learned_bias: False excludes the bias from training: it stays zero, or as imported.
      scale_init: initializer of the scale.
    """

    learned_bias: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: Float[Array, "*batch C"], *, train: bool) -> Float[Array, "*batch C"]:
        """Normalizes `x`, of shape [..., C]; in training also updates the running statistics."""
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,), jnp.float32)
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,), jnp.float32)
        scale = self.param("scale", self.scale_init, (channels,), jnp.float32)
        if self.learned_bias:
            bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)
        else:
            bias = self.variable("batch_stats", "bias", jnp.zeros, (channels,), jnp.float32).value

        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = mean_and_variance(x, axes)
            if not self.is_initializing():
                count = x.size // channels
                unbiased = var * (count / max(count - 1, 1))
                running_mean.value = MOMENTUM * running_mean.value + (1 - MOMENTUM) * mean
                running_var.value = MOMENTUM * running_var.value + (1 - MOMENTUM) * unbiased
        multiplier = scale * jax.lax.rsqrt(var + EPSILON)
        shift = bias - mean * multiplier
        # Explicit, since implicit rank promotion is an error in our tests.
        shape = (1,) * (x.ndim - 1) + (channels,)
        wide = x.astype(jnp.float32) * multiplier.reshape(shape) + shift.reshape(shape)
        return wide.astype(x.dtype)


class InstanceBatchNorm(nn.Module):
    """Instance norm on the first half of the channels, batch norm on the rest (IBN-Net, IBN-a).

    Instance norm computes its statistics per map, in training and at inference.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "N H W C"], *, train: bool) -> Float[Array, "N H W C"]:
        """Normalizes `x`, float[N, H, W, C]; in training also updates the running statistics."""
        half = x.shape[-1] // 2
        instance = nn.InstanceNorm(
            epsilon=EPSILON, dtype=x.dtype, use_fast_variance=False, name="instance"
        )
        batch = BatchNorm(name="batch")
        parts = instance(x[..., :half]), batch(x[..., half:], train=train)
        return jnp.concatenate(parts, axis=-1)


def mean_and_variance(
    x: Float[Array, "..."], axes: tuple[int, ...], *, keepdims: bool = False
) -> tuple[Float32[Array, "*mean"], Float32[Array, "*mean"]]:
    """Returns mean and biased variance over some axes, in float32."""
    wide = x.astype(jnp.float32)
    mean = wide.mean(axes, keepdims=keepdims)
    if x.dtype != jnp.bfloat16:
        return mean, wide.var(axes, keepdims=keepdims)
    # One pass over memory instead of two. For bfloat16 inputs, the cancellation in float32 is small
    # compared with their rounding (4e-3); for float32 inputs it would be noticeable.
    square = jnp.square(wide).mean(axes, keepdims=keepdims)
    return mean, jnp.maximum(square - jnp.square(mean), 0.0)


def bnneck(**options: Any) -> BatchNorm:
    """Returns the batch norm before a classifier (BNNeck, Luo et al., arXiv 1903.07071).

    Its scale is initialized from N(1, 0.01), as in the authors' code.
    """

    def scale_init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        return 1.0 + 0.01 * jax.random.normal(key, shape, dtype)

    return BatchNorm(scale_init=scale_init, **options)


def classifier(num_classes: int, **options: Any) -> nn.Dense:
    """Returns a linear classifier in float32 with weights initialized from N(0, 0.001)."""
    init = nn.initializers.normal(0.001)
    return nn.Dense(num_classes, kernel_init=init, precision=precision_of(jnp.float32), **options)


def symmetric_uniform(bound: float) -> nn.initializers.Initializer:
    """Returns an initializer that draws uniformly from [-bound, bound)."""

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


def linear(features: int | tuple[int, ...], fan_in: int, dtype: Dtype, **options: Any) -> nn.Module:
    """Returns a linear layer on the last axis with PyTorch's default initialization."""
    init = symmetric_uniform(1 / math.sqrt(fan_in))
    return nn.DenseGeneral(
        features,
        dtype=dtype,
        kernel_init=init,
        bias_init=init,
        precision=precision_of(dtype),
        **options,
    )


def gem_pool(x: Float32[Array, "B T *M C"], power: float) -> Float32[Array, "B *M C"]:
    """Returns the generalized mean (GeM) over the time axis: `(mean_t x^p + 1e-12)^(1/p)`.

    Args:
      x: float32[B, T, ..., C], not negative.
      power: p.

    Returns:
      float32[B, ..., C].
    """
    return (jnp.power(x, power).mean(axis=1) + 1e-12) ** (1 / power)
