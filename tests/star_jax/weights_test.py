"""Imported weights: what is used, what is rejected, and under which name."""

import builtins
import functools
import json
import re
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
import timm_vit
import torch_resnet
from safetensors.numpy import save_file

from configs import star_hitsz_vcm
from data_pipelines.errors import InputError
from star_jax import verify
from star_jax.models import build_model
from star_jax.models.resnet import ResNet
from star_jax.models.vit import ViT
from star_jax.weights import from_authors, from_timm_vit, from_torchvision_resnet, load_arrays

# The authors' names and shapes; the tiny network uses one block per stage and a 32nd of the
# width.
SHRINK = 32
LATER_BLOCK = re.compile(r"\.layer\d\.[1-9]")
NUM_IDENTITIES, WIDTH, C = 5, 64 // SHRINK, 2048 // SHRINK


def model_config(**changes):
    config = star_hitsz_vcm.get_config().model
    config.backbone_options.update({"stage_sizes": (1, 1, 1, 1), "width": WIDTH})
    config.update({"num_identities": NUM_IDENTITIES, **changes})
    return config


@functools.cache
def state_dict():
    """Returns a random state dict of the tiny network with the authors' names."""
    shapes = json.loads((verify.GOLDEN / "state_dict.json").read_text())
    rng = np.random.default_rng(0)
    arrays = {}
    for name, shape in shapes.items():
        if LATER_BLOCK.search(name):
            continue
        if name.startswith("fc1") or "weight_ih" in name:
            shape = [size // SHRINK if size > 64 else size for size in shape]
        else:
            shape = [size // SHRINK if size >= 64 else size for size in shape]
        if "_classifier" in name:
            shape[0] = NUM_IDENTITIES
        arrays[name] = rng.normal(size=shape).astype(np.float32)
    return arrays


def torchvision_state_dict():
    prefix = "base_resnet.base."
    arrays = {k.removeprefix(prefix): v for k, v in state_dict().items() if k.startswith(prefix)}
    return {**arrays, "fc.weight": np.zeros((1000, C)), "fc.bias": np.zeros(1000)}


def shapes_of(tree):
    return jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), tree)


def needed(config):
    frames = np.zeros((1, 2, 2, 64, 48, 3), np.float32)
    keypoints = np.ones((1, 2, 2, 17, 3), np.float32)
    model = build_model(config)
    return jax.eval_shape(lambda: model.init(jax.random.key(0), frames, keypoints))


# --- the authors' network -----------------------------------------------------------------------


@pytest.mark.parametrize("guidance", ["none", "frame"])
@pytest.mark.parametrize("pooling", ["gem", "guided"])
def test_the_authors_state_dict_fills_every_network(guidance, pooling):
    config = model_config(guidance=guidance, pooling=pooling)
    assert shapes_of(from_authors(state_dict(), config)) == shapes_of(needed(config))


