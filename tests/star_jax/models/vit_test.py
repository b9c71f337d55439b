"""The Vision Transformer against a NumPy twin on timm's arrays."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import timm_vit

from star_jax.models.resnet import StyleSources
from star_jax.models.vit import ViT
from star_jax.weights import from_timm_vit

make_vit = functools.partial(
    ViT,
    timm_vit.WIDTH,
    timm_vit.DEPTH,
    timm_vit.NUM_HEADS,
    patch_size=timm_vit.PATCH_SIZE,
    pos_grid=timm_vit.POS_GRID,
)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
# Frames of as many patches as the position embedding, of more, of fewer, and of partial patches.
SIZES = [(24, 16), (40, 24), (16, 8), (24, 40), (23, 9), (33, 16)]


def random_frames(*shape):
    return np.random.default_rng(1).normal(size=(*shape, 3)).astype(np.float32)


@functools.cache
def variables():
    """Returns variables of timm's arrays, with an infrared stem that differs from the visible."""
    frames = jnp.zeros((1, 1, 2, 24, 16, 3))
    init = lambda: make_vit().init(jax.random.key(0), frames, modality=None, train=False)  # noqa: E731
    whole = {"params": {"backbone": jax.eval_shape(init)["params"]}}
    params = from_timm_vit(timm_vit.state_dict(), whole)["params"]["backbone"]
    return {
        "params": {**params, "stem_infrared": jax.tree.map(lambda x: -x, params["stem_visible"])}
    }


def expected_features(frames, modality):
    arrays = timm_vit.state_dict()
    if modality == "infrared":
        stem = {name: -array for name, array in arrays.items() if name.startswith("patch_embed")}
        arrays = {**arrays, **stem}
    return [
        [np.log1p(np.exp(timm_vit.class_token(arrays, frame))) for frame in row] for row in frames
    ]


@functools.partial(jax.jit, static_argnames=("modality", "dtype", "remat"))
def features_of(variables, frames, modality, dtype=jnp.float32, remat=False):
    module = make_vit(dtype=dtype, remat=remat)
    features = module.apply(variables, frames, modality=modality, train=True)
    assert features.disturbed is None
    return features.vectors


@pytest.mark.parametrize(
    ("size", "modality"), [*((size, "visible") for size in SIZES), ((40, 24), "infrared")]
)
def test_vit(size, modality):
    frames = random_frames(2, 2, *size)
    features = features_of(variables(), frames, modality)
    assert features.dtype == jnp.float32
    close(features, expected_features(frames, modality))


def test_maps_are_the_tokens_of_the_patches_in_their_places():
    frames, (rows, columns) = random_frames(1, 2, 23, 9), (3, 2)  # of partial patches
    apply = jax.jit(functools.partial(make_vit().apply, modality="visible", train=False))
    features = apply(variables(), frames)
    assert features.maps.shape == (1, 2, rows, columns, timm_vit.WIDTH)
    for t, frame in enumerate(frames[0]):
        tokens = np.log1p(np.exp(timm_vit.tokens_of(timm_vit.state_dict(), frame)))
        for row, column in np.ndindex(rows, columns):
            close(features.maps[0, t, row, column], tokens[1 + row * columns + column])
    narrow = make_vit(dtype=jnp.bfloat16)
    run = functools.partial(narrow.apply, modality="visible", train=False)
    assert jax.eval_shape(run, variables(), frames).maps.dtype == jnp.bfloat16


@pytest.mark.slow
def test_both_modalities_at_once_are_each_alone():
    frames = random_frames(2, 3, 2, 40, 24)
    both = features_of(variables(), frames, None)
    assert both.shape == (2, 3, 2, timm_vit.WIDTH)
    close(both[:, :, 0], features_of(variables(), frames[:, :, 0], "visible"))
    close(both[:, :, 1], features_of(variables(), frames[:, :, 1], "infrared"))
    assert not np.allclose(both[:, :, 0], both[:, :, 1])


def test_bfloat16_differs_by_rounding():
    frames = random_frames(2, 2, 40, 24)
    features = features_of(variables(), frames, "visible", dtype=jnp.bfloat16)
    assert features.dtype == jnp.float32
    exact = features_of(variables(), frames, "visible")
    error = np.abs(features - exact)
    assert 0 < error.max() < 0.1 and error.mean() < 0.02  # features are about 1


@pytest.mark.slow
def test_gradients_are_finite_and_the_same_with_remat():
    frames = random_frames(1, 2, 2, 40, 24)
    weights = np.random.default_rng(2).normal(size=(1, 2, 2, timm_vit.WIDTH)).astype(np.float32)

    def loss(variables, remat):
        return (features_of(variables, frames, None, remat=remat) * weights).sum()

    gradients, with_remat = (jax.grad(loss)(variables(), remat) for remat in (False, True))
    jax.tree.map(functools.partial(close, rtol=1e-4, atol=1e-4), gradients, with_remat)
    for remat in (False, True):  # a barrier prevents XLA from eliminating the recomputation
        lowered = jax.jit(jax.grad(loss), static_argnums=1).lower(variables(), remat)
        assert ("optimization_barrier" in lowered.as_text()) == remat
    for name, part in gradients["params"].items():
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(part)), name
        assert any(np.abs(leaf).max() > 1e-3 for leaf in jax.tree.leaves(part)), name


def test_features_are_never_negative():
    """Holds even if the class token is far below zero."""
    params = variables()["params"]
    low = {"params": {**params, "norm": {**params["norm"], "bias": np.full(timm_vit.WIDTH, -1e3)}}}
    features = features_of(low, random_frames(1, 1, 24, 16), "visible")
    assert np.min(features) >= 0 and np.max(features) < 1e-6


def test_a_style_is_refused():
    style = StyleSources(same=jnp.arange(2), other=jnp.arange(2))
    assert ViT.num_stages == 0
    with pytest.raises(ValueError, match="a ViT has no stages for the style disturbance"):
        make_vit().apply(
            variables(), random_frames(1, 1, 2, 24, 16), modality=None, train=True, style=style
        )


@pytest.mark.slow
def test_the_published_sizes():
    """Counts are those of timm's networks without classifier, plus a second patch embedding."""
    published = {(192, 3): 5_717_416, (384, 6): 22_050_664, (768, 12): 86_567_656}
    for (width, num_heads), with_classifier in published.items():
        module = ViT(width, 12, num_heads)
        assert module.num_channels == width
        frames = jnp.zeros((1, 1, 2, 288, 144, 3))
        init = functools.partial(module.init, modality=None, train=False)
        shapes = jax.eval_shape(init, jax.random.key(0), frames)
        count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
        classifier, embedding = 1000 * (width + 1), (16 * 16 * 3 + 1) * width
        # Class token and its position embedding are one array here.
        assert count == with_classifier - classifier + embedding - width
