"""HITSZ-VCM: reads and checks its five index files, and packs its tracklets.

The dataset: Lin et al., "Learning Modal-Invariant and Temporal-Memory for Video-based
Visible-Infrared Person Re-Identification", CVPR 2022. It is licensed, so users bring it themselves.
"""

import dataclasses
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from data_pipelines import schema
from data_pipelines.datasets import checks
from data_pipelines.datasets.findings import RAISE_ERRORS, Findings, first_of
from data_pipelines.errors import InputError
from data_pipelines.io import files, remote
from data_pipelines.records import packing
from data_pipelines.records.source import Source

SPLITS = ("train", "test")
MIN_FRAMES = 12  # protocol hitsz_vcm/v1 drops shorter tracklets

# What the public index files hold. Rows and identities count every tracklet; "tracklets" only
# those of 12 frames or more; unused names are in no row (in the public files, the last ones).
GOLDEN_COUNTS: Mapping[str, Mapping[str, int]] = {
    "train": {
        "names": 232_496,
        "unused_names": 15,
        "rows": 11_061,
        "infrared_rows": 4_919,
        "visible_rows": 6_142,
        "tracklets": 9_751,
        "infrared_tracklets": 4_291,
        "visible_tracklets": 5_460,
        "identities": 500,
        "first_identity": 1,
        "last_identity": 502,
        "first_camera": 1,
        "last_camera": 6,
    },
    "test": {
        "names": 230_763,
        "unused_names": 24,
        "rows": 10_802,
        "infrared_rows": 5_159,
        "visible_rows": 5_643,
        "tracklets": 9_683,
        "infrared_tracklets": 4_584,
        "visible_tracklets": 5_099,
        "identities": 427,
        "first_identity": 503,
        "last_identity": 937,
        "first_camera": 1,
        "last_camera": 12,
    },
}

INDEX_FILES = (
    "train_name.txt",
    "test_name.txt",
    "track_train_info.txt",
    "track_test_info.txt",
    "query_IDX.txt",
)
# Identity, modality, camera, track, frame. Nine digits always fit into the int32 of records.
_NAME = re.compile(r"([0-9]{4})M([12])D([0-9]{1,3})T([0-9]{1,9})F([0-9]{1,9})\.jpg")
_ROW = re.compile(r"([12])\s+([0-9]{1,9})\s+([0-9]{1,9})\s+([0-9]{1,4})\s+([0-9]{1,3})")
_MODALITIES = {"1": schema.INFRARED, "2": schema.VISIBLE}
_FOLDERS = {"1": "ir", "2": "rgb"}


@dataclasses.dataclass(frozen=True)
class HitszIndex:
    """The tracklets that the index files list, in file order, short ones dropped.

    Attributes:
      train: of the training split.
      test: of the test split; its infrared tracklets are the queries of I2V.
      counts: what was counted in each split, by the names of GOLDEN_COUNTS.
    """

    train: list[schema.Tracklet]
    test: list[schema.Tracklet]
    counts: Mapping[str, Mapping[str, int]]


def read_index(
    root: str | os.PathLike[str],
    min_frames: int = MIN_FRAMES,
    *,
    findings: Findings = RAISE_ERRORS,
) -> HitszIndex:
    """Reads and checks the five index files of HITSZ-VCM; opens no image.

    The text files may lie in the root or in `info`; the folders of identities in the root, in
    `Train` and `Test`, or in `Train/Train` and `Test/Test`, whichever has most of them.

    Args:
      root: of the dataset.
      min_frames: shorter tracklets are dropped.
      findings: collects the wrong lines, whose rows are left out; by default the first one is
        raised. Rows whose names have several track numbers, which nothing else reads, give one
        warning for each file.

    Raises:
      FileNotFoundError: an index file is missing.
      ValueError: a file is empty or not text, a line is malformed or contradicts another file (the
        message names file and line), or the index has the length of the published one but not its
        counts.
    """
    root = remote.local(root)
    info = _info_folder(root)
    splits = {}
    counts = {}
    for split in SPLITS:
        names_file = f"{info}{split}_name.txt"
        rows_file = f"{info}track_{split}_info.txt"
        names = _read_names(root, names_file, findings)
        frames_folder = _frames_folder(root, split, names)
        splits[split] = _read_rows(root, rows_file, names, names_file, frames_folder, findings)
        counts[split] = _count(splits[split], len(names))
    _check_queries(root, f"{info}query_IDX.txt", splits["test"], findings)
    if all(counts[split]["names"] == GOLDEN_COUNTS[split]["names"] for split in SPLITS):
        check_golden_counts(counts, findings)
    kept = {
        split: [tracklet for tracklet in tracklets if len(tracklet.frames) >= min_frames]
        for split, tracklets in splits.items()
    }
    for split, tracklets in kept.items():
        if not tracklets:
            raise InputError(f"{root}: no tracklet of split {split} has {min_frames} frames")
    return HitszIndex(train=kept["train"], test=kept["test"], counts=counts)


