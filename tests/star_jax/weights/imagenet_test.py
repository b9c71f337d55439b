"""ImageNet backbones: what is used, what is rejected, and under which name."""

import functools
import re

import jax
import numpy as np
import pytest
import timm_vit
import torch_resnet
from authors_network import WIDTH, C, model_config, needed, shapes_of, state_dict
from safetensors.numpy import save_file

from data_pipelines.errors import InputError
from star_jax.models.resnet import ResNet
from star_jax.models.vit import ViT
from star_jax.weights import from_timm_vit, from_torchvision_resnet, load_arrays


def torchvision_state_dict():
    prefix = "base_resnet.base."
    arrays = {k.removeprefix(prefix): v for k, v in state_dict().items() if k.startswith(prefix)}
    return {**arrays, "fc.weight": np.zeros((1000, C)), "fc.bias": np.zeros(1000)}


@functools.cache
def fresh_variables():
    config = model_config()
    fill = lambda x: np.full(x.shape, 0.25, np.float32)  # noqa: E731
    return jax.tree.map(fill, needed(config))


@pytest.mark.slow
def test_a_torchvision_resnet_fills_both_stems_and_keeps_the_rest():
    arrays, before = torchvision_state_dict(), fresh_variables()
    variables = from_torchvision_resnet(arrays, before)
    assert shapes_of(variables) == shapes_of(before)
    for collection, names in variables.items():
        for name in set(names) - {"backbone"}:
            jax.tree.map(np.testing.assert_array_equal, names[name], before[collection][name])
    params, stats = (variables[collection]["backbone"] for collection in ("params", "batch_stats"))
    for stem in ("stem_visible", "stem_infrared"):
        kernel = arrays["conv1.weight"].transpose(2, 3, 1, 0)
        np.testing.assert_array_equal(params[stem]["conv"]["kernel"], kernel)
        np.testing.assert_array_equal(stats[stem]["bn"]["mean"], arrays["bn1.running_mean"])
    last = params["stage4"]["block0"]["conv3"]["dense"]["kernel"]
    np.testing.assert_array_equal(last, arrays["layer4.0.conv3.weight"][:, :, 0, 0].T)
    assert not any((leaf == 0.25).all() for leaf in jax.tree.leaves((params, stats)))


def test_a_torchvision_resnet_that_does_not_fit_is_refused():
    arrays = torchvision_state_dict()
    lacking = {name: array for name, array in arrays.items() if name != "layer3.0.conv2.weight"}
    with pytest.raises(ValueError, match=r"\(layer3\.0\.conv2\.weight\)"):
        from_torchvision_resnet(lacking, fresh_variables())
    deeper = {**arrays, "layer3.1.conv1.weight": np.zeros((8, 8, 1, 1))}
    with pytest.raises(ValueError, match=r"\(layer3\.1\.conv1\.weight\)"):
        from_torchvision_resnet(deeper, fresh_variables())


def test_arrays_of_another_resnet_are_named():
    """A network with instance norm needs IBN-Net's arrays, and one without torchvision's."""
    for ibn in (False, True):
        backbone = ResNet("basic", (1, 1, 1, 1), WIDTH, ibn=ibn)
        frames = np.zeros((1, 1, 64, 32, 3), np.float32)
        init = functools.partial(backbone.init, modality="visible", train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), frames)
        variables = {collection: {"backbone": x} for collection, x in shapes.items()}
        arrays = torch_resnet.state_dict("basic", (1, 1, 1, 1), WIDTH, ibn=not ibn)
        lacking = "layer1.0.bn1.BN.bias" if ibn else "layer1.0.bn1.bias"
        with pytest.raises(InputError, match=rf"\({re.escape(lacking)}, "):
            from_torchvision_resnet(arrays, variables)


def test_arrays_with_a_prefix_that_nobody_removes_say_so():
    """A whole network that holds the ResNet: which of its arrays to save, in a short message."""
    inside = {f"net.cnn.{name}": array for name, array in torchvision_state_dict().items()}
    for more in ({}, {"net.head.weight": np.zeros(3)}):
        with pytest.raises(InputError, match=r"'net\.cnn\.'") as raised:
            from_torchvision_resnet({**inside, **more}, fresh_variables())
        assert len(str(raised.value)) < 500
    other = {f"a_module_with_a_name_of_its_own.{i:0100d}": np.zeros(3) for i in range(1000)}
    with pytest.raises(InputError, match="1000") as raised:
        from_torchvision_resnet(other, fresh_variables())
    assert len(str(raised.value)) < 500


