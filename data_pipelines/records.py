"""Packed tracklets: one ArrayRecord a tracklet, written and read with TFDS but without TensorFlow.

`TrackletBuilder` packs what a dataset's index lists; `open_index` and `open_records` read it back.
Frames stay the JPEG files they were, so that a reader decodes only those it needs.
"""

import abc
import collections
import concurrent.futures
import contextlib
import functools
import hashlib
import itertools
import os
import pathlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import simplejpeg
import tensorflow_datasets as tfds

from data_pipelines import files, schema
from data_pipelines import keypoints as keypoints_lib
from data_pipelines.progress import with_progress

SPLITS = ("train", "test")
TRACKLETS_PER_SHARD = 512


def features() -> tfds.features.FeaturesDict:
    """Returns the TFDS description of `schema.Record`."""
    return tfds.features.FeaturesDict(
        {
            "frames": tfds.features.Sequence(tfds.features.Image(encoding_format="jpeg")),
            # encoding="bytes" stores the array as one string; the default is 20 times slower.
            "keypoints": tfds.features.Tensor(
                shape=(None, schema.NUM_JOINTS, 3), dtype=np.float32, encoding="bytes"
            ),
            "height": tfds.features.Scalar(np.int32),
            "width": tfds.features.Scalar(np.int32),
            "identity": tfds.features.Text(),
            "label": tfds.features.Scalar(np.int32),
            "camera": tfds.features.Scalar(np.int32),
            "modality": tfds.features.Scalar(np.int32),
            "tracklet": tfds.features.Scalar(np.int32),
            "frame_ids": tfds.features.Sequence(tfds.features.Text()),
        }
    )


class _LocalDatasetInfo(tfds.core.DatasetInfo):
    """Knows nothing beyond what is packed here."""

    def initialize_from_bucket(self) -> None:
        """Does not look for a packed copy online, and makes no temporary folder for it."""


class TrackletBuilder(tfds.core.ShardBasedBuilder):
    """Packs the tracklets of a dataset; a subclass says how its index is read.

    It derives from `ShardBasedBuilder` because `GeneratorBasedBuilder` sorts records in temporary
    files as soon as a split exceeds 1 GB, and needs TensorFlow for those.
    """

    def __init__(
        self,
        *,
        source: str | os.PathLike[str],
        keypoints: str | os.PathLike[str] | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ):
        """Names the source; nothing is read before `prepare`.

        Args:
          source: the dataset's root.
          keypoints: the skeletons (see `keypoints.open_keypoints`); None looks in the root.
          num_workers: threads that read and check frames; None takes one a core.
          **kwargs: of `tfds.core.DatasetBuilder`, for instance `data_dir`.
        """
        self._source = pathlib.Path(source)
        self._keypoints = keypoints
        self._num_workers = num_workers or os.cpu_count() or 1
        super().__init__(file_format="array_record", **kwargs)

    @abc.abstractmethod
    def _index_files(self) -> Sequence[str]:
        """Returns the index files, relative to the source."""

    @abc.abstractmethod
    def _read_tracklets(self) -> Mapping[str, Sequence[schema.Tracklet]]:
        """Returns the tracklets of every split, in the order in which they are packed."""

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalDatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=features(),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    @functools.cached_property
    def _keypoints_path(self) -> pathlib.Path:
        return pathlib.Path(self._keypoints or keypoints_lib.find_keypoints(self._source))

    @functools.cached_property
    def fingerprint(self) -> dict[str, str]:
        """SHA-256 of the index files and of the skeletons, which tell one source from another."""
        digest = hashlib.sha256()
        for name in self._index_files():
            content = files.read_inside(self._source, name)
            digest.update(hashlib.sha256(content).digest())
        return {
            "index": digest.hexdigest(),
            "keypoints": keypoints_lib.fingerprint(self._keypoints_path),
        }

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> dict[str, list[Callable[[], Iterator[tuple[int, schema.Record]]]]]:
        del dl_manager  # the data is licensed: users bring it, nothing is downloaded
        splits = self._read_tracklets()
        identities = sorted({tracklet.identity for tracklet in splits["train"]})
        labels = {identity: label for label, identity in enumerate(identities)}
        self._require_a_skeleton(itertools.chain.from_iterable(splits.values()))
        self.info.metadata["fingerprint"] = self.fingerprint
        shards = {}
        for split, tracklets in splits.items():
            examples = self._examples(split, tracklets, labels if split == "train" else {})
            # The shards of a split are written one after the other, from one iterator; the last
            # takes what is left and so brings it to its end.
            take_shard = functools.partial(itertools.islice, examples, TRACKLETS_PER_SHARD)
            full_shards = (len(tracklets) - 1) // TRACKLETS_PER_SHARD
            shards[split] = [take_shard] * full_shards + [functools.partial(iter, examples)]
        return shards

    def _require_a_skeleton(self, tracklets: Iterable[schema.Tracklet]) -> None:
        with keypoints_lib.open_keypoints(self._keypoints_path) as source:
            for tracklet in tracklets:
                if not keypoints_lib.without_skeleton(source.read(tracklet)).all():
                    return
        raise ValueError(
            f"{self._keypoints_path}: no frame of the dataset has a skeleton in it, not even "
            f"{tracklet.frames[0]}; estimate COCO-17 keypoints for these very frames"
        )

    def _examples(
        self, split: str, tracklets: Sequence[schema.Tracklet], labels: Mapping[str, int]
    ) -> Iterator[tuple[int, schema.Record]]:
        columns: dict[str, list[Any]] = collections.defaultdict(list)
        read = functools.partial(_read_frames, self._source)
        with (
            keypoints_lib.open_keypoints(self._keypoints_path) as source,
            concurrent.futures.ThreadPoolExecutor(self._num_workers) as pool,
        ):
            frames_ahead = _map_ahead(pool, read, tracklets, ahead=2 * self._num_workers)
            pairs = zip(tracklets, frames_ahead, strict=True)
            for tracklet, (frames, height, width) in with_progress(pairs, len(tracklets), split):
                keypoints = source.read(tracklet)
                label = labels.get(tracklet.identity, -1)
                columns["identities"].append(tracklet.identity)
                columns["labels"].append(label)
                columns["cameras"].append(tracklet.camera)
                columns["modalities"].append(tracklet.modality)
                columns["num_frames"].append(len(frames))
                columns["rows"].append(tracklet.row)
                columns["missing_skeletons"].append(
                    int(keypoints_lib.without_skeleton(keypoints).sum())
                )
                yield (
                    len(columns["rows"]) - 1,
                    schema.Record(
                        frames=frames,
                        keypoints=keypoints,
                        height=height,
                        width=width,
                        identity=tracklet.identity,
                        label=label,
                        camera=tracklet.camera,
                        modality=tracklet.modality,
                        tracklet=tracklet.row,
                        frame_ids=list(tracklet.frames),
                    ),
                )
        # TFDS writes the metadata after the records and renames the whole directory after that.
        self.info.metadata[split] = dict(columns)
        print(
            f"{split}: {sum(columns['missing_skeletons'])} of {sum(columns['num_frames'])} frames "
            "have no skeleton",
            file=sys.stderr,
        )


