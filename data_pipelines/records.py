"""Packed tracklets: what a record holds, and how it is read with TFDS but without TensorFlow.

`packing` writes them. Frames stay JPEG files, so that a reader decodes only those it needs.
"""

import contextlib
import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds
from array_record.python import array_record_module

from data_pipelines import remote, schema
from data_pipelines.errors import InputError

ORIGIN = "origin.json"
# One tracklet at a time is read. JPEG files do not compress: records would shrink by 4 %, and be
# written 7 times more slowly and read 1.6 times more slowly.
_WRITER_OPTIONS = "group_size:1,uncompressed"


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
            "modality": tfds.features.Scalar(np.int32),
            "tracklet": tfds.features.Scalar(np.int32),
            "frame_ids": tfds.features.Sequence(tfds.features.Text()),
        }
    )


def open_builder(dataset_dir: str | os.PathLike[str]) -> tfds.core.DatasetBuilder:
    """Opens a packed dataset with TFDS; of one at an address, its local copy.

    Raises:
      FileNotFoundError: there is none.
      OSError, ImportError, ValueError: as `remote.local_copy` does.
    """
    if remote.is_remote(dataset_dir):
        dataset_dir = remote.local_copy(os.fspath(dataset_dir))
    if not (remote.locate(dataset_dir) / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"{dataset_dir}: not a packed dataset (no dataset_info.json); give the directory that "
            "preparing the dataset returned"
        )
    return tfds.builder_from_directory(os.fspath(dataset_dir))


def open_index(dataset_dir: str | os.PathLike[str], split: str) -> schema.Index:
    """Returns what is known of the tracklets of a split, reading no record.

    Args:
      dataset_dir: what `prepare` returned, or an address to which it was copied.
      split: "train", "test" or what else was packed.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      ValueError: there is no such split, or the records are of another version.
    """
    metadata = open_builder(dataset_dir).info.metadata
    splits = [name for name in metadata if name != "fingerprint"]
    if split not in splits:
        raise InputError(f"split {split!r}: {dataset_dir} has {' and '.join(splits)}")
    columns = dict(metadata[split])
    if columns.keys() != {field.name for field in dataclasses.fields(schema.Index)}:
        raise InputError(
            f"{dataset_dir}: packed by another version of star_jax; prepare the dataset again"
        )
    dtypes = {"identities": str, "queries": bool, "galleries": bool}
    return schema.Index(
        **{name: np.array(values, dtypes.get(name, np.int32)) for name, values in columns.items()}
    )


def require_whole(dataset_dir: pathlib.Path) -> None:
    """Compares the sizes of a packed dataset's files with those in its `origin.json`.

    Checksums would take a minute for a large dataset, and each record has one, which reading it
    checks.

    Raises:
      FileNotFoundError: there is no `origin.json`.
      ValueError: a file is missing or of another size, or `origin.json` does not list them.
    """
    again = f"remove {dataset_dir} and pack the dataset again"
    try:
        listed = json.loads((dataset_dir / ORIGIN).read_text())["files"]
        expected = {dataset_dir / name: int(facts["bytes"]) for name, facts in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{dataset_dir / ORIGIN}: does not list the records ({error!r}); {again}"
        ) from error
    for path, size in expected.items():
        found = path.stat().st_size if path.exists() else 0
        if found != size:
            raise InputError(f"{path}: is damaged, has {found} of {size} bytes; {again}")


@contextlib.contextmanager
def open_writer(path: pathlib.Path) -> Iterator[Callable[[bytes], None]]:
    """Opens a file of records; gives the function that adds one.

    Raises:
      OSError: it cannot be written, for instance as the disk is full.
    """

    def naming_failures(act: Callable[..., Any], *args: Any) -> Any:
        try:
            return act(*args)
        except RuntimeError as error:
            raise OSError(f"{path}: cannot be written ({error}); is the disk full?") from error

    writer = naming_failures(array_record_module.ArrayRecordWriter, str(path), _WRITER_OPTIONS)
    try:
        yield functools.partial(naming_failures, writer.write)
    finally:
        naming_failures(writer.close)


class _KeepJpegs(tfds.decode.SkipDecoding):
    """Hands back the JPEG files of a sequence of images."""

    def decode_batch_example_np(self, batch: Iterable[bytes]) -> list[bytes]:
        return list(batch)


class _DecodeText(tfds.decode.SkipDecoding):
    """Hands back str where TFDS gives bytes."""

    def decode_example_np(self, text: bytes) -> str:
        return text.decode()

    def decode_batch_example_np(self, batch: Iterable[bytes]) -> list[str]:
        return [text.decode() for text in batch]


class _Records(Sequence):
    """What TFDS reads; damage, of which ArrayRecord tells as a RuntimeError, is named."""

    def __init__(self, dataset_dir: str | os.PathLike[str], stored: Sequence[schema.Record]):
        self._dataset_dir = dataset_dir
        self._stored = stored

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position}: {self._dataset_dir} has {len(self)}")
        try:
            return self._stored[position]
        except RuntimeError as error:
            raise InputError(
                f"{self._dataset_dir}: record {position} cannot be read, its file is damaged "
                f"({error}); remove the directory and pack the dataset again"
            ) from error


def open_records(dataset_dir: str | os.PathLike[str], split: str) -> Sequence[schema.Record]:
    """Returns the packed tracklets of a split by position; their frames stay JPEG files.

    Item i is tracklet i of `open_index`. Any number of threads may read at once.

    Args:
      dataset_dir: what `prepare` returned, or an address to which it was copied.
      split: "train", "test" or what else was packed.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      ValueError: a record is damaged; raised as it is read.
    """
    stored = open_builder(dataset_dir).as_data_source(
        split=split,
        decoders={
            "frames": _KeepJpegs(),
            "identity": _DecodeText(),
            "frame_ids": _DecodeText(),
        },
    )
    return _Records(dataset_dir, stored)


def decode_clip(record: schema.Record, chosen: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Decodes the chosen frames of a tracklet into `frames` and returns their keypoints.

    Frames of another size are resized (area averaging to shrink, else bilinear), and x and y of
    the keypoints are scaled likewise.

    Args:
      record: a tracklet of n frames.
      chosen: int[T], which of them.
      frames: uint8[T, H, W, 3], C-contiguous, is overwritten with RGB.

    Returns:
      float32[T, 17, 3].
    """
    size = frames.shape[1:3]
    heights, widths = record["height"][chosen], record["width"][chosen]
    for frame, source, stored in zip(
        frames, chosen, zip(heights, widths, strict=True), strict=True
    ):
        jpeg = record["frames"][source]
        if stored == size:
            simplejpeg.decode_jpeg(jpeg, buffer=frame)
        else:
            shrinks = size[0] * size[1] < stored[0] * stored[1]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            cv2.resize(simplejpeg.decode_jpeg(jpeg), size[::-1], frame, interpolation=method)
    scale = np.stack([size[1] / widths, size[0] / heights, np.ones(len(chosen))], axis=-1)
    return record["keypoints"][chosen] * scale[:, None].astype(np.float32)
