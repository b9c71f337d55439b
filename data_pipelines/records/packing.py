"""Packs tracklets, one record each, into ArrayRecord files, with TFDS but without TensorFlow.

`TrackletBuilder` packs what a dataset's index lists; `reading` reads it back.
"""

import abc
import collections
import concurrent.futures
import contextlib
import datetime
import functools
import hashlib
import itertools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import frames as frames_lib
from data_pipelines.io import remote
from data_pipelines.io.files import naming_full_disk, write_json
from data_pipelines.io.progress import map_ahead, with_progress
from data_pipelines.io.terminal import log
from data_pipelines.records import contents, origin, reading, staging
from data_pipelines.records.conditions import with_conditions
from data_pipelines.records.dataset import open_dataset
from data_pipelines.records.record import (
    checked,
    columns_of,
    counts_of,
    joined,
    make_record,
    serialized,
)
from data_pipelines.skeletons import sources

TRACKLETS_PER_SHARD = 512
OLDER = "older"  # what `change` returns for a dataset without contents


class _LocalDatasetInfo(tfds.core.DatasetInfo):
    """TFDS' description of what is packed, without what it would look up online."""

    def __init__(self, *, builder: "TrackletBuilder", **kwargs: Any):
        super().__init__(builder=builder, **kwargs)
        self._write_origin = builder.write_origin

    def initialize_from_bucket(self) -> None:
        """Does not look for a packed copy online, and makes no temporary folder for it."""

    def write_to_directory(self, dataset_info_dir: Any, all_metadata: bool = True) -> None:
        """Writes TFDS' files and their checksums, right before TFDS renames the folder."""
        with naming_full_disk(dataset_info_dir):
            super().write_to_directory(dataset_info_dir, all_metadata)
        self._write_origin(pathlib.Path(dataset_info_dir))


# A tracklet to its frames, if they are packed already.
PackedFrames = Callable[[schema.Tracklet], frames_lib.Frames | None]


class _Shard(NamedTuple):
    name: str
    split: str
    tracklets: Sequence[schema.Tracklet]
    labels: Mapping[str, int]  # of the split's identities; empty if they have none


