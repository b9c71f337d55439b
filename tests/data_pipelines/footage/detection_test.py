"""Detectors: what the model is given, what its outputs mean, and models that are refused."""

import cv2
import detector_models
import numpy as np
import pytest

from data_pipelines.errors import InputError, MissingPackageError
from data_pipelines.footage import detection, tracking

RED, BLUE = (220, 30, 40), (30, 60, 220)  # RGB; the other way round they are not found
SIZE = (64, 96)


def pictured(size, *boxes):
    """Returns a gray picture with rectangles: color, left, top, right, bottom."""
    image = np.full((*size, 3), 114, np.uint8)
    for color, left, top, right, bottom in boxes:
        image[top:bottom, left:right] = color
    return image


def test_the_picture_lies_in_the_upper_left_corner():
    image = np.zeros((20, 40, 3), np.uint8)
    image[..., 0] = np.arange(40) * 5  # red
    image[..., 2] = 7
    fitted, scale = detection.letterbox(image, (32, 20))
    assert scale == 0.5
    assert fitted.shape == (32, 20, 3)
    np.testing.assert_array_equal(fitted[10:], 114)
    np.testing.assert_array_equal(fitted[:10, :, 0], 7)  # blue comes first
    np.testing.assert_allclose(fitted[4, :, 2], np.arange(20) * 10 + 2.5, atol=1)


@pytest.mark.parametrize("factor", [1, 2, 5])
def test_boxes_are_in_pixels_of_the_picture(tmp_path, factor):
    """The colors are found, so the model gets BGR; of the taller picture the width is padded."""
    path = detector_models.write_color_model(tmp_path / "model.onnx", [RED, BLUE], SIZE)
    image = pictured((64, 48), (RED, 10, 20, 26, 60), (BLUE, 30, 8, 40, 44))
    image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_NEAREST)
    boxes, scores = detection.load_detector(str(path)).detect(image)
    expected = np.array([(10, 20, 16, 40), (30, 8, 10, 36)]) * factor
    np.testing.assert_allclose(boxes, expected, atol=factor)
    np.testing.assert_allclose(scores, detector_models.SCORE)


def test_nobody_in_an_empty_picture(tmp_path):
    path = detector_models.write_color_model(tmp_path / "model.onnx", [RED], SIZE)
    boxes, scores = detection.load_detector(str(path)).detect(pictured((30, 50)))
    assert (boxes.shape, scores.shape) == ((0, 4), (0,))


def constant(tmp_path, *outputs, size=SIZE):
    path = detector_models.write_constant_model(tmp_path / "model.onnx", outputs, size)
    return detection.load_detector(str(path))


DETS = np.array(
    [
        [(10, 20, 30, 60, 0.9), (50, 4, 60, 24, 0.6), (1, 1, 9, 9, 0.05), (70, 8, 70, 20, 0.9)],
    ],
    np.float32,
)


def test_boxes_of_people_are_kept_and_clipped(tmp_path):
    """For a picture of twice the input; a box without width and one of low score are left out."""
    image = pictured((128, 192))
    boxes, scores = constant(tmp_path, DETS).detect(image)
    np.testing.assert_allclose(boxes, [(20, 40, 40, 80), (100, 8, 20, 40)])
    np.testing.assert_allclose(scores, [0.9, 0.6], rtol=1e-6)
    labels = np.array([[2, 0, 0, 0]])
    boxes, _ = constant(tmp_path, DETS, labels).detect(image)
    np.testing.assert_allclose(boxes, [(100, 8, 20, 40)])
    over = DETS.copy()
    over[0, 0, :4] = (-10, -4, 30, 80)
    boxes, _ = constant(tmp_path, over).detect(image)
    np.testing.assert_allclose(boxes[0], (0, 0, 60, 128))


def raw_outputs(classes, *cells):
    """Returns outputs of a 64x96 input, 8 * 12 + 4 * 6 + 2 * 3 cells; `cells` by their number."""
    outputs = np.zeros((1, 126, 5 + classes), np.float32)
    for number, values in cells:
        outputs[0, number, : len(values)] = values
    return outputs


@pytest.mark.parametrize("classes", [1, 3])
def test_grids_by_hand(tmp_path, classes):
    """Each box is that of one cell: of 8 pixels, of 16 pixels, of 32 pixels."""
    outputs = raw_outputs(
        classes,
        # Row 2, column 5 of the first grid: center (5.5, 2.25) * 8, size (2, 4) * 8.
        (2 * 12 + 5, (0.5, 0.25, np.log(2), np.log(4), 0.9, 0.8)),
        # Row 1, column 3 of the second one: center (3, 1.5) * 16, size (1, 2) * 16.
        (96 + 1 * 6 + 3, (0.0, 0.5, np.log(1), np.log(2), 0.5, 0.5)),
        # Row 1, column 2 of the third one: center (2.75, 1) * 32, size (0.5, 1.5) * 32.
        (120 + 1 * 3 + 2, (0.75, 0.0, np.log(0.5), np.log(1.5), 1.0, 1.0)),
        (7, (0.5, 0.5, 1.0, 1.0, 0.9, 0.1)),  # a score of 0.09
    )
    if classes > 1:  # an object of another class
        outputs[0, 40] = (0.5, 0.5, 1, 1, 1.0, 0.0, 1.0, 0.0)
    boxes, scores = constant(tmp_path, outputs).detect(pictured(SIZE))
    expected = {
        0.72: (44 - 8, 18 - 16, 16, 32),
        0.25: (48 - 8, 24 - 16, 16, 32),
        1.0: (88 - 8, 32 - 24, 16, 48),
    }
    order = np.argsort(scores)
    np.testing.assert_allclose(scores[order], sorted(expected), rtol=1e-6)
    np.testing.assert_allclose(boxes[order], [expected[s] for s in sorted(expected)], rtol=1e-6)


