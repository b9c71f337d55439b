"""The grid of launch/ablate.py: what it runs, skips and refuses, and the comparison it writes."""

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tiny
from evaluated import values, write_run

from data_pipelines.records.dataset import open_dataset

ROOT = Path(__file__).parents[2]

# In place of launch/train.py and launch/eval.py: commands that write an evaluation by their flags,
# after the example of one that is in the folder "example".
STAND_IN = """
import json, re, signal, sys, time
from pathlib import Path
import numpy as np
flags = dict(re.fullmatch(r"--([^=]+)=(.*)", argument).groups() for argument in sys.argv[1:])
workdir = Path(flags["workdir"])
if "COMMAND" == "train":
    (workdir / "flags.json").write_text(json.dumps(flags))
    with open(workdir.parent / "trained.txt", "a") as file:
        file.write(workdir.name)
    if flags["config.augment.padding"] == "3" and not (workdir / "again").exists():
        (workdir / "again").touch()
        sys.exit("error: the disk is full")
    if flags["config.augment.padding"] == "7":
        def save(*_):
            time.sleep(1)
            (workdir / "saved").touch()
            if not Path("stubborn").exists():
                sys.exit(143)
        signal.signal(signal.SIGTERM, save)
        (workdir / "started").touch()
        for _ in range(600):
            time.sleep(0.1)
            (workdir / "alive").write_text(str(time.time()))
else:
    (workdir / "evaluated.json").write_text(json.dumps(flags))
    flags = json.loads((workdir / "flags.json").read_text())
    (example,) = Path("example/eval").glob("*.json")
    report = json.loads(example.read_text())
    with np.load(example.with_name(report["queries"])) as file:
        arrays = dict(file)
    for way in ("i2v", "v2i"):
        arrays[f"{way}_conditions"] = np.array(["occluded"] * 30 + ["clean"] * 30)
        scores = arrays[f"{way}_scores"]
        scores += float(flags["config.augment.padding"]) + 2 * int(flags["config.seed"])
        report[way] |= zip(("rank1", "rank5", "rank10", "rank20", "map", "minp"), scores.mean(0))
    config = json.loads(Path("example/config.json").read_text())
    config["seed"] = int(flags["config.seed"])
    config["augment"]["padding"] = int(flags["config.augment.padding"])
    config["model"]["pooling"] = flags.get("config.model.pooling", config["model"]["pooling"])
    (workdir / "config.json").write_text(json.dumps(config))
    (workdir / "eval").mkdir(exist_ok=True)
    np.savez(workdir / "eval" / report["queries"], **arrays)
    (workdir / "eval" / example.name).write_text(json.dumps(report))
"""
GRID = """
def get_grid():
    return {
        "baseline": {"augment.padding": 0},
        "padded_once": {"augment.padding": 2, "model.pooling": "mine.pooling:Two"},
        "padded-more.1": {"augment.padding": 3},
    }
"""


@pytest.fixture(scope="module")
def datasets(tmp_path_factory):
    """Two packed datasets."""
    return [
        tiny.packed_dataset(tmp_path_factory.mktemp("data"), test=test)
        for test in ((503, 504, 505, 506), (601, 602, 603, 604))
    ]


@pytest.fixture
def folder(tmp_path, datasets):
    """A copy of the command whose training and evaluation are stand-ins, with a grid."""
    (tmp_path / "launch").mkdir()
    for name in ("__init__.py", "command.py", "ablate.py"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    for name in ("train", "eval"):
        (tmp_path / "launch" / f"{name}.py").write_text(STAND_IN.replace("COMMAND", name))
    (tmp_path / "grid.py").write_text(GRID)
    (tmp_path / "data").symlink_to(datasets[0])
    tiny.config_file(tmp_path, Path("data"))
    example(tmp_path)
    return tmp_path


def example(folder, **facts):
    """Writes the evaluation that all runs will have, but for their scores."""
    facts = {"protocol": tiny.config(folder).eval.protocol, **facts}
    dataset = {"dir": "data", "fingerprint": open_dataset(folder / "data").fingerprint}
    return write_run(folder / "example", dataset=dataset, **facts)


def command(*arguments, grid="grid.py"):
    return [
        *(sys.executable, "-m", "launch.ablate", "--config=config.py", f"--grid={grid}"),
        *("--seeds=2", "--output=runs", "--config.optim.epochs=7", *arguments),
    ]


def environment(folder):
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])}


