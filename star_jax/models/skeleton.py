"""S: the skeleton's edges, encoded by a bidirectional LSTM (STAR, frame level)."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.coco17 import EDGES
from star_jax.models.layers import Dtype, linear, precision_of, symmetric_uniform

EDGE_EMBEDDING = 64


def edge_features(keypoints: jax.Array, detected: jax.Array) -> jax.Array:
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
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
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


@jax.custom_vjp
def lstm_states(kernel: jax.Array, inputs: jax.Array, valid: jax.Array) -> jax.Array:
    """Computes the hidden states of an LSTM in D directions, starting from zeros.

    Args:
      kernel: float[D, H, 4 * H], recurrent weights; its dtype is that of the matrix products.
      inputs: float32[T, D, B, 4 * H], the inputs' contribution to the gates.
      valid: bool[T, D, B, 1]; a step that is not valid leaves the states unchanged.

    Returns:
      float32[T, D, B, H].
    """
    return _lstm_scan(kernel, inputs, valid)


def _lstm_scan(kernel: jax.Array, inputs: jax.Array, valid: jax.Array) -> jax.Array:
    def step(
        state: tuple[jax.Array, jax.Array], inputs_and_valid: tuple[jax.Array, jax.Array]
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        hidden, cell = state
        inputs, valid = inputs_and_valid
        recurrent = jnp.einsum(
            "dbh,dhg->dbg",
            hidden.astype(kernel.dtype),
            kernel,
            precision=precision_of(kernel.dtype),
        )
        i, f, g, o = jnp.split(inputs + recurrent.astype(jnp.float32), 4, axis=-1)
        new_cell = nn.sigmoid(f) * cell + nn.sigmoid(i) * jnp.tanh(g)
        new_hidden = nn.sigmoid(o) * jnp.tanh(new_cell)
        hidden = jnp.where(valid, new_hidden, hidden)
        return (hidden, jnp.where(valid, new_cell, cell)), hidden

    zeros = jnp.zeros((*inputs.shape[1:3], kernel.shape[1]), jnp.float32)
    return jax.lax.scan(step, (zeros, zeros), (inputs, valid))[1]


def _lstm_forward(kernel: jax.Array, inputs: jax.Array, valid: jax.Array) -> tuple[jax.Array, Any]:
    outputs, by_inputs = jax.vjp(lambda inputs: _lstm_scan(kernel, inputs, valid), inputs)
    return outputs, (kernel, outputs, by_inputs)


def _lstm_backward(kept: Any, gradient: jax.Array) -> tuple[jax.Array, jax.Array, None]:
    # Computes the gradient of the recurrent weights as one product over all steps, after the scan:
    # automatic differentiation would read and write all of it in each of the T steps.
    kernel, outputs, by_inputs = kept
    (gates,) = by_inputs(gradient)  # inputs are added to the gates, so both have the same gradient
    before = jnp.concatenate([jnp.zeros_like(outputs[:1]), outputs[:-1]])
    by_kernel = jnp.einsum(
        "tdbh,tdbg->dhg",
        before.astype(kernel.dtype),
        gates.astype(kernel.dtype),
        precision=precision_of(kernel.dtype),
    )
    return by_kernel, gates, None


lstm_states.defvjp(_lstm_forward, _lstm_backward)


class EdgeSequence(nn.Module):
    """Computes S, the sequence of edge features encoded by an LSTM (STAR, frame level, step 2).

    Attributes:
      num_channels: C.
      dtype: the dtype of the matrix products.
    """

    num_channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, keypoints: jax.Array, detected: jax.Array) -> jax.Array:
        """Returns float32[B, T, ..., C] of float32[B, T, ..., 17, 3] and bool[B, T, ..., 17]."""
        features = edge_features(keypoints, detected)
        embedded = linear(EDGE_EMBEDDING, features.shape[-1], jnp.float32, name="embed")(features)
        lstm = BidirectionalLSTM(self.num_channels // 2, self.dtype, name="lstm")
        return lstm(embedded, detected.any(-1))
