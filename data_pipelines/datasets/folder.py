"""Your own footage: a folder of pictures or videos, one tracklet each, and its builder.

Pictures are `<identity>/<visible|infrared>/<camera>/<tracklet>/<frame>.jpg` (.jpeg, .png), videos
are `<identity>/<visible|infrared>/<camera>/<tracklet>.mp4` (.m4v, .mov, .avi, .mkv). A tracklet
shows one person, cropped. Unknown people go under the identity `unknown`. A file `identities.csv`
in the root may name people instead, as rows of a tracklet's path and an identity. Everything is
one split, `test`, unless people are split into `train` and `test` for training.
"""

import concurrent.futures
import functools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from data_pipelines import schema
from data_pipelines.datasets import checks, splits
from data_pipelines.datasets.findings import RAISE_ERRORS, Findings
from data_pipelines.errors import InputError
from data_pipelines.footage.tracklets import IDENTITIES, IDENTITY_COLUMNS, TRACKS
from data_pipelines.io.files import resolve_inside
from data_pipelines.io.frames import IMAGE_SUFFIXES, VIDEO_SUFFIXES, count_frames, open_video
from data_pipelines.io.progress import with_progress
from data_pipelines.io.tables import read_rows
from data_pipelines.io.terminal import log
from data_pipelines.records import conditions, packing, replacing

