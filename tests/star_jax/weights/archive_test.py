"""Archives: a network comes back from its file, and other files are refused by name."""

import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import ml_dtypes
import numpy as np
import pytest
import tiny
from safetensors import safe_open
from safetensors.numpy import load, save, save_file

from data_pipelines.errors import InputError
from star_jax import stored
from star_jax.config import as_config
from star_jax.models import build_model
from star_jax.runs import checkpoint
from star_jax.weights import (
    abstract_variables,
    check_variables,
    load_archive,
    save_archive,
)

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def config():
    config = tiny.baseline("elsewhere")
    return config


@pytest.fixture(scope="module")
def variables(config):
    """Returns random variables of the network, none of them 0 or 1."""
    rng = np.random.default_rng(0)
    frames, keypoints = np.zeros((1, 2, 2, 64, 48, 3), "f4"), np.zeros((1, 2, 2, 17, 3), "f4")
    model = build_model(config.model)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), frames, keypoints))
    return jax.tree.map(lambda x: rng.uniform(0.1, 0.9, x.shape).astype(x.dtype), shapes)


@pytest.fixture
def path(tmp_path, config, variables):
    """Returns the archive of the network."""
    save_archive(tmp_path / "new" / "star.safetensors", config=config, variables=variables, step=7)
    return tmp_path / "new" / "star.safetensors"


def parts_of(path):
    """Returns the arrays and the metadata of a file, as the package safetensors reads them."""
    with safe_open(path, "np") as file:
        metadata = file.metadata()
    return load(path.read_bytes()), metadata


def test_a_network_comes_back(path, config, variables):
    found = load_archive(path)
    assert found.step == 7
    assert jax.tree.structure(found.variables) == jax.tree.structure(variables)
    jax.tree.map(np.testing.assert_array_equal, found.variables, variables)
    assert found.config == as_config(config)
    check_variables(path, found.variables, abstract_variables(build_model(found.config.model)))
    assert [file.name for file in path.parent.iterdir()] == ["star.safetensors"]


def test_the_file_is_readable_without_star_jax(path, variables):
    arrays, metadata = parts_of(path)
    kernel = arrays["params/backbone/stem_visible/conv/kernel"]
    np.testing.assert_array_equal(
        kernel, variables["params"]["backbone"]["stem_visible"]["conv"]["kernel"]
    )
    assert len(arrays) == len(jax.tree.leaves(variables))
    assert metadata["format"] == "star_jax network 1" and metadata["step"] == "7"
    assert json.loads(metadata["config"])["data"]["frame_size"] == [64, 48]
    assert json.loads(metadata["versions"])["jax"] == jax.__version__


def test_jax_arrays_and_other_dtypes_survive(tmp_path, config):
    odd = {
        "params": {
            "transposed": np.arange(6, dtype=np.float32).reshape(2, 3).T,
            "scalar": np.float32(1.5),
            "half": np.array([1, -2, 0.15625, 3.3895314e38], ml_dtypes.bfloat16),
            "jax": jax.numpy.arange(3),
        }
    }
    path = tmp_path / "odd.safetensors"
    save_archive(path, config=config, variables=odd, step=0)
    found = load_archive(path).variables["params"]
    for name, array in odd["params"].items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)


def test_an_archive_is_replaced_as_a_whole(path, config, variables, monkeypatch):
    before = path.read_bytes()
    wrong = {**variables, "batch_stats": {"mean": np.array([1, np.nan], np.float32)}}
    with pytest.raises(InputError, match=rf"^{path}: batch_stats/mean contains NaN or Inf"):
        save_archive(path, config=config, variables=wrong, step=8)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match=rf"^{path}: cannot be writ"):
        patch.setattr(os, "fsync", full)
        save_archive(path, config=config, variables=variables, step=8)
    assert path.read_bytes() == before and len(list(path.parent.iterdir())) == 1
    save_archive(path, config=config, variables=variables, step=8)
    assert load_archive(path).step == 8


