"""Draws skeletons onto pictures."""

import cv2
import numpy as np
from jaxtyping import Float32, UInt8

from data_pipelines.coco17 import EDGES, is_detected
from data_pipelines.pixels import resize_frame, resize_keypoints

LOW_CONFIDENCE = 0.3
_BONE, _JOINT, _UNSURE_JOINT = (220, 220, 0), (0, 255, 0), (255, 0, 0)  # RGB
_SHIFT = 4  # binary digits of OpenCV's coordinates after the point


def draw_skeleton(
    picture: UInt8[np.ndarray, "H W 3"], skeleton: Float32[np.ndarray, "17 3"], radius: float = 1.25
) -> None:
    """Draws the detected joints and the edges between them onto an RGB picture, in place.

    Joints are green, those of a confidence below LOW_CONFIDENCE red, edges yellow.

    Args:
      picture: uint8[H, W, 3], C-contiguous.
      skeleton: float32[17, 3]: x, y in pixels, confidence.
      radius: of the joints, pixels.
    """
    points = [tuple(np.round(xy * 2**_SHIFT).astype(int).tolist()) for xy in skeleton[:, :2]]
    detected = is_detected(skeleton)
    thickness = max(1, round(0.8 * radius))
    for start, end in EDGES:
        if detected[start] and detected[end]:
            ends = points[start], points[end]
            cv2.line(picture, *ends, _BONE, thickness, cv2.LINE_AA, shift=_SHIFT)
    size = round(radius * 2**_SHIFT)
    for point, confidence in zip(points, skeleton[:, 2], strict=True):
        if confidence > 0:
            color = _UNSURE_JOINT if confidence < LOW_CONFIDENCE else _JOINT
            cv2.circle(picture, point, size, color, cv2.FILLED, cv2.LINE_AA, shift=_SHIFT)


def resized_with_skeleton(
    frame: UInt8[np.ndarray, "H W 3"],
    skeleton: Float32[np.ndarray, "17 3"],
    size: tuple[int, int],
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a frame, uint8[h, w, 3], resized to `size` with its skeleton drawn on.

    Args:
      frame: uint8[H, W, 3], RGB.
      skeleton: float32[17, 3]: x, y in pixels of the frame, confidence.
      size: h and w.
    """
    picture = np.empty((*size, 3), np.uint8)
    resize_frame(frame, picture)
    moved = resize_keypoints(skeleton, frame.shape[:2], size)
    draw_skeleton(picture, moved, radius=size[0] / 100)
    return picture
