"""Packed tracklets to batches."""

import json
import subprocess
import sys

import hitsz_files
import numpy as np
import pytest
import simplejpeg

from data_pipelines import loader, sampling, schema
from data_pipelines.datasets import hitsz_vcm

SIZE = (hitsz_files.HEIGHT, hitsz_files.WIDTH)
TRAINING = {
    "clip_length": 4,
    "frame_size": SIZE,
    "identities_per_batch": 2,
    "tracklets_per_identity": 3,
    "seed": 5,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return hitsz_files.write_dataset(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    return hitsz_vcm.prepare(source, tmp_path_factory.mktemp("packed"), num_workers=2)


def assert_same(one, other):
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key])
    else:
        np.testing.assert_array_equal(one, other)


def read_clip(source, tracklet: schema.Tracklet, chosen):
    """Frames and keypoints of a clip, straight from the source."""
    names = [tracklet.frames[frame] for frame in chosen]
    frames = np.stack([simplejpeg.decode_jpeg((source / name).read_bytes()) for name in names])
    keypoints = np.stack([hitsz_files.skeleton_of(name) for name in names]).astype(np.float32)
    return frames, keypoints


def test_a_training_batch_holds_what_was_sampled(source, packed):
    tracklets = hitsz_vcm.read_index(source).train
    index = loader.open_index(packed, "train")
    for step, batch in enumerate(
        loader.train_batches(packed, start_step=7, num_steps=3, **TRAINING), start=7
    ):
        plan = sampling.sample_batch(
            index, seed=5, step=step, identities_per_batch=2, tracklets_per_identity=3
        )
        assert_same(batch["labels"], plan.labels)
        for modality, positions in enumerate((plan.visible, plan.infrared)):
            assert batch["frames"].dtype == np.uint8
            assert batch["keypoints"].dtype == np.float32
            assert_same(batch["positions"][:, modality], positions.astype(np.int32))
            for row, position in enumerate(positions):
                tracklet = tracklets[position]
                assert tracklet.modality == modality
                rng = sampling.row_generator(5, step, row, modality)
                chosen = sampling.training_frames(len(tracklet.frames), 4, rng)
                frames, keypoints = read_clip(source, tracklet, chosen)
                np.testing.assert_array_equal(batch["frames"][row, :, modality], frames)
                np.testing.assert_array_equal(batch["keypoints"][row, :, modality], keypoints)
                assert batch["cameras"][row, modality] == tracklet.camera


@pytest.mark.parametrize("num_threads", [1, 3])
def test_resuming_yields_the_same_batches(packed, num_threads):
    whole = list(
        loader.train_batches(packed, start_step=0, num_steps=6, num_threads=num_threads, **TRAINING)
    )
    resumed = list(loader.train_batches(packed, start_step=4, num_steps=2, **TRAINING))
    assert len(whole) == 6
    assert_same(whole[4], resumed[0])
    assert_same(whole[5], resumed[1])
    assert len({batch["frames"].tobytes() for batch in whole}) == 6


@pytest.mark.parametrize("rows", [range(0, 2), [5], [0, 3, 4]])
def test_a_process_loads_its_rows_of_the_global_batch(packed, rows):
    steps = {"start_step": 3, "num_steps": 1}
    whole = next(loader.train_batches(packed, **steps, **TRAINING))
    share = next(loader.train_batches(packed, rows=rows, **steps, **TRAINING))
    assert set(share) == set(schema.TrainBatch.__annotations__)
    for key, array in share.items():
        assert_same(array, whole[key][list(rows)])


def test_sizes_that_do_not_fit_are_refused(packed):
    steps = {"start_step": 0, "num_steps": 1}
    with pytest.raises(ValueError, match="only 3 have tracklets of both modalities"):
        loader.train_batches(packed, **steps, **TRAINING | {"identities_per_batch": 4})
    with pytest.raises(FileNotFoundError, match="not a packed dataset"):
        loader.train_batches(packed.parent / "nowhere", **steps, **TRAINING)