def test_what_is_no_safetensors_file_is_named(path, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"no weights at {tmp_path}/none"):
        load_archive(tmp_path / "none.safetensors")
    content = path.read_bytes()
    for wrong in (b"", b"PK\3\4 a zip", content[:7], content[:300], content[:-1], content + b"x"):
        path.write_bytes(wrong)
        with pytest.raises(InputError, match=rf"^{path}: "):
            load_archive(path)


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "star_jax 1"}])
def test_the_weights_of_another_program_are_named(tmp_path, metadata):
    path = tmp_path / "timm.safetensors"
    save_file({"conv1.weight": np.zeros(3)}, path, metadata)
    with pytest.raises(InputError, match=rf"^{path}: not a network of star_jax; .*load_arrays$"):
        load_archive(path)


@pytest.mark.parametrize("version", ["2", "0", "10", "1.1"])
def test_another_version_of_the_format_is_named(path, version):
    arrays, metadata = parts_of(path)
    save_file(arrays, path, {**metadata, "format": f"star_jax network {version}"})
    message = (
        rf"^{path}: has the format 'star_jax network {re.escape(version)}', and this version of "
        "star_jax reads 'star_jax network 1'; install"
    )
    with pytest.raises(InputError, match=message):
        load_archive(path)


def test_a_damaged_file_is_named(path):
    content = path.read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    for place in (start, (start + len(content)) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[place] ^= 1
        path.write_bytes(changed)
        with pytest.raises(InputError, match=rf"^{path}: damaged"):
            load_archive(path)
    path.write_bytes(content.replace(b'"step":"7"', b'"step":"8"'))
    with pytest.raises(InputError, match=rf"^{path}: damaged"):
        load_archive(path)
    path.write_bytes(content.replace(b"stem_visible/bn/scale", b"stem_visible/bn/scald"))
    with pytest.raises(InputError, match=rf"^{path}: damaged"):
        load_archive(path)


def resealed(path, **changes):
    """Changes the metadata of an archive and its checksum, as another version would write them."""
    arrays, metadata = parts_of(path)
    metadata = {key: value for key, value in (metadata | changes).items() if value is not None}
    del metadata["sha256"]
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    for name, array in sorted(arrays.items()):
        digest.update(f"{name} {array.dtype}{[*array.shape]}".encode() + array.tobytes())
    path.write_bytes(save(arrays, {**metadata, "sha256": digest.hexdigest()}))


def changed_config(config, change):
    content = json.loads(config.to_json())
    change(content)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].update(later=1), r"config\.model\.later does not exist"),
        (lambda c: c["model"].pop("pooling"), r"config\.model\.pooling is missing"),
        (lambda c: c["model"].update(dtype="float8"), r"config\.model\.dtype is 'float8'"),
        (lambda c: c.pop("data"), r"config\.data\.dir is missing"),
    ],
)
def test_a_config_of_other_versions_is_named(path, config, change, message):
    resealed(path, versions='{"star_jax": "9.0"}', config=changed_config(config, change))
    with pytest.raises(InputError, match=rf"^{path} \(of star_jax '9\.0'\): .*{message}") as error:
        load_archive(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "changes",
    [
        *({"config": text} for text in ("[", "[1]", '"text"', "null", "[" * 10_000, "{}", None)),
        *({"step": text} for text in ("last", "-1", "1e3", str(2**31), "9" * 5000, None)),
        *({"versions": text} for text in ("[]", "9", "{}", None)),
    ],
)
def test_strange_metadata_is_named(path, changes):
    resealed(path, **changes)
    with pytest.raises(InputError, match=rf"^{path}[: ]") as raised:
        load_archive(path)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 500


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("params/classifier/kernel", np.nan),
        ("params/classifier/kernel", -np.inf),
        ("batch_stats/bnneck/mean", np.inf),
        ("batch_stats/bnneck/var", -1e-3),
    ],
)
def test_weights_that_nothing_can_be_computed_with_are_named(path, name, value):
    arrays, metadata = parts_of(path)
    arrays[name] = arrays[name].copy()
    arrays[name].flat[-1] = value
    save_file(arrays, path, metadata)
    resealed(path)
    with pytest.raises(InputError, match=rf"^{path}: {name} "):
        load_archive(path)


