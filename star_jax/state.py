"""The state of training, and the shapes of what goes into it."""

from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int32

from data_pipelines.schema import MODALITIES, NUM_JOINTS
from star_jax import augment
from star_jax.augment import random_style_sources
from star_jax.config import Config
from star_jax.distributed.parallel import state_shardings
from star_jax.losses import build_losses
from star_jax.models import Star
from star_jax.optim import make_optimizer
from star_jax.streams import stream

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
        return trained_of(self.params, self.losses.get("params", {}))


def trained_of(params: dict[str, Any], of_losses: dict[str, Any]) -> dict[str, Any]:
    """Returns the parameters that the optimizer updates, of the network and of losses."""
    return {**params, "losses": of_losses} if of_losses else params


def copied(variables: dict[str, Any]) -> dict[str, Any]:
    """Returns copies of variables, from which a moving average starts; a step donates both."""
    copies: dict[str, Any] = jax.tree.map(jnp.copy, variables)
    return copies


def initial_variables(config: Config, model: Star) -> Any:
    """Returns initial parameters and statistics of the network, from the config's seed."""
    batch = _zeros(config, 1)
    key = stream(jax.random.key(config.seed), "init")
    return model.init(key, augment.normalize(batch["frames"]), batch["keypoints"])


def batch_shapes(config: Config, num_pairs: int) -> dict[str, jax.ShapeDtypeStruct]:
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


def random_batch(config: Config, num_pairs: int) -> dict[str, np.ndarray]:
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


def _zeros(config: Config, num_pairs: int) -> dict[str, jax.Array]:
    shapes = batch_shapes(config, num_pairs)
    return {name: jnp.zeros(x.shape, x.dtype) for name, x in shapes.items()}


def initial_losses(config: Config, model: Star, variables: Any) -> Any:
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


def abstract_variables(config: Config, model: Star, mesh: Mesh) -> Any:
    """Returns shapes, dtypes and shardings of the network's variables, for restoring them."""
    return _with_shardings(mesh, jax.eval_shape(lambda: initial_variables(config, model)))


def abstract_state(config: Config, model: Star, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns shapes, dtypes and shardings of the training state, without creating arrays."""
    init = lambda: _fresh_state(config, model, steps_per_epoch)  # noqa: E731
    state: TrainState = _with_shardings(mesh, jax.eval_shape(init))
    return state


def initial_state(config: Config, model: Star, steps_per_epoch: int, mesh: Mesh) -> TrainState:
    """Returns the initial state; each device creates only its part of it."""
    init = lambda: _fresh_state(config, model, steps_per_epoch)  # noqa: E731
    shardings = jax.tree.map(lambda x: x.sharding, _with_shardings(mesh, jax.eval_shape(init)))
    state: TrainState = jax.jit(init, out_shardings=shardings)()  # `init` has been traced
    return state


def _with_shardings(mesh: Mesh, shapes: Any) -> Any:
    return jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        shapes,
        state_shardings(mesh, shapes),
    )


def _fresh_state(config: Config, model: Star, steps_per_epoch: int) -> TrainState:
    variables = initial_variables(config, model)
    losses = initial_losses(config, model, variables)
    optimizer = make_optimizer(config.optim, steps_per_epoch)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        losses=losses,
        opt_state=optimizer.init(trained_of(params, losses.get("params", {}))),
        ema=copied(variables) if config.optim.ema_decay else None,
    )