def run(folder, *arguments, grid="grid.py"):
    return subprocess.run(
        command(*arguments, grid=grid),
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def trained(folder):
    return {path.parent.name: path.read_text() for path in folder.glob("runs/*/trained.txt")}


@pytest.mark.slow
def test_a_grid_is_run_resumed_and_compared(folder):
    first = run(folder, "--jobs=2")
    assert first.returncode == 1
    assert "error: 2 of 6 runs failed, the first in runs/padded-more.1/" in first.stderr
    assert "the disk is full" in (folder / "runs/padded-more.1/0/log.txt").read_text()
    second = run(folder)
    assert second.returncode == 0, second.stderr
    assert "4 of 6 runs are finished already" in second.stdout
    runs = {name: sorted(seeds) for name, seeds in trained(folder).items()}
    assert runs == {
        "baseline": ["0", "1"],
        "padded_once": ["0", "1"],
        "padded-more.1": ["0", "0", "1", "1"],
    }
    flags = json.loads((folder / "runs/padded_once/1/flags.json").read_text())
    assert flags == {
        "workdir": "runs/padded_once/1",
        "config": "config.py",
        "config.optim.epochs": "7",
        "config.augment.padding": "2",
        "config.model.pooling": "mine.pooling:Two",
        "config.seed": "1",
    }
    # The evaluation opens the config that the training has stored.
    for name, trusted in (("padded_once", {"trusted": "mine.pooling"}), ("padded-more.1", {})):
        flags = json.loads((folder / f"runs/{name}/1/evaluated.json").read_text())
        assert flags == {"workdir": f"runs/{name}/1", **trusted}

    # Scores of the stand-in are those of the same queries, shifted by padding and seed.
    rows = list(csv.DictReader(io.StringIO((folder / "runs/table.csv").read_text("utf-8-sig"))))
    assert len(rows) == 2 * 3 * 3 * 6
    found = {
        (row["direction"], row["condition"], row["variant"], row["metric"]): row for row in rows
    }
    row = found["i2v", "occluded", "padded-more.1", "rank5"]
    assert float(row["mean"]) == pytest.approx(values()[:30, 1].mean() + 3 + 1)
    assert float(row["spread"]) == pytest.approx(np.sqrt(2))
    assert float(row["difference"]) == pytest.approx(3) == float(row["difference_low"])
    assert row["queries"] == "30" and found["v2i", "all", "baseline", "map"]["difference"] == ""
    table = (folder / "runs/table.md").read_text()
    assert "| padded_once |" in table and "+2.00 ± 0.00 [+2.00, +2.00]" in table
    assert (
        "| i2v, mAP - baseline | clean (30) | occluded (30) |" in table and table in second.stdout
    )
    plot = (folder / "runs/plot.svg").read_text()
    assert "v2i mAP, percent" in plot and "occluded (30)" in plot and "padded-more.1" in plot

    (folder / "grid.py").write_text(GRID.replace('"augment.padding": 2', '"augment.padding": 5'))
    changed = run(folder, "--config.data.num_threads=3")  # of which nothing depends
    assert changed.returncode == 1 and changed.stderr.count("\n") == 1
    assert (
        "error: runs/padded_once/0: variant 'padded_once' was trained with another config: "
        "augment.padding was 2, now 5. " in changed.stderr
    )
    assert {name: sorted(seeds) for name, seeds in trained(folder).items()} == runs


WRONG = [
    ("{'a': {}}", "2 variants or more"),
    ("{'a': {}, 'b': 3}", "variant 'b': use a dictionary of config"),
    ("{'a': {}, 'b': {'augment.stile': 1}}", "variant 'b': config.augment.stile does not exist"),
    ("{'a': {}, 'b': {'augment.style': 1}}", "variant 'b': config.augment.style is 1"),
    ("{'a': {}, 'b': {'seed': 1}}", "variant 'b': the seed is set by --seeds"),
    ("{'b': {}, 'B': {}}", "differ only in case"),
    ("{'a': {}, 'plot.svg': {}}", "variant 'plot.svg'"),
    *(
        (f"{{'a': {{}}, {name!r}: {{}}}}", f"variant {name!r}: ")
        for name in ("b/c", "..", ".b", "../b", "/b", "b c", "", "b\n", "\u00e9", 3)
    ),
]


@pytest.mark.slow
def test_wrong_grids_are_named(folder):
    for number, (grid, _) in enumerate(WRONG):
        (folder / f"{number}.py").write_text(f"def get_grid(): return {grid}")
    result = in_the_command(
        folder,
        f"for number in range({len(WRONG)}):",
        "    try: ablate.read_grid(f'{number}.py')",
        "    except InputError as error: print(error)",
    )
    lines = result.stdout.splitlines()
    assert len(lines) == len(WRONG), result.stderr
    for number, (line, (_, message)) in enumerate(zip(lines, WRONG, strict=True)):
        assert line.startswith(f"--grid={number}.py: ") and message in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("x = 1", "--grid=bad.py: the file defines no get_grid()"),
        (
            "def get_grid(): return {'a': {}, 'b': {'data.dir': 'other'}}",
            "--grid=bad.py: variant 'b' is of another dataset",
        ),
    ],
)
def test_a_wrong_grid_is_one_line_and_runs_nothing(folder, datasets, grid, message):
    (folder / "other").symlink_to(datasets[1])
    (folder / "bad.py").write_text(grid)
    result = run(folder, grid="bad.py")
    assert result.returncode in (1, 2) and result.stderr.startswith("error: ")
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_other_evaluations_do_not_matter_and_another_dataset_is_noticed(folder, datasets):
    """It compares the evaluations that it made; a dataset may not be replaced under its name."""
    (folder / "grid.py").write_text(GRID.replace('padding": 3', 'padding": 1'))
    assert run(folder).returncode == 0
    table = (folder / "runs/table.md").read_text()
    for facts in ({"clips": "dense"}, {"options": {"rerank": True}}, {"split": "validation"}):
        path = example(folder, **facts)
        for file in path.parent.glob(f"{path.stem}.*"):
            shutil.copy(file, folder / "runs/baseline/1/eval")
    (folder / "runs/table.md").unlink()
    result = run(folder)
    assert result.returncode == 0, result.stderr
    assert (folder / "runs/table.md").read_text() == table

    (folder / "data").unlink()
    (folder / "data").symlink_to(datasets[1])
    result = run(folder)
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert "runs/baseline/0: finished with another dataset" in result.stderr
    assert "finished already" not in result.stdout and "| padded_once |" not in result.stdout


