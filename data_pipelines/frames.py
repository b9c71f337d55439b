"""The frames of a tracklet, read from the files that a dataset holds."""

import os
from typing import NamedTuple

import numpy as np
import simplejpeg

from data_pipelines import files, schema


class Frames(NamedTuple):
    """The n frames of a tracklet.

    Attributes:
      jpegs: a JPEG file each.
      heights: int32[n], pixels.
      widths: int32[n].
    """

    jpegs: list[bytes]
    heights: np.ndarray
    widths: np.ndarray


def read_frames(root: str | os.PathLike[str], tracklet: schema.Tracklet) -> Frames:
    """Reads a tracklet's frames and checks each by decoding it.

    Args:
      root: of the dataset.
      tracklet: whose frames.

    Raises:
      FileNotFoundError: a frame is missing.
      ValueError: a frame is broken, or its path leads out of the root. The message names it.
    """
    jpegs = []
    sizes = []
    for name in tracklet.frames:
        jpeg = files.read_inside(root, name)
        sizes.append(_decode(jpeg, name).shape[:2])
        jpegs.append(jpeg)
    heights, widths = np.array(sizes, np.int32).T
    return Frames(jpegs, heights, widths)


def read_images(root: str | os.PathLike[str], tracklet: schema.Tracklet) -> list[np.ndarray]:
    """Decodes a tracklet's frames: uint8[H, W, 3] each, RGB; raises as `read_frames` does."""
    return [_decode(files.read_inside(root, name), name) for name in tracklet.frames]


def _decode(jpeg: bytes, name: str) -> np.ndarray:
    try:
        return simplejpeg.decode_jpeg(jpeg)
    except ValueError as error:
        raise ValueError(
            f"{name}: not an intact JPEG ({error}); replace it by a good copy"
        ) from error
