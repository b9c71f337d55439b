"""STAR's losses, and losses of other packages by path.

The first functions are formulas that map arrays, given as keyword arguments, to a float32 scalar.
Each entry of `LOSSES` is a `Loss`.
"""

import math
from collections.abc import Mapping
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float32, Int32

from data_pipelines.errors import InputError
from data_pipelines.parts import find_part, is_function_of
from star_jax.config import Config
from star_jax.config.checks import plain
from star_jax.models.star import StarOutput, build_part, is_module_class

Batch = Mapping[str, Any]
LOSS = "a function of (output, batch, step), a Flax module or its class"


class Loss(Protocol):
    """A function, or a Flax module if the loss has parameters or state.

    The parameters are trained with `config.optim.lr`, other collections are updated by each call,
    and checkpoints contain both.
    """

    def __call__(
        self, output: StarOutput, batch: Batch, step: Int32[Array, ""], /
    ) -> Float32[Array, ""] | None:
        """Returns a float32 scalar; None if the network does not compute what the loss needs.

        Args:
          output: the network's output for B pairs of tracklets; the modalities are an axis of its
            arrays.
          batch: the `TrainBatch` on the device: `labels` int32[B], `cameras` and `positions`
            int32[B, 2], and the frames and keypoints as loaded, without augmentation.
          step: int32[], completed steps.
        """


def cross_entropy(
    *, logits: Float32[Array, "*batch N"], labels: Int32[Array, "*batch"]
) -> Float32[Array, ""]:
    """Returns the mean cross entropy.

    Args:
      logits: float32[..., N].
      labels: int32[...], from 0 to N - 1. With any other label the result is NaN where they are
        traced, as under `jit`.

    Raises:
      InputError: a label is not one of the N classes.
    """
    num_classes = logits.shape[-1]
    _require_labels(labels, num_classes=num_classes)
    entropies = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    # Indexing would take -1 for the last class.
    return jnp.where((labels >= 0) & (labels < num_classes), entropies, jnp.nan).mean()


def _require_labels(
    labels: Int32[Array, "*batch"], *, num_classes: float = math.inf, num_identities: int = 1
) -> None:
    """Raises an InputError if labels do not fit; nothing is known of labels that are traced."""
    if isinstance(labels, jax.core.Tracer) or not getattr(labels, "is_fully_addressable", True):
        return
    found = np.unique(labels)
    if wrong := found[(found < 0) | (found >= num_classes)].tolist():
        raise InputError(
            f"labels has {wrong[0]}: use labels from 0 to below {num_classes:g}, the number of "
            "training identities, and leave out rows of other people"
        )
    if len(found) < num_identities:
        raise InputError(f"labels has {found.tolist()}: use {num_identities} identities or more")


def pairwise_distances(
    *, a: Float32[Array, "M C"], b: Float32[Array, "N C"]
) -> Float32[Array, "M N"]:
    """Returns Euclidean distances: float32[M, C] and float32[N, C] to float32[M, N]."""
    # Distances are invariant to translation; centering reduces cancellation.
    center = jax.lax.stop_gradient(b.mean(0, keepdims=True))
    a, b = a - center, b - center
    products = jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)
    squared = jnp.square(a).sum(1)[:, None] + jnp.square(b).sum(1)[None] - 2 * products
    return jnp.sqrt(jnp.maximum(squared, 1e-12))


def batch_hard_triplet(
    *, embeddings: Float32[Array, "R C"], labels: Int32[Array, " R"], margin: float = 0.3
) -> Float32[Array, ""]:
    """Returns the batch-hard Euclidean triplet loss (Hermans et al., arXiv 1703.07737).

    Compares, for every row, the farthest row of its identity with the nearest of another.

    Args:
      embeddings: float32[R, C], not normalized.
      labels: int32[R], not negative, of at least two identities. Where they are traced, as under
        `jit`, neither is checked: rows of label -1 count as one identity, and with a single
        identity the result is 0.
      margin: by how much the positive should be nearer than the negative.

    Raises:
      InputError: a label is negative, or all are of one identity.
    """
    _require_labels(labels, num_identities=2)
    distances = pairwise_distances(a=embeddings, b=embeddings)
    same = labels[:, None] == labels[None]
    positive = jnp.where(same, distances, -jnp.inf).max(1)
    negative = jnp.where(same, jnp.inf, distances).min(1)
    return jnp.maximum(positive - negative + margin, 0.0).mean()


