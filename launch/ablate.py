r"""Trains and evaluates the variants of a grid over several seeds, and compares them.

  python launch/ablate.py --config=configs/star_synthetic_demo.py \
    --grid=configs/ablations/star.py --seeds=5 --output=runs/ablation

The grid is a Python file whose get_grid() returns the variants: a dictionary from names to the
config keys that each variant changes, as {"no_style": {"augment.style": False}}. The first is the
baseline. Each variant is trained with the seeds 0, 1, ... in <output>/<variant>/<seed>, where
log.txt contains the output of the commands. When interrupted (SIGTERM or Ctrl-C), it stops its
runs, which save their state; the same command resumes. It refuses a dataset whose content has
changed, and a variant whose runs were trained with other values.

At the end it writes <output>/table.md, table.csv and plot.svg: means and standard deviations over
seeds, and the differences to the baseline, paired, with 95 % intervals over identities and seeds,
overall and by the conditions of the queries.

Runs are started in parallel, one on each GPU; --jobs sets their number, including on CPUs.
"""

import collections
import contextlib
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from data_pipelines.errors import InputError
from launch import command
from star_jax.config import Config, with_values
from star_jax.config.checks import check_training, unknown, values_of
from star_jax.stored import parts_elsewhere

FOLDER = Path(__file__).parent
RESULTS = ("table.md", "table.csv", "plot.svg")
GRACE_SECONDS = 60  # in which an interrupted run saves its state
CONFIG = command.define_config()
GRID = command.define_path(
    "grid", None, "File of the variants, such as configs/ablations/star.py.", required=True
)
SEEDS = flags.DEFINE_integer("seeds", 5, "Training seeds of each variant: 0, 1, ...", lower_bound=1)
OUTPUT = command.define_path("output", None, "Folder for runs and results.", required=True)
JOBS = flags.DEFINE_integer(
    "jobs",
    None,
    "Number of runs in parallel; default: one per GPU, or one without GPUs.",
    lower_bound=1,
)
TRUSTED = command.define_trusted()


class Run(NamedTuple):
    """One training run.

    Attributes:
      variant: its name.
      changes: what it changes in the config, by key.
      workdir: its folder.
      dataset: fingerprint of the packed dataset.
    """

    variant: str
    changes: Mapping[str, Any]
    workdir: Path
    dataset: str

    @property
    def finished(self) -> Path:
        """The file that says which config was trained and evaluated here, on which dataset."""
        return self.workdir / "finished.json"

    def description(self) -> dict[str, Any]:
        """Returns what the file says."""
        config = json.loads(json.dumps(with_changes(self.changes).to_dict()))
        return {"config": config, "dataset": self.dataset}


@dataclasses.dataclass
class Active:
    """A run in progress.

    Attributes:
      run: the run.
      environment: its variables, besides those of this process.
      waiting: its commands that have not been started.
      process: the command that has.
    """

    run: Run
    environment: Mapping[str, str]
    waiting: list[Sequence[str]]
    process: subprocess.Popen[bytes]


def main() -> None:
    """Runs the grid that the flags name, and writes its comparison."""
    from data_pipelines.io.files import write_file
    from star_jax.comparison import ablation

    output = Path(OUTPUT.value)
    variants = read_grid(GRID.value)
    dataset = dataset_of(variants)
    runs = [
        Run(name, {**changes, "seed": seed}, output / name / str(seed), dataset)
        for seed in range(SEEDS.value)
        for name, changes in variants.items()
    ]
    missing = [run for run in runs if not is_finished(run)]
    for run in missing:
        require_same_config(run)
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished already")
    run_all(missing, slots())
    workdirs = {name: [run.workdir for run in runs if run.variant == name] for name in variants}
    results = ablation.compare_variants(workdirs, dataset)
    table = ablation.markdown(results)
    contents = table.encode(), ablation.csv(results), ablation.plot(results)
    for name, content in zip(RESULTS, contents, strict=True):
        write_file(output / name, content)
    print(f"\n{table}\nwritten to {output}: {', '.join(RESULTS)}")


