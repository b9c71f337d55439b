"""Comparisons of runs whose evaluations are written by hand."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from evaluated import values, write_run

from data_pipelines.errors import InputError
from star_jax.comparison import comparison
from star_jax.comparison.comparison import compare, methods_of
from star_jax.evaluation.reports import read_evaluation
from star_jax.evaluation.scores import METRICS

ROOT = Path(__file__).parents[3]


def read_all(folder):
    return [read_evaluation(path) for path in sorted(folder.iterdir())]


def test_methods_are_runs_that_differ_in_the_seed_alone(tmp_path):
    for seed in (2, 0, 1):
        write_run(tmp_path / f"star{seed}", changes={"seed": seed})
        write_run(tmp_path / f"plain{seed}", changes={"seed": seed, "model.guidance": "none"})
    paths = [tmp_path / name for name in ("star2", "plain0", "star0", "plain2", "star1", "plain1")]
    methods = methods_of([read_evaluation(path) for path in paths])
    assert list(methods) == ["model.guidance=frame", "model.guidance=none"]
    assert [[own.seed for own in runs] for runs in methods.values()] == [[0, 1, 2], [0, 1, 2]]
    alone = methods_of([read_evaluation(path) for path in (tmp_path / "star0", tmp_path / "star1")])
    assert list(alone) == ["all runs"]


def test_a_seed_twice_is_refused(tmp_path):
    """Keys that do not affect training may differ."""
    write_run(tmp_path / "star", changes={"seed": 2})
    write_run(tmp_path / "again", changes={"seed": 2, "data.num_threads": 3, "eval.batch_size": 9})
    with pytest.raises(InputError, match=r"again/eval/.* and .*star/eval/.* same seed"):
        methods_of(read_all(tmp_path))


@pytest.mark.parametrize(
    ("other", "names"),
    [
        (
            {"changes": {"init.backbone": "b.safetensors"}},
            ["init.backbone=", "init.backbone=b.safetensors"],
        ),
        (
            {"changes": {"init.checkpoint": "runs/star"}},
            ["init.checkpoint=", "init.checkpoint=runs/star"],
        ),
        ({"trained_on": "fedcba9876"}, ["training dataset=01234567", "training dataset=fedcba98"]),
        ({"step": 24}, ["step=12", "step=24"]),
    ],
)
def test_runs_that_were_trained_otherwise_are_other_methods(tmp_path, other, names):
    """Whether their seeds are the same or not, they are not averaged."""
    write_run(tmp_path / "0")
    for seed in (0, 1):
        own = {**other, "changes": {**other.get("changes", {}), "seed": seed}}
        write_run(tmp_path / f"other{seed}", **own)
    methods = methods_of(read_all(tmp_path))
    assert {name: len(runs) for name, runs in methods.items()} == dict(
        zip(names, (1, 2), strict=True)
    )


def test_several_revisions_of_the_code_are_named(tmp_path):
    for seed, revision in enumerate(["1111111111aa", "1111111111aa", "2222222222bb-dirty"]):
        write_run(tmp_path / str(seed), changes={"seed": seed}, revision=revision)
    evaluations = read_all(tmp_path)
    assert comparison.revisions_note(evaluations[:2]) == ""
    note = comparison.revisions_note(evaluations)
    for what in ("trained", "evaluated"):
        assert f"{what} by 1111111111 (2), 2222222222-dirty (1)" in note
    methods = methods_of(evaluations)  # which are not averaged
    assert {name: len(runs) for name, runs in methods.items()} == {
        "trained by=1111111111": 2,
        "trained by=2222222222-dirty": 1,
    }
    assert note in comparison.format_comparison(methods)


def test_scores_and_paired_differences(tmp_path):
    for seed, noise in enumerate((-3.0, 0.0, 3.0)):
        changes = {"seed": seed}
        write_run(tmp_path / f"star{seed}", changes=changes, shift=noise)
        changes |= {"model.guidance": "none"}
        write_run(tmp_path / f"plain{seed}", changes=changes, shift=noise + 1.5)
    found = compare(methods_of(read_all(tmp_path)), "v2i")
    plain, star = found.scores.values()
    assert star["map"].mean == pytest.approx(values()[:, METRICS.index("map")].mean())
    assert star["map"].spread == plain["map"].spread == pytest.approx(3.0)
    assert star["map"].low < star["map"].mean < star["map"].high
    # Shifted alike, so that the paired difference is certain though the scores are not.
    (difference,) = found.differences.values()
    for metric in METRICS:
        assert difference[metric][:3] == pytest.approx((-1.5, -1.5, -1.5))
        assert difference[metric].spread == pytest.approx(0, abs=1e-9)
    assert star["map"].high - star["map"].low > 4
    assert found.num_queries == 60


def test_differences_of_other_seeds_are_not_paired(tmp_path):
    for seed in (0, 1):
        write_run(tmp_path / f"star{seed}", changes={"seed": seed}, shift=4.0 * seed)
        write_run(
            tmp_path / f"wide{seed}",
            changes={"seed": seed + 1, "model.guidance": "none"},
            shift=4.0 * seed + 1,
        )
    (difference,) = compare(methods_of(read_all(tmp_path)), "i2v").differences.values()
    assert difference["map"].mean == pytest.approx(1) and np.isnan(difference["map"].spread)
    assert difference["map"].low < -3 and difference["map"].high > 5


def test_one_seed_says_nothing_of_the_difference_of_methods(tmp_path):
    for seed in (0, 1, 2):
        write_run(tmp_path / f"star{seed}", changes={"seed": seed}, shift=seed)
    write_run(tmp_path / "plain", changes={"model.guidance": "none"}, shift=9.0)
    methods = methods_of(read_all(tmp_path))
    found = compare(methods, "i2v")
    (difference,) = found.differences.values()
    assert np.isnan(difference["map"].low) and np.isnan(difference["map"].high)
    alone = found.scores["model.guidance=none"]["map"]
    assert alone.low < alone.mean < alone.high and np.isnan(alone.spread)
    text = comparison.format_comparison(methods)
    assert text.count("(one seed)") == 2 * 3 * 2
    assert "nothing about the methods" in text and "± standard deviation" in text


def test_a_condition_selects_queries(tmp_path):
    conditions = ["clean"] * 57 + ["occluded;smeared", "occluded", "smeared"]
    write_run(tmp_path / "star", conditions=conditions)
    evaluation = read_evaluation(tmp_path / "star")
    assert comparison.conditions_of(evaluation, "i2v") == ["clean", "occluded", "smeared"]
    found = compare({"star": [evaluation]}, "i2v", "occluded")
    assert found.num_queries == 2
    assert found.scores["star"]["rank1"].mean == pytest.approx(values()[57:59, 0].mean())
    # All of them are of one person.
    assert found.scores["star"]["rank1"][1:3] == (0, 100)
    with pytest.raises(InputError, match="'dark'"):
        compare({"star": [evaluation]}, "i2v", "dark")


@pytest.mark.parametrize(
    ("facts", "named"),
    [
        ({"dataset": {"dir": "", "fingerprint": "98"}}, "dataset.fingerprint is 0123.* and 98"),
        ({"clips": "dense"}, "clips is first and dense"),
        ({"options": {"rerank": True}}, "options.rerank is None and True"),
        ({"protocol": "cross-modality"}, "protocol is hitsz_vcm/v1 and cross-modality"),
    ],
)
def test_what_cannot_be_compared_is_named(tmp_path, facts, named):
    paths = [write_run(tmp_path / "a"), write_run(tmp_path / "b", changes={"seed": 1}, **facts)]
    with pytest.raises(InputError, match=f"a/eval/.*b/eval/.*{named}"):
        comparison.require_same_test_set([read_evaluation(path) for path in paths])


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
    write_run(tmp_path / "plain", changes={"model.guidance": "none"}, shift=2.0)
    result = run_compare(tmp_path / "star", tmp_path / "plain")
    assert result.returncode == 0, result.stderr
    methods, first, second, note = result.stdout.split("\n\n")
    assert methods.splitlines() == [
        "(1) model.guidance=frame: 1 seed",
        "(2) model.guidance=none: 1 seed",
    ]
    title, header, *_, last = first.splitlines()
    assert title == "hitsz_vcm/v1, 60 queries, in percent" and header.startswith("i2v ")
    assert last.startswith("(2) - (1) ") and last.count("+2.00 (one seed)") == 3
    assert second.splitlines()[1].startswith("v2i ")
    assert "nothing about the methods" in " ".join(note.split())


@pytest.mark.slow
def test_the_command_needs_two_runs_and_names_a_wrong_file(tmp_path):
    path = write_run(tmp_path / "star")
    result = run_compare(tmp_path / "star")
    assert result.returncode == 1
    assert result.stderr.startswith("error: pass two or more runs, as in launch/compare.py runs/")
    path.write_text("[" * 100_000)
    result = run_compare(tmp_path / "star", tmp_path / "star")
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {path}: ")
