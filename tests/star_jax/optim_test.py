"""The optimizer against PyTorch's update rule written in NumPy, and the published schedule."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from configs import star_hitsz_vcm
from data_pipelines.errors import InputError
from star_jax.optim import learning_rate_factor, make_optimizer

STEPS_PER_EPOCH = 268  # of HITSZ-VCM


def optim_config(**changes):
    config = star_hitsz_vcm.get_config().optim
    config.update(changes)
    return config


@pytest.mark.parametrize(
    ("epoch", "rate"),
    [
        (0, 0.01),
        (4, 0.05),
        (9, 0.1),
        (10, 0.1),
        (59, 0.1),
        (60, 0.01),
        (119, 0.01),
        (120, 0.001),
        (129, 0.001),
    ],
)
def test_schedule_is_the_published_one(epoch, rate):
    config = optim_config()
    assert (config.warmup_epochs, tuple(config.decay_epochs), config.lr) == (10, (60, 120), 0.1)
    for step in (epoch * STEPS_PER_EPOCH, (epoch + 1) * STEPS_PER_EPOCH - 1):
        factor = learning_rate_factor(jnp.int32(step), config, STEPS_PER_EPOCH)
        assert factor.shape == () and factor.dtype == jnp.float32
        np.testing.assert_allclose(config.lr * factor, rate, rtol=1e-5)


def test_schedule_without_warmup_and_decay_is_constant():
    config = optim_config(warmup_epochs=0, decay_epochs=())
    for step in (0, 1, 1000):
        assert learning_rate_factor(jnp.int32(step), config, 10) == 1


def sgd_by_pytorchs_rule(params, gradients, rates, momentum, weight_decay):
    """Computes `torch.optim.SGD(nesterov=True, dampening=0)` of one parameter, in float64."""
    buffer = None
    for gradient, rate in zip(gradients, rates, strict=True):
        decayed = gradient + weight_decay * params
        buffer = decayed if buffer is None else momentum * buffer + decayed
        params = params - rate * (decayed + momentum * buffer)
    return params


def test_updates_are_pytorchs():
    # Two steps per epoch: the warm-up ends with step 3, the rates drop at steps 6 and 10.
    config = optim_config(
        lr=0.1, backbone_lr=0.02, weight_decay=0.05, warmup_epochs=2, decay_epochs=(3, 5)
    )
    factors = [0.5, 0.5, 1, 1, 1, 1, 0.1, 0.1, 0.1, 0.1, 0.01, 0.01]
    rng = np.random.default_rng(0)
    shapes = {"backbone": {"stem": {"kernel": (3, 4)}}, "bnneck": {"scale": (5,)}}
    draw = lambda: jax.tree.map(  # noqa: E731
        lambda shape: rng.normal(size=shape).astype(np.float32),
        shapes,
        is_leaf=lambda x: isinstance(x, tuple),
    )
    start = params = draw()
    gradients = [draw() for _ in factors]

    optimizer = make_optimizer(config, steps_per_epoch=2)
    state = optimizer.init(params)
    update = jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)

    for rate, path in ((0.02, ("backbone", "stem", "kernel")), (0.1, ("bnneck", "scale"))):
        leaf = lambda tree, path=path: leaf_at(tree, path)  # noqa: E731
        expected = sgd_by_pytorchs_rule(
            leaf(start).astype(float),
            [leaf(gradient) for gradient in gradients],
            [rate * factor for factor in factors],
            momentum=0.9,
            weight_decay=0.05,
        )
        np.testing.assert_allclose(leaf(params), expected, rtol=1e-5, atol=1e-6)


def adam_by_pytorchs_rule(params, gradients, rates, beta, weight_decay, *, decoupled):
    """Computes `torch.optim.Adam`, or `AdamW` if decoupled, of one parameter, in float64."""
    mean, square = np.zeros_like(params), np.zeros_like(params)
    for count, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        if decoupled:
            params = params * (1 - rate * weight_decay)
        else:
            gradient = gradient + weight_decay * params
        mean = beta * mean + (1 - beta) * gradient
        square = 0.999 * square + 0.001 * gradient**2
        scale = np.sqrt(square) / np.sqrt(1 - 0.999**count) + 1e-8
        params = params - rate / (1 - beta**count) * mean / scale
    return params


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_updates_of_adam_are_pytorchs(name):
    config = optim_config(
        **{"lr": 0.1, "backbone_lr": 0.02, "momentum": 0.8, "weight_decay": 0.3},
        **{"optimizer": name, "warmup_epochs": 2, "decay_epochs": (3,)},
    )
    factors = [0.5, 1, 1, 0.1, 0.1]
    rng = np.random.default_rng(0)
    draw = lambda: {k: rng.normal(size=(3, 4)).astype("f4") for k in ("backbone", "head")}  # noqa: E731
    start = params = draw()
    gradients = [draw() for _ in factors]
    optimizer = make_optimizer(config, steps_per_epoch=1)
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for gradient in gradients:
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    for group, rate in (("backbone", 0.02), ("head", 0.1)):
        expected, other = (
            adam_by_pytorchs_rule(
                start[group].astype(float),
                [gradient[group] for gradient in gradients],
                [rate * factor for factor in factors],
                *(0.8, 0.3),
                decoupled=decoupled,
            )
            for decoupled in (name == "adamw", name != "adamw")
        )
        np.testing.assert_allclose(params[group], expected, rtol=1e-4, atol=1e-6)
        assert np.abs(expected - other).max() > 1e-3  # the two differ


def test_cosine_falls_to_0_after_the_warmup():
    """Four epochs of two steps, of which two warm up: half of 1 + cos of 0, 45, ... 180 degrees."""
    config = optim_config(schedule="cosine", warmup_epochs=2, epochs=4)
    factors = [float(learning_rate_factor(jnp.int32(step), config, 2)) for step in range(10)]
    expected = [0.5, 0.5, 1, 1, 1, 0.853553, 0.5, 0.146447, 0, 0]
    np.testing.assert_allclose(factors, expected, rtol=1e-5, atol=1e-6)


def test_a_part_of_optim_that_does_not_exist_is_named():
    for key in ("optimizer", "schedule"):
        with pytest.raises(InputError, match=rf"config\.optim\.{key} is 'lamb'"):
            make_optimizer(optim_config(**{key: "lamb"}), 1)


def leaf_at(tree, path):
    for key in path:
        tree = tree[key]
    return tree


def test_a_rate_of_0_freezes_the_backbone_alone():
    optimizer = make_optimizer(optim_config(backbone_lr=0.0), steps_per_epoch=1)
    start = {"backbone": jnp.array([3.0]), "head": jnp.array([3.0])}
    state, params = optimizer.init(start), start
    for _ in range(3):
        updates, state = optimizer.update(jax.tree.map(jnp.ones_like, start), state, params)
        params = optax.apply_updates(params, updates)
    assert params["backbone"] == start["backbone"] and params["head"] < start["head"]


@pytest.mark.parametrize("clip_norm", [0.0, 2.0, 100.0])
def test_long_gradients_are_scaled_down_to_the_clip_norm(clip_norm):
    options = {"lr": 1.0, "backbone_lr": 1.0, "momentum": 0.0, "weight_decay": 0.0}
    config = optim_config(clip_norm=clip_norm, warmup_epochs=0, decay_epochs=(), **options)
    optimizer = make_optimizer(config, steps_per_epoch=1)
    gradient = {"backbone": jnp.array([3.0, 0.0]), "head": jnp.array([0.0, 4.0])}  # of length 5
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    length = np.linalg.norm(np.concatenate([updates["backbone"], updates["head"]]))
    np.testing.assert_allclose(length, 2.0 if clip_norm == 2.0 else 5.0, rtol=1e-6)
    np.testing.assert_allclose(updates["head"][1] / updates["backbone"][0], 4 / 3, rtol=1e-6)
