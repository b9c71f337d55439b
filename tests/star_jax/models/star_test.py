"""The whole network: what affects it, what it needs and what it returns."""

import dataclasses
import functools
import math
from typing import ClassVar

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from configs import star_hitsz_vcm
from star_jax.augment import random_style_sources
from star_jax.losses import LOSSES, Losses
from star_jax.models import build_model
from star_jax.models.resnet import ResNet
from star_jax.models.star import l2_normalize, last_detected
from star_jax.models.vit import ViT

ROWS, T, H, W, C, N = 4, 3, 64, 48, 64, 5
FRAMES = np.random.default_rng(0).normal(size=(ROWS, T, H, W, 3)).astype(np.float32)
PER_FRAME = ("frame_features", "edges", "guided", "frame_logits")
CONFIG = star_hitsz_vcm.get_config()
CONFIG.data.clip_length = T
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def paired(rows):
    """Returns interleaved visible and infrared tracklets as pairs, [B, T, 2, ...]."""
    return np.moveaxis(rows.reshape(-1, 2, *rows.shape[1:]), 1, 2)


def unpaired(output):
    """Returns the outputs for pairs as rows of tracklets."""

    def rows(name, array):
        array = np.asarray(array)
        array = np.moveaxis(array, 2, 1) if name in PER_FRAME else array
        return array.reshape(-1, *array.shape[2:])

    fields = {field.name: getattr(output, field.name) for field in dataclasses.fields(output)}
    return output.replace(
        **{name: rows(name, array) for name, array in fields.items() if array is not None}
    )


def random_keypoints(rows=ROWS):
    """Returns keypoints that are all detected and inside the frame."""
    uniform = np.random.default_rng(1).uniform(size=(rows, T, 17, 3))
    return (uniform * [W, H, 0.9] + [0, 0, 0.1]).astype(np.float32)


