"""Your own footage: a folder of pictures or videos, one tracklet each.

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
from collections.abc import Callable, Iterable, Sequence

from data_pipelines import schema
from data_pipelines.datasets import checks, splits
from data_pipelines.datasets.findings import RAISE_ERRORS, Findings
from data_pipelines.datasets.folder_layout import (
    LAYOUT,
    Found,
    find_tracklets,
    is_unread_footage,
    natural_key,
)
from data_pipelines.datasets.identities import read_identities_file
from data_pipelines.errors import InputError
from data_pipelines.io import remote
from data_pipelines.io.frames import count_frames, open_video
from data_pipelines.io.names import read_identities, read_name
from data_pipelines.io.progress import map_ahead, with_progress
from data_pipelines.io.terminal import log
from data_pipelines.records import packing, replacing
from data_pipelines.records.source import Source

DATASET = "folder/1.1.0"
SPLIT = "test"
_MAX_CAMERA = 2**31 - 1  # an int32 in records


def read_index(
    root: str | os.PathLike[str],
    every: int = 1,
    *,
    allow_whole_videos: bool = True,
    findings: Findings = RAISE_ERRORS,
) -> list[schema.Tracklet]:
    """Finds the tracklets of a folder.

    Pictures are not opened, but videos are decoded to count their frames. Frames are in natural
    order, 2 before 10. People and cameras have the names that `names.read_name` returns. Cameras
    keep their numbers if all are different whole numbers, and are numbered from 1 in the order of
    their names otherwise. Hidden files and others that are not footage are skipped with a log
    message.

    Args:
      root: of the dataset.
      every: N takes every N-th frame of a tracklet, the first one included.
      allow_whole_videos: False refuses videos that are wider than tall, which are unlikely to show
        a single person, cropped.
      findings: collects the broken videos, which are left out; by default the first one is raised.
        Footage in formats that are not read is a warning.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: a file or folder is in the wrong place, leads out of the root, or is broken, or
        there is no tracklet. The message names it.
    """
    if every < 1:
        raise InputError(f"every is {every}: use 1 for every frame, 2 for every second one, ...")
    root = remote.local(root)
    if not os.path.isdir(root):
        raise FileNotFoundError(f"{root}: no such folder; expected {LAYOUT} below it")
    skipped: list[str] = []
    found = list(find_tracklets(root, skipped))
    unread = [path for path in skipped if is_unread_footage(path)]
    if unread:
        findings.warn(
            f"{root}: left out {len(unread)} files of footage in formats that are not read "
            f"({_examples(unread)}); convert them to .jpg, .png or .mp4"
        )
    if others := [path for path in skipped if not is_unread_footage(path)]:
        log(f"{root}: skipped {len(others)} files that are not footage ({_examples(others)})")
    if not found:
        raise InputError(f"{root}: no tracklet; expected {LAYOUT}")
    found = _named(root, found)
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


def open_source(
    root: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    without_skeletons: bool = False,
    every: int = 1,
    split_of: Callable[[str], str] | None = None,
    allow_whole_videos: bool = False,
    num_workers: int | None = None,
    findings: Findings = RAISE_ERRORS,
) -> Source:
    """Finds the tracklets of a folder, whose frames and skeletons are read when they are needed.

    Args:
      root: the folder.
      keypoints: see `Source`.
      without_skeletons: see `Source`.
      every: see `read_index`.
      split_of: an identity to its split; None puts everything into `test`.
      allow_whole_videos: see `read_index`.
      num_workers: see `Source`.
      findings: see `read_index`.

    Raises as `read_index` and `splits.split_tracklets` do.
    """
    found = read_index(root, every, allow_whole_videos=allow_whole_videos, findings=findings)
    return Source(
        root,
        {SPLIT: found} if split_of is None else splits.split_tracklets(found, split_of),
        keypoints=keypoints,
        without_skeletons=without_skeletons,
        num_workers=num_workers,
    )


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
      split_file: a CSV file that assigns people to `train` or `test` (see
        `splits.read_split_file`).
      test_share: the share of people in `test`, above 0 and below 1; the others are in `train`.
        Without it and without a file, everything is in `test`.
      split_seed: which people these are (see `splits.split_by_share`).
      allow_whole_videos: also pack videos that are wider than tall.
      update: if another state of the folder is packed there, read only the footage that is new or
        changed, and take the rest from there.
      overwrite: replace what is packed there.
      num_workers: threads that read and check frames; None uses one per core.

    Returns:
      The directory of the packed dataset.

    Raises:
      FileNotFoundError: the folder, a frame, the skeletons or the split file are missing.
      ValueError: a file is broken or in the wrong place, the directory holds another source (and
        neither `update` nor `overwrite` is given) or lies within the folder, or no one in a split
        has tracklets of both modalities.
    """
    if update and overwrite:
        raise InputError("update and overwrite are both given: use one of them")
    data_dir = remote.local(data_dir)
    folder, target = os.path.realpath(source), os.path.realpath(data_dir)
    if os.path.commonpath([folder, target]) == folder:
        raise InputError(
            f"{data_dir}: lies within {source}, where it would be taken for footage; choose a "
            "data_dir elsewhere"
        )
    opened = open_source(
        source,
        keypoints=keypoints,
        without_skeletons=without_skeletons,
        every=every,
        allow_whole_videos=allow_whole_videos,
        split_of=_split_of(split_file, test_share, split_seed),
        num_workers=num_workers,
    )
    if update or overwrite:
        return replacing.replace(opened, pathlib.Path(data_dir), DATASET, update=update)
    return packing.prepare(
        opened,
        data_dir,
        DATASET,
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
    split_of = None
    with findings.catch():
        split_of = _split_of(split_file, test_share, split_seed)
    with findings.catch():
        opened = open_source(
            source,
            keypoints=keypoints,
            without_skeletons=without_skeletons,
            every=every,
            split_of=split_of,
            allow_whole_videos=allow_whole_videos,
            num_workers=num_workers,
            findings=findings,
        )
        checks.check_tracklets(findings, opened, both_modalities=False, own_cameras=False)
    return findings


def all_tracklets(source: str | os.PathLike[str]) -> list[schema.Tracklet]:
    """Returns the tracklets with all of their frames; raises as `read_index` does."""
    return read_index(source)


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


def _named(root: str | os.PathLike[str], found: list[Found]) -> list[Found]:
    """Returns the tracklets with the names of their people and cameras.

    People have the names that `identities.csv` gives them, else those of their folders.
    """
    given = read_identities_file(root, [tracklet.path for tracklet in found])
    identities = read_identities({t.identity: t.path for t in found})
    cameras = {t.camera: read_name(t.camera, t.path) for t in found}
    return [
        t._replace(identity=given.get(t.path, identities[t.identity]), camera=cameras[t.camera])
        for t in found
    ]


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
        counted = map_ahead(pool, count, videos, ahead=2 * threads)
        shown = with_progress(counted, len(videos), "counting frames")
        for video, frames in zip(videos, shown, strict=True):
            with findings.catch("the videos"):
                if isinstance(frames, Exception):
                    raise frames
                counts[video] = frames
    return counts


def _require_one_person(root: str | os.PathLike[str], video: str) -> None:
    """Raises an error if a video is wider than tall, as those of whole scenes are."""
    with open_video(root, video) as (_, frames):
        for _, frame in frames:
            height, width = frame.shape[:2]
            if width > height:
                raise InputError(
                    f"{video}: {width} x {height} pixels, wider than tall, as a video of a whole "
                    "scene; a tracklet shows one person, cropped. Find the people in it with "
                    "launch/footage/tracklets.py, or pack it as it is with --allow_whole_videos"
                )
            return


def _examples(paths: Sequence[str]) -> str:
    return ", ".join(paths[:3]) + ", ..." * (len(paths) > 3)
