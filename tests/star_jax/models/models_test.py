"""The parts of the network against NumPy twins."""

import functools
import math

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.coco17 import EDGES
from star_jax.models import FrameFeatures, Skeletons, StyleSources
from star_jax.models.guidance import FrameGuidance
from star_jax.models.keypoint_graph import (
    GraphAttention,
    adaptive_average,
    keypoint_graph,
    tracklet_edges,
)
from star_jax.models.layers import BatchNorm, InstanceBatchNorm, gem_pool
from star_jax.models.pooling import GuidedPooling
from star_jax.models.resnet import ResNet, adain, convolution
from star_jax.models.skeleton import BidirectionalLSTM, edge_features, lstm_states

T = 3
close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def random_variables(module, *inputs, **options):
    """Returns variables of a module, all drawn at random, so that each has an effect."""
    inputs = jax.tree.map(jnp.asarray, inputs)
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))
    flat = flax.traverse_util.flatten_dict(shapes)
    drawn = {path: random(i, *leaf.shape) * 0.3 for i, (path, leaf) in enumerate(flat.items())}
    positive = {path: np.abs(x) + 0.5 for path, x in drawn.items() if path[-1] == "var"}
    return flax.traverse_util.unflatten_dict(drawn | positive)


def skeletons(detected, **descriptors):
    """Returns skeletons, of which the parts of STAR use one joint, and what the branch computes."""
    joints = np.zeros((*detected.shape, 17), bool)
    joints[..., 5] = detected
    return Skeletons(np.zeros((*joints.shape, 3), np.float32), joints, **descriptors)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x, axis):
    powers = np.exp(x - x.max(axis, keepdims=True))
    return powers / powers.sum(axis, keepdims=True)


