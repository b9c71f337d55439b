"""The small files of a run: its config, its environment and its evaluations."""

import contextlib
import hashlib
import importlib.metadata
import io
import json
import logging
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, TypedDict

import jax
import numpy as np
from etils import epath

from data_pipelines.errors import InputError, Preempted
from data_pipelines.io import remote, typed_json
from data_pipelines.io.files import hold, read_file, write_file, write_json
from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.stored import complete, parse_config

log = logging.getLogger(__name__)

# Keys that may change when a run resumes; none affects the results of training.
FREE_KEYS = (
    "data.dir",
    "data.num_threads",
    "init.",
    "eval.",
    "checkpoint.",
    "parallel.",
    "model.remat",
    "log_every_steps",
)

# Keys that may differ when a run resumes: also how long it trains, which changes no step before.
_MAY_DIFFER = (*FREE_KEYS, "optim.epochs")

# Facts about a run, for people to read.
Facts = dict[str, str | bool | float | list[str] | dict[str, str]]


class Dataset(TypedDict):
    """A packed dataset: where it was, and what identifies it."""

    dir: str
    fingerprint: str


class Record(TypedDict, total=False):
    """What programs read of run.json."""

    git_revision: str
    dataset: Dataset
    seconds_in_all: Annotated[float, typed_json.Range(0)]


PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "jraph", "grain", "numpy")


def claim(workdir: epath.Path, config: Config) -> None:
    """Creates the workdir of a run, or checks that it belongs to a run with this config.

    A run that has saved nothing may start again with another config. Writes `config.json` (the
    full config) and `run.json` (command, versions, devices, git revision).

    Raises:
      InputError: the workdir belongs to a different config; names the keys that differ.
      OSError: the URL of the workdir cannot be reached.
    """
    path = workdir / "config.json"
    with remote.naming_failures(workdir):
        known = path.exists()
    resumes = known and not differences(earlier := read_json(path), config)
    if known and (has_saved(workdir) or remote.is_remote(workdir)):  # which has no locks
        require_same(workdir, earlier, config)
    if processes.is_first():
        write_config(workdir, config)
        record = workdir / "run.json"
        before = read_json(record, Record) if resumes and record.exists() else {}
        # Until it has resumed, the dataset is the one that it was trained on.
        dataset = {"dataset": before["dataset"]} if "dataset" in before else {}
        seconds = before.get("seconds_in_all", 0)
        write_json(record, {**environment(), **dataset, "seconds_in_all": seconds})
    require_shared(workdir / "run.json")


def write_config(workdir: epath.Path, config: Config) -> None:
    """Writes the full config to `<workdir>/config.json`, on process 0 only."""
    if processes.is_first():
        write_json(workdir / "config.json", as_json(config))


def has_saved(workdir: epath.Path) -> bool:
    """Returns whether a run has a checkpoint, even a damaged one, or an evaluation."""
    names = [path.name for path in (workdir / "checkpoints").glob("*")]
    finished = [name for name in names if "orbax-checkpoint-tmp" not in name]
    return bool(finished) or any((workdir / "eval").glob("*"))


def require_same(where: epath.Path, before: Mapping[str, Any], config: Config) -> None:
    """Raises an InputError that names the keys in which a config differs from an earlier one.

    `FREE_KEYS` and `optim.epochs` may differ.
    """
    if found := differences(before, config):
        raise InputError(
            f"{where} belongs to a different config: {'; '.join(found)}. Use another --workdir, or "
            "the config that the run was started with"
        )


def differences(before: Mapping[str, Any], config: Config) -> list[str]:
    """Returns the keys in which a config differs from an earlier one, with both values."""
    old, new = flatten(complete(before)), flatten(as_json(config))
    return [
        f"{key} was {old.get(key, 'absent')}, now {new.get(key, 'absent')}"
        for key in sorted(set(old) | set(new))
        if old.get(key) != new.get(key) and not key.startswith(_MAY_DIFFER)
    ]


def require_shared(path: epath.Path, seconds: float = 60) -> None:
    """Raises an InputError if a process does not see what process 0 wrote to a file.

    Network file systems may be slow to show it; waits up to `seconds`.
    """
    if jax.process_count() == 1:
        return
    written = processes.broadcast_from_process_0(path.read_bytes() if processes.is_first() else b"")
    deadline = time.monotonic() + seconds
    while not (seen := path.exists() and path.read_bytes() == written):
        if time.monotonic() > deadline:
            break
        time.sleep(1)
    if not processes.all_agree(seen):
        raise InputError(
            f"{path.parent}: not all processes see the same folder here; use a --workdir that "
            "they share, or a URL such as gs://bucket/star"
        )


@contextlib.contextmanager
def claimed(workdir: epath.Path, config: Config) -> Iterator[None]:
    """Claims the workdir, and locks it against other runs in the `with` block.

    Object stores have no locks; there, other runs are not kept out.

    Raises:
      InputError: another run is active in it; otherwise as `claim`.
    """
    if remote.is_remote(workdir) or not processes.is_first():
        claim(workdir, config)
        yield
        return
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "lock", "wb") as file:
        try:
            hold(file, f"{workdir}: another run is active here; wait for it or stop it first")
        except OSError as error:  # some network file systems have no locks
            log.warning("%s: cannot be locked (%s); do not start a second run here", workdir, error)
        claim(workdir, config)
        yield


def add_to_record(workdir: epath.Path, **facts: Any) -> None:
    """Adds facts about this start to `run.json`, on process 0 only."""
    if processes.is_first():
        path = workdir / "run.json"
        write_json(path, {**read_json(path), **facts})