SPLIT = "test"
LAYOUT = (
    "<identity>/<visible|infrared>/<camera>/<tracklet>/<frame>.jpg (.jpeg, .png) or "
    "<identity>/<visible|infrared>/<camera>/<tracklet>.mp4 (.m4v, .mov, .avi, .mkv)"
)
RESERVED = ("skeletons", TRACKS)  # folders in the root that are no identities
_UNREAD_SUFFIXES = (  # footage that is not read
    *(".bmp", ".gif", ".heic", ".jp2", ".pgm", ".ppm", ".tif", ".tiff", ".webp"),
    *(".3gp", ".flv", ".m2ts", ".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".webm", ".wmv"),
)
_SKELETON_SUFFIXES = (".h5", ".hdf5", ".json", ".npy")
_MAX_CAMERA = 2**31 - 1  # an int32 in records


class _Entries(NamedTuple):
    folders: list[str]  # names, in natural order
    images: list[str]
    videos: list[str]


class _Found(NamedTuple):
    identity: str
    modality: int
    camera: str
    path: str  # of the folder of frames or of the video
    images: list[str]  # names; empty for a video


def read_index(
    root: str | os.PathLike[str],
    every: int = 1,
    *,
    allow_whole_videos: bool = True,
    findings: Findings = RAISE_ERRORS,
) -> list[schema.Tracklet]:
    """Finds the tracklets of a folder.

    Pictures are not opened, but videos are decoded to count their frames. Frames are in natural
    order, 2 before 10. Cameras keep their numbers if all are different whole numbers, and are
    numbered from 1 in the order of their names otherwise. Hidden files and others that are not
    footage are skipped with a log message.

    Args:
      root: of the dataset.
      every: N takes every N-th frame of a tracklet, the first one included.
      allow_whole_videos: False refuses videos that are wider than high, which hardly show one
        person, cropped.
      findings: collects the broken videos, which are left out; by default the first one is raised.
        Footage in formats that are not read is a warning.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a file or folder is in the wrong place, leads out of the root, or is broken, or
        there is no tracklet. The message names it.
    """
    if every < 1:
        raise InputError(f"every is {every}: use 1 for every frame, 2 for every second one, ...")
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder; expected {LAYOUT} below it")
    skipped: list[str] = []
    found = _named(root, list(_find(root, skipped)))
    unread = [path for path in skipped if _is_unread_footage(path)]
    if unread:
        findings.warn(
            f"{root}: left out {len(unread)} files of footage in formats that are not read "
            f"({_examples(unread)}); convert them to .jpg, .png or .mp4"
        )
    if others := [path for path in skipped if not _is_unread_footage(path)]:
        log(f"{root}: skipped {len(others)} files that are not footage ({_examples(others)})")
    if not found:
        raise InputError(f"{root}: no tracklet; expected {LAYOUT}")
    cameras = _number_cameras({tracklet.camera for tracklet in found})
    videos = [tracklet.path for tracklet in found if not tracklet.images]
    counts = _count_frames(root, videos, findings, allow_whole_videos)
    tracklets = []
    for row, (identity, modality, camera, path, images) in enumerate(found, start=1):
        if images:
            frames = [f"{path}/{name}" for name in images]
        elif path in counts:
            frames = [f"{path}#{number}" for number in range(counts[path])]
        else:
            continue
        tracklets.append(
            schema.Tracklet(
                modality,
                identity,
                cameras[camera],
                tuple(frames[::every]),
                row,
                camera_name=camera,
            )
        )
    return tracklets


class Folder(packing.TrackletBuilder):
    """A folder of one's own footage, one record a tracklet."""

    VERSION = tfds.core.Version("1.1.0")
    RELEASE_NOTES = {"1.1.0": "Names of cameras, and conditions."}  # noqa: RUF012

    def __init__(
        self,
        *,
        every: int = 1,
        allow_whole_videos: bool = False,
        split_of: Callable[[str], str] | None = None,
        **kwargs: Any,
    ):
        """Stores where the source is; nothing is read before `prepare`.

        Args:
          every: see `read_index`.
          allow_whole_videos: likewise.
          split_of: an identity to its split; None puts everything into `test`.
          **kwargs: of `packing.TrackletBuilder`.
        """
        self._every = every
        self._allow_whole_videos = allow_whole_videos
        self._split_of = split_of
        super().__init__(**kwargs)

    def _read_tracklets(self) -> Mapping[str, Sequence[schema.Tracklet]]:
        allow = self._allow_whole_videos
        return self.split(read_index(self.source, self._every, allow_whole_videos=allow))

    def split(self, tracklets: list[schema.Tracklet]) -> dict[str, list[schema.Tracklet]]:
        """Returns the tracklets of each split; raises as `splits.split_tracklets` does."""
        if self._split_of is None:
            return {SPLIT: tracklets}
        return splits.split_tracklets(tracklets, self._split_of)


def prepare(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    without_skeletons: bool = False,
    every: int = 1,
    split_file: str | os.PathLike[str] | None = None,
    test_share: float | None = None,
    split_seed: int = 0,
    allow_whole_videos: bool = False,
    update: bool = False,
    overwrite: bool = False,
    num_workers: int | None = None,
) -> pathlib.Path:
    """Packs a folder into `<data_dir>/folder/1.1.0`, all of it or nothing.

    If the same source is already packed there, it returns at once.

    Args:
      source: the folder, laid out as `LAYOUT` says.
      data_dir: where packed datasets are kept.
      keypoints: the skeletons (see `sources.open_keypoints`); None looks in the folder. Frame 12
        of `alice/visible/1/walk.mp4` is known as `alice/visible/1/walk/12`.
      without_skeletons: pack none, for a network without guidance.
      every: N takes every N-th frame.
      split_file: a CSV file that says who is in `train` and who in `test` (see
        `splits.read_split_file`).
      test_share: the share of people in `test`, above 0 and below 1; the others are in `train`.
        Without it and without a file, everything is in `test`.
      split_seed: which people these are (see `splits.split_by_share`).
      allow_whole_videos: also pack videos that are wider than high.
      update: if another state of the folder is packed there, read only the footage that is new or
        changed, and take the rest from there.
      overwrite: replace what is packed there.
      num_workers: threads that read and check frames; None takes one a core.

    Returns:
      The directory of the packed dataset.

    Raises:
      FileNotFoundError: the folder, a frame, the skeletons or the split file are missing.
      ValueError: a file is broken or in the wrong place, the directory holds another source (and
        neither `update` nor `overwrite` is given) or lies within the folder, or a split has nobody
        with tracklets of both modalities.
    """
    if update and overwrite:
        raise InputError("update and overwrite are both given: use one of them")
    folder, target = os.path.realpath(source), os.path.realpath(data_dir)
    if os.path.commonpath([folder, target]) == folder:
        raise InputError(
            f"{data_dir}: lies within {source}, where it would be taken for footage; choose a "
            "data_dir elsewhere"
        )
    make_builder = functools.partial(
        Folder,
        source=source,
        keypoints=keypoints,
        without_skeletons=without_skeletons,
        every=every,
        allow_whole_videos=allow_whole_videos,
        split_of=_split_of(split_file, test_share, split_seed),
        num_workers=num_workers,
    )
    if update or overwrite:
        return replacing.replace(make_builder, pathlib.Path(data_dir), update=update)
    return packing.prepare(
        make_builder(data_dir=data_dir),
        hint="add what is new to it with --update, replace it with --overwrite",
    )


def check(
    source: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    without_skeletons: bool = False,
    every: int = 1,
    split_file: str | os.PathLike[str] | None = None,
    test_share: float | None = None,
    split_seed: int = 0,
    allow_whole_videos: bool = False,
    update: bool = False,
    overwrite: bool = False,
    num_workers: int | None = None,
) -> Findings:
    """Reads all that packing would read and packs nothing; see `prepare` for the arguments."""
    del update, overwrite  # nothing is written
    findings = Findings()
    with findings.catch():
        tracklets = read_index(
            source, every, allow_whole_videos=allow_whole_videos, findings=findings
        )
        builder = Folder(
            source=source,
            keypoints=keypoints,
            without_skeletons=without_skeletons,
            split_of=_split_of(split_file, test_share, split_seed),
            num_workers=num_workers,
        )
        checks.check_tracklets(
            findings, builder, builder.split(tracklets), both_modalities=False, own_cameras=False
        )
    return findings


def all_tracklets(source: str | os.PathLike[str]) -> list[schema.Tracklet]:
    """Returns the tracklets with every frame of them; raises as `read_index` does."""
    return read_index(source)


def natural_key(name: str) -> tuple[list[str | int], str]:
    """Returns a key that sorts numbers within names by their value: `2` before `10`."""
    parts = re.split("([0-9]+)", name)  # text and numbers alternate
    return [int(part) if position % 2 else part for position, part in enumerate(parts)], name


def _split_of(
    split_file: str | os.PathLike[str] | None, test_share: float | None, split_seed: int
) -> Callable[[str], str] | None:
    """Returns the function of an identity to its split; None if there are no splits."""
    if split_file is not None and test_share is not None:
        raise InputError("split_file and test_share are both given: use one of them")
    if split_seed and test_share is None:
        raise InputError(f"split_seed is {split_seed}: it needs a test_share")
    if split_file is not None:
        return splits.read_split_file(split_file)
    if test_share is None:
        return None
    if not 0 < test_share < 1:
        raise InputError(f"test_share is {test_share}: use a number above 0 and below 1")
    return functools.partial(splits.split_by_share, test_share=test_share, seed=split_seed)


def _find(root: str | os.PathLike[str], skipped: list[str]) -> Iterator[_Found]:
    """Yields the tracklets in the order of their paths; appends skipped files to `skipped`."""
    for identity in _folders(root, "", skipped):
        if identity in RESERVED:
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
                    yield _Found(identity, number, camera, f"{place}/{name}", images)


def _named(root: str | os.PathLike[str], found: list[_Found]) -> list[_Found]:
    """Returns the tracklets with the identities that `identities.csv` gives them, if it exists."""
    if not os.path.lexists(os.path.join(root, IDENTITIES)):
        return found
    paths = {tracklet.path for tracklet in found}
    names: dict[str, str] = {}
    absent = []
    for place, row in read_rows(resolve_inside(root, IDENTITIES), IDENTITY_COLUMNS):
        path, identity = row["tracklet"], row["identity"].strip()
        if path in names:
            raise InputError(f"{place}: names the tracklet {path} again; delete one of the rows")
        if not identity:
            raise InputError(f"{place}: the identity is empty; use {schema.UNKNOWN} or a name")
        names[path] = identity
        if path not in paths:
            absent.append(path)
    if absent:
        log(f"{IDENTITIES}: {len(absent)} of its tracklets do not exist ({_examples(absent)})")
    return [t._replace(identity=names.get(t.path, t.identity)) for t in found]


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
            f"{camera}/{entries.images[0]}: a tracklet's pictures need a folder of their own; "
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
        if stem in names:
            raise InputError(
                f"{folder}: {names[stem]} and {name} differ only in their extension; rename one"
            )
        names[stem] = name


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
                raise InputError(f"{path!a}: the name is not UTF-8; rename it") from error
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


def _number_cameras(names: Iterable[str]) -> dict[str, int]:
    ordered = sorted(names, key=natural_key)
    if all(re.fullmatch("[0-9]+", name) for name in ordered):
        numbers = [int(name) for name in ordered]
        if len(set(numbers)) == len(numbers) and max(numbers) <= _MAX_CAMERA:
            return dict(zip(ordered, numbers, strict=True))
    return {name: number for number, name in enumerate(ordered, start=1)}


def _count_frames(
    root: str | os.PathLike[str],
    videos: Sequence[str],
    findings: Findings,
    allow_whole_videos: bool,
) -> dict[str, int]:
    """Counts the frames of videos; leaves broken ones out if their errors are collected."""

    def count(video: str) -> int | Exception:
        try:
            if not allow_whole_videos:
                _require_one_person(root, video)
            return count_frames(root, video)
        except (ValueError, OSError) as error:
            return error

    counts = {}
    threads = os.cpu_count() or 1
    with concurrent.futures.ThreadPoolExecutor(threads) as pool:
        counted = packing.map_ahead(pool, count, videos, ahead=2 * threads)
        shown = with_progress(counted, len(videos), "counting frames")
        for video, frames in zip(videos, shown, strict=True):
            with findings.catch("the videos"):
                if isinstance(frames, Exception):
                    raise frames
                counts[video] = frames
    return counts


def _require_one_person(root: str | os.PathLike[str], video: str) -> None:
    """Raises an error if a video is wider than high, as those of whole scenes are."""
    with open_video(root, video) as (_, frames):
        for _, frame in frames:
            height, width = frame.shape[:2]
            if width > height:
                raise InputError(
                    f"{video}: {width} x {height} pixels, wider than high, as a video of a whole "
                    "scene; a tracklet shows one person, cropped. Find the people in it with "
                    "launch/tracklets.py, or pack it as it is with --allow_whole_videos"
                )
            return


def _is_unread_footage(path: str) -> bool:
    return path.lower().endswith(_UNREAD_SUFFIXES) and not os.path.basename(path).startswith(".")


def _examples(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + ", ..." * (len(paths) > 3)
