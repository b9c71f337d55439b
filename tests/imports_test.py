"""Imports go down the layers only, and training needs no TensorFlow."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("star_jax", "data_pipelines", "configs", "launch", "benchmarks")

# From bottom to top: a module imports from its own layer and from those before it.
LAYERS = (
    ("data_pipelines.coco17", "data_pipelines.errors", "data_pipelines.pixels"),
    ("data_pipelines.parts",),
    ("data_pipelines.schema",),
    ("data_pipelines.io",),
    ("data_pipelines.skeletons",),
    ("data_pipelines.records",),
    ("data_pipelines.datasets", "data_pipelines.sampling"),
    ("data_pipelines.synthetic", "data_pipelines.loader"),
    ("data_pipelines.footage",),
    ("star_jax.compiler", "star_jax.config", "star_jax.trees", "star_jax.streams"),
    ("star_jax.stored",),
    ("star_jax.models",),
    ("star_jax.augment", "star_jax.optim"),
    ("star_jax.losses", "star_jax.weights", "star_jax.distributed"),
    ("star_jax.state",),
    ("star_jax.runs",),
    ("star_jax.network",),
    ("star_jax.embedding",),
    ("star_jax.evaluation",),
    ("star_jax.comparison", "star_jax.report"),
    ("star_jax.search",),
    ("star_jax.training",),
    ("star_jax.golden", "star_jax.verify"),
    ("launch", "benchmarks"),
)
PACKAGES = ("data_pipelines", "star_jax")


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def imports_of(name):
    """Returns the full names of our modules that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in SOURCES else node.module)
    return {module for module in found if module.split(".")[0] in FOLDERS}


IMPORTS = {name: imports_of(name) for name in SOURCES}


def inside(module, package):
    return module == package or module.startswith(f"{package}.")


def layer_of(module):
    """Returns the layer of the longest name in LAYERS that is the module or contains it."""
    names = {name: i for i, layer in enumerate(LAYERS) for name in layer if inside(module, name)}
    assert names, f"{module} belongs to no layer: add it to LAYERS"
    return names[max(names, key=len)]


def test_the_walk_sees_imports():
    assert "data_pipelines.coco17" in IMPORTS["star_jax.models.skeleton"]
    assert "star_jax.augment" in IMPORTS["star_jax.training.steps"]  # from star_jax import augment
    assert "star_jax.training.loop" in IMPORTS["launch.train"]  # inside a function
    assert "launch.command" in IMPORTS["launch.train"]  # from launch import command


@pytest.mark.parametrize(
    "name", sorted(name for name in SOURCES if any(name.startswith(f"{p}.") for p in PACKAGES))
)
def test_imports_go_down(name):
    above = {
        module
        for module in IMPORTS[name]
        if module not in PACKAGES and layer_of(module) > layer_of(name)
    }
    assert not above


@pytest.mark.parametrize("folder", sorted({path.parent for path in SOURCES.values()}))
def test_no_folder_is_crowded(folder):
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 12


def test_no_imports_go_in_circles():
    done = set()

    def visit(name, path):
        assert name not in path, " -> ".join([*path, name])
        if name not in done:
            for module in sorted(IMPORTS[name] - {name}):
                visit(module, [*path, name])
            done.add(name)

    for name in SOURCES:
        visit(name, [])


def test_the_network_knows_no_dataset():
    lower = [name for name in SOURCES if inside(name, "star_jax.models")]
    lower += ["star_jax.augment", "star_jax.losses", "star_jax.optim", "star_jax.config"]
    assert len(lower) > 8
    for name in lower:
        known = {module for module in IMPORTS[name] if inside(module, "data_pipelines")}
        assert known <= {f"data_pipelines.{name}" for name in ("errors", "coco17", "parts")}, name


def test_footage_and_pose_models_are_for_commands():
    for name, modules in IMPORTS.items():
        if not inside(name, "data_pipelines.footage") and not inside(name, "launch"):
            assert not any(inside(module, "data_pipelines.footage") for module in modules), name


def test_data_pipelines_import_nothing_of_the_library():
    for name in SOURCES:
        if inside(name, "data_pipelines"):
            foreign = {module for module in IMPORTS[name] if not inside(module, "data_pipelines")}
            assert not foreign, name


def test_configs_import_only_configs_and_the_defaults():
    for name in SOURCES:
        if inside(name, "configs"):
            assert all(inside(m, "configs") or m == "star_jax" for m in IMPORTS[name]), name


def test_nothing_imports_the_commands():
    for name, modules in IMPORTS.items():
        if not inside(name, "launch"):
            assert not any(inside(module, "launch") for module in modules), name


@pytest.mark.slow
def test_training_imports_no_tensorflow(tmp_path):
    # A stand-in that raises on import, so that no import goes unnoticed.
    stand_in = tmp_path / "tensorflow.py"
    stand_in.write_text("raise RuntimeError('something imports TensorFlow')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def run(code):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert "something imports TensorFlow" in run("import tensorflow").stderr
    result = run(
        "import sys, star_jax.training.loop; print('star_jax.training.loop' in sys.modules)"
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"
