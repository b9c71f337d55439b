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
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import tensorflow_datasets as tfds
from jaxtyping import Float32
from tensorflow_datasets.core.dataset_builder import FileReaderBuilder
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import frames as frames_lib
from data_pipelines.io.files import hold, naming_full_disk, write_json
from data_pipelines.io.progress import with_progress
from data_pipelines.io.terminal import log
from data_pipelines.records import origin, reading
from data_pipelines.records.conditions import with_conditions
from data_pipelines.skeletons import sources

TRACKLETS_PER_SHARD = 512


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
        **kwargs: Any,
    ):
        """Stores where the source is; nothing is read before `prepare`.

        Args:
          source: the dataset's root.
          keypoints: the skeletons (see `sources.open_keypoints`); None looks in the root.
          without_skeletons: pack no skeletons, for a network that uses none.
          num_workers: threads that read and check frames; None takes one a core.
          **kwargs: of `tfds.core.DatasetBuilder`, for instance `data_dir`.
        """
        self.source = pathlib.Path(source)
        self._keypoints = keypoints
        self.without_skeletons = without_skeletons
        self.num_workers = num_workers or os.cpu_count() or 1
        self._shards: dict[str, dict[str, Any]] = {}  # as `origin.json` lists them
        self.packed_frames: PackedFrames = lambda tracklet: None
        super().__init__(file_format="array_record", **kwargs)
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
        """The tracklets of every split, as the source's index and `attributes.csv` list them."""
        return with_conditions(self.source, self._read_tracklets())

    def _all_tracklets(self) -> Iterator[schema.Tracklet]:
        return itertools.chain.from_iterable(self.tracklets.values())

    @functools.cached_property
    def keypoints_path(self) -> pathlib.Path:
        """The file or directory of skeletons; raises as `sources.find_keypoints` does."""
        return pathlib.Path(self._keypoints or sources.find_keypoints(self.source))

    def open_keypoints(self) -> sources.Keypoints:
        """Opens the skeletons, for a `with` statement."""
        if self.without_skeletons:
            return _NoSkeletons()
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
                yield _record(tracklet, next(frames), source, labels={})

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
        return self.packed_frames(tracklet) or frames_lib.read_frames(self.source, tracklet)

    def footage_of(self, tracklet: schema.Tracklet) -> str:
        """Returns a hash of a tracklet's frames and the sizes of their files."""
        sizes = frames_lib.hash_sizes(self.source, [tracklet])
        return hashlib.sha256("\n".join([sizes, *tracklet.frames]).encode()).hexdigest()

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the index, the skeletons and the sizes of files, to distinguish sources."""
        digest = hashlib.sha256()
        for split, tracklets in self.tracklets.items():
            for tracklet in tracklets:
                digest.update(f"{split} {tracklet}\n".encode())
        return {
            "index": digest.hexdigest(),
            "keypoints": "none"
            if self.without_skeletons
            else sources.fingerprint(self.keypoints_path),
            "files": frames_lib.hash_sizes(self.source, self._all_tracklets()),
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
        self.info.metadata["footage"] = {
            split: [self.footage_of(tracklet) for tracklet in tracklets]
            for split, tracklets in self.tracklets.items()
        }
        for split in self.tracklets:
            names = [shard.name for shard in shards if shard.split == split]
            for name in names:
                os.replace(self.staging / name, directory / name)
            self.info.metadata[split] = _joined([facts[name]["columns"] for name in names])
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
        raise InputError(
            f"{self.keypoints_path}: no frame of the dataset has a skeleton in it, not even "
            f"{tracklet.frames[0]}; make skeletons of exactly these frames with "
            "launch/extract_skeletons.py"
        )

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
            known = _read_facts(self.staging / shard.name)
            if known and known.get("files") == frames_lib.hash_sizes(self.source, shard.tracklets):
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
        files = frames_lib.hash_sizes(self.source, shard.tracklets)
        with reading.open_writer(partial) as write:
            for tracklet in shard.tracklets:
                record = _record(tracklet, next(frames), source, shard.labels)
                write(_serialized(record))
                for name, value in _columns(tracklet, record).items():
                    columns[name].append(value)
        facts = {
            "files": files,
            "bytes": partial.stat().st_size,
            "sha256": _sha256(partial),
            "columns": dict(columns),
        }
        write_json(path.with_name(f"{shard.name}.facts.json"), facts)
        os.replace(partial, path)
        return facts

    def write_origin(self, directory: pathlib.Path) -> None:
        """Writes where the records come from, what they hold, and the checksums of all files."""
        splits = {split: _counts(self.info.metadata[split]) for split in self.tracklets}
        for split, counts in splits.items():
            missing, frames = counts["frames_without_skeleton"], counts["frames"]
            log(f"{split}: {missing} of {frames} frames have no skeleton")
        described = {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
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


class _NoSkeletons:
    """Skeletons of a dataset that has none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        pass

    def read(self, tracklet: schema.Tracklet) -> Float32[np.ndarray, "n 17 3"]:
        """Returns zeros, float32[n, 17, 3]."""
        return np.zeros((len(tracklet.frames), schema.NUM_JOINTS, 3), np.float32)