def read_grid(path: str) -> dict[str, dict[str, Any]]:
    """Returns the variants of a grid: names, and the values that each changes in the config.

    Raises:
      InputError: the file has no grid, or a variant names an unknown key or an invalid value.
    """
    found = command.call_in_file("grid", path, "get_grid")
    if not isinstance(found, dict) or len(found) < 2:
        raise InputError(
            f"--grid={path}: get_grid() must return a dictionary of 2 variants or more"
        )
    for name, changes in found.items():
        where = f"--grid={path}: variant {name!r}"
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", name):
            raise InputError(
                f"{where}: it names a folder: use letters, digits, -, _ and ., not beginning with ."
            )
        if name in RESULTS:
            raise InputError(
                f"{where}: a file of this name is written to the same folder; use another name"
            )
        if not isinstance(changes, dict):
            raise InputError(f"{where}: use a dictionary of config keys, found {changes!r:.80}")
        for key in changes:
            if key == "seed":
                raise InputError(f"{where}: the seed is set by --seeds; leave it out")
            if values_of(key) is None:
                raise InputError(f"{where}: {unknown(key)}")
        try:
            check_training(with_changes(changes))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if len({name.lower() for name in found}) < len(found):
        raise InputError(f"--grid={path}: names of variants differ only in case")
    return found


