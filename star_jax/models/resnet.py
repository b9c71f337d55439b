"""The two-stem ResNet and the style disturbance between its stages (STAR, backbone).

Convolutions pad as in PyTorch. 1x1 convolutions are matrix products, which XLA runs faster on CPUs
and no slower elsewhere.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from star_jax.config.values import Values, flag, integer, integers
from star_jax.models.interfaces import FrameFeatures, StyleSources
from star_jax.models.layers import BatchNorm, InstanceBatchNorm, mean_and_variance, precision_of
from star_jax.models.stems import apply_stems

Dtype = Any

KERNEL_INIT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def convolution(features: int, size: int, stride: int, dtype: Dtype, name: str) -> nn.Conv:
    """Returns a bias-free convolution of odd kernel size, padded by half of it on both sides."""
    return nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((size // 2, size // 2),) * 2,
        use_bias=False,
        dtype=dtype,
        precision=precision_of(dtype),
        kernel_init=KERNEL_INIT,
        conv_general_dilated=convolve,
        name=name,
    )


def convolve(
    x: Float[Array, "N H W D"],
    kernel: Float[Array, "_ _ D C"],
    strides: Sequence[int],
    padding: Any,
    **options: Any,
) -> Float[Array, "N _ _ C"]:
    """Computes `jax.lax.conv_general_dilated` of NHWC maps, with a fast path for tiny maps on CPUs.

    XLA on CPUs is a hundred times slower if the result is smaller than the kernel. In that case,
    shifted copies of the map are stacked and the convolution is one matrix product.
    """
    size, stride = kernel.shape[0], strides[0]

    def convolved() -> jax.Array:
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)

    def product_of_copies() -> jax.Array:
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        copies = [
            padded[:, top : top + height : stride, left : left + width : stride]
            for top in range(size)
            for left in range(size)
        ]
        flat_kernel = kernel.reshape(-1, kernel.shape[-1])
        return jnp.matmul(jnp.concatenate(copies, -1), flat_kernel, precision=options["precision"])

    if min(x.shape[1:3]) > (size - 1) * stride:
        return convolved()
    chosen: jax.Array = jax.lax.platform_dependent(cpu=product_of_copies, default=convolved)
    return chosen


class Projection(nn.Module):
    """A bias-free 1x1 convolution with a stride."""

    features: int
    stride: int = 1
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "N H W D"]) -> Float[Array, "N _ _ {self.features}"]:
        """Maps float[N, H, W, D] to float[N, H / stride, W / stride, features]."""
        x = x[:, :: self.stride, :: self.stride]
        return nn.Dense(
            self.features,
            use_bias=False,
            dtype=self.dtype,
            precision=precision_of(self.dtype),
            kernel_init=KERNEL_INIT,
            name="dense",
        )(x)


class BottleneckBlock(nn.Module):
    """1x1, 3x3, 1x1 convolutions around a shortcut; the output is 4 times as wide."""

    width: int
    stride: int
    dtype: Dtype
    ibn: bool = False
    expansion: ClassVar[int] = 4

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W D"], *, train: bool
    ) -> Float[Array, "N _ _ 4*{self.width}"]:
        """Maps float[N, H, W, D] to float[N, H / stride, W / stride, 4 * width]."""
        out_features = self.width * self.expansion
        y = Projection(self.width, dtype=self.dtype, name="conv1")(x)
        y = nn.relu(first_norm(self.ibn)(y, train=train))
        y = convolution(self.width, 3, self.stride, self.dtype, "conv2")(y)
        y = nn.relu(BatchNorm(name="bn2")(y, train=train))
        y = Projection(out_features, dtype=self.dtype, name="conv3")(y)
        y = BatchNorm(name="bn3")(y, train=train)
        return nn.relu(y + shortcut(x, y, self.stride, self.dtype, train))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut."""

    width: int
    stride: int
    dtype: Dtype
    ibn: bool = False
    expansion: ClassVar[int] = 1

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W D"], *, train: bool
    ) -> Float[Array, "N _ _ {self.width}"]:
        """Maps float[N, H, W, D] to float[N, H / stride, W / stride, width]."""
        y = convolution(self.width, 3, self.stride, self.dtype, "conv1")(x)
        y = nn.relu(first_norm(self.ibn)(y, train=train))
        y = convolution(self.width, 3, 1, self.dtype, "conv2")(y)
        y = BatchNorm(name="bn2")(y, train=train)
        return nn.relu(y + shortcut(x, y, self.stride, self.dtype, train))


def first_norm(ibn: bool) -> BatchNorm | InstanceBatchNorm:
    """Returns the first norm of a residual branch."""
    return InstanceBatchNorm(name="bn1") if ibn else BatchNorm(name="bn1")


def shortcut(
    x: Float[Array, "N _ _ D"], y: Float[Array, "N H W C"], stride: int, dtype: Dtype, train: bool
) -> Float[Array, "N H W C"]:
    """Returns `x`, projected if its shape differs from the residual branch's."""
    if x.shape == y.shape:
        return x
    x = Projection(y.shape[-1], stride, dtype, name="downsample_conv")(x)
    return BatchNorm(name="downsample_bn")(x, train=train)


BLOCKS: dict[str, type[BottleneckBlock | BasicBlock]] = {
    "bottleneck": BottleneckBlock,
    "basic": BasicBlock,
}