def defense(
    *, features: Float32[Array, "*R T C"], disturbed: Float32[Array, "*R T C"]
) -> Float32[Array, ""]:
    """Returns the mean over frames of the Euclidean norm of V - V', both float32[R, T, C]."""
    squared = jnp.square(features - disturbed).sum(-1)
    return jnp.sqrt(jnp.maximum(squared, 1e-24)).mean()


def modality_consistency(
    *, visible_logits: Float32[Array, "B N"], infrared_logits: Float32[Array, "B N"]
) -> Float32[Array, ""]:
    """Returns the symmetric KL divergence between class distributions, the mean over pairs.

    Args:
      visible_logits: float32[B, N], logits of the visible tracklets' skeletons.
      infrared_logits: float32[B, N], logits of the infrared tracklets' skeletons.
    """
    visible, infrared = jax.nn.log_softmax(visible_logits), jax.nn.log_softmax(infrared_logits)
    both_ways = (jnp.exp(visible) - jnp.exp(infrared)) * (visible - infrared)
    return both_ways.sum(-1).mean()


def skeleton_consistency(
    *, joints: Float32[Array, "*R C"], edges: Float32[Array, "*R C"]
) -> Float32[Array, ""]:
    """Returns KL(edges || joints) of the distributions over channels, the mean over rows.

    Args:
      joints: Q, float32[R, C].
      edges: S at the last step, float32[R, C]; the target.
    """
    target, prediction = jax.nn.log_softmax(edges), jax.nn.log_softmax(joints)
    return (jnp.exp(target) * (target - prediction)).sum(-1).mean()


def labels_like(logits: Float32[Array, "B *batch N"], batch: Batch) -> Int32[Array, " B *batch"]:
    """Returns the label of each row of logits [B, ..., N]: int32[B, ...]."""
    labels = batch["labels"]
    return jnp.broadcast_to(
        labels.reshape(-1, *[1] * (logits.ndim - 2)), (len(labels), *logits.shape[1:-1])
    )


def identity_loss(output: StarOutput, batch: Batch, step: Int32[Array, ""]) -> Float32[Array, ""]:
    """Returns the cross entropy of the tracklets' identities."""
    del step
    return cross_entropy(logits=output.logits, labels=labels_like(output.logits, batch))


def triplet_loss(output: StarOutput, batch: Batch, step: Int32[Array, ""]) -> Float32[Array, ""]:
    """Returns the batch-hard triplet loss over the tracklet features z of both modalities."""
    del step
    labels = labels_like(output.tracklet, batch).ravel()
    # Without the barrier, devices gather the rows twice: before the products, and in the gradient.
    embeddings = jax.lax.optimization_barrier(output.tracklet.reshape(len(labels), -1))
    return batch_hard_triplet(embeddings=embeddings, labels=labels)


def frame_identity_loss(
    output: StarOutput, batch: Batch, step: Int32[Array, ""]
) -> Float32[Array, ""]:
    """Returns the cross entropy of the frames' identities."""
    del step
    logits = output.frame_logits
    return cross_entropy(logits=logits, labels=labels_like(logits, batch))


def disturbed_identity_loss(
    output: StarOutput, batch: Batch, step: Int32[Array, ""]
) -> Float32[Array, ""] | None:
    """Returns the cross entropy of the frames' identities with disturbed style."""
    del step
    logits = output.disturbed_logits
    if logits is None:
        return None
    return cross_entropy(logits=logits, labels=labels_like(logits, batch))


