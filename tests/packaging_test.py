"""The wheel alone is the library; the files around it agree with each other."""

import importlib.metadata
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import tiny
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

import star_jax

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Returns the wheel, built from a copy without what earlier builds may have left."""
    folder = tmp_path_factory.mktemp("wheel")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir"]
    command = [sys.executable, "-m", "pip", *build, str(folder), str(folder / "source")]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_its_data_only(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert tops == {"star_jax", "data_pipelines", f"star_jax-{star_jax.__version__}.dist-info"}
    assert {"star_jax/py.typed", "data_pipelines/py.typed"} <= set(names)
    assert {"star_jax/golden/eval_seed7.npz", "star_jax/golden/state_dict.json"} <= set(names)
    assert "star_jax/report/page.html" in names
    sources = {
        str(path.relative_to(ROOT))
        for top in ("star_jax", "data_pipelines")
        for path in (ROOT / top).rglob("*.py")
    }
    assert {name for name in names if name.endswith(".py")} == sources


# The config of a run, as an expression: the wheel holds no configs.
USE = """
import importlib.util, sys
import jax, ml_collections, numpy as np
import data_pipelines, star_jax
from star_jax.distributed import parallel
from star_jax.evaluation.retrieval import evaluate_retrieval
from star_jax.models import build_model
from star_jax.state import initial_state, random_batch
from star_jax.training import steps
from star_jax.weights import save_archive

for name in ("configs", "launch", "tests", "benchmarks"):
    assert importlib.util.find_spec(name) is None, name
for package in (star_jax, data_pipelines):
    assert package.__file__.startswith(sys.prefix), package.__file__

config = ml_collections.ConfigDict(CONFIG)
mesh = parallel.make_mesh(config, jax.devices()[:1])
model = build_model(config.model)
state = initial_state(config, model, 3, mesh)
train_step = steps.make_train_step(config, model, 3, mesh)
for _ in range(3):
    state, metrics = train_step(state, random_batch(config, 8))
    assert np.isfinite(metrics["loss/total"])
assert int(state.step) == 3

# The first query's match is in the first place, the second query's in the second.
similarity = np.array([[0.9, 0.1], [0.8, 0.2]])
result = evaluate_retrieval(similarity, query_ids=["a", "b"], gallery_ids=["a", "b"])
assert (result.rank(1), result.mean_ap) == (0.5, 0.75), result

variables = {"params": state.params, "batch_stats": state.batch_stats}
save_archive("network.safetensors", config=config, variables=variables, step=3)
"""
EXAMPLE = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)[1]
CHECKS = """
assert infrared.shape == visible.shape == (6, 32)
np.testing.assert_allclose(np.linalg.norm(infrared, axis=1), 1, rtol=1e-5)
assert 0 <= result.rank(1) <= 1
"""


@pytest.mark.slow
def test_the_wheel_alone_trains_and_evaluates_and_runs_the_example_of_the_readme(wheel, tmp_path):
    venv.create(tmp_path / "venv", with_pip=False)
    python = tmp_path / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", f"--python={python}", "install", "--no-deps"]
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([*install, "--quiet", "--no-index", str(wheel)], env=alone, check=True)
    # The dependencies of this environment, but none of the paths that its .pth files add.
    used = sysconfig.get_path("purelib")
    program = USE.replace("CONFIG", repr(tiny.config(Path("nowhere")).to_dict()))
    program += EXAMPLE.replace("runs/demo", "network.safetensors") + CHECKS
    environment = os.environ | {"PYTHONPATH": used}
    result = subprocess.run(
        [python, "-c", f"import sys; sys.path.append(sys.path.pop(1))\n{program}"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("(6, "), result.stdout  # of the example: shape, ranks, scores


def pins(name):
    """Returns the exact versions that a file of requirements installs here, by package."""
    lines = (ROOT / name).read_text(encoding="utf-8").splitlines()
    found = [Requirement(line) for line in lines if line and not line.startswith("#")]
    here = [pin for pin in found if pin.marker is None or pin.marker.evaluate()]
    for pin in here:
        assert [clause.operator for clause in pin.specifier] == ["=="], pin
    return {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in here}


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == star_jax.__version__
    assert PROJECT["dynamic"] == ["version"]  # read from star_jax


def test_the_pinned_versions_are_among_those_that_the_library_allows():
    pinned = pins("requirements.txt")
    for requirement in map(Requirement, PROJECT["dependencies"]):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version, prereleases=True), requirement


def test_these_tests_run_with_the_pinned_versions_of_jax():
    pinned = pins("requirements.txt")
    for name in ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint"):
        assert importlib.metadata.version(name) == pinned[name], name


def test_the_workflow_calls_targets_that_exist_with_supported_pythons():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    matrix = job["strategy"]["matrix"]["include"]
    assert {target for entry in matrix for target in entry["target"].split()} <= TARGETS
    for entry in matrix:
        assert SpecifierSet(PROJECT["requires-python"]).contains(entry["python"])
    (run,) = [step["run"] for step in job["steps"] if "run" in step]
    assert re.fullmatch(r"make \$\{\{ matrix\.target \}\} PYTHON=python", run)


def test_ci_run_calls_targets_that_exist():
    called = re.findall(r"^.*\brun ([a-z-]+) \"\$", (ROOT / ".ci/run").read_text(), re.MULTILINE)
    assert called and set(called) <= TARGETS


def test_forms_and_hooks_are_yaml():
    forms = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
    assert len(forms) == 3
    for path in (*forms, ROOT / ".pre-commit-config.yaml"):
        assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict), path
