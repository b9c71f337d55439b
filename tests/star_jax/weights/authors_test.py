"""The authors' network: what is used, what is rejected, under which name, and the way back."""

import json
import re

import jax
import numpy as np
import pytest
from authors_network import NUM_IDENTITIES, WIDTH, C, model_config, needed, shapes_of, state_dict

from configs import star_hitsz_vcm
from data_pipelines.errors import InputError
from star_jax import verify
from star_jax.weights import from_authors, to_authors


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
    with pytest.raises(ValueError, match=rf"\({re.escape(name)}\)"):
        from_authors(arrays, model_config())


@pytest.mark.parametrize(
    "name", ["head.weight", "base_resnet.base.layer2.1.conv1.weight", "fc2.weight"]
)
def test_an_unknown_array_is_named(name):
    arrays = {**state_dict(), name: np.zeros(3)}
    with pytest.raises(ValueError, match=rf"\({re.escape(name)}\)"):
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


# --- and back -----------------------------------------------------------------------------------


def random_variables(config):
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), needed(config))


@pytest.mark.slow
def test_variables_come_back_bit_for_bit():
    config = model_config()
    variables = random_variables(config)
    found = from_authors(to_authors(variables, config), config)
    assert shapes_of(found) == shapes_of(variables)
    bits = lambda tree: jax.tree.map(lambda x: np.asarray(x).view(np.int32), tree)  # noqa: E731
    jax.tree.map(np.testing.assert_array_equal, bits(found), bits(variables))


NEVER_USED = re.compile(
    r"\w+_module\.\w+\.layer|base_resnet\.base\.(conv1|bn1)\.|bn\.|time_guide\.bn_"
)


@pytest.mark.slow
def test_the_authors_state_dict_comes_back():
    arrays, config = state_dict(), model_config()
    found = to_authors(from_authors(arrays, config), config)
    assert {name: x.shape for name, x in found.items()} == {n: x.shape for n, x in arrays.items()}
    for name, array in found.items():
        if name.endswith("num_batches_tracked"):
            assert array == 0 and array.dtype == np.int64, name
        elif name.startswith("lstm_edge.bias_hh"):
            assert not np.asarray(array).any(), name
        elif name.startswith("lstm_edge.bias_ih"):
            both = arrays[name] + arrays[name.replace("bias_ih", "bias_hh")]
            np.testing.assert_array_equal(array, both, err_msg=name)
        elif NEVER_USED.match(name):
            assert array.dtype == np.float32 and np.isfinite(array).all(), name
        else:
            np.testing.assert_array_equal(array, arrays[name], err_msg=name)


@pytest.mark.slow
def test_a_network_of_full_size_has_every_name_and_shape_of_theirs():
    config = star_hitsz_vcm.get_config().model
    config.num_identities = 500
    found = jax.eval_shape(lambda variables: to_authors(variables, config), needed(config))
    shapes = json.loads((verify.FOLDER / "state_dict.json").read_text())
    assert {name: list(x.shape) for name, x in found.items()} == shapes


@pytest.mark.parametrize(
    ("key", "value", "only"),
    [
        ("guidance", "none", "frame"),
        ("pooling", "gem", "guided"),
        ("backbone", "resnet18", "resnet50"),
        ("backbone", "resnet50_ibn_a", "resnet50"),
        ("backbone", "vit_small", "resnet50"),
    ],
)
def test_networks_that_the_authors_have_not_are_named(key, value, only):
    config = model_config(**{key: value})
    message = rf"^config\.model\.{key} is '{value}': the authors' network has '{only}' only"
    with pytest.raises(InputError, match=message):
        to_authors({}, config)


def test_instance_norm_has_no_place_in_the_authors_network():
    config = model_config()
    config.backbone_options.ibn = True
    with pytest.raises(InputError, match=r"^config\.model\.backbone_options\.ibn is True"):
        to_authors({}, config)
