"""The skeleton branch: edges through a bidirectional LSTM, joints through a keypoint graph."""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np

from star_jax.graphs import EDGES, tracklet_edges
from star_jax.models.layers import Dtype, linear, precision_of, symmetric_uniform

EDGE_EMBEDDING = 64
LEAKY_SLOPE = 0.2


def edge_features(keypoints: jax.Array, detected: jax.Array) -> jax.Array:
    """Length and direction of every skeleton edge (STAR, frame level, step 1).

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
    # Root and angle have no gradient at 0, and its NaN would pass through the last `where`.
    vector = jnp.where(valid[..., None], vector, 1.0)
    length = jnp.sqrt(jnp.square(vector).sum(-1))
    angle = jnp.arctan2(vector[..., 1], vector[..., 0])
    features = jnp.where(valid[..., None], jnp.stack([length, angle], axis=-1), 0.0)
    return features.reshape(*features.shape[:-2], 2 * len(EDGES))


class BidirectionalLSTM(nn.Module):
    """One LSTM layer in both directions, run as one scan; steps that are not valid are skipped.

    A skipped step leaves both directions' states as they were. One bias stands for PyTorch's two
    and starts as their sum.

    Attributes:
      units: hidden units of each direction.
      dtype: the dtype of the matrix products; states stay float32.
    """

    units: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, valid: jax.Array) -> jax.Array:
        """Runs over time.

        Args:
          x: float32[B, T, D].
          valid: bool[B, T].

        Returns:
          float32[B, T, 2 * units]: forward states, then backward ones.
        """
        init = symmetric_uniform(1 / math.sqrt(self.units))
        gates = 4 * self.units  # in the order input, forget, cell, output
        input_kernel = self.param("input_kernel", init, (2, x.shape[-1], gates))
        recurrent_kernel = self.param("recurrent_kernel", init, (2, self.units, gates))
        two_biases = lambda key, shape: init(key, (2, *shape)).sum(0)  # noqa: E731
        bias = self.param("bias", two_biases, (2, gates))

        both = jnp.stack([x, x[:, ::-1]]).astype(self.dtype)
        inputs = jnp.einsum(
            "dbti,dig->tdbg",
            both,
            input_kernel.astype(self.dtype),
            precision=precision_of(self.dtype),
        )
        inputs = inputs.astype(jnp.float32) + bias[None, :, None]
        steps = jnp.stack([valid, valid[:, ::-1]]).transpose(2, 0, 1)[..., None]
        outputs = lstm_states(recurrent_kernel.astype(self.dtype), inputs, steps)
        forward, backward = outputs[:, 0], outputs[::-1, 1]
        return jnp.concatenate([forward, backward], axis=-1).transpose(1, 0, 2)


@jax.custom_vjp
def lstm_states(kernel: jax.Array, inputs: jax.Array, valid: jax.Array) -> jax.Array:
    """Hidden states of an LSTM in each of D directions, from zeros on.

    Args:
      kernel: float[D, H, 4 * H], recurrent weights; its dtype is that of the matrix products.
      inputs: float32[T, D, B, 4 * H], what the inputs add to the gates.
      valid: bool[T, D, B, 1]; a step that is not valid leaves the states as they were.

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
    # The recurrent weights' gradient as one product over all steps, after the scan: summed up step
    # by step, as differentiation would have it, all of it is read and written T times.
    kernel, outputs, by_inputs = kept
    (gates,) = by_inputs(gradient)  # inputs are added to the gates, so theirs is the gates' too
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
    """S: the edge features of every frame, read as a sequence (STAR, frame level, step 2).

    Attributes:
      num_channels: C.
      dtype: the dtype of the matrix products.
    """

    num_channels: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, keypoints: jax.Array, detected: jax.Array) -> jax.Array:
        """float32[B, T, 17, 3] and bool[B, T, 17] to float32[B, T, C]."""
        features = edge_features(keypoints, detected)
        embedded = linear(EDGE_EMBEDDING, features.shape[-1], jnp.float32, name="embed")(features)
        lstm = BidirectionalLSTM(self.num_channels // 2, self.dtype, name="lstm")
        return lstm(embedded, detected.any(-1))


def keypoint_graph(
    keypoints: jax.Array, detected: jax.Array, *, skeleton_in_every_frame: bool
) -> jraph.GraphsTuple:
    """The space-time graph of a batch of tracklets (STAR, sequence level, step 1).

    All tracklets have the same edges, so the graph is written once and the tracklets ride on a
    second axis of its features: segment operations then never cross tracklets, nor devices.

    Args:
      keypoints: float32[B, T, 17, 3].
      detected: bool[B, T, 17].
      skeleton_in_every_frame: see `star_jax.graphs.tracklet_edges`.

    Returns:
      One graph of N = T * 17 nodes: nodes float32[N, B, 3], edges bool[E, B] (whether the sender
      was detected and so may speak).
    """
    batch, time = keypoints.shape[:2]
    senders, receivers = tracklet_edges(time, skeleton_in_every_frame=skeleton_in_every_frame)
    nodes = keypoints.reshape(batch, -1, 3).swapaxes(0, 1)
    present = detected.reshape(batch, -1).swapaxes(0, 1)
    return jraph.GraphsTuple(
        nodes=jnp.where(present[..., None], nodes, 0.0),
        edges=present[senders],
        senders=senders,
        receivers=receivers,
        globals=None,
        n_node=np.array([nodes.shape[0]]),
        n_edge=np.array([len(senders)]),
    )


class GraphAttention(nn.Module):
    """A graph attention layer (GAT) on a `keypoint_graph`; the bias comes after aggregation.

    Attributes:
      features: output features of each head.
      num_heads: heads, concatenated.
      dropout_rate: dropout on the attention weights.
    """

    features: int
    num_heads: int
    dropout_rate: float

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, *, train: bool) -> jraph.GraphsTuple:
        """Replaces the nodes, float32[N, B, F], by float32[N, B, num_heads * features]."""
        init = nn.initializers.xavier_uniform()
        precision = precision_of(jnp.float32)
        shape = (self.num_heads, self.features)
        projected = nn.Dense(
            self.num_heads * self.features,
            use_bias=False,
            kernel_init=init,
            precision=precision,
            name="projection",
        )(graph.nodes)
        projected = projected.reshape(*projected.shape[:-1], *shape)

        def product_with(name: str) -> jax.Array:
            vectors = self.param(name, init, shape)
            return jnp.einsum("nbhf,hf->nbh", projected, vectors, precision=precision)

        to_sender, to_receiver = product_with("sender"), product_with("receiver")
        logits = to_sender[graph.senders] + to_receiver[graph.receivers]
        logits = nn.leaky_relu(logits, LEAKY_SLOPE)
        logits = jnp.where(graph.edges[..., None], logits, -1e9)
        num_nodes = graph.nodes.shape[0]
        weights = jraph.segment_softmax(
            logits, graph.receivers, num_segments=num_nodes, indices_are_sorted=True
        )
        weights = nn.Dropout(self.dropout_rate, deterministic=not train)(weights)
        nodes = jraph.segment_sum(
            weights[..., None] * projected[graph.senders],
            graph.receivers,
            num_segments=num_nodes,
            indices_are_sorted=True,
        )
        bias = self.param("bias", nn.initializers.zeros, (self.num_heads * self.features,))
        return graph._replace(nodes=nodes.reshape(*nodes.shape[:2], -1) + bias[None, None])


