"""Generates a stand-in for the public datasets: rendered walking people, in exactly their layouts.

Neither HITSZ-VCM nor BUPTCampus may be redistributed, so the tests and the demo render their own.
The parameters are the fields of `SyntheticConfig` and the presets `SIZES`, both in `plan`; the file
layouts are in `layouts`.
"""

import concurrent.futures
import contextlib
import csv
import dataclasses
import functools
import json
import multiprocessing
import os
import pathlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import cv2
import numpy as np
import simplejpeg
from jaxtyping import Bool, Float32, Float64, UInt8

from data_pipelines import pixels
from data_pipelines.errors import InputError
from data_pipelines.io.files import naming_full_disk
from data_pipelines.io.progress import with_progress
from data_pipelines.records import origin
from data_pipelines.schema import NUM_JOINTS
from data_pipelines.skeletons.formats import new_hdf5
from data_pipelines.synthetic import drawing, people, scenes
from data_pipelines.synthetic.layouts import LAYOUTS, Layout
from data_pipelines.synthetic.plan import SIZES, SPLITS, PlannedTracklet, SyntheticConfig, generator

# Version of the renderer: raise it whenever the same config and seed give other pixels or joints.
VERSION = 2
_MODALITIES = ("rgb", "ir")  # by number, in attributes.csv
_JPEG_QUALITY = 92


# --- rendering one tracklet ---------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class DrawnTracklet:
    """A rendered tracklet.

    Attributes:
      frames: uint8[n, H, W, 3], RGB.
      joints: float64[n, 17, 2], where the joints were drawn, pixels of the frame.
      covered: bool[n, 17], which joints something in front hides.
      keypoints: float32[n, 17, 3], what the pose estimator returns: x, y in pixels, confidence.
      detected: bool[n], False where the estimator found no one.
      attributes: properties of the tracklet, a row of attributes.csv.
    """

    frames: UInt8[np.ndarray, "n H W 3"]
    joints: Float64[np.ndarray, "n 17 2"]
    covered: Bool[np.ndarray, "n 17"]
    keypoints: Float32[np.ndarray, "n 17 3"]
    detected: Bool[np.ndarray, " n"]
    attributes: dict[str, Any]


@functools.lru_cache(maxsize=32)
def _scene(config: SyntheticConfig, seed: int, camera: int, modality: int) -> np.ndarray:
    clutter = min(config.difficulty, 1.0)
    rng = generator(seed, "scene", camera)
    return scenes.draw_scene(rng, modality, config.height, config.width, clutter)


