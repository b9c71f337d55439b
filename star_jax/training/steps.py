"""The jitted training step over a mesh of devices."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax.core import DenyList
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Key

from data_pipelines.errors import InputError
from data_pipelines.schema import MODALITIES
from star_jax import augment
from star_jax.augment import random_style_sources
from star_jax.config import Config
from star_jax.config.checks import check_training
from star_jax.config.experiment import AugmentConfig
from star_jax.distributed.parallel import batch_shardings, replicated
from star_jax.losses import Batch, build_losses
from star_jax.models import Star
from star_jax.optim import learning_rate_factor, make_optimizer, moving_average
from star_jax.state import TrainState, abstract_state
from star_jax.streams import stream

Metrics = dict[str, jax.Array]


def augmented(
    key: Key[Array, ""], batch: Batch, config: AugmentConfig
) -> tuple[Float32[Array, "B T 2 H W 3"], Float32[Array, "B T 2 17 3"]]:
    """Returns frames and keypoints after all augmentations, in order.

    Each augmentation has its own random numbers for each modality.

    Args:
      key: random key.
      batch: a `data_pipelines.schema.TrainBatch` of B pairs.
      config: a `config.augment`.

    Returns:
      Normalized frames, float32[B, T, 2, H, W, 3], and keypoints, float32[B, T, 2, 17, 3].

    Raises:
      InputError: there is no such augmentation, or one returns other shapes.
    """
    clips = []
    for number, modality in enumerate(MODALITIES):
        modality_key = stream(key, modality)
        clip = batch["frames"][:, :, number], batch["keypoints"][:, :, number]
        for name in config.parts:
            # "crop and flip" draws what it drew before augmentations were components.
            part_key = stream(modality_key, name.replace("_", " "))
            shapes = jax.tree.map(jnp.shape, clip)
            clip = augment.find_augmentation(name)(part_key, *clip, modality, config)
            if (found := jax.tree.map(jnp.shape, clip)) != shapes:
                raise InputError(
                    f"config.augment.parts has {name!r}: it returns {found}, not frames and "
                    f"keypoints of the shapes {shapes}"
                )
        clips.append(clip)
    frames, keypoints = (jnp.stack(both, axis=2) for both in zip(*clips, strict=True))
    return frames, keypoints


def check_style(config: Config, model: Star) -> None:
    """Raises an InputError if the backbone lacks the stages after which to disturb style."""
    stages, found = config.augment.style_stages, model.backbone.num_stages
    if config.augment.style and max(stages) > found:
        use = f"stages up to {found}" if found > 1 else "--config.augment.style=False"
        raise InputError(
            f"config.augment.style_stages is {stages}: the backbone {config.model.backbone} has "
            f"{found or 'no'} stages; use {use}"
        )


def make_train_step(
    config: Config, model: Star, steps_per_epoch: int, mesh: Mesh
) -> jax.stages.Wrapped:
    """Returns the jitted training step.

    Returns:
      A function of a state (which is donated) and a global `TrainBatch`. It returns the new state
      and metrics: the losses by name (`loss/total`, ...), `learning_rate` and `gradient_norm`.

    Raises:
      InputError: a loss cannot be loaded, the backbone lacks the stages to disturb style, or
        values of the config exclude each other.
    """
    check_training(config)
    check_style(config, model)
    optimizer = make_optimizer(config.optim, steps_per_epoch)
    losses = build_losses(config)

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        frames, keypoints = augmented(stream(key, "augment"), batch, config.augment)
        style = None
        if config.augment.style:
            style = random_style_sources(stream(key, "style"), len(frames), config)

        def loss(trained: Any) -> tuple[jax.Array, tuple[Metrics, Any, Any]]:
            params, of_losses = _apart(trained)
            output, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                frames,
                keypoints,
                train=True,
                style=style,
                mutable=["batch_stats"],
                rngs={"dropout": stream(key, "dropout")},
            )
            values, kept = losses.apply(
                {**state.losses, **of_losses}, output, batch, state.step, mutable=DenyList("params")
            )
            return values["total"], (values, updates["batch_stats"], kept)

        gradients, (values, batch_stats, kept) = jax.grad(loss, has_aux=True)(state.trained)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.trained)
        params, of_losses = _apart(optax.apply_updates(state.trained, updates))
        metrics = {f"loss/{name}": value for name, value in values.items()}
        metrics["learning_rate"] = config.optim.lr * learning_rate_factor(
            state.step, config.optim, steps_per_epoch
        )
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        average = None
        if config.optim.ema_decay:
            variables = {"params": params, "batch_stats": batch_stats}
            average = moving_average(state.ema, variables, state.step, config.optim)
        new_state = TrainState(
            step=state.step + 1,
            params=params,
            batch_stats=batch_stats,
            losses={**kept, **of_losses},
            opt_state=opt_state,
            ema=average,
        )
        return new_state, metrics

    abstract = abstract_state(config, model, steps_per_epoch, mesh)
    state_sharding = jax.tree.map(lambda x: x.sharding, abstract)
    return jax.jit(
        train_step,
        in_shardings=(state_sharding, batch_shardings(mesh)),
        out_shardings=(state_sharding, replicated(mesh)),
        donate_argnums=0,
    )


def _apart(trained: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters of the network, and the variables with the losses' parameters."""
    params = {name: value for name, value in trained.items() if name != "losses"}
    return params, {"params": trained["losses"]} if "losses" in trained else {}
