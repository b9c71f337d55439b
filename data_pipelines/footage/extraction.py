"""Estimates the skeletons of a whole dataset with a pose model, into one HDF5 file.

Estimates go to a journal, `<output>.partial`, one line for each batch. The HDF5 file, which a kill
could corrupt, is written from the journal at the end, under another name until it is complete.
"""

import base64
import collections
import concurrent.futures
import functools
import hashlib
import itertools
import os
import pathlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import h5py
import numpy as np
from jaxtyping import Float32, UInt8

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.footage import pose
from data_pipelines.footage.journal import Journal, open_journal
from data_pipelines.io import frames as frames_lib
from data_pipelines.io.files import require_regular
from data_pipelines.io.progress import with_progress
from data_pipelines.skeletons import sources
from data_pipelines.skeletons.formats import naming_hdf5, new_hdf5

_FRAMES_AT_ONCE = 64  # frames of a tracklet that are read and warped ahead


class Model(Protocol):
    """What extraction needs of a pose model: `pose.PoseModel` or `landmarks.LandmarkModel`."""

    @property
    def sha256(self) -> str:
        """SHA-256 of its file."""

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of its input."""

    @property
    def batch_size(self) -> int:
        """Images at a time, at most."""

    @property
    def udp(self) -> bool:
        """Whether it counts intervals rather than pixels."""

    @property
    def border(self) -> int:
        """How OpenCV fills what lies outside a crop."""

    def predict(
        self, images: Sequence[UInt8[np.ndarray, "H W 3"]]
    ) -> Float32[np.ndarray, "n 17 3"]:
        """Returns the joints of warped crops, in pixels of the input."""


class _Crop(NamedTuple):
    frame: str
    image: np.ndarray  # uint8[H, W, 3], the input of the model
    matrix: np.ndarray  # from the frame to the image


def extract(
    model: Model,
    source: str | os.PathLike[str],
    tracklets: Sequence[schema.Tracklet],
    output: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
) -> int:
    """Estimates the skeletons of all frames; writes the HDF5 tree that `open_keypoints` reads.

    Each frame is a crop of one person. An interrupted extraction resumes, and if the output is a
    finished file of the same model and frames, the call returns at once.

    Args:
      model: the pose model.
      source: root of the dataset.
      tracklets: whose frames; a frame may be in several.
      output: the file to write, `.h5`.
      num_workers: threads that read and warp frames; None uses one per core.

    Returns:
      The number of frames.

    Raises:
      FileNotFoundError: a frame is missing.
      ValueError: a frame is broken, two frames have one key, the model returns numbers that are not
        finite, or the output is of another model or other frames, or of another process.
    """
    output = pathlib.Path(output)
    if output.suffix not in sources.HDF5_SUFFIXES:
        raise InputError(f"{output}: the output is an HDF5 file; end its name in .h5")
    frames = dict.fromkeys(frame for tracklet in tracklets for frame in tracklet.frames)
    _require_distinct_keys(frames)
    origin = {
        "model": model.sha256,
        "input_size": "{}x{}".format(*model.input_size),
        "udp": str(model.udp),
        "frames": hashlib.sha256("\n".join(sorted(frames)).encode()).hexdigest(),
    }
    if output.exists():
        require_regular(output)
        _require_same_origin(output, _read_origin(output), origin)
        return len(frames)
    output.parent.mkdir(parents=True, exist_ok=True)
    journal_path = output.with_name(f"{output.name}.partial")
    require_same = functools.partial(_require_same_origin, journal_path, expected=origin)
    with open_journal(journal_path, origin, require_same) as journal:
        done = {frame for frames, _ in _entries(journal) for frame in frames}
        _estimate(model, source, _remaining(tracklets, done), journal, num_workers)
        _write_hdf5(journal, output, origin)
        journal_path.unlink()
    return len(frames)


def _require_distinct_keys(frames: Collection[str]) -> None:
    keys: dict[tuple[str, ...], str] = {}
    for frame in frames:
        other = keys.setdefault(sources.key_of(frame), frame)
        if other != frame:
            raise InputError(f"{frame} and {other} would share one skeleton; rename one of them")
    folders = {key[:depth] for key in {key[:-1] for key in keys} for depth in range(len(key) + 1)}
    for folder in folders & keys.keys():
        raise InputError(f"{keys[folder]}: has the name of a folder of frames; rename one of them")


def _read_origin(output: pathlib.Path) -> dict[str, Any]:
    with (
        naming_hdf5(output, "; choose another output or remove it"),
        h5py.File(output, "r") as file,
    ):
        return dict(file.attrs)


def _require_same_origin(
    path: pathlib.Path, found: Mapping[str, Any], expected: Mapping[str, str]
) -> None:
    changed = [name for name in expected if found.get(name) != expected[name]]
    if changed:
        raise InputError(
            f"{path}: holds other skeletons ({' and '.join(changed)} changed); "
            "choose another output or remove it"
        )


def _entries(journal: Journal) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields frames and their skeletons, float32[n, 17, 3]."""
    for frames, content in journal.entries():
        numbers = np.frombuffer(base64.b64decode(content), "<f4")
        yield frames, numbers.reshape(len(frames), schema.NUM_JOINTS, 3)


