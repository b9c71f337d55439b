"""S: the skeleton's edges, encoded by a bidirectional LSTM (STAR, frame level)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from data_pipelines.coco17 import EDGES
from star_jax.models.layers import Dtype, linear, precision_of, symmetric_uniform

EDGE_EMBEDDING = 64


def edge_features(
    keypoints: Float32[Array, "*batch 17 3"], detected: Bool[Array, "*batch 17"]
) -> Float32[Array, "*batch 38"]:
    """Computes the length and direction of every skeleton edge (STAR, frame level, step 1).

    Args:
      keypoints: float32[..., 17, 3].
      detected: bool[..., 17]; an edge with an undetected joint gets zeros, as does one whose joints
        coincide. Their gradients are zero.

    Returns:
      float32[..., 38]: length and angle (radians) of edge 0, of edge 1, and so on.
    """
    start, end = np.array(EDGES).T
    vector = keypoints[..., end, :2] - keypoints[..., start, :2]
    valid = detected[..., start] & detected[..., end] & (jnp.square(vector).sum(-1) > 0)
    # Root and angle have no gradient at 0, and a NaN would pass through the last `where`.
    vector = jnp.where(valid[..., None], vector, 1.0)
    length = jnp.sqrt(jnp.square(vector).sum(-1))
    angle = jnp.arctan2(vector[..., 1], vector[..., 0])
    features = jnp.where(valid[..., None], jnp.stack([length, angle], axis=-1), 0.0)
    return features.reshape(*features.shape[:-2], 2 * len(EDGES))


class BidirectionalLSTM(nn.Module):
    """A bidirectional LSTM layer, run as one scan; steps that are not valid are skipped.

    A skipped step leaves the states of both directions unchanged. One bias replaces PyTorch's two
    and is initialized as their sum.

    Attributes:
      units: hidden units per direction.
      dtype: the dtype of the matrix products; states stay float32.
    """

    units: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float32[Array, "B T *M D"], valid: Bool[Array, "B T *M"]
    ) -> Float32[Array, "B T *M 2*{self.units}"]:
        """Returns the hidden states of both directions.

        Args:
          x: float32[B, T, ..., D].
          valid: bool[B, T, ...].

        Returns:
          float32[B, T, ..., 2 * units]: forward states, then backward ones.
        """
        init = symmetric_uniform(1 / math.sqrt(self.units))
        gates = 4 * self.units  # in the order input, forget, cell, output
        input_kernel = self.param("input_kernel", init, (2, x.shape[-1], gates))
        recurrent_kernel = self.param("recurrent_kernel", init, (2, self.units, gates))
        two_biases = lambda key, shape: init(key, (2, *shape)).sum(0)  # noqa: E731
        bias = self.param("bias", two_biases, (2, gates))

        sequences = jnp.moveaxis(x, 1, 0)
        rows = sequences.reshape(len(sequences), -1, x.shape[-1])
        both = jnp.stack([rows, rows[::-1]]).astype(self.dtype)
        inputs = jnp.einsum(
            "dtri,dig->tdrg",
            both,
            input_kernel.astype(self.dtype),
            precision=precision_of(self.dtype),
        )
        inputs = inputs.astype(jnp.float32) + bias[None, :, None]
        valid = jnp.moveaxis(valid, 1, 0).reshape(len(rows), -1)
        steps = jnp.stack([valid, valid[::-1]], axis=1)[..., None]
        outputs = lstm_states(recurrent_kernel.astype(self.dtype), inputs, steps)
        forward, backward = outputs[:, 0], outputs[::-1, 1]
        states = jnp.concatenate([forward, backward], axis=-1)
        return jnp.moveaxis(states.reshape(*sequences.shape[:-1], -1), 0, 1)


@jax.custom_jvp
def lstm_states(
    kernel: Float[Array, "D H 4*H"],
    inputs: Float32[Array, "T D B 4*H"],
    valid: Bool[Array, "T D B 1"],
) -> Float32[Array, "T D B H"]:
    """Returns the hidden states of an LSTM in each of D directions, starting from zeros.

    Args:
      kernel: float[D, H, 4 * H], recurrent weights; its dtype is that of the matrix products.
      inputs: float32[T, D, B, 4 * H], the inputs' contribution to the gates.
      valid: bool[T, D, B, 1]; a step that is not valid leaves the states unchanged.

    Returns:
      float32[T, D, B, H].
    """
    return _scan(kernel, inputs, valid)


def _scan(kernel: jax.Array, inputs: jax.Array, valid: jax.Array) -> jax.Array:
    def step(
        state: tuple[jax.Array, jax.Array], inputs_and_valid: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        hidden, cell = state
        inputs, valid = inputs_and_valid
        i, f, g, o = jnp.split(inputs + _recurrent(hidden, kernel), 4, axis=-1)
        new_cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
        new_hidden = nn.sigmoid(o) * jnp.tanh(new_cell)
        hidden = jnp.where(valid, new_hidden, hidden)
        return (hidden, jnp.where(valid, new_cell, cell)), hidden

    zeros = jnp.zeros((*inputs.shape[1:3], kernel.shape[1]), jnp.float32)
    return jax.lax.scan(step, (zeros, zeros), (inputs, valid))[1]


@lstm_states.defjvp
def _lstm_states_jvp(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    # A change of the recurrent weights acts as a change of the inputs, by one product over all
    # steps. So their gradient is one product, too, and devices sum it up once: differentiated
    # within the scan, it would be a sum over the steps and, of a split batch, a collective in each.
    kernel, inputs, valid = primals
    kernel_tangent, inputs_tangent, _ = tangents
    states, push = jax.linearize(lambda inputs: _scan(kernel, inputs, valid), inputs)
    before = jnp.concatenate([jnp.zeros_like(states[:1]), states[:-1]])
    return states, push(inputs_tangent + _recurrent(before, kernel_tangent))


def _recurrent(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    """Returns what hidden states add to the gates: float32[..., D, B, H] to [..., D, B, 4 * H]."""
    product = jnp.einsum(
        "...dbh,dhg->...dbg",
        hidden.astype(kernel.dtype),
        kernel,
        precision=precision_of(kernel.dtype),
    )
    return product.astype(jnp.float32)


class EdgeSequence(nn.Module):
    """Computes S, the sequence of edge features encoded by an LSTM (STAR, frame level, step 2).

    Attributes:
      num_channels: C.
      dtype: the dtype of the matrix products.
    """

    num_channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, keypoints: Float32[Array, "B T *M 17 3"], detected: Bool[Array, "B T *M 17"]
    ) -> Float32[Array, "B T *M {self.num_channels}"]:
        """Returns float32[B, T, ..., C] of float32[B, T, ..., 17, 3] and bool[B, T, ..., 17]."""
        features = edge_features(keypoints, detected)
        embedded = linear(EDGE_EMBEDDING, features.shape[-1], jnp.float32, name="embed")(features)
        lstm = BidirectionalLSTM(self.num_channels // 2, self.dtype, name="lstm")
        return lstm(embedded, detected.any(-1))
