"""STAR's losses: one function a loss, keyword arguments, arrays in, a float32 scalar out."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax

from star_jax.models.star import StarOutput

NAMES = (
    "identity",
    "triplet",
    "frame_identity",
    "disturbed_identity",
    "defense",
    "modality_consistency",
    "skeleton_consistency",
)


def cross_entropy(*, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Mean cross entropy.

    Args:
      logits: float32[..., N].
      labels: int32[...].
    """
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def pairwise_distances(*, a: jax.Array, b: jax.Array) -> jax.Array:
    """Euclidean distances: float32[M, C] and float32[N, C] to float32[M, N]."""
    # Distances do not change with the origin, and near it their squares cancel less.
    centre = jax.lax.stop_gradient(b.mean(0, keepdims=True))
    a, b = a - centre, b - centre
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1)[None] - 2 * products
    return jnp.sqrt(jnp.maximum(squared, 1e-12))


def batch_hard_triplet(
    *, embeddings: jax.Array, labels: jax.Array, margin: float = 0.3
) -> jax.Array:
    """Batch-hard triplet loss (Hermans et al., arXiv 1703.07737), Euclidean.

    For every row: the farthest row of its identity against the nearest of another.

    Args:
      embeddings: float32[R, C], not normalised.
      labels: int32[R]; at least two identities.
      margin: how much nearer the positive should be.
    """
    distances = pairwise_distances(a=embeddings, b=embeddings)
    same = labels[:, None] == labels[None]
    positive = jnp.where(same, distances, -jnp.inf).max(1)
    negative = jnp.where(same, jnp.inf, distances).min(1)
    return jnp.maximum(positive - negative + margin, 0.0).mean()


def defense(*, features: jax.Array, disturbed: jax.Array) -> jax.Array:
    """Mean over frames of the Euclidean norm of V - V': both float32[R, T, C]."""
    squared = jnp.square(features - disturbed).sum(-1)
    return jnp.sqrt(jnp.maximum(squared, 1e-24)).mean()


def modality_consistency(*, visible_logits: jax.Array, infrared_logits: jax.Array) -> jax.Array:
    """Sum of the two directed KL divergences between class distributions, mean over pairs.

    Args:
      visible_logits: float32[B, N], of the visible tracklets' skeletons.
      infrared_logits: float32[B, N], of their infrared partners'.
    """
    visible, infrared = jax.nn.log_softmax(visible_logits), jax.nn.log_softmax(infrared_logits)
    both_ways = (jnp.exp(visible) - jnp.exp(infrared)) * (visible - infrared)
    return both_ways.sum(-1).mean()


def skeleton_consistency(*, joints: jax.Array, edges: jax.Array) -> jax.Array:
    """KL divergence of the joints' distribution over channels from the edges', mean over rows.

    Args:
      joints: Q, float32[R, C].
      edges: S at the last step, float32[R, C]; the target.
    """
    target, prediction = jax.nn.log_softmax(edges), jax.nn.log_softmax(joints)
    return (jnp.exp(target) * (target - prediction)).sum(-1).mean()


def star_losses(
    output: StarOutput, labels: jax.Array, weights: Mapping[str, float]
) -> dict[str, jax.Array]:
    """The losses of a paired batch that have a weight, unweighted, and their weighted `total`.

    Args:
      output: of a paired training pass: even rows visible, odd rows infrared.
      labels: int32[B], the identity of each pair.
      weights: by the names in `NAMES`; 0 leaves a loss out. Losses of a branch that the network
        lacks (skeleton losses of a network without guidance) are left out, too.
    """
    rows = jnp.repeat(labels, 2)
    frames = jnp.broadcast_to(rows[:, None], output.frame_logits.shape[:2])
    losses = {
        "identity": lambda: cross_entropy(logits=output.logits, labels=rows),
        "triplet": lambda: batch_hard_triplet(embeddings=output.tracklet, labels=rows),
        "frame_identity": lambda: cross_entropy(logits=output.frame_logits, labels=frames),
    }
    if output.disturbed is not None and output.disturbed_logits is not None:
        disturbed, disturbed_logits = output.disturbed, output.disturbed_logits
        losses |= {
            "disturbed_identity": lambda: cross_entropy(logits=disturbed_logits, labels=frames),
            "defense": lambda: defense(features=output.frame_features, disturbed=disturbed),
        }
    skeleton_logits, joints, edges = output.skeleton_logits, output.graph, output.edges_last
    if skeleton_logits is not None and joints is not None and edges is not None:
        losses |= {
            "modality_consistency": lambda: modality_consistency(
                visible_logits=skeleton_logits[0::2], infrared_logits=skeleton_logits[1::2]
            ),
            "skeleton_consistency": lambda: skeleton_consistency(joints=joints, edges=edges),
        }
    values = {name: loss() for name, loss in losses.items() if weights[name]}
    total = sum((weights[name] * value for name, value in values.items()), jnp.float32(0))
    return {**values, "total": total}
