"""Our network in the `reference` setting against recorded outputs of the authors', in float32.

Reads every `eval_seed*.npz` and `train_seed*.npz` in star_jax/golden, and in the folder that the
environment variable STAR_PARITY_FIXTURES names.
"""

import numpy as np
import pytest

from configs import star_hitsz_vcm_reference
from star_jax import verify

pytestmark = pytest.mark.usefixtures("optimized")

CONFIG = star_hitsz_vcm_reference.get_config()
INFERENCE = {"graph", "edges", "frame_features", "guided", "skeleton", "tracklet", "embedding"}
TRAINING = {"losses", "running statistics", "gradient norms", "gradient norms, LSTM"}
TRAINING |= {"tracklet", "logits", "skeleton_logits"}


@pytest.mark.slow
@pytest.mark.parametrize(
    "path", [*verify.fixtures("eval"), *verify.fixtures("train")], ids=lambda path: path.stem
)
def test_the_network_computes_the_authors_numbers(path):
    checks = verify.check_network(path, CONFIG)
    assert [check for check in checks if not check.passed] == []
    compared = {check.what.partition(": ")[2] for check in checks}
    assert compared == (INFERENCE if path.stem.startswith("eval") else TRAINING)
    assert max(check.tolerance for check in checks) <= 5e-3


@pytest.mark.parametrize(
    ("name", "actual", "expected", "right"),
    [
        ("zero", 1e-7, 1e-5, True),  # truly 1e-14, rounding error on both sides
        ("zero", 1e-3, 1e-5, False),
        ("small", 1.004e-1, 1e-1, True),
        ("small", 1.01e-1, 1e-1, False),
    ],
)
def test_gradients_that_vanish_beside_all_others_are_rounding(
    tmp_path, monkeypatch, name, actual, expected, right
):
    path = tmp_path / "train_seed1.npz"
    np.savez(path, **{"grad_norm.large": 20.0, f"grad_norm.{name}": expected})
    gradients = {"large": np.full(4, 10.0), name: np.array([actual])}
    found = gradients, ({}, None, {})
    monkeypatch.setattr(verify, "training_program", lambda *_: lambda trained: found)
    differences = verify.training_differences(path, CONFIG)
    assert differences["grad_norm.large"] == 0
    found = differences[f"grad_norm.{name}"] <= 5e-3
    assert found == right
