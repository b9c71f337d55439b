"""Landmark models in TFLite: decoding by hand, loading, and extraction with tiny models."""

import sys
from pathlib import Path

import cv2
import landmark_models
import numpy as np
import pytest

from data_pipelines import schema
from data_pipelines.coco17 import JOINTS
from data_pipelines.footage import extraction, landmarks
from data_pipelines.skeletons import sources

SIZE = landmark_models.SIZE
# The 33 landmarks of https://ai.google.dev/edge/mediapipe/solutions/vision/pose_landmarker
BLAZEPOSE = (
    *("nose", "left_eye_inner", "left_eye", "left_eye_outer", "right_eye_inner", "right_eye"),
    *("right_eye_outer", "left_ear", "right_ear", "mouth_left", "mouth_right"),
    *("left_shoulder", "right_shoulder", "left_elbow", "right_elbow", "left_wrist", "right_wrist"),
    *("left_pinky", "right_pinky", "left_index", "right_index", "left_thumb", "right_thumb"),
    *("left_hip", "right_hip", "left_knee", "right_knee", "left_ankle", "right_ankle"),
)


def test_the_landmarks_are_the_joints_of_coco():
    assert [BLAZEPOSE[landmark] for landmark in landmarks.BLAZEPOSE_JOINTS] == list(JOINTS)


def test_blazepose_by_hand():
    numbers = np.arange(195, dtype=np.float32).reshape(39, 5)
    numbers[:, 3] = 0
    numbers[28, 3] = np.log(9)  # the right ankle
    found = landmarks.decode_blazepose(numbers, 0.5)
    np.testing.assert_array_equal(found[0], [0, 1, 0.5])
    np.testing.assert_array_equal(found[5], [55, 56, 0.5])  # landmark 11
    np.testing.assert_allclose(found[16], [140, 141, 0.9], rtol=1e-6)
    assert found.dtype == np.float32
    assert not landmarks.decode_blazepose(numbers, 0.49).any()


def test_movenet_by_hand():
    keypoints = np.tile(np.float32([0.25, 0.5, 0.75]), (17, 1))
    keypoints[3] = 1, 0, -0.1
    found = landmarks.decode_movenet(keypoints, (192, 192))
    np.testing.assert_allclose(found[0], [96, 48, 0.75])
    np.testing.assert_allclose(found[3], [0, 192, 0])


def spot(x: int, y: int, brightness: int = 255) -> np.ndarray:
    image = np.zeros((SIZE, SIZE, 3), np.uint8)
    image[y, x] = brightness
    return image


def test_a_blazepose_model_gets_pixels_from_zero_to_one(tmp_path):
    model = landmarks.load_model(landmark_models.write_blazepose(tmp_path / "m.tflite"))
    assert model.input_size == (SIZE, SIZE)
    assert model.border == cv2.BORDER_REPLICATE
    found = model.predict([spot(3, 12), spot(5, 6, 100)])
    for joint, landmark in ((0, 0), (5, 11), (16, 28)):
        visibility = 1 / (1 + np.exp(-landmark / 10))
        np.testing.assert_allclose(found[0, joint], [3 + landmark / 64, 12, visibility], rtol=1e-5)
    assert not found[1].any()  # 100 / 255 is below one half


def test_a_movenet_model_gets_pixels_up_to_255(tmp_path):
    model = landmarks.load_model(landmark_models.write_movenet(tmp_path / "m.tflite"))
    assert model.border == cv2.BORDER_CONSTANT
    found = model.predict([spot(3, 12)])[0]
    np.testing.assert_allclose(found[:, 0], 3, rtol=1e-5)
    np.testing.assert_allclose(found[:, 1], 12, rtol=1e-5)
    np.testing.assert_allclose(found[:, 2], np.maximum(np.arange(17) / 10 - 0.1, 0), atol=1e-6)


def test_other_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "m.tflite"
    path.write_text("no model")
    with pytest.raises(ValueError, match=rf"{path}: LiteRT cannot load it"):
        landmarks.load_model(path)
    landmark_models.write_movenet(path, outputs=2)
    with pytest.raises(ValueError, match=r"float32 \[1, 16, 16, 3\] and float32 \[1, 1, 17, 3\], "):
        landmarks.load_model(path)
    with pytest.raises(FileNotFoundError):
        landmarks.load_model(tmp_path / "nothing.tflite")


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    with pytest.raises(ImportError, match=r'pip install -e "\.\[pose-tflite\]"'):
        landmarks.load_model(tmp_path / "m.tflite")


def extract(model, folder: Path, image: np.ndarray) -> np.ndarray:
    """Returns the skeleton that is extracted from a crop."""
    frame = "a/visible/1/w/1.png"
    (folder / frame).parent.mkdir(parents=True)
    cv2.imwrite(str(folder / frame), image)
    row = schema.Tracklet(schema.VISIBLE, "a", 1, (frame,), 1)
    assert extraction.extract(model, folder, [row], folder / "skeletons.h5") == 1
    with sources.open_keypoints(folder / "skeletons.h5") as source:
        return source.read(row)[0]


MODELS = [landmark_models.write_blazepose, landmark_models.write_movenet]


@pytest.mark.parametrize("write", MODELS)
def test_extracted_joints_are_where_the_pixel_is(tmp_path, write):
    """A crop of 64 x 20 is seen in a square of 80 x 80, of which the model gets 16 x 16 pixels.

    Pixel 9, 7 of them is 45, 35 in the square, which begins 30 left of the crop and 8 above it.
    """
    image = np.zeros((64, 20, 3), np.uint8)
    image[25:30, 13:18] = 255  # around 15, 27; the samples are five pixels apart
    skeleton = extract(landmarks.load_model(write(tmp_path / "m.tflite")), tmp_path, image)
    np.testing.assert_allclose(skeleton[0, :2], [15, 27], atol=1e-4)


@pytest.mark.parametrize(("write", "beside"), [(MODELS[0], 200), (MODELS[1], 0)])
def test_beside_the_crop_is_its_border_or_black(tmp_path, monkeypatch, write, beside):
    model = landmarks.load_model(write(tmp_path / "m.tflite"))
    seen = []
    monkeypatch.setattr(
        landmarks.LandmarkModel,
        "predict",
        lambda self, images: [seen.extend(images), np.zeros((1, 17, 3), np.float32)][1],
    )
    extract(model, tmp_path, np.full((64, 20, 3), 200, np.uint8))
    assert (seen[0][8, 8] == 200).all()
    assert (seen[0][:, 0] == beside).all()
