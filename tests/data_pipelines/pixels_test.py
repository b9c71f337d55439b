"""Joints stay on their pixels: a painted blob is found again where its keypoint is."""

import dataclasses

import cv2
import numpy as np
import pytest
import simplejpeg

from data_pipelines import pixels, schema
from data_pipelines.footage import pose
from data_pipelines.records import reading
from data_pipelines.synthetic import drawing, generate, people
from data_pipelines.synthetic.plan import SIZES, PlannedTracklet

RESIZED = [  # height and width, before and after
    ((64, 32), (288, 144)),
    ((288, 144), (64, 48)),
    ((100, 37), (64, 48)),
    ((37, 101), (288, 144)),
    ((200, 30), (97, 53)),  # fewer rows, more columns
    ((96, 48), (96, 48)),
]


def blob(size, at, sigma) -> np.ndarray:
    """A bright spot centered at (x, y) on black, float64[H, W], 0 to 255."""
    y, x = np.mgrid[: size[0], : size[1]]
    return 255 * np.exp(-((x - at[0]) ** 2 + (y - at[1]) ** 2) / (2 * sigma**2))


def centroid(image) -> np.ndarray:
    """The spot's center of mass in float[H, W]: x, y; what is faint does not count."""
    weights = np.maximum(image.astype(float) - 0.15 * image.max(), 0)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(weights * x).sum(), (weights * y).sum()]) / weights.sum()


def record_of(size, joints) -> schema.Record:
    """A tracklet with a frame for each joint, which shows a blob there."""
    keypoints = np.zeros((len(joints), 17, 3), np.float32)
    keypoints[:, 5] = [(*joint, 0.8) for joint in joints]
    images = [blob(size, joint, min(size) / 10).round().astype(np.uint8) for joint in joints]
    return {
        "frames": [simplejpeg.encode_jpeg(np.dstack([i] * 3), 95, "RGB", "444") for i in images],
        "keypoints": keypoints,
        "height": np.full(len(joints), size[0], np.int32),
        "width": np.full(len(joints), size[1], np.int32),
        "tracklet": 1,
        "frame_ids": [f"{number}.jpg" for number in range(len(joints))],
    }


@pytest.mark.parametrize(("stored", "size"), RESIZED)
def test_a_resized_frame_shows_the_joint_where_its_keypoint_is(stored, size):
    shares = [(0.5, 0.5), (0.43, 0.61), (0.6, 0.42)]
    record = record_of(stored, [(x * stored[1], y * stored[0]) for x, y in shares])
    frames = np.empty((3, *size, 3), np.uint8)
    keypoints = reading.decode_clip(record, np.array([0, 1, 2]), frames)
    assert keypoints.dtype == np.float32
    for frame, joints in zip(frames, keypoints, strict=True):
        np.testing.assert_allclose(joints[5, :2], centroid(frame[..., 1]), atol=0.1)
    np.testing.assert_array_equal(keypoints[..., 2], record["keypoints"][..., 2])
    assert not np.delete(keypoints, 5, axis=1).any()  # what was not detected
    as_stored = reading.decode_clip(record, np.array([0, 1, 2]), frames, joints="pixels")
    np.testing.assert_array_equal(as_stored, record["keypoints"])
    with pytest.raises(ValueError, match="joints"):
        reading.decode_clip(record, np.array([0]), frames[:1], joints="pixel")


def test_frames_of_several_sizes_in_one_clip():
    parts = [record_of(size, [(0.4 * size[1], 0.55 * size[0])]) for size, _ in RESIZED]
    record = {
        name: [x for part in parts for x in part[name]]
        if name in ("frames", "frame_ids")
        else np.concatenate([part[name] for part in parts])
        for name in parts[0]
        if name != "tracklet"
    } | {"tracklet": 1}
    frames = np.empty((len(parts), 128, 64, 3), np.uint8)
    keypoints = reading.decode_clip(record, np.arange(len(parts)), frames)
    for frame, joints in zip(frames, keypoints, strict=True):
        np.testing.assert_allclose(joints[5, :2], centroid(frame[..., 1]), atol=0.1)


