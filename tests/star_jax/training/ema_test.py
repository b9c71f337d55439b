"""The moving average of the weights: what it is, and that it is kept, evaluated and exported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import tiny
from etils import epath

import star_jax
from data_pipelines.errors import InputError
from data_pipelines.records.dataset import open_dataset
from star_jax import optim
from star_jax.distributed import parallel
from star_jax.embedding.embed import embed, embed_split
from star_jax.evaluation.evaluate import Options, evaluate_checkpoint
from star_jax.models import build_model
from star_jax.network import Network
from star_jax.runs import checkpoint
from star_jax.state import WEIGHTS, abstract_state, initial_state
from star_jax.training import loop
from star_jax.training.initialization import starting_state
from star_jax.weights.archive import checksum

ROOT = Path(__file__).parents[3]
DECAY = 0.2  # more than after one and two steps, less than after three


def averaged(dataset):
    """Returns a config whose arrays are split over the devices; of four steps."""
    config = tiny.baseline(dataset)
    config.model.backbone_options.width = 8
    config.parallel.fsdp = 2
    config.optim.ema_decay = DECAY
    config.optim.epochs = 4
    config.checkpoint.every_steps, config.checkpoint.keep = 1, 9
    config.eval.every_epochs = 4
    return config


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny.packed_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def run(dataset, tmp_path_factory):
    """Returns the workdir of a run on eight devices, and its last state."""
    workdir = tmp_path_factory.mktemp("run")
    return workdir, loop.train(averaged(dataset), workdir)


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_an_average_worked_out_by_hand():
    """Decays 1/10 and 2/11, then 1/5, since 3/12 is more."""
    config = ml_collections.ConfigDict({"ema_decay": 0.2})
    average = {"a": jnp.float32(10)}
    for step, (value, expected) in enumerate([(0, 1), (11, 9 + 2 / 11), (5, 4 + 101 / 55)]):
        average = optim.moving_average(average, {"a": jnp.float32(value)}, jnp.int32(step), config)
        assert average["a"].dtype == np.float32
        np.testing.assert_allclose(average["a"], expected, rtol=1e-6)


@pytest.mark.slow
def test_it_is_that_of_the_weights_after_each_step(run, dataset):
    workdir, state = run
    config = averaged(dataset)
    model, mesh = build_model(config.model), parallel.make_mesh(config)
    expected = jax.device_get(initial_state(config, model, 1, mesh).variables)
    for step, decay in enumerate((1 / 10, 2 / 11, DECAY, DECAY), start=1):
        path = f"{workdir}/checkpoints/{step}"
        trained, average = (star_jax.load_weights(path, weights=kind) for kind in WEIGHTS)
        expected = jax.tree.map(
            lambda old, new, decay=decay: decay * old + (1 - decay) * np.asarray(new),
            expected,
            trained.variables,
        )
        jax.tree.map(
            lambda found, twin: np.testing.assert_allclose(found, twin, rtol=1e-5, atol=1e-6),
            average.variables,
            expected,
        )
    equal(average.variables, state.ema)
    kernel = lambda tree: tree["params"]["backbone"]["stage4"]["block0"]["conv2"]["kernel"]  # noqa: E731
    assert not kernel(state.ema).is_fully_replicated
    assert kernel(state.ema).sharding == kernel(state.variables).sharding


@pytest.mark.slow
def test_a_resumed_run_has_the_same_one_bit_for_bit(run, dataset, tmp_path):
    workdir, state = run
    shutil.copytree(workdir, tmp_path / "run", ignore=shutil.ignore_patterns("eval"))
    for step in ("3", "4"):
        shutil.rmtree(tmp_path / "run/checkpoints" / step)
    resumed = loop.train(averaged(dataset), tmp_path / "run")
    equal(jax.device_get(resumed), jax.device_get(state))
    assert len(list((tmp_path / "run/eval").glob("*.json"))) == 2


@pytest.mark.slow
def test_an_evaluation_of_it_that_a_kill_prevented_is_made_up_for(run, dataset, tmp_path):
    workdir, _ = run
    shutil.copytree(workdir, tmp_path / "run")
    metrics = tmp_path / "run/metrics.jsonl"
    before = metrics.read_text()
    metrics.write_text("".join(row for row in before.splitlines(True) if "ema/" not in row))
    (lost,) = (tmp_path / "run/eval").glob("*weights_ema*.json")
    (kept,) = set((tmp_path / "run/eval").glob("*.json")) - {lost}
    scores, content = json.loads(lost.read_text())["i2v"], kept.read_bytes()
    lost.unlink()
    loop.train(averaged(dataset), tmp_path / "run")
    assert metrics.read_text() == before and kept.read_bytes() == content
    assert json.loads(lost.read_text())["i2v"] == scores


@pytest.mark.slow
def test_a_run_that_goes_on_with_another_decay_is_refused(run, dataset):
    config = averaged(dataset)
    for decay in (0.0, 0.5):
        config.optim.ema_decay = decay
        with pytest.raises(InputError, match=rf"optim\.ema_decay was 0\.2, now {decay}"):
            loop.train(config, run[0])


@pytest.mark.slow
def test_it_starts_from_the_weights_that_training_starts_from(run, dataset):
    config = averaged(dataset)
    config.init.checkpoint = str(run[0])
    model, mesh = build_model(config.model), parallel.make_mesh(config)
    state = starting_state(config, model, 1, mesh)
    equal(state.ema, state.variables)
    equal(state.ema, run[1].variables)
    pairs = zip(*map(jax.tree.leaves, (state.ema, state.variables)), strict=True)
    places = lambda x: x.addressable_shards[0].data.unsafe_buffer_pointer()  # noqa: E731
    assert all(places(one) != places(other) for one, other in pairs)  # a step donates both


@pytest.mark.slow
def test_embeddings_name_the_weights_that_computed_them(run, dataset):
    workdir, state = run
    found, split = {}, open_dataset(dataset).split("test")
    for weights, variables in state.networks.items():
        embeddings = embed(star_jax.load_weights(workdir, weights=weights), split)
        assert embeddings.provenance.weights == checksum(variables)
        config, mesh = averaged(dataset), parallel.make_mesh()
        network = Network(0, config, build_model(config.model), jax.device_get(variables), mesh)
        np.testing.assert_allclose(embeddings.vectors, embed_split(network, split), atol=1e-5)
        found[weights] = embeddings
    assert found["ema"].provenance.differences(found["trained"].provenance)[0].startswith("weights")
    assert np.abs(found["ema"].vectors - found["trained"].vectors).max() > 1e-3


@pytest.mark.slow
def test_it_is_evaluated_beside_the_weights(run):
    workdir, _ = run
    reports = [json.loads(path.read_text()) for path in (workdir / "eval").glob("4-*.json")]
    by_weights = {report["options"].get("weights", "trained"): report for report in reports}
    assert set(by_weights) == {"trained", "ema"}
    rows = [json.loads(row) for row in (workdir / "metrics.jsonl").read_text().splitlines()]
    for weights, prefix in (("trained", ""), ("ema", "ema/")):
        (logged,) = (row[f"{prefix}i2v/map"] for row in rows if f"{prefix}i2v/map" in row)
        options = Options(weights=weights)
        again, _ = evaluate_checkpoint(epath.Path(workdir), None, options=options)
        assert logged == pytest.approx(again["i2v"]["map"])
        assert by_weights[weights]["i2v"]["map"] == pytest.approx(again["i2v"]["map"])


@pytest.mark.slow
def test_an_export_says_which_weights_it_has(run):
    workdir, state = run
    command = [sys.executable, "launch/export.py", f"--workdir={workdir}", "--weights=ema"]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "XLA_FLAGS": ""}, check=True)
    path = workdir / "export/4-ema.safetensors"
    equal(star_jax.load_weights(path).variables, jax.device_get(state.ema))
    length = int.from_bytes(path.read_bytes()[:8], "little")
    assert json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]["weights"] == "ema"
    with pytest.raises(InputError, match="4-ema"):
        star_jax.load_weights(path, weights="ema")


@pytest.mark.slow
def test_without_it_a_state_is_as_before(tmp_path):
    config = tiny.baseline("nowhere")
    shapes = abstract_state(config, build_model(config.model), 1, parallel.make_mesh())
    assert shapes.ema is None
    workdir = tiny.saved_run(tmp_path, config)
    items = {path.name for path in (workdir / "checkpoints/0").iterdir() if path.is_dir()}
    assert items == {"variables", "optimizer", "manifest"}
    with pytest.raises(InputError, match="ema_decay is 0"):
        star_jax.load_weights(workdir, weights="ema")
    with pytest.raises(InputError, match="'best'"):
        star_jax.load_weights(workdir, weights="best")
    with checkpoint.open_manager(workdir, None) as manager:
        assert checkpoint.restore_state(manager, shapes)[0].ema is None
