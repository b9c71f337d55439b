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
from data_pipelines.records.dataset import open_dataset
from data_pipelines.sampling import BatchSpec, ClipSpec

SIZE = (hitsz_files.HEIGHT, hitsz_files.WIDTH)
CLIPS = ClipSpec(4, SIZE)
BATCH = BatchSpec(seed=5, identities=2, tracklets=3)


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return hitsz_files.write_dataset(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    return hitsz_vcm.prepare(source, tmp_path_factory.mktemp("packed"), num_workers=2)


@pytest.fixture
def train(packed):
    return open_dataset(packed).split("train")


@pytest.fixture
def test(packed):
    return open_dataset(packed).split("test")


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


def test_a_training_batch_holds_what_was_sampled(source, train):
    tracklets = hitsz_vcm.read_index(source).train
    batches = loader.train_batches(train, CLIPS, BATCH, range(7, 10))
    for step, batch in enumerate(batches, start=7):
        plan = sampling.sample_batch(
            train.index, seed=5, step=step, identities_per_batch=2, tracklets_per_identity=3
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
def test_resuming_yields_the_same_batches(train, num_threads):
    whole = list(loader.train_batches(train, CLIPS, BATCH, range(6), num_threads=num_threads))
    resumed = list(loader.train_batches(train, CLIPS, BATCH, range(4, 6)))
    assert len(whole) == 6
    assert_same(whole[4], resumed[0])
    assert_same(whole[5], resumed[1])
    assert len({batch["frames"].tobytes() for batch in whole}) == 6


@pytest.mark.parametrize("rows", [range(0, 2), [5], [0, 3, 4]])
def test_a_process_loads_its_rows_of_the_global_batch(train, rows):
    whole = next(loader.train_batches(train, CLIPS, BATCH, range(3, 4)))
    share = next(loader.train_batches(train, CLIPS, BATCH, range(3, 4), rows=rows))
    assert set(share) == set(schema.TrainBatch.__annotations__)
    for key, array in share.items():
        assert_same(array, whole[key][list(rows)])


def test_sizes_that_do_not_fit_are_refused(train):
    with pytest.raises(ValueError, match="only 3 have tracklets of both modalities"):
        loader.train_batches(train, CLIPS, BATCH._replace(identities=4), range(1))


@pytest.mark.parametrize("frame_size", [(16, 8), (48, 40), (32, 8)])
def test_frames_and_keypoints_are_resized_together(test, frame_size):
    def clips(spec):
        return next(loader.embed_batches(test, spec, [0, 1], batch_size=2))

    stored, resized = clips(ClipSpec(3, SIZE)), clips(ClipSpec(3, frame_size))
    assert resized["frames"].shape == (2, 3, *frame_size, 3)
    # The frame's corners, half a pixel outside of its outer pixels, stay its corners.
    shares = [
        (found["keypoints"][..., :2] + 0.5) / (found["frames"].shape[3], found["frames"].shape[2])
        for found in (stored, resized)
    ]
    np.testing.assert_allclose(shares[1], shares[0], atol=1e-6)
    np.testing.assert_array_equal(resized["keypoints"][..., 2], stored["keypoints"][..., 2])
    as_stored = clips(ClipSpec(3, frame_size, joints="pixels"))
    np.testing.assert_array_equal(as_stored["keypoints"], stored["keypoints"])
    np.testing.assert_array_equal(as_stored["frames"], resized["frames"])
    if frame_size == (16, 8):  # area averaging by two is the mean of 2 x 2 pixels
        blocks = stored["frames"].reshape(2, 3, 16, 2, 8, 2, 3).mean(axis=(3, 5))
        assert abs(resized["frames"] - blocks).max() <= 1


def test_first_clips_follow_the_positions(source, test):
    tracklets = hitsz_vcm.read_index(source).test
    positions = np.array([5, 0, 7, 2, 2])
    batches = list(loader.embed_batches(test, ClipSpec(5, SIZE), positions, batch_size=2))
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


def test_dense_clips_cover_every_frame(source, test):
    tracklets = hitsz_vcm.read_index(source).test
    positions = range(len(tracklets))
    batches = loader.embed_batches(test, ClipSpec(5, SIZE), positions, 4, mode="dense")
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


def test_the_shares_of_the_processes_make_every_batch_to_embed(test):
    spec = ClipSpec(3, SIZE)
    whole = list(loader.embed_batches(test, spec, range(5), 4))
    for rows in (range(0, 2), range(2, 4), [1, 3]):
        shares = list(loader.embed_batches(test, spec, range(5), 4, rows=rows))
        assert len(shares) == len(whole) == 2
        for share, batch in zip(shares, whole, strict=True):
            for key, values in share.items():
                assert_same(values, batch[key][list(rows)])


def test_wrong_requests_for_clips_are_named(test):
    spec = ClipSpec(3, SIZE)
    with pytest.raises(IndexError, match="tracklet 8: the test split holds 8"):
        loader.embed_batches(test, spec, [8], 2)
    with pytest.raises(ValueError, match="'all': use first, chunk_first, linspace or dense"):
        loader.embed_batches(test, spec, [0], 2, mode="all")
    assert list(loader.embed_batches(test, spec, [], 2)) == []


def test_sampling_of_another_dataset_is_refused(train, test):
    aligned, unknown = CLIPS._replace(sampling="bupt_campus"), CLIPS._replace(sampling="mars")
    with pytest.raises(ValueError, match="sampling bupt_campus takes aligned pairs"):
        loader.train_batches(train, aligned, BATCH, range(1))
    with pytest.raises(ValueError, match=r"sampling is 'mars': use hitsz_vcm, bupt_campus, or"):
        loader.train_batches(train, unknown, BATCH, range(1))
    with pytest.raises(ValueError, match=r"sampling is 'mars': use hitsz_vcm, bupt_campus, or"):
        loader.embed_batches(test, unknown, [0], 2)


def test_sampling_chooses_the_frames_of_the_one_clip_only(source, test):
    tracklet = hitsz_vcm.read_index(source).test[0]
    spread = next(loader.embed_batches(test, ClipSpec(5, SIZE, "bupt_campus"), [0], 1))
    chosen = sampling.spread_test_frames(len(tracklet.frames), 5)
    assert chosen.tolist() != sampling.test_frames(len(tracklet.frames), 5).tolist()
    np.testing.assert_array_equal(spread["frames"][0], read_clip(source, tracklet, chosen)[0])
    dense = [
        list(loader.embed_batches(test, ClipSpec(5, SIZE, name), [0], 1, mode="dense"))
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

    spec = ClipSpec(3, (4, 2))
    batches = loader.batch_clips(clips(), spec, 3)
    assert read == []
    next(batches)
    assert read == [0, 1, 2]
    last = list(batches)[-1]
    assert last["position"].tolist() == [16, -1, -1]
    assert last["frames"].shape == (3, 3, 4, 2, 3) and last["frames"].dtype == np.uint8
    for values in (last["frames"], last["keypoints"]):
        assert (values[0] == 6).all() and not values[1:].any()

    read.clear()  # of each batch, a process reads its rows only
    shares = list(loader.batch_clips(clips(), spec, 3, rows=[0, 2]))
    assert [share["position"].tolist() for share in shares] == [[10, 12], [13, 15], [16, -1]]
    assert read == [0, 2, 3, 5, 6]


def test_only_the_sampled_frames_are_decoded(train, monkeypatch):
    decoded = []
    decode = simplejpeg.decode_jpeg

    def count(*args, **kwargs):
        decoded.append(1)
        return decode(*args, **kwargs)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", count)
    list(loader.train_batches(train, CLIPS, BATCH, range(2)))
    assert len(decoded) == 2 * 2 * 6 * 4  # steps, modalities, rows, frames


@pytest.mark.slow
def test_loading_imports_no_tensorflow_and_starts_no_jax(packed):
    # Grain itself imports JAX where it is installed; no device may be taken by it.
    program = f"""
import json, sys
from data_pipelines import loader
from data_pipelines.records.dataset import open_dataset
from data_pipelines.sampling import BatchSpec, ClipSpec
split = open_dataset({str(packed)!r}).split("train")
batches = loader.train_batches(split, {CLIPS!r}, {BATCH!r}, range(1))
assert next(batches)["labels"].shape == (6,)
bridge = sys.modules.get("jax._src.xla_bridge")
print(json.dumps(["tensorflow" in sys.modules, bool(bridge and bridge._backends)]))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    assert json.loads(result.stdout.splitlines()[-1]) == [False, False]
