"""The command that exports a checkpoint: its files, the code of its page, and how it refuses."""

import os
import re
import subprocess
import sys
from pathlib import Path

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny
from safetensors import safe_open
from safetensors.numpy import load_file

from star_jax.distributed.parallel import make_mesh
from star_jax.models import build_model
from star_jax.runs import checkpoint
from star_jax.state import TrainState, abstract_variables
from star_jax.weights import from_authors, load_archive

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/export.md").read_text(encoding="utf-8")
LIBRARY, PLAIN, FUNCTION = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)  # all that run


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """Returns the workdir of a run that has saved random variables of a small ResNet-50."""
    workdir = tmp_path_factory.mktemp("run")
    config = tiny.config("elsewhere")
    config.model.backbone = "resnet50"
    shapes = abstract_variables(config, build_model(config.model), make_mesh())
    variables = tiny.random_weights(shapes)
    state = TrainState(jnp.int32(7), **variables, losses={}, opt_state={"count": jnp.int32(7)})
    with checkpoint.open_manager(workdir, 1) as manager:
        checkpoint.save(manager, state, config.to_dict(), dataset="")
        manager.wait_until_finished()
    np.savez(workdir / "variables.npz", **flax.traverse_util.flatten_dict(variables, sep="/"))
    return workdir


def export(*arguments):
    command = [sys.executable, "launch/export.py", *arguments]
    environment = {**os.environ, "XLA_FLAGS": ""}  # one device
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


def run_code(block, path):
    """Runs a block of the page on this file; returns its names."""
    names = {}
    code, found = re.subn(r'"[^"]+\.(safetensors|stablehlo)"', repr(str(path)), block)
    assert found
    exec(code, names)
    return names


def assert_equal(actual, workdir):
    actual = flax.traverse_util.flatten_dict(actual, sep="/")
    with np.load(workdir / "variables.npz") as expected:
        assert set(actual) == set(expected)
        for name, array in expected.items():
            np.testing.assert_array_equal(actual[name], array)


@pytest.mark.slow
def test_an_archive_is_written_beside_the_checkpoints(workdir):
    path = workdir / "export" / "7.safetensors"
    result = export(f"--workdir={workdir}")
    assert (result.returncode, result.stderr) == (0, "")
    size = path.stat().st_size / 1e6
    assert result.stdout == f"step 7 written to {path} ({size:.1f} MB)\n"
    archive = load_archive(path)
    assert_equal(archive.variables, workdir)
    assert archive.step == 7 and archive.config.model.backbone == "resnet50"
    assert_equal(run_code(LIBRARY, path)["network"].variables, workdir)
    plain = run_code(PLAIN, path)
    assert plain["config"]["model"]["backbone"] == "resnet50"
    kernel = archive.variables["params"]["backbone"]["stem_visible"]["conv"]["kernel"]
    np.testing.assert_array_equal(plain["kernel"], kernel)


@pytest.mark.slow
def test_the_authors_names_are_written_where_output_says(workdir, tmp_path):
    path = tmp_path / "new" / "star.safetensors"
    result = export(f"--checkpoint={workdir}/checkpoints/7", "--format=pytorch", f"--output={path}")
    assert result.returncode == 0 and f"step 7 written to {path} (" in result.stdout
    assert result.stderr.startswith("note: trained with config.model.keypoints='relative' and ")
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    config = tiny.config("elsewhere")
    config.model.backbone = "resnet50"
    assert_equal(from_authors(load_file(path), config.model), workdir)
    with safe_open(path, "np") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.slow
def test_each_modality_has_a_function(workdir, tmp_path):
    result = export(f"--workdir={workdir}", "--format=stablehlo", f"--output={tmp_path}/star")
    assert (result.returncode, result.stderr) == (0, "")
    paths = [tmp_path / f"star-{modality}.stablehlo" for modality in ("visible", "infrared")]
    assert [line.split()[4] for line in result.stdout.splitlines()] == [*map(str, paths)]
    functions = [jax.export.deserialize(bytearray(path.read_bytes())) for path in paths]
    for function in functions:
        assert [x.shape[1:] for x in function.in_avals] == [(2, 64, 48, 3), (2, 17, 3)]
    assert functions[0].mlir_module() != functions[1].mlir_module()  # another stem
    embeddings = run_code(FUNCTION, paths[1])["embeddings"]
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), np.ones(3), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--workdir=runs/a", "--output=mine/"], "--output=mine/: use a file name"),
        ([], "pass either --workdir or --checkpoint"),
        (["--workdir=nowhere"], "nowhere: not the folder of a run"),
        (["--workdir=a", "--format=onnx"], "flag --format=onnx: value should be one of"),
    ],
)
def test_wrong_flags_are_named(arguments, message):
    result = export(*arguments)
    assert result.returncode in (1, 2) and result.stdout == ""
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1
