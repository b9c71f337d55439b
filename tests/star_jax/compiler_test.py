"""The flags that work around bugs of XLA are set before JAX starts."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("optimized")]

ROOT = Path(__file__).parents[2]
CPU = "--xla_cpu_experimental_ynn_fusion_type=-reduce"
GPU = "--xla_gpu_enable_triton_gemm=false"
SAFE = f"{CPU} {GPU}"
FAULTY = "--xla_cpu_experimental_ynn_fusion_type=reduce"
OTHER = "--xla_force_host_platform_device_count=3"


def run(code, flags=None):
    """Returns the lines that a fresh Python prints, and its stderr."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}
    environment.pop("XLA_FLAGS", None)
    environment.pop("JAX_COMPILATION_CACHE_DIR")  # compiles anew with each flag
    if flags is not None:
        environment["XLA_FLAGS"] = flags
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.splitlines(), result.stderr


CANARIES = """
import numpy as np
from star_jax import verify
for program in (verify.broadcast_product, verify.sums_in_vmap):
    actual, expected = program()
    print(float(np.abs(actual - expected).max()))
"""


def test_both_canaries_are_right():
    printed, _ = run(CANARIES)
    assert [float(line) < 2e-4 for line in printed] == [True, True], printed


def test_without_the_flag_they_are_wrong():
    """Whether the bug shows depends on the processor; where it shows nowhere, drop the flag."""
    printed, _ = run(CANARIES, FAULTY)
    if all(float(line) < 2e-4 for line in printed):
        pytest.skip(f"JAX {jax.__version__} does not have the bug on this machine")
    assert not max(map(float, printed)) < 1e-2, printed  # garbage or NaN, not rounding


@pytest.mark.parametrize("first", ["import star_jax", "from star_jax import config"])
def test_any_import_sets_the_flag_and_starts_nothing(first):
    printed, _ = run(
        f"{first}\nimport os, sys\nprint(os.environ['XLA_FLAGS'], 'jax' in sys.modules)"
    )
    assert printed == [f"{SAFE} False"]


@pytest.mark.parametrize(
    ("release", "needed"),
    [("0.10.1", False), ("0.10.2", True), ("0.12.0.1", True), ("0.13.0", False), ("1.0", False)],
)
def test_only_releases_that_need_the_flags_get_them(release, needed):
    printed, _ = run(
        "import importlib.metadata, os\n"
        f"importlib.metadata.version = lambda package: {release!r}\n"
        "import star_jax\nprint(os.environ.get('XLA_FLAGS'))"
    )
    assert printed == [SAFE if needed else "None"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", SAFE),
        (OTHER, f"{OTHER} {SAFE}"),
        (FAULTY, f"{FAULTY} {GPU}"),
        (f"{GPU} {OTHER}", f"{GPU} {OTHER} {CPU}"),
        (f"{OTHER} {SAFE}",) * 2,
    ],
)
def test_what_the_user_set_stays(before, after):
    printed, _ = run("import os, star_jax; print(os.environ['XLA_FLAGS'])", before)
    assert printed == [after]


def test_a_file_of_flags_is_read(tmp_path):
    file = tmp_path / "flags.txt"
    file.write_text(f"{OTHER}\n")
    printed, _ = run("import star_jax, jax; print(jax.device_count())", str(file))
    assert printed == ["3"]
    printed, _ = run("import os, star_jax; print(os.environ['XLA_FLAGS'])", str(file))
    assert printed == [f"{OTHER} {SAFE}"]


@pytest.mark.parametrize(
    ("before", "flags", "warned"),
    [
        ("import jax; jax.devices()", None, True),
        ("import jax; jax.devices()", SAFE, False),
        ("import jax", None, False),
    ],
)
def test_a_warning_where_jax_ran_before(before, flags, warned):
    _, errors = run(f"{before}\nimport star_jax\nimport star_jax.config", flags)
    lines = [line for line in errors.splitlines() if "import star_jax first" in line]
    assert len(lines) == warned
