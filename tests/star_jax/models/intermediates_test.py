"""The weights that modules show to reports: what the network computes, and nothing more."""

import jax
import numpy as np
import pytest

from star_jax.models import FrameFeatures, Skeletons
from star_jax.models.guidance import FrameGuidance
from star_jax.models.pooling import POWERS, GuidedPooling

RNG = np.random.default_rng(0)


def sown(module, *arguments):
    """Returns the variables, the result and what was sown."""
    variables = module.init(jax.random.key(0), *arguments)
    assert set(variables) == {"params"}  # initialization sows nothing
    result, state = module.apply(variables, *arguments, mutable=["intermediates"])
    np.testing.assert_array_equal(result, module.apply(variables, *arguments))
    return variables["params"], result, state["intermediates"]


def test_the_weights_of_the_pooling_are_those_it_pools_with():
    frames = RNG.uniform(0.5, 2, (3, 4, 8)).astype(np.float32)
    skeleton = RNG.normal(size=(3, 16)).astype(np.float32)
    params, result, found = sown(
        GuidedPooling(),
        FrameFeatures(frames),
        Skeletons(np.zeros((3, 4, 17, 3)), np.ones((3, 4, 17), bool), descriptor=skeleton),
    )
    (weights,) = found["weights"]
    np.testing.assert_allclose(np.sum(weights, axis=1), 1, rtol=1e-5)

    kernel, bias = (np.asarray(params["weigh"][name]) for name in ("kernel", "bias"))
    logits = np.einsum("bi,ipc->bpc", skeleton, kernel) + bias
    expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(weights, expected, rtol=1e-4)
    means = [(frames.astype(float) ** power).mean(1) ** (1 / power) for power in POWERS]
    np.testing.assert_allclose(result, (expected * np.stack(means, 1)).sum(1), rtol=1e-4)


@pytest.mark.parametrize("name", ["edges_to_features", "features_to_edges"])
def test_attention_sums_to_one_over_the_frames_that_are_not_masked(name):
    features = RNG.uniform(0.5, 2, (2, 3, 8)).astype(np.float32)
    edges = RNG.normal(size=(2, 3, 8)).astype(np.float32)
    detected = np.array([[True, True, False], [True, True, True]])
    joints = np.repeat(detected[..., None], 17, axis=-1)
    skeletons = Skeletons(np.zeros((2, 3, 17, 3)), joints, edges=edges)
    _, _, found = sown(FrameGuidance(), FrameFeatures(features), skeletons)
    (weights,) = found[name]["attention_weights"]
    assert weights.shape == (2, 4, 3, 3)
    np.testing.assert_allclose(np.sum(weights, axis=-1), 1, rtol=1e-5)
    masked = name == "features_to_edges"
    assert (np.asarray(weights)[0, ..., 2] == 0).all() == masked