def draw_tracklet(config: SyntheticConfig, seed: int, planned: PlannedTracklet) -> DrawnTracklet:
    """Renders a planned tracklet; the result depends on the arguments alone."""
    person = people.draw_person(generator(seed, "person", planned.identity))
    camera = scenes.draw_camera(generator(seed, "camera", planned.camera), config.difficulty)
    rng = generator(seed, "tracklet", SPLITS.index(planned.split), planned.identity, planned.row)
    n, modality, difficulty = planned.num_frames, planned.modality, config.difficulty
    height, width = drawing.SUPERSAMPLING * config.height, drawing.SUPERSAMPLING * config.width

    def happens(share: float) -> bool:
        return bool(rng.random() < share * difficulty)

    # The walk: this day's gait and apparent proportions, along a path that may bend a little.
    variation = config.skeleton_variation
    body = people.vary(person.body, rng, 0.1 * variation)
    gait = people.vary(person.gait, rng, 0.2 * variation)
    yaw = np.deg2rad(camera.yaw + 25 * difficulty * rng.uniform(-1, 1))
    pitch = np.deg2rad(camera.pitch)
    steps = gait.cadence * rng.uniform(0.85, 1.15, n)
    points = people.walk(body, gait, rng.uniform(0, 2 * np.pi) + np.cumsum(steps))
    xy, nearness = people.project(points, yaw, pitch)
    hidden = people.self_occluded(xy, nearness)

    # The detector's box: the person fills most of it, give or take a smooth and a jerky error.
    top = np.median(xy[:, people.HEAD, 1]) - 2.2 * body.head
    bottom = np.median(xy[..., 1].max(axis=1)) + 0.02
    jitter = (
        config.box_jitter * difficulty * (_smooth_noise(rng, n) + 0.4 * rng.normal(size=(n, 3)))
    )
    scale = 0.92 * height / (bottom - top) * rng.uniform(0.94, 1.04) * (1 + jitter[:, 2])
    aspect = np.exp(0.1 * variation * rng.uniform(-1, 1))
    stretch = np.stack([scale * aspect, scale], axis=1)
    center = np.array([xy[..., 0].mean(), (top + bottom) / 2])
    middle = np.array([width, height]) / 2 * (1 + 2 * jitter[:, :2])
    xy = (xy - center) * stretch[:, None] + middle[:, None]

    occluded = happens(config.occluded_share)
    occluder_kind = str(rng.choice(scenes.OCCLUDERS))
    occluder = scenes.draw_occluder(rng, occluder_kind, modality, height, width)
    start, end = rng.choice([-1, 1]) * rng.uniform((-1.2, 0.0), (-0.3, 0.9)) * width + width / 2
    occluder_path = np.linspace(start, end, n)
    light = rng.uniform(0.3, 0.55) if happens(config.low_light_share) else 1.0
    resolution = rng.uniform(0.3, 0.5) if happens(config.low_resolution_share) else 1.0
    motion_blur = rng.uniform(0.05, 0.12) if happens(config.motion_blur_share) else 0.0

    scene = _scene(config, seed, planned.camera, modality)
    pan = rng.uniform(0, 1) + np.sin(yaw) * 0.012 * np.arange(n)
    left = (np.abs((pan + 1) % 2 - 1) * (scene.shape[1] - width)).astype(int)
    lift = rng.integers(scene.shape[0] - height + 1)

    if planned.paired:  # what follows, noise and pose errors, differs within a pair
        rng = generator(
            seed, "errors", SPLITS.index(planned.split), planned.identity, planned.row, modality
        )
    outfit = drawing.dress(person, modality, float(yaw))
    frames = np.empty((n, config.height, config.width, 3), np.uint8)
    covered = np.zeros((n, NUM_JOINTS), bool)
    for t in range(n):
        canvas = scene[lift : lift + height, left[t] : left[t] + width].copy()
        drawing.draw_shadow(canvas, xy[t], scale[t])
        drawing.draw_figure(canvas, xy[t], nearness[t], scale[t], outfit)
        if occluded:
            occluder.cover(canvas, occluder_path[t])
            covered[t] = occluder.covers(xy[t, :NUM_JOINTS], occluder_path[t])
        frames[t] = scenes.develop(
            canvas,
            rng,
            camera,
            modality,
            light=light,
            resolution=resolution,
            motion_blur=motion_blur,
        )

    joints = pixels.resize_points(xy[:, :NUM_JOINTS], canvas.shape[:2], frames.shape[1:3])
    poor_picture = 1.5 if light < 1 or resolution < 1 or motion_blur else 1.0
    keypoints = people.estimate_keypoints(
        rng,
        joints,
        hidden,
        covered,
        error=config.keypoint_error * config.height * poor_picture,
        swapped_share=config.swapped_share,
    )
    missed = config.missed_share * np.where(covered.mean(axis=1) > 0.5, 10, 1)
    attributes = {
        "split": planned.split,
        "row": planned.row,
        "identity": f"{planned.identity:04}",
        "modality": _MODALITIES[modality],
        "camera": planned.camera,
        "frames": n,
        "yaw_degrees": round(float(np.rad2deg(yaw) + 180) % 360 - 180, 1),
        "pitch_degrees": round(camera.pitch, 1),
        "occluder": occluder_kind if occluded else "none",
        "occlusion": round(float(covered.mean()), 3),
        "light": round(light, 3),
        "resolution": round(resolution, 3),
        "motion_blur": round(motion_blur, 3),
        "lens_blur": round(camera.blur[modality], 4),
        "noise": round(camera.noise[modality], 2),
    }
    return DrawnTracklet(frames, joints, covered, keypoints, rng.random(n) >= missed, attributes)


def _smooth_noise(rng: np.random.Generator, n: int) -> np.ndarray:
    """Returns float64[n, 3]: three slowly varying noises of standard deviation 1 over n frames."""
    noise = np.empty((n, 3))
    noise[0] = rng.standard_normal(3)
    for t in range(1, n):
        noise[t] = 0.9 * noise[t - 1] + np.sqrt(1 - 0.9**2) * rng.standard_normal(3)
    return noise


# --- writing ------------------------------------------------------------------------------------


