"""The family of ResNets against a NumPy twin on torchvision's and IBN-Net's arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch_resnet

from star_jax.models.resnet import ResNet
from star_jax.weights import from_torchvision_resnet

# Depth: block, blocks of each stage, parameters of torchvision's network with its classifier,
# inputs of the classifier. IBN-Net's have as many, since its two norms split the channels.
PUBLISHED = {
    18: ("basic", (2, 2, 2, 2), 11_689_512, 512),
    34: ("basic", (3, 4, 6, 3), 21_797_672, 512),
    50: ("bottleneck", (3, 4, 6, 3), 25_557_032, 2048),
    101: ("bottleneck", (3, 4, 23, 3), 44_549_160, 2048),
}
FRAMES = np.random.default_rng(1).normal(size=(2, 2, 48, 32, 3)).astype(np.float32)


@functools.cache  # tracing a deep network takes seconds
def abstract_variables(module):
    """Returns shapes of the variables of a backbone by itself, with both stems."""
    pairs = np.stack([FRAMES, FRAMES], axis=2)
    init = lambda: module.init(jax.random.key(0), pairs, modality=None, train=False)  # noqa: E731
    return {name: {"backbone": parts} for name, parts in jax.eval_shape(init).items()}


def imported(module, arrays):
    """Returns the variables of the backbone by itself."""
    variables = from_torchvision_resnet(arrays, abstract_variables(module))
    return {name: parts["backbone"] for name, parts in variables.items()}


@pytest.mark.slow
@pytest.mark.parametrize("ibn", [False, True])
@pytest.mark.parametrize("depth", PUBLISHED)
def test_the_published_sizes(depth, ibn):
    block, stage_sizes, published, channels = PUBLISHED[depth]
    params = abstract_variables(ResNet(block, stage_sizes, 64, ibn=ibn))["params"]
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    stem, classifier = 64 * 3 * 7 * 7 + 2 * 64, 1000 * (channels + 1)
    assert count == published - classifier + stem


@pytest.mark.slow
@pytest.mark.parametrize("ibn", [False, True])
@pytest.mark.parametrize("depth", PUBLISHED)
def test_the_names_of_every_published_network(depth, ibn):
    block, stage_sizes, *_ = PUBLISHED[depth]
    module = ResNet(block, stage_sizes, 2, ibn=ibn)
    arrays = torch_resnet.state_dict(block, stage_sizes, 2, ibn=ibn)
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)  # noqa: E731
    expected = {name: x["backbone"] for name, x in abstract_variables(module).items()}
    assert shapes(imported(module, arrays)) == shapes(expected)


@pytest.mark.slow
@pytest.mark.parametrize("ibn", [False, True])
@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_imported_networks(block, ibn):
    sizes = (2, 1, 2, 1)
    arrays = torch_resnet.state_dict(block, sizes, 4, ibn=ibn)
    module = ResNet(block, sizes, 4, ibn=ibn)
    variables = imported(module, arrays)
    apply = jax.jit(functools.partial(module.apply, modality="infrared", train=False))
    features = apply(variables, FRAMES)
    maps = np.array([[torch_resnet.last_map(arrays, frame) for frame in row] for row in FRAMES])
    np.testing.assert_allclose(features.vectors, maps.mean((3, 4)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(features.maps, np.moveaxis(maps, 2, -1), rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_inference_with_instance_norm_in_bfloat16():
    sizes = (1, 1, 1, 1)
    arrays = torch_resnet.state_dict("basic", sizes, 4, ibn=True)
    module = ResNet("basic", sizes, 4, jnp.bfloat16, ibn=True)
    apply = jax.jit(functools.partial(module.apply, modality="visible", train=False))
    features = apply(imported(module, arrays), FRAMES).vectors
    expected = [[torch_resnet.features(arrays, frame) for frame in row] for row in FRAMES]
    error = np.abs(features - np.array(expected))
    assert 0 < error.mean() < 0.02 and np.mean(expected) > 0.5


@pytest.mark.slow
def test_training_with_instance_norm_in_bfloat16():
    sizes = (1, 1, 1, 1)
    arrays = torch_resnet.state_dict("basic", sizes, 4, ibn=True)
    module = ResNet("basic", sizes, 4, jnp.bfloat16, ibn=True)
    variables = imported(module, arrays)

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def step(params):
        variables_of = {**variables, "params": params}
        features, updates = module.apply(
            variables_of, FRAMES, modality="visible", train=True, mutable=["batch_stats"]
        )
        return jnp.square(features.vectors).sum(), updates["batch_stats"]

    (_, statistics), gradients = step(variables["params"])
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((statistics, gradients)))
    before, after = (
        x["stage1"]["block0"]["bn1"]["batch"] for x in (variables["batch_stats"], statistics)
    )
    assert after["mean"].shape == (2,) and (before["mean"] != after["mean"]).all()
