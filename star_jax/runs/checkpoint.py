"""Checkpoints of the training state, saved by Orbax, with checksums.

Besides the arrays, each checkpoint contains a manifest: the config, the fingerprint of the dataset,
and the shape and checksum of every array. It distinguishes checkpoints that do not fit the network,
are temporarily unreadable, or are damaged.
"""

import contextlib
import itertools
import logging
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from data_pipelines.errors import DivergedError, InputError
from data_pipelines.io import remote
from star_jax.config import Config
from star_jax.distributed.processes import is_first, largest, wait_for_all
from star_jax.runs.checksums import checksums
from star_jax.runs.manifest import (
    DamagedError,
    Manifest,
    MisfitError,
    check_fit,
    check_step,
    read_manifest,
    sealed,
    structure_of,
)
from star_jax.state import TRAINED, TrainState
from star_jax.stored import read_config
from star_jax.trees import find_unusable

log = logging.getLogger(__name__)

T = TypeVar("T")

# Pauses between attempts to read, for storage that is unavailable for up to a minute.
PAUSES = (1.0, 3.0, 6.0, 10.0, 15.0, 30.0)  # seconds


@contextlib.contextmanager
def open_manager(
    workdir: str | os.PathLike[str], keep: int | None
) -> Iterator[ocp.CheckpointManager]:
    """Opens the manager of `<workdir>/checkpoints`, which keeps the last `keep` (None: all).

    Saves run in the background; the end of the `with` block waits for the last one.

    Raises:
      OSError: the last checkpoint could not be saved.
    """
    manager = ocp.CheckpointManager(
        remote.absolute(workdir) / "checkpoints",
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, create=True),
        item_handlers={
            "variables": _array_handler(),
            "optimizer": _array_handler(),
            "ema": _array_handler(),
            "manifest": ocp.JsonCheckpointHandler(),
        },
    )
    try:
        yield manager
    except BaseException:
        with contextlib.suppress(Exception):  # the first error is the cause
            manager.close()
        raise
    with _naming_the_failure(manager):
        manager.close()


def _array_handler() -> ocp.PyTreeCheckpointHandler:
    """Returns a handler of arrays; process 0 writes those that all devices hold.

    By default, each device would write its slice of them, which compiles one program per shape and
    device, hundreds during the first save.
    """
    return ocp.PyTreeCheckpointHandler(
        type_handler_registry=ocp.type_handlers.create_type_handler_registry(
            (jax.Array, ocp.type_handlers.ArrayHandler(use_replica_parallel=False)),
            (np.ndarray, ocp.type_handlers.NumpyHandler()),
        )
    )


def last_step(workdir: epath.Path) -> int:
    """Returns the step of a run's last checkpoint, 0 if there is none; reads only its name."""
    folder = workdir / "checkpoints"
    with remote.naming_failures(workdir):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    return max((int(name) for name in names if name.isdecimal()), default=0)


def save(
    manager: ocp.CheckpointManager, state: TrainState, config: Mapping[str, Any], dataset: str
) -> None:
    """Starts to save the state and returns; does nothing if its step is already saved.

    Args:
      manager: manager of the run's checkpoints.
      state: the training state.
      config: the experiment.
      dataset: fingerprint of the packed dataset.

    Raises:
      DivergedError: the state contains NaN or infinity; names the array. Nothing is saved.
      OSError: this checkpoint, or the previous one in the background, could not be saved.
    """
    step = int(state.step)
    if step in manager.all_steps():
        return
    finish(manager)  # Orbax would also wait for it
    items = _items(state)
    if found := find_unusable(items):
        raise DivergedError(
            f"{found}; step {step} was not saved, the previous checkpoint is "
            "intact. Lower config.optim.lr and backbone_lr, or lengthen config.optim.warmup_epochs"
        )
    _require_space(manager, sum(array.nbytes for array in jax.tree.leaves(items)))
    manifest = Manifest(dict(config), dataset, structure_of(items), checksums(items), step=step)
    with _naming_the_failure(manager):
        manager.save(
            step,
            args=ocp.args.Composite(
                **{name: ocp.args.PyTreeSave(tree) for name, tree in items.items()},
                manifest=ocp.args.JsonSave(sealed(manifest)),
            ),
        )