def test_the_authors_arrays_go_to_their_places():
    arrays, variables = state_dict(), from_authors(state_dict(), model_config())
    params, stats = variables["params"], variables["batch_stats"]

    def same(actual, expected):
        np.testing.assert_array_equal(actual, expected)

    backbone = params["backbone"]
    for stem, prefix in (
        ("visible", "visible_module.visible"),
        ("infrared", "thermal_module.thermal"),
    ):
        kernel = backbone[f"stem_{stem}"]["conv"]["kernel"]
        same(kernel[2, 5, 1], arrays[f"{prefix}.conv1.weight"][:, 1, 2, 5])
        running = stats["backbone"][f"stem_{stem}"]["bn"]
        same(running["mean"], arrays[f"{prefix}.bn1.running_mean"])
        same(running["var"], arrays[f"{prefix}.bn1.running_var"])
    block, prefix = backbone["stage3"]["block0"], "base_resnet.base.layer3.0"
    same(block["conv1"]["dense"]["kernel"], arrays[f"{prefix}.conv1.weight"][:, :, 0, 0].T)
    same(block["conv2"]["kernel"][0, 2], arrays[f"{prefix}.conv2.weight"][:, :, 0, 2].T)
    same(block["bn3"]["bias"], arrays[f"{prefix}.bn3.bias"])
    same(block["downsample_bn"]["scale"], arrays[f"{prefix}.downsample.1.weight"])

    same(stats["frame_bnneck"]["bias"], arrays["local_bottleneck.bias"])
    same(params["frame_classifier"]["kernel"], arrays["local_classifier.weight"].T)
    same(params["classifier"]["kernel"], arrays["global_classifier.weight"].T)

    lstm, name = params["edge_sequence"]["lstm"], "lstm_edge"
    for direction, suffix in enumerate(("", "_reverse")):
        same(lstm["input_kernel"][direction], arrays[f"{name}.weight_ih_l0{suffix}"].T)
        same(lstm["recurrent_kernel"][direction], arrays[f"{name}.weight_hh_l0{suffix}"].T)
        biases = (arrays[f"{name}.bias_{part}_l0{suffix}"] for part in ("ih", "hh"))
        same(lstm["bias"][direction], sum(biases))
    gat = params["keypoint_graph"]["gat1"]
    same(gat["sender"], arrays["gat.conv1.att_src"][0])
    same(gat["receiver"], arrays["gat.conv1.att_dst"][0])
    guidance = params["guidance"]["features_to_edges"]
    projections = arrays["time_guide.reverse_cross_attn.in_proj_weight"]
    for i, part in enumerate(("query", "key", "value")):
        rows = projections[i * C : (i + 1) * C]
        same(guidance[part]["kernel"].reshape(C, C), rows.T)
    weigh = params["pooling"]["weigh"]
    for i in range(5):
        same(weigh["kernel"][:, i], arrays[f"GuidedAggModule.fc_layers.{i}.weight"].T)
        same(weigh["bias"][i], arrays[f"GuidedAggModule.fc_layers.{i}.bias"])


@pytest.mark.parametrize(
    "name",
    [
        "thermal_module.thermal.conv1.weight",
        "base_resnet.base.layer2.0.bn2.running_var",
        "lstm_edge.bias_hh_l0_reverse",
        "global_bottleneck.bias",
    ],
)
def test_a_missing_array_is_named(name):
    arrays = {key: array for key, array in state_dict().items() if key != name}
    with pytest.raises(ValueError, match=f"^the state dict lacks {name}$"):
        from_authors(arrays, model_config())


@pytest.mark.parametrize(
    "name", ["head.weight", "base_resnet.base.layer2.1.conv1.weight", "fc2.weight"]
)
def test_an_unknown_array_is_named(name):
    arrays = {**state_dict(), name: np.zeros(3)}
    with pytest.raises(ValueError, match=rf"arrays that no part of the network uses: \['{name}'\]"):
        from_authors(arrays, model_config())


WRONG_SHAPES = {
    "global_classifier.weight": (NUM_IDENTITIES + 1, C),
    "pose_bottleneck.running_mean": (2 * C - 1,),
    "base_resnet.base.layer1.0.conv2.weight": (WIDTH, WIDTH, 1, 1),
    "base_resnet.base.layer1.0.conv1.weight": (WIDTH, WIDTH),
    "time_guide.cross_attn.in_proj_weight": (C, C),
    "lstm_edge.weight_hh_l0": (2 * C, C),
    "fc1.weight": (),
}


@pytest.mark.parametrize("name", WRONG_SHAPES)
def test_an_array_of_another_shape_is_named(name):
    arrays = {**state_dict(), name: np.zeros(WRONG_SHAPES[name], np.float32)}
    with pytest.raises(ValueError, match=name):
        from_authors(arrays, model_config())


LARGER_SHAPES = {
    "base_resnet.base.layer1.0.conv1.weight": (WIDTH, WIDTH, 3, 3),
    "time_guide.cross_attn.in_proj_weight": (4 * C, C),
    "gat.conv1.att_src": (2, 2, 16),
}