def check_golden_counts(
    counts: Mapping[str, Mapping[str, int]], findings: Findings = RAISE_ERRORS
) -> None:
    """Reports which of `HitszIndex.counts` differ from the published dataset's, if any."""
    findings.report_counts(counts, GOLDEN_COUNTS, "the index files are not those of HITSZ-VCM")


def prepare(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    num_workers: int | None = None,
) -> pathlib.Path:
    """Packs HITSZ-VCM into `<data_dir>/hitsz_vcm/2.1.0`, all of it or nothing.

    If the same source is already packed there, it returns at once.

    Args:
      source: the dataset's root, in any layout that `read_index` reads.
      data_dir: where packed datasets are kept.
      keypoints: the skeletons (see `sources.open_keypoints`); None takes `skeletons.h5` in the
        root, else the only HDF5 file there.
      num_workers: threads that read and check frames; None uses one per core.

    Returns:
      The directory of the packed dataset.

    Raises:
      FileNotFoundError: an index file, a frame or the skeletons are missing.
      ValueError: a file is broken, or the directory holds another source. The message names it.
    """
    index = read_index(source)
    splits = {"train": index.train, "test": index.test}
    return packing.prepare(
        Source(source, splits, keypoints=keypoints, num_workers=num_workers),
        data_dir,
        "hitsz_vcm/2.1.0",
    )


def check(
    source: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    published: bool = True,
    num_workers: int | None = None,
) -> Findings:
    """Reads all that packing would read, and more, and packs nothing.

    Checked are the index, its counts, every frame that a tracklet of any length has, the skeletons,
    that every identity has tracklets of both modalities, and that no camera shows a test identity
    in both.

    Args:
      source: see `prepare`.
      keypoints: see `prepare`.
      published: whether the counts must be those of the published dataset.
      num_workers: see `prepare`.
    """
    findings = Findings()
    with findings.catch():
        index = read_index(source, min_frames=1, findings=findings)
        if published:
            check_golden_counts(index.counts, findings)
        findings.tables.append(
            [
                ("index", *SPLITS, *(f"{split}, published" for split in SPLITS)),
                *(
                    (
                        name.replace("_", " "),
                        *(
                            table[split][name]
                            for table in (index.counts, GOLDEN_COUNTS)
                            for split in SPLITS
                        ),
                    )
                    for name in GOLDEN_COUNTS["train"]
                ),
            ]
        )
        splits = {"train": index.train, "test": index.test}
        checks.check_tracklets(
            findings,
            Source(source, splits, keypoints=keypoints, num_workers=num_workers),
            MIN_FRAMES,
        )
    return findings


def all_tracklets(source: str | os.PathLike[str]) -> list[schema.Tracklet]:
    """Returns the tracklets of all splits, including short ones; raises as `read_index` does."""
    index = read_index(source, min_frames=1)
    return [*index.train, *index.test]


def _info_folder(root: str | os.PathLike[str]) -> str:
    root = pathlib.Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such directory; pass the root of HITSZ-VCM")
    found = {
        folder: sum((root / (folder + name)).exists() for name in INDEX_FILES)
        for folder in ("", "info/")
    }
    if not any(found.values()):
        raise FileNotFoundError(
            f"{root}: none of {', '.join(INDEX_FILES)} there or in info; pass the root of HITSZ-VCM"
        )
    return max(found, key=lambda folder: found[folder])


def _frames_folder(
    root: str | os.PathLike[str], split: str, names: Sequence[tuple[str, ...]]
) -> str:
    """Returns the folder, with a slash, that holds the folders of identities.

    It is the one with most of the places of frames, judged by one place for each identity. An index
    without frames can be read, too; packing names the first missing frame.
    """
    examples = {name[0]: _place(name) for name in names if name}.values()
    split_folder = split.capitalize()
    return max(
        ("", f"{split_folder}/", f"{split_folder}/{split_folder}/"),
        key=lambda folder: sum(os.path.isdir(os.path.join(root, folder, one)) for one in examples),
    )


def _place(name: tuple[str, ...]) -> str:
    """Returns where a name's frame is, below the folder of identities."""
    identity, code, camera, *_ = name
    return f"{identity}/{_FOLDERS[code]}/D{camera}"


