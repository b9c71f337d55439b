import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import simplejpeg

from data_pipelines.coco17 import MIRROR
from data_pipelines.records.reading import decode_clip
from star_jax import augment

B, T, H, W = 6, 3, 40, 24
PADDING = 4


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def random_frames(dtype=np.uint8, shape=(B, T, H, W, 3)):
    """Returns frames without black pixels, so that padding is distinguishable."""
    return np.random.default_rng(0).integers(1, 256, shape).astype(dtype)


def random_keypoints(shape=(B, T, 17)):
    rng = np.random.default_rng(1)
    xy = np.stack([rng.integers(0, W, shape), rng.integers(0, H, shape)], axis=-1)
    confidence = rng.uniform(0.1, 1, (*shape, 1))
    return np.concatenate([xy, confidence], axis=-1).astype(np.float32)


# Positional, so that calls with and without an option share one compilation.
@functools.partial(jax.jit, static_argnums=(4, 5))
def _crop_and_flip(key, frames, keypoints, flip_probability, per_frame, move_keypoints):
    return augment.random_crop_and_flip(
        key,
        frames,
        keypoints,
        padding=PADDING,
        flip_probability=flip_probability,
        per_frame=per_frame,
        move_keypoints=move_keypoints,
    )


def crop_and_flip(
    key, frames, keypoints, *, flip_probability=0.5, per_frame=False, move_keypoints=True
):
    return _crop_and_flip(key, frames, keypoints, flip_probability, per_frame, move_keypoints)


random_erasing = jax.jit(augment.random_erasing, static_argnames="per_frame")
style_gains = jax.jit(augment.style_gains, static_argnames="modality")


def recover_draw(frame, output):
    """Returns the one (top, left, flip) that turns `frame` into `output`, by trying all."""
    padded = np.pad(frame, ((PADDING, PADDING), (PADDING, PADDING), (0, 0)))
    found = [
        (top, left, flip)
        for top in range(2 * PADDING + 1)
        for left in range(2 * PADDING + 1)
        for flip in (False, True)
        if np.array_equal(padded[top : top + H, left : left + W][:, :: -1 if flip else 1], output)
    ]
    assert len(found) == 1
    return found[0]


def test_in_a_mirror_each_joint_stays_on_its_pixel():
    frames, keypoints = random_frames(), random_keypoints()
    keypoints[0, 1, 3] = [5, 6, 0]  # not detected
    mirrored, moved = jax.jit(augment.mirror)(frames, keypoints)
    assert mirrored.dtype == np.uint8
    np.testing.assert_array_equal(mirrored[:, :, :, 0], frames[:, :, :, W - 1])
    assert not moved[0, 1, MIRROR[3]].any()
    for b, t, joint in np.ndindex(B, T, 17):
        x, y, confidence = keypoints[b, t, joint]
        if confidence:
            new_x, new_y, new_confidence = np.asarray(moved[b, t, MIRROR[joint]])
            assert new_confidence == confidence
            before, after = frames[b, t, int(y), int(x)], mirrored[b, t, int(new_y), int(new_x)]
            np.testing.assert_array_equal(before, after)


def test_normalize_is_the_formula():
    frames = random_frames()
    output = jax.jit(augment.normalize)(frames)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert output.dtype == jnp.float32
    np.testing.assert_allclose(output, (frames / 255 - mean) / std, rtol=1e-5, atol=1e-6)
    of_floats = jax.jit(augment.normalize)(frames.astype(np.float32))
    np.testing.assert_allclose(output, of_floats, rtol=1e-5, atol=1e-6)
    assert augment.normalize(frames[0, 0]).shape == (H, W, 3)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("per_frame", [False, True])
