"""What a record of a packed dataset holds, how it is written, and how its clips are decoded.

Frames stay JPEG files, so that a reader decodes only those it needs.
"""

import contextlib
import functools
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from jaxtyping import Float32, Int, UInt8

from data_pipelines import schema
from data_pipelines.io.stills import decode_jpeg
from data_pipelines.pixels import resize_frame, resize_keypoints
from data_pipelines.records import origin

# Tracklets are read one at a time. JPEG files barely compress: records would shrink by 4 %, and
# writing would be 7 times slower and reading 1.6 times.
_WRITER_OPTIONS = "group_size:1,uncompressed"


@functools.cache
def features() -> tfds.features.FeaturesDict:
    """Returns the TFDS description of `schema.Record`."""
    return tfds.features.FeaturesDict(
        {
            "frames": tfds.features.Sequence(tfds.features.Image(encoding_format="jpeg")),
            # encoding="bytes" stores the array as one string; the default is 20 times slower.
            "keypoints": tfds.features.Tensor(
                shape=(None, schema.NUM_JOINTS, 3), dtype=np.float32, encoding="bytes"
            ),
            "height": tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes"),
            "width": tfds.features.Tensor(shape=(None,), dtype=np.int32, encoding="bytes"),
            "identity": tfds.features.Text(),
            "label": tfds.features.Scalar(np.int32),
            "camera": tfds.features.Scalar(np.int32),
            "camera_name": tfds.features.Text(),
            "modality": tfds.features.Scalar(np.int32),
            "tracklet": tfds.features.Scalar(np.int32),
            "frame_ids": tfds.features.Sequence(tfds.features.Text()),
            "conditions": tfds.features.Sequence(tfds.features.Text()),
        }
    )


@contextlib.contextmanager
def open_writer(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Opens a file of records; yields the function that adds one.

    Raises:
      OSError: it cannot be written, for instance because the disk is full.
    """

    def naming_failures(act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except RuntimeError as error:
            raise OSError(f"{path}: cannot be written ({error}); is the disk full?") from error

    writer = naming_failures(
        array_record_module.ArrayRecordWriter, os.fsencode(path), _WRITER_OPTIONS
    )
    try:
        yield functools.partial(naming_failures, writer.write)
    finally:
        naming_failures(writer.close)


def decode_clip(
    record: schema.Record,
    chosen: Int[np.ndarray, " T"],
    frames: UInt8[np.ndarray, "T H W 3"],
    *,
    joints: Literal["relative", "pixels"] = "relative",
) -> Float32[np.ndarray, "T 17 3"]:
    """Decodes the chosen frames of a tracklet into `frames` and returns their keypoints.

    Frames of another size are resized (see `resize_frame`).

    Args:
      record: a tracklet of n frames.
      chosen: int[T], which of them.
      frames: uint8[T, H, W, 3], each of them C-contiguous, is overwritten with RGB.
      joints: as `config.model.keypoints`. "relative": the keypoints follow the pixels of a resized
        frame; "pixels": they stay in pixels of the stored frame, as in the authors' code.

    Returns:
      float32[T, 17, 3].

    Raises:
      ValueError: `joints` is neither.
      InputError: a frame is not an intact JPEG of its size. It is named by the record's `tracklet`
        and `frame_ids`.
    """
    size = frames.shape[1:3]
    heights, widths = record["height"][chosen], record["width"][chosen]
    for frame, source, stored in zip(
        frames, chosen, zip(heights, widths, strict=True), strict=True
    ):
        name = f"row {record['tracklet']}, packed frame {record['frame_ids'][source]!a}"
        buffer = frame if stored == size else None
        pixels = decode_jpeg(
            record["frames"][source], name, size=stored, buffer=buffer, remedy=origin.AGAIN
        )
        if buffer is None:
            resize_frame(pixels, frame)
    keypoints: np.ndarray = record["keypoints"][chosen]
    match joints:
        case "relative":
            return resize_keypoints(keypoints, np.stack([heights, widths], axis=-1), size)
        case "pixels":
            return keypoints
    raise ValueError(f"joints is {joints!r}: use 'relative' or 'pixels'")
