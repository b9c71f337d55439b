"""Checkpoints: the state of training and the config it belongs to, through Orbax."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import orbax.checkpoint as ocp

from data_pipelines.errors import InputError
from data_pipelines.remote import absolute
from star_jax.processes import all_agree, is_first, wait_for_all
from star_jax.steps import TrainState

log = logging.getLogger(__name__)


class OtherNetworkError(InputError):
    """A checkpoint is of another architecture."""


def open_manager(workdir: str | os.PathLike[str], keep: int | None) -> ocp.CheckpointManager:
    """The manager of `<workdir>/checkpoints`; it keeps the last `keep` (None: all of them).

    Saves go on behind the run.

    Use as a context manager, so that a save under way ends before the process does.
    """
    return ocp.CheckpointManager(
        absolute(workdir) / "checkpoints",
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        item_handlers={
            "variables": ocp.StandardCheckpointHandler(),
            "optimizer": ocp.StandardCheckpointHandler(),
            "config": ocp.JsonCheckpointHandler(),
        },
    )


def save(manager: ocp.CheckpointManager, state: TrainState, config: Mapping[str, Any]) -> None:
    """Starts to save the state and returns; does nothing if its step is saved already.

    Raises:
      OSError: this checkpoint, or the one before, which was written meanwhile, could not be saved.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    with _naming_the_failure(manager):
        manager.save(
            step,
            args=ocp.args.Composite(
                variables=ocp.args.StandardSave(state.variables),
                optimizer=ocp.args.StandardSave(state.opt_state),
                config=ocp.args.JsonSave(dict(config)),
            ),
        )


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is written; raises as `save` does."""
    with _naming_the_failure(manager):
        manager.wait_until_finished()


def restore_state(manager: ocp.CheckpointManager, abstract: TrainState) -> TrainState | None:
    """The last saved state that is intact, with the shapes and the shardings of `abstract`.

    A checkpoint that cannot be read twice, by any of the processes, is damaged. It is told of and
    put aside, as `<step>.damaged`, for the run will save that step again.

    Returns:
      None if there is no checkpoint.

    Raises:
      ValueError: naming the weights of the checkpoint that do not fit.
      OSError: there are checkpoints, but all are damaged.
    """
    damaged: list[int] = []
    for step in sorted(manager.all_steps(), reverse=True):
        for _ in range(2):  # what a busy storage refuses once is not damaged
            restored, reason = _try_to_restore(manager, step, abstract)
            if all_agree(restored is not None):
                _put_aside(manager, damaged)
                return restored
        log.warning(
            "%s is damaged (%s); going on from the checkpoint before",
            manager.directory / str(step),
            reason,
        )
        damaged.append(step)
    if damaged:
        raise OSError(
            f"{manager.directory}: all checkpoints are damaged ({', '.join(map(str, damaged))}); "
            "copy them from elsewhere, or remove them to begin anew"
        )
    return None


def _try_to_restore(
    manager: ocp.CheckpointManager, step: int, abstract: TrainState
) -> tuple[TrainState | None, str]:
    """Returns the state of a step, or None and why it cannot be read."""
    try:
        return _restore(manager, step, abstract), "another process cannot read it"
    except (OtherNetworkError, MemoryError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        return None, " ".join(str(error).split())[:200]


def _restore(manager: ocp.CheckpointManager, step: int, abstract: TrainState) -> TrainState:
    check_weights(manager, step, abstract.variables)
    restored = manager.restore(
        step,
        args=ocp.args.Composite(
            variables=ocp.args.StandardRestore(abstract.variables),
            optimizer=ocp.args.StandardRestore(abstract.opt_state),
            config=ocp.args.JsonRestore(),
        ),
    )
    return TrainState(
        step=jax.device_put(jax.numpy.int32(step), abstract.step.sharding),
        params=restored.variables["params"],
        batch_stats=restored.variables["batch_stats"],
        opt_state=restored.optimizer,
    )


def _put_aside(manager: ocp.CheckpointManager, steps: Sequence[int]) -> None:
    if steps and is_first():
        for step in steps:
            aside = manager.directory / f"{step}.damaged"
            aside.rmtree(missing_ok=True)
            (manager.directory / str(step)).rename(aside)
    if steps:
        wait_for_all("damaged checkpoints are put aside")
    manager.reload()


@contextlib.contextmanager
def _naming_the_failure(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # a full disk is an OSError to one library, not to another
        raise OSError(
            f"{manager.directory}: a checkpoint could not be written "
            f"({' '.join(str(error).split())[:300]}). Those before it are whole; see to the disk, "
            "and the same command continues from the last of them"
        ) from error


def restore_config(manager: ocp.CheckpointManager, step: int) -> ml_collections.ConfigDict:
    """The config that the checkpoint of a step belongs to.

    Raises:
      ValueError: the checkpoint is damaged.
    """
    args = ocp.args.Composite(config=ocp.args.JsonRestore())
    with _naming_the_damage(manager, step):
        return ml_collections.ConfigDict(manager.restore(step, args=args).config)


def restore_variables(manager: ocp.CheckpointManager, step: int, abstract: Any) -> Any:
    """The weights and the statistics of a step, with the shapes and the shardings of `abstract`.

    Raises:
      ValueError: naming the weights of the checkpoint that do not fit, or it is damaged.
    """
    args = ocp.args.Composite(variables=ocp.args.StandardRestore(abstract))
    with _naming_the_damage(manager, step):
        check_weights(manager, step, abstract)
        return manager.restore(step, args=args).variables


@contextlib.contextmanager
def _naming_the_damage(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    try:
        yield
    except OtherNetworkError:
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds
        raise InputError(
            f"{manager.directory / str(step)}: damaged, or no checkpoint "
            f"({type(error).__name__}: {' '.join(str(error).split())[:200]}); take another one"
        ) from error


def check_weights(manager: ocp.CheckpointManager, step: int, expected: Any) -> None:
    """Raises an OtherNetworkError that names the weights that differ."""
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
        raise OtherNetworkError(
            f"{manager.directory}/{step} is of another architecture: "
            f"{'; '.join(differences[:3])}{more}. Use the config it was trained with, or another "
            "workdir"
        )
