"""Checkpoints: the state of training and the config it belongs to, through Orbax."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp

from star_jax.steps import TrainState


def open_manager(workdir: str | Path, keep: int | None) -> ocp.CheckpointManager:
    """The manager of `<workdir>/checkpoints`; it keeps the last `keep` (None: all of them).

    Saves go on behind the run.

    Use as a context manager, so that a save under way ends before the process does.
    """
    return ocp.CheckpointManager(
        (Path(workdir) / "checkpoints").absolute(),
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        item_handlers={
            "variables": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
        },
    )


def save(manager: ocp.CheckpointManager, state: TrainState, config: Mapping[str, Any]) -> None:
    """Starts to save the state and returns; does nothing if its step is saved already."""
    step = int(state.step)
    if step in manager.all_steps():
        return
    manager.save(
        step,
        args=ocp.args.Composite(
            variables=ocp.args.StandardSave(state.variables),
            optimizer=ocp.args.StandardSave(state.opt_state),
            config=ocp.args.JsonSave(dict(config)),
        ),
    )


def restore_state(manager: ocp.CheckpointManager, state: TrainState) -> TrainState | None:
    """The last saved state, with the shapes and the shardings of `state`; None if there is none.

    Raises:
      ValueError: naming the weights of the checkpoint that do not fit.
    """
    step = manager.latest_step()
    if step is None:
        return None
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    check_weights(manager, step, abstract.variables)
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            variables=ocp.args.StandardRestore(abstract.variables),
            optimizer=ocp.args.StandardRestore(abstract.opt_state),
        ),
    )
    return TrainState(
        step=jax.device_put(jax.numpy.int32(step), state.step.sharding),
        params=restored.variables["params"],
        batch_stats=restored.variables["batch_stats"],
        opt_state=restored.optimizer,
    )


def restore_config(manager: ocp.CheckpointManager, step: int) -> ml_collections.ConfigDict:
    """The config that the checkpoint of a step belongs to."""
    args = ocp.args.Composite(config=ocp.args.JsonRestore())
    return ml_collections.ConfigDict(manager.restore(step, args=args).config)


def restore_variables(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
    """The weights and the statistics of a step, with the shapes and the shardings of `abstract`.

    Raises:
      ValueError: naming the weights of the checkpoint that do not fit.
    """
    check_weights(manager, step, abstract)
    args = ocp.args.Composite(variables=ocp.args.StandardRestore(abstract))
    return manager.restore(step, args=args).variables


def check_weights(manager: ocp.CheckpointManager, step: int, expected: Any) -> None:
    """Raises a ValueError that names the weights in which a checkpoint and a network differ."""
    by_path = lambda tree: {  # noqa: E731
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    saved = by_path(manager.item_metadata(step).variables.tree)
    wanted = by_path(expected)
    differences = [
        f"{path} is {saved.get(path, 'absent')}, not {wanted.get(path, 'absent')}"
        for path in sorted(set(saved) | set(wanted))
        if saved.get(path) != wanted.get(path)
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise ValueError(
            f"{manager.directory}/{step} is of another architecture: "
            f"{'; '.join(differences[:3])}{more}. Use the config it was trained with, or another "
            "workdir"
        )
