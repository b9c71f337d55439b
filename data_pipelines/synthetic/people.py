"""The people of the synthetic dataset: bodies, gaits, clothes, and where their joints are seen.

Body coordinates: x forward, y up, z to the person's left; one unit is the height of an average
person. A person with a yaw of 0 faces the camera, with 90 degrees walks to the right.
"""

import colorsys
import dataclasses
from typing import Literal, TypeVar

import numpy as np
from jaxtyping import Bool, Float32, Float64

from data_pipelines.coco17 import JOINTS, MIRROR
from data_pipelines.schema import INFRARED, NUM_JOINTS

# Points of the figure after the 17 joints.
HEAD, NECK, PELVIS, LEFT_TOE, RIGHT_TOE, LEFT_HAND, RIGHT_HAND = range(NUM_JOINTS, NUM_JOINTS + 7)
NUM_POINTS = NUM_JOINTS + 7
SIDES = ("left", "right")
JOINT = {name: number for number, name in enumerate(JOINTS)}

SLEEVES = (0.08, 0.42, 0.75, 1.0)  # share of the arm that is covered
HEMS = (0.0, 0.12, 0.38, 0.62)  # share of the leg that the top reaches over: cropped shirt to coat
BOTTOMS = (  # skirt?, share of the leg that is covered, width
    (False, 0.34, 1.15),
    (False, 0.66, 1.05),
    (False, 1.0, 0.95),
    (False, 1.0, 1.55),
    (True, 0.4, 1.2),
    (True, 0.8, 1.4),
)
TOP_PATTERNS = ("plain", "hoops", "stripes", "checks", "dots", "diagonal", "yoke", "band")
BOTTOM_PATTERNS = ("plain", "hoops", "stripes", "checks", "seam")
HAIR = ("bald", "short", "long", "bun", "afro")
HATS = ("none", "none", "cap", "beanie", "brim")
BAGS = ("none", "backpack", "crossbody", "handbag", "tote")


@dataclasses.dataclass(frozen=True)
class Material:
    """What a surface reflects, from 0 to 1: RGB in visible light and one number in infrared."""

    visible: tuple[float, float, float]
    infrared: float

    def paint(self, modality: int) -> Float64[np.ndarray, "3"]:
        """Returns the three channels, float64[3], that a camera of this modality sees."""
        return np.array((self.infrared,) * 3 if modality == INFRARED else self.visible)


@dataclasses.dataclass(frozen=True)
class Garment:
    """Cloth with a pattern of two materials; `scale` is the pattern's period in body heights."""

    base: Material
    accent: Material
    pattern: str
    scale: float
    phase: float


@dataclasses.dataclass(frozen=True)
class Body:
    """Lengths in body heights: bones, half widths of shoulders and hips, the head's radius."""

    head: float = 0.068
    neck: float = 0.055
    torso: float = 0.275
    shoulders: float = 0.105
    hips: float = 0.062
    thigh: float = 0.245
    shin: float = 0.245
    upper_arm: float = 0.165
    forearm: float = 0.15
    foot: float = 0.095


@dataclasses.dataclass(frozen=True)
class Gait:
    """How a person walks: radians per frame, then amplitudes and angles in radians."""

    cadence: float = 0.45
    stride: float = 0.42
    arm_swing: float = 0.42
    elbow: float = 0.35
    knee: float = 0.8
    lean: float = 0.06


@dataclasses.dataclass(frozen=True)
class Person:
    """What is constant for an identity, whatever the camera."""

    body: Body
    gait: Gait
    girth: float
    top: Garment
    bottom: Garment
    sleeves: float
    contrast_sleeves: bool
    hem: float
    skirt: bool
    bottom_length: float
    bottom_width: float
    boots: bool
    scarf: bool
    belt: bool
    hair: str
    hat: str
    bag: str
    bag_side: Literal[0, 1]
    skin: Material
    hair_material: Material
    hat_material: Material
    bag_material: Material
    scarf_material: Material
    belt_material: Material
    shoe_material: Material


