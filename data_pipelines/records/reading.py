"""Reads packed tracklets with TFDS but without TensorFlow, and defines what a record holds.

`packing` writes them. Frames stay JPEG files, so that a reader decodes only those it needs.
"""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_module
from jaxtyping import Float32, Int, UInt8

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import remote
from data_pipelines.io.stills import decode_jpeg
from data_pipelines.pixels import resize_frame, resize_keypoints
from data_pipelines.records import copies, origin
from data_pipelines.records.stored import StoredRecords

VALIDATION = "validation"  # the split of the training identities that are held out
_METADATA = "metadata.json"
_ABOUT_ALL = ("fingerprint", "footage", "synthetic")  # entries of the metadata that are no splits
_DTYPES = {  # of columns; others are int32
    **dict.fromkeys(("identities", "camera_names", "conditions"), str),
    **dict.fromkeys(("queries", "galleries"), bool),
}
# Tracklets are read one at a time. JPEG files hardly compress: records would shrink by 4 %, and
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


class Packed(NamedTuple):
    """An opened dataset, complete by its checksums and sizes.

    Attributes:
      directory: where it is; for a dataset at an address, its local copy.
      files: of the directory, by name.
      metadata: what the builder wrote about splits and source.
    """

    directory: pathlib.Path
    files: dict[str, origin.File]
    metadata: dict[str, Any]


def open_packed(dataset_dir: str | os.PathLike[str]) -> Packed:
    """Opens a packed dataset and checks that it is complete.

    Checksums of the small files and sizes of the others are compared with `origin.json`. Checksums
    of all files would take a minute, and each record has its own, which is checked on reading.

    Args:
      dataset_dir: what `prepare` returned, or an address to which it was copied, see `resolve`.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      ValueError: a file is missing or damaged, or was packed by a version without checksums, or
        the directory holds several packed datasets.
      OSError, ImportError: as `copies.local_copy` does.
    """
    dataset_dir = resolve(dataset_dir)
    directory = pathlib.Path(remote.locate(dataset_dir))
    again = f"remove {directory} and pack the dataset again"
    if remote.is_remote(dataset_dir):
        directory = copies.local_copy(os.fspath(dataset_dir))
        again = f"remove {directory}, a copy, and {dataset_dir} is copied again"
    listing = directory / origin.NAME
    if not listing.is_file():
        raise FileNotFoundError(
            f"{dataset_dir}: not a packed dataset (no {origin.NAME}); give the directory that "
            "preparing the dataset returned"
        )
    files = origin.parse_files(listing.read_bytes(), os.fspath(listing))
    small = {}
    for name, file in files.items():
        path = directory / name
        found = 0
        with contextlib.suppress(FileNotFoundError):
            status = path.stat()
            found = status.st_size if stat.S_ISREG(status.st_mode) else 0
        if found != file.bytes:
            raise InputError(f"{path}: is damaged, has {found} of {file.bytes} bytes; {again}")
        if file.split is None:
            small[name] = path.read_bytes()
            if hashlib.sha256(small[name]).hexdigest() != file.sha256:
                raise InputError(f"{path}: is damaged (its checksum differs); {again}")
    if _METADATA not in small:
        raise InputError(f"{listing}: does not list {_METADATA}; {again}")
    return Packed(directory, files, origin.parse_object(small[_METADATA], directory / _METADATA))