def _read_names(
    root: str | os.PathLike[str], file: str, findings: Findings
) -> list[tuple[str, ...]]:
    """Returns the groups of _NAME as written; an empty tuple for a bad line."""
    names: list[tuple[str, ...]] = []
    for number, line in enumerate(files.read_lines(root, file), start=1):
        match = _NAME.fullmatch(line)
        if match is None:
            findings.report(
                f"{file}:{number}: found {line!r}, expected a name like 0001M2D3T1F1.jpg"
            )
        names.append(match.groups() if match else ())
    return names


def _read_rows(
    root: str | os.PathLike[str],
    file: str,
    names: Sequence[tuple[str, ...]],
    names_file: str,
    frames_folder: str,
    findings: Findings,
) -> list[schema.Tracklet]:
    """Returns all tracklets of a split."""
    several: list[str] = []  # rows of several tracks
    tracklets: list[schema.Tracklet] = []
    last_used = 0  # no name is in two rows
    for number, line in enumerate(files.read_lines(root, file), start=1):
        match = _ROW.fullmatch(line)
        if match is None:
            findings.report(
                f"{file}:{number}: found {line!r}, expected modality (1 or 2), first and last "
                "frame, identity and camera, such as '2 1 24 0001 3'"
            )
            continue
        first, last = int(match[2]), int(match[3])
        if not 1 <= first <= last <= len(names):
            findings.report(
                f"{file}:{number}: frames {first} to {last} are not a range within the "
                f"{len(names)} lines of {names_file}"
            )
            continue
        if first <= last_used:
            findings.report(
                f"{file}:{number}: frames {first} to {last} do not follow those of the rows "
                f"before, which reach to {last_used}; fetch the index files again"
            )
            continue
        modality, identity, camera = _MODALITIES[match[1]], match[4].zfill(4), int(match[5])
        frames: list[str] = []
        for line_number, name in enumerate(names[first - 1 : last], start=first):
            if not name:  # reported above
                break
            pid, code, device, track, frame = name
            if (pid, code, int(device)) != (identity, match[1], camera):
                findings.report(
                    f"{file}:{number}: identity {identity}, modality {match[1]}, camera {camera} "
                    f"contradicts {names_file}:{line_number}, which has {pid}, {code}, {device}"
                )
                break
            if track != names[first - 1][3] and several[-1:] != [f"{file}:{number}"]:
                several.append(f"{file}:{number}")
            frames.append(f"{frames_folder}{_place(name)}/{frame}.jpg")
        else:
            tracklets.append(schema.Tracklet(modality, identity, camera, tuple(frames), number))
            last_used = last
    if several:
        findings.warn(f"{first_of(several)}: the names have several track numbers in one row")
    return tracklets


def _check_queries(
    root: str | os.PathLike[str],
    file: str,
    tracklets: Sequence[schema.Tracklet],
    findings: Findings,
) -> None:
    words = " ".join(files.read_lines(root, file)).split()
    if not all(re.fullmatch("[0-9]+", word) for word in words):
        findings.report(f"{file}: expected row numbers of track_test_info.txt and nothing else")
        return
    queries = [int(word) for word in words]
    infrared = [tracklet.row for tracklet in tracklets if tracklet.modality == schema.INFRARED]
    if queries != infrared:
        strays = sorted(set(queries) ^ set(infrared))
        detail = f"they differ in row {strays[0]}" if strays else "they are not in ascending order"
        findings.report(
            f"{file}: the {len(queries)} queries are not exactly the {len(infrared)} infrared rows "
            f"of track_test_info.txt: {detail}"
        )


def _count(tracklets: Sequence[schema.Tracklet], names: int) -> dict[str, int]:
    long = [tracklet for tracklet in tracklets if len(tracklet.frames) >= MIN_FRAMES]
    identities = {int(tracklet.identity) for tracklet in tracklets}
    cameras = {tracklet.camera for tracklet in tracklets}
    infrared_rows = sum(tracklet.modality == schema.INFRARED for tracklet in tracklets)
    infrared_long = sum(tracklet.modality == schema.INFRARED for tracklet in long)
    return {
        "names": names,
        "unused_names": names - sum(len(tracklet.frames) for tracklet in tracklets),
        "rows": len(tracklets),
        "infrared_rows": infrared_rows,
        "visible_rows": len(tracklets) - infrared_rows,
        "tracklets": len(long),
        "infrared_tracklets": infrared_long,
        "visible_tracklets": len(long) - infrared_long,
        "identities": len(identities),
        "first_identity": min(identities, default=0),
        "last_identity": max(identities, default=0),
        "first_camera": min(cameras, default=0),
        "last_camera": max(cameras, default=0),
    }