@functools.cache
def vit_variables():
    """Returns variables of a network with a Vision Transformer and a classifier."""
    backbone = ViT(
        timm_vit.WIDTH,
        timm_vit.DEPTH,
        timm_vit.NUM_HEADS,
        patch_size=timm_vit.PATCH_SIZE,
        pos_grid=timm_vit.POS_GRID,
    )
    frames = np.zeros((1, 1, 2, 16, 16, 3), np.float32)
    init = functools.partial(backbone.init, modality=None, train=False)
    params = jax.eval_shape(init, jax.random.key(0), frames)["params"]
    return {
        "params": {"backbone": params, "classifier": {"kernel": np.ones(3)}},
        "batch_stats": {"norm": {"mean": np.ones(2)}},
    }


def test_a_timm_vit_fills_both_stems_and_keeps_the_rest(tmp_path):
    arrays, before = timm_vit.state_dict(), vit_variables()
    save_file(arrays, tmp_path / "vit.safetensors")
    variables = from_timm_vit(load_arrays(tmp_path / "vit.safetensors"), before)
    assert shapes_of(variables) == shapes_of(before)
    assert variables["batch_stats"] == before["batch_stats"]
    assert variables["params"]["classifier"] is before["params"]["classifier"]
    params = variables["params"]["backbone"]
    for stem in ("stem_visible", "stem_infrared"):
        kernel = arrays["patch_embed.proj.weight"]
        np.testing.assert_array_equal(params[stem]["kernel"][1, 2, 0], kernel[:, 0, 1, 2])
        np.testing.assert_array_equal(params[stem]["bias"], arrays["patch_embed.proj.bias"])
    position = arrays["pos_embed"][0]  # the class token's, then row by row
    np.testing.assert_array_equal(params["position"][2, 1], position[1 + 2 * 2 + 1])
    np.testing.assert_allclose(params["class_token"], arrays["cls_token"][0, 0] + position[0])


@pytest.mark.parametrize("name", ["cls_token", "pos_embed", "blocks.1.attn.proj.bias", "norm.bias"])
def test_a_missing_array_of_a_timm_vit_is_named(name):
    arrays = {key: array for key, array in timm_vit.state_dict().items() if key != name}
    with pytest.raises(InputError, match=rf"\({re.escape(name)}\)"):
        from_timm_vit(arrays, vit_variables())


@pytest.mark.parametrize("name", ["blocks.2.norm1.weight", "blocks.0.ls1.gamma", "dist_token"])
def test_an_unknown_array_of_a_timm_vit_is_named(name):
    arrays = {**timm_vit.state_dict(), name: np.zeros(3)}
    with pytest.raises(InputError, match=rf"\({re.escape(name)}\)"):
        from_timm_vit(arrays, vit_variables())


VIT_WIDTH, PATCH = timm_vit.WIDTH, timm_vit.PATCH_SIZE
WRONG_VIT_SHAPES = {
    "cls_token": [(1, 1, 1), (1, 2, VIT_WIDTH), (VIT_WIDTH,)],
    "pos_embed": [(1, 6, VIT_WIDTH), (1, 17, VIT_WIDTH), (2, 7, VIT_WIDTH), (1, 4, 2 * VIT_WIDTH)],
    "patch_embed.proj.weight": [
        (VIT_WIDTH, 3, 2 * PATCH, PATCH // 2),
        (VIT_WIDTH, 1, PATCH, PATCH),
        (VIT_WIDTH, 3 * PATCH * PATCH),
    ],
    "blocks.0.attn.qkv.weight": [(VIT_WIDTH, 3 * VIT_WIDTH), (VIT_WIDTH, VIT_WIDTH)],
    "blocks.1.attn.proj.weight": [(VIT_WIDTH, 2 * VIT_WIDTH), (2 * VIT_WIDTH, VIT_WIDTH)],
    "blocks.0.mlp.fc1.weight": [(VIT_WIDTH, 4 * VIT_WIDTH)],
    "blocks.1.norm2.bias": [(1,)],
}


@pytest.mark.parametrize(
    ("name", "shape"), [(name, shape) for name, x in WRONG_VIT_SHAPES.items() for shape in x]
)
def test_an_array_of_another_shape_of_a_timm_vit_is_named(name, shape):
    arrays = {**timm_vit.state_dict(), name: np.zeros(shape, np.float32)}
    with pytest.raises(InputError, match=name) as error:
        from_timm_vit(arrays, vit_variables())
    assert str(shape) in str(error.value) or "the config expects" in str(error.value)
