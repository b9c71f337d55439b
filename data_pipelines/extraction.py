"""Skeletons of a whole dataset, estimated by a pose model and kept in one HDF5 file.

What is estimated goes to a journal, `<output>.partial`, a line for each batch, which a kill can
leave with half a last line and no worse. The HDF5 file, which it could ruin, is written from that
at the end, under another name until it is whole.
"""

import base64
import concurrent.futures
import dataclasses
import functools
import hashlib
import itertools
import json
import os
import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import h5py
import numpy as np

from data_pipelines import frames as frames_lib
from data_pipelines import keypoints as keypoints_lib
from data_pipelines import pose, schema
from data_pipelines.files import hold
from data_pipelines.packing import map_ahead
from data_pipelines.progress import with_progress

_FRAMES_AT_ONCE = 64  # are read and warped as one piece of work


class _Crop(NamedTuple):
    frame: str
    image: np.ndarray  # uint8[H, W, 3], as the model wants it
    matrix: np.ndarray  # from the frame to the image


def extract(
    model: pose.PoseModel,
    source: str | os.PathLike[str],
    tracklets: Sequence[schema.Tracklet],
    output: str | os.PathLike[str],
    *,
    num_workers: int | None = None,
) -> int:
    """Estimates the skeletons of all frames; writes the HDF5 tree that `open_keypoints` reads.

    Each frame is a crop of one person. What an interrupted call had done is not done again, and
    over a finished file of the same model and frames the call returns at once.

    Args:
      model: the pose model.
      source: root of the dataset.
      tracklets: whose frames; a frame may be in several.
      output: the file to write, `.h5`.
      num_workers: threads that read and warp frames; None takes one a core.

    Returns:
      The number of frames.

    Raises:
      FileNotFoundError: a frame is missing.
      ValueError: a frame is broken, two frames have one key, the model returns what is not finite,
        or the output is one of another model or other frames, or of another process.
    """
    output = pathlib.Path(output)
    if output.suffix not in keypoints_lib.HDF5_SUFFIXES:
        raise ValueError(f"{output}: the output is an HDF5 file; end its name in .h5")
    frames = dict.fromkeys(frame for tracklet in tracklets for frame in tracklet.frames)
    _require_distinct_keys(frames)
    origin = {
        "model": model.sha256,
        "input_size": "{}x{}".format(*model.input_size),
        "udp": str(model.udp),
        "frames": hashlib.sha256("\n".join(sorted(frames)).encode()).hexdigest(),
    }
    if output.exists():
        with h5py.File(output, "r") as file:
            _require_same_origin(output, dict(file.attrs), origin)
        return len(frames)
    output.parent.mkdir(parents=True, exist_ok=True)
    journal_path = output.with_name(f"{output.name}.partial")
    with open(journal_path, "a+b") as journal:
        done = _take_up(journal, journal_path, origin)
        _estimate(model, source, _pieces(tracklets, done), journal, num_workers)
        _write_hdf5(journal, output, origin)
        journal_path.unlink()
    return len(frames)


def _require_distinct_keys(frames: Collection[str]) -> None:
    keys: dict[tuple[str, ...], str] = {}
    for frame in frames:
        other = keys.setdefault(keypoints_lib.key_of(frame), frame)
        if other != frame:
            raise ValueError(f"{frame} and {other} would have one skeleton; rename one of them")
    folders = {key[:depth] for key in {key[:-1] for key in keys} for depth in range(len(key) + 1)}
    for folder in folders & keys.keys():
        raise ValueError(f"{keys[folder]}: is called as a folder of frames is; rename one of them")


def _require_same_origin(
    path: pathlib.Path, found: Mapping[str, Any], expected: Mapping[str, str]
) -> None:
    changed = [name for name in expected if found.get(name) != expected[name]]
    if changed:
        raise ValueError(
            f"{path}: holds skeletons made otherwise (another {' and '.join(changed)}); "
            "choose another output or remove it"
        )