def prepare(builder: TrackletBuilder) -> pathlib.Path:
    """Packs a dataset, all of it or nothing; returns at once if it is already packed.

    Returns:
      The directory of the packed dataset, `<data_dir>/<name>/<version>`.

    Raises:
      ValueError: the directory holds another source, or a frame or a skeleton is broken.
      FileNotFoundError: an index file, a frame or the skeletons are missing.
    """
    directory = pathlib.Path(builder.data_dir)
    fingerprint = builder.fingerprint
    if directory.exists():
        packed = _open_builder(directory).info.metadata.get("fingerprint", {})
        changed = [name for name in fingerprint if packed.get(name) != fingerprint[name]]
        if changed:
            raise ValueError(
                f"{directory}: already packed from another source (its {' and '.join(changed)} "
                "differ); choose another data_dir or remove the directory"
            )
        return directory
    missing_parents = [path for path in directory.parents if not path.exists()]
    try:
        # TFDS makes a folder for downloads, of which there are none, and looks for a packed copy.
        with tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(
                download_dir=downloads,
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
            )
    except BaseException:
        for parent in missing_parents:  # the innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise
    return directory


def _read_frames(root: pathlib.Path, tracklet: schema.Tracklet) -> tuple[list[bytes], int, int]:
    """Returns a tracklet's JPEG files, checked by decoding them, and their height and width."""
    frames = []
    sizes = []
    for name in tracklet.frames:
        frame = files.read_inside(root, name)
        try:
            height, width, _ = simplejpeg.decode_jpeg(frame).shape
        except ValueError as error:
            raise ValueError(
                f"{name}: not an intact JPEG ({error}); replace it by a good copy"
            ) from error
        frames.append(frame)
        sizes.append((height, width))
        if sizes[-1] != sizes[0]:
            raise ValueError(
                f"{name}: {height}x{width} pixels, but {tracklet.frames[0]} of the same tracklet "
                f"has {sizes[0][0]}x{sizes[0][1]}"
            )
    return frames, *sizes[0]


def _map_ahead(
    pool: concurrent.futures.Executor, function: Callable, items: Iterable, ahead: int
) -> Iterator:
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


def _open_builder(dataset_dir: str | os.PathLike[str]) -> tfds.core.DatasetBuilder:
    if not (tfds.core.Path(dataset_dir) / "dataset_info.json").exists():
        raise FileNotFoundError(
            f"{dataset_dir}: not a packed dataset (no dataset_info.json); give the directory that "
            "preparing the dataset returned"
        )
    return tfds.builder_from_directory(os.fspath(dataset_dir))


def open_index(dataset_dir: str | os.PathLike[str], split: str) -> schema.Index:
    """Returns what is known of the tracklets of a split, reading no record.

    Args:
      dataset_dir: what `prepare` returned.
      split: "train" or "test".

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      ValueError: there is no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"split {split!r}: the splits are {' and '.join(SPLITS)}")
    columns = dict(_open_builder(dataset_dir).info.metadata[split])
    identities = np.array(columns.pop("identities"))
    return schema.Index(
        identities=identities,
        **{name: np.array(values, np.int32) for name, values in columns.items()},
    )


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


def open_records(dataset_dir: str | os.PathLike[str], split: str) -> Sequence[schema.Record]:
    """Returns the packed tracklets of a split by position; their frames stay JPEG files.

    Item i is tracklet i of `open_index`. Any number of threads may read at once.

    Args:
      dataset_dir: what `prepare` returned.
      split: "train" or "test".

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
    """
    return _open_builder(dataset_dir).as_data_source(
        split=split,
        decoders={
            "frames": _KeepJpegs(),
            "identity": _DecodeText(),
            "frame_ids": _DecodeText(),
        },
    )


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
    height, width = frames.shape[1:3]
    scale = np.array([width / record["width"], height / record["height"], 1], np.float32)
    for frame, source in zip(frames, chosen, strict=True):
        jpeg = record["frames"][source]
        if (height, width) == (record["height"], record["width"]):
            simplejpeg.decode_jpeg(jpeg, buffer=frame)
        else:
            shrinks = height * width < record["height"] * record["width"]
            method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
            cv2.resize(simplejpeg.decode_jpeg(jpeg), (width, height), frame, interpolation=method)
    return record["keypoints"][chosen] * scale
