"""An opened dataset and its splits, read with TFDS' files but without TensorFlow."""

import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import stat
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import remote
from data_pipelines.records import copies, origin
from data_pipelines.records.reading import features
from data_pipelines.records.stored import StoredRecords

VALIDATION = "validation"  # the split of the training identities that are held out
_METADATA = "metadata.json"
_ABOUT_ALL = ("fingerprint", "footage", "synthetic")  # entries of the metadata that are no splits


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """A packed dataset, complete by its checksums and sizes; made by `open_dataset`.

    Attributes:
      address: the directory or the URL of the packed dataset, for errors and reports.
      directory: where its files are; of a dataset at a URL, its local copy.
      files: of the directory, by name.
      metadata: what packing wrote about splits and source.
    """

    address: str
    directory: pathlib.Path
    files: dict[str, origin.File]
    metadata: dict[str, Any]
    _opened: dict[tuple[str, int], "Split"] = dataclasses.field(default_factory=dict, repr=False)

    @property
    def splits(self) -> list[str]:
        """The names of the packed splits."""
        return [name for name in self.metadata if name not in _ABOUT_ALL]

    @property
    def is_synthetic(self) -> bool:
        """Whether it shows synthetic people; False if it was packed without a note."""
        return bool(self.metadata.get("synthetic"))

    @functools.cached_property
    def fingerprint(self) -> str:
        """The SHA-256 that identifies the dataset by its tracklets.

        It does not depend on where the dataset is and when it was packed.
        """
        shards = {name: file.sha256 for name, file in self.files.items() if file.split is not None}
        columns = {split: self.metadata[split] for split in self.splits}
        return hashlib.sha256(json.dumps([shards, columns]).encode()).hexdigest()

    def split(self, name: str, held_out: int = 0) -> "Split":
        """Returns a split; each is parsed once.

        Args:
          name: "train", "test" or another that was packed; "validation" for the identities that are
            held out of the training split.
          held_out: how many of the training identities seen in both modalities are held out: the
            first by the hash of their names, so that they are the same for every run. "train"
            leaves them out, and its labels are dense over the others. In "validation", labels are
            -1, and every tracklet is query and gallery.

        Raises:
          InputError: there is no such split, the dataset is damaged or of another version, or fewer
            identities are seen in both modalities.
        """
        if name not in ("train", VALIDATION):
            held_out = 0
        if (name, held_out) not in self._opened:
            opened = self._open_part(name, held_out) if held_out else self._open_stored(name)
            self._opened[name, held_out] = opened
        return self._opened[name, held_out]

    def _open_stored(self, name: str) -> "Split":
        """Returns a split as it was packed."""
        index = _read_index(self, name)
        files = {self.directory / path: file for path, file in self.files.items()}
        shards = {path: file for path, file in files.items() if file.split == name}
        return Split(self, name, index, StoredRecords(self.address, shards, index, features()))

    def _open_part(self, name: str, held_out: int) -> "Split":
        """Returns "train" without the identities that are held out, or these as "validation"."""
        whole = self.split("train")
        names = _held_out(whole.index, held_out, self.address)
        positions = np.flatnonzero(np.isin(whole.index.identities, names) == (name == VALIDATION))
        index = whole.index.of(positions)
        if name == VALIDATION:
            everyone = np.ones(len(positions), bool)
            labels = np.full(len(positions), -1, np.int32)
            index = dataclasses.replace(index, labels=labels, queries=everyone, galleries=everyone)
        else:
            labels = np.unique(index.labels, return_inverse=True)[1].astype(np.int32)
            index = dataclasses.replace(index, labels=labels)
        return Split(self, name, index, _Part(whole.records, positions, index.labels), held_out)


@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split of an opened dataset.

    Attributes:
      dataset: the dataset.
      name: of the split.
      index: what is known of its n tracklets without reading a record.
      records: its n tracklets by position, item i is that of row i of the index; their frames stay
        JPEG files. Any number of threads may read at once. A damaged record raises an InputError
        when it is read.
      held_out: how many identities of the training split it leaves out, or consists of.
    """

    dataset: Dataset
    name: str
    index: schema.Index
    records: Sequence[schema.Record]
    held_out: int = 0

    def __len__(self) -> int:
        return len(self.index.rows)


def open_dataset(dataset_dir: str | os.PathLike[str]) -> Dataset:
    """Opens a packed dataset and checks that it is complete.

    Checksums of the small files and sizes of the others are compared with `origin.json`. Checksums
    of all files would take a minute, and each record has its own, which is checked on reading.

    Args:
      dataset_dir: what `prepare` returned, or a URL to which it was copied, see `resolve`.

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
            f"{dataset_dir}: not a packed dataset (no {origin.NAME}); pass the directory that "
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
    metadata = origin.parse_object(small[_METADATA], directory / _METADATA)
    return Dataset(os.fspath(dataset_dir), directory, files, metadata)


def resolve(dataset_dir: str | os.PathLike[str]) -> str:
    """Returns the directory of a packed dataset, given the directory or one of its two parents.

    For instance, `data/people` stands for `data/people/folder/1.1.0` if that is the only packed
    dataset in it. URLs, and directories without a packed dataset, are returned as they are.

    Raises:
      InputError: there are several packed datasets in the directory.
    """
    dataset_dir = remote.expand(dataset_dir)
    path = pathlib.Path(dataset_dir)
    if remote.is_remote(dataset_dir) or (path / origin.NAME).exists():
        return os.fspath(dataset_dir)
    listings = [*path.glob(f"*/{origin.NAME}"), *path.glob(f"*/*/{origin.NAME}")]
    # Earlier versions packed in folders such as 1.1.0.incomplete.
    found = sorted(p.parent for p in listings if p.parent.name.replace(".", "").isdecimal())
    if len(found) > 1:
        raise InputError(
            f"{dataset_dir}: holds several packed datasets, {', '.join(map(str, found))}; pass one "
            "of them"
        )
    return os.fspath(found[0] if found else dataset_dir)


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


def _read_index(dataset: Dataset, split: str) -> schema.Index:
    if split == VALIDATION and split not in dataset.splits:
        raise InputError(
            f"split {split!r}: config.data.validation_identities is 0, so that no identities of "
            f"{dataset.address} are held out; train with the number to hold out"
        )
    if split not in dataset.splits:
        hint = "; to train on your own footage, pack it with --test_share or --split_file"
        found = " and ".join(dataset.splits)
        raise InputError(
            f"split {split!r}: {dataset.address} has {found}{hint * (split == 'train')}"
        )
    path, columns = dataset.directory / _METADATA, dataset.metadata[split]
    if not isinstance(columns, dict) or columns.keys() != schema.COLUMN_TYPES.keys():
        raise InputError(f"{path}: packed by another version of star_jax; {origin.AGAIN}")
    size = sum(file.records for file in dataset.files.values() if file.split == split)
    arrays = {}
    for name, values in columns.items():
        try:
            arrays[name] = _column(values, schema.COLUMN_TYPES[name], size)
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


class _Part(Sequence[schema.Record]):
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
