"""What training starts from: random weights, ImageNet weights, or those of another network."""

import collections
import dataclasses
import logging
from collections.abc import Collection, Iterable
from typing import Any

import jax
from jax.sharding import Mesh

from data_pipelines.errors import InputError
from star_jax.config import Config
from star_jax.models import Star
from star_jax.network import load_weights
from star_jax.state import TrainState, copied, initial_state
from star_jax.trees import name_at, named_leaves
from star_jax.weights import from_imagenet, load_arrays

log = logging.getLogger(__name__)


def starting_state(
    config: Config,
    model: Star,
    steps_per_epoch: int,
    mesh: Mesh,
    trusted: Collection[str] = (),
) -> TrainState:
    """Returns the state before the first step, with the weights that `config.init` names.

    Args:
      config: the experiment.
      model: its network.
      steps_per_epoch: steps of an epoch.
      mesh: of the devices.
      trusted: see `with_network`.

    Raises:
      FileNotFoundError: there are no weights at the path.
      InputError: the weights are damaged, or do not fit the network.
    """
    state = initial_state(config, model, steps_per_epoch, mesh)
    if config.init.backbone:
        return with_backbone(state, model, config)
    if config.init.checkpoint:
        return with_network(state, config, trusted)
    return state


def with_backbone(state: TrainState, model: Star, config: Config) -> TrainState:
    """Returns the state with the ImageNet weights of `config.init.backbone`."""
    arrays = load_arrays(config.init.backbone)
    try:
        variables = from_imagenet(arrays, model, state.variables)
    except InputError as error:
        raise InputError(f"{config.init.backbone}: {error}") from error
    return _with_variables(state, variables)


def with_network(state: TrainState, config: Config, trusted: Collection[str] = ()) -> TrainState:
    """Returns the state with the arrays of the network at `config.init.checkpoint` that fit.

    These are the parameters and statistics of the same name and shape. Logs which modules they are
    of, which arrays of the state stay as they are, and which of the network are not used.

    Args:
      state: the state of random weights.
      config: the experiment.
      trusted: packages whose components the network's own config may name; see `load_weights`.

    Raises:
      FileNotFoundError: there is no network at the path.
      InputError: the network is damaged, no array fits, or fewer than half of the backbone's
        weights do and `config.init.other_backbone` does not allow it.
    """
    path = config.init.checkpoint
    network = load_weights(path, trusted=trusted)
    found = dict(named_leaves(jax.device_get(network.variables)))
    needed = dict(named_leaves(state.variables))
    taken = {name for name in found.keys() & needed if found[name].shape == needed[name].shape}
    weights = {name: x.size for name, x in needed.items() if name.startswith("params/backbone/")}
    fitting = sum(size for name, size in weights.items() if name in taken)
    if not taken or (2 * fitting < sum(weights.values()) and not config.init.other_backbone):
        missing = sorted(needed.keys() - taken, key=lambda name: (name not in weights, name))
        examples = ", ".join(
            f"{name} is {_shape(found.get(name))}, not {_shape(needed[name])}"
            for name in missing[:3]
        )
        allow = ", or set config.init.other_backbone to True to take what fits" if taken else ""
        raise InputError(
            f"config.init.checkpoint is {path}: {len(taken)} of {len(needed)} arrays fit this "
            f"network, and not the backbone ({examples}, ...); use a network with the same "
            f"config.model{allow}"
        )
    log.info("starting from %s, step %d: took %s", path, network.step, _summary(taken))
    log.info("newly initialized: %s", _summary(needed.keys() - taken))
    log.info("left over: %s", _summary(found.keys() - taken))
    return _with_variables(
        state,
        jax.tree_util.tree_map_with_path(
            lambda place, array: found[name_at(place)] if name_at(place) in taken else array,
            state.variables,
        ),
    )


def _with_variables(state: TrainState, variables: dict[str, Any]) -> TrainState:
    """Returns the state with other parameters and statistics, sharded as its own."""
    shardings = jax.tree.map(lambda x: x.sharding, state.variables)
    placed = jax.device_put(variables, shardings)
    average = None if state.ema is None else copied(placed)
    return dataclasses.replace(state, **placed, ema=average)


def _shape(array: Any) -> str:
    return "absent" if array is None else str(list(array.shape))


def _summary(names: Iterable[str]) -> str:
    """Returns the modules of arrays and how many each has: `backbone (90), classifier (1)`."""
    modules = collections.Counter(name.split("/")[1] for name in names)
    return ", ".join(f"{module} ({count})" for module, count in sorted(modules.items())) or "none"
