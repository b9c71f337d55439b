"""The code of the documentation runs: README.md, the library page and the tutorial.

That of docs/how_to is in tests/star_jax/training/elsewhere_test.py.
"""

import os
import re
from pathlib import Path

import jax
import nbclient
import nbformat
import numpy as np
import pytest

from configs import star_synthetic_demo
from star_jax import build_model
from star_jax.training.steps import initial_variables
from star_jax.weights.archive import save_archive

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.ipynb"
IMAGES = ("image/png", "image/jpeg")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The network of the demo with random weights, as a file."""
    config = star_synthetic_demo.get_config()
    config.model.num_identities = 8
    shapes = jax.eval_shape(lambda: initial_variables(config, build_model(config.model)))
    rng = np.random.default_rng(0)

    def drawn(array):
        if array.ndim < 2:  # of norms, whose variances must be positive, and biases
            return rng.uniform(0.5, 1.5, array.shape).astype(array.dtype)
        scale = np.sqrt(2 / np.prod(array.shape[:-1]))
        return rng.normal(0, scale, array.shape).astype(array.dtype)

    path = tmp_path_factory.mktemp("exported") / "demo.safetensors"
    save_archive(path, config=config, variables=jax.tree.map(drawn, shapes), step=1)
    return path


def run_code(page, exported):
    """Runs the Python blocks of a page, in order; returns its names."""
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    code = "\n".join(blocks)
    assert '"runs/demo"' in code
    names = {}
    exec(code.replace('"runs/demo"', repr(str(exported))), names)
    return names


@pytest.mark.slow
def test_the_example_of_the_readme(exported):
    names = run_code(ROOT / "README.md", exported)
    assert names["infrared"].shape == names["visible"].shape == (6, 128)
    np.testing.assert_allclose(np.linalg.norm(names["infrared"], axis=1), 1, rtol=1e-5)
    assert 0 <= names["result"].rank(1) <= 1


@pytest.mark.slow
def test_the_code_of_the_library_page(exported):
    names = run_code(ROOT / "docs/library.md", exported)
    assert int(names["state"].step) == 1 and np.isfinite(names["metrics"]["loss/total"])


@pytest.mark.slow
def test_the_tutorial(tmp_path):
    notebook = nbformat.read(TUTORIAL, as_version=4)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    client = nbclient.NotebookClient(
        notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": tmp_path}}
    )
    client.execute(env=environment)
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", ())]
    assert sum(any(kind in out.get("data", {}) for kind in IMAGES) for out in outputs) == 6
    assert any("mAP" in out.get("text", "") for out in outputs)
    assert not any(out.get("name") == "stderr" for out in outputs)
    assert not list(tmp_path.iterdir())


def test_the_stored_tutorial_is_small():
    assert TUTORIAL.stat().st_size < 400_000