def generate(
    root: str | os.PathLike[str],
    size: str | SyntheticConfig = "demo",
    seed: int = 0,
    processes: int | None = None,
    layout: str = "hitsz_vcm",
) -> None:
    """Renders a dataset in the layout of a public one, with skeletons.h5 and attributes.csv.

    The root appears only when everything is written. A root that already holds this dataset is left
    unchanged.

    Args:
      root: the folder to make.
      size: a key of SIZES, or a config.
      seed: the same config and seed give the same files, whatever the number of processes.
      processes: number of processes that render; None uses one per core.
      layout: a key of LAYOUTS, which decides on the files. The people are the same in all.

    Raises:
      ValueError: the size or the layout is unknown.
      FileExistsError: the root holds something else.
    """
    if isinstance(size, str):
        if size not in SIZES:
            raise InputError(f"size {size!r} is unknown; choose one of {', '.join(SIZES)}")
        size = SIZES[size]
    if layout not in LAYOUTS:
        raise InputError(f"layout {layout!r} is unknown; choose one of {', '.join(LAYOUTS)}")
    facts = {
        "generator": "synthetic_vcm",
        "version": VERSION,
        "seed": seed,
        "config": dataclasses.asdict(size),
    }
    if layout != "hitsz_vcm":  # the layout of markers that name none
        facts["layout"] = layout
    with new_root(pathlib.Path(root), facts) as drawn:
        if drawn is None:
            return
        planned = LAYOUTS[layout].plan(size, seed)
        listed = LAYOUTS[layout].write_index(drawn, planned)
        draw = functools.partial(_draw_to_disk, drawn, LAYOUTS[layout], size, seed)
        _write_tracklets(drawn, draw, planned, listed, processes or os.cpu_count() or 1)


@contextlib.contextmanager
def new_root(root: pathlib.Path, facts: Mapping[str, Any]) -> Iterator[pathlib.Path | None]:
    """Yields a folder to render to that becomes `root` at the end; None if `root` is complete.

    Args:
      root: the folder to make.
      facts: describe what is rendered; written beside it, to recognize it later.

    Raises:
      FileExistsError: the root holds something else.
    """
    marker = json.dumps(facts, indent=2) + "\n"
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        found = root / origin.GENERATOR
        if found.is_file() and found.read_text("utf-8") == marker:
            print(f"{root}: already rendered, with the same config and seed")
            yield None
            return
        raise FileExistsError(
            f"{root}: exists and is not this dataset (its {origin.GENERATOR} is missing or differs "
            "in version, seed, config or layout); choose another folder or delete it"
        )
    root.parent.mkdir(parents=True, exist_ok=True)
    with (
        naming_full_disk(root),
        tempfile.TemporaryDirectory(dir=root.parent, prefix=f".{root.name}.partial-") as partial,
    ):
        drawn = pathlib.Path(partial) / "drawn"
        drawn.mkdir()
        yield drawn
        (drawn / origin.GENERATOR).write_text(marker, "utf-8")
        drawn.replace(root)


def _write_tracklets(
    root: pathlib.Path,
    draw: Callable[[PlannedTracklet], tuple[dict[str, np.ndarray], dict[str, Any]]],
    planned: list[PlannedTracklet],
    listed: list[tuple[str, int]],
    processes: int,
) -> None:
    with contextlib.ExitStack() as stack:
        if processes == 1:
            results: Iterator[tuple[dict[str, np.ndarray], dict[str, Any]]] = map(draw, planned)
        else:
            # Spawned, since forking a process that has started JAX's threads may hang.
            pool = concurrent.futures.ProcessPoolExecutor(
                processes, multiprocessing.get_context("spawn"), cv2.setNumThreads, (1,)
            )
            results = stack.enter_context(pool).map(draw, planned, chunksize=8)
        skeletons = stack.enter_context(new_hdf5(root / "skeletons.h5"))
        table = None
        path = root / "attributes.csv"
        file = stack.enter_context(open(path, "w", encoding="utf-8", newline=""))
        shown = with_progress(results, len(planned), "rendering")
        for (keypoints, attributes), (identity, row) in zip(shown, listed, strict=True):
            attributes |= {"identity": identity, "row": row}
            for key, skeleton in keypoints.items():
                folder, _, name = key.rpartition("/")
                skeletons.require_group(folder)[name] = skeleton
            if table is None:
                table = csv.DictWriter(file, list(attributes))
                table.writeheader()
            table.writerow(attributes)


def _draw_to_disk(
    root: pathlib.Path,
    layout: Layout,
    config: SyntheticConfig,
    seed: int,
    planned: PlannedTracklet,
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Writes a tracklet's frames; returns the skeletons by their keys, and the attributes."""
    drawn = draw_tracklet(config, seed, planned)
    paths = [layout.frame_path(planned, number) for number in planned.frames]
    for path, frame in zip(paths, drawn.frames, strict=True):
        for name, picture in layout.pictures(path, frame):
            file = root / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(simplejpeg.encode_jpeg(picture, _JPEG_QUALITY, colorspace="RGB"))
    keys = ["/".join(path.removesuffix(".jpg").split("/")[-4:]) for path in paths]
    found = zip(keys, drawn.keypoints, drawn.detected, strict=True)
    return {key: skeleton for key, skeleton, seen in found if seen}, drawn.attributes