def resolve(dataset_dir: str | os.PathLike[str]) -> str:
    """Returns the directory of a packed dataset, given it or one of the two folders around it.

    For instance, `data/people` stands for `data/people/folder/1.1.0` if that is the only packed
    dataset in it. Addresses, and directories without a packed dataset, are returned as they are.

    Raises:
      InputError: there are several packed datasets in the directory.
    """
    dataset_dir = remote.expand(dataset_dir)
    path = pathlib.Path(dataset_dir)
    if remote.is_remote(dataset_dir) or (path / origin.NAME).exists():
        return os.fspath(dataset_dir)
    listings = [*path.glob(f"*/{origin.NAME}"), *path.glob(f"*/*/{origin.NAME}")]
    # TFDS packs in folders such as 1.1.0.incomplete.
    found = sorted(p.parent for p in listings if p.parent.name.replace(".", "").isdecimal())
    if len(found) > 1:
        raise InputError(
            f"{dataset_dir}: holds several packed datasets, {', '.join(map(str, found))}; give one "
            "of them"
        )
    return os.fspath(found[0] if found else dataset_dir)


def fingerprint(dataset_dir: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 that identifies a packed dataset by its tracklets.

    It does not depend on where the dataset is and when it was packed.

    Raises:
      FileNotFoundError, ValueError, OSError, ImportError: as `open_packed` does.
    """
    packed = open_packed(dataset_dir)
    shards = {name: file.sha256 for name, file in packed.files.items() if file.split is not None}
    columns = {split: packed.metadata[split] for split in _splits(packed)}
    return hashlib.sha256(json.dumps([shards, columns]).encode()).hexdigest()


def is_synthetic(dataset_dir: str | os.PathLike[str]) -> bool:
    """Returns whether a packed dataset shows drawn people; False if it was packed without a note.

    Raises:
      FileNotFoundError, ValueError, OSError, ImportError: as `open_packed` does.
    """
    return bool(open_packed(dataset_dir).metadata.get("synthetic"))


def open_index(
    dataset_dir: str | os.PathLike[str], split: str, validation_identities: int = 0
) -> schema.Index:
    """Returns what is known of the tracklets of a split, without reading a record.

    Args:
      dataset_dir: what `prepare` returned, or an address to which it was copied.
      split: "train", "test" or another that was packed; "validation" for the identities that are
        held out of the training split.
      validation_identities: how many of the training identities seen in both modalities are held
        out: the first by the hash of their names, so that they are the same for every run. "train"
        leaves them out, and its labels are dense over the others. In "validation", labels are -1,
        and every tracklet is query and gallery.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      ValueError: there is no such split, the dataset is damaged or of another version, or fewer
        identities are seen in both modalities.
    """
    return _read_part(open_packed(dataset_dir), dataset_dir, split, validation_identities)[0]


def _splits(packed: Packed) -> list[str]:
    return [name for name in packed.metadata if name not in _ABOUT_ALL]


def _read_part(
    packed: Packed, dataset_dir: str | os.PathLike[str], split: str, validation_identities: int
) -> tuple[schema.Index, Int[np.ndarray, " n"]]:
    """Returns the index of a split, and where its tracklets are in the packed split."""
    if split == VALIDATION and not validation_identities and split not in _splits(packed):
        raise InputError(
            f"split {split!r}: config.data.validation_identities is 0, so that no identities of "
            f"{dataset_dir} are held out; train with the number to hold out"
        )
    if split not in ("train", VALIDATION) or not validation_identities:
        index = _read_index(packed, dataset_dir, split)
        return index, np.arange(len(index.rows))
    index = _read_index(packed, dataset_dir, "train")
    names = _held_out(index, validation_identities, dataset_dir)
    positions = np.flatnonzero(np.isin(index.identities, names) == (split == VALIDATION))
    part = index.of(positions)
    if split == VALIDATION:
        everyone = np.ones(len(positions), bool)
        labels = np.full(len(positions), -1, np.int32)
        return dataclasses.replace(
            part, labels=labels, queries=everyone, galleries=everyone
        ), positions
    labels = np.unique(part.labels, return_inverse=True)[1].astype(np.int32)
    return dataclasses.replace(part, labels=labels), positions


def _held_out(index: schema.Index, count: int, dataset_dir: str | os.PathLike[str]) -> list[str]:
    """Returns the identities that are held out: the first ones by the hash of their names."""
    visible, infrared = (
        set(index.identities[index.modalities == modality].tolist())
        for modality in (schema.VISIBLE, schema.INFRARED)
    )
    both = sorted(visible & infrared, key=lambda name: hashlib.sha256(name.encode()).digest())
    if count > len(both):
        raise InputError(
            f"config.data.validation_identities is {count}: {dataset_dir} has {len(both)} training "
            "identities with tracklets of both modalities; use fewer"
        )
    return both[:count]


def _read_index(packed: Packed, dataset_dir: str | os.PathLike[str], split: str) -> schema.Index:
    splits = _splits(packed)
    if split not in splits:
        hint = "; to train on your own footage, pack it with --test_share or --split_file"
        raise InputError(
            f"split {split!r}: {dataset_dir} has {' and '.join(splits)}{hint * (split == 'train')}"
        )
    path, columns = packed.directory / _METADATA, packed.metadata[split]
    names = {field.name for field in dataclasses.fields(schema.Index)}
    if not isinstance(columns, dict) or columns.keys() != names:
        raise InputError(f"{path}: packed by another version of star_jax; {origin.AGAIN}")
    size = sum(file.records for file in packed.files.values() if file.split == split)
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = _column(values, _DTYPES.get(name, np.int32), size)
        except (ValueError, TypeError, OverflowError) as error:
            raise InputError(
                f"{path}: {name} of {split} does not hold {size} values of its kind; {origin.AGAIN}"
            ) from error
    most = {"labels": len(set(columns["identities"])), "modalities": len(schema.MODALITIES)}
    for name, end in most.items():
        if arrays[name].min() < -(name == "labels") or arrays[name].max() >= end:
            raise InputError(f"{path}: {name} of {split} reach beyond {end - 1}; {origin.AGAIN}")
    return schema.Index(**arrays)


def _column(values: Any, dtype: type, size: int) -> np.ndarray:
    """Returns a column of an index; raises several kinds of errors unless it has `size` values."""
    found = np.array(values)
    column: np.ndarray = found.astype(dtype)
    if found.dtype.kind != column.dtype.kind or column.shape != (size,) or (column != found).any():
        raise ValueError
    return column


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


class _Part(Sequence):
    """The records of a part of a split, with their labels in it."""

    def __init__(
        self,
        records: Sequence[schema.Record],
        positions: Int[np.ndarray, " n"],
        labels: Int[np.ndarray, " n"],
    ):
        self._records = records
        self._positions = positions.tolist()
        self._labels = labels

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position}: this part of the split has {len(self)}")
        return {**self._records[self._positions[position]], "label": self._labels[position]}


def open_records(
    dataset_dir: str | os.PathLike[str], split: str, validation_identities: int = 0
) -> Sequence[schema.Record]:
    """Returns the packed tracklets of a split by position; their frames stay JPEG files.

    Item i is tracklet i of `open_index`. Any number of threads may read at once.

    Args:
      dataset_dir: what `prepare` returned, or an address to which it was copied.
      split: see `open_index`.
      validation_identities: see `open_index`.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      ValueError: there is no such split, the dataset is damaged or of another version. A damaged
        record raises it when it is read.
    """
    packed = open_packed(dataset_dir)
    part, positions = _read_part(packed, dataset_dir, split, validation_identities)
    stored_split = "train" if split == VALIDATION and validation_identities else split
    shards = {
        packed.directory / name: file
        for name, file in packed.files.items()
        if file.split == stored_split
    }
    index = _read_index(packed, dataset_dir, stored_split)
    records = StoredRecords(dataset_dir, shards, index, features())
    return _Part(records, positions, part.labels) if validation_identities else records


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
    keypoints = record["keypoints"][chosen]
    match joints:
        case "relative":
            return resize_keypoints(keypoints, np.stack([heights, widths], axis=-1), size)
        case "pixels":
            return keypoints
    raise ValueError(f"joints is {joints!r}: use 'relative' or 'pixels'")
