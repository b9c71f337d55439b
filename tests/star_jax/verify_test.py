"""`launch/verify.py` passes on this machine and fails on a broken one."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from configs import star_hitsz_vcm, star_hitsz_vcm_reference
from star_jax import verify

ROOT = Path(__file__).parents[2]
REFERENCE, TRAINED = star_hitsz_vcm_reference.get_config(), star_hitsz_vcm.get_config()


def run(patch, *arguments):
    """Runs the command in a Python that first runs `patch`."""
    code = f"""
import runpy, sys
from star_jax import verify
{patch}
sys.argv = ["verify.py", *{list(map(str, arguments))!r}]
runpy.run_path({str(ROOT / "launch/verify.py")!r}, run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


# The results of all 7x7 convolutions in float32, those of the stems, are slightly too large.
BROKEN = """
import jax
right = jax.lax.conv_general_dilated
def broken(x, kernel, *more, **options):
    y = right(x, kernel, *more, **options)
    return y * 1.001 if kernel.shape[0] == 7 and x.dtype == "float32" else y
jax.lax.conv_general_dilated = broken
verify.fixtures = lambda kind: sorted(verify.FOLDER.glob("eval_*")) if kind == "eval" else []
verify.check_bfloat16 = verify.check_devices = lambda *_: []
"""


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
def test_a_broken_convolution_is_out(tmp_path):
    path = tmp_path / "verify.json"
    result = run(BROKEN, f"--json={path}")
    assert result.returncode == 1, result.stdout + result.stderr
    found = {
        c["what"].rpartition(": ")[2]: c["passed"] for c in json.loads(path.read_text())["checks"]
    }
    assert not found["frame_features"] and not found["tracklet"]
    assert found["graph"] and found["edges"]  # no convolution in them
    (line,) = [line for line in result.stdout.splitlines() if "frame_features" in line]
    assert line.startswith("float32") and line.endswith("OUT")
    last = result.stdout.splitlines()[-1]
    assert last == "Verification failed: results on this machine are not reliable"


# Every module of the network, and those that the skeleton's are made of.
MODULES = (
    *("backbone", "bnneck", "classifier", "frame_bnneck", "frame_classifier"),
    *("edge_sequence", "edge_sequence/embed", "edge_sequence/lstm"),
    *("keypoint_graph", "keypoint_graph/gat1", "keypoint_graph/gat2"),
    *("skeleton_bnneck", "skeleton_classifier", "guidance", "pooling"),
)


def with_scaled(variables, module):
    """Returns the variables with the parameters of a module multiplied by 1.1."""
    params = flatten_dict(variables["params"], sep="/")
    inside = {path for path in params if path.startswith(f"{module}/")}
    assert inside or not module
    scaled = {path: 1.1 * array if path in inside else array for path, array in params.items()}
    return {**variables, "params": unflatten_dict(scaled, sep="/")}


def out_of_tolerance(checks):
    return [check.what for check in checks if not check.passed]


@pytest.fixture
def compiled_once(monkeypatch):
    """Programs of the same config are compiled once, since only arrays differ."""
    programs = {}

    def once(make, config, *arguments):
        key = (make.__name__, str(config), arguments[0] if "inf" in make.__name__ else None)
        if key not in programs:
            programs[key] = make(config, *arguments)
        return programs[key]

    for name in ("inference_program", "training_program"):
        monkeypatch.setattr(verify, name, functools.partial(once, getattr(verify, name)))


@pytest.mark.slow
@pytest.mark.usefixtures("optimized", "compiled_once")
def test_each_module_that_is_wrong_in_bfloat16_is_out(monkeypatch):
    wrong = ""
    right, exact = verify.in_dtype, verify.values_of_inference(TRAINED, "float32")
    names = flatten_dict(right(TRAINED, "float32", (1, 1, 64, 48))[1]["params"], sep="/")
    assert {name.split("/")[0] for name in names} == set(MODULES) - {m for m in MODULES if "/" in m}

    def in_dtype(config, dtype, shape):
        config, variables, clips = right(config, dtype, shape)
        return config, with_scaled(variables, wrong), clips

    values_of = verify.values_of_inference
    monkeypatch.setattr(verify, "in_dtype", in_dtype)
    monkeypatch.setattr(
        verify,
        "values_of_inference",
        lambda config, dtype: exact if dtype == "float32" else values_of(config, dtype),
    )
    assert out_of_tolerance(verify.check_bfloat16("inference", TRAINED)) == []
    for wrong in MODULES:
        assert out_of_tolerance(verify.check_bfloat16("inference", TRAINED)), wrong


# Modules that inference hardly shows: its logits and the weights of the pooling are not recorded.
AUTHORS_NAMES = {
    "classifier": "global_classifier.",
    "frame_bnneck": "local_bottleneck.weight",
    "frame_classifier": "local_classifier.",
    "skeleton_classifier": "pose_classifier.",
    "pooling": "GuidedAggModule.",
}


@pytest.mark.slow
@pytest.mark.usefixtures("optimized", "compiled_once")
def test_each_module_that_is_wrong_in_float32_is_out(monkeypatch):
    wrong = ""
    from_authors, state_dict = verify.from_authors, verify.state_dict
    with monkeypatch.context() as patch:
        patch.setattr(verify, "from_authors", lambda *args: with_scaled(from_authors(*args), wrong))
        patch.setattr(verify, "MODALITIES", ("infrared",))
        (path,) = verify.fixtures("eval")
        assert out_of_tolerance(verify.check_network(path, REFERENCE)) == []
        unnoticed = []
        for wrong in MODULES:
            if not out_of_tolerance(verify.check_network(path, REFERENCE)):
                unnoticed.append(wrong)

    assert set(unnoticed) <= set(AUTHORS_NAMES)
    (path,) = verify.fixtures("train")
    monkeypatch.setattr(
        verify,
        "state_dict",
        lambda *args: {
            name: np.float32(1.1) * array if prefix and name.startswith(prefix) else array
            for name, array in state_dict(*args).items()
        },
    )
    prefix = ""
    assert out_of_tolerance(verify.check_network(path, REFERENCE)) == []
    for module in unnoticed:
        prefix = AUTHORS_NAMES[module]
        assert out_of_tolerance(verify.check_network(path, REFERENCE)), module


@pytest.mark.parametrize(
    ("gradients", "out"),
    [
        ([3.0, 4.0], []),
        ([3.3, 4.4], ["gradient norms"]),
        ([4.0, -3.0], ["gradients"]),  # as long, at right angles
        ([0.0, 0.0], ["gradients", "gradient norms"]),
        ([np.nan, 4.0], ["gradients", "gradient norms"]),
    ],
)
def test_a_wrong_derivative_in_bfloat16_is_out(monkeypatch, gradients, out):
    def values_of(config, dtype):
        found = np.array(gradients if dtype == "bfloat16" else [3.0, 4.0])
        return {"gradients": {"a": found}, "gradient norms": {"a": np.linalg.norm(found)}}

    monkeypatch.setattr(verify, "values_of_training", values_of)
    checks = verify.check_bfloat16("training", TRAINED)
    assert out_of_tolerance(checks) == [f"bfloat16 training: {kind}" for kind in out]


@pytest.mark.slow
def test_a_table_a_file_and_an_exit_code(tmp_path):
    path = tmp_path / "verify.json"
    checks = "verify.Check('first', 1e-7, 1e-5), verify.Check('other', {}, 1e-5)"
    for difference, passed in (("2e-6", True), ("float('nan')", False)):
        patch = f"verify.verify = lambda *configs: [{checks.format(difference)}]"
        result = run(patch, f"--json={path}")
        assert result.returncode == (0 if passed else 1), result.stderr
        report = json.loads(path.read_text())
        assert report["passed"] == passed
        assert [check["passed"] for check in report["checks"]] == [True, passed]
        assert report["checks"][1]["difference"] == (2e-6 if passed else None)
        assert {"jax", "jaxlib", "flax"} <= set(report["packages"])
        assert "--xla_cpu_experimental_ynn_fusion_type" in report["xla_flags"]
        assert report["packages"]["jax"] in result.stdout and report["xla_flags"] in result.stdout
        assert [line.split()[-1] for line in result.stdout.splitlines() if "other" in line] == [
            "ok" if passed else "OUT"
        ]
        last = result.stdout.splitlines()[-1]
        assert last.startswith("Verification passed" if passed else "Verification failed: ")


@pytest.mark.slow
def test_several_devices_are_held_against_one(monkeypatch):
    config = star_hitsz_vcm_reference.get_config()
    steps = {}

    def small_step(config, devices, num_identities):
        steps[len(devices)] = right(config, devices, num_identities)
        return steps[len(devices)]

    right = verify.small_step
    monkeypatch.setattr(verify, "small_step", small_step)
    (check,) = verify.check_devices(config)
    assert check.passed and sorted(steps) == [1, 8], check

    monkeypatch.setattr(
        verify, "small_step", lambda _, devices, __: {"x": np.ones(len(devices))[:1] * len(devices)}
    )
    (check,) = verify.check_devices(config)
    assert not check.passed and check.difference == 3.5  # 8 beside 1


def test_fixtures_of_a_folder(tmp_path, monkeypatch):
    assert [path.name for path in verify.fixtures("eval")] == ["eval_seed7.npz"]
    monkeypatch.setenv("STAR_PARITY_FIXTURES", str(tmp_path))
    with pytest.raises(ValueError, match="STAR_PARITY_FIXTURES"):
        verify.fixtures("eval")
    (tmp_path / "eval_seed23.npz").touch()
    (tmp_path / "train_seed7.npz").touch()
    assert [path.name for path in verify.fixtures("eval")] == ["eval_seed23.npz", "eval_seed7.npz"]
    assert verify.fixtures("train") == [tmp_path / "train_seed7.npz"]
    assert verify.seed_of(tmp_path / "eval_seed23.npz") == 23


def test_no_fixture_is_larger_than_a_megabyte():
    assert all(path.stat().st_size < 2**20 for path in verify.FOLDER.iterdir() if path.is_file())