@pytest.mark.parametrize("frame_size", [(16, 8), (48, 40), (32, 8)])
def test_frames_and_keypoints_are_resized_together(packed, frame_size):
    settings = {"positions": [0, 1], "clip_length": 3, "batch_size": 2}
    stored = next(loader.test_clips(packed, frame_size=SIZE, **settings))
    resized = next(loader.test_clips(packed, frame_size=frame_size, **settings))
    assert resized["frames"].shape == (2, 3, *frame_size, 3)
    # The frame's corners, half a pixel outside of its outer pixels, stay its corners.
    shares = [
        (clips["keypoints"][..., :2] + 0.5) / (clips["frames"].shape[3], clips["frames"].shape[2])
        for clips in (stored, resized)
    ]
    np.testing.assert_allclose(shares[1], shares[0], atol=1e-6)
    np.testing.assert_array_equal(resized["keypoints"][..., 2], stored["keypoints"][..., 2])
    as_stored = next(loader.test_clips(packed, frame_size=frame_size, joints="pixels", **settings))
    np.testing.assert_array_equal(as_stored["keypoints"], stored["keypoints"])
    np.testing.assert_array_equal(as_stored["frames"], resized["frames"])
    if frame_size == (16, 8):  # area averaging by two is the mean of 2 x 2 pixels
        blocks = stored["frames"].reshape(2, 3, 16, 2, 8, 2, 3).mean(axis=(3, 5))
        assert abs(resized["frames"] - blocks).max() <= 1


def test_first_clips_follow_the_positions(source, packed):
    tracklets = hitsz_vcm.read_index(source).test
    positions = np.array([5, 0, 7, 2, 2])
    batches = list(
        loader.test_clips(packed, positions=positions, clip_length=5, frame_size=SIZE, batch_size=2)
    )
    assert [batch["position"].tolist() for batch in batches] == [[5, 0], [7, 2], [2, -1]]
    for batch in batches:
        assert batch["position"].dtype == np.int32
        for place, position in enumerate(batch["position"]):
            frames, keypoints = np.zeros((5, *SIZE, 3)), np.zeros((5, 17, 3))
            if position >= 0:
                tracklet = tracklets[position]
                chosen = sampling.test_frames(len(tracklet.frames), 5)
                frames, keypoints = read_clip(source, tracklet, chosen)
            np.testing.assert_array_equal(batch["frames"][place], frames)
            np.testing.assert_array_equal(batch["keypoints"][place], keypoints)


def test_dense_clips_cover_every_frame(source, packed):
    tracklets = hitsz_vcm.read_index(source).test
    batches = loader.test_clips(
        packed,
        positions=range(len(tracklets)),
        clip_length=5,
        frame_size=SIZE,
        batch_size=4,
        mode="dense",
    )
    found = [
        (int(position), frames)
        for batch in batches
        for position, frames in zip(batch["position"], batch["frames"], strict=True)
        if position >= 0
    ]
    expected = [
        (position, clip)
        for position, tracklet in enumerate(tracklets)
        for clip in sampling.dense_clips(len(tracklet.frames), 5)
    ]
    assert [position for position, _ in found] == [position for position, _ in expected]
    for (_, frames), (position, clip) in zip(found, expected, strict=True):
        np.testing.assert_array_equal(frames, read_clip(source, tracklets[position], clip)[0])


def test_the_shares_of_the_processes_make_every_batch_to_embed(packed):
    settings = {"positions": range(5), "clip_length": 3, "frame_size": SIZE, "batch_size": 4}
    whole = list(loader.test_clips(packed, **settings))
    for rows in (range(0, 2), range(2, 4), [1, 3]):
        shares = list(loader.test_clips(packed, rows=rows, **settings))
        assert len(shares) == len(whole) == 2
        for share, batch in zip(shares, whole, strict=True):
            for key, values in share.items():
                assert_same(values, batch[key][list(rows)])


