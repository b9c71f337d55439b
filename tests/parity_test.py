"""Our network in the `reference` setting against what the authors' network computes.

Reads every `eval_seed*.npz` and `train_seed*.npz` of tests/golden, or of the folder that the
environment variable STAR_PARITY_FIXTURES names.
"""

import functools
import json
import os
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import star_hitsz_vcm_reference
from star_jax.losses import star_losses
from star_jax.models import StyleSources, build_model
from star_jax.weights import from_authors

GOLDEN = Path(__file__).parent / "golden"
FIXTURES = Path(os.environ.get("STAR_PARITY_FIXTURES", GOLDEN))
sys.path.insert(0, str(GOLDEN))

import reference_arrays  # noqa: E402

MODALITIES = ("visible", "infrared")
SEED = re.compile(r"seed(\d+)")


def fixtures(kind):
    paths = sorted(FIXTURES.glob(f"{kind}_seed*.npz"))
    assert paths, f"no {kind}_seed*.npz in {FIXTURES}"
    return pytest.mark.parametrize("path", paths, ids=lambda path: path.stem)


def seed_of(path):
    return int(SEED.search(path.stem)[1])


@functools.cache
def state_dict(seed, num_identities):
    shapes = json.loads((GOLDEN / "state_dict.json").read_text())
    for name in ("local_classifier.weight", "global_classifier.weight", "pose_classifier.weight"):
        shapes[name][0] = num_identities
    shapes["pose_classifier.bias"] = [num_identities]
    return {
        name: reference_arrays.parameter(seed, name, tuple(shape)) for name, shape in shapes.items()
    }


def model_config(num_identities):
    config = star_hitsz_vcm_reference.get_config()
    config.model.num_identities = num_identities
    config.model.dropout_rate = config.model.attention_dropout_rate = 0.0
    return config


def inputs(seed, prefix, modality, *shape):
    frames = reference_arrays.frames(seed, f"{prefix}frames.{modality}", *shape)
    keypoints = reference_arrays.keypoints(seed, f"{prefix}keypoints.{modality}", *shape)
    return jnp.asarray(frames.transpose(0, 1, 3, 4, 2)), jnp.asarray(keypoints)


def assert_close(actual, expected, tolerance, name):
    """Within `tolerance` of the expected tensor's largest magnitude."""
    assert actual.shape == expected.shape, name
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error < tolerance, f"{name}: {error:.2e} of its largest magnitude"


@pytest.mark.slow
@fixtures("eval")
@pytest.mark.parametrize("modality", MODALITIES)
def test_inference_computes_the_authors_tensors(path, modality):
    seed = seed_of(path)
    config = model_config(500)
    model = build_model(config.model)
    variables = from_authors(state_dict(seed, 500), config.model)
    frames, keypoints = inputs(seed, "", modality, 1, 12, 288, 144)
    apply = jax.jit(functools.partial(model.apply, modality=modality, train=False))
    output = apply(variables, frames, keypoints)
    with np.load(path) as golden:
        names = [name for name in golden.files if name.startswith(f"{modality}.")]
        assert len(names) == 7
        for name in names:
            actual = np.asarray(getattr(output, name.split(".")[1]))
            assert_close(actual, golden[name], 1e-4, name)


@functools.cache
def training_pass(path):
    """One training pass: losses, output, new statistics and gradients by the authors' names."""
    seed = seed_of(path)
    pairs, time, num_identities = 4, 12, 10
    config = model_config(num_identities)
    model = build_model(config.model)
    visible, infrared = (
        inputs(seed, "train.", modality, pairs, time, 64, 32) for modality in MODALITIES
    )
    frames, keypoints = (
        jnp.stack(both, axis=1).reshape(2 * pairs, *both[0].shape[1:])
        for both in zip(visible, infrared, strict=True)
    )
    labels = jnp.array([0, 0, 1, 1])
    index = np.arange(pairs * time * 2)
    style = StyleSources(same=jnp.array(index), other=jnp.array(index ^ 1))

    everything = state_dict(seed, num_identities)
    fixed = {k: v for k, v in everything.items() if k.endswith(("tracked", "mean", "var"))}

    def loss(trained):
        variables = from_authors({**fixed, **trained}, config.model)
        output, updates = model.apply(
            variables,
            frames,
            keypoints,
            modality="paired",
            train=True,
            style=style,
            mutable=["batch_stats"],
        )
        losses = star_losses(output, labels, config.losses)
        return losses["total"], (losses, output, updates["batch_stats"])

    trained = {k: jnp.asarray(v) for k, v in everything.items() if k not in fixed}
    gradients, (losses, output, statistics) = jax.jit(jax.grad(loss, has_aux=True))(trained)
    return losses, output, statistics, gradients


@pytest.mark.slow
@fixtures("train")
def test_training_computes_the_authors_losses(path):
    losses, *_ = training_pass(path)
    with np.load(path) as golden:
        names = [name for name in golden.files if name.startswith("loss.")]
        assert {name.removeprefix("loss.") for name in names} == set(losses)
        for name in names:
            actual = losses[name.removeprefix("loss.")]
            np.testing.assert_allclose(actual, golden[name], rtol=1e-5, err_msg=name)


@pytest.mark.slow
@fixtures("train")
def test_training_computes_the_authors_outputs(path):
    _, output, *_ = training_pass(path)
    visible_first = lambda x: np.concatenate([x[0::2], x[1::2]])  # noqa: E731
    with np.load(path) as golden:
        for name in ("tracklet", "logits", "skeleton_logits"):
            assert_close(visible_first(getattr(output, name)), golden[name], 1e-4, name)


RUNNING = {
    "pose_bottleneck": "skeleton_norm",
    "global_bottleneck": "global_norm",
    "local_bottleneck": "frame_norm",
    "base_resnet.base.layer4.2.bn3": "backbone/stage4/block2/bn3",
    "base_resnet.base.layer3.0.bn1": "backbone/stage3/block0/bn1",
    "visible_module.visible.bn1": "backbone/stem_visible/bn",
}


@pytest.mark.slow
@fixtures("train")
def test_training_leaves_the_authors_running_statistics(path):
    _, _, statistics, _ = training_pass(path)
    with np.load(path) as golden:
        names = [name for name in golden.files if name.startswith("running_")]
        assert names
        for name in names:
            kind, layer = name.split(".", 1)
            node = statistics
            for part in RUNNING[layer].split("/"):
                node = node[part]
            actual = np.asarray(node[kind.removeprefix("running_")])
            assert_close(actual, golden[name], 1e-5, name)


@pytest.mark.slow
@fixtures("train")
def test_training_computes_the_authors_gradients(path):
    *_, gradients = training_pass(path)
    with np.load(path) as golden:
        names = [name for name in golden.files if name.startswith("grad_norm.")]
        assert len(names) > 200
        for name in names:
            actual = np.linalg.norm(gradients[name.removeprefix("grad_norm.")])
            np.testing.assert_allclose(actual, golden[name], rtol=5e-3, atol=1e-9, err_msg=name)
