"""The file formats of skeletons: HDF5, one `.npy` per frame, and COCO's JSON.

All of them name a skeleton by a frame's path. `SkeletonFile` matches it by the longest end of the
frame's path, of four parts or more, that the file has. The folders further up may differ between
copies of a dataset; fewer parts would not distinguish the frames.
"""

import abc
import contextlib
import functools
import io
import itertools
import json
import mmap
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import h5py
import numpy as np
from jaxtyping import Float32

from data_pipelines import schema
from data_pipelines.coco17 import JOINTS, is_possible
from data_pipelines.errors import InputError
from data_pipelines.io import files
from data_pipelines.skeletons.keys import (
    MIN_PARTS,
    ends,
    folders_of,
    key_of,
    spellings,
    split,
    without_ending,
)

MAX_NPY_BYTES = 4096  # 17 x 3 numbers of 8 bytes, with ample room for the header
_SHAPE = (schema.NUM_JOINTS, 3)
Lookup = Callable[[str], np.ndarray | None]


@contextlib.contextmanager
def new_hdf5(path: str | os.PathLike[str]) -> Iterator[h5py.File]:
    """Opens a new HDF5 file in memory and writes it at the end.

    A skeleton takes 660 bytes. h5py itself can crash the process when it closes a file on a full
    disk.

    Raises:
      OSError: it cannot be written.
    """
    with h5py.File("new", "w", driver="core", backing_store=False) as file:
        yield file
        file.flush()
        content = file.id.get_file_image()
    files.write_file(path, content)


