"""What a training step draws: augmented pairs, style sources and named random streams."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import star_hitsz_vcm
from data_pipelines.errors import InputError
from star_jax import augment
from star_jax.streams import stream
from star_jax.training import steps

B, T, H, W = 3, 2, 64, 48


def augment_config(**changes):
    config = star_hitsz_vcm.get_config().augment
    config.update(changes)
    return config


def nothing(**changes):
    off = {"padding": 0, "flip_probability": 0.0, "erasing_probability": 0.0, "style": False}
    return augment_config(**{**off, **changes})


@functools.cache
def batch():
    rng = np.random.default_rng(0)
    return {
        "frames": rng.integers(1, 256, (B, T, 2, H, W, 3)).astype(np.uint8),
        "keypoints": rng.uniform(1, W, (B, T, 2, 17, 3)).astype(np.float32),
        "labels": np.arange(B, dtype=np.int32),
    }


def augmented(config, seed=0, of=None):
    pairs = jax.jit(lambda key, batch: steps.augmented(key, batch, config))
    frames, keypoints = pairs(jax.random.key(seed), of or batch())
    return np.asarray(frames), np.asarray(keypoints)


def test_without_augmentation_frames_are_normalized_where_they_are():
    frames, keypoints = augmented(nothing())
    assert frames.dtype == keypoints.dtype == np.float32
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
    expected = (batch()["frames"] / 255 - mean) / deviation
    np.testing.assert_allclose(frames, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(keypoints, batch()["keypoints"])


def test_a_certain_flip_mirrors_every_frame():
    frames, _ = augmented(nothing(flip_probability=1.0))
    plain, _ = augmented(nothing())
    np.testing.assert_allclose(frames, plain[..., ::-1, :], rtol=1e-5, atol=1e-6)


def test_style_gains_are_those_of_each_modality():
    frames, _ = augmented(nothing(style=True))
    plain, _ = augmented(nothing())
    ratios = frames[:, :, 1] / plain[:, :, 1]  # one gain for an infrared frame
    np.testing.assert_allclose(
        ratios, np.broadcast_to(ratios[:, :, :1, :1, :1], ratios.shape), 1e-3
    )
    assert len(np.unique(np.round(ratios[:, :, 0, 0, 0], 3))) == B * T
    ratios = (
        frames[:, :, 0] / plain[:, :, 0]
    )  # three for a visible one, whose channels may swap, too
    assert np.abs(ratios - ratios[:, :, :1, :1, :1]).max() > 0.1


def test_only_the_parts_that_are_named_are_applied():
    frames, keypoints = augmented(augment_config(parts=("normalize",), flip_probability=1.0))
    plain, still = augmented(nothing())
    np.testing.assert_allclose(frames, plain, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(keypoints, still)


@pytest.mark.slow
def test_parts_draw_what_was_drawn_before_there_were_parts():
    """Otherwise runs of earlier versions would not resume as they went on."""
    config = augment_config()
    frames, keypoints = augmented(config)

    @jax.jit
    def earlier(key, batch):
        clips = []
        for number, modality in enumerate(("visible", "infrared")):
            own = stream(key, modality)
            clip, joints = augment.random_crop_and_flip(
                stream(own, "crop and flip"),
                batch["frames"][:, :, number],
                batch["keypoints"][:, :, number],
                padding=config.padding,
                flip_probability=config.flip_probability,
            )
            clip = augment.normalize(clip)
            clip = augment.random_erasing(
                stream(own, "erasing"), clip, probability=config.erasing_probability
            )
            clips.append((augment.style_gains(stream(own, "style"), clip, modality), joints))
        return [jnp.stack(both, axis=2) for both in zip(*clips, strict=True)]

    expected = earlier(jax.random.key(0), batch())
    np.testing.assert_array_equal(frames, expected[0])
    np.testing.assert_array_equal(keypoints, expected[1])


def test_a_part_that_returns_other_shapes_is_named(monkeypatch):
    wrong = {"half": lambda key, frames, keypoints, *_: (frames[:, :, ::2], keypoints)}
    monkeypatch.setattr(augment, "AUGMENTATIONS", {**augment.AUGMENTATIONS, **wrong})
    with pytest.raises(InputError, match=r"parts has 'half': .*3, 2, 32, 48.*3, 2, 64, 48, 3"):
        augmented(nothing(parts=("normalize", "half")))


@pytest.mark.slow
def test_modalities_draw_apart_and_keys_decide():
    visible = batch()["frames"][:, :, :1]
    same = {**batch(), "frames": np.concatenate([visible, visible], axis=2)}
    frames, _ = augmented(augment_config(style=False), of=same)
    again, _ = augmented(augment_config(style=False), of=same)
    other, _ = augmented(augment_config(style=False), seed=1, of=same)
    np.testing.assert_array_equal(frames, again)
    assert not np.array_equal(frames, other)
    assert not np.array_equal(frames[:, :, 0], frames[:, :, 1])


@pytest.mark.parametrize(("num_pairs", "clip_length"), [(1, 1), (4, 3), (2, 12)])
def test_style_sources(num_pairs, clip_length):
    config = star_hitsz_vcm.get_config()
    config.data.clip_length = clip_length
    sources = augment.random_style_sources(jax.random.key(0), num_pairs, config)
    assert sources.stages == (2, 3)
    count = num_pairs * 2 * clip_length
    infrared = np.arange(count) % 2
    for indices in (sources.same, sources.other):
        assert sorted(indices.tolist()) == list(range(count))
    np.testing.assert_array_equal(infrared[sources.same], infrared)
    np.testing.assert_array_equal(infrared[sources.other], 1 - infrared)


def test_style_sources_differ_between_keys_modalities_and_stages():
    config = star_hitsz_vcm.get_config()
    first, second = (augment.random_style_sources(jax.random.key(i), 4, config) for i in range(2))
    assert not np.array_equal(first.same, second.same)
    assert not np.array_equal(first.other, second.other)
    positions = lambda x: np.asarray(x) // 2  # noqa: E731  # among frames of its own modality
    assert not np.array_equal(positions(first.same)[0::2], positions(first.same)[1::2])
    assert not np.array_equal(positions(first.same), positions(first.other))


def test_streams_differ_by_name_and_key_and_are_repeatable():
    names = ("init", "augment", "style", "dropout", "visible", "infrared", "same", "other")
    keys = [stream(jax.random.key(seed), name) for seed in (0, 1) for name in names]
    numbers = {tuple(jax.random.key_data(key).tolist()) for key in keys}
    assert len(numbers) == 2 * len(names)
    again = stream(jax.random.key(0), "init")
    assert jnp.array_equal(jax.random.key_data(again), jax.random.key_data(keys[0]))