def dataset_of(variants: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the fingerprint of the packed dataset of all variants.

    Raises:
      FileNotFoundError: there is no dataset.
      InputError: variants have different ones, whose scores cannot be compared.
    """
    from data_pipelines.records.dataset import open_dataset

    addresses = {name: with_changes(changes).data.dir for name, changes in variants.items()}
    found = {address: open_dataset(address).fingerprint for address in set(addresses.values())}
    first, *others = addresses
    for other in others:
        if found[addresses[other]] != found[addresses[first]]:
            raise InputError(
                f"--grid={GRID.value}: variant {other!r} is of another dataset, "
                f"{addresses[other]}, than variant {first!r}; use one test set for all"
            )
    return found[addresses[first]]


def with_changes(changes: Mapping[str, Any]) -> Config:
    """Returns the config of `--config` with changed values, by key."""
    return with_values(CONFIG.value, overrides(changes))


def overrides(changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values that a variant overrides, with those of the command line."""
    return {**command.CONFIG_FILE.overrides, **changes}


def is_finished(run: Run) -> bool:
    """Returns whether the run was trained and evaluated with this config.

    Raises:
      InputError: that was on another dataset, which nothing else would distinguish from this one.
    """
    from data_pipelines.io import typed_json

    try:
        found = typed_json.parse(run.finished.read_bytes(), dict[str, Any])
    except (FileNotFoundError, ValueError):
        return False
    if found.get("dataset", run.dataset) != run.dataset:
        raise InputError(
            f"{run.workdir}: finished with another dataset (fingerprint {found['dataset']!s:.8}, "
            f"now {run.dataset[:8]}); use another --output, or the dataset that it started with"
        )
    return bool(found == run.description())


def require_same_config(run: Run) -> None:
    """Raises an InputError if a run would resume from what another config has trained.

    Its training would refuse that, too, but after other runs have been trained for nothing.
    """
    from data_pipelines.io.remote import locate
    from star_jax.runs import run_files

    workdir, config = locate(run.workdir), with_changes(run.changes)
    if not (workdir / "config.json").exists() or not run_files.has_saved(workdir):
        return
    before = run_files.read_config(workdir / "config.json")
    if config.model.num_identities is None:  # then the dataset decides
        config = with_values(config, {"model.num_identities": before["model"]["num_identities"]})
    if found := run_files.differences(before, config):
        raise InputError(
            f"{workdir}: variant {run.variant!r} was trained with another config: "
            f"{'; '.join(found)}. Give the variant another name, use another --output, or remove "
            "the folder"
        )


def slots() -> Sequence[Mapping[str, str]]:
    """Returns the environment variables of the runs that are active at a time, one GPU each."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        gpus = [name for name in visible.split(",") if name not in ("", "-1")]
    else:
        gpus = [str(number) for number in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]
    jobs = JOBS.value or max(1, len(gpus))
    if not gpus or jobs == 1:
        return [{}] * jobs
    return [{"CUDA_VISIBLE_DEVICES": gpus[slot % len(gpus)]} for slot in range(jobs)]


def run_all(runs: Sequence[Run], environments: Sequence[Mapping[str, str]]) -> None:
    """Trains and evaluates the runs that are not finished yet, one in each environment at a time.

    Raises:
      InputError: runs have failed; the others were finished.
      SystemExit: a signal asked to stop, and the runs have ended.
    """
    from data_pipelines.io.files import write_json
    from data_pipelines.io.progress import Progress

    waiting = collections.deque(runs)
    free = list(environments)
    running: list[Active] = []
    failed = []
    with noted_signals() as signals, Progress(len(runs), "ablation", unit="run") as progress:
        try:
            while (waiting or running) and not signals:
                while waiting and free:
                    running.append(begin(waiting.popleft(), free.pop()))
                for own in list(running):
                    if own.process.poll() is None:
                        continue
                    if own.process.returncode == 0 and own.waiting:
                        own.process = start(own.waiting.pop(0), own.run, own.environment)
                        continue
                    running.remove(own)
                    free.append(own.environment)
                    if own.process.returncode:
                        failed.append(own.run)
                    else:
                        write_json(own.run.finished, own.run.description())
                    progress.update(len(runs) - len(waiting) - len(running))
                time.sleep(0.1)
        finally:
            stop([own.process for own in running], signals)
    if signals:
        print("interrupted; the same command resumes", file=sys.stderr)
        sys.exit(128 + signals[0])
    if failed:
        raise InputError(
            f"{len(failed)} of {len(runs)} runs failed, the first in {failed[0].workdir}; its "
            "log.txt says why. The same command runs only these again"
        )


@contextlib.contextmanager
def noted_signals() -> Iterator[list[int]]:
    """Yields a list to which the signals that ask to stop are added instead of ending the process.

    So a run cannot be left behind that has just been started.
    """
    noted: list[int] = []
    asking = [
        number
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # as nohup does
    ]
    before = {n: signal.signal(n, lambda number, _: noted.append(number)) for n in asking}
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def begin(run: Run, environment: Mapping[str, str]) -> Active:
    """Starts the training of a run, which its evaluation follows."""
    workdir = f"--workdir={run.workdir}"
    train = [sys.executable, str(FOLDER / "train.py"), workdir]
    train.append(f"--config={command.CONFIG_FILE.path}")
    train += [f"--config.{key}={value}" for key, value in overrides(run.changes).items()]
    # What this command's own config names is trained, and then evaluated from the stored config.
    own = {path.partition(":")[0] for _, path in parts_elsewhere(with_changes(run.changes))}
    evaluate = [sys.executable, str(FOLDER / "eval.py"), workdir]
    for command_line, trusted in ((train, TRUSTED.value), (evaluate, [*TRUSTED.value, *own])):
        command_line += [f"--trusted={','.join(sorted(trusted))}"] if trusted else []
    run.workdir.mkdir(parents=True, exist_ok=True)
    return Active(run, environment, [evaluate], start(train, run, environment))


def start(
    command: Sequence[str], run: Run, environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    """Starts a command, which ends with this process even if that is killed, where Linux can."""
    tied = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
    with open(run.workdir / "log.txt", "ab") as log:
        return subprocess.Popen(
            [*tied, *command],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # signals reach it from here only
        )


def stop(processes: Sequence[subprocess.Popen[bytes]], signals: Sequence[int]) -> None:
    """Ends processes and all that they have started: SIGTERM first, so that they save their state.

    Those that are still running are killed after GRACE_SECONDS, or as soon as there is a second
    signal.
    """
    if any(process.poll() is None for process in processes):
        print(
            "\nstopping the runs after their state is saved; interrupt again to stop at once",
            file=sys.stderr,
        )
    deadline = time.monotonic() + GRACE_SECONDS
    sent = None
    while left := [process for process in processes if process.poll() is None]:
        due = time.monotonic() > deadline or len(signals) > 1
        number = signal.SIGKILL if due else signal.SIGTERM
        for process in left if number != sent else ():
            os.killpg(process.pid, number)
        sent = number
        time.sleep(0.1)


if __name__ == "__main__":
    command.run(main)
