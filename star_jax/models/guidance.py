"""Refinement of the visual features of each frame by skeletons.

A guidance is a `star_jax.models.interfaces.Guidance`. To add one, add it to `GUIDANCE`, or name it
in `config.model.guidance` as `package.module:object`.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from star_jax.models.interfaces import FrameFeatures, Guidance, Skeletons
from star_jax.models.layers import Dtype, linear, precision_of

NUM_HEADS = 4


class FrameGuidance(nn.Module):
    """Computes G, frame features refined by the skeletons (STAR, frame level, steps 3 and 4).

    Attributes:
      dtype: the dtype of the matrix products.
    """

    dtype: Dtype = jnp.float32
    uses_keypoints: ClassVar[bool] = True
    uses_skeleton: ClassVar[bool] = True

    @nn.compact
    def __call__(
        self, features: FrameFeatures, skeletons: Skeletons | None
    ) -> Float32[Array, "B T *M C"]:
        """Returns G, float32[B, T, ..., C], positive; frames without a skeleton are masked."""
        assert skeletons is not None and skeletons.edges is not None  # uses_skeleton
        vectors, edges, detected = features.vectors, skeletons.edges, skeletons.detected.any(-1)
        channels = vectors.shape[-1]
        mask = jnp.moveaxis(detected, 1, -1)[..., None, None, :]  # of keys, for all queries
        to_features = self.attention("edges_to_features")(edges, vectors, sow_weights=True)
        to_edges = self.attention("features_to_edges")(vectors, edges, mask=mask, sow_weights=True)
        x = jnp.concatenate([to_features, to_edges], axis=-1)
        x = nn.relu(linear(channels, 2 * channels, self.dtype, name="ffn1")(x))
        x = nn.relu(linear(channels, channels, self.dtype, name="ffn2")(x))
        return x.astype(jnp.float32) + vectors + 1e-3

    def attention(self, name: str) -> nn.MultiHeadDotProductAttention:
        """Returns attention over time, initialized as PyTorch's one matrix of input projections."""
        return nn.MultiHeadDotProductAttention(
            NUM_HEADS,
            dtype=self.dtype,
            precision=precision_of(self.dtype),
            attention_fn=attend,
            kernel_init=nn.initializers.variance_scaling(0.5, "fan_avg", "uniform"),
            out_kernel_init=nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
            name=name,
        )


def attend(
    query: Float[Array, "B T *M heads D"],
    key: Float[Array, "B S *M heads D"],
    value: Float[Array, "B S *M heads D"],
    mask: Bool[Array, "#B *#M 1 #T S"] | None = None,
    module: nn.Module | None = None,
) -> Float[Array, "B T *M heads D"]:
    """Computes scaled dot-product attention with the softmax in float32.

    Flax's version with `force_fp32_for_softmax` multiplies float32 weights by bfloat16 values.

    The weights, float32[B, ..., heads, T, S], are sown as `attention_weights`, as Flax does.

    Args:
      query: float[B, T, ..., heads, D].
      key: float[B, S, ..., heads, D].
      value: float[B, S, ..., heads, D].
      mask: bool[B, ..., 1, 1 or T, S], which keys a query attends to.
      module: sows the weights in the collection `intermediates`, if that is mutable.

    Returns:
      float[B, T, ..., heads, D], with the dtype of `value`.
    """
    precision = precision_of(query.dtype)
    query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
    logits = jnp.einsum("bt...hd,bs...hd->b...hts", query, key, precision=precision).astype(
        jnp.float32
    )
    if mask is not None:
        logits = jnp.where(mask, logits, np.finfo(np.float32).min)
    weights = nn.softmax(logits)
    if module is not None:
        module.sow("intermediates", "attention_weights", weights)
    weights = weights.astype(value.dtype)
    return jnp.einsum("b...hts,bs...hd->bt...hd", weights, value, precision=precision)


GUIDANCE: Mapping[str, Callable[..., Guidance] | None] = {"frame": FrameGuidance, "none": None}