@pytest.mark.parametrize("name", LARGER_SHAPES)
def test_an_array_larger_than_needed_is_named(name):
    arrays = {**state_dict(), name: np.zeros(LARGER_SHAPES[name], np.float32)}
    with pytest.raises(ValueError, match=name):
        from_authors(arrays, model_config())


# --- an ImageNet ResNet -------------------------------------------------------------------------


@functools.cache
def fresh_variables():
    config = model_config()
    fill = lambda x: np.full(x.shape, 0.25, np.float32)  # noqa: E731
    return jax.tree.map(fill, needed(config))


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
    with pytest.raises(ValueError, match=r"lacks layer3\.0\.conv2\.weight$"):
        from_torchvision_resnet(lacking, fresh_variables())
    deeper = {**arrays, "layer3.1.conv1.weight": np.zeros((8, 8, 1, 1))}
    with pytest.raises(ValueError, match=r"no part of the network uses: \['layer3\.1\.conv1"):
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
        with pytest.raises(InputError, match=f"^the state dict lacks {re.escape(lacking)}, "):
            from_torchvision_resnet(arrays, variables)


# --- an ImageNet Vision Transformer -------------------------------------------------------------


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
    with pytest.raises(InputError, match=f"^the state dict lacks {name}$"):
        from_timm_vit(arrays, vit_variables())


@pytest.mark.parametrize("name", ["blocks.2.norm1.weight", "blocks.0.ls1.gamma", "dist_token"])
def test_an_unknown_array_of_a_timm_vit_is_named(name):
    arrays = {**timm_vit.state_dict(), name: np.zeros(3)}
    with pytest.raises(InputError, match=rf"no part of the network uses: \['{name}'\]"):
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


# --- files --------------------------------------------------------------------------------------


ARRAYS = {
    "conv1.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "bn1.bias": np.array([1.5], np.float32),
}


def assert_arrays(actual):
    assert set(actual) == set(ARRAYS)
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(actual[name], array)


