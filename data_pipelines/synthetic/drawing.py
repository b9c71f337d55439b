"""Draws people as textured shapes, painted from back to front.

Pictures are uint8[H, W, 3] in RGB, also the infrared ones (three equal channels). Everything is
drawn at SUPERSAMPLING times the stored size, so that edges are smooth after a camera shrinks it.
"""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Float64, UInt8

from data_pipelines.errors import InputError
from data_pipelines.synthetic import people
from data_pipelines.synthetic.people import JOINT, Garment, Person

SUPERSAMPLING = 2
LEG = 0.49  # length in body heights, for the patterns on trousers and skirts
_HALF_TURN = np.linspace(0, np.pi, 7)
_TURN = np.linspace(0, 2 * np.pi, 20, endpoint=False)
_ACROSS = np.linspace(-0.97, 0.97, 32)  # columns of a texture, from edge to edge of a round part
_SHADE = (0.5 + 0.5 * np.sqrt(1 - (0.85 * (_ACROSS + 0.2)) ** 2))[None, :, None]


# --- shapes -------------------------------------------------------------------------------------


def paint(
    canvas: UInt8[np.ndarray, "H W 3"],
    outline: Float64[np.ndarray, "N 2"],
    quad: Float64[np.ndarray, "4 2"],
    texture: UInt8[np.ndarray, "V U 3"],
) -> None:
    """Fills a polygon with a texture stretched over a quadrangle, in place.

    Args:
      canvas: uint8[H, W, 3].
      outline: float64[N, 2], x and y in pixels.
      quad: float64[4, 2], where the texture's corners go: top left, top right, bottom right,
        bottom left.
      texture: uint8[V, U, 3].
    """
    height, width = canvas.shape[:2]
    left, top = np.maximum(np.floor(outline.min(axis=0)).astype(int), 0)
    right, bottom = np.minimum(np.ceil(outline.max(axis=0)).astype(int) + 1, (width, height))
    if left >= right or top >= bottom:
        return
    v, u = texture.shape[:2]
    corners = np.array([(0, 0), (u - 1, 0), (u - 1, v - 1), (0, v - 1)], np.float32)
    transform = cv2.getPerspectiveTransform(corners, (quad - (left, top)).astype(np.float32))
    size = (int(right - left), int(bottom - top))
    patch = cv2.warpPerspective(texture, transform, size, borderMode=cv2.BORDER_REPLICATE)
    mask = np.zeros(patch.shape[:2], np.uint8)
    polygon = np.round((outline - (left, top)) * 16).astype(np.int32)
    cv2.fillPoly(mask, [polygon], 255, shift=4)
    cv2.copyTo(patch, mask, canvas[top:bottom, left:right])


def capsule(
    start: Float64[np.ndarray, "2"],
    end: Float64[np.ndarray, "2"],
    start_radius: float,
    end_radius: float,
) -> tuple[Float64[np.ndarray, "outline 2"], Float64[np.ndarray, "4 2"]]:
    """Returns outline and texture quadrangle of a limb that tapers between two round ends."""
    axis = end - start
    length = np.hypot(*axis)
    axis = axis / length if length > 1e-6 else np.array([0.0, 1.0])
    normal = np.array([axis[1], -axis[0]])
    cosine, sine = np.cos(_HALF_TURN)[:, None], np.sin(_HALF_TURN)[:, None]
    upper = start + start_radius * (cosine * normal - sine * axis)
    lower = end + end_radius * (-cosine * normal + sine * axis)
    quad = np.stack(
        [
            start - start_radius * normal,
            start + start_radius * normal,
            end + end_radius * normal,
            end - end_radius * normal,
        ]
    )
    return np.concatenate([upper, lower]), quad


def ellipse(
    center: Float64[np.ndarray, "2"], across: float, down: float
) -> tuple[Float64[np.ndarray, "outline 2"], Float64[np.ndarray, "4 2"]]:
    """Returns outline and texture quadrangle of an upright ellipse with the given half axes."""
    size = np.array([across, down])
    outline = center + size * np.stack([np.cos(_TURN), np.sin(_TURN)], axis=1)
    return outline, center + size * np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)])


# --- clothes ------------------------------------------------------------------------------------


