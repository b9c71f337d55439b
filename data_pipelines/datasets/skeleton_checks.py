"""Finds systematic errors of skeletons: size and axes of the picture, order of joints.

Thresholds are on medians and majorities of a sample, since single skeletons may be anything: people
fall, crops cut them off, and pose models err. Confident joints are those with at least half of the
highest confidence of their skeleton.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32

FEWEST = 5  # skeletons that a statement about people or the order of joints needs
_SHARES = 1.5  # pixels; coordinates that are shares of width and height rarely exceed 1
_MARGIN = 0.05  # of width and height, by which joints may lie outside
_OUTSIDE = 0.25  # of confident joints
_SMALL = 0.6  # of width and height, which joints reach where the picture is the frame

_HEAD, _FEET = slice(0, 5), slice(13, 17)
_BONES = np.array(
    [
        *((0, 5), (0, 6), (5, 6), (5, 7), (7, 9), (6, 8), (8, 10), (5, 11), (6, 12)),
        *((11, 12), (11, 13), (13, 15), (12, 14), (14, 16)),
    ]
)
_FEWEST_BONES = 6
# Mean length of the bones over the diagonal of the joints' box. For people who walk it is 0.16 to
# 0.31, with a median of 0.2; with joints in the orders below the median is 0.35 and more.
_LONG = 0.29
_LIKELY = 0.25  # for another order
# Where other orders have COCO's joints; of the face only the nose, which the bones use.
_ORDERS = {
    "OpenPose's 18 joints": (0, -1, -1, -1, -1, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10),
    "OpenPose's BODY_25": (0, -1, -1, -1, -1, 5, 2, 6, 3, 7, 4, 12, 9, 13, 10, 14, 11),
    "Human3.6M": (9, -1, -1, -1, -1, 11, 14, 12, 15, 13, 16, 4, 1, 5, 2, 6, 3),
}


class Sample(NamedTuple):
    """A frame and its skeleton.

    Attributes:
      frame: its name, for messages.
      size: width and height of the frame, pixels.
      skeleton: float32[17, 3], with at least one joint.
    """

    frame: str
    size: tuple[int, int]
    skeleton: Float32[np.ndarray, "17 3"]


class _Fault(NamedTuple):
    which: Bool[np.ndarray, " n"]
    what: str  # those skeletons do
    advice: str


def find_fault(samples: Sequence[Sample]) -> str | None:
    """Returns the problem of most skeletons, in one line, and what to do; None if there is none.

    Args:
      samples: of one kind, such as the infrared ones of a split.
    """
    if not samples:
        return None
    sizes = np.array([sample.size for sample in samples], np.float64)
    skeletons = np.stack([sample.skeleton for sample in samples]).astype(np.float64)
    confidence = skeletons[..., 2:]
    confident = (confidence > 0) & (confidence >= confidence.max(axis=1, keepdims=True) / 2)
    joints = np.where(confident, skeletons[..., :2], np.nan)
    for find in (_find_shares, _find_order, _find_swapped, _find_outside, _find_small, _find_lying):
        if (fault := find(joints, sizes)) is not None:
            break
    else:
        return None
    first = int(fault.which.argmax())
    width, height = samples[first].size
    (left, top), (right, bottom) = _low(joints)[first], _high(joints)[first]
    return (
        f"{fault.which.sum()} of {len(samples)} skeletons of a sample {fault.what}, such as that "
        f"of {samples[first].frame} ({width} x {height} pixels), where x is {left:g} to {right:g} "
        f"and y {top:g} to {bottom:g}; {fault.advice}"
    )


# Below, joints are float64[n, 17, 2], NaN where they are not confident, and sizes float64[n, 2].


def _find_shares(joints: np.ndarray, sizes: np.ndarray) -> _Fault | None:
    reach = np.maximum(abs(_low(joints)), abs(_high(joints))).max(axis=1)
    shares = (reach <= _SHARES) & (sizes.min(axis=1) > 2 * _SHARES)
    if shares.mean() <= 0.5:
        return None
    return _Fault(
        shares,
        "lie in the upper left corner of their frames, like shares of width and height",
        "use x and y in pixels of the frame",
    )


def _find_order(joints: np.ndarray, sizes: np.ndarray) -> _Fault | None:
    lengths = _bone_lengths(joints)
    known = np.isfinite(lengths)
    if known.sum() < FEWEST or np.median(lengths[known]) <= _LONG:
        return None
    others = {}
    for name, order in _ORDERS.items():
        other = _bone_lengths(np.where(np.array(order)[:, None] < 0, np.nan, joints[:, order]))
        if np.isfinite(other).sum() >= FEWEST:
            others[name] = np.nanmedian(other)
    likely = min(others, key=others.__getitem__, default=None)
    if likely is not None and others[likely] <= _LIKELY:
        what = f"seem to have their joints in the order of {likely}"
    else:
        what = "seem to have their joints in another order than COCO's: bones are far too long"
    advice = "store them in COCO's order: nose, left eye, right eye, left ear, ..."
    return _Fault(np.greater(lengths, _LONG), what, advice)


def _find_swapped(joints: np.ndarray, sizes: np.ndarray) -> _Fault | None:
    x, y = _from_head_to_feet(joints).T
    known = np.isfinite(x)
    sideways = x > abs(y)
    if known.sum() < FEWEST or sideways[known].mean() <= 0.5:
        return None
    if _outside(joints[..., ::-1], sizes).any(axis=1).mean() > 0.5:
        return None  # people in frames that are turned
    return _Fault(sideways, "have x and y swapped", "store x first, then y")


def _find_outside(joints: np.ndarray, sizes: np.ndarray) -> _Fault | None:
    outside, number = _outside(joints, sizes), np.isfinite(joints[..., 0]).sum()
    which = np.logical_or.reduce(outside, axis=1)
    if outside.sum() <= _OUTSIDE * number and which.mean() <= 0.5:
        return None
    return _Fault(
        which,
        f"do not lie in their frames ({outside.sum()} of {number} confident joints are outside)",
        "use x and y in pixels of the frame, not of another size of it or before it was cropped",
    )


def _find_small(joints: np.ndarray, sizes: np.ndarray) -> _Fault | None:
    reach = _high(joints) / sizes
    if len(joints) < FEWEST or (np.quantile(reach, 0.95, axis=0) > _SMALL).any():
        return None
    return _Fault(
        np.ones(len(joints), bool),
        "lie in the upper left of their frames, like those of smaller pictures",
        "use x and y in pixels of the frame",
    )


def _find_lying(joints: np.ndarray, sizes: np.ndarray) -> _Fault | None:
    x, y = _from_head_to_feet(joints).T
    known = np.isfinite(x)
    if known.sum() < FEWEST or (y > abs(x))[known].mean() >= 0.5:
        return None
    upside_down = -y > abs(x)
    if upside_down[known].mean() > 0.5:
        what, which = "are upside down, feet above the head", upside_down
    else:
        what, which = "lie on their side", known & (y <= abs(x))
    return _Fault(which, what, "store frames upright, y from their top, joints in COCO's order")


def _low(joints: np.ndarray) -> Float[np.ndarray, "n 2"]:
    low: np.ndarray = np.nanmin(joints, axis=1)
    return low


def _high(joints: np.ndarray) -> Float[np.ndarray, "n 2"]:
    high: np.ndarray = np.nanmax(joints, axis=1)
    return high


def _outside(joints: np.ndarray, sizes: np.ndarray) -> Bool[np.ndarray, "n 17"]:
    """Returns which joints lie outside their frames by more than a margin."""
    margin = np.maximum(_MARGIN * sizes, 1)
    low, high = -margin[:, None], (sizes + margin)[:, None]
    outside: np.ndarray = np.any((joints < low) | (joints > high), axis=2)
    return outside


def _from_head_to_feet(joints: np.ndarray) -> Float[np.ndarray, "n 2"]:
    """Returns vectors from the joints of the head to ankles and knees, NaN where either lack."""
    vectors: np.ndarray = _mean(joints[:, _FEET]) - _mean(joints[:, _HEAD])
    return vectors


def _bone_lengths(joints: np.ndarray) -> Float[np.ndarray, " n"]:
    """Returns mean lengths relative to the joints' box, NaN where few bones are known."""
    bones = np.linalg.norm(joints[:, _BONES[:, 0]] - joints[:, _BONES[:, 1]], axis=-1)
    known = np.isfinite(bones).sum(axis=1)
    diagonal = np.linalg.norm(_high(joints) - _low(joints), axis=-1)
    usable = (known >= _FEWEST_BONES) & (diagonal > 0)
    lengths: np.ndarray = np.nansum(bones, axis=1) / np.where(usable, known * diagonal, np.nan)
    return lengths


def _mean(points: np.ndarray) -> Float[np.ndarray, "n 2"]:
    known = np.isfinite(points).sum(axis=1)
    means: np.ndarray = np.nansum(points, axis=1) / np.where(known > 0, known, np.nan)
    return means
