"""Pose models: warp, decoding, loading, and extraction of a dataset's skeletons."""

import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import h5py
import hitsz_files
import hypothesis
import limits
import numpy as np
import onnx
import pose_models
import pytest
import simplejpeg
import video_files
from hypothesis import strategies as st

from data_pipelines import schema
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.footage import extraction, pose
from data_pipelines.io import files, frames
from data_pipelines.records.dataset import open_dataset
from data_pipelines.skeletons import sources

ROOT = Path(__file__).parents[3]
SIZE = (pose_models.HEIGHT, pose_models.WIDTH)


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(
    crop=st.tuples(st.integers(1, 400), st.integers(1, 400)),
    size=st.sampled_from([(256, 192), (384, 288), (64, 64)]),
    udp=st.booleans(),
    at=st.tuples(st.floats(-0.2, 1.2), st.floats(-0.2, 1.2)),
)
def test_to_crop_inverts_the_matrix(crop, size, udp, at):
    matrix = pose.input_matrix(crop, size, udp=udp)
    there = np.array([at[0] * crop[1], at[1] * crop[0], 1])
    back = pose.to_crop(np.array([[*(matrix @ there), 0.7]]), matrix)
    np.testing.assert_allclose(back[0], [there[0], there[1], 0.7], atol=1e-3)
    # The box: the crop fills 1 / 1.25 of the input in one direction, and no more in the other.
    extent = np.array(size[::-1]) - udp
    shares = np.diag(matrix) * crop[::-1] / extent
    assert shares.max() == pytest.approx(0.8)
    # Center of the box to the center of the input; both directions scaled alike without UDP.
    center = matrix @ [crop[1] / 2, crop[0] / 2, 1]
    np.testing.assert_allclose(center, extent / 2, atol=1e-6)
    if not udp:
        assert matrix[0, 0] == pytest.approx(matrix[1, 1])


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("crop", [(288, 144), (60, 90), (31, 17)])
def test_warp_there_and_back_to_a_tenth_of_a_pixel(crop, udp):
    """A blob's center of mass in the warped image, taken back, is where the blob was."""
    y, x = np.mgrid[: crop[0], : crop[1]]
    for share in (0.4, 0.5, 0.62):
        center = np.array([share * crop[1], share * crop[0]])
        sigma = max(crop) / 16
        blob = np.exp(-((x - center[0]) ** 2 + (y - center[1]) ** 2) / (2 * sigma**2))
        image = np.repeat((255 * blob).round().astype(np.uint8)[..., None], 3, axis=2)
        matrix = pose.input_matrix(crop, (256, 192), udp=udp)
        warped = pose.warp(image, matrix, (256, 192))[..., 0].astype(float)
        assert warped.shape == (256, 192)
        rows, columns = np.mgrid[:256, :192]
        found = np.array([(warped * columns).sum(), (warped * rows).sum()]) / warped.sum()
        before = image[..., 0].astype(float)
        was = np.array([(before * x).sum(), (before * y).sum()]) / before.sum()
        back = pose.to_crop(np.array([[*found, 1]]), matrix)[0, :2]
        np.testing.assert_allclose(back, was, atol=0.1)


def slow_heatmaps(heatmaps, size, udp):
    """One joint at a time, as the module's docstring says."""
    joints = np.zeros((*heatmaps.shape[:2], 3), np.float32)
    height, width = heatmaps.shape[2:]
    for b, j in np.ndindex(heatmaps.shape[:2]):
        one = heatmaps[b, j]
        y, x = np.unravel_index(one.argmax(), one.shape)
        dx = np.sign(one[y, x + 1] - one[y, x - 1]) / 4 if 0 < x < width - 1 else 0
        dy = np.sign(one[y + 1, x] - one[y - 1, x]) / 4 if 0 < y < height - 1 else 0
        scale = ((size[1] - udp) / (width - udp), (size[0] - udp) / (height - udp))
        joints[b, j] = (x + dx) * scale[0], (y + dy) * scale[1], max(one[y, x], 0)
    return joints


@pytest.mark.parametrize("udp", [False, True])
def test_heatmaps_against_a_loop(udp):
    rng = np.random.default_rng(0)
    heatmaps = rng.integers(-3, 4, (20, 17, 5, 4)).astype(np.float32)  # ties, borders, negatives
    found = pose.decode_heatmaps(heatmaps, (20, 16), udp=udp)
    np.testing.assert_array_equal(found, slow_heatmaps(heatmaps, (20, 16), udp))
    assert (found[..., 2] >= 0).all()


