"""The grid of launch/ablate.py: what it runs, skips and refuses, and the comparison it writes."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

ROOT = Path(__file__).parents[2]

# In place of launch/train.py and launch/eval.py: commands that write an evaluation by their flags.
STAND_IN = """
import json, re, sys
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
else:
    (workdir / "evaluated.json").write_text(json.dumps(flags))
    flags = json.loads((workdir / "flags.json").read_text())
    seed = int(flags["config.seed"])
    values = np.random.default_rng(7).uniform(20, 80, (60, 6))
    queries = {
        "positions": np.arange(60),
        "identities": np.repeat([str(i) for i in range(20)], 3),
        "conditions": np.array(["occluded"] * 30 + ["clean"] * 30),
        "scores": values + float(flags["config.augment.padding"]) + 2 * seed,
    }
    report = {"protocol": "hitsz_vcm/v1", "split": "test", "options": {}, "dataset": {}}
    (workdir / "config.json").write_text(json.dumps({"seed": seed}))
    (workdir / "eval").mkdir()
    both = {f"{way}_{name}": array for way in ("i2v", "v2i") for name, array in queries.items()}
    np.savez(workdir / "eval/12-x.queries.npz", **both)
    (workdir / "eval/12-x.json").write_text(json.dumps(report | {"step": 12}))
"""
GRID = """
def get_grid():
    return {
        "baseline": {"augment.padding": 0},
        "padded, once": {"augment.padding": 2, "model.pooling": "mine.pooling:Two"},
        "padded more": {"augment.padding": 3},
    }
"""


@pytest.fixture
def folder(tmp_path):
    """A copy of the command whose training and evaluation are stand-ins, with a grid."""
    (tmp_path / "launch").mkdir()
    for name in ("__init__.py", "command.py", "ablate.py"):
        (tmp_path / "launch" / name).write_text((ROOT / "launch" / name).read_text())
    for name in ("train", "eval"):
        (tmp_path / "launch" / f"{name}.py").write_text(STAND_IN.replace("COMMAND", name))
    (tmp_path / "grid.py").write_text(GRID)
    tiny.config_file(tmp_path, Path("nowhere"))
    return tmp_path


def run(folder, *arguments, grid="grid.py"):
    return subprocess.run(
        [
            *(sys.executable, "-m", "launch.ablate", "--config=config.py", f"--grid={grid}"),
            *("--seeds=2", "--output=runs", "--config.optim.epochs=7", *arguments),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)])},
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
    assert "error: 2 of 6 runs failed, the first in runs/padded_more/" in first.stderr
    assert "the disk is full" in (folder / "runs/padded_more/0/log.txt").read_text()
    second = run(folder)
    assert second.returncode == 0, second.stderr
    assert "4 of 6 runs are finished already" in second.stdout
    runs = {name: sorted(seeds) for name, seeds in trained(folder).items()}
    assert runs == {
        "baseline": ["0", "1"],
        "padded_once": ["0", "1"],
        "padded_more": ["0", "0", "1", "1"],
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
    for name, trusted in (("padded_once", {"trusted": "mine.pooling"}), ("padded_more", {})):
        flags = json.loads((folder / f"runs/{name}/1/evaluated.json").read_text())
        assert flags == {"workdir": f"runs/{name}/1", **trusted}

    # Scores of the stand-in are those of the same queries, shifted by padding and seed.
    values = np.random.default_rng(7).uniform(20, 80, (60, 6))
    rows = list(csv.DictReader(io.StringIO((folder / "runs/table.csv").read_text("utf-8-sig"))))
    assert len(rows) == 2 * 3 * 3 * 6
    found = {
        (row["direction"], row["condition"], row["variant"], row["metric"]): row for row in rows
    }
    row = found["i2v", "occluded", "padded more", "rank5"]
    assert float(row["mean"]) == pytest.approx(values[:30, 1].mean() + 3 + 1)
    assert float(row["spread"]) == pytest.approx(np.sqrt(2))
    assert float(row["difference"]) == pytest.approx(3) == float(row["difference_low"])
    assert row["queries"] == "30" and found["v2i", "all", "baseline", "map"]["difference"] == ""
    table = (folder / "runs/table.md").read_text()
    assert "| padded, once |" in table and "+2.00 ± 0.00 [+2.00, +2.00]" in table
    assert (
        "| i2v, mAP - baseline | clean (30) | occluded (30) |" in table and table in second.stdout
    )
    plot = (folder / "runs/plot.svg").read_text()
    assert "v2i mAP, percent" in plot and "occluded (30)" in plot and "padded more" in plot


@pytest.mark.slow
def test_a_changed_variant_is_run_again(folder):
    (folder / "grid.py").write_text(GRID.replace('"augment.padding": 3', '"augment.padding": 4'))
    assert run(folder).returncode == 0
    (folder / "grid.py").write_text(GRID.replace('"augment.padding": 3', '"augment.padding": 5'))
    result = run(folder)
    assert "4 of 6 runs are finished already" in result.stdout
    assert trained(folder)["padded_more"] == "0101"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ("x = 1", "--grid=bad.py: the file defines no get_grid()"),
        ("def get_grid(): return {'a': {}}", "must return a dictionary of 2 variants or more"),
        ("def get_grid(): return {'a': {}, 'b/c': {}}", "variant 'b/c': use letters, digits,"),
        ("def get_grid(): return {'a': {}, 'b': 3}", "variant 'b': use a dictionary of config"),
        (
            "def get_grid(): return {'a': {}, 'b': {'augment.stile': 1}}",
            "variant 'b': config.augment.stile does not exist: did you mean config.augment.style?",
        ),
        (
            "def get_grid(): return {'a': {}, 'b': {'augment.style': 1}}",
            "variant 'b': config.augment.style is 1: use True or False",
        ),
        ("def get_grid(): return {'a': {}, 'b': {'seed': 1}}", "the seed is set by --seeds"),
        ("def get_grid(): return {'a b': {}, 'a  b': {}}", "differ in spaces or commas only"),
    ],
)
def test_a_wrong_grid_is_one_line_and_runs_nothing(folder, grid, message):
    (folder / "bad.py").write_text(grid)
    result = run(folder, grid="bad.py")
    assert result.returncode in (1, 2) and result.stderr.startswith("error: ")
    assert message in result.stderr and result.stderr.count("\n") == 1
    assert not (folder / "runs").exists()


@pytest.mark.slow
def test_runs_share_the_gpus(folder):
    program = (
        "import sys; sys.argv = ['x', '--jobs=3', '--grid=g', '--output=o', '--config=config.py']\n"
        "from absl import flags; from launch import ablate; flags.FLAGS(sys.argv)\n"
        "print([slot.get('CUDA_VISIBLE_DEVICES') for slot in ablate.slots()])"
    )
    for visible, printed in (("4,6", "['4', '6', '4']"), ("", "[None, None, None]")):
        result = subprocess.run(
            [sys.executable, "-c", program],
            cwd=folder,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": visible, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.stdout.strip() == printed, result.stderr