def test_of_two_boxes_of_one_person_the_better_one_is_kept(tmp_path):
    size = (np.log(2), np.log(4))
    outputs = raw_outputs(
        1,
        (2 * 12 + 5, (0.5, 0.5, *size, 0.9, 0.8)),
        (2 * 12 + 6, (0.0, 0.5, *size, 0.9, 0.9)),  # 4 pixels to the right: IoU 0.6
        (2 * 12 + 8, (0.5, 0.5, *size, 0.9, 0.7)),  # 20 pixels from that
    )
    boxes, scores = constant(tmp_path, outputs).detect(pictured(SIZE))
    np.testing.assert_allclose(scores, [0.81, 0.63], rtol=1e-6)
    np.testing.assert_allclose(boxes[:, 0], [40, 60], rtol=1e-6)


@pytest.mark.parametrize("background", [(48, 32, 8, 8), (40, 20, 60, 30)])
def test_boxes_in_pixels_are_recognized(tmp_path, background):
    """As of an export with --decode_in_inference: center, width, height, whatever the cell."""
    people = ((44, 18, 16, 32, 0.9, 0.8), (20, 24, 20, 40, 0.5, 0.5), (88, 32, 16, 48, 1.0, 1.0))
    outputs = raw_outputs(1, *zip((29, 105, 125), people, strict=True))
    outputs[0, outputs[0, :, 2] == 0, :4] = background
    boxes, scores = constant(tmp_path, outputs).detect(pictured((128, 192)))
    order = np.argsort(scores)
    np.testing.assert_allclose(scores[order], [0.25, 0.72, 1.0], rtol=1e-6)
    expected = np.array([(10, 4, 20, 40), (36, 2, 16, 32), (80, 8, 16, 48)]) * 2
    np.testing.assert_allclose(boxes[order], expected, rtol=1e-6)


@pytest.mark.parametrize("values", [(0.5, 0.5, 30, 60), (50, 30, 1, 1)])
def test_boxes_that_no_cell_can_have_are_refused(tmp_path, values):
    outputs = raw_outputs(1, (2 * 12 + 5, (*values, 0.9, 0.9)))
    with pytest.raises(InputError, match=r"model\.onnx: .*decode_in_inference"):
        constant(tmp_path, outputs)


def test_of_very_many_boxes_the_best_are_kept(tmp_path):
    """The tracker compares each two of them, which takes 149 GiB for 100,000."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 30, (100_000, 2))
    scores = rng.permutation(np.linspace(0.2, 0.9, 100_000))
    dets = np.column_stack([corners, corners + 20, scores])[None].astype(np.float32)
    found = constant(tmp_path, dets).detect(pictured(SIZE))
    assert 100 <= len(found.scores) <= 1000
    best = np.sort(dets[0, :, 4])[-len(found.scores) :]
    np.testing.assert_array_equal(np.sort(found.scores), best)
    assert len(tracking.Tracker(0.5).update(found)) <= len(found.scores)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ([np.zeros((1, 7, 4))], r"returns \[1, 7, 4\] for an input of 64x96; expected boxes"),
        ([np.zeros((1, 125, 6))], r"returns \[1, 125, 6\]"),
        ([np.zeros((2, 7, 5))], r"returns \[2, 7, 5\]"),
        ([np.zeros((1, 7, 5)), np.zeros((1, 6), int)], r"returns \[1, 7, 5\], \[1, 6\]"),
        ([np.zeros(7)], r"returns \[7\]"),
        ([np.full((1, 7, 5), np.nan)], "returns non-finite numbers"),
    ],
)
def test_other_outputs_are_refused(tmp_path, outputs, message):
    outputs = [o.astype(np.float32) if o.dtype == float else o for o in outputs]
    with pytest.raises(InputError, match=f"model.onnx: the detector {message}"):
        constant(tmp_path, *outputs)


def test_unknown_detectors_are_named(tmp_path):
    with pytest.raises(InputError, match=r"--detector=hog: no such file.*yolox-tiny, yolox-m"):
        detection.load_detector("hog")
    (tmp_path / "text.onnx").write_text("text")
    with pytest.raises(InputError, match=r"text.onnx: onnxruntime cannot load it"):
        detection.load_detector(str(tmp_path / "text.onnx"))
    with pytest.raises(InputError, match="not a regular file"):
        detection.load_detector(str(tmp_path))


def test_a_device_that_is_missing_is_named(tmp_path, monkeypatch):
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])
    path = detector_models.write_color_model(tmp_path / "model.onnx", [RED], SIZE)
    with pytest.raises(MissingPackageError, match="onnxruntime-gpu"):
        detection.load_detector(str(path), device="cuda")
