"""`launch/verify.py` passes on this machine and fails on a broken one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from configs import star_hitsz_vcm_reference
from star_jax import verify

ROOT = Path(__file__).parents[2]


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


# The results of all 7x7 convolutions, those of the stems, are slightly too large.
BROKEN = """
import jax
right = jax.lax.conv_general_dilated
def broken(x, kernel, *more, **options):
    y = right(x, kernel, *more, **options)
    return y * FACTOR if kernel.shape[0] == 7 else y
jax.lax.conv_general_dilated = broken
verify.fixtures = lambda kind: sorted(verify.GOLDEN.glob("eval_*")) if kind == "eval" else []
verify.TOLERANCES = {DTYPE: verify.TOLERANCES[DTYPE]}
verify.check_devices = lambda config: []
"""


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1.001), ("bfloat16", 1.1)])
def test_a_broken_convolution_is_out(dtype, factor, tmp_path):
    path = tmp_path / "verify.json"
    patch = BROKEN.replace("DTYPE", repr(dtype)).replace("FACTOR", str(factor))
    result = run(patch, f"--json={path}")
    assert result.returncode == 1, result.stdout + result.stderr
    found = {
        c["what"].rpartition(": ")[2]: c["passed"] for c in json.loads(path.read_text())["checks"]
    }
    assert not found["frame_features"] and not found["tracklet"]
    assert found["graph"] and found["edges"]  # no convolution in them
    (line,) = [line for line in result.stdout.splitlines() if "frame_features" in line]
    assert line.startswith(dtype) and line.endswith("OUT")


@pytest.mark.slow
def test_a_table_a_file_and_an_exit_code(tmp_path):
    path = tmp_path / "verify.json"
    checks = "verify.Check('first', 1e-7, 1e-5), verify.Check('other', {}, 1e-5)"
    for difference, passed in (("2e-6", True), ("float('nan')", False)):
        patch = f"verify.verify = lambda config: [{checks.format(difference)}]"
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
    assert all(path.stat().st_size < 2**20 for path in verify.GOLDEN.iterdir() if path.is_file())