def _record(
    tracklet: schema.Tracklet,
    frames: frames_lib.Frames,
    source: sources.Keypoints,
    labels: Mapping[str, int],
) -> schema.Record:
    return schema.Record(
        frames=frames.jpegs,
        keypoints=source.read(tracklet),
        height=frames.heights,
        width=frames.widths,
        identity=tracklet.identity,
        label=labels.get(tracklet.identity, -1),
        camera=tracklet.camera,
        camera_name=tracklet.camera_name,
        modality=tracklet.modality,
        tracklet=tracklet.row,
        frame_ids=list(tracklet.frames),
        conditions=list(tracklet.conditions),
    )


def _serialized(record: schema.Record) -> bytes:
    """Returns a record as TFDS stores it, the same bytes each time, so that checksums agree."""
    example = _serializer().get_tf_example(reading.features().encode_example(record))
    return example.SerializeToString(deterministic=True)


@functools.cache
def _serializer() -> ExampleSerializer:
    return ExampleSerializer(reading.features().get_serialized_info())


def _columns(tracklet: schema.Tracklet, record: schema.Record) -> dict[str, Any]:
    """Returns the entries of `schema.Index` for a tracklet."""
    return {
        "identities": record["identity"],
        "labels": record["label"],
        "cameras": record["camera"],
        "camera_names": record["camera_name"],
        "modalities": record["modality"],
        "num_frames": len(record["frames"]),
        "rows": record["tracklet"],
        "missing_skeletons": int(sources.without_skeleton(record["keypoints"]).sum()),
        "queries": tracklet.query,
        "galleries": tracklet.gallery,
        "conditions": ";".join(record["conditions"]),
    }


def _joined(parts: Sequence[Mapping[str, list]]) -> dict[str, list]:
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def _counts(columns: Mapping[str, list]) -> dict[str, int]:
    infrared = columns["modalities"].count(schema.INFRARED)
    return {
        "tracklets": len(columns["rows"]),
        "visible_tracklets": len(columns["rows"]) - infrared,
        "infrared_tracklets": infrared,
        "frames": sum(columns["num_frames"]),
        "frames_without_skeleton": sum(columns["missing_skeletons"]),
        "identities": len(set(columns["identities"])),
        "cameras": len(set(columns["cameras"])),
    }


@contextlib.contextmanager
def _claimed(staging: pathlib.Path, source: Mapping[str, str]) -> Iterator[None]:
    """Locks the staging folder, and empties it first if it belongs to another source.

    Removes it at the end; after an error it keeps finished shards, if any, to resume from.
    """
    staging.mkdir(parents=True, exist_ok=True)
    with open(staging / "lock", "w") as lock:
        refusal = f"{staging}: another process is packing this dataset; let it finish"
        hold(lock, refusal)
        if not os.fstat(lock.fileno()).st_nlink:  # the other one has just finished and removed it
            raise InputError(refusal)
        claim = staging / "fingerprint.json"
        try:
            if not claim.exists() or json.loads(claim.read_text()) != source:
                for path in {*staging.iterdir()} - {staging / "lock"}:
                    path.unlink()
                write_json(claim, source)
            yield
        except BaseException as error:
            kept = len(list(staging.glob("*.facts.json")))
            if not kept:
                shutil.rmtree(staging)
            elif isinstance(error, KeyboardInterrupt):
                log(f"{kept} finished shards are kept: the same command resumes after them")
            raise
        shutil.rmtree(staging)


def _read_facts(shard: pathlib.Path) -> dict[str, Any] | None:
    """Returns the facts of a finished shard; None if it is not finished, or damaged."""
    path = shard.with_name(f"{shard.name}.facts.json")
    facts = json.loads(path.read_text()) if path.exists() and shard.exists() else None
    return facts if facts and facts["sha256"] == _sha256(shard) else None


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


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
    changed = changes(directory, builder)
    if changed:  # the first is enough: with another index the files differ, too
        raise InputError(
            f"{directory}: already packed from another source (its {changed[0]} differ); choose "
            f"another data_dir, or {hint}"
        )
    return directory


def changes(directory: pathlib.Path, builder: TrackletBuilder) -> list[str]:
    """Returns which parts of the fingerprint of a packed dataset are not the builder's."""
    fingerprint = builder.fingerprint
    packed = reading.open_packed(directory).metadata.get("fingerprint", {})
    return [name for name in fingerprint if packed.get(name) != fingerprint[name]]


def _fill(directory: pathlib.Path, builder: TrackletBuilder) -> None:
    # Files of other sizes invalidate only their own shards, whose facts record the sizes.
    source = {name: digest for name, digest in builder.fingerprint.items() if name != "files"}
    missing_parents = [path for path in directory.parents if not path.exists()]
    try:
        # TFDS makes a folder for downloads, although there are none, and looks for a packed copy.
        # After our part it writes its metadata and renames the folder; the lock is held until then.
        with _claimed(builder.staging, source), tempfile.TemporaryDirectory() as downloads:
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


def map_ahead(
    pool: concurrent.futures.Executor, function: Callable, items: Iterable, ahead: int
) -> Generator:
    """Yields function(item) in order, computing at most `ahead` results in advance."""
    futures: collections.deque[concurrent.futures.Future] = collections.deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
