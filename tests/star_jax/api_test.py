"""What `import star_jax` offers, and what it costs."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import star_jax

ROOT = Path(__file__).parents[2]


def run(code):
    """Runs code in a fresh process and returns what it prints."""
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.strip()


@pytest.mark.slow
def test_importing_it_is_quick_and_starts_no_backend():
    code = """
import time, jax
start = time.process_time()
import star_jax
names = dir(star_jax)
seconds = time.process_time() - start
from jax._src import xla_bridge
print(seconds, xla_bridge.backends_are_initialized())
"""
    runs = [run(code).split() for _ in range(3)]
    assert min(float(seconds) for seconds, _ in runs) < 0.5
    assert {started for _, started in runs} == {"False"}


@pytest.mark.slow
def test_loading_every_name_starts_no_backend():
    code = """
import star_jax
for name in star_jax.__all__:
    getattr(star_jax, name)
from jax._src import xla_bridge
print(xla_bridge.backends_are_initialized())
"""
    assert run(code) == "False"


@pytest.mark.parametrize("name", star_jax.__all__)
def test_a_name_is_what_its_module_defines(name):
    assert name in dir(star_jax)
    value = getattr(star_jax, name)
    if name == "losses":
        assert value is importlib.import_module("star_jax.losses")
    else:
        assert value.__name__ == name and value.__doc__
        assert getattr(importlib.import_module(value.__module__), name) is value
    assert getattr(star_jax, name) is value


def test_an_unknown_name_is_named():
    with pytest.raises(AttributeError, match="'star_jax' has no attribute 'Embeder'"):
        star_jax.Embeder  # noqa: B018
    with pytest.raises(ImportError, match="nothing"):
        from star_jax import nothing  # noqa: F401
    assert not hasattr(star_jax, "_HOMES_")


def test_type_checkers_see_every_name():
    lines = (ROOT / "star_jax" / "__init__.py").read_text().split("if TYPE_CHECKING:")[1]
    block = lines.split("__version__")[0]
    imported = block.replace(",", " ").split()
    assert set(star_jax.__all__) <= set(imported)


def test_the_version_is_the_citations():
    lines = (ROOT / "CITATION.cff").read_text().splitlines()
    assert f"version: {star_jax.__version__}" in lines


def test_retrieval_is_scored_from_the_package():
    # The first query finds its match second, the other one first.
    result = star_jax.evaluate_retrieval(
        np.array([[0.1, 0.9], [0.2, 0.7]], np.float32), query_ids=["a", "b"], gallery_ids=["a", "b"]
    )
    assert (result.rank(1), result.mean_ap) == (0.5, 0.75)
