"""Crops of the people that are tracked, written while their tracklets grow."""

import csv
import math
import pathlib
from collections.abc import Iterable
from typing import Self

import numpy as np
from jaxtyping import Float64, UInt8

from data_pipelines.footage.tracking import Sighting
from data_pipelines.io.frames import encode

COLUMNS = ("track", "frame", "x", "y", "width", "height", "score")
_Row = tuple[int | float, ...]  # all columns but the first


def name_of(track: int) -> str:
    """Returns the name of a track's folder."""
    return f"{track:04}"


class CropWriter:
    """Writes `<track>/<frame>.jpg` and a CSV file of the boxes, for tracklets that are long enough.

    A tracklet gets its number, counted from 1, once it is long enough; until then its crops are in
    memory, at most `min_frames - 1` of each tracklet that may go on. Use as a context manager.

    Args:
      folder: of the tracklets.
      table: the CSV file.
      min_frames: of a tracklet.
      margin: around the box on each side, as a share of its width and height.
    """

    def __init__(self, folder: pathlib.Path, table: pathlib.Path, min_frames: int, margin: float):
        self._folder, self._min_frames, self._margin = folder, min_frames, margin
        self._tracks: dict[int, int] = {}  # tracklets that are long enough, to their numbers
        self._waiting: dict[int, list[tuple[_Row, bytes]]] = {}  # rows and crops of the others
        self.tracks = self.frames = 0  # that were written
        self._table = open(table, "w", encoding="utf-8", newline="")  # noqa: SIM115
        self._rows = csv.writer(self._table, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(
        self,
        frame: int,
        image: UInt8[np.ndarray, "H W 3"],
        sightings: Iterable[Sighting],
        growing: set[int],
    ) -> None:
        """Takes the people in a frame.

        Args:
          frame: its number.
          image: uint8[H, W, 3], RGB.
          sightings: who is seen where.
          growing: the tracklets that may go on; others are ended.
        """
        for tracklet, box, score in sightings:
            row = (frame, *(round(side, 2) for side in box.tolist()), round(float(score), 4))
            jpeg = encode(crop(image, box, self._margin))
            if tracklet in self._tracks:
                self._write(self._tracks[tracklet], row, jpeg)
                continue
            waiting = self._waiting.setdefault(tracklet, [])
            waiting.append((row, jpeg))
            if len(waiting) >= self._min_frames:
                self.tracks += 1
                self._tracks[tracklet] = self.tracks
                (self._folder / name_of(self.tracks)).mkdir(parents=True)
                for part in self._waiting.pop(tracklet):
                    self._write(self.tracks, *part)
        for ended in (self._tracks.keys() | self._waiting.keys()) - growing:
            self._tracks.pop(ended, None)
            self._waiting.pop(ended, None)

    def _write(self, track: int, row: _Row, jpeg: bytes) -> None:
        (self._folder / name_of(track) / f"{row[0]}.jpg").write_bytes(jpeg)
        self._rows.writerow((name_of(track), *row))
        self.frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._table.close()


def crop(
    image: UInt8[np.ndarray, "H W 3"], box: Float64[np.ndarray, "4"], margin: float
) -> UInt8[np.ndarray, "h w 3"]:
    """Returns the pixels of a box (left, top, width, height) and its margin, within the image."""
    left, top, width, height = box.tolist()
    rows, columns = image.shape[:2]
    first_row = min(max(math.floor(top - margin * height), 0), rows - 1)
    first_column = min(max(math.floor(left - margin * width), 0), columns - 1)
    last_row = max(math.ceil(top + (1 + margin) * height), first_row + 1)
    last_column = max(math.ceil(left + (1 + margin) * width), first_column + 1)
    return image[first_row:last_row, first_column:last_column]
