"""Imports run one way, and training needs no TensorFlow."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = ("star_jax", "data_pipelines", "configs", "launch", "benchmarks")

# From below to above: a module imports from its own layer and from those before it.
LAYERS = (
    (
        "star_jax.checksums",
        "star_jax.compiler",
        "star_jax.config",
        "star_jax.finite",
        "star_jax.golden",
        "star_jax.graphs",
    ),
    ("star_jax.models", "star_jax.losses", "star_jax.augment", "star_jax.optim"),
    ("star_jax.weights",),
    (
        "star_jax.steps",
        "star_jax.checkpoint",
        "star_jax.metrics",
        "star_jax.evaluation",
        "star_jax.parallel",
        "star_jax.processes",
        "star_jax.run_files",
    ),
    ("star_jax.train", "star_jax.verify"),
    ("launch", "benchmarks"),
)


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {name_of(path): path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}


def imports_of(name):
    """All that a module imports of ours, also inside functions, by the modules' full names."""
    found = set()
    for node in ast.walk(ast.parse(SOURCES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import in line {node.lineno}"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in SOURCES else node.module)
    beside = {f"launch.{module}" for module in found} & set(SOURCES)  # commands run as scripts
    return {module for module in found if module.split(".")[0] in FOLDERS} | beside


IMPORTS = {name: imports_of(name) for name in SOURCES}


def inside(module, package):
    return module == package or module.startswith(f"{package}.")


def layer_of(module):
    layers = [i for i, names in enumerate(LAYERS) if any(inside(module, name) for name in names)]
    assert len(layers) == 1, f"{module} belongs to no layer: add it to LAYERS"
    return layers[0]


def test_the_walk_sees_imports():
    assert "star_jax.graphs" in IMPORTS["star_jax.models.skeleton"]
    assert "star_jax.augment" in IMPORTS["star_jax.steps"]  # from star_jax import augment
    assert "star_jax.train" in IMPORTS["launch.train"]  # inside a function
    assert "launch.command" in IMPORTS["launch.train"]  # as a script's neighbour


@pytest.mark.parametrize("name", sorted(name for name in SOURCES if name.startswith("star_jax.")))
def test_the_library_imports_downwards(name):
    above = {
        module
        for module in IMPORTS[name]
        if inside(module, "star_jax") and module != "star_jax" and layer_of(module) > layer_of(name)
    }
    assert not above
    assert not any(inside(module, "configs") for module in IMPORTS[name])


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
    lower = [name for name in SOURCES if name.startswith("star_jax.") and layer_of(name) <= 2]
    assert len(lower) > 8
    for name in lower:
        known = {module for module in IMPORTS[name] if inside(module, "data_pipelines")}
        # Files of weights may lie at addresses, which are no dataset.
        addresses = {"data_pipelines.remote"} if name == "star_jax.weights" else set()
        assert known <= {"data_pipelines.errors"} | addresses, name


def test_data_pipelines_import_only_the_skeleton_of_the_library():
    for name in SOURCES:
        if inside(name, "data_pipelines"):
            foreign = {module for module in IMPORTS[name] if not inside(module, "data_pipelines")}
            assert foreign <= {"star_jax.graphs"}, name


def test_configs_import_only_configs():
    for name in SOURCES:
        if inside(name, "configs"):
            assert all(inside(module, "configs") for module in IMPORTS[name]), name


def test_nothing_imports_the_commands():
    for name, modules in IMPORTS.items():
        if not inside(name, "launch"):
            assert not any(inside(module, "launch") for module in modules), name


def test_training_imports_no_tensorflow(tmp_path):
    # A stand-in that cannot be imported, so that nothing tries in silence.
    stand_in = tmp_path / "tensorflow.py"
    stand_in.write_text("raise RuntimeError('something imports TensorFlow')\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}

    def run(code):
        command = [sys.executable, "-c", code]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert "something imports TensorFlow" in run("import tensorflow").stderr
    result = run("import sys, star_jax.train; print('star_jax.train' in sys.modules)")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "True"