def test_safetensors(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(ARRAYS, path)
    assert_arrays(load_arrays(path))
    assert_arrays(load_arrays(str(path)))


def test_a_missing_file_is_named(tmp_path):
    for name in ("weights.safetensors", "weights.pth"):
        with pytest.raises(FileNotFoundError, match=f"no weights at .*{name}"):
            load_arrays(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_arrays(tmp_path)


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **ARRAYS)
    with pytest.raises(ValueError, match=r"weights\.npz: use a \.safetensors or a \.pth file"):
        load_arrays(path)


def safetensors_file(header, content):
    """Returns a file by the format's specification: header length, header, arrays."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + content


def safetensors_of(dtype, shape, content):
    facts = {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}
    return safetensors_file({"bn1.running_var": facts}, content)


BROKEN_SAFETENSORS = {
    "text": b"not a safetensors file",
    "empty": b"",
    "half a length": b"\0\0\0",
    "a length beyond the end": struct.pack("<Q", 2**20) + b"{}",
    "a huge length": struct.pack("<Q", 2**63) + b"{}",
    "a cut header": safetensors_of("F32", [2], bytes(8))[:40],
    "cut arrays": safetensors_of("F32", [2], bytes(8))[:-3],
    "more than the arrays": safetensors_of("F32", [2], bytes(8)) + b"x",
    "another shape": safetensors_of("F32", [3], bytes(8)),
    "a shape of text": safetensors_of("F32", ["2"], bytes(8)),
    "an unknown type": safetensors_of("F31", [2], bytes(8)),
    "deep": safetensors_file(b"[" * 100_000, b""),
    "null": safetensors_file(b"null", b""),
}


@pytest.mark.parametrize("content", BROKEN_SAFETENSORS.values(), ids=BROKEN_SAFETENSORS.keys())
def test_a_broken_safetensors_file_is_named(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=rf"^{path}: ") as error:
        load_arrays(path)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


HALVES = {  # 1, -2, 0.15625 and the largest number of each type, by hand
    "BF16": ([0x3F80, 0xC000, 0x3E20, 0x7F7F], 3.3895314e38),
    "F16": ([0x3C00, 0xC000, 0x3100, 0x7BFF], 65504.0),
}


@pytest.mark.parametrize("dtype", HALVES)
def test_halves_become_float32(tmp_path, dtype):
    bits, largest = HALVES[dtype]
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_of(dtype, [2, 2], struct.pack("<4H", *bits)))
    array = load_arrays(path)["bn1.running_var"]
    assert array.dtype == np.float32
    np.testing.assert_array_equal(array, np.array([[1, -2], [0.15625, largest]], np.float32))


def test_doubles_become_float32_and_integers_stay(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.array([0.1]), "n": np.array(7), "e": np.zeros((0, 2), np.float32)}, path)
    arrays = load_arrays(path)
    assert arrays["a"] == np.float32(0.1) and arrays["a"].dtype == np.float32
    assert arrays["n"] == 7 and arrays["n"].dtype == np.int64
    assert arrays["e"].shape == (0, 2)


@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
def test_types_of_eight_bits_are_refused(tmp_path, dtype):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_of(dtype, [2], b"\x38\x38"))
    message = rf"^{path}: bn1\.running_var is of type {dtype}; convert it to float32"
    with pytest.raises(InputError, match=message):
        load_arrays(path)


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("F32", struct.pack("<f", np.nan)),
        ("F32", struct.pack("<f", -np.inf)),
        ("F64", struct.pack("<d", 1e300)),  # infinite in float32
        ("BF16", b"\x80\x7f"),
        ("F16", b"\x00\x7e"),
    ],
)
def test_weights_that_are_not_finite_are_refused(tmp_path, dtype, value):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(safetensors_of(dtype, [3], bytes(2 * len(value)) + value))
    with pytest.raises(InputError, match=rf"^{path}: bn1\.running_var contains NaN or infinity"):
        load_arrays(path)


def test_pth_of_halves(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save({"a": torch.tensor([1.0, -2.0, 0.15625], dtype=torch.bfloat16)}, path)
    assert load_arrays(path)["a"].tolist() == [1, -2, 0.15625]
    torch.save({"a": torch.zeros(2).to(torch.float8_e5m2)}, path)
    with pytest.raises(InputError, match=r"weights\.pth: a is of type torch\.float8_e5m2"):
        load_arrays(path)
    torch.save({"a": torch.tensor([1.0, float("nan")])}, path)
    with pytest.raises(InputError, match=r"weights\.pth: a contains NaN or infinity"):
        load_arrays(path)


def test_a_pth_without_pytorch_says_what_to_do(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"")
    plain_import = builtins.__import__

    def without_torch(name, *args, **kwargs):
        if name == "torch":
            raise ImportError("No module named 'torch'")
        return plain_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_torch)
    with pytest.raises(ImportError, match=r"weights\.pth: reading a \.pth needs PyTorch"):
        load_arrays(path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_pth(tmp_path, nested, prefix):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    tensors = {f"{prefix}{name}": torch.from_numpy(array) for name, array in ARRAYS.items()}
    torch.save({"state_dict": tensors, "epoch": 3} if nested else tensors, path)
    assert_arrays(load_arrays(path))


class Malicious:
    """Creates a file when unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_malicious_pth_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / "weights.pth", tmp_path / "trace"
    torch.save({"conv1.weight": Malicious(trace)}, path)
    with pytest.raises(ValueError, match=r"weights\.pth: not a file of plain arrays"):
        load_arrays(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)
    assert trace.exists(), "the file is not malicious"


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], "text"])
def test_a_pth_of_anything_but_arrays_is_named(tmp_path, content):
    torch = pytest.importorskip("torch")
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"weights\.pth"):
        load_arrays(path)
