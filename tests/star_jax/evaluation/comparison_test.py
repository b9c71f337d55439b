"""Comparisons of runs whose evaluations are written by hand."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from etils import epath

from star_jax.evaluation import comparison
from star_jax.evaluation.comparison import compare, methods_of, read_evaluation
from star_jax.evaluation.scores import METRICS
from star_jax.training import run_files

ROOT = Path(__file__).parents[3]
IDENTITIES = np.repeat([f"{i:04}" for i in range(20)], 3)


def write_run(workdir, *, seed=0, guidance="frame", shift=0.0, step=12, conditions=None, **report):
    """Writes a run whose queries have random scores, the same for all runs, plus a shift."""
    config = {"seed": seed, "model": {"guidance": guidance}, "data": {"dir": str(workdir)}}
    run_files.write_json(workdir / "config.json", config)
    values = np.random.default_rng(7).uniform(20, 80, (len(IDENTITIES), len(METRICS)))
    queries = {}
    for direction in ("i2v", "v2i"):
        queries |= {
            f"{direction}_positions": np.arange(len(IDENTITIES)),
            f"{direction}_identities": IDENTITIES,
            f"{direction}_conditions": np.array(conditions or [""] * len(IDENTITIES)),
            f"{direction}_scores": values + shift + (direction == "v2i"),
        }
    facts = {
        **{"protocol": "hitsz_vcm/v1", "split": "test", "clips": "first", "options": {}},
        **{"dataset": {"dir": str(workdir), "fingerprint": "0123456789"}, "i2v": {}, "v2i": {}},
    }
    return run_files.write_report(epath.Path(workdir), facts | {"step": step} | report, queries)


def test_methods_are_runs_that_differ_in_the_seed_alone(tmp_path):
    for seed in (2, 0, 1):
        write_run(tmp_path / f"star{seed}", seed=seed)
        write_run(tmp_path / f"plain{seed}", seed=seed, guidance="none")
    paths = [tmp_path / name for name in ("star2", "plain0", "star0", "plain2", "star1", "plain1")]
    methods = methods_of([read_evaluation(path) for path in paths])
    assert list(methods) == ["model.guidance=frame", "model.guidance=none"]
    assert [[own.seed for own in runs] for runs in methods.values()] == [[0, 1, 2], [0, 1, 2]]
    alone = methods_of([read_evaluation(path) for path in (tmp_path / "star0", tmp_path / "star1")])
    assert list(alone) == ["all runs"]
    again = write_run(tmp_path / "again", seed=2)
    with pytest.raises(ValueError, match=r"star2/eval/.* and .*again/.* the same config and seed"):
        methods_of([read_evaluation(path) for path in (tmp_path / "star2", again)])


def test_runs_that_start_from_other_weights_are_other_methods(tmp_path):
    for name, init in {
        "older": {"backbone": "a.pth"},  # from before the key existed
        "scratch": {"backbone": "b.pth", "checkpoint": ""},
        "tuned": {"backbone": "", "checkpoint": "runs/star"},
    }.items():
        path = write_run(tmp_path / name, seed=len(name)).parent.parent / "config.json"
        run_files.write_json(path, run_files.read_json(path) | {"init": init})
    methods = methods_of([read_evaluation(path) for path in sorted(tmp_path.iterdir())])
    assert {name: len(runs) for name, runs in methods.items()} == {
        "init.checkpoint=": 2,
        "init.checkpoint=runs/star": 1,
    }


def test_scores_and_paired_differences(tmp_path):
    for seed, noise in enumerate((-3.0, 0.0, 3.0)):
        write_run(tmp_path / f"star{seed}", seed=seed, shift=noise)
        write_run(tmp_path / f"plain{seed}", seed=seed, guidance="none", shift=noise + 1.5)
    evaluations = [read_evaluation(path) for path in sorted(tmp_path.iterdir())]
    found = compare(methods_of(evaluations), "v2i")
    plain, star = found.scores.values()
    values = np.random.default_rng(7).uniform(20, 80, (60, 6))[:, METRICS.index("map")]
    assert star["map"].mean == pytest.approx(values.mean() + 1)
    assert star["map"].spread == plain["map"].spread == pytest.approx(3.0)
    assert star["map"].low < star["map"].mean < star["map"].high
    # Shifted alike, so that the paired difference is certain though the scores are not.
    (difference,) = found.differences.values()
    for metric in METRICS:
        assert difference[metric][:3] == pytest.approx((-1.5, -1.5, -1.5))
        assert difference[metric].spread == pytest.approx(0, abs=1e-9)
    assert star["map"].high - star["map"].low > 4
    assert found.num_queries == 60


def test_a_condition_selects_queries(tmp_path):
    conditions = ["clean"] * 57 + ["occluded;smeared", "occluded", "smeared"]
    write_run(tmp_path / "star", conditions=conditions)
    evaluation = read_evaluation(tmp_path / "star")
    assert comparison.conditions_of(evaluation, "i2v") == ["clean", "occluded", "smeared"]
    values = np.random.default_rng(7).uniform(20, 80, (60, 6))[:, 0]
    found = compare({"star": [evaluation]}, "i2v", "occluded")
    assert found.num_queries == 2
    assert found.scores["star"]["rank1"].mean == pytest.approx(values[57:59].mean())
    with pytest.raises(ValueError, match="no query of i2v has the condition 'dark'"):
        compare({"star": [evaluation]}, "i2v", "dark")


def run_compare(*arguments):
    return subprocess.run(
        [sys.executable, "launch/compare.py", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_the_command_prints_tables_and_says_what_one_seed_is_worth(tmp_path):
    write_run(tmp_path / "star")
    write_run(tmp_path / "plain", guidance="none", shift=2.0)
    result = run_compare(tmp_path / "star", tmp_path / "plain")
    assert result.returncode == 0, result.stderr
    methods, first, second, note = result.stdout.split("\n\n")
    assert methods.splitlines() == [
        "(1) model.guidance=frame: 1 seed",
        "(2) model.guidance=none: 1 seed",
    ]
    title, header, *_, last = first.splitlines()
    assert title == "hitsz_vcm/v1, 60 queries, in percent" and header.startswith("i2v ")
    assert last.startswith("(2) - (1) ") and last.count("+2.00 [+2.00, +2.00]") == 3
    assert second.splitlines()[1].startswith("v2i ")
    assert "differences say nothing about the methods" in " ".join(note.split())


@pytest.mark.slow
def test_what_cannot_be_compared_is_one_line(tmp_path):
    write_run(tmp_path / "star")
    other = write_run(tmp_path / "other", seed=1, dataset={"fingerprint": "9876"})
    clips = write_run(tmp_path / "dense", seed=1, clips="dense", options={"rerank": True})
    with pytest.raises(FileNotFoundError, match="has no evaluation; run launch/eval"):
        read_evaluation(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such evaluation"):
        read_evaluation(tmp_path / "star/eval/1.json")
    for path, message in (
        (other, "dataset.fingerprint is 0123456789 and 9876"),
        (clips, "clips is first and dense; options.rerank is None and True"),
    ):
        with pytest.raises(ValueError, match=f"cannot be compared: {message}; evaluate both"):
            comparison.require_same_test_set(
                [read_evaluation(tmp_path / "star"), read_evaluation(path)]
            )
    result = run_compare(tmp_path / "star")
    assert result.returncode == 1
    assert result.stderr.startswith("error: give two runs or more, as in launch/compare.py runs/")


def test_the_last_step_must_have_one_evaluation(tmp_path):
    write_run(tmp_path, step=9)
    last = write_run(tmp_path, step=12)
    assert read_evaluation(tmp_path).path == last
    write_run(tmp_path, step=12, clips="dense")
    with pytest.raises(ValueError, match=r"has 2 evaluations of step 12; give one of .*-dense-"):
        read_evaluation(tmp_path)


@pytest.mark.parametrize("damage", ["missing", "cut", "other arrays", "other shape", "objects"])
def test_damaged_scores_are_named(tmp_path, damage):
    report = write_run(tmp_path)
    path = run_files.queries_path(report)
    if damage == "missing":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:100])
    elif damage == "other arrays":
        np.savez(path, x=np.zeros(3))
    elif damage == "objects":
        np.savez(path, i2v_identities=np.array([{}], dtype=object), allow_pickle=True)
    else:
        with np.load(path) as file:
            np.savez(path, **{**file, "i2v_scores": np.zeros((3, 6))})
    with pytest.raises(ValueError, match=r"queries.npz: the scores of the queries cannot be read"):
        read_evaluation(tmp_path)


def test_a_report_is_json(tmp_path):
    assert json.loads(write_run(tmp_path).read_text())["step"] == 12