def heatmap_of(values: dict[tuple[int, int], float]) -> np.ndarray:
    heatmaps = np.zeros((1, 17, 8, 6), np.float32)
    for (x, y), value in values.items():
        heatmaps[0, :, y, x] = value
    return heatmaps


CASES = {
    "alone": ({(3, 4): 0.8}, (3, 4, 0.8)),
    "toward the right and up": ({(3, 4): 0.8, (4, 4): 0.3, (3, 3): 0.2}, (3.25, 3.75, 0.8)),
    "between equals": ({(3, 4): 0.8, (2, 4): 0.3, (4, 4): 0.3}, (3, 4, 0.8)),
    "the left one of two maxima": ({(1, 4): 0.8, (4, 4): 0.8}, (1, 4, 0.8)),
    "in the corner": ({(0, 0): 0.8, (1, 0): 0.3, (0, 1): 0.4}, (0, 0, 0.8)),
    "at the right border": ({(5, 4): 0.8, (4, 4): 0.3, (5, 5): 0.4}, (5, 4.25, 0.8)),
    "above one": ({(3, 4): 7}, (3, 4, 7)),
    "nothing": ({}, (0, 0, 0)),
}


@pytest.mark.parametrize(("values", "expected"), CASES.values(), ids=CASES.keys())
def test_heatmaps_by_hand(values, expected):
    x, y, confidence = expected
    found = pose.decode_heatmaps(heatmap_of(values), (32, 24))  # four pixels to a column
    np.testing.assert_allclose(found[0, 0], [4 * x, 4 * y, confidence])
    found = pose.decode_heatmaps(heatmap_of(values), (32, 24), udp=True)
    np.testing.assert_allclose(found[0, 0], [x * 23 / 5, y * 31 / 7, confidence], rtol=1e-6)


def test_simcc_by_hand():
    x_scores = np.full((2, 17, 48), -1.0, np.float32)
    y_scores = np.full((2, 17, 64), -1.0, np.float32)
    x_scores[0, :, 7], y_scores[0, :, 20] = 0.9, 0.6
    x_scores[0, :, 9] = 0.9  # the first of equal ones counts
    x_scores[1, :, 47], y_scores[1, :, 63] = 0.5, -0.2
    found = pose.decode_simcc(x_scores, y_scores, (32, 24))
    np.testing.assert_allclose(found[0], np.tile([3.5, 10, 0.6], (17, 1)), rtol=1e-6)
    np.testing.assert_allclose(found[1], np.tile([23.5, 31.5, 0], (17, 1)))


def spot(at: tuple[int, int]) -> np.ndarray:
    """An image with one white pixel, uint8[H, W, 3]."""
    image = np.zeros((*SIZE, 3), np.uint8)
    image[at[1], at[0]] = 255
    return image


SPOTS = [(24, 32), (8, 8), (40, 56), (20, 12), (40, 8)]  # on the grid of the heatmap


def test_a_heatmap_model_finds_the_spot(tmp_path):
    path = pose_models.write_heatmap_model(tmp_path / "heatmaps.onnx")
    model = pose.load_model(path, batch_size=4)
    assert (model.input_size, model.batch_size, model.fixed_batch) == (SIZE, 4, False)
    found = model.predict([spot(at) for at in SPOTS[:4]])
    assert found.dtype == np.float32
    assert found.shape == (4, 17, 3)
    for joints, at in zip(found, SPOTS, strict=False):
        np.testing.assert_array_equal(joints[:, :2], np.tile(np.float32(at), (17, 1)))
    # The peak: white against black in units of ImageNet's deviation, and the kernel elsewhere.
    black, white = (0 - pose._MEAN) / pose._STD, (255 - pose._MEAN) / pose._STD
    peak = pose_models.KERNEL.max()
    expected = (peak * white + (1 - peak) * black).mean() + pose_models.OFFSET
    np.testing.assert_allclose(found[0, :, 2], expected * pose_models.GAINS, rtol=1e-5)


