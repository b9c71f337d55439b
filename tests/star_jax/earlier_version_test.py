"""What an earlier revision wrote is read, and computed, as that revision did."""

import json
import pathlib
import shutil

import ml_collections
import numpy as np
import pytest
from etils import epath

import star_jax
from data_pipelines.records.dataset import open_dataset
from star_jax.embedding.embed import embed
from star_jax.evaluation.evaluate import evaluate_checkpoint
from star_jax.runs import run_files
from star_jax.training import loop

pytestmark = pytest.mark.slow

EARLIER = pathlib.Path(__file__).parents[1] / "golden/revision_773a687.zip"


@pytest.fixture
def earlier(tmp_path, monkeypatch):
    """Returns what the revision wrote; its paths are relative to it."""
    shutil.unpack_archive(EARLIER, tmp_path)
    monkeypatch.chdir(tmp_path)
    return pathlib.Path()


def rows(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_first_steps_have_the_same_losses_and_gradients(earlier):
    config = ml_collections.ConfigDict(run_files.read_config(epath.Path("run/config.json")))
    loop.train(config, "again")
    again, before = rows(earlier / "again/metrics.jsonl"), rows(earlier / "run/metrics.jsonl")
    assert [row["step"] for row in again] == [1, 2, 3]
    # Rounding, which is amplified from step to step.
    for new, old, tolerance in zip(again, before, (1e-4, 5e-3, 2e-2), strict=True):
        names = [name for name in old if name.startswith(("loss/", "gradient_norm"))]
        assert {name: new[name] for name in names} == pytest.approx(
            {name: old[name] for name in names}, rel=tolerance
        )


def test_a_checkpoint_evaluates_to_the_same_scores(earlier):
    (before,) = (earlier / "run/eval").glob("*.json")
    before = json.loads(before.read_text())
    report, _ = evaluate_checkpoint(epath.Path("run"), None)
    for direction in ("i2v", "v2i"):
        for metric in ("rank1", "rank5", "map", "minp", "queries", "gallery"):
            assert report[direction][metric] == pytest.approx(before[direction][metric]), metric


@pytest.mark.parametrize("path", ["run", "run/checkpoints/3", "exported.safetensors"])
def test_a_network_embeds_as_before(earlier, path):
    found = embed(star_jax.load_weights(path), open_dataset("dataset").split("test"))
    with np.load("embeddings.npz") as before:
        np.testing.assert_allclose(found.vectors, before["embeddings"], atol=1e-5)
        np.testing.assert_array_equal(found.index.identities, before["identities"])


def test_a_run_resumes(earlier):
    config = ml_collections.ConfigDict(run_files.read_config(epath.Path("run/config.json")))
    config.optim.epochs = 4
    state = loop.train(config, "run")
    assert int(state.step) == 4
    assert [row["step"] for row in rows(earlier / "run/metrics.jsonl")] == [1, 2, 3, 4]
