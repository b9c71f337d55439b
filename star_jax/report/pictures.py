"""Frames of tracklets with their skeletons drawn on, as strips and as data of a web page."""

import base64
import functools
from collections.abc import Callable

import ml_collections
import numpy as np
import simplejpeg
from jaxtyping import Float32, UInt8

from data_pipelines.records.reading import decode_clip, open_records
from data_pipelines.sampling import clips_to_embed
from data_pipelines.skeletons.drawing import resized_with_skeleton
from data_pipelines.skeletons.sheets import evenly_spaced

FRAME_HEIGHT = 160  # of drawn frames, pixels
_GAP = 4

# From the position of a tracklet to its drawn frames, uint8[T, h, w, 3].
DrawnFrames = Callable[[int], UInt8[np.ndarray, "T h w 3"]]


def open_frames(
    config: ml_collections.ConfigDict, dataset_dir: str, split: str = "test"
) -> DrawnFrames:
    """Returns a function from a tracklet's position to the frames that the network sees, drawn.

    Args:
      config: the experiment; `data` is read.
      dataset_dir: the packed dataset.
      split: one of its splits.
    """
    records = open_records(dataset_dir, split)
    length, size = config.data.clip_length, tuple(config.data.frame_size)

    @functools.lru_cache(maxsize=256)
    def drawn(position: int) -> np.ndarray:
        record = records[position]
        (chosen,) = clips_to_embed(
            len(record["frames"]), length, mode="first", sampling=config.data.sampling
        )
        frames = np.zeros((length, *size, 3), np.uint8)
        return with_skeletons(frames, decode_clip(record, chosen, frames))

    return drawn


def with_skeletons(
    frames: UInt8[np.ndarray, "T H W 3"], keypoints: Float32[np.ndarray, "T 17 3"]
) -> UInt8[np.ndarray, "T h w 3"]:
    """Returns the frames with their skeletons drawn on, resized to a height of FRAME_HEIGHT."""
    size = frames.shape[1:3]
    new = (FRAME_HEIGHT, max(1, round(size[1] * FRAME_HEIGHT / size[0])))
    pairs = zip(frames, keypoints, strict=True)
    return np.stack([resized_with_skeleton(frame, skeleton, new) for frame, skeleton in pairs])


def sheet(frames: UInt8[np.ndarray, "T h w 3"], count: int = 4) -> UInt8[np.ndarray, "H W 3"]:
    """Returns some of the frames, spread evenly, in two columns in order of time."""
    chosen = evenly_spaced(len(frames), min(count, len(frames)))
    columns = min(2, len(chosen))
    rows = []
    for start in range(0, len(chosen), columns):
        row = [*frames[chosen[start : start + columns]]]
        row += [np.zeros_like(row[0])] * (columns - len(row))
        rows.append(_joined(row, axis=1))
    return _joined(rows, axis=0)


def _joined(pictures: list[np.ndarray], axis: int) -> np.ndarray:
    """Returns pictures of one size side by side or one below the other, with black gaps."""
    shape = list(pictures[0].shape)
    shape[axis] = _GAP
    gap = np.zeros(shape, np.uint8)
    parts = [pictures[0]]
    for picture in pictures[1:]:
        parts += [gap, picture]
    return np.concatenate(parts, axis)


def data_address(picture: UInt8[np.ndarray, "H W 3"]) -> str:
    """Returns the address, `data:...`, of a picture that a page holds in itself."""
    jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(picture), 85, "RGB")
    return f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