def draw_material(
    rng: np.random.Generator, luminance: float | None = None, saturation: float | None = None
) -> Material:
    """Draws a color of the given luminance, which decides on half of its infrared reflectance."""
    if luminance is None:
        luminance = rng.uniform(0.05, 0.95)
    if saturation is None:
        saturation = rng.uniform(0.2, 0.95)
    color = np.array(colorsys.hsv_to_rgb(rng.uniform(), saturation, 1.0))
    full = float(color @ (0.299, 0.587, 0.114))
    if luminance < full:
        color *= luminance / full
    else:
        color += (1 - color) * (luminance - full) / (1 - full + 1e-9)
    red, green, blue = color.tolist()
    return Material((red, green, blue), 0.5 * luminance + 0.5 * rng.uniform(0.02, 1.0))


def draw_garment(rng: np.random.Generator, patterns: tuple[str, ...]) -> Garment:
    """Draws a garment whose two materials differ clearly, in visible light and in infrared."""
    while True:
        luminance = rng.uniform(0.0, 0.9)
        base = draw_material(rng, 0.05 + luminance)
        accent = draw_material(rng, 0.05 + (luminance + rng.uniform(0.4, 0.5)) % 0.9)
        if abs(accent.infrared - base.infrared) > 0.35:
            break
    return Garment(base, accent, str(rng.choice(patterns)), rng.uniform(0.075, 0.16), rng.uniform())


Measures = TypeVar("Measures", Body, Gait)


def vary(measures: Measures, rng: np.random.Generator, spread: float) -> Measures:
    """Multiplies every measure by a log-normal factor of its own, of the given spread."""
    factors = np.exp(spread * rng.standard_normal(len(dataclasses.fields(measures))).clip(-2, 2))
    values = np.array(dataclasses.astuple(measures)) * factors
    return type(measures)(*values.tolist())


def draw_person(rng: np.random.Generator) -> Person:
    """Draws an identity: each attribute independently, so that there are many combinations."""
    skirt, bottom_length, bottom_width = BOTTOMS[rng.integers(len(BOTTOMS))]
    skin_tone = rng.uniform(0.25, 0.85)
    return Person(
        body=vary(Body(), rng, 0.06),
        gait=vary(Gait(), rng, 0.1),
        girth=rng.uniform(0.88, 1.3),
        top=draw_garment(rng, TOP_PATTERNS),
        bottom=draw_garment(rng, BOTTOM_PATTERNS),
        sleeves=float(rng.choice(SLEEVES)),
        contrast_sleeves=bool(rng.random() < 0.3),
        hem=float(rng.choice(HEMS)),
        skirt=skirt,
        bottom_length=bottom_length,
        bottom_width=bottom_width,
        boots=bool(rng.random() < 0.35),
        scarf=bool(rng.random() < 0.3),
        belt=bool(rng.random() < 0.4),
        hair=str(rng.choice(HAIR)),
        hat=str(rng.choice(HATS)),
        bag=str(rng.choice(BAGS)),
        bag_side=1 if rng.random() < 0.5 else 0,
        skin=Material((skin_tone, skin_tone * 0.78, skin_tone * 0.64), rng.uniform(0.5, 0.8)),
        hair_material=draw_material(rng, rng.uniform(0.03, 0.7), rng.uniform(0.1, 0.6)),
        hat_material=draw_material(rng),
        bag_material=draw_material(rng),
        scarf_material=draw_material(rng),
        belt_material=draw_material(rng),
        shoe_material=draw_material(rng),
    )


