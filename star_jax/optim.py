"""The optimizer of the published recipe: PyTorch's SGD, two groups, a schedule by epochs."""

from typing import Any

import jax.numpy as jnp
import ml_collections
import optax
from jaxtyping import Array, Float32, Int32


def learning_rate_factor(
    step: Int32[Array, ""], config: ml_collections.ConfigDict, steps_per_epoch: int
) -> Float32[Array, ""]:
    """Returns the factor by which both learning rates are multiplied at a step.

    Rises linearly over the warm-up epochs, then drops to a tenth at each decay epoch; constant
    within an epoch, as in the authors' code.

    Args:
      step: int32[], completed steps.
      config: a `config.optim`.
      steps_per_epoch: steps of an epoch.

    Returns:
      float32[].
    """
    epoch = step // steps_per_epoch
    warmup = jnp.minimum((epoch + 1) / max(config.warmup_epochs, 1), 1.0)
    decays = sum((epoch >= start).astype(jnp.float32) for start in config.decay_epochs)
    return (warmup * 0.1 ** jnp.float32(decays)).astype(jnp.float32)


def make_optimizer(
    config: ml_collections.ConfigDict, steps_per_epoch: int
) -> optax.GradientTransformation:
    """Returns SGD with Nesterov momentum and weight decay added to the gradient, as in PyTorch.

    Gradients whose norm exceeds `config.clip_norm`, if that is not 0, are first scaled down to it.
    Parameters under `backbone` use `config.backbone_lr`, all others `config.lr`.

    Args:
      config: a `config.optim`.
      steps_per_epoch: steps of an epoch.
    """

    def scaled(learning_rate: float) -> optax.GradientTransformation:
        return optax.scale_by_learning_rate(
            lambda step: learning_rate * learning_rate_factor(step, config, steps_per_epoch)
        )

    def groups(params: dict[str, Any]) -> dict[str, str]:
        return {name: "backbone" if name == "backbone" else "new" for name in params}

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(config.momentum, nesterov=True),
        optax.partition({"backbone": scaled(config.backbone_lr), "new": scaled(config.lr)}, groups),
    )
