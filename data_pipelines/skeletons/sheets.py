"""Sheets of frames with their skeletons drawn on, for inspection."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
from jaxtyping import Float32, Int, UInt8

from data_pipelines import schema
from data_pipelines.io import frames as frames_lib
from data_pipelines.io.files import write_file
from data_pipelines.skeletons.drawing import resized_with_skeleton
from data_pipelines.skeletons.sources import Keypoints

TRACKLETS = 48  # that are drawn, at most
FRAMES = 8  # of each
_ROWS = 6  # tracklets on a sheet
_TILE = (240, 120)  # height and width that each frame is fitted into
_CAPTION_HEIGHT = 18
_GREY = 96


def write_sheets(
    source: str | os.PathLike[str],
    tracklets: Sequence[schema.Tracklet],
    keypoints: Keypoints,
    folder: str | os.PathLike[str],
) -> list[pathlib.Path]:
    """Writes JPEG files with a row for each of some tracklets: frames with their skeletons.

    Args:
      source: root of the dataset.
      tracklets: all of them; those that are drawn are spread evenly, as are their frames.
      keypoints: the skeletons.
      folder: for `skeletons_1.jpg` and so on; files of these names are replaced.

    Returns:
      The files.

    Raises:
      FileNotFoundError: a frame is missing.
      ValueError: a frame or a skeleton is broken.
    """
    chosen = evenly_spaced(len(tracklets), TRACKLETS)
    paths = []
    for number, part in enumerate(np.split(chosen, range(_ROWS, len(chosen), _ROWS)), start=1):
        rows = [_row(source, tracklets[position], keypoints) for position in part]
        paths.append(pathlib.Path(folder) / f"skeletons_{number}.jpg")
        write_picture(paths[-1], np.vstack(rows))
    return paths


def evenly_spaced(total: int, count: int) -> Int[np.ndarray, " n"]:
    """Returns `count` of `total` positions, or all if fewer: the middles of equal parts."""
    count = min(count, total)
    return ((2 * np.arange(count) + 1) * total) // (2 * count)


def write_picture(path: str | os.PathLike[str], picture: UInt8[np.ndarray, "H W 3"]) -> None:
    """Writes an RGB picture in the format of the path's ending, such as .png or .jpg."""
    suffix = pathlib.PurePath(path).suffix
    _, content = cv2.imencode(suffix, cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    write_file(path, content.tobytes())


def _row(
    source: str | os.PathLike[str], tracklet: schema.Tracklet, keypoints: Keypoints
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the name of a tracklet above its frames."""
    count = len(tracklet.frames)
    frames = [tracklet.frames[frame] for frame in evenly_spaced(count, FRAMES)]
    pictures = frames_lib.read_images(source, tracklet, frames)
    tracklet = dataclasses.replace(tracklet, frames=tuple(frames))
    tiles = np.full((FRAMES, *_TILE, 3), _GREY, np.uint8)
    for tile, picture, skeleton in zip(tiles, pictures, keypoints.read(tracklet), strict=False):
        _fit(tile, picture, skeleton)
    caption = np.zeros((_CAPTION_HEIGHT, FRAMES * _TILE[1], 3), np.uint8)
    name = f"{frames[0]} to {frames[-1]}"
    where, white = (4, _CAPTION_HEIGHT - 5), (255, 255, 255)
    cv2.putText(caption, name, where, cv2.FONT_HERSHEY_SIMPLEX, 0.4, white, 1, cv2.LINE_AA)
    return np.vstack([caption, np.hstack([*tiles])])


def _fit(
    tile: UInt8[np.ndarray, "h w 3"],
    picture: UInt8[np.ndarray, "H W 3"],
    skeleton: Float32[np.ndarray, "17 3"],
) -> None:
    """Draws a picture and its skeleton into the middle of a tile, as large as they fit."""
    scale = min(np.array(tile.shape[:2]) / picture.shape[:2])
    height, width = np.maximum(np.round(np.array(picture.shape[:2]) * scale), 1).astype(int)
    top, left = (tile.shape[0] - height) // 2, (tile.shape[1] - width) // 2
    drawn = resized_with_skeleton(picture, skeleton, (int(height), int(width)))
    tile[top : top + height, left : left + width] = drawn
