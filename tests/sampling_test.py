"""Which frames and tracklets make a batch."""

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
def test_dense_clips_show_every_frame_in_order(num_frames, clip_length):
    clips = sampling.dense_clips(num_frames, clip_length)
    assert clips.shape == (-(-num_frames // clip_length), clip_length)
    assert clips.ravel()[:num_frames].tolist() == list(range(num_frames))
    last = clips[-1].tolist()
    real = num_frames - (len(clips) - 1) * clip_length
    assert all(last[i] == last[i - real] for i in range(real, clip_length))


def test_dense_clips_example():
    assert sampling.dense_clips(7, 5).tolist() == [[0, 1, 2, 3, 4], [5, 6, 5, 6, 5]]


@pytest.mark.parametrize("sizes", [(0, 4), (4, 0)])
def test_empty_clips_are_refused(sizes):
    for function in (sampling.test_frames, sampling.dense_clips):
        with pytest.raises(ValueError, match="must be 1 or more"):
            function(*sizes)


def make_index(labels, modalities) -> schema.Index:
    count = len(labels)
    ones = np.ones(count, np.int32)
    return schema.Index(
        identities=np.array([f"{label:04d}" for label in labels]),
        labels=np.array(labels, np.int32),
        cameras=ones,
        modalities=np.array(modalities, np.int32),
        num_frames=ones * 24,
        rows=np.arange(1, count + 1, dtype=np.int32),
        missing_skeletons=ones * 0,
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