def walk(
    body: Body, gait: Gait, phase: Float64[np.ndarray, " T"]
) -> Float64[np.ndarray, "T points 3"]:
    """Returns the poses of a walking body.

    Args:
      body: lengths.
      gait: amplitudes; the cadence is not used here.
      phase: float64[T], radians of the stride at each frame.

    Returns:
      float64[T, NUM_POINTS, 3]: the 17 joints and the points named above, in body coordinates with
      the pelvis over the origin and the lower foot on the ground (y = 0).
    """
    points = np.zeros((len(phase), NUM_POINTS, 3))

    def swing(start: np.ndarray, length: float, angle: np.ndarray, out: float = 0.0) -> np.ndarray:
        """Returns the end of a bone that hangs down, turned forward by `angle` and out by `out`."""
        x, y = np.sin(angle) * np.cos(out), -np.cos(angle) * np.cos(out)
        return start + length * np.stack([x, y, np.full_like(x, np.sin(out))], axis=-1)

    sway = 0.012 * np.sin(phase)
    chest = np.stack(
        [
            body.torso * np.full_like(phase, np.sin(gait.lean)),
            np.full_like(phase, body.torso * np.cos(gait.lean)),
            sway,
        ],
        axis=-1,
    )
    head = chest + np.array([0.015, body.neck + 1.1 * body.head, 0])
    for side, name in enumerate(SIDES):
        outward = 1 - 2 * side
        stride_phase = phase + np.pi * side
        thigh_angle = gait.stride * np.sin(stride_phase) + 0.08
        shin_angle = thigh_angle - 0.1 - gait.knee * np.maximum(np.cos(stride_phase + 0.5), 0)
        hip = np.array([0, 0, outward * body.hips]) + 0.02 * np.sin(stride_phase)[:, None] * [
            1,
            0,
            0,
        ]
        knee = swing(hip, body.thigh, thigh_angle, outward * 0.03)
        ankle = swing(knee, body.shin, shin_angle)
        toe_angle = np.clip(0.6 * shin_angle, -0.7, 0.15) + np.pi / 2
        toe = swing(ankle - [0, 0.02, 0], body.foot, toe_angle, outward * 0.12)

        arm_angle = -gait.arm_swing * np.sin(stride_phase) - 0.05
        elbow_angle = arm_angle + gait.elbow * (1 + 0.5 * np.sin(stride_phase + np.pi))
        twist = -0.025 * np.sin(stride_phase)[:, None] * [1, 0, 0]
        shoulder = chest + np.array([0, 0, outward * body.shoulders]) + twist
        elbow = swing(shoulder, body.upper_arm, arm_angle, outward * 0.16)
        wrist = swing(elbow, body.forearm, elbow_angle, outward * 0.02)
        hand = swing(wrist, 0.04, elbow_angle)
        for joint, place in zip(
            ("hip", "knee", "ankle", "shoulder", "elbow", "wrist"),
            (hip, knee, ankle, shoulder, elbow, wrist),
            strict=True,
        ):
            points[:, JOINT[f"{name}_{joint}"]] = place
        points[:, LEFT_TOE + side] = toe
        points[:, LEFT_HAND + side] = hand

        points[:, JOINT[f"{name}_eye"]] = head + body.head * np.array([0.8, 0.2, 0.35 * outward])
        points[:, JOINT[f"{name}_ear"]] = head + body.head * np.array([0, 0.05, 0.85 * outward])
    points[:, NECK] = chest
    points[:, HEAD] = head
    points[:, JOINT["nose"]] = head + body.head * np.array([1.0, -0.1, 0])
    lowest = points[:, [LEFT_TOE, RIGHT_TOE, JOINT["left_ankle"], JOINT["right_ankle"]], 1].min(1)
    points[..., 1] += (0.02 - lowest)[:, None]
    return points


def project(
    points: Float64[np.ndarray, "*batch 3"], yaw: float, pitch: float
) -> tuple[Float64[np.ndarray, "*batch 2"], Float64[np.ndarray, "*batch"]]:
    """Projects body coordinates to the picture of a distant camera, angles in radians.

    Returns:
      x to the right and y down, float64[..., 2], in body heights, and the nearness, float64[...]:
      the larger, the closer to the camera.
    """
    x, y, z = np.moveaxis(points, -1, 0)
    across = x * np.sin(yaw) + z * np.cos(yaw)
    toward = x * np.cos(yaw) - z * np.sin(yaw)
    down = -y * np.cos(pitch) + toward * np.sin(pitch)
    return np.stack([across, down], axis=-1), toward * np.cos(pitch) + y * np.sin(pitch)


