"""The jitted training and embedding steps over a mesh of devices."""

import functools
import zlib
from collections.abc import Callable
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
from flax.core import DenyList
from jax.sharding import Mesh
from jaxtyping import Array, Float32, Int32, Key, UInt8

from data_pipelines.errors import InputError
from data_pipelines.schema import MODALITIES, NUM_JOINTS
from star_jax import augment
from star_jax.config import check_training
from star_jax.distributed.parallel import batch_shardings, replicated, split_rows, state_shardings
from star_jax.losses import Batch, build_losses
from star_jax.models import Star, StyleSources
from star_jax.optim import learning_rate_factor, make_optimizer, moving_average

Metrics = dict[str, jax.Array]

# The weights of a state: those after its last step, and their moving average.
TRAINED, EMA = WEIGHTS = ("trained", "ema")


@flax.struct.dataclass
class TrainState:
    """The state of training.

    Attributes:
      step: int32[], completed steps.
      params: the parameters of the network.
      batch_stats: running statistics of the batch norms.
      losses: variables of the losses that have any: "params" and other collections.
      opt_state: the state of the optimizer.
      ema: the moving average of `variables`; None if `config.optim.ema_decay` is 0.
    """

    step: Int32[Array, ""]
    params: Any
    batch_stats: Any
    losses: Any
    opt_state: Any
    ema: Any = None

    @property
    def variables(self) -> dict[str, Any]:
        """The variables for `model.apply`."""
        return {"params": self.params, "batch_stats": self.batch_stats}

    @property
    def networks(self) -> dict[str, dict[str, Any]]:
        """The variables by `WEIGHTS`; without a moving average, those that are trained alone."""
        return {TRAINED: self.variables} | ({} if self.ema is None else {EMA: self.ema})

    @property
    def trained(self) -> dict[str, Any]:
        """The parameters that the optimizer updates: those of the network, and of losses if any."""
        return _trained(self.params, self.losses.get("params", {}))


def _trained(params: dict[str, Any], of_losses: dict[str, Any]) -> dict[str, Any]:
    return {**params, "losses": of_losses} if of_losses else params


def copied(variables: dict[str, Any]) -> dict[str, Any]:
    """Returns copies of variables, from which a moving average starts; a step donates both."""
    return jax.tree.map(jnp.copy, variables)


def _apart(trained: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the parameters of the network, and the variables with the losses' parameters."""
    params = {name: value for name, value in trained.items() if name != "losses"}
    return params, {"params": trained["losses"]} if "losses" in trained else {}


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Returns the random key of a named stream; adding a stream does not change the others."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def initial_variables(config: ml_collections.ConfigDict, model: Star) -> Any:
    """Returns initial parameters and statistics of the network, from the config's seed."""
    batch = _zeros(config, 1)
    key = stream(jax.random.key(config.seed), "init")
    return model.init(key, augment.normalize(batch["frames"]), batch["keypoints"])


def batch_shapes(
    config: ml_collections.ConfigDict, num_pairs: int
) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of a `data_pipelines.schema.TrainBatch`."""
    axes = (num_pairs, config.data.clip_length, len(MODALITIES))
    pairs = (num_pairs, len(MODALITIES))
    return {
        "frames": jax.ShapeDtypeStruct((*axes, *config.data.frame_size, 3), jnp.uint8),
        "keypoints": jax.ShapeDtypeStruct((*axes, NUM_JOINTS, 3), jnp.float32),
        "labels": jax.ShapeDtypeStruct((num_pairs,), jnp.int32),
        "cameras": jax.ShapeDtypeStruct(pairs, jnp.int32),
        "positions": jax.ShapeDtypeStruct(pairs, jnp.int32),
    }


def random_batch(config: ml_collections.ConfigDict, num_pairs: int) -> dict[str, np.ndarray]:
    """Returns a `TrainBatch` of noise with K pairs per identity, for measurements."""
    rng = np.random.default_rng(config.seed)
    shapes = batch_shapes(config, num_pairs)
    height, width = config.data.frame_size
    identities = np.arange(num_pairs) // config.data.tracklets_per_identity
    pairs = shapes["positions"].shape
    return {
        "frames": rng.integers(0, 256, shapes["frames"].shape, np.uint8),
        "keypoints": rng.random(shapes["keypoints"].shape, np.float32)
        * np.array([width, height, 1], np.float32),
        "labels": identities.astype(np.int32),
        "cameras": np.zeros(pairs, np.int32),
        "positions": np.arange(2 * num_pairs, dtype=np.int32).reshape(pairs),
    }


def _zeros(config: ml_collections.ConfigDict, num_pairs: int) -> dict[str, jax.Array]:
    shapes = batch_shapes(config, num_pairs)
    return {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}


def initial_losses(config: ml_collections.ConfigDict, model: Star, variables: Any) -> Any:
    """Returns initial variables of the losses, {} if they have none."""
    losses = build_losses(config)
    if not losses.has_state:
        return {}
    batch = _zeros(config, 2)
    style = None
    if config.augment.style:
        style = random_style_sources(jax.random.key(0), 2, config)
    frames = augment.normalize(batch["frames"])
    output = model.apply(variables, frames, batch["keypoints"], style=style)
    key = stream(jax.random.key(config.seed), "losses")
    return losses.init(key, output, batch, jnp.zeros((), jnp.int32))


def abstract_variables(config: ml_collections.ConfigDict, model: Star, mesh: Mesh) -> Any:
    """Returns shapes, dtypes and shardings of the network's variables, for restoring them."""
    return _with_shardings(mesh, jax.eval_shape(lambda: initial_variables(config, model)))


def abstract_state(
    config: ml_collections.ConfigDict, model: Star, steps_per_epoch: int, mesh: Mesh
) -> TrainState:
    """Returns shapes, dtypes and shardings of the training state, without creating arrays."""
    init = lambda: _fresh_state(config, model, steps_per_epoch)  # noqa: E731
    return _with_shardings(mesh, jax.eval_shape(init))


def initial_state(
    config: ml_collections.ConfigDict, model: Star, steps_per_epoch: int, mesh: Mesh
) -> TrainState:
    """Returns the initial state; each device creates only its part of it."""
    init = lambda: _fresh_state(config, model, steps_per_epoch)  # noqa: E731
    shardings = jax.tree.map(lambda x: x.sharding, _with_shardings(mesh, jax.eval_shape(init)))
    return jax.jit(init, out_shardings=shardings)()  # `init` has been traced


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
    losses = initial_losses(config, model, variables)
    optimizer = make_optimizer(config.optim, steps_per_epoch)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        losses=losses,
        opt_state=optimizer.init(_trained(params, losses.get("params", {}))),
        ema=copied(variables) if config.optim.ema_decay else None,
    )


