"""Where joints are after resizing; the centre of the upper left pixel is (0, 0)."""

import numpy as np
import numpy.typing as npt
from jaxtyping import Float, Float32, Float64

from data_pipelines.coco17 import is_detected


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

    So do the pixels themselves, in OpenCV, Pillow and every resize with half-pixel centres.

    Args:
      points: float[..., J, 2]: x, y in pixels of the old frame.
      old_size: int[..., 2], height and width of the frame.
      new_size: int[..., 2], to which it is resized.

    Returns:
      float64[..., J, 2].
    """
    scale = (np.asarray(new_size) / np.asarray(old_size))[..., None, ::-1]  # of x and y
    return points * scale + (scale - 1) / 2  # so that nothing is rounded where s is 1
