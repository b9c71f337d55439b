"""Trained networks are read from runs, checkpoints and exported files."""

import hashlib

import flax
import jax
import numpy as np
import pytest
import tiny

from star_jax import build_model, load_weights, network
from star_jax.distributed.parallel import make_mesh, split_rows
from star_jax.embedding.embeddings import config_hash
from star_jax.runs import checkpoint
from star_jax.state import abstract_state
from star_jax.weights import save_archive

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Returns the folder of a run with two checkpoints, and the weights of each."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny.baseline("elsewhere")
    shapes = abstract_state(config, build_model(config.model), 1, make_mesh())
    saved = {}
    with checkpoint.open_manager(workdir, keep=None) as manager:
        for step in (3, 12):
            state = tiny.random_weights(shapes, seed=step).replace(step=np.int32(step))
            checkpoint.save(manager, state, config.to_dict(), dataset="")
            manager.wait_until_finished()
            saved[step] = jax.device_get(state.variables)
    return workdir, saved


@pytest.fixture(scope="module")
def exported(run, tmp_path_factory):
    restored = load_weights(run[0])
    path = tmp_path_factory.mktemp("exported") / "star.safetensors"
    save_archive(path, config=restored.config, variables=restored.variables, step=restored.step)
    return path


def assert_same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(found.variables), expected)


@pytest.mark.parametrize(
    ("place", "step"), [("", 12), ("checkpoints/12", 12), ("checkpoints/3", 3)]
)
def test_a_run_is_its_last_checkpoint(run, place, step):
    workdir, saved = run
    for path in (workdir / place, str(workdir / place) + "/"):
        found = load_weights(path)
        assert found.step == step
        assert_same(found, saved[step])
    assert found.model == build_model(found.config.model)


def test_an_exported_file_is_the_same_network(run, exported):
    found, restored = load_weights(exported), load_weights(run[0])
    assert found.step == restored.step
    assert found.model == restored.model  # so that both use the same compiled programs
    assert config_hash(found.config) == config_hash(restored.config)  # their embeddings compare
    assert_same(found, run[1][12])
    for array in jax.tree.leaves(found.variables):
        assert array.sharding.device_set == set(jax.devices())
        assert array.is_fully_replicated


def test_the_checksum_is_that_of_the_weights_wherever_they_are(run, exported):
    network, alone = load_weights(run[0]), jax.devices()[3]
    variables = run[1][12]
    digest = hashlib.sha256()
    for name, array in sorted(flax.traverse_util.flatten_dict(variables, sep="/").items()):
        digest.update(f"{name} {array.dtype}[{', '.join(map(str, array.shape))}]".encode())
        digest.update(array.astype("<f4").tobytes(order="C"))
    expected = digest.hexdigest()
    assert network.checksum == load_weights(exported).checksum == expected
    rows = lambda x: split_rows(network.mesh) if x.shape[0] % 8 == 0 else alone  # noqa: E731
    for places in (jax.tree.map(rows, variables), alone):
        assert network._replace(variables=jax.device_put(variables, places)).checksum == expected
    assert load_weights(run[0] / "checkpoints/3").checksum != expected
    kernel = variables["params"]["classifier"]["kernel"].copy()
    kernel[0, 0] = np.nextafter(kernel[0, 0], np.float32(9))
    changed = {**variables, "params": {**variables["params"], "classifier": {"kernel": kernel}}}
    assert network._replace(variables=changed).checksum != expected


def test_an_exported_file_of_other_arrays_is_refused(exported, tmp_path):
    restored = load_weights(exported).with_config(**{"model.backbone_options.width": 8})
    path = tmp_path / "other.safetensors"
    save_archive(path, config=restored.config, variables=restored.variables, step=1)
    with pytest.raises(
        ValueError, match=r"other.safetensors: batch_stats/backbone/.* is float32\["
    ):
        load_weights(path)


def test_other_paths_are_named(run, tmp_path):
    (tmp_path / "weights.pth").write_bytes(b"x")
    (tmp_path / "x.safetensors").write_bytes(b"x")
    for path, message in {
        tmp_path: "not the folder of a run .* nor a checkpoint, <run>/checkpoints/<step>",
        tmp_path / "none": "not the folder of a run",
        tmp_path / "checkpoints/7": "not the folder of a run",
        run[0] / "checkpoints": "not the folder of a run",
        run[0] / "checkpoints/5": r"no checkpoint 5 \(there are: 3, 12\)",
        tmp_path / "weights.pth": r"weights.pth: not a network: pass the folder of a run, .*export",
        tmp_path / "x.safetensors": "x.safetensors: not a whole safetensors file",
        tmp_path / "none.safetensors": "no weights at .*none.safetensors",
    }.items():
        with pytest.raises((FileNotFoundError, ValueError), match=message) as error:
            load_weights(path)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "none").exists()


def test_paths_of_checkpoints_by_hand(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path, expected in {
        "runs/a": ("runs/a", None),
        "runs/7/": ("runs/7", None),
        "runs/a/checkpoints/7": (tmp_path / "runs/a", 7),
        "/runs/a/checkpoints/007/": ("/runs/a", 7),
    }.items():
        workdir, step = network.locate_checkpoint(path)
        assert (str(workdir), step) == (str(expected[0]), expected[1])
