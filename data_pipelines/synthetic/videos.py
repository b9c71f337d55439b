"""Writes the generated people as footage: videos in the folders that `folder` reads."""

import dataclasses
import os
import pathlib

import cv2
import h5py
import numpy as np

from data_pipelines.io.progress import with_progress
from data_pipelines.schema import INFRARED, MODALITIES, VISIBLE
from data_pipelines.skeletons.formats import new_hdf5
from data_pipelines.synthetic.generate import VERSION, draw_tracklet, new_root
from data_pipelines.synthetic.plan import PlannedTracklet, SyntheticConfig, plan

MAX_IDENTITIES = 12
_FORMATS = {VISIBLE: (".mp4", "mp4v"), INFRARED: (".avi", "MJPG")}
_FRAMES_PER_SECOND = 12


def write(root: str | os.PathLike[str], config: SyntheticConfig, seed: int) -> None:
    """Renders tracklets of the first test identities as videos, and skeletons.h5 beside them.

    They are those of `generate.generate` with the same config and seed, so that a network trained
    on its training split has not seen them: `<identity>/visible/<camera>/<tracklet>.mp4` and
    `<identity>/infrared/<camera>/<tracklet>.avi`. The root appears only when everything is written;
    one that already holds these videos is left unchanged.

    Args:
      root: the folder to make.
      config: what to render.
      seed: of the random numbers.

    Raises:
      FileExistsError: the root holds something else.
      OSError: OpenCV cannot write videos here.
    """
    facts = {
        "generator": "synthetic_videos",
        "version": VERSION,
        "seed": seed,
        "config": dataclasses.asdict(config),
    }
    with new_root(pathlib.Path(root), facts) as drawn:
        if drawn is None:
            return
        tracklets = [tracklet for tracklet in plan(config, seed) if tracklet.split == "test"]
        chosen = sorted({tracklet.identity for tracklet in tracklets})[:MAX_IDENTITIES]
        tracklets = [tracklet for tracklet in tracklets if tracklet.identity in chosen]
        with new_hdf5(drawn / "skeletons.h5") as skeletons:
            for tracklet in with_progress(tracklets, len(tracklets), "rendering"):
                _write_tracklet(drawn, config, seed, tracklet, skeletons)


def _write_tracklet(
    root: pathlib.Path,
    config: SyntheticConfig,
    seed: int,
    planned: PlannedTracklet,
    skeletons: h5py.File,
) -> None:
    modality = MODALITIES[planned.modality]
    key = f"{planned.identity:04}/{modality}/{planned.camera}/walk{planned.track}"
    suffix, codec = _FORMATS[planned.modality]
    drawn = draw_tracklet(config, seed, planned)
    path = root / f"{key}{suffix}"
    path.parent.mkdir(parents=True, exist_ok=True)
    _write_video(path, codec, drawn.frames)
    for number in np.flatnonzero(drawn.detected):
        skeletons[f"{key}/{number}"] = drawn.keypoints[number]


def _write_video(path: pathlib.Path, codec: str, frames: np.ndarray) -> None:
    """Writes uint8[n, H, W, 3], RGB."""
    height, width = frames.shape[1:3]
    code = cv2.VideoWriter.fourcc(*codec)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, _FRAMES_PER_SECOND, (width, height))
    if not writer.isOpened():
        raise OSError(f"{path}: this build of OpenCV cannot write {codec} videos")
    for frame in frames:
        writer.write(cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    writer.release()
