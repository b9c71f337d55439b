"""Skeletons of a dataset: every source behind one interface, `read(tracklet)`.

The joints are those of COCO-17 (`data_pipelines.coco17`); x and y are pixels of the frame, (0, 0)
is the center of its upper left pixel. A frame without a skeleton is legal and reads as zeros, so
that its confidence is zero. Confidences may exceed 1, as maxima of heatmaps do.
"""

import hashlib
import itertools
import os
import pathlib
import stat
from types import TracebackType
from typing import Protocol, Self

import numpy as np
from jaxtyping import Bool, Float32

from data_pipelines import schema
from data_pipelines.coco17 import is_detected
from data_pipelines.errors import InputError
from data_pipelines.io import files
from data_pipelines.skeletons import formats
from data_pipelines.skeletons.keys import key_of

__all__ = [
    "Keypoints",
    "find_keypoints",
    "fingerprint",
    "key_of",
    "open_keypoints",
    "without_skeleton",
]

HDF5_SUFFIXES = (".h5", ".hdf5")
_FOLDERS_LOOKED_AT = 200  # for `.npy` files beside the images


class Keypoints(Protocol):
    """A source of skeletons, open between `__enter__` and `__exit__`."""

    def read(self, tracklet: schema.Tracklet) -> Float32[np.ndarray, "n 17 3"]:
        """Returns float32[n, 17, 3] for the n frames: x, y in pixels, confidence; zeros if none."""

    def example(self) -> str | None:
        """Returns how the source names one of its skeletons, for messages; None if it has none."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class NoSkeletons:
    """Skeletons of a dataset that has none."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        pass

    def read(self, tracklet: schema.Tracklet) -> Float32[np.ndarray, "n 17 3"]:
        """Returns zeros, float32[n, 17, 3]."""
        return np.zeros((len(tracklet.frames), schema.NUM_JOINTS, 3), np.float32)

    def example(self) -> None:
        """Returns None."""


def open_keypoints(path: str | os.PathLike[str]) -> Keypoints:
    """Opens a source of skeletons; use the result in a `with` statement.

    A skeleton is found by the longest end of its frame's path, of four parts or more, that the
    source has (all parts if the path has fewer). Extensions do not count, and frame 12 of
    `walk.mp4` is `walk/12` (see `key_of`). Names may be in either form of Unicode.

    Args:
      path: one of
        - an HDF5 file (.h5, .hdf5), either a tree, such as `file[pid][ir|rgb][D<camera>][<frame>]`,
          or flat, with `/` replaced by `_`; the arrays are float[17, 3];
        - a directory with one `.npy` per frame, float[17, 3], in the folders of the images or in
          folders of the same names;
        - a JSON file (.json) of COCO's keypoint results: a list of {`image_id` or `file_name`,
          `keypoints`: 51 numbers, `score`}, or an object of `images` and `annotations`. Of several
          skeletons of one frame the highest `score` is taken, or the highest mean confidence.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file has an unknown format, is broken or empty.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of skeletons")
    if path.is_dir():
        return formats.NpySkeletons(path)
    files.refuse_stand_in(path)
    if path.suffix in HDF5_SUFFIXES:
        return formats.Hdf5Skeletons(path)
    if path.suffix == ".json":
        return formats.JsonSkeletons(path)
    raise InputError(
        f"{path}: skeletons are read from HDF5 files (names that end in "
        f"{' or '.join(HDF5_SUFFIXES)}), from COCO's JSON (.json), or from a directory of .npy"
    )


def find_keypoints(root: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the path of the skeletons in a dataset's root.

    It is the first of `skeletons.h5` or `skeletons.hdf5`, the only HDF5 file, `skeletons.json`, a
    directory `skeletons`, and the root itself if there are `.npy` files in the first folders below.

    Raises:
      FileNotFoundError: there are none.
      ValueError: there are several HDF5 files with other names, or they lie outside the root.
    """
    names = sorted(os.listdir(root))
    hdf5 = [name for name in names if name.endswith(HDF5_SUFFIXES)]
    named = [name for name in hdf5 if pathlib.Path(name).stem == "skeletons"]
    found = named or hdf5
    if len(found) > 1:
        raise InputError(f"{root}: several HDF5 files ({', '.join(found)}); name the skeletons")
    if found:
        return files.resolve_inside(root, found[0])
    if "skeletons.json" in names:
        return files.resolve_inside(root, "skeletons.json")
    directory = pathlib.Path(root) / "skeletons"
    if directory.is_dir() and not directory.is_symlink():
        return directory
    folders_below = itertools.islice(os.walk(root), 1, _FOLDERS_LOOKED_AT)
    if any(name.endswith(".npy") for _, _, inside in folders_below for name in inside):
        return pathlib.Path(root)
    raise FileNotFoundError(
        f"{root}: no skeletons (skeletons.h5 or another HDF5 file, skeletons.json, a directory "
        "skeletons, or .npy files beside the images); make them with "
        "launch/footage/extract_skeletons.py, or estimate COCO-17 keypoints of every frame with "
        "any pose estimator and name the file"
    )


def no_match(source: Keypoints, frame: str) -> str:
    """Returns the words for a source without a skeleton of any frame, such as `frame`."""
    return (
        f"no frame has a skeleton; that of {frame} would be {'/'.join(key_of(frame))}, while the "
        f"source has {source.example() or 'none'}; name skeletons by their frames, one array for "
        "each, or make them with launch/footage/extract_skeletons.py"
    )


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a source's content, to distinguish sources.

    The content of a directory is the names and contents of its `.npy` files.
    """
    if not os.path.isdir(path):
        files.require_regular(path)
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    digest = hashlib.sha256()
    for folder, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(name for name in names if name.endswith(".npy")):
            file_path = os.path.join(folder, name)
            relative = os.path.relpath(file_path, path)
            if stat.S_ISLNK(os.lstat(file_path).st_mode):
                file_path = os.fspath(files.resolve_inside(path, relative))
            size = os.stat(file_path).st_size
            files.require_regular(file_path, relative)
            digest.update(f"{relative}\0{size}\0".encode(errors="surrogateescape"))
            if size <= formats.MAX_NPY_BYTES:  # a larger file is not a skeleton
                digest.update(pathlib.Path(file_path).read_bytes())
    return digest.hexdigest()


def without_skeleton(keypoints: Float32[np.ndarray, "n 17 3"]) -> Bool[np.ndarray, " n"]:
    """Returns bool[n]: in which frames of float32[n, 17, 3] no joint was detected."""
    without: np.ndarray = ~is_detected(keypoints).any(axis=-1)
    return without
