"""Scenes of the synthetic dataset, what passes in front of people, and how a camera sees both."""

import dataclasses

import cv2
import numpy as np
from jaxtyping import Bool, Float64, UInt8

from data_pipelines.schema import INFRARED
from data_pipelines.synthetic.drawing import SUPERSAMPLING, draw_figure, dress, ellipse, paint
from data_pipelines.synthetic.people import draw_material, draw_person, project, walk

SCENE_WIDTHS = 4  # a scene is this many frames wide, so that the background moves past a walker
OCCLUDERS = ("pole", "box", "bush", "pedestrian")


@dataclasses.dataclass(frozen=True)
class Camera:
    """The constants of a camera; lengths are shares of the frame's height.

    Attributes:
      yaw: where people usually walk, degrees; 0 is toward the camera, 90 to the right.
      pitch: how far the camera looks down, degrees.
      exposure: factor on the brightness, for each modality.
      contrast: factor on the differences from the middle gray, for each modality.
      tint: factors on red, green and blue in visible light.
      blur: standard deviation of the lens' blur, for each modality.
      noise: standard deviation of the sensor's noise in gray levels, for each modality.
    """

    yaw: float
    pitch: float
    exposure: tuple[float, float]
    contrast: tuple[float, float]
    tint: tuple[float, float, float]
    blur: tuple[float, float]
    noise: tuple[float, float]


def draw_camera(rng: np.random.Generator, difficulty: float) -> Camera:
    """Draws a camera: infrared is darker, flatter, blurrier and noisier than visible light."""
    red, green, blue = (1 + 0.1 * difficulty * rng.uniform(-1, 1, 3)).tolist()
    return Camera(
        yaw=rng.uniform(-180, 180) * min(difficulty, 1.0),
        pitch=rng.uniform(4, 14),
        exposure=(
            1 - 0.2 * difficulty * rng.uniform(-1, 1),
            0.85 - 0.15 * difficulty * rng.uniform(-1, 1),
        ),
        contrast=(
            1 - 0.15 * difficulty * rng.uniform(),
            0.95 - 0.2 * difficulty * rng.uniform(),
        ),
        tint=(red, green, blue),
        blur=(0.003 * difficulty * rng.uniform(), 0.003 * difficulty * rng.uniform(0.5, 1.5)),
        noise=(difficulty * rng.uniform(2, 5), difficulty * rng.uniform(3, 7)),
    )


