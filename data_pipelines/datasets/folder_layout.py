"""Finds the tracklets in a folder of footage, and names what is in the wrong place."""

import os
import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from data_pipelines import schema
from data_pipelines.datasets.identities import IDENTITIES
from data_pipelines.errors import InputError
from data_pipelines.io.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES
from data_pipelines.io.names import path_key
from data_pipelines.records import conditions

LAYOUT = (
    "<identity>/<visible|infrared>/<camera>/<tracklet>/<frame>.jpg (.jpeg, .png) or "
    "<identity>/<visible|infrared>/<camera>/<tracklet>.mp4 (.m4v, .mov, .avi, .mkv)"
)
TRACKS = "tracks"  # what launch/footage/tracklets.py writes about its tracklets
RESERVED = ("skeletons", TRACKS)  # folders in the root that are not identities
_UNREAD_SUFFIXES = (  # footage that is not read
    *(".bmp", ".gif", ".heic", ".jp2", ".pgm", ".ppm", ".tif", ".tiff", ".webp"),
    *(".3gp", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
_SKELETON_SUFFIXES = (".h5", ".hdf5", ".json", ".npy")


class _Entries(NamedTuple):
    folders: list[str]  # names, in natural order
    images: list[str]
    videos: list[str]


class Found(NamedTuple):
    """A tracklet of the folder.

    Attributes:
      identity: the name of the person's folder.
      modality: `schema.VISIBLE` or `schema.INFRARED`.
      camera: the name of the camera's folder.
      path: of the folder of frames, or of the video, below the root.
      images: names of the frames in natural order; empty for a video.
    """

    identity: str
    modality: int
    camera: str
    path: str
    images: list[str]


def find_tracklets(root: str | os.PathLike[str], skipped: list[str]) -> Iterator[Found]:
    """Yields the tracklets in the order of their paths; appends skipped files to `skipped`.

    Raises:
      InputError: a file or folder is in the wrong place or leads out of the root.
    """
    for identity in _folders(root, "", skipped):
        if identity in RESERVED:
            _require_nobody(root, identity)
            continue
        for modality in _folders(root, identity, skipped):
            if modality not in schema.MODALITIES:
                raise InputError(
                    f"{identity}/{modality}: the folders of an identity are visible and infrared, "
                    f"not {modality!r}; expected {LAYOUT}"
                )
            for camera in _folders(root, f"{identity}/{modality}", skipped):
                place = f"{identity}/{modality}/{camera}"
                number = schema.MODALITIES.index(modality)
                for name, images in _tracklets(root, place, skipped):
                    yield Found(identity, number, camera, f"{place}/{name}", images)


def _require_nobody(root: str | os.PathLike[str], folder: str) -> None:
    """Raises an error if a folder that is not an identity holds tracklets."""
    for modality in schema.MODALITIES:
        for path in pathlib.Path(root, folder, modality).glob("[!.]*/**/*"):
            if path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES):
                raise InputError(
                    f"{path.relative_to(root)}: is in a folder that is not an identity, since "
                    f"{' and '.join(RESERVED)} are for other files; rename the person"
                )


def is_unread_footage(path: str) -> bool:
    """Returns whether a skipped file is footage in a format that is not read."""
    return path.lower().endswith(_UNREAD_SUFFIXES) and not os.path.basename(path).startswith(".")


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Returns a key that sorts numbers within names by their value: `2` before `10`."""
    parts = re.split("([0-9]+)", name)  # text and numbers alternate
    return [int(part) if position % 2 else part for position, part in enumerate(parts)], name


def _folders(root: str | os.PathLike[str], folder: str, skipped: list[str]) -> list[str]:
    """Returns the folders in a folder that may hold no footage itself."""
    entries = _list(root, folder, skipped)
    for name in entries.images + entries.videos:
        raise InputError(f"{os.path.join(folder, name)}: is in the wrong place; expected {LAYOUT}")
    return entries.folders


def _tracklets(
    root: str | os.PathLike[str], camera: str, skipped: list[str]
) -> Iterator[tuple[str, list[str]]]:
    """Yields the tracklets of a camera's folder: a name, and the names of the images in it."""
    entries = _list(root, camera, skipped)
    if entries.images:
        raise InputError(
            f"{camera}/{entries.images[0]}: a tracklet's pictures need their own folder; "
            f"expected {LAYOUT}"
        )
    stems = {name: os.path.splitext(name)[0] for name in entries.videos}
    _require_different(camera, {name: name for name in entries.folders} | stems)
    for name in sorted(entries.folders + entries.videos, key=natural_key):
        if name in stems:
            yield name, []
            continue
        inside = _list(root, f"{camera}/{name}", skipped)
        for stray in inside.folders + inside.videos:
            raise InputError(f"{camera}/{name}/{stray}: is in the wrong place; expected {LAYOUT}")
        if not inside.images:
            raise InputError(
                f"{camera}/{name}: a tracklet without a picture ({', '.join(IMAGE_SUFFIXES)}); "
                "convert what is there, or remove the folder"
            )
        _require_different(
            f"{camera}/{name}", {image: os.path.splitext(image)[0] for image in inside.images}
        )
        yield name, inside.images


def _require_different(folder: str, stems: Mapping[str, str]) -> None:
    """Raises an error if two names share a stem, since skeletons are found by the stems."""
    names: dict[str, str] = {}
    for name, stem in stems.items():
        other = names.setdefault(path_key(stem), name)
        if other != name:
            raise InputError(
                f"{folder}: {other} and {name} differ only in their extension, in spaces at the "
                "end or in the form of Unicode; rename one"
            )


def _list(root: str | os.PathLike[str], folder: str, skipped: list[str]) -> _Entries:
    """Lists a folder in natural order; appends skipped files to `skipped`."""
    entries = _Entries([], [], [])
    real_root = os.path.realpath(root)
    with os.scandir(os.path.join(root, folder)) as scan:
        for entry in sorted(scan, key=lambda entry: natural_key(entry.name)):
            path = os.path.join(folder, entry.name)
            try:
                path.encode()
            except UnicodeEncodeError as error:
                raise InputError(
                    f"{path!a}: the name is not UTF-8; rename it, or start Python with "
                    "PYTHONUTF8=1 if that is because of the locale"
                ) from error
            if entry.is_symlink():
                target = os.path.realpath(entry.path)
                if os.path.commonpath([real_root, target]) != real_root:
                    raise InputError(
                        f"{path}: leads out of the dataset's root {root} (to {target}); put the "
                        "footage itself, not a link, below the root"
                    )
            suffix = os.path.splitext(entry.name)[1].lower()
            if entry.name.startswith("."):
                skipped.append(path)
            elif entry.is_dir():
                entries.folders.append(entry.name)
            elif suffix in IMAGE_SUFFIXES:
                entries.images.append(entry.name)
            elif suffix in VIDEO_SUFFIXES:
                entries.videos.append(entry.name)
            elif suffix not in _SKELETON_SUFFIXES and path not in (conditions.NAME, IDENTITIES):
                skipped.append(path)
    return entries