def _items(state: TrainState) -> dict[str, Any]:
    """Returns the items of a checkpoint, separate since an evaluation reads only the first."""
    of_losses = {"losses": state.losses} if state.losses else {}
    average = {} if state.ema is None else {"ema": state.ema}
    return {
        "variables": state.variables,
        "optimizer": {"opt_state": state.opt_state, **of_losses},
        **average,
    }


def _require_space(manager: ocp.CheckpointManager, num_bytes: int) -> None:
    """Raises an OSError if a checkpoint will not fit, which avoids a half-written one."""
    if remote.is_remote(manager.directory):
        return
    free = shutil.disk_usage(manager.directory).free
    if free < num_bytes:
        raise OSError(
            f"{manager.directory}: a checkpoint could not be written: it needs "
            f"{num_bytes / 1e6:.1f} MB, but {free / 1e6:.1f} MB are free. Earlier ones "
            "are intact; free some space, and the same command resumes from the last of them"
        )


def finish(manager: ocp.CheckpointManager) -> None:
    """Waits until the last checkpoint is written; raises as `save` does."""
    with _naming_the_failure(manager):
        manager.wait_until_finished()


@contextlib.contextmanager
def _naming_the_failure(manager: ocp.CheckpointManager) -> Iterator[None]:
    try:
        yield
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # not every library raises an OSError on a full disk
        raise OSError(
            f"{manager.directory}: a checkpoint could not be written "
            f"({' '.join(str(error).split())[:300]}). Earlier ones are intact; check the disk, and "
            "the same command resumes from the last of them"
        ) from error


def restore_state(
    manager: ocp.CheckpointManager, abstract: TrainState
) -> tuple[TrainState, Manifest] | None:
    """Returns the last intact state, with the shapes and shardings of `abstract`.

    A damaged checkpoint is renamed to `<step>.damaged`, since the run will save that step again,
    and the one before is restored. Nothing is renamed until an intact one has been restored.

    Returns:
      The state and the manifest of its checkpoint; None if there is no checkpoint.

    Raises:
      MisfitError: the checkpoint belongs to a different network or optimizer; names what differs.
      InputError: all checkpoints are damaged, or an intact one contains NaN or infinity.
      OSError: the last checkpoint cannot be read, even after retrying for a minute.
    """
    items = _items(abstract)
    damaged: list[int] = []
    for step in sorted(manager.all_steps(), reverse=True):
        try:
            restored, manifest = _restore(manager, step, items)
        except DamagedError as error:
            log.warning("%s; resuming from the checkpoint before it", error)
            damaged.append(step)
            continue
        if manifest.step is None:
            counted = _counted_steps(restored["optimizer"]["opt_state"])
            check_step(manager.directory / str(step), step if counted is None else counted)
        _rename_damaged(manager, damaged)
        state = TrainState(
            step=jax.device_put(jax.numpy.int32(step), abstract.step.sharding),
            params=restored["variables"]["params"],
            batch_stats=restored["variables"]["batch_stats"],
            losses=restored["optimizer"].get("losses", {}),
            opt_state=restored["optimizer"]["opt_state"],
            ema=restored.get("ema"),
        )
        return state, manifest
    if damaged:
        raise InputError(
            f"{manager.directory}: all checkpoints are damaged ({', '.join(map(str, damaged))}); "
            "restore them from a copy, or remove them to start from scratch"
        )
    return None


def restore_config(
    manager: ocp.CheckpointManager, step: int, trusted: Collection[str] = ()
) -> Config:
    """Returns the config in the checkpoint of a step.

    Args:
      manager: manager of the run's checkpoints.
      step: of the checkpoint.
      trusted: packages whose components the config may name; see `parts.require_trusted`.

    Raises:
      InputError: the config is of another version, or names a component of a package that is not
        trusted; otherwise as `restore_state`.
    """
    manifest = _restore(manager, step, {})[1]
    return read_config(manifest.config, f"{manager.directory / str(step)}", trusted)


def restore_variables(
    manager: ocp.CheckpointManager, step: int, abstract: Any, weights: str = TRAINED
) -> Any:
    """Returns the parameters and statistics of a step, with the shardings of `abstract`.

    Args:
      manager: manager of the run's checkpoints.
      step: step of the checkpoint.
      abstract: shapes, dtypes and shardings.
      weights: "trained" or "ema".

    Raises:
      DamagedError: this checkpoint is damaged; otherwise as `restore_state`.
    """
    item = "variables" if weights == TRAINED else weights
    return _restore(manager, step, {item: abstract})[0][item]