def draw_scene(
    rng: np.random.Generator, modality: int, height: int, width: int, clutter: float
) -> UInt8[np.ndarray, "H W 3"]:
    """Draws a street: sky, walls with windows, trees, pavement, poles.

    Args:
      rng: the same random numbers give the same street in both modalities.
      modality: VISIBLE or INFRARED.
      height: of a stored frame; the scene is drawn for frames SUPERSAMPLING times as large.
      width: of a stored frame.
      clutter: contrast of the scene; 1 is unchanged, 0 a uniform gray.

    Returns:
      uint8[SUPERSAMPLING * height * 1.25, SUPERSAMPLING * width * SCENE_WIDTHS, 3].
    """
    rows, columns = int(SUPERSAMPLING * height * 1.25), SUPERSAMPLING * width * SCENE_WIDTHS
    scene = np.empty((rows, columns, 3), np.uint8)

    def color(low: float, high: float) -> tuple[float, ...]:
        material = draw_material(rng, rng.uniform(low, high), rng.uniform(0.05, 0.35))
        return tuple((255 * material.paint(modality)).tolist())

    def box(left: float, top: float, right: float, bottom: float, fill: tuple[float, ...]) -> None:
        first = (int(left * columns), int(top * rows))
        cv2.rectangle(scene, first, (int(right * columns), int(bottom * rows)), fill, cv2.FILLED)

    horizon = rng.uniform(0.55, 0.72)
    box(0, 0, 1, 1, color(0.6, 0.85))
    left = 0.0
    while left < 1:  # houses
        right = left + rng.uniform(0.15, 0.4)
        roof = rng.uniform(-0.2, 0.25)
        wall, glass = color(0.3, 0.75), color(0.1, 0.6)
        box(left, roof, right, horizon, wall)
        step, storey = rng.uniform(0.04, 0.07), rng.uniform(0.13, 0.2)
        for x in np.arange(left + 0.02, right - 0.5 * step, step):
            for y in np.arange(roof + 0.05, horizon - 0.5 * storey, storey):
                box(x, y, x + 0.5 * step, y + 0.55 * storey, glass)
        left = right
    box(0, horizon, 1, 1, color(0.35, 0.65))
    box(0, horizon, 1, horizon + 0.02, color(0.2, 0.7))
    line = color(0.3, 0.8)
    for x in np.linspace(-1, 2, 40):  # paving, seen in perspective
        start = (int(columns * x), rows)
        cv2.line(
            scene, start, (int(columns * (0.5 + 0.6 * (x - 0.5))), int(rows * horizon)), line, 1
        )
    for y in horizon + (1 - horizon) * np.array([0.12, 0.3, 0.6]):
        cv2.line(scene, (0, int(rows * y)), (columns, int(rows * y)), line, 1)
    for _ in range(rng.integers(1, 4)):  # trees
        x, crown = rng.uniform(), color(0.15, 0.5)
        box(x - 0.006, 0.3, x + 0.006, horizon + 0.04, color(0.1, 0.35))
        for offset in rng.normal(0, (0.035, 0.06), (8, 2)):
            center = (int((x + offset[0]) * columns), int((0.25 + offset[1]) * rows))
            shade = tuple(channel * rng.uniform(0.8, 1.2) for channel in crown)
            cv2.circle(scene, center, int(0.07 * rows), shade, cv2.FILLED, cv2.LINE_AA)
    for x in rng.uniform(size=rng.integers(1, 4)):  # lamp posts
        box(x, 0, x + 0.006, horizon + rng.uniform(0.02, 0.1), color(0.1, 0.6))

    specks = rng.standard_normal((rows // 6, columns // 6)).astype(np.float32)
    grain = cv2.resize(specks, (columns, rows), interpolation=cv2.INTER_CUBIC)
    picture = (
        cv2.GaussianBlur(scene, (0, 0), 0.008 * rows).astype(np.float32) + 6 * grain[..., None]
    )
    if modality == INFRARED:  # the camera's lamp has a short range
        picture *= 0.5
    middle = picture.mean(axis=(0, 1))
    cluttered: np.ndarray = np.clip(middle + clutter * (picture - middle), 0, 255)
    return cluttered.astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Occluder:
    """Something that passes in front: colors uint8[H, w, 3] and where it is solid, uint8[H, w]."""

    picture: UInt8[np.ndarray, "H w 3"]
    mask: UInt8[np.ndarray, "H w"]

    def cover(self, canvas: UInt8[np.ndarray, "H W 3"], center: float) -> None:
        """Draws it over a canvas of its height, in place, centered at a column."""
        left = round(center - self.mask.shape[1] / 2)
        first, last = max(left, 0), min(left + self.mask.shape[1], canvas.shape[1])
        if first < last:
            part = slice(first - left, last - left)
            cv2.copyTo(self.picture[:, part], self.mask[:, part], canvas[:, first:last])

    def covers(
        self, xy: Float64[np.ndarray, "*batch 2"], center: float
    ) -> Bool[np.ndarray, "*batch"]:
        """Returns bool[...]: which of the points float64[..., 2] on that canvas it hides."""
        height, width = self.mask.shape
        x = np.round(xy[..., 0] - round(center - width / 2)).astype(int)
        y = np.round(xy[..., 1]).astype(int)
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        hidden: np.ndarray = inside & (self.mask[y.clip(0, height - 1), x.clip(0, width - 1)] > 0)
        return hidden


def draw_occluder(
    rng: np.random.Generator, kind: str, modality: int, height: int, width: int
) -> Occluder:
    """Draws an occluder for canvases of the given height and width."""
    share = {"pole": 0.16, "box": 0.55, "bush": 0.6, "pedestrian": 1.0}[kind]
    columns = int(share * width)
    picture = np.zeros((height, columns, 3), np.uint8)
    fill = (255 * draw_material(rng, saturation=0.5).paint(modality)).astype(np.uint8)
    shade = np.linspace(1.1, 0.7, columns)[None, :, None]
    texture = np.clip(fill * shade, 1, 255).astype(np.uint8)
    if kind == "pedestrian":
        person, yaw = draw_person(rng), rng.choice([-1, 1]) * np.pi / 2
        points = walk(person.body, person.gait, rng.uniform(0, 6, 1))
        xy, nearness = project(points, yaw, 0.0)
        xy = xy[0] * 0.95 * height + (columns / 2, height)
        outfit = dress(person, modality, yaw)
        draw_figure(picture, xy, nearness[0], 0.95 * height, outfit)
    elif kind == "bush":
        for x, y, radius in rng.uniform((0.2, 0.65, 0.12), (0.8, 0.95, 0.25), (9, 3)):
            leaves = np.clip(texture * rng.uniform(0.7, 1.2), 1, 255).astype(np.uint8)
            center = np.array([x * columns, y * height])
            paint(picture, *ellipse(center, radius * columns, radius * columns), leaves)
    else:
        top = int(height * rng.uniform(0.55, 0.7)) if kind == "box" else 0
        picture[top:] = texture
        if kind == "box":  # the side of a car, with a darker stripe
            picture[top + height // 30 : top + height // 10] //= 2
            picture[top:] = np.maximum(picture[top:], 1)
    return Occluder(picture, picture.max(axis=-1).astype(np.uint8).clip(0, 1) * 255)


def develop(
    canvas: UInt8[np.ndarray, "_ _ 3"],
    rng: np.random.Generator,
    camera: Camera,
    modality: int,
    *,
    light: float = 1.0,
    resolution: float = 1.0,
    motion_blur: float = 0.0,
) -> UInt8[np.ndarray, "H W 3"]:
    """Turns a rendering into the frame that a camera stores.

    Args:
      canvas: uint8[SUPERSAMPLING * H, SUPERSAMPLING * W, 3].
      rng: of the sensor's noise.
      camera: the camera that sees it.
      modality: VISIBLE or INFRARED.
      light: factor on the brightness of the scene.
      resolution: the frame is stored as if seen at this share of its size.
      motion_blur: length of the motion blur across, as a share of the frame's width.

    Returns:
      uint8[H, W, 3].
    """
    height, width = canvas.shape[0] // SUPERSAMPLING, canvas.shape[1] // SUPERSAMPLING
    if modality == INFRARED:
        canvas = canvas[..., :1]
    seen = (max(int(width * resolution), 4), max(int(height * resolution), 8))
    picture = cv2.resize(canvas, seen, interpolation=cv2.INTER_AREA)
    if seen != (width, height):
        picture = cv2.resize(picture, (width, height), interpolation=cv2.INTER_LINEAR)
    blur = camera.blur[modality] * height
    if blur > 0.2:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    if motion_blur:
        smear = int(motion_blur * width) | 1  # an even one would move the picture by half a pixel
        picture = cv2.blur(picture, (smear, 1))
    picture = np.atleast_3d(picture).astype(np.float32)
    tint = np.array(camera.tint if modality != INFRARED else [1.0], np.float32)
    gain = light * camera.exposure[modality] * tint
    contrast = camera.contrast[modality]
    picture = contrast * gain * picture + (1 - contrast) * 110 * light
    # The camera amplifies dark pictures, and with them their noise.
    noise = camera.noise[modality] * (1 + 0.5 * (1 - light))
    picture += noise * rng.standard_normal(picture.shape, np.float32)
    return np.broadcast_to(picture.clip(0, 255).astype(np.uint8), (height, width, 3))
