"""Writes the tracklets of a raw video in the folders that `datasets.folder` reads.

A video of any length is processed frame by frame. Detections go to a journal, from which an
interrupted run continues; tracking takes little time and is done again. What is written lies in a
hidden folder until it is complete, and is then moved:

    unknown/<modality>/<camera>/<track>/<frame>.jpg    crops
    tracks/<modality>/<camera>.csv                     their boxes
    tracks/<modality>/<camera>.jpg                     contact sheet; more are <camera>.2.jpg, ...
    identities.csv                                     a row for each tracklet, for names
    tracks/<modality>/<camera>.json                    what all of this was made from

Tracks and frames have their numbers as names.
"""

import contextlib
import functools
import hashlib
import itertools
import json
import os
import pathlib
import re
import shutil
from collections.abc import Generator, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from data_pipelines import schema
from data_pipelines.datasets.folder_layout import TRACKS
from data_pipelines.datasets.identities import IDENTITIES, IDENTITY_COLUMNS
from data_pipelines.errors import InputError
from data_pipelines.footage.contact_sheet import ROWS, contact_sheet
from data_pipelines.footage.crops import CropWriter, name_of
from data_pipelines.footage.detection import Detector
from data_pipelines.footage.journal import Journal, open_journal
from data_pipelines.footage.tracking import LOWEST_SCORE, Detections, Tracker
from data_pipelines.io import remote
from data_pipelines.io.files import hold, naming_full_disk, require_regular, write_json
from data_pipelines.io.frames import open_video
from data_pipelines.io.names import path_key, read_name
from data_pipelines.io.progress import Progress
from data_pipelines.io.tables import add_rows, read_rows
from data_pipelines.io.terminal import log

_CAMERA = re.compile(r"\w[\w -]*")
_HASHED = 1 << 20  # bytes at either end of a video


class Summary(NamedTuple):
    """What was written.

    Attributes:
      folder: of the tracklets.
      tracklets: number of them.
      frames: number of crops.
      is_new: False if an earlier call wrote it.
      sheet: the contact sheet.
      identities: the file for names.
    """

    folder: pathlib.Path
    tracklets: int
    frames: int
    is_new: bool
    sheet: pathlib.Path
    identities: pathlib.Path


class _Places:
    """The paths of one camera's files."""

    def __init__(self, output: str | os.PathLike[str], modality: str, camera: str):
        self.output = pathlib.Path(output)
        self.prefix = f"{schema.UNKNOWN}/{modality}/{camera}"  # of the names of tracklets
        self.crops = self.output / self.prefix
        self.tracks = self.output / TRACKS / modality
        self.record = self.tracks / f"{camera}.json"
        self.identities = self.output / IDENTITIES
        self.partial = self.tracks / f".{camera}.partial"
        self.partial_crops = self.partial / "crops"
        self.partial_tracks = self.partial / "tracks"  # moved to self.tracks
        self.partial_record = self.partial / "record.json"  # the last file written there