class KeypointGraphNetwork(nn.Module):
    """Q: two graph attention layers, flattened and pooled to C (STAR, sequence level, 2 and 3).

    Attributes:
      num_channels: C.
      skeleton_in_every_frame: see `star_jax.graphs.tracklet_edges`.
      dropout_rate: dropout after the first layer.
      attention_dropout_rate: dropout on the attention weights of both layers.
    """

    num_channels: int
    skeleton_in_every_frame: bool
    dropout_rate: float
    attention_dropout_rate: float

    @nn.compact
    def __call__(self, keypoints: jax.Array, detected: jax.Array, *, train: bool) -> jax.Array:
        """float32[B, T, 17, 3] and bool[B, T, 17] to float32[B, C]."""
        graph = keypoint_graph(
            keypoints, detected, skeleton_in_every_frame=self.skeleton_in_every_frame
        )
        graph = GraphAttention(16, 2, self.attention_dropout_rate, name="gat1")(graph, train=train)
        nodes = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.elu(graph.nodes))
        graph = graph._replace(nodes=nodes)
        graph = GraphAttention(12, 1, self.attention_dropout_rate, name="gat2")(graph, train=train)
        nodes = nn.elu(graph.nodes).swapaxes(0, 1)
        nodes = jnp.where(detected.reshape(*nodes.shape[:2], 1), nodes, 0.0)
        return adaptive_average(nodes.reshape(nodes.shape[0], -1), self.num_channels)


def adaptive_average(x: jax.Array, num_bins: int) -> jax.Array:
    """Adaptive average pooling of the last axis, with PyTorch's bins.

    Bin i is the mean of x from `floor(i * L / num_bins)` to `ceil((i + 1) * L / num_bins)`.

    Args:
      x: float32[B, L].
      num_bins: bins, at least 1.

    Returns:
      float32[B, num_bins].
    """
    length = x.shape[-1]
    bins = np.arange(num_bins)
    start = bins * length // num_bins
    stop = -(-(bins + 1) * length // num_bins)
    offsets = np.arange((stop - start).max())
    inside = start[:, None] + offsets < stop[:, None]
    members = np.minimum(start[:, None] + offsets, length - 1)
    weights = (inside / inside.sum(1, keepdims=True)).astype(np.float32)
    return jnp.einsum("bnk,nk->bn", x[:, members], weights, precision=precision_of(jnp.float32))