@contextlib.contextmanager
def timed(workdir: epath.Path, started: float) -> Iterator[None]:
    """Adds the duration of this start and of all starts of the run to `run.json` at the end.

    It adds nothing after an error, which might be about a full disk.

    Args:
      workdir: folder of the run.
      started: when this start began, by `time.monotonic`.
    """
    interrupted = None
    try:
        yield
    except Preempted as error:
        interrupted = error
    if processes.is_first():
        seconds = round(time.monotonic() - started, 1)
        earlier = read_json(workdir / "run.json", Record).get("seconds_in_all", 0)
        add_to_record(workdir, seconds=seconds, seconds_in_all=round(earlier + seconds, 1))
    if interrupted:
        raise interrupted


def environment() -> dict[str, Any]:
    """Returns what a run depends on besides its config: the command, versions and devices."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": shlex.join(sys.argv),
        "git_revision": git_revision(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def git_revision() -> str:
    """Returns the revision of this code, with `-dirty` if modified; "unknown" without git."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40"]
    folder = Path(__file__).parent
    try:
        return (
            subprocess.check_output(command, cwd=folder, stderr=subprocess.DEVNULL).decode().strip()
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def short_revision(facts: Mapping[str, Any]) -> str:
    """Returns the first digits of the revision in `environment()`, and whether it was changed."""
    found = str(facts.get("git_revision", "unknown"))
    return found[:10] + ("-dirty" if found.endswith("-dirty") else "")


def write_report(
    workdir: epath.Path, report: Mapping[str, Any], queries: Mapping[str, np.ndarray]
) -> epath.Path:
    """Writes the report of an evaluation with its environment, and returns the path.

    The report appears, or replaces an earlier one of its kind, together with the scores of the
    queries: it names their file, which is written before and under a name of its own.

    Args:
      workdir: folder of the run.
      report: the evaluation.
      queries: the scores of each query.
    """
    path = report_path(workdir, report)
    replaced = None
    with contextlib.suppress(InputError):  # the earlier report may be damaged
        replaced = queries_path(path) if path.exists() else None
    arrays = io.BytesIO()
    np.savez_compressed(arrays, **queries)  # type: ignore[arg-type]
    digest = hashlib.sha256(arrays.getvalue()).hexdigest()
    name = f"{path.stem}.{digest[:8]}.queries.npz"
    write_file(path.with_name(name), arrays.getvalue())
    write_json(path, {**report, "queries": name, "environment": environment()})
    if replaced is not None and replaced.name.startswith(f"{path.stem}.") and replaced.name != name:
        replaced.unlink(missing_ok=True)
    return path


def queries_path(report: epath.Path) -> epath.Path:
    """Returns the path of the scores of each query, which the report at a path names.

    Raises:
      InputError: the report is damaged.
    """
    name = read_json(report).get("queries")  # reports of earlier versions have none
    if not isinstance(name, str) or "/" in name or not name.endswith(".queries.npz"):
        name = f"{report.stem}.queries.npz"
    return report.with_name(name)


def reports_folder(workdir: epath.Path) -> epath.Path:
    """Returns the folder of a run's reports, scores of queries and embeddings."""
    return workdir / "eval"


def report_paths(workdir: epath.Path) -> list[epath.Path]:
    """Returns the paths of a run's reports, sorted; raises a FileNotFoundError without any."""
    folder = reports_folder(workdir)
    paths = sorted(folder.glob("*.json")) if folder.is_dir() else []
    if not paths:
        raise FileNotFoundError(
            f"{workdir}: has no evaluation; run launch/eval.py --workdir={workdir} first"
        )
    return paths


def report_path(workdir: epath.Path, report: Mapping[str, Any]) -> epath.Path:
    """Returns the path of a report; each kind of evaluation of a step has its own file.

    Args:
      workdir: folder of the run.
      report: an evaluation, or what `star_jax.evaluation.evaluate.describe_evaluation` returns.
    """
    protocol, dataset = report["protocol"].replace("/", "-"), report["dataset"]["fingerprint"][:8]
    kind = [protocol, report["clips"], *([report["split"]] if report["split"] != "test" else [])]
    for name, value in report["options"].items():
        kind.append(name if value is True else f"{name}_{value}".replace(":", "_"))
    return reports_folder(workdir) / f"{report['step']}-{'-'.join(kind)}-{dataset}.json"


def as_json(config: Config) -> dict[str, Any]:
    """Returns the config as parsed from JSON (tuples become lists)."""
    parsed: dict[str, Any] = json.loads(json.dumps(config.to_dict()))
    return parsed


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns nested dictionaries as a flat one, with keys joined by dots."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def read_config(path: epath.Path) -> dict[str, Any]:
    """Returns the config of a run, `<workdir>/config.json`, to compare; creates no components.

    Raises:
      InputError: the file holds something else.
    """
    return parse_config(read_json(path), os.fspath(path))


def read_json(
    path: epath.Path,
    kind: Any = dict[str, Any],
    remedy: str = "remove it, or use another --workdir",
) -> Any:
    """Returns the JSON object in a file.

    Args:
      path: of the file.
      kind: the keys and types that it must have; see `typed_json.check`.
      remedy: what to do about other content, for the error.

    Raises:
      InputError: the file has other content; names the file and the key.
    """
    try:
        return typed_json.parse(read_file(path), kind)
    except ValueError as error:
        raise InputError(f"{path}: damaged or of another version ({error}); {remedy}") from error