def test_arrays_whose_names_collide_are_named(path):
    arrays, metadata = parts_of(path)
    arrays["params/classifier/kernel/deeper"] = np.zeros(2, np.float32)
    save_file(arrays, path, metadata)
    resealed(path)
    with pytest.raises(InputError, match=rf"^{path}: "):
        load_archive(path)


def test_an_archive_from_before_a_key_existed_is_read(path, config, monkeypatch):
    def without(content):
        del content["model"]["graph_edges"], content["seed"]

    resealed(path, config=changed_config(config, without))
    with pytest.raises(InputError, match="is missing"):
        load_archive(path)
    added = {"model.graph_edges": "first_frame", "seed": 5, "model.pooling": "max"}
    monkeypatch.setattr(stored, "ADDED_KEYS", added)
    found = load_archive(path).config
    assert (found.model.graph_edges, found.seed) == ("first_frame", 5)
    assert found.model.pooling == "gem"  # only absent keys are added


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: p.pop("classifier"), r"params/classifier/kernel is missing, .* float32\[32, 6"),
        (
            lambda p: p.update(more={"bias": np.zeros(2)}),
            r"params/more/bias is float64\[2\], ",
        ),
        (
            lambda p: p.update(classifier={"kernel": np.zeros((32, 5), np.float32)}),
            r"params/classifier/kernel is float32\[32, 5\], .* float32\[32, 6\]",
        ),
        (
            lambda p: p.update(classifier={"kernel": np.zeros((32, 6), ml_dtypes.bfloat16)}),
            r"params/classifier/kernel is bfloat16\[32, 6\], .* float32\[32, 6\]",
        ),
    ],
)
def test_arrays_that_do_not_fit_the_config_are_named(path, config, variables, change, message):
    params = dict(variables["params"])
    change(params)
    save_archive(path, config=config, variables={**variables, "params": params}, step=7)
    found = load_archive(path)
    expected = abstract_variables(build_model(found.config.model))
    with pytest.raises(InputError, match=rf"^{path}: {message}"):
        check_variables(path, found.variables, expected)


EMBED = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "orbax":
            raise ImportError(f"{name} is blocked")

sys.meta_path.insert(0, Blocked())
import numpy as np
from star_jax.distributed.parallel import make_mesh
from star_jax.models import build_model
from star_jax.embedding.step import make_embed_step
from star_jax.weights import load_archive

archive = load_archive(sys.argv[1])
inputs = np.load(sys.argv[2])
embed = make_embed_step(build_model(archive.config.model), "infrared", make_mesh())
np.save(sys.argv[3], embed(archive.variables, inputs["frames"], inputs["keypoints"]))
assert "orbax" not in sys.modules and "flax" in sys.modules
"""


@pytest.mark.slow
def test_checkpoint_and_archive_give_equal_embeddings_without_orbax(config, tmp_path):
    from star_jax.distributed.parallel import make_mesh
    from star_jax.embedding.step import make_embed_step
    from star_jax.network import restore_network
    from star_jax.state import initial_state, random_batch

    state = initial_state(config, build_model(config.model), 1, make_mesh())
    with checkpoint.open_manager(tmp_path, 1) as manager:
        checkpoint.save(manager, state, config.to_dict(), dataset="")
        manager.wait_until_finished()
    network = restore_network(tmp_path, None)
    path = tmp_path / "star.safetensors"
    save_archive(path, config=network.config, variables=network.variables, step=network.step)

    batch = random_batch(config, 8)
    inputs = {name: batch[name][:, :, 1] for name in ("frames", "keypoints")}
    np.savez(tmp_path / "inputs.npz", **inputs)
    embed = make_embed_step(network.model, "infrared", network.mesh)
    expected = np.asarray(embed(network.variables, inputs["frames"], inputs["keypoints"]))
    files = [str(path), f"{tmp_path}/inputs.npz", f"{tmp_path}/found.npy"]
    subprocess.run([sys.executable, "-c", EMBED, *files], cwd=ROOT, check=True)
    np.testing.assert_allclose(np.load(files[-1]), expected, rtol=0, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-4  # so that a swap of rows would show
