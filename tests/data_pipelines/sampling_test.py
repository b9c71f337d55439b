"""Which frames and tracklets make a batch."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from data_pipelines import sampling, schema

SIZES = st.integers(1, 60)
QUICK = hypothesis.settings(deadline=None, max_examples=50)


def padded_chunks(num_frames: int, clip_length: int) -> list[list[int]]:
    """The rule of the protocol, written out: pad with the last index, cut into chunks."""
    step = -(-num_frames // clip_length)
    indices = list(range(num_frames))
    indices += [num_frames - 1] * (step * clip_length - num_frames)
    return [indices[start : start + step] for start in range(0, len(indices), step)]


@pytest.mark.parametrize(
    ("clip_length", "expected"),
    [
        (6, [0, 4, 8, 12, 16, 20]),
        (10, [0, 3, 6, 9, 12, 15, 18, 21, 23, 23]),
        (12, list(range(0, 24, 2))),
    ],
)
def test_published_examples_of_24_frames(clip_length, expected):
    assert sampling.test_frames(24, clip_length).tolist() == expected


@QUICK
@hypothesis.given(SIZES, SIZES)
def test_test_frames_are_the_first_of_each_chunk(num_frames, clip_length):
    expected = [chunk[0] for chunk in padded_chunks(num_frames, clip_length)]
    assert sampling.test_frames(num_frames, clip_length).tolist() == expected


@QUICK
@hypothesis.given(SIZES, SIZES, st.integers(0, 2**31))
def test_training_frames_are_one_of_each_chunk(num_frames, clip_length, step):
    rng = sampling.row_generator(0, step, 0, schema.VISIBLE)
    drawn = sampling.training_frames(num_frames, clip_length, rng)
    assert len(drawn) == clip_length
    for frame, chunk in zip(drawn, padded_chunks(num_frames, clip_length), strict=True):
        assert frame in chunk


def test_training_frames_reach_every_frame():
    drawn = [
        sampling.training_frames(25, 10, sampling.row_generator(0, step, 0, 0))
        for step in range(100)
    ]
    assert set(np.concatenate(drawn).tolist()) == set(range(25))


@QUICK
@hypothesis.given(SIZES, SIZES)
def test_spread_test_frames_are_equally_far_apart(num_frames, clip_length):
    expected = [int(i * (num_frames / clip_length)) for i in range(clip_length)]
    frames = sampling.spread_test_frames(num_frames, clip_length)
    assert frames.dtype == np.int64
    assert frames.tolist() == expected


@QUICK
@hypothesis.given(SIZES, SIZES, st.integers(0, 2**31))
def test_sorted_training_frames_repeat_only_if_they_must(num_frames, clip_length, step):
    rng = sampling.row_generator(0, step, 0, schema.VISIBLE)
    drawn = sampling.sorted_training_frames(num_frames, clip_length, rng).tolist()
    assert len(drawn) == clip_length
    assert drawn == sorted(drawn)
    assert set(drawn) <= set(range(num_frames))
    if num_frames >= clip_length:
        assert len(set(drawn)) == clip_length


def test_sorted_training_frames_reach_every_frame_in_every_place():
    rng = np.random.default_rng(0)
    drawn = np.stack([sampling.sorted_training_frames(6, 4, rng) for _ in range(300)])
    # Of 4 frames out of 6 in order, place i takes one of the frames i, i + 1 and i + 2.
    for place, frames in enumerate(drawn.T):
        assert set(frames.tolist()) == {place, place + 1, place + 2}


@QUICK
@hypothesis.given(SIZES, SIZES)
def test_dense_clips_show_every_frame_in_order(num_frames, clip_length):
    clips = sampling.dense_clips(num_frames, clip_length)
    assert clips.shape == (-(-num_frames // clip_length), clip_length)
    assert clips.ravel()[:num_frames].tolist() == list(range(num_frames))
    last = clips[-1].tolist()
    real = num_frames - (len(clips) - 1) * clip_length
    assert all(last[i] == last[i - real] for i in range(real, clip_length))


@QUICK
@hypothesis.given(SIZES, SIZES, st.sampled_from(sorted(sampling.SAMPLERS)))
def test_the_rule_of_one_clip_can_be_named(num_frames, clip_length, name):
    first, chunks, spread, dense = (
        sampling.clips_to_embed(num_frames, clip_length, mode=mode, sampling=name).tolist()
        for mode in sampling.CLIPS
    )
    assert chunks == [[chunk[0] for chunk in padded_chunks(num_frames, clip_length)]]
    assert spread == [[int(i * (num_frames / clip_length)) for i in range(clip_length)]]
    assert first == {"hitsz_vcm": chunks, "bupt_campus": spread}[name]
    assert {frame for clip in dense for frame in clip} == set(range(num_frames))


def test_dense_clips_example():
    assert sampling.dense_clips(7, 5).tolist() == [[0, 1, 2, 3, 4], [5, 6, 5, 6, 5]]


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_empty_clips_are_refused(sizes):
    for function in (sampling.test_frames, sampling.spread_test_frames, sampling.dense_clips):
        with pytest.raises(ValueError, match="must be 1 or more"):
            function(*sizes)
    for function in (sampling.training_frames, sampling.sorted_training_frames):
        with pytest.raises(ValueError, match="must be 1 or more"):
            function(*sizes, np.random.default_rng(0))


def make_index(labels, modalities) -> schema.Index:
    count = len(labels)
    ones = np.ones(count, np.int32)
    return schema.Index(
        identities=np.array([f"{label:04d}" for label in labels]),
        labels=np.array(labels, np.int32),
        cameras=ones,
        camera_names=ones.astype(str),
        modalities=np.array(modalities, np.int32),
        num_frames=ones * 24,
        rows=np.arange(1, count + 1, dtype=np.int32),
        missing_skeletons=ones * 0,
        queries=ones > 0,
        galleries=ones > 0,
        conditions=np.full(count, ""),
    )


def random_index(num_identities=20, num_tracklets=200) -> schema.Index:
    rng = np.random.default_rng(0)
    return make_index(
        rng.integers(num_identities, size=num_tracklets), rng.integers(2, size=num_tracklets)
    )


@QUICK
@hypothesis.given(
    st.integers(0, 2**40), st.integers(0, 2**20), st.integers(1, 8), st.integers(1, 4)
)
def test_a_batch_pairs_the_identities_of_both_modalities(seed, step, identities, tracklets):
    index = random_index()
    sizes = {"identities_per_batch": identities, "tracklets_per_identity": tracklets}
    plan = sampling.sample_batch(index, seed=seed, step=step, **sizes)
    for positions, modality in ((plan.visible, schema.VISIBLE), (plan.infrared, schema.INFRARED)):
        np.testing.assert_array_equal(index.labels[positions], plan.labels)
        assert (index.modalities[positions] == modality).all()
    assert plan.labels.dtype == np.int32
    blocks = plan.labels.reshape(identities, tracklets)
    assert (blocks == blocks[:, :1]).all()
    assert len(set(blocks[:, 0].tolist())) == identities
    again = sampling.sample_batch(index, seed=seed, step=step, **sizes)
    for one, other in zip(plan, again, strict=True):
        np.testing.assert_array_equal(one, other)


def test_batches_differ_by_step_and_seed_and_reach_every_tracklet():
    index = random_index()
    sizes = {"identities_per_batch": 8, "tracklets_per_identity": 2}
    plans = [sampling.sample_batch(index, seed=0, step=step, **sizes) for step in range(200)]
    plans += [sampling.sample_batch(index, seed=1, step=0, **sizes)]
    assert len({plan.visible.tobytes() for plan in plans}) == len(plans)
    reached = np.concatenate([np.concatenate([plan.visible, plan.infrared]) for plan in plans])
    assert set(reached.tolist()) == set(range(len(index.labels)))


def test_streams_of_random_numbers_are_distinct():
    streams = [
        sampling.row_generator(seed, step, row, modality).bytes(16)
        for seed in range(3)
        for step in range(3)
        for row in range(3)
        for modality in range(2)
    ]
    assert len(set(streams)) == len(streams)


def test_identities_of_one_modality_are_left_out_and_counted():
    index = make_index(labels=[0, 0, 1, 2, 2], modalities=[0, 1, 0, 0, 1])
    assert sampling.trainable_labels(index).tolist() == [0, 2]
    sizes = {"seed": 0, "step": 0, "tracklets_per_identity": 3}
    plan = sampling.sample_batch(index, identities_per_batch=2, **sizes)
    assert set(plan.labels.tolist()) == {0, 2}
    with pytest.raises(
        ValueError, match=r"only 2 have tracklets of both modalities \(1 have not\)"
    ):
        sampling.sample_batch(index, identities_per_batch=3, **sizes)


def test_an_epoch_is_what_the_rarer_modality_fills():
    labels = np.arange(4291 + 5460) % 500
    modalities = np.repeat([schema.INFRARED, schema.VISIBLE], [4291, 5460])
    assert sampling.steps_per_epoch(make_index(labels, modalities), 8, 2) == 268
    one_sided = make_index([0, 1], [schema.VISIBLE, schema.VISIBLE])
    assert sampling.steps_per_epoch(one_sided, 1, 1) == 0


PAIRS = st.lists(  # label, camera and number of frames of each pair
    st.tuples(st.integers(0, 5), st.integers(1, 4), st.integers(1, 30)), min_size=1, max_size=25
)


def paired_index(pairs, rng) -> schema.Index:
    """An index of the pairs, all tracklets in mixed order."""
    order = rng.permutation(2 * len(pairs))
    labels, cameras, num_frames = np.repeat(np.array(pairs, np.int32), 2, axis=0)[order].T
    index = make_index(labels, np.tile([schema.VISIBLE, schema.INFRARED], len(pairs))[order])
    rows = np.repeat(np.arange(1, len(pairs) + 1, dtype=np.int32), 2)[order]
    return dataclasses.replace(index, cameras=cameras, num_frames=num_frames, rows=rows)


@QUICK
@hypothesis.given(PAIRS, st.integers(0, 2**31), st.integers(1, 3), st.integers(1, 4))
def test_a_batch_of_pairs_shows_as_many_cameras_as_there_are(pairs, seed, identities, tracklets):
    index = paired_index(pairs, np.random.default_rng(seed))
    sizes = {"identities_per_batch": identities, "tracklets_per_identity": tracklets}
    if identities > len({label for label, _, _ in pairs}):
        with pytest.raises(ValueError, match=f"a batch of {identities} identities: only"):
            sampling.sample_pairs(index, seed=seed, step=0, **sizes)
        return
    plan = sampling.sample_pairs(index, seed=seed, step=0, **sizes)
    assert plan.labels.dtype == np.int32
    assert (index.modalities[plan.visible] == schema.VISIBLE).all()
    assert (index.modalities[plan.infrared] == schema.INFRARED).all()
    np.testing.assert_array_equal(index.rows[plan.visible], index.rows[plan.infrared])
    np.testing.assert_array_equal(index.labels[plan.visible], plan.labels)
    blocks = plan.labels.reshape(identities, tracklets)
    assert (blocks == blocks[:, :1]).all()
    assert len(set(blocks[:, 0].tolist())) == identities
    for label, cameras in zip(
        blocks[:, 0], index.cameras[plan.visible].reshape(identities, tracklets), strict=True
    ):
        own = {camera for other, camera, _ in pairs if other == label}
        assert len(set(cameras.tolist())) == min(tracklets, len(own))
    again = sampling.sample_pairs(index, seed=seed, step=0, **sizes)
    for one, other in zip(plan, again, strict=True):
        np.testing.assert_array_equal(one, other)


@QUICK
@hypothesis.given(PAIRS, st.integers(0, 2**31))
def test_aligned_pairs_are_the_tracklets_of_a_row(pairs, seed):
    index = paired_index(pairs, np.random.default_rng(seed))
    visible, infrared = sampling.aligned_pairs(index)
    twin = [
        (v, i)
        for row in range(1, len(pairs) + 1)
        for v in range(2 * len(pairs))
        for i in range(2 * len(pairs))
        if index.rows[v] == index.rows[i] == row
        and (index.modalities[v], index.modalities[i]) == (schema.VISIBLE, schema.INFRARED)
    ]
    assert list(zip(visible.tolist(), infrared.tolist(), strict=True)) == twin


def test_batches_of_pairs_differ_and_reach_every_pair():
    rng = np.random.default_rng(0)
    pairs = np.stack(
        [np.arange(60) % 10, rng.integers(1, 7, 60), rng.integers(1, 30, 60)], axis=1
    ).tolist()
    index = paired_index(pairs, rng)
    sizes = {"identities_per_batch": 8, "tracklets_per_identity": 2}
    plans = [sampling.sample_pairs(index, seed=0, step=step, **sizes) for step in range(150)]
    plans += [sampling.sample_pairs(index, seed=1, step=0, **sizes)]
    assert len({plan.visible.tobytes() for plan in plans}) == len(plans)
    assert len({int(p) for plan in plans for p in plan.visible}) == 60
    assert sampling.steps_per_epoch(index, 8, 2) == 60 // 16


@pytest.mark.parametrize("name", ["rows", "labels", "cameras", "num_frames"])
def test_tracklets_that_are_no_pairs_are_refused(name):
    index = paired_index([(0, 1, 9), (1, 2, 8)], np.random.default_rng(0))
    values = getattr(index, name).copy()
    values[0] += 5
    index = dataclasses.replace(index, **{name: values})
    with pytest.raises(ValueError, match=f"the {name} of visible and infrared"):
        sampling.sample_pairs(
            index, seed=0, step=0, identities_per_batch=1, tracklets_per_identity=1
        )


def test_published_epoch_of_pairs():
    pairs = [(number % 1074, 1 + number % 6, 20) for number in range(3574)]
    assert sampling.steps_per_epoch(paired_index(pairs, np.random.default_rng(0)), 8, 2) == 223


def test_an_unknown_sampler_is_named():
    with pytest.raises(ValueError, match="is 'mars': use hitsz_vcm, bupt_campus, or package"):
        sampling.find_sampler("mars")