def test_corners_middles_and_undetected_joints_by_hand():
    # Two by two pixels become four by four: each is the middle of four new ones.
    keypoints = np.array([[0, 0, 1], [1, 0, 0.5], [0.5, 0.5, 2], [7, 7, 0], [0, 0, 0]], np.float32)
    found = pixels.resize_keypoints(keypoints, (2, 2), (4, 4))
    expected = [[0.5, 0.5, 1], [2.5, 0.5, 0.5], [1.5, 1.5, 2], [7, 7, 0], [0, 0, 0]]
    np.testing.assert_array_equal(found, np.array(expected, np.float32))
    odd = np.array([[1 / 3, 1e-7, 1]], np.float32)
    np.testing.assert_array_equal(pixels.resize_keypoints(odd, (288, 144), (288, 144)), odd)


HARDLY = 1e-6  # so little difficulty that nothing is blurred, noisy or cluttered by it


@pytest.mark.parametrize("share", ["", "low_resolution_share", "motion_blur_share"])
@pytest.mark.parametrize("modality", [schema.VISIBLE, schema.INFRARED])
def test_drawn_joints_are_on_drawn_pixels(monkeypatch, share, modality):
    elbow = people.JOINT["left_elbow"]

    def draw_elbow(canvas, xy, nearness, scale, outfit):
        spot = blob(canvas.shape[:2], xy[elbow], 9)
        canvas[:] = np.maximum(canvas, spot.round().astype(np.uint8)[..., None])

    monkeypatch.setattr(drawing, "draw_figure", draw_elbow)
    monkeypatch.setattr(drawing, "draw_shadow", lambda *arguments: None)
    shares = dict.fromkeys(("occluded_share", "low_light_share", "low_resolution_share"), 0.0)
    shares |= {"motion_blur_share": 0.0} | ({share: 1 / HARDLY} if share else {})
    config = dataclasses.replace(
        SIZES["tiny"],
        height=144,
        width=72,
        difficulty=HARDLY,
        keypoint_error=0.0,
        swapped_share=0.0,
        **shares,
    )
    for row in range(1, 7):  # motion blurs are of several lengths
        tracklet = PlannedTracklet("train", row, 1, modality, 1, 1, 1, 4)
        drawn = generate.draw_tracklet(config, 0, tracklet)
        for frame, joints, keypoints in zip(
            drawn.frames, drawn.joints, drawn.keypoints, strict=True
        ):
            spot = np.maximum(frame[..., 1].astype(float) - np.median(frame), 0)
            np.testing.assert_allclose(joints[elbow], centroid(spot), atol=0.15)
            np.testing.assert_allclose(keypoints[elbow, :2], joints[elbow], atol=1e-4)


@pytest.mark.parametrize("at", [(60, 100), (60.5, 100.25), (61.3, 101.7)])
def test_shapes_are_painted_around_their_centers(at):
    canvas = np.zeros((288, 144, 3), np.uint8)
    drawing.paint(
        canvas, *drawing.ellipse(np.array(at, float), 12, 12), np.full((8, 8, 3), 250, np.uint8)
    )
    np.testing.assert_allclose(centroid(canvas[..., 0]), at, atol=0.15)
    shrunk = cv2.resize(canvas, (72, 144), interpolation=cv2.INTER_AREA)
    (joint,) = pixels.resize_points(np.array([at], float), (288, 144), (144, 72))
    np.testing.assert_allclose(centroid(shrunk[..., 0]), joint, atol=0.1)


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("crop", [(288, 144), (60, 90), (71, 33)])
def test_a_joint_found_in_the_pose_models_input_is_on_its_pixel_of_the_crop(crop, udp):
    for x, y in ((0.5, 0.5), (0.42, 0.6), (0.58, 0.4)):
        joint = np.array([x * crop[1], y * crop[0]])
        image = np.dstack([blob(crop, joint, min(crop) / 10).round().astype(np.uint8)] * 3)
        matrix = pose.input_matrix(crop, (256, 192), udp=udp)
        found = centroid(pose.warp(image, matrix, (256, 192))[..., 0])
        back = pose.to_crop(np.array([[*found, 1.0]]), matrix)[0, :2]
        np.testing.assert_allclose(back, joint, atol=0.1)