def model_config(**changes):
    config = star_hitsz_vcm.get_config().model
    config.backbone_options.update({"stage_sizes": (1, 1, 1, 1), "width": C // 8})
    small = {"num_identities": N, "backbone": "resnet18", "dtype": "float32"}
    config.update({**small, **changes})
    return config


def init(model, frames, keypoints):
    key = jax.random.key(0, impl="unsafe_rbg")  # compiles faster than the default
    return model.init(key, frames, keypoints)


@functools.cache
def all_variables():
    """Returns random variables of the full network, without compiling its initialization."""
    model = build_model(model_config())
    shapes = functools.partial(init, model)
    return tiny.random_weights(jax.eval_shape(shapes, paired(FRAMES), paired(random_keypoints())))


def network(**changes):
    """Returns a network, and the variables of the full network that it uses."""
    model = build_model(model_config(**changes))
    needed = jax.eval_shape(
        functools.partial(init, model), paired(FRAMES), paired(random_keypoints())
    )
    everything = all_variables()
    return model, {
        collection: {name: everything[collection][name] for name in names}
        for collection, names in needed.items()
    }


@functools.cache
def inference(modality=None, **changes):
    model, variables = network(**changes)
    apply = jax.jit(functools.partial(model.apply, modality=modality, train=False))
    if modality is not None:
        return functools.partial(apply, variables)
    return lambda frames, keypoints: unpaired(apply(variables, paired(frames), paired(keypoints)))


@functools.cache
def training():
    """Returns a jitted function from keypoints to losses, gradients and batch statistics."""
    model, variables = network()
    style = random_style_sources(jax.random.key(1), ROWS // 2, CONFIG)
    batch = {"labels": jnp.array([0, 3])}
    losses = Losses(tuple((name, 1.0, loss) for name, loss in LOSSES.items()))

    # All arrays are arguments, since XLA takes long to fold constants of this size.
    @jax.jit
    def run(variables, frames, keypoints):
        def loss(params):
            output, updates = model.apply(
                {**variables, "params": params},
                frames,
                keypoints,
                train=True,
                style=style,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(2, impl="unsafe_rbg")},
            )
            values = losses.apply({}, output, batch, jnp.int32(0))
            return values["total"], (values, updates["batch_stats"])

        gradients, (values, statistics) = jax.grad(loss, has_aux=True)(variables["params"])
        return values, gradients, statistics

    return lambda keypoints: run(variables, paired(FRAMES), paired(keypoints))


def partly_detected():
    """Returns keypoints: one tracklet lacks joints, one its last frame, one all skeletons."""
    keypoints = random_keypoints()
    keypoints[0, :, [3, 8, 16], 2] = 0
    keypoints[1, -1, :, 2] = 0
    keypoints[2, ..., 2] = 0
    return keypoints


def with_garbage(keypoints, garbage):
    undetected = keypoints[..., 2:] == 0
    return np.where(undetected & (np.arange(3) < 2), np.float32(garbage), keypoints)


def assert_trees_equal(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def assert_finite(tree):
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree))


@pytest.mark.slow
@pytest.mark.parametrize("garbage", [1e6, -7.0, np.nan])
def test_undetected_joints_have_no_influence(garbage):
    keypoints = partly_detected()
    changed = with_garbage(keypoints, garbage)
    assert not np.array_equal(keypoints, changed)
    assert_trees_equal(inference()(FRAMES, changed), inference()(FRAMES, keypoints))
    assert_trees_equal(training()(changed), training()(keypoints))


@pytest.mark.slow
def test_detected_joints_have_influence():
    keypoints = partly_detected()
    moved = keypoints.copy()
    moved[0, 1, 4, 0] += 5
    before, after = (inference()(FRAMES, x) for x in (keypoints, moved))
    for name in ("edges", "graph", "guided", "tracklet", "embedding"):
        changed = [
            not np.array_equal(*rows)
            for rows in zip(getattr(before, name), getattr(after, name), strict=True)
        ]
        assert changed == [True, False, False, False], name


@pytest.mark.slow
def test_a_tracklet_without_a_skeleton_is_harmless():
    keypoints = random_keypoints()
    keypoints[2, ..., 2] = 0
    output = inference()(FRAMES, keypoints)
    assert_finite(output)
    assert (np.asarray(output.edges[2]) == 0).all() and (np.asarray(output.graph[2]) == 0).all()
    close(np.linalg.norm(output.embedding, axis=-1), 1)
    others = [0, 1, 3]
    complete = inference()(FRAMES, random_keypoints()).embedding
    close(np.asarray(output.embedding)[others], np.asarray(complete)[others])


@pytest.mark.slow
@pytest.mark.parametrize("detected_rows", [ROWS, 1, 0])
def test_losses_gradients_and_statistics_are_finite(detected_rows):
    keypoints = random_keypoints()
    keypoints[detected_rows:] = 0
    losses, gradients, statistics = training()(keypoints)
    assert set(losses) == {*LOSSES, "total"}
    assert_finite((losses, gradients, statistics))
    if detected_rows == ROWS:
        flat = flax.traverse_util.flatten_dict(gradients, sep="/")
        assert all(np.any(x) for x in flat.values()), [n for n, x in flat.items() if not np.any(x)]


HEADS = {"backbone", "bnneck", "classifier", "frame_bnneck", "frame_classifier"}
SKELETON = {"edge_sequence", "keypoint_graph", "skeleton_bnneck", "skeleton_classifier"}
PARTS = {
    ("none", "gem"): HEADS,
    ("none", "mean"): HEADS,
    ("none", "max"): HEADS,
    ("frame", "gem"): HEADS | SKELETON | {"guidance"},
    ("none", "guided"): HEADS | SKELETON | {"pooling"},
    ("frame", "guided"): HEADS | SKELETON | {"guidance", "pooling"},
}


@pytest.mark.slow
@pytest.mark.parametrize(("guidance", "pooling"), PARTS)
def test_guidance_and_pooling_have_the_parameters_and_outputs_that_they_need(guidance, pooling):
    _, variables = network(guidance=guidance, pooling=pooling)
    assert set(variables["params"]) == PARTS[guidance, pooling]
    output = inference(guidance=guidance, pooling=pooling)(FRAMES, random_keypoints())
    assert output.embedding.shape == (ROWS, C)
    close(np.linalg.norm(output.embedding, axis=-1), 1)
    skeleton_outputs = ("edges", "edges_last", "graph", "skeleton", "skeleton_logits")
    for name in skeleton_outputs:
        without_skeletons = PARTS[guidance, pooling] == HEADS
        assert (getattr(output, name) is None) == without_skeletons, name
    if guidance == "none":
        close(output.guided, output.frame_features + 1e-3)
    else:
        assert (output.guided - output.frame_features).max() > 0.01
    pooled = np.asarray(output.frame_features if guidance == "none" else output.guided)
    expected = {
        "gem": ((pooled**3).mean(1) + 1e-12) ** (1 / 3),
        "mean": pooled.mean(1),
        "max": pooled.max(1),
    }
    if pooling in expected:
        close(output.tracklet, expected[pooling])
    assert output.disturbed is None and output.disturbed_logits is None


class Marked(nn.Module):
    """A guidance by keypoints alone: adds the number of detected joints to each vector."""

    uses_keypoints: ClassVar[bool] = True
    uses_skeleton: ClassVar[bool] = False

    def __call__(self, features, skeletons):
        assert skeletons.edges is skeletons.graph is skeletons.descriptor is None
        return features.vectors + skeletons.detected.sum(-1)[..., None]


def test_keypoints_alone_need_no_skeleton_branch():
    model = build_model(model_config(guidance="none", pooling="mean")).clone(guidance=Marked())
    assert model.uses_skeletons and not model.has_skeleton_branch
    frames, keypoints = jnp.asarray(FRAMES[:1]), np.zeros((1, *FRAMES.shape[1:2], 17, 3))
    keypoints[0, 0, :6, 2] = 0.5
    variables = jax.eval_shape(
        functools.partial(init, model), paired(FRAMES), paired(random_keypoints())
    )
    assert set(variables["params"]) == HEADS
    apply = jax.jit(functools.partial(model.apply, modality="visible"))
    output = apply(tiny.random_weights(variables), frames, keypoints.astype(np.float32))
    close(output.tracklet, output.frame_features.mean(1) + 6 / FRAMES.shape[1], atol=1e-4)
    with pytest.raises(ValueError, match="keypoints"):
        jax.eval_shape(model.init, jax.random.key(0), paired(FRAMES))


@pytest.mark.slow
@pytest.mark.parametrize("parts", [("frame", "guided"), ("none", "gem")])
@pytest.mark.parametrize("backbone", [ResNet, ViT])
def test_maps_that_nothing_uses_cost_nothing(monkeypatch, backbone, parts):
    """The compiled program is that of a backbone that returns none."""
    options = {"depth": 1, "width": 8, "num_heads": 1} if backbone is ViT else {"width": 1}
    model = build_model(model_config(guidance=parts[0], pooling=parts[1])).clone(
        backbone=ViT(**options) if backbone is ViT else ResNet("basic", (1, 1, 1, 1), **options)
    )
    keypoints = random_keypoints()
    shapes = functools.partial(init, model)
    variables = jax.eval_shape(shapes, paired(FRAMES), paired(keypoints))

    def costs():
        embed = functools.partial(model.apply, modality="visible")
        compiled = jax.jit(lambda *inputs: embed(*inputs).embedding)
        compiled = compiled.lower(variables, FRAMES, keypoints).compile()
        analysis = compiled.cost_analysis()
        return analysis["flops"], analysis["bytes accessed"]

    with_maps, call = costs(), backbone.__call__
    without = lambda *args, **kwargs: call(*args, **kwargs).replace(maps=None)  # noqa: E731
    monkeypatch.setattr(backbone, "__call__", without)
    assert with_maps == costs() and with_maps[0] > 0


@pytest.mark.slow
def test_pairs_are_the_tracklets_of_the_two_modalities():
    keypoints = partly_detected()
    both = inference()(FRAMES, keypoints)
    for row, modality in enumerate(("visible", "infrared")):
        alone = inference(modality)(FRAMES[row::2], keypoints[row::2])
        for name in ("frame_features", "tracklet", "embedding", "logits", "skeleton_logits"):
            expected = getattr(both, name)[row::2]
            close(getattr(alone, name), expected, atol=1e-5, err_msg=f"{modality} {name}")
    wrong = inference("visible")(FRAMES[1::2], keypoints[1::2]).embedding
    assert np.abs(wrong - both.embedding[1::2]).max() > 0.01, "the two stems are one"


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_outputs_in_float32():
    model = build_model(model_config(dtype="bfloat16"))
    variables = jax.eval_shape(
        functools.partial(init, model), paired(FRAMES), paired(random_keypoints())
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {np.dtype(np.float32)}
    output = inference(dtype="bfloat16")(FRAMES, random_keypoints())
    exact = inference()(FRAMES, random_keypoints())
    assert {leaf.dtype for leaf in jax.tree.leaves(output)} == {np.dtype(np.float32)}
    assert not np.array_equal(output.frame_features, exact.frame_features)
    similarity = (np.asarray(output.embedding) * np.asarray(exact.embedding)).sum(-1)
    assert similarity.min() > 0.99


def test_relative_keypoints_are_shares_of_the_frame():
    model = build_model(model_config())
    # The middle of the frame, its first and its last pixel, and an undetected joint.
    joints = [[W / 2 - 0.5, H / 2 - 0.5, 0.5], [0, 0, 1], [W - 1, H - 1, 2], [3, 4, 0]]
    keypoints = jnp.array(joints, jnp.float32)[None, None]
    scaled, detected = model.prepare_keypoints(keypoints, (H, W))
    close(scaled[0, 0, 0], [0.5, 0.5, 0.5])
    close(scaled[0, 0, 1, :2] + scaled[0, 0, 2, :2], [1, 1])  # as far from one border as the other
    close(scaled[0, 0, 1], [1 / (2 * W), 1 / (2 * H), 1])
    assert scaled[0, 0, 3].tolist() == [0, 0, 0]
    assert detected.tolist() == [[[True, True, True, False]]]
    pixels, detected = model.clone(keypoints="pixels").prepare_keypoints(keypoints, (H, W))
    np.testing.assert_array_equal(pixels, keypoints)
    assert detected.all()


@pytest.mark.slow
def test_new_layers_start_as_pytorchs():
    initialized = jax.jit(functools.partial(init, build_model(model_config())))
    variables = initialized(paired(FRAMES), paired(random_keypoints()))
    params = flax.traverse_util.flatten_dict(variables["params"], sep="/")
    bounds = {
        "edge_sequence/embed/kernel": 1 / math.sqrt(38),
        "edge_sequence/lstm/input_kernel": 1 / math.sqrt(C / 2),
        "edge_sequence/lstm/recurrent_kernel": 1 / math.sqrt(C / 2),
        "edge_sequence/lstm/bias": 2 / math.sqrt(C / 2),
        "guidance/edges_to_features/query/kernel": math.sqrt(6 / (C + 3 * C)),
        "guidance/features_to_edges/out/kernel": 1 / math.sqrt(C),
        "guidance/ffn1/kernel": 1 / math.sqrt(2 * C),
        "pooling/weigh/kernel": 1 / math.sqrt(2 * C),
        "pooling/weigh/bias": 1 / math.sqrt(2 * C),
        "keypoint_graph/gat1/projection/kernel": math.sqrt(6 / (3 + 32)),
    }
    for name, bound in bounds.items():
        assert 0.7 * bound < np.abs(params[name]).max() <= bound, name
    assert 0.0008 < np.std(params["classifier/kernel"]) < 0.0012
    assert abs(np.mean(params["bnneck/scale"]) - 1) < 0.005
    assert 0.006 < np.std(params["skeleton_bnneck/scale"]) < 0.014
    assert not np.any(params["guidance/edges_to_features/query/bias"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("backbone", "dense"),
        ("guidance", "all"),
        ("keypoints", "absolute"),
        ("graph_edges", "last_frame"),
        ("dtype", "float16"),
        ("pooling", "median"),
        ("gem_power", 0.5),
    ],
)
def test_a_wrong_value_is_named(key, value):
    with pytest.raises(ValueError, match=rf"config\.model\.{key} is .*{value}"[:60]):
        build_model(model_config(**{key: value}))


def test_a_wrong_modality_is_named():
    model, variables = network(guidance="none", pooling="gem")
    apply = functools.partial(model.apply, variables)
    with pytest.raises(ValueError, match="modality is 'thermal': use 'visible', 'infrared' or"):
        apply(FRAMES, random_keypoints(), modality="thermal")
    with pytest.raises(
        ValueError, match=r"frames of modality None have shape .*: use \[B, T, 2, H, W, 3"
    ):
        apply(FRAMES, random_keypoints())


def test_keypoints_may_be_left_out_only_where_they_are_not_used():
    key = jax.random.key(0)
    baseline = build_model(model_config(guidance="none", pooling="gem"))
    assert jax.eval_shape(baseline.init, key, paired(FRAMES))
    with pytest.raises(ValueError, match="keypoints="):
        jax.eval_shape(build_model(model_config()).init, key, paired(FRAMES))


def test_last_detected():
    edges = np.random.default_rng(0).normal(size=(4, 3, 5)).astype(np.float32)
    detected = np.array([[1, 1, 1], [1, 1, 0], [1, 0, 0], [0, 1, 0]], bool)
    expected = [edges[b, max(t for t in range(3) if detected[b, t])] for b in range(4)]
    np.testing.assert_array_equal(last_detected(edges, detected), expected)


def test_l2_normalize():
    x = np.array([[3, 4], [0, 0], [-1e-6, 0]], np.float32)
    close(l2_normalize(x), [[0.6, 0.8], [0, 0], [-1, 0]])
