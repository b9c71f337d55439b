"""The records of a packed split, which may be damaged or forged: each is checked when read."""

import dataclasses
import hashlib
import itertools
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python import array_record_data_source

from data_pipelines import schema
from data_pipelines.coco17 import is_possible
from data_pipelines.errors import InputError
from data_pipelines.pixels import MAX_PIXELS
from data_pipelines.records import origin


class _KeepJpegs:
    """Decoder of TFDS that returns a sequence of images as JPEG files, not decoded."""

    def setup(self, *, feature: Any) -> None:
        pass

    def decode_batch_example_np(self, batch: Iterable[bytes]) -> list[bytes]:
        return list(batch)


class _DecodeText:
    """Decoder of TFDS that returns str where its own returns bytes."""

    def setup(self, *, feature: Any) -> None:
        pass

    def decode_example_np(self, text: bytes) -> str:
        return text.decode()

    def decode_batch_example_np(self, batch: Iterable[bytes]) -> list[str]:
        return [text.decode() for text in batch]


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file with all of its records, for ArrayRecord."""

    filename: bytes
    take: int
    skip: int = 0

    @property
    def examples_in_shard(self) -> int:
        return self.take


class StoredRecords(Sequence[schema.Record]):
    """The records of a packed split, each checked when it is read.

    The many errors of ArrayRecord and TFDS become one, which says that a file is damaged only if
    its checksum differs.
    """

    def __init__(
        self,
        dataset_dir: str | os.PathLike[str],
        shards: Mapping[pathlib.Path, origin.File],
        index: schema.Index,
        features: tfds.features.FeaturesDict,
    ):
        """Opens no file yet.

        Args:
          dataset_dir: of the packed dataset, for errors.
          shards: the files of the split, in the order of their records.
          index: what the records must agree with.
          features: what a record holds. Not those that TFDS wrote to a file, which could name any
            Python module.
        """
        self._dataset_dir = dataset_dir
        self._shards = shards
        self._stored = array_record_data_source.ArrayRecordDataSource(
            [_Shard(os.fsencode(path), file.records) for path, file in shards.items()]
        )
        self._index = index
        self._features = features
        self._decoders = {
            "frames": _KeepJpegs(),
            **dict.fromkeys(("identity", "camera_name", "frame_ids", "conditions"), _DecodeText()),
        }

    def __len__(self) -> int:
        return len(self._stored)

    def __getitem__(self, position: Any) -> Any:
        if not 0 <= position < len(self):
            raise IndexError(f"record {position}: {self._dataset_dir} has {len(self)}")
        try:
            record = self._features.deserialize_example_np(
                self._stored[position], decoders=self._decoders
            )
        except (OSError, MemoryError):
            raise
        except Exception as error:  # ArrayRecord raises RuntimeError whatever the problem
            reason = " ".join(str(error).split())[:300]
            trouble = f"{self._dataset_dir}: record {position} cannot be read ({reason})"
            path, file = self._shard_of(position)
            with open(path, "rb") as stored:
                sha256 = hashlib.file_digest(stored, "sha256").hexdigest()
            if sha256 == file.sha256:
                raise InputError(f"{trouble}, although {path} is as it was packed") from error
            raise InputError(f"{trouble}, since {path} is damaged; {origin.AGAIN}") from error
        for name, found, expected in self._facts(record, position):
            if found != expected:
                raise InputError(
                    f"{self._dataset_dir}: record {position} has {name} {found!r:.80}, in the "
                    f"index it is {expected!s:.80}; {origin.AGAIN}"
                )
        if not _is_possible(record):
            raise InputError(
                f"{self._dataset_dir}: record {position} has frames of impossible sizes, or "
                f"impossible joints; {origin.AGAIN}"
            )
        return record

    def _shard_of(self, position: int) -> tuple[pathlib.Path, origin.File]:
        ends = itertools.accumulate(file.records for file in self._shards.values())
        return next(s for s, end in zip(self._shards.items(), ends, strict=True) if position < end)

    def _facts(self, record: schema.Record, position: int) -> Iterator[tuple[str, Any, Any]]:
        index = self._index
        yield "identity", record["identity"], index.identities[position]
        yield "label", record["label"], index.labels[position]
        yield "camera", record["camera"], index.cameras[position]
        yield "camera name", record["camera_name"], index.camera_names[position]
        yield "modality", record["modality"], index.modalities[position]
        yield "row", record["tracklet"], index.rows[position]
        yield "conditions", ";".join(record["conditions"]), index.conditions[position]
        for name in ("frames", "keypoints", "height", "width", "frame_ids"):
            yield f"{name} of length", len(record[name]), index.num_frames[position]


def _is_possible(record: schema.Record) -> bool:
    """Returns whether sizes and joints could be real; a forged record may claim anything."""
    heights, widths = record["height"].astype(np.int64), record["width"].astype(np.int64)
    sizes = (heights > 0) & (widths > 0) & (heights * widths <= MAX_PIXELS)
    return bool(sizes.all() and is_possible(record["keypoints"]).all())
