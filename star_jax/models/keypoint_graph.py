"""Q: the joints of a tracklet as a graph over space and time (STAR, sequence level)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import jraph
import numpy as np
from jaxtyping import Array, Bool, Float32, Int32

from data_pipelines.coco17 import EDGES, JOINTS
from star_jax.models.layers import precision_of

LEAKY_SLOPE = 0.2


def tracklet_edges(
    num_frames: int, *, skeleton_in_every_frame: bool
) -> tuple[Int32[np.ndarray, " edges"], Int32[np.ndarray, " edges"]]:
    """Returns the edges of the space-time keypoint graph of one tracklet (STAR, sequence level).

    Node `t * 17 + j` is joint j in frame t. Joints are linked along the skeleton within a frame and
    to themselves in the next frame, in both directions, and every node has a self-loop.

    Args:
      num_frames: frames per tracklet, T.
      skeleton_in_every_frame: False links the joints along the skeleton in frame 0 only, as the
        authors' code does (setting `reference`).

    Returns:
      senders and receivers, int32[edges] each, in ascending order of the receivers.
    """
    num_joints = len(JOINTS)
    skeleton = np.array(EDGES)
    skeleton_frames = np.arange(num_frames if skeleton_in_every_frame else 1)
    within = (skeleton_frames[:, None, None] * num_joints + skeleton).reshape(-1, 2)
    nodes = np.arange(num_frames * num_joints)
    forward_in_time = np.stack([nodes[:-num_joints], nodes[num_joints:]], axis=1)
    one_way = np.concatenate([within, forward_in_time])
    self_loops = np.stack([nodes, nodes], axis=1)
    edges = np.concatenate([one_way, one_way[:, ::-1], self_loops]).astype(np.int32)
    edges = edges[np.argsort(edges[:, 1], kind="stable")]
    return edges[:, 0], edges[:, 1]


def keypoint_graph(
    keypoints: Float32[Array, "B T *M 17 3"],
    detected: Bool[Array, "B T *M 17"],
    *,
    skeleton_in_every_frame: bool,
) -> jraph.GraphsTuple:
    """Returns the space-time graph of a batch of tracklets (STAR, sequence level, step 1).

    All tracklets have the same edges, so there is one graph, and the R tracklets are the second
    axis of its features: segment operations cross neither tracklets nor devices.

    Args:
      keypoints: float32[B, T, ..., 17, 3], of R = B * ... tracklets.
      detected: bool[B, T, ..., 17].
      skeleton_in_every_frame: see `tracklet_edges`.

    Returns:
      One graph of N = T * 17 nodes: nodes float32[N, R, 3], edges bool[E, R] (whether the sender
      was detected).
    """
    time = keypoints.shape[1]
    senders, receivers = tracklet_edges(time, skeleton_in_every_frame=skeleton_in_every_frame)
    num_nodes = time * len(JOINTS)
    nodes = jnp.moveaxis(keypoints, (1, -2), (0, 1)).reshape(num_nodes, -1, 3)
    present = jnp.moveaxis(detected, (1, -1), (0, 1)).reshape(num_nodes, -1)
    return jraph.GraphsTuple(
        nodes=jnp.where(present[..., None], nodes, 0.0),
        edges=present[senders],
        senders=senders,
        receivers=receivers,
        globals=None,
        n_node=np.array([num_nodes]),
        n_edge=np.array([len(senders)]),
    )


class GraphAttention(nn.Module):
    """A graph attention layer (GAT) on a `keypoint_graph`, with a bias after aggregation.

    Attributes:
      features: output features per head.
      num_heads: number of heads, whose outputs are concatenated.
      dropout_rate: dropout rate of the attention weights.
    """

    features: int
    num_heads: int
    dropout_rate: float

    @nn.compact
    def __call__(self, graph: jraph.GraphsTuple, *, train: bool) -> jraph.GraphsTuple:
        """Maps the nodes from float32[N, R, F] to float32[N, R, num_heads * features]."""
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
        self.sow("intermediates", "weights", weights)  # for reports; nothing unless mutable
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
    """Computes Q with two graph attention layers and pooling (STAR, sequence level, steps 2, 3).

    Attributes:
      num_channels: C.
      skeleton_in_every_frame: see `tracklet_edges`.
      dropout_rate: dropout rate after the first layer.
      attention_dropout_rate: dropout rate of the attention weights of both layers.
    """

    num_channels: int
    skeleton_in_every_frame: bool
    dropout_rate: float
    attention_dropout_rate: float

    @nn.compact
    def __call__(
        self,
        keypoints: Float32[Array, "B T *M 17 3"],
        detected: Bool[Array, "B T *M 17"],
        *,
        train: bool,
    ) -> Float32[Array, "B *M {self.num_channels}"]:
        """Returns float32[B, ..., C] of float32[B, T, ..., 17, 3] and bool[B, T, ..., 17]."""
        graph = keypoint_graph(
            keypoints, detected, skeleton_in_every_frame=self.skeleton_in_every_frame
        )
        graph = GraphAttention(16, 2, self.attention_dropout_rate, name="gat1")(graph, train=train)
        nodes = nn.Dropout(self.dropout_rate, deterministic=not train)(nn.elu(graph.nodes))
        graph = graph._replace(nodes=nodes)
        graph = GraphAttention(12, 1, self.attention_dropout_rate, name="gat2")(graph, train=train)
        nodes = nn.elu(graph.nodes).swapaxes(0, 1)
        present = jnp.moveaxis(detected, 1, -2)
        nodes = jnp.where(present.reshape(*nodes.shape[:2], 1), nodes, 0.0)
        return adaptive_average(nodes.reshape(*present.shape[:-2], -1), self.num_channels)


def adaptive_average(
    x: Float32[Array, "*batch L"], num_bins: int
) -> Float32[Array, "*batch {num_bins}"]:
    """Computes adaptive average pooling of the last axis, with PyTorch's bins.

    Bin i is the mean of x from `floor(i * L / num_bins)` to `ceil((i + 1) * L / num_bins)`.

    Args:
      x: float32[..., L].
      num_bins: number of bins, at least 1.

    Returns:
      float32[..., num_bins].
    """
    length = x.shape[-1]
    bins = np.arange(num_bins)
    start = bins * length // num_bins
    stop = -(-(bins + 1) * length // num_bins)
    offsets = np.arange((stop - start).max())
    inside = start[:, None] + offsets < stop[:, None]
    members = np.minimum(start[:, None] + offsets, length - 1)
    weights = (inside / inside.sum(1, keepdims=True)).astype(np.float32)
    precision = precision_of(jnp.float32)
    return jnp.einsum("...nk,nk->...n", x[..., members], weights, precision=precision)