# --- layers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(6, 4), (3, 2, 5, 4), (1, 4)])
@pytest.mark.parametrize("learned_bias", [True, False])
def test_batch_norm(shape, learned_bias):
    module = BatchNorm(learned_bias=learned_bias)
    x = 2 * random(1, *shape) + 3
    variables = random_variables(module, x, train=False)
    assert set(variables["params"]) == ({"scale", "bias"} if learned_bias else {"scale"})
    scale, stats = variables["params"]["scale"], variables["batch_stats"]
    bias = variables["params" if learned_bias else "batch_stats"]["bias"]

    output = module.apply(variables, x, train=False)
    close(output, (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * scale + bias)

    output, updates = module.apply(variables, x, train=True, mutable=["batch_stats"])
    rows = x.reshape(-1, shape[-1]).astype(float)
    close(output, (x - rows.mean(0)) / np.sqrt(rows.var(0) + 1e-5) * scale + bias, atol=1e-4)
    unbiased = rows.var(0, ddof=1) if len(rows) > 1 else np.zeros(shape[-1])
    close(updates["batch_stats"]["mean"], 0.9 * stats["mean"] + 0.1 * rows.mean(0))
    close(updates["batch_stats"]["var"], 0.9 * stats["var"] + 0.1 * unbiased)
    if not learned_bias:
        close(updates["batch_stats"]["bias"], bias)


def test_batch_norm_keeps_the_dtype_and_takes_its_statistics_in_float32():
    x = (300 + random(0, 512, 2)).astype(jnp.bfloat16)
    module = BatchNorm()
    variables = module.init(jax.random.key(0), x, train=False)
    output, updates = module.apply(variables, x, train=True, mutable=["batch_stats"])
    assert output.dtype == jnp.bfloat16
    assert updates["batch_stats"]["mean"].dtype == jnp.float32
    close(updates["batch_stats"]["mean"], 0.1 * x.astype(np.float64).mean(0), rtol=1e-5)


@pytest.mark.slow
def test_batch_norm_in_bfloat16_differs_by_rounding_only():
    x = (4 + 2 * random(0, 64, 9, 3)).astype(jnp.bfloat16)
    module = BatchNorm()
    variables = random_variables(module, x, train=False)

    def loss(x):
        output, updates = module.apply(variables, x, train=True, mutable=["batch_stats"])
        weights = jnp.asarray(random(1, *x.shape))
        return (weights * output.astype(jnp.float32)).sum(), (output, updates["batch_stats"])

    (_, (output, statistics)), gradient = jax.value_and_grad(loss, has_aux=True)(x)
    (_, (exact, exact_statistics)), exact_gradient = jax.value_and_grad(loss, has_aux=True)(
        x.astype(jnp.float32)
    )
    close(output.astype(np.float32), exact, rtol=2**-8)
    close(gradient.astype(np.float32), exact_gradient, rtol=2**-7, atol=2**-8)
    close(statistics["var"], exact_statistics["var"], rtol=1e-5)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("channels", [4, 5])
def test_instance_batch_norm(channels, train):
    module, x = InstanceBatchNorm(), 2 * random(1, 3, 4, 2, channels) + 3
    variables = random_variables(module, x, train=False)
    output, updates = module.apply(variables, x, train=train, mutable=["batch_stats"])
    instance, batch = variables["params"]["instance"], variables["params"]["batch"]
    stats, half = variables["batch_stats"]["batch"], channels // 2
    for c in range(channels):
        if c < half:
            scale, bias = instance["scale"][c], instance["bias"][c]
            mean, variance = x[..., c].mean((1, 2)), x[..., c].astype(float).var((1, 2))
        else:
            scale, bias = batch["scale"][c - half], batch["bias"][c - half]
            mean, variance = (stats[name][c - half] for name in ("mean", "var"))
            if train:
                mean, variance = x[..., c].mean(), x[..., c].astype(float).var()
        mean, variance = np.reshape(mean, (-1, 1, 1)), np.reshape(variance, (-1, 1, 1))
        expected = (x[..., c] - mean) / np.sqrt(variance + 1e-5) * scale + bias
        close(output[..., c], expected, atol=1e-4)
    assert set(updates["batch_stats"]) == {"batch"}
    running = updates["batch_stats"]["batch"]["mean"]
    new = 0.9 * stats["mean"] + 0.1 * x[..., half:].mean((0, 1, 2))
    close(running, new if train else stats["mean"])


@pytest.mark.parametrize("power", [0.7, 1.0, 3.0, 7.0])
def test_gem_pool(power):
    x = np.abs(random(0, 2, T, 4)) + 1e-3
    expected = [
        [(sum(x[b, t, c] ** power for t in range(T)) / T) ** (1 / power) for c in range(4)]
        for b in range(2)
    ]
    close(gem_pool(x, power), expected)


# --- backbone -----------------------------------------------------------------------------------


def adain_by_loops(x, source):
    output = np.empty_like(x)
    for n in range(len(x)):
        for c in range(x.shape[-1]):
            content, style = x[n, :, :, c].astype(float), x[source[n], :, :, c].astype(float)
            deviation = lambda y: np.sqrt(y.var(ddof=1) + 1e-6)  # noqa: E731
            normalized = (content - content.mean()) / deviation(content)
            output[n, :, :, c] = normalized * deviation(style) + style.mean()
    return output


def test_adain():
    # If the variance is as small as the 1e-6 added to it, the way of estimating it matters.
    scales = np.array([1e-3, 1, 2, 3, 4], np.float32).reshape(5, 1, 1, 1)
    x = scales * random(0, 5, 4, 3, 2)
    source = np.array([1, 0, 2, 2, 3], np.int32)
    close(adain(x, source), adain_by_loops(x, source))
    close(adain(x, np.arange(5, dtype=np.int32)), x)


def convolve(x, kernel, stride):
    size = kernel.shape[0]
    padded = np.pad(x, ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0)))
    rows, columns = (-(-n // stride) for n in x.shape[1:3])
    output = np.zeros((len(x), rows, columns, kernel.shape[-1]))
    for i in range(size):
        for j in range(size):
            window = padded[:, i : i + stride * rows : stride, j : j + stride * columns : stride]
            output += window[:, :rows, :columns] @ kernel[i, j]
    return output


class BackboneTwin:
    """The backbone at inference, by PyTorch's definitions of its layers."""

    def __init__(self, variables, block):
        self.params, self.stats = variables["params"], variables["batch_stats"]
        self.layers = 3 if block == "bottleneck" else 2

    def norm(self, x, *path):
        params, stats = (functools.reduce(dict.get, path, y) for y in (self.params, self.stats))
        scaled = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        return scaled * params["scale"] + params["bias"]

    def stem(self, x, name):
        x = convolve(x, self.params[name]["conv"]["kernel"], 2)
        x = np.maximum(self.norm(x, name, "bn"), 0)
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
        height, width = x.shape[1:3]
        taps = [
            padded[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)
        ]
        return np.max(taps, axis=0)

    def stage(self, x, number):
        name, stride = f"stage{number}", (1, 2, 2, 1)[number - 1]
        params, y = self.params[name]["block0"], x
        for i in range(1, self.layers + 1):
            layer = params[f"conv{i}"]
            kernel = layer["kernel"] if "kernel" in layer else layer["dense"]["kernel"][None, None]
            strided = i == self.layers - 1  # the 3x3 convolution of a bottleneck, the first of two
            y = self.norm(convolve(y, kernel, stride if strided else 1), name, "block0", f"bn{i}")
            y = np.maximum(y, 0) if i < self.layers else y
        if "downsample_conv" in params:
            kernel = params["downsample_conv"]["dense"]["kernel"][None, None]
            x = self.norm(convolve(x, kernel, stride), name, "block0", "downsample_bn")
        return np.maximum(x + y, 0)

    def __call__(self, frames, same, other):
        """Returns the features of pairs, [B, T, 2, H, W, 3]."""
        names = ("stem_visible", "stem_infrared")
        places = list(np.ndindex(frames.shape[:3]))
        x = np.concatenate([self.stem(frames[place][None], names[place[2]]) for place in places])

        def pool(y):
            pooled = np.empty((*frames.shape[:3], y.shape[-1]))
            for place, mean in zip(places, y.mean((1, 2)), strict=True):
                pooled[place] = mean
            return pooled

        x = self.stage(self.stage(x, 1), 2)
        clean = self.stage(self.stage(x, 3), 4)
        y = self.stage(adain_by_loops(x, same), 3)
        return pool(clean), pool(self.stage(adain_by_loops(y, other), 4))


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_backbone(block):
    frames = random(0, 1, 2, 2, 64, 48, 3)
    style = StyleSources(same=jnp.array([2, 1, 0, 3]), other=jnp.array([3, 2, 1, 0]))
    module = ResNet(block, (1, 1, 1, 1), 2)
    variables = random_variables(module, frames, train=False)
    apply = jax.jit(functools.partial(module.apply, train=False))
    output = apply(variables, frames, style=style)
    features, disturbed = output.vectors, output.disturbed
    assert features.shape == (1, 2, 2, module.num_channels)
    assert module.num_channels == 2 * 8 * (4 if block == "bottleneck" else 1)
    expected = BackboneTwin(variables, block)(frames, style.same, style.other)
    close(features, expected[0], rtol=1e-3)
    close(disturbed, expected[1], rtol=1e-3)


# --- backbone -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "size", "stride"),
    [(4, 2, 3, 1), (8, 4, 3, 2), (5, 3, 3, 2), (6, 7, 7, 2), (1, 1, 3, 1)],
)
def test_convolutions_of_maps_that_are_smaller_than_the_kernel(height, width, size, stride):
    """Such maps take a separate path on CPUs, larger ones XLA's; both are compared with loops."""
    x, pad = random(0, 2, height, width, 3), size // 2
    module = convolution(4, size, stride, jnp.float32, "conv")
    variables = random_variables(module, x)
    output, pull_back = jax.vjp(module.apply, variables, x)
    kernel = variables["params"]["kernel"]
    cotangent = random(1, *output.shape)
    kernel_gradient, gradient = np.zeros(kernel.shape), np.zeros((2, height + 9, width + 9, 3))
    expected = np.zeros(output.shape)
    padded = np.pad(x, ((0, 0), (pad, 9 - pad), (pad, 9 - pad), (0, 0)))
    for row in range((height - 1) // stride + 1):
        for column in range((width - 1) // stride + 1):
            window = np.s_[:, row * stride :, column * stride :]
            patch = padded[window][:, :size, :size]
            at = cotangent[:, row, column]
            expected[:, row, column] = np.einsum("nijc,ijcd->nd", patch, kernel)
            kernel_gradient += np.einsum("nijc,nd->ijcd", patch, at)
            gradient[window][:, :size, :size] += np.einsum("nd,ijcd->nijc", at, kernel)
    close(output, expected)
    by_variables, by_x = pull_back(jnp.asarray(cotangent))
    close(by_variables["params"]["kernel"], kernel_gradient)
    close(by_x, gradient[:, pad : pad + height, pad : pad + width])


# --- skeleton -----------------------------------------------------------------------------------


def test_edge_features():
    keypoints = random(0, T, 17, 3)
    detected = np.random.default_rng(1).uniform(size=(T, 17)) < 0.8
    expected = np.zeros((T, 38))
    for t in range(T):
        for e, (i, j) in enumerate(EDGES):
            if detected[t, i] and detected[t, j]:
                dx, dy = (keypoints[t, j] - keypoints[t, i])[:2]
                expected[t, 2 * e : 2 * e + 2] = math.hypot(dx, dy), math.atan2(dy, dx)
    assert 0 < (expected == 0).sum() < expected.size
    close(edge_features(keypoints, detected), expected)


def test_edge_features_have_finite_gradients():
    """Gradients of coincident joints and of edges with an undetected joint are zero."""
    keypoints = random(0, 3, 17, 3)
    keypoints[0] = 5.0  # all joints in one place
    keypoints[1, ::2] = 0.0
    detected = np.ones((3, 17), bool)
    detected[1, ::2] = False
    keypoints[2, 13] = keypoints[2, 15]  # the joints of edge 0
    weights = random(1, 3, 38).astype(np.float64)

    def total(keypoints):
        return (edge_features(keypoints, detected) * weights.astype(np.float32)).sum()

    gradients = np.asarray(jax.jit(jax.grad(total))(keypoints))
    assert np.isfinite(gradients).all()
    assert (gradients[0] == 0).all() and (gradients[1, ::2] == 0).all()
    assert (gradients[..., 2] == 0).all() and (gradients[2, 15] == 0).all()

    def by_loops(keypoints):  # float64
        value = 0.0
        for t in range(3):
            for e, (i, j) in enumerate(EDGES):
                dx, dy = (keypoints[t, j] - keypoints[t, i])[:2]
                if detected[t, i] and detected[t, j] and (dx or dy):
                    value += weights[t, 2 * e] * math.hypot(dx, dy)
                    value += weights[t, 2 * e + 1] * math.atan2(dy, dx)
        return value

    # Moving both joints of edge 0, or any others, keeps the coincident ones together.
    wide = keypoints.astype(np.float64)
    for t, joints in [(1, [j]) for j in range(17)] + [(2, [13, 15]), (2, [5]), (2, [11])]:
        for axis in (0, 1):
            step = np.zeros_like(wide)
            step[t, joints, axis] = 1e-6
            expected = (by_loops(wide + step) - by_loops(wide - step)) / 2e-6
            close(gradients[t, joints, axis].sum(), expected, rtol=1e-3)


def test_bidirectional_lstm():
    units, valid = 3, np.array([[1, 1, 1, 1], [0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]], bool)
    x = random(0, 4, 4, 5)
    module = BidirectionalLSTM(units)
    variables = random_variables(module, x, valid)
    output = module.apply(variables, x, valid)
    params = variables["params"]
    expected = np.zeros((4, 4, 2 * units))
    for b in range(4):
        for direction, steps in enumerate((range(4), reversed(range(4)))):
            hidden, cell = np.zeros(units), np.zeros(units)
            for t in steps:
                if valid[b, t]:
                    gates = x[b, t] @ params["input_kernel"][direction]
                    gates = gates + hidden @ params["recurrent_kernel"][direction]
                    i, f, g, o = np.split(gates + params["bias"][direction], 4)
                    cell = sigmoid(f) * cell + sigmoid(i) * np.tanh(g)
                    hidden = sigmoid(o) * np.tanh(cell)
                expected[b, t, direction * units : (direction + 1) * units] = hidden
    close(output, expected)
    assert (np.asarray(output[3]) == 0).all()


@pytest.mark.slow
def test_derivatives_of_lstm_states_in_both_modes():
    units, steps, rows = 3, 4, 2
    valid = np.random.default_rng(2).uniform(size=(steps, 2, rows, 1)) < 0.7
    weights = random(3, steps, 2, rows, units)

    def by_loop(kernel, inputs, valid):
        hidden = cell = jnp.zeros((2, rows, units))
        states = []
        for t in range(steps):
            gates = inputs[t] + jnp.stack([hidden[d] @ kernel[d] for d in range(2)])
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            new = jax.nn.sigmoid(f) * cell + jax.nn.sigmoid(i) * jnp.tanh(g)
            hidden = jnp.where(valid[t], jax.nn.sigmoid(o) * jnp.tanh(new), hidden)
            cell = jnp.where(valid[t], new, cell)
            states.append(hidden)
        return jnp.stack(states)

    arguments = random(0, 2, units, 4 * units), random(1, steps, 2, rows, 4 * units)
    tangents = random(4, 2, units, 4 * units), random(5, steps, 2, rows, 4 * units)
    (reverse, forward), (expected_reverse, expected_forward) = (
        (
            jax.grad(lambda *x, run=run: (weights * run(*x, valid)).sum(), (0, 1))(*arguments),
            jax.jvp(lambda *x, run=run: run(*x, valid), arguments, tangents)[1],
        )
        for run in (lstm_states, by_loop)
    )
    close(reverse[0], expected_reverse[0])
    close(reverse[1], expected_reverse[1])
    close(forward, expected_forward)


def test_the_gradient_of_the_recurrent_weights_is_summed_up_after_the_scan():
    """In the scan, it would be a collective in each step of a batch that is split over devices."""
    kernel, inputs = random(0, 2, 3, 12), random(1, 4, 2, 5, 12)
    gradient = jax.grad(lambda *x: lstm_states(*x, np.ones((4, 2, 5, 1), bool)).sum(), (0, 1))
    scans = [x for x in jax.make_jaxpr(gradient)(kernel, inputs).eqns if x.primitive.name == "scan"]
    assert len(scans) == 2  # forward and backward
    assert not [x for scan in scans for x in scan.outvars if x.aval.shape == kernel.shape]


@pytest.mark.parametrize("every_frame", [True, False])
def test_graph_attention(every_frame):
    features, heads, batch = 4, 2, 2
    keypoints = random(0, batch, T, 17, 3)
    shares = np.array([0.8, 0.2]).reshape(batch, 1, 1)
    detected = np.random.default_rng(1).uniform(size=(batch, T, 17)) < shares
    graph = keypoint_graph(keypoints, detected, skeleton_in_every_frame=every_frame)
    module = GraphAttention(features, heads, dropout_rate=0.9)
    variables = random_variables(module, graph, train=False)
    params = {name: x for name, x in variables["params"].items() if name != "projection"}
    kernel = variables["params"]["projection"]["kernel"].reshape(3, heads, features)

    edges = list(zip(*tracklet_edges(T, skeleton_in_every_frame=every_frame), strict=True))
    expected = np.zeros((T * 17, batch, heads, features))
    isolated = np.zeros((T * 17, batch), bool)
    for b in range(batch):
        present = detected[b].ravel()
        nodes = keypoints[b].reshape(-1, 3) * present[:, None]
        for head in range(heads):
            projected = nodes @ kernel[:, head]
            for node in range(T * 17):
                senders = [i for i, j in edges if j == node and present[i]]
                isolated[node, b] = not senders
                if not senders:
                    continue
                logits = projected[senders] @ params["sender"][head]
                logits = logits + projected[node] @ params["receiver"][head]
                weights = softmax(np.where(logits > 0, logits, 0.2 * logits), 0)
                expected[node, b, head] = weights @ projected[senders]
    expected = expected.reshape(T * 17, batch, -1) + params["bias"]
    output = module.apply(variables, graph, train=False).nodes
    assert isolated.any() and not isolated.all()
    close(output, expected, rtol=1e-3)  # also nodes without a neighbor: the bias alone


@pytest.mark.parametrize(("length", "bins"), [(34, 5), (12, 12), (5, 12), (1, 3), (2448, 64)])
def test_adaptive_average(length, bins):
    x = random(0, 2, length)
    expected = [
        [row[i * length // bins : math.ceil((i + 1) * length / bins)].mean() for i in range(bins)]
        for row in x
    ]
    close(adaptive_average(x, bins), expected)


# --- guidance -----------------------------------------------------------------------------------


def attend(params, query, values, mask):
    """Computes attention over time with four heads, for one tracklet."""

    def project(x, name):
        projected = np.einsum("tc,chd->htd", x, params[name]["kernel"])
        return projected + params[name]["bias"][:, None]

    q, k, v = project(query, "query"), project(values, "key"), project(values, "value")
    logits = np.einsum("htd,hsd->hts", q, k) / np.sqrt(q.shape[-1])
    weights = softmax(np.where(mask, logits, -np.inf), 2)
    mixed = np.einsum("hts,hsd->htd", weights, v)
    return np.einsum("htd,hdc->tc", mixed, params["out"]["kernel"]) + params["out"]["bias"]


def test_frame_guidance():
    features, edges = np.abs(random(0, 2, T, 8)), random(1, 2, T, 8)
    detected = np.array([[True, True, True], [True, False, True]])
    module = FrameGuidance()
    inputs = lambda edges: (FrameFeatures(features), skeletons(detected, edges=edges))  # noqa: E731
    variables = random_variables(module, *inputs(edges))
    params = variables["params"]
    expected = []
    for v, s, present in zip(features, edges, detected, strict=True):
        a = attend(params["edges_to_features"], s, v, np.ones(T, bool))
        r = attend(params["features_to_edges"], v, s, present)
        x = np.concatenate([a, r], axis=-1)
        for layer in ("ffn1", "ffn2"):
            x = np.maximum(x @ params[layer]["kernel"] + params[layer]["bias"], 0)
        expected.append(x + v + 1e-3)
    output = module.apply(variables, *inputs(edges))
    close(output, expected)
    assert np.min(output) > 0
    # A frame without a skeleton is masked.
    edges[1, 1] = 1e6 * edges[1, 1]
    others = module.apply(variables, *inputs(edges))[:, 0::2]
    close(others, np.array(expected)[:, 0::2])


def test_guided_pooling():
    frames, skeleton = np.abs(random(0, 2, T, 8)) + 1e-3, random(1, 2, 16)
    module = GuidedPooling()
    inputs = FrameFeatures(frames), skeletons(np.ones((2, T), bool), descriptor=skeleton)
    variables = random_variables(module, *inputs)
    weigh = variables["params"]["weigh"]
    powers = (0.7, 1, 3, 5, 7)
    expected = np.zeros((2, 8))
    for b in range(2):
        for c in range(8):
            logits = [
                skeleton[b] @ weigh["kernel"][:, i, c] + weigh["bias"][i, c] for i in range(5)
            ]
            means = [(frames[b, :, c] ** p).mean() ** (1 / p) for p in powers]
            expected[b, c] = softmax(np.array(logits), 0) @ means
    close(module.apply(variables, *inputs), expected)
