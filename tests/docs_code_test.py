"""The code of the documentation runs: the library page and the tutorial.

That of docs/how_to is in tests/star_jax/training/elsewhere_test.py, that of README.md in
tests/packaging_test.py and that of docs/export.md in tests/launch/export_test.py.
"""

import os
import re
from pathlib import Path

import nbclient
import nbformat
import numpy as np
import pytest
import tiny

from configs import star_synthetic_demo
from star_jax import build_model
from star_jax.distributed.parallel import make_mesh
from star_jax.state import abstract_variables
from star_jax.weights.archive import save_archive

ROOT = Path(__file__).parents[1]
TUTORIAL = ROOT / "docs/tutorial.ipynb"
IMAGES = ("image/png", "image/jpeg")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The network of the demo with random weights, as a file."""
    config = star_synthetic_demo.get_config()
    config.model.num_identities = 8
    shapes = abstract_variables(config, build_model(config.model), make_mesh())
    path = tmp_path_factory.mktemp("exported") / "demo.safetensors"
    save_archive(path, config=config, variables=tiny.random_weights(shapes), step=1)
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
def test_the_code_of_the_library_page(exported):
    names = run_code(ROOT / "docs/library.md", exported)
    assert int(names["state"].step) == 1 and np.isfinite(names["metrics"]["loss/total"])


@pytest.mark.slow
def test_the_tutorial(tmp_path):
    stored = TUTORIAL.read_text(encoding="utf-8")
    shorter = stored.replace("config.optim.epochs = 40", "config.optim.epochs = 2")
    assert shorter != stored
    notebook = nbformat.reads(shorter, as_version=4)
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
