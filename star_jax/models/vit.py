"""The Vision Transformer as a backbone (Dosovitskiy et al., arXiv 2010.11929).

The two stems are patch embeddings. The rest is shared and computes the same as timm's
`vit_*_patch16_224`.
"""

import functools
from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32

from star_jax.config.values import Values, integer, integers
from star_jax.models.guidance import attend
from star_jax.models.interfaces import FrameFeatures, StyleSources
from star_jax.models.layers import Dtype, precision_of
from star_jax.models.stems import apply_stems

INIT = nn.initializers.truncated_normal(0.02)


def dense(features: int, dtype: Dtype, name: str) -> nn.Dense:
    """Returns a linear layer on the last axis."""
    return nn.Dense(
        features, dtype=dtype, precision=precision_of(dtype), kernel_init=INIT, name=name
    )


def layer_norm(dtype: Dtype, name: str) -> nn.LayerNorm:
    """Returns a layer norm with statistics in float32."""
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, use_fast_variance=False, name=name)


class Block(nn.Module):
    """A pre-norm transformer block: self-attention and an MLP, each with a residual connection."""

    num_heads: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "N L C"]) -> Float[Array, "N L C"]:
        """Maps float[N, L, C] to float[N, L, C]."""
        channels = x.shape[-1]
        attention = nn.MultiHeadDotProductAttention(
            self.num_heads,
            dtype=self.dtype,
            precision=precision_of(self.dtype),
            attention_fn=attend,
            kernel_init=INIT,
            name="attention",
        )
        x = x + attention(layer_norm(self.dtype, "norm1")(x))
        y = dense(4 * channels, self.dtype, "mlp1")(layer_norm(self.dtype, "norm2")(x))
        return x + dense(channels, self.dtype, "mlp2")(nn.gelu(y, approximate=False))


class ViT(nn.Module):
    """A Vision Transformer with a patch embedding for each modality and shared blocks.

    Attributes:
      width: channels of a token, C.
      depth: number of blocks.
      num_heads: heads of each attention.
      patch_size: height and width of a patch, pixels.
      pos_grid: rows and columns of the position embedding, which is resized bicubically to the
        patch grid of the frames.
      dtype: the dtype of the computation; parameters are float32.
      remat: whether to recompute blocks in the backward pass, which saves memory.
    """

    width: int
    depth: int
    num_heads: int
    patch_size: int = 16
    pos_grid: tuple[int, int] = (14, 14)
    dtype: Dtype = jnp.float32
    remat: bool = False
    num_stages: ClassVar[int] = 0
    options: ClassVar[Mapping[str, Values]] = {
        "width": integer(1, 2**14),
        "depth": integer(1, 200),
        "num_heads": integer(1, 2**10),
        "patch_size": integer(1, 512),
        "pos_grid": integers(1, 1024, count=2),
    }

    @property
    def num_channels(self) -> int:
        """Channels of the output, C."""
        return self.width

    @nn.compact
    def __call__(
        self,
        frames: Float32[Array, "B T *M H W 3"],
        *,
        modality: str | None = None,
        train: bool,
        style: StyleSources | None = None,
    ) -> FrameFeatures:
        """Computes the frame features V, of the class token, and maps of the patches' tokens.

        Both are those of the last block, made positive. The frames are padded with zeros to whole
        patches.

        Args:
          frames: these and what is returned are those of `star_jax.models.interfaces.Backbone`.
          modality: "visible", "infrared", or None for both.
          train: ignored; training and inference do not differ.
          style: must be None, since there are no stages after which to disturb style.

        Raises:
          ValueError: the modality is unknown, the shape of the frames does not fit it, or a style
            is given.
        """
        del train
        if style is not None:
            raise ValueError("a ViT has no stages for the style disturbance; use style=None")
        size = (self.patch_size, self.patch_size)
        bottom, right = (-length % self.patch_size for length in frames.shape[-3:-1])
        embed = functools.partial(
            nn.Conv,
            self.width,
            size,
            strides=size,
            padding=((0, bottom), (0, right)),
            dtype=self.dtype,
            precision=precision_of(self.dtype),
            kernel_init=INIT,
        )
        stems = embed(name="stem_visible"), embed(name="stem_infrared")
        patches = apply_stems(frames.astype(self.dtype), modality, *stems)

        position = self.param("position", INIT, (*self.pos_grid, self.width))
        grid = patches.shape[1:3]
        if grid != self.pos_grid:
            position = jax.image.resize(position, (*grid, self.width), "bicubic")
        patches = patches + position[None].astype(self.dtype)
        # The class token and its position embedding are one array, since only their sum is used.
        token = self.param("class_token", INIT, (self.width,)).astype(self.dtype)
        token = jnp.broadcast_to(token, (len(patches), 1, self.width))
        x = jnp.concatenate([token, patches.reshape(len(patches), -1, self.width)], axis=1)

        make_block = nn.remat(Block) if self.remat else Block
        for i in range(self.depth):
            x = make_block(self.num_heads, self.dtype, name=f"block{i}")(x)
        norm = layer_norm(jnp.float32, "norm")
        # Generalized means over time take powers of features, which must not be negative. A ReLU
        # would drop about half of a pretrained class token; softplus preserves the order of values.
        token, patches = (nn.softplus(norm(tokens)) for tokens in (x[:, 0], x[:, 1:]))
        axes = frames.shape[:-3]
        return FrameFeatures(
            vectors=token.reshape(*axes, self.width),
            maps=patches.astype(self.dtype).reshape(*axes, *grid, self.width),
        )
