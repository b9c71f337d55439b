"""Corrupted skeletons: what is changed, and that nothing but the position decides how."""

import hitsz_files
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines import loader
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.records.dataset import open_dataset
from data_pipelines.sampling import ClipSpec
from data_pipelines.skeletons import corruption
from data_pipelines.skeletons.corruption import Corruption, parse

SIZE = (hitsz_files.HEIGHT, hitsz_files.WIDTH)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    return hitsz_vcm.prepare(hitsz_files.write_dataset(folder / "root"), folder)


def skeletons(num_frames=200, absent=0.3, seed=0):
    """Returns joints within frames of 32 x 16 pixels, of which some are not detected."""
    rng = np.random.default_rng(seed)
    joints = rng.uniform(0.1, 1, (num_frames, 17, 3)) * [16, 32, 1]
    joints[rng.random((num_frames, 17)) < absent, 2] = 0  # x and y remain
    return joints.astype(np.float32)


@given(st.one_of(st.text(), st.from_regex(r"(drop|jitter|swap_people|none)(:[-0-9.e]{0,5})?")))
def test_any_text_is_a_corruption_or_one_line(text):
    try:
        found = parse(text)
    except ValueError as error:
        assert str(error).startswith("corruption ") and str(error).isprintable()
        assert "use drop:P" in str(error)
    else:
        assert (found is None) == (text == "none")
        if found is not None:
            kind, _, amount = text.partition(":")
            assert found == (kind, float(amount or 0)) and found.amount >= 0
            assert kind != "drop" or found.amount <= 1
            assert (kind == "swap_people") == (amount == "")


@pytest.mark.parametrize(
    "text", ["drop:0.3", "drop:1", "jitter:0.05", "jitter:0.1234567", "swap_people"]
)
def test_texts_of_corruptions(text):
    assert str(parse(text)) == text


@pytest.mark.parametrize(
    "text", ["", "drop", "drop:", "drop:1.1", "drop:-1", "jitter:nan", "none:1", "swap_people:1"]
)
def test_wrong_texts_are_named(text):
    with pytest.raises(ValueError, match=rf"^corruption '{text}': use drop:P .* or none$"):
        parse(text)


@given(probability=st.floats(0, 1), seed=st.integers(0, 99))
def test_dropped_joints_are_zeros_and_others_unchanged(probability, seed):
    keypoints = skeletons()
    before = keypoints.copy()
    rng = np.random.default_rng(seed)
    found = corruption.drop(keypoints, np.full(200, 32), probability, rng)
    np.testing.assert_array_equal(keypoints, before)
    dropped = (found != keypoints).any(axis=-1)
    assert not found[dropped].any() and found.dtype == np.float32
    expected = 200 * 17 * probability
    # Five standard deviations, and as many joints where hardly any or nearly all are dropped.
    assert abs(dropped.sum() - expected) <= 5 + 5 * np.sqrt(expected * (1 - probability))


def test_more_is_dropped_of_the_same_joints():
    few, many = (
        corruption.drop(skeletons(), np.full(200, 32), p, np.random.default_rng(1)) == 0
        for p in (0.3, 0.5)
    )
    assert (few <= many).all() and few.sum() < many.sum()


