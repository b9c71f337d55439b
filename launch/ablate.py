r"""Trains and evaluates the variants of a grid over several seeds, and compares them.

  python launch/ablate.py --config=configs/star_synthetic_demo.py \
    --grid=configs/ablations/star.py --seeds=5 --output=runs/ablation

The grid is a Python file whose get_grid() returns the variants: a dictionary from names to the
config keys that each variant changes, as {"no style": {"augment.style": False}}. The first is the
baseline. Each variant is trained with the seeds 0, 1, ... in <output>/<variant>/<seed>, where
log.txt has what the commands print. The same command resumes where it was interrupted.

At the end it writes <output>/table.md, table.csv and plot.svg: means and standard deviations over
seeds, and the differences to the baseline, paired, with 95 % bootstrap intervals over identities
and seeds, overall and by the conditions of the queries.

Runs are started in parallel, one on each GPU; --jobs sets their number, also on CPUs.
"""

import collections
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ml_collections
from absl import flags
from ml_collections import config_flags

from data_pipelines.errors import InputError
from launch import command
from star_jax.config import KEYS, check_config, unknown

FOLDER = Path(__file__).parent
CONFIG = command.define_config()
GRID = command.define_required("grid", "File of the variants, such as configs/ablations/star.py.")
SEEDS = flags.DEFINE_integer("seeds", 5, "Training seeds of each variant: 0, 1, ...", lower_bound=1)
OUTPUT = command.define_required("output", "Folder of the runs and of the result.")
JOBS = flags.DEFINE_integer(
    "jobs", None, "Runs at a time; default: one on each GPU, one without GPUs.", lower_bound=1
)


class Run(NamedTuple):
    """One training run.

    Attributes:
      variant: its name.
      changes: what it changes in the config, by key.
      workdir: its folder.
    """

    variant: str
    changes: Mapping[str, Any]
    workdir: Path

    @property
    def finished(self) -> Path:
        """The file that says which config was trained and evaluated here."""
        return self.workdir / "finished.json"

    def description(self) -> dict[str, Any]:
        """Returns what the file says."""
        return {"config": json.loads(with_changes(self.changes).to_json())}


def main() -> None:
    """Runs the grid that the flags name, and writes its comparison."""
    from data_pipelines.io.files import write_file
    from star_jax.evaluation import ablation

    output = Path(OUTPUT.value)
    variants = read_grid(GRID.value)
    runs = [
        Run(name, {**changes, "seed": seed}, output / folder_of(name) / str(seed))
        for seed in range(SEEDS.value)
        for name, changes in variants.items()
    ]
    missing = [run for run in runs if not is_finished(run)]
    if len(missing) < len(runs):
        print(f"{len(runs) - len(missing)} of {len(runs)} runs are finished already")
    run_all(missing, slots())
    workdirs = {name: [run.workdir for run in runs if run.variant == name] for name in variants}
    results = ablation.compare_variants(workdirs)
    table = ablation.markdown(results)
    write_file(output / "table.csv", ablation.csv(results))
    write_file(output / "table.md", table.encode())
    write_file(output / "plot.svg", ablation.plot(results))
    print(f"\n{table}\nwritten to {output}: table.md, table.csv and plot.svg")


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
        if not isinstance(name, str) or not re.fullmatch(r"[\w ,.+-]+", name):
            raise InputError(f"{where}: use letters, digits, spaces and , . + - for its name")
        if not isinstance(changes, dict):
            raise InputError(f"{where}: use a dictionary of config keys, found {changes!r:.80}")
        for key in changes:
            if key == "seed":
                raise InputError(f"{where}: the seed is set by --seeds; leave it out")
            if key not in KEYS:
                raise InputError(f"{where}: {unknown(key)}")
        try:
            check_config(with_changes(changes))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    if len({folder_of(name) for name in found}) < len(found):
        raise InputError(f"--grid={path}: names of variants differ in spaces or commas only")
    return found


def with_changes(changes: Mapping[str, Any]) -> ml_collections.ConfigDict:
    """Returns the config of `--config` with changed values, by key."""
    config = CONFIG.value.copy_and_resolve_references()
    with config.ignore_type():  # check_config names what is wrong
        config.update_from_flattened_dict(changes)
    return config


def is_finished(run: Run) -> bool:
    """Returns whether the run was trained and evaluated with this config."""
    try:
        return json.loads(run.finished.read_bytes()) == run.description()
    except (FileNotFoundError, ValueError):
        return False


def folder_of(name: str) -> str:
    """Returns the name of a variant's folder."""
    return re.sub(r"[ ,]+", "_", name.strip())


def slots() -> Sequence[Mapping[str, str]]:
    """Returns the environment variables of the runs that go on at a time, one GPU each."""
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
    """
    from data_pipelines.io.files import write_json
    from data_pipelines.io.progress import Progress

    waiting = collections.deque(runs)
    free = list(environments)
    running: list[tuple[Run, subprocess.Popen, Mapping[str, str]]] = []
    failed = []
    with Progress(len(runs), "ablation", unit="run") as progress:
        try:
            while waiting or running:
                while waiting and free:
                    environment = free.pop()
                    run = waiting.popleft()
                    running.append((run, start(run, environment), environment))
                for entry in list(running):
                    run, process, environment = entry
                    if process.poll() is not None:
                        running.remove(entry)
                        free.append(environment)
                        if process.returncode:
                            failed.append(run)
                        else:
                            write_json(run.finished, run.description())
                        progress.update(len(runs) - len(waiting) - len(running))
                time.sleep(0.1)
        finally:
            for _, process, _ in running:
                os.killpg(process.pid, signal.SIGTERM)  # a training run saves its state
            for _, process, _ in running:
                process.wait()
    if failed:
        raise InputError(
            f"{len(failed)} of {len(runs)} runs failed, the first in {failed[0].workdir}; its "
            "log.txt says why. The same command runs only these again"
        )


def start(run: Run, environment: Mapping[str, str]) -> subprocess.Popen:
    """Starts a run: its training, and its evaluation afterwards."""
    config = flags.FLAGS["config"]
    values = {**config_flags.get_override_values(config), **run.changes}
    workdir = f"--workdir={run.workdir}"
    train = [sys.executable, str(FOLDER / "train.py"), workdir]
    train.append(f"--config={config_flags.get_config_filename(config)}")
    train += [f"--config.{key}={value}" for key, value in values.items()]
    evaluate = [sys.executable, str(FOLDER / "eval.py"), workdir]
    run.workdir.mkdir(parents=True, exist_ok=True)
    with open(run.workdir / "log.txt", "ab") as log:
        return subprocess.Popen(
            ["sh", "-c", f"{shlex.join(train)} && {shlex.join(evaluate)}"],
            env={**os.environ, **environment},
            stdout=log,
            stderr=subprocess.STDOUT,
            process_group=0,  # Ctrl-C reaches it from here only
        )


if __name__ == "__main__":
    command.run(main)