def _remaining(
    tracklets: Sequence[schema.Tracklet], done: set[str]
) -> list[tuple[schema.Tracklet, list[str]]]:
    """Returns the tracklets' frames that remain to be done, each frame once."""
    seen = set(done)
    remaining = []
    for tracklet in tracklets:
        fresh = [frame for frame in dict.fromkeys(tracklet.frames) if frame not in seen]
        seen.update(fresh)
        if fresh:
            remaining.append((tracklet, fresh))
    return remaining


def _estimate(
    model: Model,
    source: str | os.PathLike[str],
    remaining: Sequence[tuple[schema.Tracklet, list[str]]],
    journal: Journal,
    num_workers: int | None,
) -> None:
    workers = num_workers or os.cpu_count() or 1
    num_frames = sum(len(frames) for _, frames in remaining)
    readers = (_crops(model, source, tracklet, frames) for tracklet, frames in remaining)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        crops_ahead = _read_ahead(pool, readers, 2 * workers)
        crops = with_progress(crops_ahead, num_frames, "extracting", unit="frames")
        while batch := list(itertools.islice(crops, model.batch_size)):
            skeletons = model.predict([crop.image for crop in batch])
            for crop, skeleton in zip(batch, skeletons, strict=True):
                if not np.isfinite(skeleton).all():
                    raise InputError(f"{crop.frame}: the pose model returns non-finite numbers")
                skeleton[:] = pose.to_crop(skeleton, crop.matrix)
            content = base64.b64encode(skeletons.astype("<f4").tobytes()).decode()
            journal.append([[crop.frame for crop in batch], content])


def _read_ahead(
    pool: concurrent.futures.Executor, readers: Iterable[Iterator[_Crop]], ahead: int
) -> Iterator[_Crop]:
    """Yields what the readers yield, one reader after the other.

    The first `ahead` of them are read concurrently, a few frames at a time, so that a video is
    decoded once and never in memory as a whole.
    """

    def read_on(
        reader: Iterator[_Crop],
    ) -> tuple[Iterator[_Crop], concurrent.futures.Future[list[_Crop]]]:
        return reader, pool.submit(lambda: list(itertools.islice(reader, _FRAMES_AT_ONCE)))

    waiting = iter(readers)
    reading = collections.deque(map(read_on, itertools.islice(waiting, ahead)))
    while reading:
        reader, part = reading.popleft()
        if crops := part.result():
            reading.appendleft(read_on(reader))
            yield from crops
        else:
            reading.extend(map(read_on, itertools.islice(waiting, 1)))


def _crops(
    model: Model,
    source: str | os.PathLike[str],
    tracklet: schema.Tracklet,
    frames: Sequence[str],
) -> Iterator[_Crop]:
    """Yields some frames of a tracklet as the model takes them."""
    images = frames_lib.iterate_images(source, tracklet, frames)
    for frame, image in zip(frames, images, strict=True):
        matrix = pose.input_matrix(image.shape[:2], model.input_size, udp=model.udp)
        warped = pose.warp(image, matrix, model.input_size, model.border)
        yield _Crop(frame, warped, matrix)


def _write_hdf5(journal: Journal, output: pathlib.Path, origin: Mapping[str, str]) -> None:
    with new_hdf5(output) as file:
        file.attrs.update(origin)
        for frames, skeletons in _entries(journal):
            for frame, skeleton in zip(frames, skeletons, strict=True):
                file["/".join(sources.key_of(frame))] = skeleton
