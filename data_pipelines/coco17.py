"""The COCO-17 skeleton: joints, edges and mirror pairs, and which joints are detected."""

from typing import Any

from jaxtyping import Bool, Float

JOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

# Order and direction follow the authors' network: the edge features are read in this order.
EDGES = (
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (6, 8),
    (7, 9),
    (8, 10),
    (1, 2),
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
)

# MIRROR[j] is the joint that joint j becomes when the picture is flipped left to right.
MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


_LARGEST = 1e6  # coordinate or confidence: nothing real is larger, and float32 can multiply it


def is_possible(keypoints: Float[Any, "*batch J 3"]) -> Bool[Any, "*batch J"]:
    """Returns which joints could be real: all numbers below a million, no confidence below 0.

    Args:
      keypoints: float[..., 17, 3], x, y and confidence; of NumPy or JAX.

    Returns:
      bool[..., 17]; False also for numbers that are not finite.
    """
    return (abs(keypoints) < _LARGEST).all(axis=-1) & (keypoints[..., 2] >= 0)


def is_detected(keypoints: Float[Any, "*batch J 3"]) -> Bool[Any, "*batch J"]:
    """Returns which joints are detected, those whose confidence is above 0.

    Args:
      keypoints: float[..., 17, 3], x, y and confidence; of NumPy or JAX.

    Returns:
      bool[..., 17]; a frame without any has no skeleton.
    """
    return keypoints[..., 2] > 0
