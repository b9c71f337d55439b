"""Sizes of frames, resizing, and where joints are then: (0, 0) is the upper left pixel's center."""

import cv2
import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Float32, Float64, UInt8

from data_pipelines.coco17 import is_detected
from data_pipelines.errors import InputError

MAX_PIXELS = 1 << 26  # of a frame, since a few bytes can claim a size that fills the memory


def require_size(height: int, width: int, name: str) -> None:
    """Raises an InputError that names the file if a frame of this size has too many pixels."""
    if height * width > MAX_PIXELS:
        raise InputError(
            f"{name}: {width} x {height} pixels are more than a frame can have ({MAX_PIXELS}); "
            "a frame is expected to be a crop of one person"
        )


def resize_frame(pixels: UInt8[np.ndarray, "h w 3"], frame: UInt8[np.ndarray, "H W 3"]) -> None:
    """Resizes a frame, by area averaging to shrink it and else bilinearly; copies one that fits.

    Args:
      pixels: uint8[h, w, 3].
      frame: uint8[H, W, 3], C-contiguous, is overwritten.
    """
    old, new = pixels.shape[:2], frame.shape[:2]
    if old == new:
        frame[:] = pixels
        return
    shrinks = new[0] <= old[0] and new[1] <= old[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    cv2.resize(np.ascontiguousarray(pixels), new[::-1], frame, interpolation=method)


def resize_keypoints(
    keypoints: Float32[np.ndarray, "*batch J 3"], old_size: npt.ArrayLike, new_size: npt.ArrayLike
) -> Float32[np.ndarray, "*batch J 3"]:
    """Returns the joints of a resized frame: they follow their pixels (see `resize_points`).

    Joints that were not detected stay as they are.

    Args:
      keypoints: float32[..., J, 3]: x, y in pixels of the old frame, confidence.
      old_size: int[..., 2], height and width of the frame.
      new_size: int[..., 2], to which it is resized.

    Returns:
      float32[..., J, 3], in pixels of the new frame.
    """
    moved = keypoints.copy()
    detected = is_detected(keypoints)
    moved[detected, :2] = resize_points(keypoints[..., :2], old_size, new_size)[detected]
    return moved


def resize_points(
    points: Float[np.ndarray, "*batch J 2"], old_size: npt.ArrayLike, new_size: npt.ArrayLike
) -> Float64[np.ndarray, "*batch J 2"]:
    """Returns where points are after resizing: a factor s takes x to `(x + 0.5) * s - 0.5`.

    So do the pixels themselves, in OpenCV, Pillow and every resize with half-pixel centers.

    Args:
      points: float[..., J, 2]: x, y in pixels of the old frame.
      old_size: int[..., 2], height and width of the frame.
      new_size: int[..., 2], to which it is resized.

    Returns:
      float64[..., J, 2].
    """
    scale = (np.asarray(new_size) / np.asarray(old_size))[..., None, ::-1]  # of x and y
    moved: np.ndarray = points * scale + (scale - 1) / 2  # nothing is rounded where s is 1
    return moved