def test_wrong_requests_for_clips_are_named(packed):
    settings = {"clip_length": 3, "frame_size": SIZE, "batch_size": 2}
    with pytest.raises(IndexError, match="tracklet 8: the test split holds 8"):
        loader.test_clips(packed, positions=[8], **settings)
    with pytest.raises(ValueError, match="'all': use first, chunk_first, linspace or dense"):
        loader.test_clips(packed, positions=[0], mode="all", **settings)
    assert list(loader.test_clips(packed, positions=[], **settings)) == []


def test_sampling_of_another_dataset_is_refused(packed):
    steps = {"start_step": 0, "num_steps": 1}
    with pytest.raises(ValueError, match="sampling bupt_campus takes aligned pairs"):
        loader.train_batches(packed, sampling="bupt_campus", **steps, **TRAINING)
    with pytest.raises(ValueError, match=r"sampling is 'mars': use hitsz_vcm, bupt_campus, or"):
        loader.train_batches(packed, sampling="mars", **steps, **TRAINING)
    with pytest.raises(ValueError, match=r"sampling is 'mars': use hitsz_vcm, bupt_campus, or"):
        loader.test_clips(
            packed, positions=[0], clip_length=3, frame_size=SIZE, batch_size=2, sampling="mars"
        )


def test_sampling_chooses_the_frames_of_the_one_clip_only(source, packed):
    settings = {"positions": [0], "clip_length": 5, "frame_size": SIZE, "batch_size": 1}
    tracklet = hitsz_vcm.read_index(source).test[0]
    spread = next(loader.test_clips(packed, sampling="bupt_campus", **settings))
    chosen = sampling.spread_test_frames(len(tracklet.frames), 5)
    assert chosen.tolist() != sampling.test_frames(len(tracklet.frames), 5).tolist()
    np.testing.assert_array_equal(spread["frames"][0], read_clip(source, tracklet, chosen)[0])
    dense = [
        list(loader.test_clips(packed, mode="dense", sampling=name, **settings))
        for name in sampling.SAMPLERS
    ]
    assert len(dense[0]) == len(dense[1]) > 1
    for one, other in zip(*dense, strict=True):
        assert_same(one, other)


def test_clips_of_any_source_are_read_a_batch_at_a_time():
    read = []

    def clips():
        for number in range(7):

            def fill(frames, number=number):
                read.append(number)
                frames[:] = number
                return np.full((3, 17, 3), number, np.float32)

            yield loader.Clip(10 + number, fill)

    settings = {"clip_length": 3, "frame_size": (4, 2), "batch_size": 3}
    batches = loader.batch_clips(clips(), **settings)
    assert read == []
    next(batches)
    assert read == [0, 1, 2]
    last = list(batches)[-1]
    assert last["position"].tolist() == [16, -1, -1]
    assert last["frames"].shape == (3, 3, 4, 2, 3) and last["frames"].dtype == np.uint8
    for values in (last["frames"], last["keypoints"]):
        assert (values[0] == 6).all() and not values[1:].any()

    read.clear()  # of each batch, a process reads its rows only
    shares = list(loader.batch_clips(clips(), rows=[0, 2], **settings))
    assert [share["position"].tolist() for share in shares] == [[10, 12], [13, 15], [16, -1]]
    assert read == [0, 2, 3, 5, 6]


def test_only_the_sampled_frames_are_decoded(packed, monkeypatch):
    decoded = []
    decode = simplejpeg.decode_jpeg

    def count(*args, **kwargs):
        decoded.append(1)
        return decode(*args, **kwargs)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", count)
    list(loader.train_batches(packed, start_step=0, num_steps=2, **TRAINING))
    assert len(decoded) == 2 * 2 * 6 * 4  # steps, modalities, rows, frames


@pytest.mark.slow
def test_loading_imports_no_tensorflow_and_starts_no_jax(packed):
    # Grain itself imports JAX where it is installed; no device may be taken by it.
    program = f"""
import json, sys
from data_pipelines import loader
batches = loader.train_batches({str(packed)!r}, start_step=0, num_steps=1, **{TRAINING!r})
assert next(batches)["labels"].shape == (6,)
bridge = sys.modules.get("jax._src.xla_bridge")
print(json.dumps(["tensorflow" in sys.modules, bool(bridge and bridge._backends)]))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == [False, False]