@pytest.mark.parametrize("outputs", [("x", "y"), ("y", "x")])
def test_a_simcc_model_finds_the_spot(tmp_path, outputs):
    model = pose.load_model(pose_models.write_simcc_model(tmp_path / "m.onnx", outputs=outputs))
    found = model.predict([spot(at) for at in SPOTS])
    for joints, at in zip(found, SPOTS, strict=True):
        np.testing.assert_array_equal(joints[:, :2], np.tile(np.float32(at), (17, 1)))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_fixed_batch_is_padded(tmp_path, batch):
    path = pose_models.write_heatmap_model(tmp_path / "fixed.onnx", batch=batch)
    fixed = pose.load_model(path, batch_size=32)
    free = pose.load_model(pose_models.write_heatmap_model(tmp_path / "free.onnx"))
    assert fixed.batch_size == batch
    for images in ([spot(SPOTS[0])], [spot(at) for at in SPOTS[:batch]]):
        np.testing.assert_array_equal(fixed.predict(images), free.predict(images))


def test_other_kinds_of_input(tmp_path):
    raw = pose.load_model(
        pose_models.write_heatmap_model(tmp_path / "raw.onnx", dtype=onnx.TensorProto.UINT8)
    )
    peak = 255 * pose_models.KERNEL.max() + pose_models.OFFSET
    found = raw.predict([spot(SPOTS[0])])[0]
    np.testing.assert_allclose(found[16], [*SPOTS[0], peak], rtol=1e-6)
    half = pose.load_model(
        pose_models.write_heatmap_model(tmp_path / "half.onnx", dtype=onnx.TensorProto.FLOAT16)
    )
    np.testing.assert_array_equal(half.predict([spot(SPOTS[1])])[0, 0, :2], SPOTS[1])
    free = pose_models.write_heatmap_model(tmp_path / "free.onnx", size=("height", "width"))
    with pytest.raises(ValueError, match="height and width are dynamic"):
        pose.load_model(free)
    model = pose.load_model(free, input_size=SIZE)
    np.testing.assert_array_equal(model.predict([spot(SPOTS[1])])[0, 0, :2], SPOTS[1])


def test_other_models_are_refused(tmp_path):
    def load(write, *args, **kwargs):
        return pose.load_model(write(tmp_path / "other.onnx", *args), **kwargs)

    identity = pose_models.write_identity_model
    with pytest.raises(ValueError, match=r"same \[2, 3, 8, 6\].*expected heatmaps"):
        load(identity, [2, 3, 8, 6])
    with pytest.raises(ValueError, match=r"image tensor\(float\) \[1, 17, 6\]; expected one image"):
        load(identity, [1, 17, 6])
    with pytest.raises(ValueError, match=r"expected RGB first"):
        load(identity, [1, 8, 6, 3])
    with pytest.raises(ValueError, match=r"not of the size that was given"):
        load(pose_models.write_heatmap_model, input_size=(32, 32))
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ValueError, match=r"text.onnx: onnxruntime cannot load it"):
        pose.load_model(tmp_path / "text.onnx")
    with pytest.raises(FileNotFoundError):
        pose.load_model(tmp_path / "nothing.onnx")


def test_weights_in_other_files_are_not_read(tmp_path, monkeypatch):
    path = pose_models.write_heatmap_model(tmp_path / "split.onnx")
    pose_models.with_weights_elsewhere(path)
    assert (tmp_path / "weights.bin").stat().st_size > 1000
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="weights in other files must be put into this one"):
        pose.load_model("split.onnx")
    onnx.save(onnx.load(path), tmp_path / "whole.onnx")  # as the message says
    assert pose.load_model("whole.onnx").input_size == SIZE


def test_a_missing_onnxruntime_or_device_is_one_line(tmp_path, monkeypatch):
    path = pose_models.write_heatmap_model(tmp_path / "m.onnx")
    import onnxruntime

    if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        with pytest.raises(ImportError, match="install onnxruntime-gpu in place"):
            pose.load_model(path, device="cuda")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[pose\]"'):
        pose.load_model(path)


# Extraction. The frames are gray with one bright square, whose place differs from frame to frame.

FRAME = (80, 40)  # wider boxes than the crop, so that both borders come into play


def place_of(frame: str) -> tuple[int, int]:
    rng = np.random.default_rng(list(frame.encode()))
    return int(rng.integers(6, FRAME[1] - 6)), int(rng.integers(6, FRAME[0] - 6))


def write_frames(root: Path, frames) -> None:
    for frame in frames:
        x, y = place_of(frame)
        image = np.full((*FRAME, 3), 10, np.uint8)
        cv2.circle(image, (x, y), 3, (255, 255, 255), -1)
        (root / frame).parent.mkdir(parents=True, exist_ok=True)
        (root / frame).write_bytes(simplejpeg.encode_jpeg(image, quality=95))