class Stem(nn.Module):
    """7x7 convolution of stride 2, batch norm, ReLU and 3x3 max pooling of stride 2."""

    width: int
    dtype: Dtype

    @nn.compact
    def __call__(
        self, x: Float[Array, "N H W 3"], *, train: bool
    ) -> Float[Array, "N _ _ {self.width}"]:
        """Maps float[N, H, W, 3] to float[N, H / 4, W / 4, width]."""
        x = convolution(self.width, 7, 2, self.dtype, "conv")(x)
        x = nn.relu(BatchNorm(name="bn")(x, train=train))
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return x


class Stage(nn.Module):
    """Residual blocks, the first of them with the stage's stride.

    With `remat`, the backward pass recomputes activations inside blocks instead of storing them.
    """

    block: str
    num_blocks: int
    width: int
    stride: int
    dtype: Dtype
    remat: bool
    ibn: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "N H W D"], *, train: bool) -> Float[Array, "N _ _ C"]:
        """Maps float[N, H, W, D] to float[N, H / stride, W / stride, width * expansion]."""
        for i in range(self.num_blocks):
            stride = self.stride if i == 0 else 1
            block = BLOCKS[self.block](self.width, stride, self.dtype, self.ibn, name=f"block{i}")

            def run(block: BottleneckBlock | BasicBlock, x: Array) -> Array:
                return block(x, train=train)

            x = (nn.remat(run) if self.remat else run)(block, x)
        return x


def adain(x: Float[Array, "N H W C"], source: Int32[Array, " N"]) -> Float[Array, "N H W C"]:
    """Returns maps with the style of others (adaptive instance normalization, AdaIN).

    Args:
      x: float[N, H, W, C], feature maps.
      source: int32[N], the map whose per-channel spatial mean and standard deviation each takes.

    Returns:
      float[N, H, W, C], with the dtype of `x`.
    """
    mean, variance = mean_and_variance(x, (1, 2), keepdims=True)
    size = x.shape[1] * x.shape[2]
    deviation = jnp.sqrt(variance * (size / max(size - 1, 1)) + 1e-6)
    normalized = (x.astype(jnp.float32) - mean) / deviation
    return (normalized * deviation[source] + mean[source]).astype(x.dtype)


class ResNet(nn.Module):
    """A ResNet with a stem for each modality and shared stages.

    Attributes:
      block: "bottleneck" or "basic".
      stage_sizes: number of blocks in each of the four stages.
      width: channels of the stems and of the first stage's narrow convolutions.
      dtype: the dtype of the computation; parameters are float32.
      remat: whether to recompute blocks in the backward pass, which saves memory.
      ibn: whether the first norm of each residual branch, except in the last stage, is an
        `InstanceBatchNorm` (ResNet-IBN-a; Pan et al., arXiv 1807.09441).
    """

    block: str
    stage_sizes: tuple[int, ...]
    width: int = 64
    dtype: Dtype = jnp.float32
    remat: bool = False
    ibn: bool = False
    num_stages: ClassVar[int] = 4
    options: ClassVar[Mapping[str, Values]] = {
        "stage_sizes": integers(1, 200, count=4),
        "width": integer(1, 1024),
        "ibn": flag(),
    }

    @property
    def num_channels(self) -> int:
        """Channels of the output, C."""
        return self.width * 8 * BLOCKS[self.block].expansion

    def setup(self) -> None:
        """Creates the stems and the stages; the last stage keeps the resolution."""
        self.stem_visible = Stem(self.width, self.dtype)
        self.stem_infrared = Stem(self.width, self.dtype)
        strides = (1, 2, 2, 1)
        self.stages = [
            Stage(
                self.block,
                size,
                self.width * 2**i,
                strides[i],
                self.dtype,
                self.remat,
                self.ibn and i < 3,
                name=f"stage{i + 1}",
            )
            for i, size in enumerate(self.stage_sizes)
        ]

    def __call__(
        self,
        frames: Float32[Array, "B T *M H W 3"],
        *,
        modality: str | None = None,
        train: bool,
        style: StyleSources | None = None,
    ) -> FrameFeatures:
        """Computes the last stage's maps and their means V, and V' if a style is given.

        Args and returned values are those of `star_jax.models.interfaces.Backbone`.
        """
        visible = functools.partial(self.stem_visible, train=train)
        infrared = functools.partial(self.stem_infrared, train=train)
        x = apply_stems(frames.astype(self.dtype), modality, visible, infrared)
        same_after, other_after = style.stages if style is not None else (0, 0)
        undisturbed = None
        for number, stage in enumerate(self.stages, start=1):
            x = stage(x, train=train)
            if number == same_after:
                undisturbed = x
        axes = frames.shape[:-3]
        features = FrameFeatures(
            vectors=spatial_mean(x).reshape(*axes, -1), maps=x.reshape(*axes, *x.shape[1:])
        )
        if style is None or undisturbed is None:
            return features
        # The undisturbed pass updates the running statistics first.
        y = adain(undisturbed, style.same)
        for number, stage in enumerate(self.stages[same_after:], start=same_after + 1):
            y = stage(y, train=train)
            if number == other_after:
                y = adain(y, style.other)
        return dataclasses.replace(features, disturbed=spatial_mean(y).reshape(*axes, -1))


def spatial_mean(x: Float[Array, "N H W C"]) -> Float32[Array, "N C"]:
    """Returns the mean over each map: float[N, H, W, C] to float32[N, C]."""
    # On CPUs, XLA of JAX 0.12 returns NaN if it fuses this mean into a bfloat16 convolution.
    x = jax.lax.platform_dependent(x, cpu=jax.lax.optimization_barrier, default=lambda x: x)
    return x.astype(jnp.float32).mean((1, 2))