def test_jitter_is_a_share_of_each_frames_height():
    keypoints, heights = skeletons(), np.tile([32, 320], 100)
    found = corruption.jitter(keypoints, heights, 0.05, np.random.default_rng(0))
    moved = found - keypoints
    assert found.dtype == np.float32 and not moved[..., 2].any()
    assert not moved[keypoints[..., 2] == 0].any()
    for first, height in ((0, 32), (1, 320)):
        own = keypoints[first::2, :, 2] > 0
        for axis in (0, 1):
            noise = moved[first::2, :, axis][own]
            assert abs(noise.std() / (0.05 * height) - 1) < 0.1
            assert abs(noise.mean()) < 0.2 * 0.05 * height


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from([0, 1])), max_size=40))
def test_everyone_gets_the_skeletons_of_another_person(tracklets):
    identities = np.array([identity for identity, _ in tracklets], "U1")
    modalities = np.array([modality for _, modality in tracklets], np.int64)
    possible = all(
        2 * list(identities[modalities == modality]).count(identity)
        <= (modalities == modality).sum()
        for identity, modality in tracklets
    )
    if not possible:
        with pytest.raises(ValueError, match=r"^swap_people: identity \w has \d+ of \d+ \w+ track"):
            corruption.other_people(identities, modalities)
        return
    sources = corruption.other_people(identities, modalities)
    assert sorted(sources.tolist()) == list(range(len(tracklets)))
    assert not (identities[sources] == identities).any()
    assert (modalities[sources] == modalities).all()
    again = corruption.other_people(identities.copy(), modalities.copy())
    np.testing.assert_array_equal(again, sources)


def test_the_tracklets_of_a_person_get_those_of_several():
    """Otherwise the skeletons would still tell people apart."""
    identities = np.repeat([f"{number}" for number in range(20)], 5)
    sources = corruption.other_people(identities, np.zeros(100, np.int64))
    others = [len(set(identities[sources[identities == name]])) for name in set(identities)]
    assert np.mean(others) > 4


def test_other_skeletons_are_resampled_and_resized():
    record = {"frames": [b""] * 4, "height": np.full(4, 64), "width": np.full(4, 8)}
    other = {
        **{"frames": [b""] * 2, "height": np.array([32, 16]), "width": np.array([16, 8])},
        "keypoints": skeletons(2, absent=0),
    }
    found = corruption.fitted(other, record)
    for frame, source, scale in ((0, 0, (0.5, 2)), (1, 0, (0.5, 2)), (2, 1, (1, 4))):
        joints = other["keypoints"][source]
        expected = (joints[:, :2] + 0.5) * scale - 0.5
        np.testing.assert_allclose(found[frame, :, :2], expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(found[frame, :, 2], joints[:, 2])
    np.testing.assert_array_equal(found[2], found[3])
    longer = corruption.fitted({**record, "keypoints": skeletons(4)}, other)
    assert longer.shape == (2, 17, 3)


def clips(packed, kind, **settings):
    """Returns the frames and keypoints of clips by position and number of the clip."""
    split = open_dataset(packed).split("test")
    settings = {"positions": range(len(split)), "batch_size": 4, "mode": "dense", **settings}
    found, frames = {}, {}
    for batch in loader.embed_batches(split, ClipSpec(5, SIZE), corruption=kind, **settings):
        for place, position in enumerate(batch["position"].tolist()):
            if position >= 0:
                key = (position, sum(known == position for known, _ in found))
                found[key], frames[key] = batch["keypoints"][place], batch["frames"][place]
    return found, frames


@pytest.mark.parametrize("text", ["drop:0.4", "jitter:0.1", "swap_people"])
def test_batches_decide_nothing(packed, text):
    kind = parse(text)
    whole, frames = clips(packed, kind)
    plain, same_frames = clips(packed, None)
    for key in plain:
        np.testing.assert_array_equal(frames[key], same_frames[key])
        assert (whole[key] != plain[key]).any()
    other = clips(packed, kind, positions=[7, 2, 5], batch_size=3, num_threads=1)[0]
    for key, keypoints in other.items():
        np.testing.assert_array_equal(keypoints, whole[key])


def test_swapped_clips_are_those_of_the_other_tracklet(packed):
    split = open_dataset(packed).split("test")
    records, index = split.records, split.index
    sources = corruption.other_people(index.identities, index.modalities)
    swapped, _ = clips(packed, Corruption("swap_people"))
    for position, source in enumerate(sources):
        assert index.identities[position] != index.identities[source]
        own, stored = len(records[position]["frames"]), records[int(source)]["keypoints"]
        chosen = [int(frame * len(stored) / own) for frame in range(5)]
        np.testing.assert_array_equal(swapped[position, 0], stored[chosen])