def tracklets(count=3, length=7) -> list[schema.Tracklet]:
    return [
        schema.Tracklet(
            modality=schema.VISIBLE,
            identity=f"{row:04d}",
            camera=1,
            frames=tuple(f"Train/{row:04d}/rgb/D1/{number}.jpg" for number in range(length)),
            row=row,
        )
        for row in range(1, count + 1)
    ]


def all_frames(rows) -> list[str]:
    return [frame for row in rows for frame in row.frames]


@pytest.fixture
def dataset(tmp_path):
    write_frames(tmp_path / "root", all_frames(tracklets()))
    return tmp_path / "root"


@pytest.mark.parametrize("write", [pose_models.write_heatmap_model, pose_models.write_simcc_model])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_extracted_skeletons_are_where_the_spots_are(tmp_path, dataset, write, batch):
    model = pose.load_model(write(tmp_path / "m.onnx", batch=batch), batch_size=4)
    rows = tracklets()
    output = tmp_path / "skeletons.h5"
    # A frame may be in two tracklets.
    assert extraction.extract(model, dataset, [*rows, rows[0]], output, num_workers=2) == 21
    assert sorted(os.listdir(tmp_path)) == ["m.onnx", "root", "skeletons.h5"]
    with sources.open_keypoints(output) as source:
        for row in rows:
            found = source.read(row)
            expected = np.array([place_of(frame) for frame in row.frames])
            assert (found[..., 2] > 0).all()
            # Half a cell of the heatmap is 2 pixels of the input, 4 of the crop.
            np.testing.assert_allclose(found[:, 16, :2], expected, atol=4.2)


def test_a_finished_output_is_kept_for_the_same_model_and_frames_only(tmp_path, dataset):
    rows = tracklets()
    output = tmp_path / "out" / "skeletons.h5"
    model = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m.onnx"))
    extraction.extract(model, dataset, rows, output)
    before = output.stat()
    assert extraction.extract(model, dataset, rows, output) == 21
    after = output.stat()  # reading it may change its time of access
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(ValueError, match=r"\(frames changed\)"):
        extraction.extract(model, dataset, rows[:2], output)
    other = pose.load_model(pose_models.write_simcc_model(tmp_path / "other.onnx"))
    with pytest.raises(ValueError, match=r"\(model changed\)"):
        extraction.extract(other, dataset, rows, output)
    with pytest.raises(ValueError, match=r"end its name in .h5"):
        extraction.extract(model, dataset, rows, tmp_path / "skeletons.npz")


def test_an_output_that_is_not_an_hdf5_file_is_named(tmp_path, dataset):
    model = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m.onnx"))
    output = tmp_path / "skeletons.h5"
    output.write_text("no skeletons")
    with pytest.raises(ValueError, match=rf"{output}: not a readable HDF5 file .* remove it"):
        extraction.extract(model, dataset, tracklets(), output)
    assert output.read_text() == "no skeletons"


def test_skeletons_are_not_to_be_removed_because_too_many_files_are_open(tmp_path):
    """Neither the output of an extraction nor the skeletons of a dataset."""
    path = tmp_path / "skeletons.h5"
    hitsz_files.write_skeletons(path)
    for read in (extraction._read_origin, sources.open_keypoints):
        with limits.no_file_can_be_opened(), pytest.raises(OSError) as error:
            read(path)
        assert error.value.errno == errno.EMFILE and str(path) in str(error.value)