def augmented(
    key: Key[Array, ""], batch: Batch, config: ml_collections.ConfigDict
) -> tuple[Float32[Array, "B T 2 H W 3"], Float32[Array, "B T 2 17 3"]]:
    """Returns frames and keypoints after all parts of the augmentation, in order.

    Each part has random numbers of its own for each modality.

    Args:
      key: random key.
      batch: a `data_pipelines.schema.TrainBatch` of B pairs.
      config: a `config.augment`.

    Returns:
      Normalized frames, float32[B, T, 2, H, W, 3], and keypoints, float32[B, T, 2, 17, 3].

    Raises:
      InputError: there is no such part, or one returns other shapes.
    """
    clips = []
    for number, modality in enumerate(MODALITIES):
        modality_key = stream(key, modality)
        clip = batch["frames"][:, :, number], batch["keypoints"][:, :, number]
        for name in config.parts:
            # "crop and flip" draws what it drew before there were parts.
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


def random_style_sources(
    key: Key[Array, ""], num_pairs: int, config: ml_collections.ConfigDict
) -> StyleSources:
    """Draws the style sources of each frame: a permutation within each modality, and one across.

    Args:
      key: random key.
      num_pairs: B.
      config: an experiment.
    """
    visible, infrared = jnp.arange(num_pairs * config.data.clip_length * 2).reshape(-1, 2).T

    def drawn(name: str) -> list[jax.Array]:
        named = stream(key, name)
        return [
            jax.random.permutation(jax.random.fold_in(named, i), frames)
            for i, frames in enumerate((visible, infrared))
        ]

    same, other = drawn("same"), drawn("other")
    return StyleSources(
        same=jnp.stack(same, axis=1).ravel(),
        other=jnp.stack(other[::-1], axis=1).ravel(),
        stages=tuple(config.augment.style_stages),
    )


def check_style(config: ml_collections.ConfigDict, model: Star) -> None:
    """Raises an InputError if the backbone lacks the stages after which to disturb style."""
    stages, found = tuple(config.augment.style_stages), model.backbone.num_stages
    if config.augment.style and max(stages) > found:
        use = f"stages up to {found}" if found > 1 else "--config.augment.style=False"
        raise InputError(
            f"config.augment.style_stages is {stages}: the backbone {config.model.backbone} has "
            f"{found or 'no'} stages; use {use}"
        )


def make_train_step(
    config: ml_collections.ConfigDict, model: Star, steps_per_epoch: int, mesh: Mesh
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


@functools.cache  # evaluations during training share one compiled program
def make_embed_step(
    model: Star, modality: str, mesh: Mesh, flip: bool = False
) -> Callable[..., Float32[Array, "B C"]]:
    """Returns the jitted embedding step of a modality.

    Args:
      model: the network.
      modality: "visible" or "infrared".
      mesh: the device mesh.
      flip: whether to average the embeddings of each clip and its mirror image.

    Returns:
      A function of variables, frames uint8[B, T, H, W, 3] and keypoints float32[B, T, 17, 3] that
      returns the embeddings, float32[B, C], split over the devices by rows. Their length is 1, and
      less if they are averages.
    """

    def embed(variables: Any, frames: jax.Array, keypoints: jax.Array) -> jax.Array:
        frames = augment.normalize(frames)
        output: Any = model.apply(variables, frames, keypoints, modality=modality, train=False)
        return output.embedding

    @functools.partial(
        jax.jit,
        in_shardings=(None, split_rows(mesh), split_rows(mesh)),
        out_shardings=split_rows(mesh),
    )
    def embed_step(
        variables: Any, frames: UInt8[Array, "B T H W 3"], keypoints: Float32[Array, "B T 17 3"]
    ) -> Float32[Array, "B C"]:
        embedding = embed(variables, frames, keypoints)
        if flip:
            mirrored = embed(variables, *augment.mirror(frames, keypoints))
            embedding = (embedding + mirrored) / 2
        return embedding

    return embed_step