def _counted_steps(opt_state: Any) -> int | None:
    """Returns the steps that a state of the optimizer counts, None if it counts none."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(opt_state):
        if jax.tree_util.keystr(path[-1:], simple=True) == "count":
            return int(leaf)
    return None


def _restore(
    manager: ocp.CheckpointManager, step: int, items: Mapping[str, Any]
) -> tuple[dict[str, Any], Manifest]:
    """Restores items of a step on all processes; retries if they cannot be read."""
    folder = manager.directory / str(step)
    for pause in (*PAUSES, None):
        try:
            manifest = _together(folder, _manifest_that_fits, items)
            arrays = _together(folder, _restore_arrays, manager, items, manifest)
            break
        except OSError as error:
            if pause is None:
                raise
            log.warning("%s; trying again in %.0f s", error, pause)
            time.sleep(pause)
    if found := find_unusable(arrays):
        raise InputError(
            f"{folder}: {found}; use an earlier checkpoint (a run resumes from it if this one is "
            "removed)"
        )
    return arrays, manifest


# Errors of restoring a checkpoint, in ascending order of severity.
_FAILURES = (DamagedError, OSError, MisfitError)


def _together(folder: epath.Path, act: Callable[..., T], *arguments: Any) -> T:
    """Returns `act(folder, *arguments)`; all processes raise the worst failure of any.

    Otherwise processes that succeed would wait for the others in the next collective.
    """
    error, severity = None, 0
    try:
        result = act(folder, *arguments)
    except _FAILURES as failure:
        error = failure
        severity = 1 + [isinstance(error, kind) for kind in _FAILURES].index(True)
    worst = largest(severity)
    if not worst:
        return result
    if error is not None and severity == worst:
        raise error
    raise _FAILURES[worst - 1](f"{folder}: another process cannot restore it")


def _manifest_that_fits(folder: epath.Path, items: Mapping[str, Any]) -> Manifest:
    manifest = read_manifest(folder)
    check_fit(folder, manifest, items)
    return manifest


def _restore_arrays(
    folder: epath.Path, manager: ocp.CheckpointManager, items: Mapping[str, Any], manifest: Manifest
) -> dict[str, Any]:
    """Restores items of a checkpoint and compares their checksums with the manifest."""
    if not items:
        return {}
    args = {
        name: ocp.args.PyTreeRestore(tree, ocp.checkpoint_utils.construct_restore_args(tree))
        for name, tree in items.items()
    }
    try:
        restored = dict(manager.restore(int(folder.name), args=ocp.args.Composite(**args)))
    except (MemoryError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:  # Orbax and TensorStore raise many kinds, also for a busy disk
        _read_all_files(folder)
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if manifest.orbax != ocp.__version__:
            raise MisfitError(
                f"{folder} was written by Orbax {manifest.orbax}, and {ocp.__version__} cannot "
                f"read it ({reason}); install that version"
            ) from error
        raise DamagedError(f"{folder} is damaged ({reason})") from error
    found = checksums(restored)
    changed = [path for path in found if found[path] != manifest.checksums.get(path)]
    if changed:
        raise DamagedError(
            f"{folder} is damaged ({len(changed)} arrays do not match their checksums, "
            f"the first is {changed[0]})"
        )
    return restored


def _read_all_files(folder: epath.Path) -> None:
    """Raises an OSError if a file of a checkpoint cannot be read at present."""
    try:
        for path in folder.iterdir():
            if path.is_dir():
                _read_all_files(path)
            else:
                with path.open("rb") as file:
                    while file.read(1 << 24):
                        pass
    except OSError as error:
        raise OSError(
            f"{folder}: cannot be read at present ({error}); nothing was changed"
        ) from error


def _rename_damaged(manager: ocp.CheckpointManager, steps: Sequence[int]) -> None:
    if steps and is_first():
        for step in steps:
            folder = manager.directory / f"{step}"
            names = itertools.chain([""], map(".{}".format, itertools.count(2)))
            paths = (manager.directory / f"{step}.damaged{name}" for name in names)
            folder.rename(next(path for path in paths if not path.exists()))
    if steps:
        wait_for_all("damaged checkpoints are renamed")
    manager.reload()