def test_counts_of_a_sensor_have_one_scale_also_after_an_interruption(tmp_path):
    """The frame that remains looks as it would have looked with the others."""
    for number, count in enumerate((1000, 3000, 2000)):
        video_files.write_image(tmp_path / f"{number}.png", np.full((8, 4), count, np.uint16))
    whole = schema.Tracklet(1, "alice", 1, ("0.png", "1.png", "2.png"), 1)
    ((tracklet, remaining),) = extraction._remaining([whole], {"0.png", "1.png"})
    model = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m.onnx"))
    (crop,) = extraction._crops(model, tmp_path, tracklet, remaining)
    assert crop.frame == "2.png"
    middle = crop.image[crop.image.shape[0] // 2, crop.image.shape[1] // 2]
    assert middle.tolist() == [128] * 3


def test_videos_are_decoded_once_and_a_part_at_a_time(tmp_path, monkeypatch):
    lengths = {"a.avi": 150, "b.avi": 64, "c.avi": 1, "d.avi": 70}
    for name, length in lengths.items():
        video_files.write_video(tmp_path / name, length)
    rows = [
        schema.Tracklet(0, "a", 1, tuple(f"{name}#{n}" for n in range(length)), row)
        for row, (name, length) in enumerate(lengths.items(), start=1)
    ]
    decoded = []
    decode = frames.iterate_images

    def spy(source, tracklet, chosen):
        for image in decode(source, tracklet, chosen):
            decoded.append(tracklet.row)
            yield image

    monkeypatch.setattr(frames, "iterate_images", spy)
    estimated = 0
    most_ahead = 0
    model = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m.onnx"), batch_size=10)
    predict = pose.PoseModel.predict

    def count(self, images):
        nonlocal estimated, most_ahead
        most_ahead = max(most_ahead, len(decoded) - estimated)
        estimated += len(images)
        return predict(self, images)

    monkeypatch.setattr(pose.PoseModel, "predict", count)
    output = tmp_path / "skeletons.h5"
    assert extraction.extract(model, tmp_path, rows, output, num_workers=1) == 285
    assert [decoded.count(row) for row in range(1, 5)] == list(lengths.values())
    assert most_ahead <= 3 * 64  # two videos at a time, and what was read before
    with h5py.File(output) as file:
        assert [len(file[name]) for name in "abcd"] == list(lengths.values())


def test_a_broken_frame_is_named_and_extraction_resumes(tmp_path, dataset):
    rows = tracklets()
    output = tmp_path / "skeletons.h5"
    model = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m.onnx"), batch_size=7)
    broken = dataset / rows[2].frames[3]
    intact = broken.read_bytes()
    broken.write_bytes(b"no picture")
    with pytest.raises(ValueError, match=rows[2].frames[3]):
        extraction.extract(model, dataset, rows, output, num_workers=1)
    assert not output.exists()
    broken.write_bytes(intact)
    (dataset / rows[0].frames[0]).unlink()  # is done and not read again
    assert extraction.extract(model, dataset, rows, output) == 21
    with h5py.File(output) as file:
        assert file["Train/0001/rgb/D1/0"].shape == (17, 3)


def test_an_incomplete_line_is_estimated_again(tmp_path, dataset):
    """Wherever a kill cuts the journal, the result is the same."""
    rows = tracklets(count=2, length=3)
    model = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m.onnx"), batch_size=2)
    whole = tmp_path / "whole.h5"
    kept = {}
    real_write = extraction._write_hdf5

    def spy(journal, output, origin):
        kept["journal"] = (tmp_path / "whole.h5.partial").read_bytes()
        real_write(journal, output, origin)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "_write_hdf5", spy)
        extraction.extract(model, dataset, rows, whole)
    with sources.open_keypoints(whole) as source:
        expected = [source.read(row) for row in rows]
    journal = kept["journal"]
    assert journal.count(b"\n") == 4
    newlines = [at for at, byte in enumerate(journal) if byte == 10]
    for cut in [0, 5, len(journal), *itertools.chain(*((n, n + 1, n + 9) for n in newlines[:3]))]:
        output = tmp_path / f"cut{cut}.h5"
        output.with_name(f"{output.name}.partial").write_bytes(journal[:cut])
        extraction.extract(model, dataset, rows, output)
        with sources.open_keypoints(output) as source:
            np.testing.assert_array_equal([source.read(row) for row in rows], expected)


def test_another_model_cannot_resume(tmp_path, dataset):
    rows = tracklets()
    output = tmp_path / "skeletons.h5"
    model = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m.onnx"))
    (dataset / rows[2].frames[3]).write_bytes(b"no picture")
    with pytest.raises(ValueError, match=rows[2].frames[3]):
        extraction.extract(model, dataset, rows, output)
    other = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m8.onnx", stride=8))
    with pytest.raises(ValueError, match=r"skeletons.h5.partial: .*\(model changed"):
        extraction.extract(other, dataset, rows, output)
    with open(tmp_path / "skeletons.h5.partial", "a+b") as journal:
        files.hold(journal, "this test cannot have it")
        with pytest.raises(ValueError, match="another process is writing it"):
            extraction.extract(model, dataset, rows, output)


