"""What skeletons do to visual features: frame-level guidance and guided GeM pooling."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from star_jax.models.layers import Dtype, generalised_mean, linear, precision_of

NUM_HEADS = 4
POWERS = (0.7, 1.0, 3.0, 5.0, 7.0)


class FrameGuidance(nn.Module):
    """G: frame features mended by the skeleton sequence (STAR, frame level, steps 3 and 4).

    Attributes:
      dtype: the dtype of the matrix products.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, features: jax.Array, edges: jax.Array, detected: jax.Array) -> jax.Array:
        """Guides the frame features.

        Args:
          features: V, float32[B, T, C], not negative.
          edges: S, float32[B, T, C].
          detected: bool[B, T], frames that have a skeleton; the others are not attended to.

        Returns:
          G, float32[B, T, C], positive.
        """
        channels = features.shape[-1]
        mask = nn.make_attention_mask(jnp.ones_like(detected), detected, dtype=bool)
        to_features = self.attention("edges_to_features")(edges, features)
        to_edges = self.attention("features_to_edges")(features, edges, mask=mask)
        x = jnp.concatenate([to_features, to_edges], axis=-1)
        x = nn.relu(linear(channels, 2 * channels, self.dtype, name="ffn1")(x))
        x = nn.relu(linear(channels, channels, self.dtype, name="ffn2")(x))
        return x.astype(jnp.float32) + features + 1e-3

    def attention(self, name: str) -> nn.MultiHeadDotProductAttention:
        """Attention over time. PyTorch draws its three input projections as one matrix."""
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
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None = None
) -> jax.Array:
    """Scaled dot-product attention with its softmax in float32.

    Flax's own, with `force_fp32_for_softmax`, multiplies float32 weights with bfloat16 values.

    Args:
      query: float[B, T, heads, D].
      key: float[B, S, heads, D].
      value: float[B, S, heads, D].
      mask: bool[B, 1, T, S], which keys a query attends to.

    Returns:
      float[B, T, heads, D], of the value's dtype.
    """
    precision = precision_of(query.dtype)
    query = query / jnp.sqrt(query.shape[-1]).astype(query.dtype)
    logits = jnp.einsum("bthd,bshd->bhts", query, key, precision=precision).astype(jnp.float32)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(jnp.float32).min)
    weights = nn.softmax(logits).astype(value.dtype)
    return jnp.einsum("bhts,bshd->bthd", weights, value, precision=precision)


class GuidedPooling(nn.Module):
    """z: a mixture of generalised means that the skeleton weighs per channel (sequence level, 5).

    Attributes:
      dtype: the dtype of the matrix product.
    """

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, frames: jax.Array, skeleton: jax.Array) -> jax.Array:
        """Pools over time.

        Args:
          frames: float32[B, T, C], positive.
          skeleton: s, float32[B, 2 * C].

        Returns:
          float32[B, C].
        """
        shape = (len(POWERS), frames.shape[-1])
        logits = linear(shape, skeleton.shape[-1], self.dtype, name="weigh")(skeleton)
        weights = nn.softmax(logits.astype(jnp.float32), axis=1)
        means = jnp.stack([generalised_mean(frames, power) for power in POWERS], axis=1)
        return (weights * means).sum(1)