class TrackletBuilder(FileReaderBuilder):
    """Packs the tracklets of a dataset; a subclass reads its index.

    Shards are packed in `.<version>.packing`, beside the place where the dataset will be, and kept
    there when packing is interrupted, so that the next attempt resumes after the last finished one.
    """

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        keypoints: str | os.PathLike[str] | None = None,
        without_skeletons: bool = False,
        num_workers: int | None = None,
        data_dir: str | os.PathLike[str] | None = None,
        **kwargs: Any,
    ):
        """Stores where the source is; nothing is read before `prepare`.

        Args:
          source: the dataset's root.
          keypoints: the skeletons (see `sources.open_keypoints`); None looks in the root.
          without_skeletons: pack no skeletons, for a network that uses none.
          num_workers: threads that read and check frames; None takes one a core.
          data_dir: where packed datasets are kept.
          **kwargs: of `tfds.core.DatasetBuilder`.

        Raises:
          InputError: `source` or `data_dir` is an address.
        """
        self.source = pathlib.Path(remote.local(source))
        self._keypoints = keypoints
        self.without_skeletons = without_skeletons
        self.num_workers = num_workers or os.cpu_count() or 1
        self._shards: dict[str, dict[str, Any]] = {}  # as `origin.json` lists them
        self._footage: dict[tuple[str, ...], contents.Footage] = {}  # of frames
        self.known_contents: dict[str, str] = {}  # of footage that was identified before, by stamp
        self.packed_frames: PackedFrames = lambda tracklet: None
        if data_dir is not None:  # None is TFDS's default
            data_dir = remote.local(data_dir)
        super().__init__(file_format="array_record", data_dir=data_dir, **kwargs)
        directory = pathlib.Path(self.data_dir)
        self.staging = directory.with_name(f".{directory.name}.packing")

    @abc.abstractmethod
    def _read_tracklets(self) -> Mapping[str, Sequence[schema.Tracklet]]:
        """Returns the tracklets of every split, in the order in which they are packed."""

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalDatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=reading.features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    @functools.cached_property
    def tracklets(self) -> Mapping[str, Sequence[schema.Tracklet]]:
        """The tracklets of every split, as the source's index and `attributes.csv` list them.

        Raises as `checked` and `conditions.with_conditions` do.
        """
        return with_conditions(self.source, checked(self.source, self._read_tracklets()))

    def _all_tracklets(self) -> Iterator[schema.Tracklet]:
        return itertools.chain.from_iterable(self.tracklets.values())

    @functools.cached_property
    def keypoints_path(self) -> pathlib.Path:
        """The file or directory of skeletons; raises as `sources.find_keypoints` does."""
        return pathlib.Path(self._keypoints or sources.find_keypoints(self.source))

    def open_keypoints(self) -> sources.Keypoints:
        """Opens the skeletons, for a `with` statement."""
        if self.without_skeletons:
            return sources.NoSkeletons()
        return sources.open_keypoints(self.keypoints_path)

    def read(self, tracklets: Sequence[schema.Tracklet]) -> Iterator[schema.Record]:
        """Yields tracklets as they would be packed, with label -1, without packing them.

        A few tracklets are read ahead, so that the memory does not grow with their number.

        Raises:
          FileNotFoundError: a frame or the skeletons are missing.
          InputError: a frame or a skeleton is broken, or no frame of the dataset has a skeleton.
        """
        with self.open_keypoints() as source, self._frames_of(tracklets) as frames:
            self._require_a_skeleton(source)
            for tracklet in tracklets:
                yield make_record(tracklet, next(frames), source, labels={})

    @contextlib.contextmanager
    def _frames_of(
        self, tracklets: Sequence[schema.Tracklet]
    ) -> Iterator[Iterator[frames_lib.Frames]]:
        """Reads the frames of tracklets in threads, some ahead."""
        with concurrent.futures.ThreadPoolExecutor(self.num_workers) as pool:
            ahead = map_ahead(pool, self._frames, tracklets, ahead=2 * self.num_workers)
            with contextlib.closing(ahead) as frames:
                yield frames

    def _frames(self, tracklet: schema.Tracklet) -> frames_lib.Frames:
        """Returns the frames of a tracklet, from an earlier packing if they are the same."""
        self.footage_of(tracklet)  # now that its files are read anyway
        return self.packed_frames(tracklet) or frames_lib.read_frames(self.source, tracklet)

    def footage_of(self, tracklet: schema.Tracklet) -> contents.Footage:
        """Identifies a tracklet's footage, once."""
        frames = tracklet.frames
        if frames not in self._footage:
            self._footage[frames] = contents.identify(self.source, frames, self.known_contents)
        return self._footage[frames]

    def identify_footage(self) -> None:
        """Identifies all footage, in threads."""
        new = [one for one in self._all_tracklets() if one.frames not in self._footage]
        with concurrent.futures.ThreadPoolExecutor(self.num_workers) as pool:
            found = map_ahead(pool, self.footage_of, new, ahead=4 * self.num_workers)
            collections.deque(with_progress(found, len(new), "comparing footage"), maxlen=0)

    @property
    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the index, the skeletons and the footage, to distinguish sources."""
        digest = hashlib.sha256()
        self.identify_footage()
        for tracklet in self._all_tracklets():
            digest.update(self.footage_of(tracklet).content.encode())
        return {**self.without_footage, "contents": digest.hexdigest()}

    @functools.cached_property
    def without_footage(self) -> dict[str, str]:
        """The part of `fingerprint` for which no footage is read."""
        digest = hashlib.sha256()
        for split, tracklets in self.tracklets.items():
            for tracklet in tracklets:
                digest.update(f"{split} {tracklet}\n".encode())
        return {
            "index": digest.hexdigest(),
            "keypoints": "none"
            if self.without_skeletons
            else sources.fingerprint(self.keypoints_path),
        }

    def _log_download_bytes(self) -> None:
        """Logs nothing, since nothing is downloaded."""

    _log_download_done = _log_download_bytes

    def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
        """Fills the temporary folder, which TFDS renames after adding its own files."""
        del dl_manager, download_config  # the data is licensed: users bring it
        temporary = pathlib.Path(self.data_dir)
        for stale in {*temporary.parent.glob("incomplete.*")} - {
            temporary
        }:  # left by a killed process
            shutil.rmtree(stale)
        shards = self._plan_shards()
        with self.open_keypoints() as source:
            self._require_a_skeleton(source)
            self._move_in(temporary, shards, self._pack(shards, source))

    def _move_in(
        self,
        directory: pathlib.Path,
        shards: Sequence[_Shard],
        facts: Mapping[str, Mapping[str, Any]],
    ) -> None:
        """Moves finished shards to a directory and describes them in TFDS' metadata."""
        split_infos = []
        self.info.metadata["fingerprint"] = self.fingerprint
        self.info.metadata["synthetic"] = (self.source / origin.GENERATOR).is_file()
        self.info.metadata["footage"] = contents.described(
            {split: [*map(self.footage_of, rows)] for split, rows in self.tracklets.items()}
        )
        for split in self.tracklets:
            names = [shard.name for shard in shards if shard.split == split]
            for name in names:
                os.replace(self.staging / name, directory / name)
            self.info.metadata[split] = joined([facts[name]["columns"] for name in names])
            split_infos.append(
                tfds.core.SplitInfo(
                    name=split,
                    shard_lengths=[len(facts[name]["columns"]["rows"]) for name in names],
                    num_bytes=sum(facts[name]["bytes"] for name in names),
                    filename_template=self._get_filename_template(split),
                )
            )
        self.info.set_splits(tfds.core.SplitDict(split_infos))
        self._shards = {
            shard.name: {
                "bytes": facts[shard.name]["bytes"],
                "sha256": facts[shard.name]["sha256"],
                "split": shard.split,
                "records": len(shard.tracklets),
            }
            for shard in shards
        }

    def _require_a_skeleton(self, source: sources.Keypoints) -> None:
        if self.without_skeletons:
            return
        for tracklet in self._all_tracklets():
            if not sources.without_skeleton(source.read(tracklet)).all():
                return
        raise InputError(f"{self.keypoints_path}: {sources.no_match(source, tracklet.frames[0])}")

    def _plan_shards(self) -> list[_Shard]:
        shards = []
        for split, tracklets in self.tracklets.items():
            template = self._get_filename_template(split)
            identities = sorted({tracklet.identity for tracklet in tracklets})
            labels = {identity: label for label, identity in enumerate(identities)}
            num_shards = -(-len(tracklets) // TRACKLETS_PER_SHARD)
            for number in range(num_shards):
                path = template.sharded_filepath(shard_index=number, num_shards=num_shards)
                start = number * TRACKLETS_PER_SHARD
                shards.append(
                    _Shard(
                        name=path.name,
                        split=split,
                        tracklets=tracklets[start : start + TRACKLETS_PER_SHARD],
                        labels={} if split == "test" else labels,
                    )
                )
        return shards

    def _pack(
        self, shards: Sequence[_Shard], source: sources.Keypoints
    ) -> dict[str, dict[str, Any]]:
        """Packs the shards that are not yet in the staging folder; returns the facts of all."""
        facts = {}
        for shard in shards:
            if (known := staging.read_facts(self.staging / shard.name)) is None:
                continue
            packed = known.get("footage", [])
            self.known_contents.update(packed)
            found = [self.footage_of(tracklet).content for tracklet in shard.tracklets]
            if found == [content for _, content in packed]:
                facts[shard.name] = known
        missing = [shard for shard in shards if shard.name not in facts]
        if len(missing) < len(shards):
            log(f"{len(shards) - len(missing)} of {len(shards)} shards are packed already")
        tracklets = [tracklet for shard in missing for tracklet in shard.tracklets]
        with self._frames_of(tracklets) as frames_ahead:
            frames = with_progress(frames_ahead, len(tracklets), "packing")
            for shard in missing:
                facts[shard.name] = self._write_shard(shard, frames, source)
            next(frames, None)  # there are none left; this ends the progress
        return facts

    def _write_shard(
        self,
        shard: _Shard,
        frames: Iterator[frames_lib.Frames],
        source: sources.Keypoints,
    ) -> dict[str, Any]:
        """Writes the facts of a shard, then the shard, which exists only when it is complete."""
        columns: dict[str, list[Any]] = collections.defaultdict(list)
        path = self.staging / shard.name
        partial = path.with_name(f"{shard.name}.partial")
        with reading.open_writer(partial) as write:
            for tracklet in shard.tracklets:
                record = make_record(tracklet, next(frames), source, shard.labels)
                write(serialized(record))
                for name, value in columns_of(tracklet, record).items():
                    columns[name].append(value)
        facts = {
            "footage": [self.footage_of(tracklet) for tracklet in shard.tracklets],
            "bytes": partial.stat().st_size,
            "sha256": staging.sha256(partial),
            "columns": dict(columns),
        }
        write_json(path.with_name(f"{shard.name}.facts.json"), facts)
        os.replace(partial, path)
        return facts

    def write_origin(self, directory: pathlib.Path) -> None:
        """Writes where the records come from, what they hold, and the checksums of all files."""
        splits = {split: counts_of(self.info.metadata[split]) for split in self.tracklets}
        for split, counts in splits.items():
            missing, frames = counts["frames_without_skeleton"], counts["frames"]
            log(f"{split}: {missing} of {frames} frames have no skeleton")
        described = {
            path.name: {"bytes": path.stat().st_size, "sha256": staging.sha256(path)}
            for path in sorted({*directory.iterdir()} - {directory / name for name in self._shards})
        }
        content = {
            "dataset": self.name,
            "version": str(self.version),
            "source": str(self.source.absolute()),
            "keypoints": "none" if self.without_skeletons else str(self.keypoints_path.absolute()),
            "packed": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "fingerprint": self.fingerprint,
            "splits": splits,
            "files": {**self._shards, **described},
        }
        write_json(directory / origin.NAME, origin.sealed(content))


def prepare(builder: TrackletBuilder, *, hint: str = "remove the directory") -> pathlib.Path:
    """Packs a dataset, all of it or nothing; returns at once if it is already packed.

    Interrupted packing resumes where it stopped.

    Args:
      builder: of the dataset.
      hint: what users can do if the directory holds another source.

    Returns:
      The directory of the packed dataset, `<data_dir>/<name>/<version>`. Beside the records it
      holds `origin.json`: source, counts, checksums.

    Raises:
      ValueError: the directory holds another source or is damaged, another process packs it, or a
        frame or a skeleton is broken.
      OSError: the disk is full.
      FileNotFoundError: an index file, a frame or the skeletons are missing.
    """
    directory = pathlib.Path(builder.data_dir)
    if not directory.exists():
        _fill(directory, builder)
    changed = change(directory, builder)
    if changed == OLDER:
        log(
            f"{directory}: was packed by an older version, which knew only sizes of files, so that "
            f"their content is not compared; if they have changed, {hint}"
        )
    elif changed:
        raise InputError(
            f"{directory}: already packed from another source (its {changed} differ); choose "
            f"another data_dir, or {hint}"
        )
    return directory


def change(directory: pathlib.Path, builder: TrackletBuilder) -> str:
    """Returns which part of the fingerprint of a packed dataset is not the builder's.

    It is the first of several, `OLDER` if all that is known of the footage is its sizes, and ""
    if there is none.
    """
    metadata = open_dataset(directory).metadata
    for rows in contents.read_described(metadata).values():
        builder.known_contents.update(rows)
    packed = metadata.get("fingerprint", {})
    for name, digest in builder.without_footage.items():
        if packed.get(name) != digest:
            return name
    if "contents" not in packed:
        return OLDER
    return "" if packed == builder.fingerprint else "contents"


def _fill(directory: pathlib.Path, builder: TrackletBuilder) -> None:
    # Other footage invalidates only its own shards, whose facts record it.
    source = builder.without_footage
    missing_parents = [path for path in directory.parents if not path.exists()]
    try:
        # TFDS makes a folder for downloads, although there are none, and looks for a packed copy.
        # After our part it writes its metadata and renames the folder; the lock is held until then.
        with staging.claimed(builder.staging, source), tempfile.TemporaryDirectory() as downloads:
            if not shutil.disk_usage(builder.staging).free:  # TFDS checks it, but names no path
                raise OSError(f"{builder.staging}: cannot be written, the disk is full")
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except BaseException:
        for parent in missing_parents:  # the innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
