"""Skeletons of a dataset: every source behind one interface, `read(tracklet)`.

The joints are those of COCO-17 (`star_jax.graphs.JOINTS`). A frame without a skeleton is legal and
reads as zeros, so that its confidence is zero.
"""

import hashlib
import os
import pathlib
from types import TracebackType
from typing import Protocol, Self

import h5py
import numpy as np

from data_pipelines import files, schema

HDF5_SUFFIXES = (".h5", ".hdf5")


class Keypoints(Protocol):
    """A source of skeletons, open between `__enter__` and `__exit__`."""

    def read(self, tracklet: schema.Tracklet) -> np.ndarray:
        """Returns float32[n, 17, 3] for the n frames: x, y in pixels, confidence; zeros if none."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def open_keypoints(path: str | os.PathLike[str]) -> Keypoints:
    """Opens a source of skeletons; use the result in a `with` statement.

    Args:
      path: an HDF5 file, either the tree `file[pid][ir|rgb][D<camera>][<frame>] -> float[17, 3]` or
        flat, where the key is the frame's relative path with `/` replaced by `_`. The frame's key
        may end in `.jpg` or not.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is of no known format, or empty.
    """
    path = pathlib.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file of skeletons")
    if path.suffix not in HDF5_SUFFIXES:
        raise ValueError(
            f"{path}: skeletons are read from HDF5 files, whose names end in "
            f"{' or '.join(HDF5_SUFFIXES)}"
        )
    return Hdf5Keypoints(path)


def find_keypoints(root: str | os.PathLike[str]) -> pathlib.Path:
    """Returns the skeletons that lie in a dataset's root: `skeletons.h5`, else its only HDF5 file.

    Raises:
      FileNotFoundError: there is none.
      ValueError: there are several, none of them `skeletons.h5`, or it lies outside the root.
    """
    names = sorted(name for name in os.listdir(root) if name.endswith(HDF5_SUFFIXES))
    if "skeletons.h5" in names:
        names = ["skeletons.h5"]
    if not names:
        raise FileNotFoundError(
            f"{root}: no skeletons (skeletons.h5 or another HDF5 file); put the HDF5 file that the "
            "authors of STAR publish for HITSZ-VCM there, or estimate COCO-17 keypoints of every "
            "frame with any pose estimator and name the file"
        )
    if len(names) > 1:
        raise ValueError(f"{root}: several HDF5 files ({', '.join(names)}); name the skeletons")
    return files.resolve_inside(root, names[0])


def fingerprint(path: str | os.PathLike[str]) -> str:
    """Returns the SHA-256 of a source's content, to tell one source from another."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def without_skeleton(keypoints: np.ndarray) -> np.ndarray:
    """Returns bool[n]: which frames of float32[n, 17, 3] show no joint (all confidences zero)."""
    return (keypoints[..., 2] == 0).all(axis=-1)


class Hdf5Keypoints:
    """Skeletons in one HDF5 file, as a tree or flat (see `open_keypoints`)."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        try:
            self._file = h5py.File(path, "r")
        except OSError as error:
            raise ValueError(f"{path}: not a readable HDF5 file ({error})") from error
        first_key = next(iter(self._file), None)
        if first_key is None:
            self._file.close()
            raise ValueError(f"{path}: the HDF5 file is empty")
        self._is_flat = self._file.get(first_key, getclass=True) is h5py.Dataset

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._file.close()

    def read(self, tracklet: schema.Tracklet) -> np.ndarray:
        """See `Keypoints.read`.

        Raises:
          ValueError: a skeleton is not of shape [17, 3], not finite, or kept in another file.
        """
        keypoints = np.zeros((len(tracklet.frames), schema.NUM_JOINTS, 3), np.float32)
        for position, frame in enumerate(tracklet.frames):
            skeleton = self._skeleton(frame)
            if skeleton is not None:
                keypoints[position] = skeleton
        return keypoints

    def _skeleton(self, frame: str) -> np.ndarray | None:
        # Only the last four components, <pid>/<modality>/<camera>/<frame>, count: the folders
        # above them differ from copy to copy of a dataset.
        *folders, name = frame.split("/")[-4:]
        stem = os.path.splitext(name)[0]
        group: h5py.Group = self._file
        if self._is_flat:
            prefix = "_".join(folders) + "_"
        else:
            prefix = ""
            for folder in folders:
                child = self._child(group, folder)
                if not isinstance(child, h5py.Group):
                    return None
                group = child
        for key in (prefix + stem, prefix + name):
            node = self._child(group, key)
            if node is not None:
                return self._array(node)
        return None

    def _child(self, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset | None:
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):  # external links would open other files
            raise ValueError(f"{self._path}: key {group.name}/{name} is a link, not a skeleton")
        return group[name]

    def _array(self, node: h5py.Group | h5py.Dataset) -> np.ndarray:
        key = f"{self._path}: key {node.name}"
        if not isinstance(node, h5py.Dataset) or node.shape != (schema.NUM_JOINTS, 3):
            found = node.shape if isinstance(node, h5py.Dataset) else "a group"
            raise ValueError(f"{key}: found {found}, a skeleton is an array of shape (17, 3)")
        if node.is_virtual or node.external:
            raise ValueError(f"{key}: the array is kept in another file; copy it into this one")
        if node.dtype.kind not in "fiu":
            raise ValueError(f"{key}: found numbers of type {node.dtype}, expected floats")
        skeleton = node[()].astype(np.float32)
        if not np.isfinite(skeleton).all():
            raise ValueError(f"{key}: a coordinate or confidence is not a finite number")
        return skeleton
