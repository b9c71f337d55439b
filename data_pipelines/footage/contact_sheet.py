"""Contact sheets of tracklets: a row for each, its name and crops of it."""

import os
import pathlib
from collections.abc import Sequence

import cv2
import numpy as np
import simplejpeg

from data_pipelines.io.files import write_file
from data_pipelines.io.frames import encode
from data_pipelines.skeletons.sheets import evenly_spaced

ROWS = 100  # of a sheet
_CROPS = 10  # of a tracklet
_HEIGHT, _WIDTH = 96, 56  # of the box that a crop is fitted to
_GAP = 4
_NAME_WIDTH = 64
_BACKGROUND, _INK = 255, 0


def contact_sheet(
    folder: pathlib.Path, tracklets: Sequence[str], path: str | os.PathLike[str]
) -> None:
    """Writes a JPEG file with one row for each tracklet: its name and evenly spaced crops.

    Args:
      folder: of the tracklets.
      tracklets: their names, up to `ROWS`; each is a folder of `<frame number>.jpg`.
      path: of the JPEG file.
    """
    width = _NAME_WIDTH + _CROPS * (_WIDTH + _GAP)
    sheet = np.full((len(tracklets) * (_HEIGHT + _GAP), width, 3), _BACKGROUND, np.uint8)
    for row, name in enumerate(tracklets):
        top = row * (_HEIGHT + _GAP)
        origin = (_GAP, top + _HEIGHT // 2)
        cv2.putText(sheet, name, origin, cv2.FONT_HERSHEY_SIMPLEX, 0.6, [_INK] * 3, 1, cv2.LINE_AA)
        crops = sorted(os.listdir(folder / name), key=lambda file: int(file.partition(".")[0]))
        chosen = evenly_spaced(len(crops), _CROPS)
        for column, number in enumerate(chosen):
            left = _NAME_WIDTH + column * (_WIDTH + _GAP)
            picture = simplejpeg.decode_jpeg((folder / name / crops[number]).read_bytes())
            scale = min(_HEIGHT / picture.shape[0], _WIDTH / picture.shape[1])
            size = [max(round(side * scale), 1) for side in picture.shape[1::-1]]
            small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
            sheet[top : top + size[1], left : left + size[0]] = small
    write_file(path, encode(sheet))