# Which limbs can hide a joint: from, to, radius in body heights.
_BONES = (
    (NECK, PELVIS, 0.075),
    (HEAD, HEAD, 0.055),
    *(
        (JOINT[f"{name}_{start}"], JOINT[f"{name}_{end}"], radius)
        for name in SIDES
        for start, end, radius in (
            ("shoulder", "elbow", 0.035),
            ("elbow", "wrist", 0.03),
            ("hip", "knee", 0.05),
            ("knee", "ankle", 0.035),
        )
    ),
)


def self_occluded(
    xy: Float64[np.ndarray, "T points 2"], nearness: Float64[np.ndarray, "T points"]
) -> Bool[np.ndarray, "T 17"]:
    """Returns which joints the person's own limbs, torso and head hide.

    Args:
      xy: float64[T, NUM_POINTS, 2], as `project` returns it.
      nearness: float64[T, NUM_POINTS], likewise.

    Returns:
      bool[T, 17].
    """
    joints, depth = xy[:, :NUM_JOINTS], nearness[:, :NUM_JOINTS]
    hidden = np.zeros(depth.shape, bool)
    for start, end, radius in _BONES:
        bone = xy[:, end] - xy[:, start]
        along = ((joints - xy[:, start, None]) * bone[:, None]).sum(-1)
        along = (along / np.maximum((bone**2).sum(-1), 1e-9)[:, None]).clip(0, 1)
        closest = xy[:, start, None] + along[..., None] * bone[:, None]
        front = nearness[:, start, None] + along * (nearness[:, end] - nearness[:, start])[:, None]
        covered = np.linalg.norm(joints - closest, axis=-1) < radius
        hidden |= covered & (depth < front - 0.6 * radius)
    return hidden


def estimate_keypoints(
    rng: np.random.Generator,
    truth: Float64[np.ndarray, "T 17 2"],
    hidden: Bool[np.ndarray, "T 17"],
    covered: Bool[np.ndarray, "T 17"],
    *,
    error: float,
    swapped_share: float,
) -> Float32[np.ndarray, "T 17 3"]:
    """Returns joints as a pose estimator does: with errors, confidences, left and right swapped.

    Args:
      rng: of the errors.
      truth: float64[T, 17, 2], pixels.
      hidden: bool[T, 17], joints behind the person's own body: error x2.5, confidence about 0.5.
      covered: bool[T, 17], joints behind something else: error x5, confidence about 0.2.
      error: standard deviation, in pixels, of a visible joint; confidence about 0.9.
      swapped_share: share of the frames in which the legs swap; independently, the arms.

    Returns:
      float32[T, 17, 3]: x, y, confidence.
    """
    spread = error * np.where(covered, 5.0, np.where(hidden, 2.5, 1.0))
    keypoints = np.empty((*hidden.shape, 3), np.float32)
    keypoints[..., :2] = truth + spread[..., None] * rng.standard_normal(truth.shape)
    confidence = np.where(covered, 0.2, np.where(hidden, 0.5, 0.9))
    keypoints[..., 2] = (confidence + 0.08 * rng.standard_normal(hidden.shape)).clip(0.02, 1)
    for first, last in (("left_shoulder", "right_wrist"), ("left_hip", "right_ankle")):
        limb = np.arange(JOINT[first], JOINT[last] + 1)
        swapped = np.flatnonzero(rng.random(len(keypoints)) < swapped_share)[:, None]
        keypoints[swapped, limb] = keypoints[swapped, np.array(MIRROR)[limb]]
    return keypoints
