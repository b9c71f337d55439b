"""Which frames each stem receives, and the order of the results."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from star_jax.models.stems import apply_stems

B, T, H, W = 2, 3, 4, 5


def stem(mark):
    """Returns a stem that outputs the number of each frame, and a mark of its own."""
    return lambda frames: jnp.stack([frames.max((1, 2, 3)), jnp.full(len(frames), mark)], axis=-1)


def numbered(*leading):
    """Returns frames filled with their own numbers, in ascending order."""
    numbers = np.arange(np.prod(leading), dtype=np.float32).reshape(*leading, 1, 1, 1)
    return jnp.asarray(np.broadcast_to(numbers, (*leading, H, W, 3)))


def never(frames):
    raise AssertionError("this stem has no frames")


@pytest.mark.parametrize(("modality", "mark"), [("visible", 1.0), ("infrared", -1.0)])
def test_one_modality_goes_through_its_stem_alone(modality, mark):
    stems = {"visible": never, "infrared": never}
    stems[modality] = stem(mark)
    output = apply_stems(numbered(B, T), modality, **stems)
    np.testing.assert_array_equal(output, [(i, mark) for i in range(B * T)])


def test_both_modalities_keep_the_order_of_the_frames():
    output = jax.jit(lambda x: apply_stems(x, None, stem(1.0), stem(-1.0)))(numbered(B, T, 2))
    np.testing.assert_array_equal(output, [(i, (1, -1)[i % 2]) for i in range(B * T * 2)])


def test_maps_keep_their_shape():
    frames = numbered(B, T, 2)
    output = apply_stems(frames, None, lambda x: x[:, ::2], lambda x: x[:, 1::2] + 0.5)
    assert output.shape == (B * T * 2, H // 2, W, 3)
    np.testing.assert_array_equal(output[:, 0, 0, 0], np.arange(12) + [0, 0.5] * 6)


@pytest.mark.parametrize("modality", ["paired", "", "Visible"])
def test_another_modality_is_named(modality):
    with pytest.raises(ValueError, match=f"^modality is '{modality}': use 'visible', 'infrared'"):
        apply_stems(numbered(B, T), modality, never, never)


@pytest.mark.parametrize(
    ("leading", "modality"),
    [((B, T, 2), "visible"), ((B,), "infrared"), ((B, T), None), ((B, T, 1), None)],
)
def test_frames_that_do_not_fit_the_modality_are_named(leading, modality):
    frames = numbered(*leading)
    expected = r"\[B, T, H, W, 3\]" if modality else r"\[B, T, 2, H, W, 3\]"
    with pytest.raises(ValueError, match=f"frames of modality {modality!r} .*: use {expected}$"):
        apply_stems(frames, modality, never, never)