def defense_loss(
    output: StarOutput, batch: Batch, step: Int32[Array, ""]
) -> Float32[Array, ""] | None:
    """Returns the distance between the frame features with and without disturbed style."""
    del batch, step
    if output.disturbed is None:
        return None
    return defense(features=output.frame_features, disturbed=output.disturbed)


def modality_consistency_loss(
    output: StarOutput, batch: Batch, step: Int32[Array, ""]
) -> Float32[Array, ""] | None:
    """Returns the divergence of the skeletons' class distributions between modalities."""
    del batch, step
    logits = output.skeleton_logits
    if logits is None:
        return None
    return modality_consistency(visible_logits=logits[:, 0], infrared_logits=logits[:, 1])


def skeleton_consistency_loss(
    output: StarOutput, batch: Batch, step: Int32[Array, ""]
) -> Float32[Array, ""] | None:
    """Returns the divergence of the joints' features from the edges'."""
    del batch, step
    if output.graph is None or output.edges_last is None:
        return None
    return skeleton_consistency(joints=output.graph, edges=output.edges_last)


LOSSES: Mapping[str, Loss] = {
    "identity": identity_loss,
    "triplet": triplet_loss,
    "frame_identity": frame_identity_loss,
    "disturbed_identity": disturbed_identity_loss,
    "defense": defense_loss,
    "modality_consistency": modality_consistency_loss,
    "skeleton_consistency": skeleton_consistency_loss,
}


def is_loss(part: Any) -> bool:
    """Returns whether an object is a `LOSS`."""
    is_module = isinstance(part, nn.Module) or is_module_class(part)
    return is_module or is_function_of(part, "output", "batch", "step")


class Losses(nn.Module):
    """All losses of an experiment; `build_losses` creates it from a config.

    Attributes:
      parts: name, weight and function or module of each loss.
    """

    parts: tuple[tuple[str, float, Loss], ...]

    @property
    def has_state(self) -> bool:
        """Whether any loss has parameters or state."""
        return any(isinstance(part, nn.Module) for _, _, part in self.parts)

    @nn.compact
    def __call__(
        self, output: StarOutput, batch: Batch, step: Int32[Array, ""]
    ) -> dict[str, Float32[Array, ""]]:
        """Returns the losses by name, unweighted, and their weighted `total`.

        Args:
          output: the network's output in a training pass over B pairs.
          batch: a `TrainBatch` of B pairs.
          step: int32[], completed steps.
        """
        values, total = {}, jnp.float32(0)
        for name, weight, part in self.parts:
            loss = part.copy(name=name) if isinstance(part, nn.Module) else part
            value = loss(output, batch, step)
            if value is not None:
                values[name] = value
                total += weight * value
        return {**values, "total": total}


def build_losses(config: Config) -> Losses:
    """Returns the losses of an experiment that have a nonzero weight.

    A module is created with the values of `config.model` that it has as attributes, for instance
    `num_identities`. A loss is named by its key, or by the part of its path after the colon.

    Args:
      config: an experiment; `losses` and `model` are read.

    Raises:
      InputError: there is no such loss, it cannot be created, or two have the same name.
    """
    weights = {name: getattr(config.losses, name) for name in LOSSES}
    parts: list[tuple[str, float, Loss]] = []
    for path, weight in (*weights.items(), *config.losses.extra):
        where = "config.losses.extra" if path not in weights else f"config.losses.{path}"
        if not weight:
            continue
        part = find_part(LOSSES, path, where, kind=LOSS, include=is_loss)
        if is_module_class(part):
            part = build_part(part, plain(config.model), {}, f"{where}: {path}")
        name = path.rpartition(":")[2]
        if name in ("total", *(other for other, _, _ in parts)):
            raise InputError(
                f"{where} has {path!r}: there is a loss {name!r} already, and metrics list losses "
                "by name; rename the object"
            )
        parts.append((name, float(weight), part))
    return Losses(tuple(parts))