@contextlib.contextmanager
def naming_hdf5(path: str | os.PathLike[str], remedy: str = "") -> Iterator[None]:
    """Turns the errors about a file that is not HDF5, or damaged, into an InputError that names it.

    Those of the system, such as too many open files, are not changed.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise InputError(f"{path}: not a readable HDF5 file ({error}){remedy}") from error


class SkeletonFile(abc.ABC):
    """Skeletons that are found by the paths of frames (see `sources.Keypoints`)."""

    def __init__(self, path: pathlib.Path):
        self._path = path
        self._users: dict[str, str] = {}  # place in the file: folder of frames that uses it

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        return None

    @abc.abstractmethod
    def _places(self, folders: tuple[str, ...]) -> Iterator[tuple[str, Lookup]]:
        """Yields the places where skeletons of frames in these folders may be, the best first.

        A place is a name, and a function that finds a skeleton there by the name of its frame.
        """

    def example(self) -> str | None:  # noqa: B027  # formats may do without
        """Returns the name of a skeleton in the file and the shape of its array; None without."""

    def read(self, tracklet: schema.Tracklet) -> Float32[np.ndarray, "n 17 3"]:
        """Returns float32[n, 17, 3]; see `sources.Keypoints.read`.

        Raises:
          ValueError: a skeleton is not of shape [17, 3], holds impossible numbers
            (`coco17.is_possible`) or is kept in another file, or its frame is ambiguous.
        """
        keypoints = np.zeros((len(tracklet.frames), *_SHAPE), np.float32)
        named = [(position, *split(frame)) for position, frame in enumerate(tracklet.frames)]
        for container, frames in itertools.groupby(named, key=lambda item: item[1]):
            spelled = [folders_of(spelling) for spelling in spellings(container)]
            places = [place for folders in spelled for place in self._places(folders)]
            for position, _, name in frames:
                names = dict.fromkeys([*spellings(without_ending(name)), *spellings(name)])
                for (place, lookup), spelling in itertools.product(places, names):
                    if (skeleton := lookup(spelling)) is not None:
                        self._claim(place, container)
                        keypoints[position] = skeleton
                        break
        self._check(tracklet, keypoints)
        return keypoints

    def _claim(self, place: str, container: str) -> None:
        user = self._users.setdefault(place, container)
        if user != container:
            raise InputError(
                f"{self._path}: the skeletons of {place} fit frames of both {user} and "
                f"{container}; name skeletons by the frames' whole paths below the dataset's root"
            )

    def _check(self, tracklet: schema.Tracklet, keypoints: np.ndarray) -> None:
        possible = is_possible(keypoints)
        if possible.all():
            return
        frame, joint = np.argwhere(~possible)[0].tolist()
        raise InputError(
            f"{self._path}: skeleton of {tracklet.frames[frame]}: {JOINTS[joint]} is "
            f"{keypoints[frame, joint].tolist()}; expected x and y in pixels, and a confidence "
            "that is not negative"
        )


class Hdf5Skeletons(SkeletonFile):
    r"""One HDF5 file: a tree of groups like the folders, or flat with `/` replaced by `_` or `\`.

    The low-level calls of h5py are several times as fast as indexing for arrays as small as these.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        with naming_hdf5(path):
            self._file = h5py.File(path, "r")
            num_keys = len(self._file)
        if not num_keys:
            self._file.close()
            raise InputError(f"{path}: the HDF5 file is empty")

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._file.close()

    def _places(self, folders: tuple[str, ...]) -> Iterator[tuple[str, Lookup]]:
        for end in ends(folders):
            group = self._group(end)
            if group is not None:
                place = "/".join((*end, ""))
                yield place, functools.partial(self._skeleton, group, "", place)
        for separator, end in itertools.product("_\\", ends(folders)):
            prefix = "".join(f"{folder}{separator}" for folder in end)
            yield prefix, functools.partial(self._skeleton, self._file.id, prefix, prefix)

    def example(self) -> str | None:
        """Returns the name of a skeleton in the file and the shape of its array; None without."""

        def describe(name: str, node: h5py.HLObject) -> str | None:
            return f"{name}, of shape {node.shape}" if isinstance(node, h5py.Dataset) else None

        try:
            found: str | None = self._file.visititems(describe)
        except (OSError, RuntimeError, KeyError) as error:
            raise InputError(f"{self._path}: cannot be read ({error})") from error
        return found

    def _group(self, folders: tuple[str, ...]) -> h5py.h5g.GroupID | None:
        group = self._file.id
        for depth, folder in enumerate(folders, start=1):
            group = self._open(group, folder, "/".join(folders[:depth]))
            if not isinstance(group, h5py.h5g.GroupID):
                return None
        return group

    def _skeleton(
        self, group: h5py.h5g.GroupID, prefix: str, place: str, name: str
    ) -> np.ndarray | None:
        key = place + name
        node = self._open(group, prefix + name, key)
        if node is None:
            return None
        if not isinstance(node, h5py.h5d.DatasetID):
            raise self._error(key, "found a group, a skeleton is an array of shape (17, 3)")
        skeleton = np.empty(_SHAPE, np.float32)
        try:
            if node.shape != _SHAPE:
                found = f"found {node.shape}, a skeleton is an array of shape (17, 3)"
                raise self._error(key, found)
            stored = node.get_create_plist()
            if stored.get_layout() == h5py.h5d.VIRTUAL or stored.get_external_count():
                raise self._error(key, "the array is kept in another file; copy it into this one")
            if node.dtype.kind not in "fiu":
                raise self._error(key, f"found numbers of type {node.dtype}, expected floats")
            node.read(h5py.h5s.ALL, h5py.h5s.ALL, skeleton)
        except (OSError, RuntimeError, TypeError) as error:
            raise self._error(key, f"cannot be read ({error})") from error
        return skeleton

    def _open(self, group: h5py.h5g.GroupID, name: str, key: str) -> Any:
        encoded = name.encode()
        try:
            if not encoded or not group.links.exists(encoded):
                return None
            # External links would open other files.
            if group.links.get_info(encoded).type != h5py.h5l.TYPE_HARD:
                raise self._error(key, "is a link, not a skeleton")
            return h5py.h5o.open(group, encoded)
        except (OSError, RuntimeError, KeyError) as error:
            raise self._error(key, f"cannot be read ({error})") from error

    def _error(self, key: str, trouble: str) -> InputError:
        return InputError(f"{self._path}: key {key}: {trouble}")


class NpySkeletons(SkeletonFile):
    """A directory with one `.npy` per frame, beside the images or in folders of the same names."""

    def _places(self, folders: tuple[str, ...]) -> Iterator[tuple[str, Lookup]]:
        for end in ends(folders):
            if self._path.joinpath(*end).is_dir():
                place = "/".join((*end, ""))
                yield place, functools.partial(self._skeleton, place)

    def example(self) -> str | None:
        """Returns the name of a skeleton in the directory; None without."""
        found = (path.relative_to(self._path) for path in self._path.rglob("*.npy"))
        return next(map(os.fspath, found), None)

    def _skeleton(self, place: str, name: str) -> np.ndarray | None:
        try:
            path = files.resolve_inside(self._path, f"{place}{name}.npy")
        except FileNotFoundError:
            return None
        try:
            return _read_npy(path)
        except ValueError as error:
            files.refuse_stand_in(path)
            raise InputError(f"{path}: {error}") from error


def _read_npy(path: pathlib.Path) -> np.ndarray:
    size = path.stat().st_size
    if size > MAX_NPY_BYTES:
        raise InputError(f"holds {size} bytes, far more than a skeleton of shape (17, 3)")
    content = io.BytesIO(path.read_bytes())
    try:
        version = np.lib.format.read_magic(content)
        read_header = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, _, dtype = read_header(content)
    except Exception as error:  # NumPy evaluates the header as Python, which fails in many ways
        raise InputError(f"not a .npy file of version 1 or 2 ({error})") from error
    # Checked before the array is read: a header may claim any size, or pickled objects.
    if shape != _SHAPE or dtype.kind not in "fiu":
        raise InputError(f"found {dtype}{list(shape)}, a skeleton is float[17, 3]")
    content.seek(0)
    skeleton = np.load(content, allow_pickle=False)
    with np.errstate(over="ignore"):  # an overflow becomes infinity, which is refused
        numbers: np.ndarray = skeleton.astype(np.float32)
    return numbers


class JsonSkeletons(SkeletonFile):
    """COCO's JSON, as pose estimators write it: a list of skeletons, or images and annotations.

    The file's paths may also begin further up than the frames', or be those of Windows. Of several
    skeletons of one frame the one with the highest `score` is taken, or with the highest mean
    confidence if there is no score.
    """

    def __init__(self, path: pathlib.Path):
        super().__init__(path)
        content = _parse(path)
        names: dict[Any, Any] = {}
        entries = content
        if isinstance(content, dict):
            entries = content.get("annotations")
            images = content.get("images")
            if not isinstance(images, list) or not all(
                isinstance(image, dict)
                and isinstance(image.get("id"), int | str)
                and isinstance(image.get("file_name"), str)
                for image in images
            ):
                raise InputError(f"{path}: expected a list `images` of objects {{id, file_name}}")
            for image in images:
                if names.setdefault(image["id"], image["file_name"]) != image["file_name"]:
                    raise InputError(
                        f"{path}: `images` has the id {image['id']!r} twice, for "
                        f"{names[image['id']]!r} and {image['file_name']!r}; use a different one "
                        "for each"
                    )
        if not isinstance(entries, list):
            raise InputError(
                f"{path}: expected a list of {{image_id, keypoints, score}}, or an object with "
                "`images` and `annotations`"
            )
        self._skeletons: dict[tuple[str, ...], dict[str, np.ndarray]] = {}
        scores: dict[tuple[str, ...], float] = {}
        self._example: str | None = None
        for position, entry in enumerate(entries):
            try:
                name = _name_of_entry(entry, names)
                score = _score(entry)
            except ValueError as error:
                raise InputError(f"{path}: skeleton {position}: {error}") from error
            self._example = self._example or name
            key = key_of(name if "/" in name else name.replace("\\", "/"))
            if key not in scores or score > scores[key]:
                scores[key] = score
                self._skeletons.setdefault(key[:-1], {})[key[-1]] = entry["keypoints"]
        self._by_end: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
        for folders in self._skeletons:
            self._by_end.setdefault(folders[1 - MIN_PARTS :], []).append(folders)

    def _places(self, folders: tuple[str, ...]) -> Iterator[tuple[str, Lookup]]:
        for end in ends(folders):
            if end in self._skeletons:
                yield "/".join((*end, "")), self._skeletons[end].get
        longer = [
            candidate
            for candidate in self._by_end.get(folders[1 - MIN_PARTS :], ())
            if len(candidate) > len(folders) >= MIN_PARTS - 1
            and candidate[len(candidate) - len(folders) :] == folders
        ]
        if longer:
            place = " or ".join("/".join((*candidate, "")) for candidate in longer)
            yield place, functools.partial(self._only, longer)
        for start in range(max(1, len(folders) - MIN_PARTS + 2), len(folders) + 1):
            if folders[start:] in self._skeletons:
                yield "", functools.partial(self._refuse, folders, folders[start:])

    def example(self) -> str | None:
        """Returns the name of a skeleton in the file; None without."""
        return self._example

    def _only(self, candidates: Sequence[tuple[str, ...]], name: str) -> np.ndarray | None:
        found = [folders for folders in candidates if name in self._skeletons[folders]]
        if len(found) > 1:
            raise InputError(
                f"{self._path}: {name} is both in {'/'.join(found[0])} and in {'/'.join(found[1])}"
                "; name skeletons by the frames' paths below the dataset's root"
            )
        return self._skeletons[found[0]][name] if found else None

    def _refuse(self, folders: tuple[str, ...], end: tuple[str, ...], name: str) -> None:
        if name in self._skeletons[end]:
            raise InputError(
                f"{self._path}: names a frame {'/'.join((*end, name))}, which is ambiguous; "
                f"write more of the path, at least {'/'.join((*folders[1 - MIN_PARTS :], name))}"
            )


def _parse(path: pathlib.Path) -> Any:
    try:
        # The file may have hundreds of megabytes; mapping it avoids a second copy.
        with (
            open(path, "rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content,
        ):
            text = str(content, "utf-8-sig")
        return json.loads(text, object_hook=_slim)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not a JSON file ({error})") from error


def _slim(content: dict[str, Any]) -> dict[str, Any]:
    """Returns what is needed of a JSON object, with its skeleton as a small array."""
    kept: dict[str, Any] = {
        name: content[name]
        for name in ("images", "annotations", "id", "image_id", "file_name", "keypoints", "score")
        if name in content
    }
    numbers = kept.get("keypoints")
    if (
        isinstance(numbers, list)
        and len(numbers) == schema.NUM_JOINTS * 3
        and all(_is_number(number) for number in numbers)
    ):
        with np.errstate(over="ignore"):
            joints = np.reshape([*map(_to_float, numbers)], _SHAPE)
            kept["keypoints"] = np.array(joints, np.float32)
    return kept


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)  # a bool is an int, but not a number here


def _to_float(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:  # an integer larger than any float
        return float("inf")


def _name_of_entry(entry: Any, names: dict[Any, Any]) -> str:
    if not isinstance(entry, dict) or not isinstance(entry.get("keypoints"), np.ndarray):
        raise InputError(
            "expected an object whose `keypoints` are 51 numbers, x, y and confidence of 17 joints"
        )
    name = entry.get("file_name")
    if name is None:
        name = entry.get("image_id")
        if isinstance(name, int | str) and name in names:
            name = names[name]
    if isinstance(name, int):
        raise InputError(
            f"`image_id` is the number {name}, and nothing says which file that is; write an object"
            " {images: [{id, file_name}], annotations: [...]}, with the images of the file that "
            "the pose estimator was given"
        )
    if not isinstance(name, str):
        raise InputError("expected a `file_name` or an `image_id` that names the frame")
    return name


def _score(entry: dict[str, Any]) -> float:
    score = entry.get("score")
    if score is None:
        return float(entry["keypoints"][:, 2].mean())
    if not _is_number(score) or not np.isfinite(_to_float(score)):
        raise InputError(f"`score` is {str(score)[:40]}, expected a number")
    return float(score)