@pytest.mark.parametrize(
    "frames",
    [("a/b/c/1.jpg", "a/b/c/1.jpeg"), ("a/b.mp4#1", "a/b/1.jpg"), ("a/b/1.jpg", "a/b.jpg")],
)
def test_frames_that_would_share_a_key_are_refused(tmp_path, frames):
    model = pose.load_model(pose_models.write_heatmap_model(tmp_path / "m.onnx"))
    row = schema.Tracklet(schema.VISIBLE, "a", 1, frames, 1)
    with pytest.raises(ValueError, match="rename one of them"):
        extraction.extract(model, tmp_path, [row], tmp_path / "skeletons.h5")


def test_a_model_that_returns_nan_is_refused(tmp_path, dataset):
    model = pose.load_model(pose_models.write_nan_model(tmp_path / "m.onnx"))
    with pytest.raises(ValueError, match=r"D1/0.jpg: the pose model returns non-finite numbers"):
        extraction.extract(model, dataset, tracklets(), tmp_path / "skeletons.h5")


def command(*arguments) -> list[str]:
    return [sys.executable, str(ROOT / "launch/footage/extract_skeletons.py"), *arguments]


@pytest.mark.slow
def test_the_command_survives_a_kill(tmp_path):
    """Killed between two batches, it resumes and repeats nothing."""
    root = hitsz_files.write_dataset(tmp_path / "root", "nested")
    (root / "skeletons.h5").unlink()
    path = pose_models.write_heatmap_model(tmp_path / "m.onnx")
    output = root / "skeletons.h5"
    partial = root / "skeletons.h5.partial"
    slow = (
        "import sys, time, runpy\n"
        "from data_pipelines.footage import pose\n"
        "predict = pose.PoseModel.predict\n"
        "pose.PoseModel.predict = lambda *a: (time.sleep(0.05), predict(*a))[1]\n"
        "del sys.argv[0]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    flags = [f"--model={path}", "--dataset=hitsz_vcm", f"--source={root}", "--batch_size=4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command(*flags)[1:]],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    deadline = time.monotonic() + 300
    while not (partial.exists() and partial.read_bytes().count(b"\n") > 5):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lines = partial.read_bytes().split(b"\n")
    assert not output.exists()
    index = hitsz_vcm.read_index(root, min_frames=1)
    rows = [*index.train, *index.test]
    done = set()
    for line in lines[1:-1]:
        done.update(json.loads(line)[0])
    assert 16 <= len(done) < len(set(all_frames(rows)))
    for frame in list(done)[:5]:  # would be missed if it were read again
        (root / frame).rename(root / f"{frame}.away")
    process = subprocess.Popen(
        [sys.executable, "-c", slow, *command(*flags)[1:]],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    while partial.read_bytes().count(b"\n") < len(lines) + 1:  # two more batches
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, shown = process.communicate()
    assert process.returncode == 130
    last = shown.rstrip().split("\n")[-1]
    assert last == f"error: interrupted; the same command resumes ({partial})"
    run = subprocess.run(command(*flags), env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert f"skeletons of {len(set(all_frames(rows)))} frames: {output}" in run.stdout
    assert not partial.exists()
    for frame in list(done)[:5]:
        (root / f"{frame}.away").rename(root / frame)

    pictures = tmp_path / "pictures"  # of the finished file
    run = subprocess.run(
        command(*flags, f"--overlay={pictures}"), env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert (
        f"pictures of {len(rows)} of {len(rows)} tracklets, 8 frames of each: "
        f"{pictures}/skeletons_1.jpg to skeletons_4.jpg" in run.stdout
    )
    assert len(list(pictures.iterdir())) == 4

    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    index = open_dataset(packed).split("train").index
    assert not index.missing_skeletons.any()
    record = open_dataset(packed).split("train").records[0]
    with sources.open_keypoints(output) as source:
        row = next(row for row in rows if row.row == record["tracklet"])
        np.testing.assert_array_equal(record["keypoints"], source.read(row))


@pytest.mark.slow
def test_the_command_reports_an_error_in_one_line(tmp_path):
    (tmp_path / "text.onnx").write_text("no model")
    missing = tmp_path / "missing.onnx"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    flags = [f"--model={tmp_path / 'text.onnx'}", "--dataset=hitsz_vcm", f"--source={tmp_path}"]
    for extra, message in (
        ([], "onnxruntime cannot load it"),
        (["--input_size=256,192"], "must be HEIGHTxWIDTH"),
        ([f"--model={missing}"], f"--model={missing}: no such file, nor the name of a model"),
    ):
        run = subprocess.run(
            command(*flags, *extra), env=environment, capture_output=True, text=True
        )
        assert run.returncode == 1
        assert message in run.stderr
        assert run.stderr.count("\n") == 1