def _take_up(journal: BinaryIO, path: pathlib.Path, origin: Mapping[str, str]) -> set[str]:
    """Makes a journal this process' own; returns the frames that are done in it."""
    hold(journal, f"{path}: another process writes it; let it finish")
    journal.seek(0)
    header = journal.readline()
    if header.endswith(b"\n"):
        try:
            found = json.loads(header)
        except ValueError:
            found = None
        _require_same_origin(path, found if isinstance(found, dict) else {}, origin)
    else:
        journal.truncate(0)
        journal.write(json.dumps(origin).encode() + b"\n")
        journal.flush()
    done = set()
    whole = journal.tell()
    for frames, _ in _entries(journal):
        done.update(frames)
        whole = journal.tell()
    journal.truncate(whole)  # half a line may follow
    return done


def _entries(journal: BinaryIO) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yields frames and float32[n, 17, 3] from here to the end, or to the first broken line."""
    while (line := journal.readline()).endswith(b"\n"):
        try:
            frames, content = json.loads(line)
            numbers = np.frombuffer(base64.b64decode(content), "<f4")
            skeletons = numbers.reshape(len(frames), schema.NUM_JOINTS, 3)
        except (ValueError, TypeError):
            return
        yield frames, skeletons


def _pieces(tracklets: Sequence[schema.Tracklet], done: set[str]) -> list[schema.Tracklet]:
    """Returns what is left to do, each frame once, in tracklets that are not too long."""
    seen = set(done)
    pieces = []
    for tracklet in tracklets:
        fresh = tuple(frame for frame in dict.fromkeys(tracklet.frames) if frame not in seen)
        seen.update(fresh)
        for start in range(0, len(fresh), _FRAMES_AT_ONCE):
            frames = fresh[start : start + _FRAMES_AT_ONCE]
            pieces.append(dataclasses.replace(tracklet, frames=frames))
    return pieces


def _estimate(
    model: pose.PoseModel,
    source: str | os.PathLike[str],
    pieces: Sequence[schema.Tracklet],
    journal: BinaryIO,
    num_workers: int | None,
) -> None:
    workers = num_workers or os.cpu_count() or 1
    num_frames = sum(len(piece.frames) for piece in pieces)
    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        read = functools.partial(_read_crops, model, source)
        crops_ahead = map_ahead(pool, read, pieces, ahead=2 * workers)
        crops = with_progress(
            itertools.chain.from_iterable(crops_ahead), num_frames, "extracting", unit="frames"
        )
        while batch := list(itertools.islice(crops, model.batch_size)):
            skeletons = model.predict([crop.image for crop in batch])
            for crop, skeleton in zip(batch, skeletons, strict=True):
                if not np.isfinite(skeleton).all():
                    raise ValueError(f"{crop.frame}: the pose model returns what is not finite")
                skeleton[:] = pose.to_crop(skeleton, crop.matrix)
            content = base64.b64encode(skeletons.astype("<f4").tobytes()).decode()
            line = json.dumps([[crop.frame for crop in batch], content])
            journal.write(line.encode() + b"\n")
            journal.flush()


def _read_crops(
    model: pose.PoseModel, source: str | os.PathLike[str], tracklet: schema.Tracklet
) -> list[_Crop]:
    crops = []
    images = frames_lib.read_images(source, tracklet)
    for frame, image in zip(tracklet.frames, images, strict=True):
        matrix = pose.input_matrix(image.shape[:2], model.input_size, udp=model.udp)
        crops.append(_Crop(frame, pose.warp(image, matrix, model.input_size), matrix))
    return crops


def _write_hdf5(journal: BinaryIO, output: pathlib.Path, origin: Mapping[str, str]) -> None:
    unfinished = output.with_name(f"{output.name}.unfinished")
    journal.seek(0)
    journal.readline()
    with h5py.File(unfinished, "w") as file:
        file.attrs.update(origin)
        for frames, skeletons in _entries(journal):
            for frame, skeleton in zip(frames, skeletons, strict=True):
                file["/".join(keypoints_lib.key_of(frame))] = skeleton
    os.replace(unfinished, output)