def extract(
    video: str | os.PathLike[str],
    output: str | os.PathLike[str],
    detector: Detector,
    *,
    modality: str,
    camera: str,
    min_score: float = 0.5,
    min_frames: int = 10,
    margin: float = 0.1,
    every: int = 1,
) -> Summary:
    """Detects and tracks the people in a video and writes their tracklets, all of them or none.

    The same call continues after an interruption, and returns at once if everything is written.

    Args:
      video: the file.
      output: the folder to write to; it may hold the tracklets of other videos.
      detector: of people.
      modality: "visible" or "infrared".
      camera: its name; each video of a modality needs its own.
      min_score: of a detection that begins a track.
      min_frames: shorter tracklets are left out.
      margin: around the box on each side, as a share of its width and height.
      every: N takes every N-th frame, the first one included.

    Raises:
      FileNotFoundError: there is no such video.
      InputError: an argument or the video cannot be used, no tracklet is found in it, there are
        other tracklets of the same camera, or another process is writing them.
      OSError: a file cannot be written.
    """
    camera = read_name(camera, "camera")
    _check_options(modality, camera, min_score, min_frames, margin, every)
    output = remote.local(output)
    places = _Places(output, modality, camera)
    path = _find_video(video, places)
    source = {"video": _fingerprint(path), "detector": detector.sha256, "every": str(every)}
    facts = {**source, "min_score": min_score, "min_frames": min_frames, "margin": margin}
    if places.record.exists():
        return _finished(places, facts)
    if not places.partial_record.exists():
        _require_free(places)

    require_same = functools.partial(_require_same, places, source)
    with open_video(path.parent, path.name, every) as (announced, frames):
        places.partial.mkdir(parents=True, exist_ok=True)
        with open_journal(places.partial / "detections", source, require_same) as journal:
            if not places.partial_record.exists():
                detected = _detected(frames, -(-announced // every), detector, journal)
                with _explaining_interruptions(), contextlib.closing(detected):
                    writer = _write(detected, places, Tracker(min_score), min_frames, margin)
                counts = {"tracklets": writer.tracks, "frames": writer.frames}
                write_json(places.partial_record, {"name": path.name, **facts, **counts})
            _move(places)
        shutil.rmtree(places.partial)
    return _finished(places, facts)._replace(is_new=True)


def _check_options(
    modality: str, camera: str, min_score: float, min_frames: int, margin: float, every: int
) -> None:
    if modality not in schema.MODALITIES:
        raise InputError(f"modality is {modality!r}: use {' or '.join(schema.MODALITIES)}")
    if not _CAMERA.fullmatch(camera):
        raise InputError(
            f"camera is {camera!r}: it names a folder; use letters, digits, spaces, - and _"
        )
    for name, value, allowed, limits in (
        ("min_score", min_score, LOWEST_SCORE <= min_score <= 1, f"from {LOWEST_SCORE} to 1"),
        ("min_frames", min_frames, min_frames >= 1, "above 0"),
        ("margin", margin, 0 <= margin <= 1, "from 0 to 1"),
        ("every", every, every >= 1, "above 0"),
    ):
        if not allowed:
            raise InputError(f"{name} is {value}: use a number {limits}")


def _find_video(video: str | os.PathLike[str], places: _Places) -> pathlib.Path:
    """Returns the path of the video, without links; checks it and the output."""
    if not os.path.exists(video):
        raise FileNotFoundError(f"{video}: no such video")
    require_regular(video)
    for folder in (places.output, places.tracks, places.crops.parent):
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder}: is a file, not a folder; choose another output")
    path = pathlib.Path(video).resolve()
    if path.is_relative_to(places.output.resolve()):
        raise InputError(
            f"{video}: lies within {places.output}, where it would be taken for a tracklet; move "
            "it, or choose another output"
        )
    return path


def _fingerprint(path: pathlib.Path) -> str:
    """Returns a hash of a video's size, beginning and end: all of it may take minutes to read."""
    size = path.stat().st_size
    digest = hashlib.sha256(b"%d " % size)
    with open(path, "rb") as file:
        digest.update(file.read(_HASHED))
        file.seek(max(size - _HASHED, 0))
        digest.update(file.read())
    return digest.hexdigest()


def _finished(places: _Places, facts: Mapping[str, Any]) -> Summary:
    """Returns the summary of finished work; raises an error if it was made from something else."""
    try:
        found = json.loads(places.record.read_bytes())
        name, tracklets, crops = found["name"], found["tracklets"], found["frames"]
    except (ValueError, TypeError, KeyError) as error:
        raise InputError(f"{places.record}: not a record of tracklets; remove it") from error
    if changed := [fact for fact in facts if found.get(fact) != facts[fact]]:
        raise InputError(
            f"{places.record}: there are tracklets of {name} already ({_listed(changed)} "
            f"changed); choose another camera name, or remove {places.crops}, "
            f"{places.tracks}/{places.record.stem}.* and the rows of {places.prefix}/ in "
            f"{places.identities}"
        )
    sheet = places.record.with_suffix(".jpg")
    return Summary(places.crops, tracklets, crops, False, sheet, places.identities)


def _require_same(places: _Places, source: Mapping[str, str], found: Mapping[str, Any]) -> None:
    if changed := [name for name in source if found.get(name) != source[name]]:
        raise InputError(
            f"{places.partial}: holds unfinished tracklets of other work ({_listed(changed)} "
            "changed); choose another camera name, or remove that folder"
        )


@contextlib.contextmanager
def _explaining_interruptions() -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        log("detections so far are kept: the same command continues there")
        raise


def _listed(names: list[str]) -> str:
    return " and ".join(names)


def _require_free(places: _Places) -> None:
    """Raises an error if there are tracklets, or names of tracklets, that are not from here."""
    if places.crops.exists():
        raise InputError(
            f"{places.crops}: exists already; choose another camera name or remove that folder"
        )
    old = [name for name in _read_identities(places) if name.startswith(f"{places.prefix}/")]
    if old:
        raise InputError(
            f"{places.identities}: has rows of earlier tracklets, such as {old[0]}; remove those "
            f"of {places.prefix}/, or choose another camera name"
        )


def _detected(
    frames: Iterator[tuple[int, np.ndarray]], total: int, detector: Detector, journal: Journal
) -> Generator[tuple[int, np.ndarray, Detections], None, None]:
    """Yields frames and the people in them, as far as possible from the journal."""
    recorded = sum(1 for _ in journal.entries())
    if recorded:
        log(f"detections of {recorded} frames are taken from the interrupted run")
    entries = journal.entries()
    with Progress(total, "tracking", unit="frames") as progress:
        for done, (number, image) in enumerate(frames, start=1):
            entry = next(entries, None)
            if is_new := entry is None:
                found = detector.detect(image)
                # Rounded for a shorter journal, and used as they are there.
                entry = np.column_stack([found.boxes, found.scores]).round(3).tolist()
                journal.append(entry)
            numbers = np.array(entry, np.float64).reshape(-1, 5)
            yield number, image, Detections(numbers[:, :4], numbers[:, 4])
            progress.update(done, timed=is_new)


def _write(
    detected: Iterable[tuple[int, np.ndarray, Detections]],
    places: _Places,
    tracker: Tracker,
    min_frames: int,
    margin: float,
) -> CropWriter:
    """Writes crops, boxes and contact sheets to the partial folder."""
    crops, tracks = places.partial_crops, places.partial_tracks
    for folder in (crops, tracks):
        shutil.rmtree(folder, ignore_errors=True)  # of an interrupted run
        folder.mkdir()
    people = 0
    camera = places.record.stem
    with (
        naming_full_disk(places.partial),
        CropWriter(crops, tracks / f"{camera}.csv", min_frames, margin) as writer,
    ):
        for number, image, detections in detected:
            people += len(detections.scores)
            writer.write(number, image, tracker.update(detections), tracker.tracklets())
    if not writer.tracks:
        raise InputError(
            f"{places.crops}: no tracklet of at least {min_frames} frames in {people} detections; "
            "try a lower min_frames or min_score, which is quick since the detections are kept"
        )
    names = iter(_names(writer.tracks))
    for sheet in itertools.count(1):
        if not (rows := list(itertools.islice(names, ROWS))):
            break
        file = f"{camera}.jpg" if sheet == 1 else f"{camera}.{sheet}.jpg"
        contact_sheet(crops, rows, tracks / file)
    return writer


def _names(tracks: int) -> list[str]:
    return [name_of(track) for track in range(1, tracks + 1)]


def _move(places: _Places) -> None:
    """Moves everything from the partial folder to its place, the record last."""
    places.crops.parent.mkdir(parents=True, exist_ok=True)
    if places.partial_crops.exists():
        places.partial_crops.rename(places.crops)
    for file in places.partial_tracks.iterdir():
        file.replace(places.tracks / file.name)
    record = json.loads(places.partial_record.read_bytes())
    _add_identities(places, record["tracklets"])
    places.partial_record.replace(places.record)


def _read_identities(places: _Places) -> list[str]:
    """Returns the keys (`names.path_key`) of the tracklets with a row in the file of identities."""
    if not places.identities.exists():
        return []
    rows = read_rows(places.identities, IDENTITY_COLUMNS)
    return [path_key(row["tracklet"]) for _, row in rows]


def _add_identities(places: _Places, tracks: int) -> None:
    """Adds rows of unknown people for tracklets that have none; keeps everything else."""
    with open(places.output / TRACKS / ".lock", "wb") as lock:
        hold(lock, None)  # another camera's tracklets may be finished at the same time
        present = set(_read_identities(places))
        tracklets = [f"{places.prefix}/{name}" for name in _names(tracks)]
        rows = [
            dict(zip(IDENTITY_COLUMNS, (tracklet, schema.UNKNOWN), strict=True))
            for tracklet in tracklets
            if tracklet not in present
        ]
        add_rows(places.identities, IDENTITY_COLUMNS, rows)