def _pattern(garment: Garment, u: np.ndarray, v: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """Returns where the accent shows: u, v in body heights around and down, azimuth in radians."""
    across, down = u / garment.scale + garment.phase, v / garment.scale + garment.phase
    match garment.pattern:
        case "plain":
            accent = np.zeros(np.broadcast(u, v).shape, bool)
        case "hoops":
            accent = down % 1 < 0.5
        case "stripes":
            accent = across % 1 < 0.5
        case "checks":
            accent = (across % 1 < 0.5) ^ (down % 1 < 0.5)
        case "dots":
            row = np.floor(down)
            accent = np.hypot((across + 0.5 * row) % 1 - 0.5, down % 1 - 0.5) < 0.34
        case "diagonal":
            accent = (across + down) % 1 < 0.5
        case "yoke":
            accent = v < 0.05 + garment.scale
        case "band":
            accent = np.abs(v - 0.09 - 0.1 * garment.phase) < 0.4 * garment.scale
        case "seam":
            accent = np.abs(np.abs(azimuth) - np.pi / 2) < 0.75
        case unknown:
            raise InputError(f"garment pattern {unknown!r} is unknown")
    return np.broadcast_to(accent, np.broadcast(u, v).shape)


@dataclasses.dataclass(frozen=True)
class Outfit:
    """A person's textures, uint8[V, U, 3] each, as one camera sees them from one side."""

    person: Person
    yaw: float
    textures: dict[str, UInt8[np.ndarray, "_ _ 3"]]


def _cloth(
    garment: Garment, modality: int, azimuth: np.ndarray, start: float, end: float, radius: float
) -> np.ndarray:
    """Returns float64[V, U, 3], cloth from start to end around a limb of the given radius."""
    v = np.linspace(start, end, max(int((end - start) / 0.006), 4))[:, None]
    accent = _pattern(garment, radius * azimuth[None], v, azimuth[None])[..., None]
    return np.where(accent, garment.accent.paint(modality), garment.base.paint(modality))


def _torso(person: Person, modality: int, azimuth: np.ndarray) -> np.ndarray:
    torso = _cloth(person.top, modality, azimuth, 0.0, person.body.torso, 0.11)
    down = np.linspace(0, 1, len(torso))[:, None]
    bag = person.bag_material.paint(modality)
    if person.bag == "backpack":  # its straps in front; the bag itself is drawn behind
        torso[(np.abs(np.abs(azimuth) - 0.55) < 0.14) & (down < 0.75)] = bag
    if person.bag == "crossbody":  # from one shoulder to the other hip, in front and behind
        outward = 1 - 2 * person.bag_side
        strap = np.pi / 2 * outward * (2 * down - 1)
        behind = np.abs(azimuth) > np.pi / 2
        torso[
            np.abs(np.where(behind, np.sign(azimuth) * np.pi - azimuth, azimuth) - strap) < 0.3
        ] = bag
    if person.belt and person.hem == 0:
        torso[down[:, 0] > 0.87] = person.belt_material.paint(modality)
    return torso


def _head(person: Person, modality: int, azimuth: np.ndarray) -> np.ndarray:
    down = np.linspace(0, 1, 24)[:, None]
    head = np.tile(person.skin.paint(modality), (len(down), len(azimuth), 1))
    temple = 0.95 if person.hair == "long" else 1.35
    nape = 1.0 if person.hair == "long" else 0.68
    if person.hair != "bald":
        hairy = (down < 0.27) | ((np.abs(azimuth) > temple) & (down < nape))
        head[hairy] = person.hair_material.paint(modality)
    head[(np.abs(np.abs(azimuth) - 0.38) < 0.13) & (np.abs(down - 0.5) < 0.05)] *= 0.25  # eyes
    head[(np.abs(azimuth) < 0.3) & (np.abs(down - 0.8) < 0.03)] *= 0.5  # mouth
    if person.hat != "none":
        head[down[:, 0] < 0.38] = person.hat_material.paint(modality)
    return head


def _limb(cover: np.ndarray, share: float, below: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns a limb's two halves: covered down to a share of its length, `below` from there."""
    down = np.linspace(0, 1, len(cover))[:, None, None]
    upper, lower = np.array_split(np.where(down <= share, cover, below), 2)
    return upper, lower


def dress(person: Person, modality: int, yaw: float) -> Outfit:
    """Renders what a person wears as seen at a yaw: patterns run around the body."""
    azimuth = (np.arcsin(_ACROSS) - yaw + np.pi) % (2 * np.pi) - np.pi  # 0 in front, left positive
    top, bottom = person.top, person.bottom
    skin, shoe = person.skin.paint(modality), person.shoe_material.paint(modality)
    if person.contrast_sleeves:
        sleeve = dataclasses.replace(top, pattern="plain", base=top.accent)
    elif top.pattern in ("yoke", "band"):
        sleeve = dataclasses.replace(top, pattern="plain")
    else:
        sleeve = top

    sleeves = _cloth(sleeve, modality, azimuth, 0.0, 0.33, 0.045)
    upper_arm, forearm = _limb(sleeves, person.sleeves, skin)
    trousers = _cloth(bottom, modality, azimuth, 0.0, LEG, 0.06)
    thigh, shin = _limb(trousers, 0.0 if person.skirt else person.bottom_length, skin)
    if person.boots:
        shin[len(shin) // 2 :] = shoe

    torso_length = person.body.torso
    hem, skirt = 0.06 + LEG * person.hem, 0.06 + LEG * person.bottom_length
    colors = {
        "torso": _torso(person, modality, azimuth),
        "coat": _cloth(top, modality, azimuth, torso_length, torso_length + hem, 0.11),
        "skirt": _cloth(bottom, modality, azimuth, 0.0, skirt, 0.09),
        "thigh": thigh,
        "shin": shin,
        "upper_arm": upper_arm,
        "forearm": forearm,
        "head": _head(person, modality, azimuth),
        "skin": skin,
        "shoe": shoe,
        "hair": person.hair_material.paint(modality),
        "hat": person.hat_material.paint(modality),
        "bag": person.bag_material.paint(modality),
        "scarf": person.scarf_material.paint(modality),
    }
    textures = {}
    for name, color in colors.items():
        texture = np.broadcast_to(color, (len(color) if color.ndim == 3 else 4, len(_ACROSS), 3))
        textures[name] = np.clip(255 * texture * _SHADE, 0, 255).astype(np.uint8)
    return Outfit(person, yaw, textures)


# --- the figure ---------------------------------------------------------------------------------


def draw_shadow(
    canvas: UInt8[np.ndarray, "H W 3"], xy: Float64[np.ndarray, "points 2"], scale: float
) -> None:
    """Darkens the ground under a pose float64[NUM_POINTS, 2], in place."""
    feet = xy[[people.LEFT_TOE, people.RIGHT_TOE]]
    outline, _ = ellipse(feet.mean(axis=0), 0.09 * scale + np.ptp(feet[:, 0]) / 2, 0.03 * scale)
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [np.round(outline).astype(np.int32)], 255)
    cv2.copyTo(canvas // 5 * 3, mask, canvas)


def draw_figure(
    canvas: UInt8[np.ndarray, "H W 3"],
    xy: Float64[np.ndarray, "points 2"],
    nearness: Float64[np.ndarray, " points"],
    scale: float,
    outfit: Outfit,
) -> None:
    """Draws one pose of a dressed person, in place.

    Args:
      canvas: uint8[H, W, 3].
      xy: float64[NUM_POINTS, 2], pixels of the canvas.
      nearness: float64[NUM_POINTS], as `people.project` returns it.
      scale: pixels per body height.
      outfit: what `dress` returned.
    """
    person, textures = outfit.person, outfit.textures
    girth = person.girth * scale
    front, side = np.cos(outfit.yaw), np.sin(outfit.yaw)
    facing = front > 0

    def place(shape: tuple[np.ndarray, np.ndarray], texture: str) -> None:
        paint(canvas, *shape, textures[texture])

    def joint(name: str, number: int) -> np.ndarray:
        point: np.ndarray = xy[JOINT[f"{people.SIDES[number]}_{name}"]]
        return point

    def leg(number: int) -> None:
        hip, knee, ankle = (joint(name, number) for name in ("hip", "knee", "ankle"))
        width = girth * (1.0 if person.skirt else person.bottom_width)
        loose = person.bottom_length if not person.skirt else 0.0
        place(capsule(ankle, xy[people.LEFT_TOE + number], 0.026 * scale, 0.02 * scale), "shoe")
        calf = 0.036 if loose > 0.9 else 0.03
        flare = max(1.0, person.bottom_width) if loose > 0.9 else 1.0
        boot = 0.027 if person.boots else 0.022
        place(capsule(knee, ankle, calf * girth * flare, boot * girth * flare**1.5), "shin")
        place(capsule(hip, knee, 0.053 * width, 0.04 * width), "thigh")

    def arm(number: int) -> None:
        shoulder, elbow, wrist = (joint(name, number) for name in ("shoulder", "elbow", "wrist"))
        hand = xy[people.LEFT_HAND + number]
        sleeve = girth * (1.15 if person.sleeves > 0.5 else 1.0)
        place(capsule(wrist, hand, 0.019 * scale, 0.017 * scale), "skin")
        place(capsule(elbow, wrist, 0.029 * sleeve, 0.022 * sleeve), "forearm")
        place(capsule(shoulder, elbow, 0.036 * sleeve, 0.03 * sleeve), "upper_arm")
        if person.bag == "handbag" and number == person.bag_side:
            center = hand + np.array([0, 0.09 * scale])
            place(capsule(hand, center, 0.008 * scale, 0.008 * scale), "bag")
            wide = (0.045 + 0.045 * abs(side)) * scale
            box = center + np.array([(-0.8, -0.4), (0.8, -0.4), (1, 1), (-1, 1)]) * (
                wide,
                0.055 * scale,
            )
            place((box, box), "bag")

    neck, pelvis = xy[people.NECK], xy[people.PELVIS]
    chest_width = np.hypot(1.12 * person.body.shoulders * front, 0.078 * side) * girth
    waist_width = np.hypot(0.086 * front, 0.07 * side) * girth
    hip_width = np.hypot(0.094 * front, 0.076 * side) * girth

    def trunk() -> None:
        rise, fall = np.array([0, 0.025 * scale]), np.array([0, 0.045 * scale])
        waist = 0.4 * neck + 0.6 * pelvis
        right = np.array([1.0, 0.0])
        edge = [
            (neck - rise, 0.45 * chest_width),
            (neck + 0.2 * rise, 0.95 * chest_width),
            (neck + 2.5 * rise, chest_width),
            (waist, waist_width),
            (pelvis, hip_width),
            (pelvis + fall, 0.9 * hip_width),
        ]
        outline = [at + width * right for at, width in edge]
        outline += [at - width * right for at, width in reversed(edge)]
        corner = chest_width * right
        quad = np.stack(
            [
                neck - rise - corner,
                neck - rise + corner,
                pelvis + fall + corner,
                pelvis + fall - corner,
            ]
        )
        place((np.stack(outline), quad), "torso")

    def hang(reach: float, width: float, texture: str) -> None:
        """Draws cloth from the hips around both legs, down to a share of the leg."""
        hips, knees, ankles = (
            np.stack([joint(name, number) for number in (0, 1)])
            for name in ("hip", "knee", "ankle")
        )
        lower = 2 * reach
        at = hips + (knees - hips) * min(lower, 1) + (ankles - knees) * max(lower - 1, 0)
        half = width * (hip_width + 0.03 * reach * scale)
        left = min(at[:, 0].min() - 0.035 * girth, pelvis[0] - half)
        right = max(at[:, 0].max() + 0.035 * girth, pelvis[0] + half)
        y = at[:, 1].mean()
        top = pelvis - (0, 0.05 * scale)
        quad = np.array(
            [(top[0] - waist_width, top[1]), (top[0] + waist_width, top[1]), (right, y), (left, y)]
        )
        hips_y = pelvis[1] + 0.02 * scale
        outline = np.insert(quad, 2, (pelvis[0] + 1.02 * hip_width, hips_y), axis=0)
        outline = np.append(outline, [(pelvis[0] - 1.02 * hip_width, hips_y)], axis=0)
        place((outline, quad), texture)

    def backpack() -> None:
        center = 0.62 * neck + 0.38 * pelvis + np.array([-0.1 * side * girth, 0])
        half = np.hypot(0.105 * front, 0.06 * side) * girth
        tall = np.array([0, 0.075 * scale])
        place(capsule(center - tall, center + tall, half, half), "bag")

    def hip_bag() -> None:
        outward = 1 - 2 * person.bag_side
        center = pelvis + np.array([outward * front * 0.11 * girth, 0.02 * scale])
        wide = (0.04 + 0.045 * abs(side)) * scale
        tall = (0.05 if person.bag == "crossbody" else 0.085) * scale
        box = center + np.array([(-1, -1), (1, -1), (1.1, 1), (-1.1, 1)]) * (wide, tall)
        if person.bag == "tote":
            shoulder = joint("shoulder", person.bag_side)
            place(capsule(shoulder, center, 0.012 * scale, 0.012 * scale), "bag")
        place((box, box), "bag")

    head, radius = xy[people.HEAD], person.body.head * scale
    forward = np.array([side, 0.25 * front])

    def long_hair() -> None:
        behind = head - 0.25 * radius * np.array([side, 0])
        end = 0.75 * neck + 0.25 * pelvis - 0.9 * radius * np.array([side, 0])
        place(capsule(behind, end, 0.98 * radius, 0.85 * radius), "hair")

    def whole_head() -> None:
        place(capsule(neck, head, 0.6 * radius, 0.5 * radius), "skin")
        if person.scarf:
            throat = neck - (0, 0.1 * radius)
            place(ellipse(throat, 1.05 * radius, 0.5 * radius), "scarf")
            end = neck + radius * np.array([0.5 * (1 if facing else -1) + 0.6 * side, 2.4])
            place(capsule(throat, end, 0.36 * radius, 0.4 * radius), "scarf")
        if person.hair == "afro":
            place(ellipse(head - (0, 0.25 * radius), 1.45 * radius, 1.4 * radius), "hair")
        if person.hair == "bun":
            place(
                ellipse(head - 0.95 * radius * forward - (0, radius), *[0.55 * radius] * 2), "hair"
            )
        place(ellipse(head, 0.9 * radius, 1.15 * radius), "head")
        if person.hat == "cap":
            brim = head + 0.85 * radius * forward - (0, 0.35 * radius)
            place(ellipse(brim, (0.75 + 0.2 * abs(side)) * radius, 0.2 * radius), "hat")
        elif person.hat == "brim":
            place(ellipse(head - (0, 0.35 * radius), 1.9 * radius, 0.3 * radius), "hat")
            place(ellipse(head - (0, 0.8 * radius), 0.95 * radius, 0.65 * radius), "hat")
        elif person.hat == "beanie":
            place(ellipse(head - (0, 0.7 * radius), 1.02 * radius, 0.72 * radius), "hat")
            place(ellipse(head - (0, 1.5 * radius), 0.36 * radius, 0.36 * radius), "hat")

    legs_first = sorted((0, 1), key=lambda n: nearness[JOINT[f"{people.SIDES[n]}_knee"]])
    arm_depth = [
        np.mean([nearness[JOINT[f"{name}_{part}"]] for part in ("shoulder", "elbow", "wrist")])
        for name in people.SIDES
    ]
    trunk_depth = nearness[[people.NECK, people.PELVIS]].mean()
    bag_behind = -(1 - 2 * person.bag_side) * side < -0.3
    has_hip_bag = person.bag in ("crossbody", "tote")

    if person.bag == "backpack" and facing:
        backpack()
    if person.hair == "long" and facing:
        long_hair()
    for number in (0, 1):
        if arm_depth[number] < trunk_depth:
            arm(number)
    if has_hip_bag and bag_behind:
        hip_bag()
    for number in legs_first:
        leg(number)
    if person.skirt:
        hang(person.bottom_length, person.bottom_width, "skirt")
    if person.hem:
        hang(person.hem, 1.12, "coat")
    trunk()
    if has_hip_bag and not bag_behind:
        hip_bag()
    if person.bag == "backpack" and not facing:
        backpack()
    whole_head()
    if person.hair == "long" and not facing:
        long_hair()
        place(ellipse(head, 0.9 * radius, 1.15 * radius), "head")
    for number in (0, 1):
        if arm_depth[number] >= trunk_depth:
            arm(number)
