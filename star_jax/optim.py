"""The optimizer: its rule, two groups of parameters, and the learning rate by steps.

Rules and schedules are components: `config.optim.optimizer` is a key of `OPTIMIZERS` or
`package.module:object`, `config.optim.schedule` one of `SCHEDULES`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float32, Int32

from data_pipelines.parts import find_part, is_function_of
from star_jax.config.experiment import OptimConfig


class Optimizer(Protocol):
    """How gradients become updates, before they are multiplied by the learning rates."""

    def __call__(self, config: OptimConfig, /) -> tuple[optax.GradientTransformation, ...]:
        """Returns the transformations of the gradients, in order; a `config.optim` is given."""


class Schedule(Protocol):
    """The factor by which both learning rates are multiplied, apart from the warm-up."""

    def __call__(
        self, step: Int32[Array, ""], config: OptimConfig, steps_per_epoch: int, /
    ) -> Float32[Array, ""]:
        """Returns the factor, float32[].

        Args:
          step: int32[], completed steps.
          config: a `config.optim`.
          steps_per_epoch: steps of an epoch.
        """


def sgd(config: OptimConfig) -> tuple[optax.GradientTransformation, ...]:
    """Returns PyTorch's SGD: weight decay is added to the gradient, then Nesterov momentum."""
    return (
        optax.add_decayed_weights(config.weight_decay),
        optax.trace(config.momentum, nesterov=True),
    )


def adam(config: OptimConfig) -> tuple[optax.GradientTransformation, ...]:
    """Returns PyTorch's Adam: weight decay is added to the gradient (Kingma & Ba, 1412.6980)."""
    return optax.add_decayed_weights(config.weight_decay), optax.scale_by_adam(b1=config.momentum)


def adamw(config: OptimConfig) -> tuple[optax.GradientTransformation, ...]:
    """Returns AdamW: decoupled weight decay (Loshchilov & Hutter, 1711.05101)."""
    return optax.scale_by_adam(b1=config.momentum), optax.add_decayed_weights(config.weight_decay)


OPTIMIZERS: Mapping[str, Optimizer] = {"sgd": sgd, "adam": adam, "adamw": adamw}


def steps(step: Int32[Array, ""], config: OptimConfig, steps_per_epoch: int) -> Float32[Array, ""]:
    """Returns the factor that drops to a tenth at each decay epoch."""
    epoch = step // steps_per_epoch
    decays = sum((epoch >= start).astype(jnp.float32) for start in config.decay_epochs)
    return jnp.power(0.1, jnp.float32(decays))


def cosine(step: Int32[Array, ""], config: OptimConfig, steps_per_epoch: int) -> Float32[Array, ""]:
    """Returns the factor that falls from 1 after the warm-up to 0 after the last step."""
    warmup = config.warmup_epochs * steps_per_epoch
    decaying = max(config.epochs * steps_per_epoch - warmup, 1)
    share = jnp.clip((step - warmup).astype(jnp.float32) / decaying, 0.0, 1.0)
    return (1.0 + jnp.cos(jnp.pi * share)) / 2.0


SCHEDULES: Mapping[str, Schedule] = {"steps": steps, "cosine": cosine}


def learning_rate_factor(
    step: Int32[Array, ""], config: OptimConfig, steps_per_epoch: int
) -> Float32[Array, ""]:
    """Returns the factor by which both learning rates are multiplied at a step.

    Rises linearly over the warm-up epochs, constant within an epoch, as in the authors' code; this
    is multiplied by the factor of the schedule.

    Args:
      step: int32[], completed steps.
      config: a `config.optim`.
      steps_per_epoch: steps of an epoch.

    Returns:
      float32[].
    """
    schedule = find_schedule(config.schedule)
    epoch = step // steps_per_epoch
    warmup = jnp.minimum((epoch + 1) / max(config.warmup_epochs, 1), 1.0)
    return (warmup * schedule(step, config, steps_per_epoch)).astype(jnp.float32)


def find_schedule(name: str) -> Schedule:
    """Returns the schedule of a name or path; raises an InputError if there is none."""
    return find_part(
        SCHEDULES,
        name,
        "config.optim.schedule",
        kind="a function of (step, config, steps_per_epoch)",
        include=lambda part: is_function_of(part, "step", "config", "steps_per_epoch"),
    )


def moving_average(
    average: Any, variables: Any, step: Int32[Array, ""], config: OptimConfig
) -> Any:
    """Returns the exponential moving average of variables after one more step.

    The decay is `config.ema_decay`, or (1 + n) / (10 + n) if that is less, so that the initial
    variables, which are random, are soon forgotten.

    Args:
      average: the one before; at first, the initial variables.
      variables: parameters and running statistics after the step, averaged alike.
      step: int32[], steps completed before this one, n.
      config: a `config.optim`.
    """
    decay = jnp.minimum(jnp.float32(config.ema_decay), (1 + step) / (10 + step))
    return optax.incremental_update(variables, average, 1 - decay)


def make_optimizer(config: OptimConfig, steps_per_epoch: int) -> optax.GradientTransformation:
    """Returns the optimizer that `config` names, with the learning rates.

    Gradients whose norm exceeds `config.clip_norm`, if that is not 0, are first scaled down to it.
    Parameters under `backbone` use `config.backbone_lr`, all others `config.lr`.

    Args:
      config: a `config.optim`.
      steps_per_epoch: steps of an epoch.

    Raises:
      InputError: there is no such optimizer or schedule.
    """
    find_schedule(config.schedule)  # raises here, before anything is compiled
    optimizer = find_part(
        OPTIMIZERS,
        config.optimizer,
        "config.optim.optimizer",
        kind="a function of config.optim",
        include=lambda part: is_function_of(part, "config"),
    )

    def scaled(learning_rate: float) -> optax.GradientTransformation:
        return optax.scale_by_learning_rate(
            lambda step: learning_rate * learning_rate_factor(step, config, steps_per_epoch)
        )

    def groups(params: dict[str, Any]) -> dict[str, str]:
        return {name: "backbone" if name == "backbone" else "new" for name in params}

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    # In one chain, so that the states of SGD are where they are in earlier checkpoints.
    return optax.chain(
        clip,
        *optimizer(config),
        optax.partition({"backbone": scaled(config.backbone_lr), "new": scaled(config.lr)}, groups),
    )