def test_crop_and_flip_against_brute_force(dtype, per_frame):
    frames, keypoints = random_frames(dtype), random_keypoints()
    output, moved = crop_and_flip(jax.random.key(3), frames, keypoints, per_frame=per_frame)
    assert output.dtype == dtype and output.shape == frames.shape
    assert moved.dtype == jnp.float32 and moved.shape == keypoints.shape
    draws = []
    for b, t in np.ndindex(B, T):
        top, left, flip = recover_draw(frames[b, t], np.asarray(output[b, t]))
        draws.append((top, left, flip))
        for joint in range(17):
            x, y, confidence = keypoints[b, t, joint]
            x, y = x + PADDING - left, y + PADDING - top
            if flip:
                x = W - 1 - x
            target = MIRROR[joint] if flip else joint
            np.testing.assert_array_equal(
                moved[b, t, target], np.array([x, y, confidence], np.float32)
            )
    by_tracklet = [draws[b * T : (b + 1) * T] for b in range(B)]
    assert len({flip for _, _, flip in draws}) == 2 and len(set(draws)) > 2
    assert all(len(set(of_one)) == 1 for of_one in by_tracklet) is not per_frame


@pytest.mark.parametrize("per_frame", [False, True])
def test_keypoints_stay_on_their_pixels(per_frame):
    """One pixel per joint carries the joint's number; flipped frames show the mirrored joint."""
    keypoints = random_keypoints()
    cells = np.random.default_rng(2)
    frames = np.zeros((B, T, H, W, 3), np.uint8)
    for b, t in np.ndindex(B, T):
        pixels = cells.choice(H * W, 17, replace=False)  # a separate pixel for every joint
        keypoints[b, t, :, 0], keypoints[b, t, :, 1] = pixels % W, pixels // W
        frames[b, t, pixels // W, pixels % W, 0] = 1 + np.arange(17)
        frames[b, t, ..., 1] = 1 + np.arange(W)  # marks flips
    output, moved = crop_and_flip(jax.random.key(3), frames, keypoints, per_frame=per_frame)
    output, moved = np.asarray(output), np.asarray(moved)
    seen, flips = 0, 0
    for b, t in np.ndindex(B, T):
        columns = output[b, t, H // 2, :, 1].astype(int)
        flip = columns[W // 2] > columns[W // 2 + 1]
        flips += flip
        for joint in range(17):
            x, y, _ = moved[b, t, joint].astype(int)
            if 0 <= x < W and 0 <= y < H:
                painted = MIRROR[joint] if flip else joint
                assert output[b, t, y, x, 0] == 1 + painted
                seen += 1
    assert 0 < flips < B * T and seen > B * T * 17 / 2


@pytest.mark.parametrize(("joints", "follows"), [("relative", True), ("pixels", False)])
def test_joints_follow_a_flip_only_where_they_have_followed_the_resizing(joints, follows):
    """A bright column in a stored frame of 32 pixels, resized to 144 pixels and mirrored."""
    stored = np.zeros((64, 32, 3), np.uint8)
    stored[:, 15:17] = 255  # its center is x = 15.5
    shoulder, other = 5, MIRROR[5]
    keypoints = np.zeros((1, 17, 3), np.float32)
    keypoints[0, shoulder] = (15.5, 40, 1)
    record = {
        "frames": [simplejpeg.encode_jpeg(stored)],
        "keypoints": keypoints,
        "height": np.array([64], np.int32),
        "width": np.array([32], np.int32),
        "tracklet": 1,
        "frame_ids": ["1.jpg"],
    }
    frames = np.zeros((1, 1, 288, 144, 3), np.uint8)
    loaded = decode_clip(record, np.array([0]), frames[0], joints=joints)[None]
    mirrored, moved = augment.random_crop_and_flip(
        jax.random.key(0), frames, loaded, padding=0, flip_probability=1.0
    )
    bright = np.flatnonzero(np.asarray(mirrored)[0, 0, 120, :, 1] > 128)
    np.testing.assert_allclose(bright.mean(), 71.5)
    x = float(moved[0, 0, other, 0])
    assert bool(bright.min() <= x <= bright.max()) is follows
    if not follows:
        assert x == 127.5  # not in the stored frame either


def test_joints_outside_keep_their_place_and_missing_ones_are_zero():
    frames, keypoints = random_frames(), random_keypoints()
    keypoints[..., 0, :] = (0, 0, 0.7)  # leaves the frame in most crops
    keypoints[..., 5, :] = 0  # not detected
    keypoints[..., 9, 2] = 0  # not detected, but with a position
    _, moved = crop_and_flip(jax.random.key(0), frames, keypoints)
    moved = np.asarray(moved)
    assert (moved[..., 0, 2] == np.float32(0.7)).all()
    outside = (moved[..., 0, :2] < 0).any(axis=-1) | (moved[..., 0, 0] >= W)
    assert outside.any()
    missing = moved[..., 2] == 0
    assert missing.sum() == 2 * B * T
    assert (moved[missing] == 0).all()


def test_keypoints_can_be_left_alone():
    keypoints = random_keypoints()
    key, frames = jax.random.key(3), random_frames()
    output, untouched = crop_and_flip(key, frames, keypoints, move_keypoints=False)
    np.testing.assert_array_equal(untouched, keypoints)
    np.testing.assert_array_equal(output, crop_and_flip(key, frames, keypoints)[0])


def test_crop_draws_are_uniform():
    frames = np.zeros((2000, 1, 8, 6, 3), np.uint8)
    keypoints = np.zeros((2000, 1, 17, 3), np.float32)
    keypoints[:, :, 0] = (1, 2, 1)
    _, moved = crop_and_flip(jax.random.key(0), frames, keypoints, flip_probability=0.0)
    shifts = np.asarray(moved[:, 0, 0, :2]) - (1, 2)
    for axis in range(2):
        values, counts = np.unique(shifts[:, axis], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(-PADDING, PADDING + 1))
        assert abs(counts - 2000 / 9).max() < 5 * np.sqrt(2000 / 9)
    assert abs(np.corrcoef(shifts.T)[0, 1]) < 0.12


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_flip_probability(probability):
    frames = np.zeros((2000, 1, 8, 6, 3), np.uint8)
    keypoints = np.zeros((2000, 1, 17, 3), np.float32)
    keypoints[:, :, 1, 2] = 1  # the left eye becomes the right one in a flip
    _, moved = crop_and_flip(jax.random.key(0), frames, keypoints, flip_probability=probability)
    np.testing.assert_array_equal(moved[:, 0, 1, 2] + moved[:, 0, 2, 2], np.ones(2000))
    assert np.mean(moved[:, 0, 2, 2]) == pytest.approx(probability, abs=0.05)


FILL = (0.4914, 0.4822, 0.4465)


def erased_rectangles(frames, output):
    """Returns (top, left, height, width) of the change in every frame, None without one."""
    rectangles = []
    output = np.asarray(output).reshape(-1, *frames.shape[2:])
    for frame, after in zip(frames.reshape(output.shape), output, strict=True):
        changed = (frame != after).any(axis=-1)
        if not changed.any():
            rectangles.append(None)
            continue
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        inside = np.zeros_like(changed)
        inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
        np.testing.assert_array_equal(changed, inside)
        np.testing.assert_array_equal(
            after[inside], np.broadcast_to(np.float32(FILL), (inside.sum(), 3))
        )
        rectangles.append((rows[0], columns[0], np.ptp(rows) + 1, np.ptp(columns) + 1))
    return rectangles


def test_erasing_fills_one_rectangle_a_frame():
    frames = np.full((60, T, 32, 16, 3), -1, np.float32)
    output = random_erasing(jax.random.key(0), frames, per_frame=True)
    assert output.dtype == jnp.float32 and output.shape == frames.shape
    rectangles = erased_rectangles(frames, output)
    assert len({r for r in rectangles if r}) > 60
    assert any(len(set(rectangles[i : i + T])) > 1 for i in range(0, 60 * T, T))


def test_erasing_draws():
    """The frames have the aspect ratio of real ones, at a third of the size."""
    frames = np.full((700, 2, 96, 48, 3), -1, np.float32)
    output = random_erasing(jax.random.key(1), frames)
    assert output.dtype == jnp.float32 and output.shape == frames.shape
    rectangles = erased_rectangles(frames, output)
    assert rectangles[::2] == rectangles[1::2]  # one per tracklet
    rectangles = [r for r in rectangles[::2] if r]
    assert len(rectangles) / 700 == pytest.approx(0.5, abs=0.06)
    top, left, height, width = np.array(rectangles).T
    assert (height < 96).all() and (width < 48).all()
    area, aspect = height * width / (96 * 48), height / width
    # Rounding to whole pixels may slightly exceed the ranges.
    assert area.min() > 0.016 and area.max() < 0.42 and np.ptp(area) > 0.3
    assert aspect.min() > 0.27 and aspect.max() < 3.8 and np.ptp(aspect) > 2.5
    # Uniform, except for wide large rectangles that do not fit.
    assert np.mean(aspect) == pytest.approx(1.9, abs=0.2)
    assert np.mean(area) == pytest.approx(0.2, abs=0.03)
    for start, free in ((top, 96 - height), (left, 48 - width)):
        assert (start == 0).any() and (start == free).any()
        assert np.mean(start / free) == pytest.approx(0.5, abs=0.06)


def test_erasing_draws_again_until_the_rectangle_fits():
    # Square rectangles of 10 to 90 % of a 40 x 10 frame: only those below 25 % fit.
    frames = np.zeros((300, 1, 40, 10, 3), np.float32)
    output = random_erasing(
        jax.random.key(0), frames, probability=1.0, area=(0.1, 0.9), aspect=(1.0, 1.0)
    )
    rectangles = erased_rectangles(frames, output)
    fitting = 0.15 / 0.8
    erased = np.mean([r is not None for r in rectangles])
    assert erased == pytest.approx(1 - (1 - fitting) ** augment._ERASING_ATTEMPTS, abs=0.08)
    assert all(r[2] == r[3] < 10 for r in rectangles if r)


def test_nothing_is_erased_where_nothing_fits():
    frames = np.ones((300, 1, 40, 10, 3), np.float32)
    output = random_erasing(
        jax.random.key(0), frames, probability=1.0, area=(0.9, 0.9), aspect=(9.0, 9.0)
    )
    np.testing.assert_array_equal(output, frames)


def test_infrared_gain_is_one_number_a_frame():
    frames = np.random.default_rng(0).standard_normal((40, 5, 4, 3, 3)).astype(np.float32)
    output = np.asarray(style_gains(jax.random.key(0), frames, modality="infrared"))
    assert output.dtype == np.float32
    gains = output[..., :1, :1, :1] / frames[..., :1, :1, :1]
    np.testing.assert_allclose(output, frames * gains, rtol=1e-5)
    assert len(np.unique(gains)) == 200
    assert gains.min() > 0.499 and gains.max() < 1.501
    assert gains.mean() == pytest.approx(1, abs=0.08) and gains.std() == pytest.approx(
        12**-0.5, abs=0.04
    )


def test_visible_gains_are_per_channel_and_channels_are_permuted():
    frames = np.random.default_rng(0).standard_normal((40, 5, 4, 3, 3)).astype(np.float32)
    output = np.asarray(style_gains(jax.random.key(0), frames, modality="visible"))
    assert output.dtype == np.float32
    permutations, gains = [], []
    for before, after in zip(frames.reshape(200, 12, 3), output.reshape(200, 12, 3), strict=True):
        sources = []
        for channel in range(3):
            ratios = after[:, channel, None] / before  # constant over pixels for the source only
            (source,) = np.flatnonzero(np.ptp(ratios, axis=0) < 1e-3)
            sources.append(source)
            gains.append(ratios[0, source])
        permutations.append(tuple(sources))
    assert all(sorted(sources) == [0, 1, 2] for sources in permutations)
    _, counts = np.unique(permutations, axis=0, return_counts=True)
    assert len(counts) == 6 and counts.min() > 12
    assert len(np.unique(gains)) > 590
    assert min(gains) > 0.499 and max(gains) < 1.501
    assert np.mean(gains) == pytest.approx(1, abs=0.05)


def test_style_of_an_unknown_modality_is_refused():
    with pytest.raises(ValueError, match="'rgb'"):
        augment.style_gains(jax.random.key(0), random_frames(np.float32), "rgb")


def test_a_key_determines_every_draw():
    frames, keypoints = random_frames(np.float32), random_keypoints()
    functions = {
        "crop": lambda key: crop_and_flip(key, frames, keypoints)[0],
        "erase": lambda key: random_erasing(key, frames),
        "infrared": lambda key: style_gains(key, frames, modality="infrared"),
        "visible": lambda key: style_gains(key, frames, modality="visible"),
    }
    for name, function in functions.items():
        first, again, other = (function(jax.random.key(seed)) for seed in (0, 0, 1))
        np.testing.assert_array_equal(first, again, err_msg=name)
        assert (np.asarray(first) != np.asarray(other)).any(), name
