"""The jitted steps: one that trains and one that embeds, over a mesh of devices."""

import functools
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import optax
from jax.sharding import Mesh

from star_jax import augment
from star_jax.distributed.parallel import batch_shardings, replicated, split_rows, state_shardings
from star_jax.losses import star_losses
from star_jax.models import Star, StyleSources
from star_jax.optim import learning_rate_factor, make_optimizer

Metrics = dict[str, jax.Array]


@flax.struct.dataclass
class TrainState:
    """All that training changes.

    Attributes:
      step: int32[], steps done.
      params: the parameters.
      batch_stats: running statistics of the batch norms.
      opt_state: of the optimizer.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What `model.apply` takes."""
        return {"params": self.params, "batch_stats": self.batch_stats}


def stream(key: jax.Array, name: str) -> jax.Array:
    """The random key of a named stream, so that a new stream changes no other's numbers."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def initial_variables(config: ml_collections.ConfigDict, model: Star) -> Any:
    """Fresh parameters and statistics of the network, from the config's seed."""
    frames = jnp.zeros((2, config.data.clip_length, *config.data.frame_size, 3))
    keypoints = jnp.zeros((2, config.data.clip_length, 17, 3))
    key = stream(jax.random.key(config.seed), "init")
    return model.init(key, frames, keypoints, modality="paired")


def abstract_variables(config: ml_collections.ConfigDict, model: Star, mesh: Mesh) -> Any:
    """Shapes, dtypes and shardings of the network's variables, for restoring them."""
    return _with_shardings(mesh, jax.eval_shape(lambda: initial_variables(config, model)))


def abstract_state(
    config: ml_collections.ConfigDict, model: Star, steps_per_epoch: int, mesh: Mesh
) -> TrainState:
    """Shapes, dtypes and shardings of the training state; makes no array."""
    init = lambda: _fresh_state(config, model, steps_per_epoch)  # noqa: E731
    return _with_shardings(mesh, jax.eval_shape(init))


def initial_state(
    config: ml_collections.ConfigDict, model: Star, steps_per_epoch: int, mesh: Mesh
) -> TrainState:
    """A fresh state; each device makes only its part of it."""
    shardings = jax.tree.map(
        lambda x: x.sharding, abstract_state(config, model, steps_per_epoch, mesh)
    )
    init = lambda: _fresh_state(config, model, steps_per_epoch)  # noqa: E731
    return jax.jit(init, out_shardings=shardings)()


def _with_shardings(mesh: Mesh, shapes: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def _fresh_state(
    config: ml_collections.ConfigDict, model: Star, steps_per_epoch: int
) -> TrainState:
    variables = initial_variables(config, model)
    optimizer = make_optimizer(config.optim, steps_per_epoch)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=optimizer.init(variables["params"]),
    )


def augmented_pairs(
    key: jax.Array, batch: Mapping[str, Any], config: ml_collections.ConfigDict
) -> tuple[jax.Array, jax.Array]:
    """Augments both modalities and lays them out as the network takes pairs.

    Args:
      key: random key.
      batch: a `data_pipelines.schema.TrainBatch` of B pairs.
      config: a `config.augment`.

    Returns:
      Normalised frames, float32[2 * B, T, H, W, 3], and keypoints, float32[2 * B, T, 17, 3]; even
      rows are visible, odd rows infrared.
    """
    pairs = []
    for modality in ("visible", "infrared"):
        modality_key = stream(key, modality)
        frames, keypoints = augment.random_crop_and_flip(
            stream(modality_key, "crop and flip"),
            batch[modality]["frames"],
            batch[modality]["keypoints"],
            padding=config.padding,
            flip_probability=config.flip_probability,
            per_frame=config.per_frame,
            move_keypoints=config.move_keypoints,
        )
        frames = augment.random_erasing(
            stream(modality_key, "erasing"),
            augment.normalise(frames),
            probability=config.erasing_probability,
            per_frame=config.per_frame,
        )
        if config.style:
            frames = augment.style_gains(stream(modality_key, "style"), frames, modality)
        pairs.append((frames, keypoints))
    interleave = lambda a, b: jnp.stack([a, b], axis=1).reshape(-1, *a.shape[1:])  # noqa: E731
    frames, keypoints = (interleave(*both) for both in zip(*pairs, strict=True))
    return frames, keypoints


def random_style_sources(key: jax.Array, num_pairs: int, clip_length: int) -> StyleSources:
    """Draws whose style each frame takes: a permutation within, and one across, the modalities."""
    frames = jnp.arange(num_pairs * clip_length * 2)
    modalities = frames[0::2], frames[1::2]

    def drawn(name: str) -> list[jax.Array]:
        named = stream(key, name)
        return [
            jax.random.permutation(jax.random.fold_in(named, i), indices)
            for i, indices in enumerate(modalities)
        ]

    def in_order(visible: jax.Array, infrared: jax.Array) -> jax.Array:
        return jnp.stack([visible, infrared], axis=1).ravel()

    same, other = drawn("same"), drawn("other")
    return StyleSources(same=in_order(*same), other=in_order(other[1], other[0]))


def make_train_step(
    config: ml_collections.ConfigDict, model: Star, steps_per_epoch: int, mesh: Mesh
) -> jax.stages.Wrapped:
    """The jitted training step.

    Returns:
      A function of a state (which it consumes) and a global `TrainBatch`; it returns the new state
      and metrics: the losses by name (`loss/total`, ...), `learning_rate` and `gradient_norm`.
    """
    optimizer = make_optimizer(config.optim, steps_per_epoch)

    def train_step(state: TrainState, batch: Mapping[str, Any]) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        frames, keypoints = augmented_pairs(stream(key, "augment"), batch, config.augment)
        style = None
        if config.augment.style:
            num_pairs, clip_length = batch["visible"]["frames"].shape[:2]
            style = random_style_sources(stream(key, "style"), num_pairs, clip_length)

        def loss(params: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            output, updates = model.apply(
                {"params": params, "batch_stats": state.batch_stats},
                frames,
                keypoints,
                modality="paired",
                train=True,
                style=style,
                mutable=["batch_stats"],
                rngs={"dropout": stream(key, "dropout")},
            )
            losses = star_losses(output, batch["labels"], config.losses)
            return losses["total"], (losses, updates["batch_stats"])

        gradients, (losses, batch_stats) = jax.grad(loss, has_aux=True)(state.params)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        metrics = {f"loss/{name}": value for name, value in losses.items()}
        metrics["learning_rate"] = config.optim.lr * learning_rate_factor(
            state.step, config.optim, steps_per_epoch
        )
        metrics["gradient_norm"] = optax.tree.norm(gradients)
        new_state = TrainState(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            batch_stats=batch_stats,
            opt_state=opt_state,
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


@functools.cache  # evaluations during training share one compiled program
def make_embed_step(model: Star, modality: str, mesh: Mesh) -> Callable[..., jax.Array]:
    """The jitted embedding step of a modality.

    Returns:
      A function of variables, frames uint8[B, T, H, W, 3] and keypoints float32[B, T, 17, 3] that
      returns the embeddings, float32[B, C], split over the devices as the rows are.
    """

    @functools.partial(
        jax.jit,
        in_shardings=(None, split_rows(mesh), split_rows(mesh)),
        out_shardings=split_rows(mesh),
    )
    def embed_step(variables: Any, frames: jax.Array, keypoints: jax.Array) -> jax.Array:
        frames = augment.normalise(frames)
        output: Any = model.apply(variables, frames, keypoints, modality=modality, train=False)
        return output.embedding

    return embed_step