def wait_for(fact, seconds=60):
    deadline = time.monotonic() + seconds
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_alive(path):
    """Returns whether a stand-in still writes its file."""
    before = path.read_text()
    time.sleep(0.5)
    return path.read_text() != before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sent", "stubborn"),
    [
        ([signal.SIGTERM], False),
        ([signal.SIGINT, signal.SIGINT], True),
        ([signal.SIGKILL], False),
    ],
)
def test_an_interruption_stops_the_runs(folder, sent, stubborn):
    """They save their state; a second signal ends those that go on; a kill reaches them, too."""
    if signal.SIGKILL in sent and not shutil.which("setpriv"):
        pytest.skip("needs setpriv of util-linux")
    if stubborn:
        (folder / "stubborn").touch()
    (folder / "grid.py").write_text(GRID.replace('padding": 0', 'padding": 7'))
    workdir = folder / "runs/baseline/0"
    process = subprocess.Popen(
        command(), cwd=folder, env=environment(folder), stderr=subprocess.PIPE, text=True
    )
    wait_for((workdir / "alive").exists)
    for number in sent:
        process.send_signal(number)
        time.sleep(0.3)
    _, error = process.communicate(timeout=30)
    if signal.SIGKILL in sent:
        wait_for((workdir / "saved").exists)
    else:
        assert process.returncode == 128 + sent[0] and "the same command resumes" in error
        assert stubborn or (workdir / "saved").exists()
    assert not is_alive(workdir / "alive")
    assert trained(folder) == {"baseline": "0"}  # and nothing was started afterwards


def in_the_command(folder, *program, **variables):
    """Runs lines of Python that use the module of the command, with its flags parsed."""
    lines = (
        "import sys; sys.argv = ['x', '--jobs=3', '--grid=g', '--output=o', '--config=config.py']",
        "from absl import flags; from data_pipelines.errors import InputError",
        "from launch import ablate; flags.FLAGS(sys.argv)",
        *program,
    )
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_runs_share_the_gpus(folder):
    program = "print([slot.get('CUDA_VISIBLE_DEVICES') for slot in ablate.slots()])"
    for visible, printed in (("4,6", "['4', '6', '4']"), ("", "[None, None, None]")):
        result = in_the_command(folder, program, CUDA_VISIBLE_DEVICES=visible)
        assert result.stdout.strip() == printed, result.stderr
