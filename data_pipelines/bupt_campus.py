"""BUPTCampus: its lists and `data_paths.json`, checked, and the builders that pack its tracklets.

The dataset: Du et al., "Video-based Visible-Infrared Person Re-Identification with Auxiliary
Samples", IEEE Transactions on Information Forensics and Security, 2023. It is licensed, so users
bring it themselves.
"""

import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import tensorflow_datasets as tfds

from data_pipelines import checks, files, packing, schema
from data_pipelines import keypoints as keypoints_lib

CAMERAS = ("LS3", "G25", "CQ1", "W4", "TSG1", "TSG2")  # records number them 1 to 6, in this order
FOLDERS = {schema.VISIBLE: "RGB", schema.INFRARED: "IR"}
PATHS_FILE = "data_paths.json"
LISTS = {
    "train": ("train.txt",),
    "auxiliary": ("train_auxiliary.txt",),
    "test": ("query.txt", "gallery.txt"),
}

# What the public lists hold. A pair is a visible and an infrared tracklet of the same moments.
GOLDEN_COUNTS: Mapping[str, Mapping[str, int]] = {
    "train": {"pairs": 3_574, "identities": 1_074},
    "auxiliary": {"pairs": 930, "identities": 930},
    "test": {
        "visible_queries": 540,
        "infrared_queries": 536,
        "visible_gallery": 2_422,
        "infrared_gallery": 2_422,
        "identities": 1_076,  # of the gallery
    },
}
_GOLDEN_LINES = {
    "train.txt": 3_574,
    "train_auxiliary.txt": 930,
    "query.txt": 1_076,
    "gallery.txt": 4_844,
}

_LINE = re.compile(r"([0-9]{1,9})[ \t]+(RGB/IR|RGB|IR)[ \t]+(\S+)[ \t]+([\w-]+)", re.ASCII)
_FRAME = re.compile(r"[\w.-]+\.jpg", re.ASCII)


@dataclasses.dataclass(frozen=True)
class BuptIndex:
    """The tracklets that the lists name.

    Attributes:
      splits: "train", "test" and, if asked for, "auxiliary". A training or auxiliary pair is two
        tracklets, the visible one first, whose `row` is their line. The test split holds what is
        query only, in the order of query.txt, and then the gallery in the order of gallery.txt;
        `row` is the line in query.txt of a query, even one that is in the gallery too, and the
        line in gallery.txt of the others. So both lists' orders can be told.
      counts: what was counted in each split, by the names of GOLDEN_COUNTS.
    """

    splits: Mapping[str, list[schema.Tracklet]]
    counts: Mapping[str, Mapping[str, int]]


def read_index(
    root: str | os.PathLike[str], *, auxiliary: bool = False, fake_infrared: bool = False
) -> BuptIndex:
    """Reads and checks the lists of BUPTCampus and its `data_paths.json`; opens no image.

    Args:
      root: of the dataset: the folder that holds `DATA` and the lists.
      auxiliary: whether to read the auxiliary training list, too.
      fake_infrared: whether visible frames are those of `FakeIR`, made from the ones of `RGB`.

    Raises:
      FileNotFoundError: a list or `data_paths.json` is missing.
      ValueError: a file is broken or contradicts another (the message names file and line, or
        key), or the lists have the length of the published ones but not their counts.
    """
    root = pathlib.Path(root)
    splits = ("train", "auxiliary", "test") if auxiliary else ("train", "test")
    names = [name for split in splits for name in LISTS[split]]
    if not any((root / name).exists() for name in names):
        raise FileNotFoundError(
            f"{root}: none of {', '.join(names)} there; give the folder of BUPTCampus that holds "
            "DATA and the lists"
        )
    lines = {name: _read_list(root, name, pairs="train" in name) for name in names}
    _check_identities_of_one_split(splits, lines)
    paths = _read_paths(root)
    tracklets = {
        split: _pairs(paths, lines[LISTS[split][0]]) for split in splits if split != "test"
    }
    tracklets["test"] = _queries_and_gallery(paths, lines["query.txt"], lines["gallery.txt"])
    counts = {split: _count(tracklets[split], split) for split in splits}
    if all(len(lines[name]) == _GOLDEN_LINES[name] for name in names):
        assert_golden_counts(counts)
    if fake_infrared:
        tracklets = {
            split: [_renamed(tracklet, fake_infrared_path) for tracklet in rows]
            for split, rows in tracklets.items()
        }
    return BuptIndex(splits=tracklets, counts=counts)


def assert_golden_counts(counts: Mapping[str, Mapping[str, int]]) -> None:
    """Checks `BuptIndex.counts` against the published dataset's.

    Raises:
      ValueError: a count differs; the message names all that do.
    """
    differences = [
        f"{split} {name} {count} instead of {GOLDEN_COUNTS[split][name]}"
        for split, split_counts in counts.items()
        for name, count in split_counts.items()
        if count != GOLDEN_COUNTS[split][name]
    ]
    if differences:
        raise ValueError(
            f"the lists are not those of BUPTCampus: {', '.join(differences)}; fetch them again"
        )


def fake_infrared_path(frame: str) -> str:
    """Returns the path of the FakeIR frame of a visible one; infrared frames keep theirs."""
    return frame.replace("/RGB/", "/FakeIR/")


def visible_path(frame: str) -> str:
    """Returns the path of the visible frame that a FakeIR one was made from."""
    return frame.replace("/FakeIR/", "/RGB/")


class BuptCampus(packing.TrackletBuilder):
    """BUPTCampus, video visible-infrared person re-identification, one record a tracklet."""

    VERSION = tfds.core.Version("1.0.0")
    fake_infrared = False

    def __init__(self, *, auxiliary: bool = False, **kwargs: Any):
        """Names the source; nothing is read before `prepare`.

        Args:
          auxiliary: whether to pack the auxiliary training list as split "auxiliary".
          **kwargs: of `packing.TrackletBuilder`.
        """
        self._auxiliary = auxiliary
        super().__init__(**kwargs)

    def _read_tracklets(self) -> Mapping[str, Sequence[schema.Tracklet]]:
        return read_index(
            self.source, auxiliary=self._auxiliary, fake_infrared=self.fake_infrared
        ).splits


class BuptCampusFakeInfrared(BuptCampus):
    """BUPTCampus with FakeIR frames in place of the visible ones, one record a tracklet."""

    VERSION = tfds.core.Version("1.0.0")
    fake_infrared = True

    def open_keypoints(self) -> keypoints_lib.Keypoints:
        """Opens the skeletons: those of a FakeIR frame are those of its visible one."""
        return _VisibleKeypoints(super().open_keypoints())


def prepare(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    auxiliary: bool = False,
    fake_infrared: bool = False,
    num_workers: int | None = None,
) -> pathlib.Path:
    """Packs BUPTCampus into `<data_dir>/bupt_campus/1.0.0`, all of it or nothing.

    Over a finished dataset of the same source it returns at once.

    Args:
      source: the dataset's root, the folder that holds `DATA` and the lists.
      data_dir: where packed datasets are kept.
      keypoints: the skeletons (see `keypoints.open_keypoints`); None looks in the root.
      auxiliary: whether to pack the auxiliary training list, too, as split "auxiliary".
      fake_infrared: whether to take FakeIR frames in place of the visible ones; these go to
        `<data_dir>/bupt_campus_fake_infrared/1.0.0`.
      num_workers: threads that read and check frames; None takes one a core.

    Returns:
      The directory of the packed dataset.

    Raises:
      FileNotFoundError: a list, a frame or the skeletons are missing.
      ValueError: a file is broken, or the directory holds another source. The message names it.
    """
    builder = BuptCampusFakeInfrared if fake_infrared else BuptCampus
    return packing.prepare(
        builder(
            source=source,
            keypoints=keypoints,
            auxiliary=auxiliary,
            num_workers=num_workers,
            data_dir=data_dir,
        )
    )


def check(
    source: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    auxiliary: bool = False,
    fake_infrared: bool = False,
    published: bool = True,
    num_workers: int | None = None,
) -> checks.Findings:
    """Reads all that packing would read, and packs nothing.

    Checked are the lists, their counts, every frame, the skeletons, and that every identity has
    tracklets of both modalities. Of the lists the first thing that is wrong is told.

    Args:
      source: see `prepare`.
      keypoints: see `prepare`.
      auxiliary: see `prepare`.
      fake_infrared: see `prepare`.
      published: whether the counts must be those of the published dataset.
      num_workers: see `prepare`.
    """
    findings = checks.Findings()
    with findings.catch():
        index = read_index(source, auxiliary=auxiliary, fake_infrared=fake_infrared)
        if published:
            with findings.catch():
                assert_golden_counts(index.counts)
        findings.tables.append(
            [
                ("lists", "found", "published"),
                *(
                    (f"{split} {name.replace('_', ' ')}", count, GOLDEN_COUNTS[split][name])
                    for split, counts in index.counts.items()
                    for name, count in counts.items()
                ),
            ]
        )
        kind = BuptCampusFakeInfrared if fake_infrared else BuptCampus
        builder = kind(source=source, keypoints=keypoints, num_workers=num_workers)
        checks.check_tracklets(findings, builder, index.splits, own_cameras=False)
    return findings


class _Line(NamedTuple):
    """A line of a list, and where it stands."""

    place: str
    row: int
    identity: str
    modalities: tuple[int, ...]
    camera: str
    tracklet: str


def _read_list(root: pathlib.Path, name: str, pairs: bool) -> list[_Line]:
    modalities = (
        {"RGB/IR": (schema.VISIBLE, schema.INFRARED)}
        if pairs
        else {"RGB": (schema.VISIBLE,), "IR": (schema.INFRARED,)}
    )
    lines: list[_Line] = []
    first_place: dict[tuple[str, ...], str] = {}
    for row, text in enumerate(files.read_lines(root, name), start=1):
        place = f"{name}:{row}"
        match = _LINE.fullmatch(text)
        if match is None or match[2] not in modalities:
            raise ValueError(
                f"{place}: found {text!r}, expected identity, modality "
                f"({' or '.join(modalities)}), camera and tracklet, such as "
                f"'1 {next(iter(modalities))} LS3 1'"
            )
        if match[3] not in CAMERAS:
            raise ValueError(
                f"{place}: camera {match[3]!r} is unknown; there are {', '.join(CAMERAS)}"
            )
        if match.groups() in first_place:
            raise ValueError(
                f"{place}: {text!r} stands in {first_place[match.groups()]} already; delete one"
            )
        first_place[match.groups()] = place
        lines.append(_Line(place, row, match[1], modalities[match[2]], match[3], match[4]))
    return lines


def _check_identities_of_one_split(
    splits: Sequence[str], lines: Mapping[str, Sequence[_Line]]
) -> None:
    seen: dict[str, tuple[str, str]] = {}  # split and place of an identity
    for split in splits:
        for line in (line for name in LISTS[split] for line in lines[name]):
            other, place = seen.setdefault(line.identity, (split, line.place))
            if other != split:
                raise ValueError(
                    f"{line.place}: identity {line.identity} belongs to another split, see {place}"
                )


def _read_paths(root: pathlib.Path) -> Any:
    try:
        return json.loads(files.read_inside(root, PATHS_FILE).decode("utf-8-sig"))
    except FileNotFoundError:
        raise
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{PATHS_FILE}: not a readable JSON file ({error})") from error


def _tracklet(paths: Any, line: _Line, modality: int) -> schema.Tracklet:
    """Looks up the frames of a line's tracklet of one modality."""
    folder = FOLDERS[modality]
    node, place = paths, PATHS_FILE
    for key in (line.identity, folder, line.camera, line.tracklet):
        if not isinstance(node, dict):
            raise ValueError(
                f"{place}: found {_kind(node)}, expected an object: identity, modality, camera, "
                "tracklet, list of paths"
            )
        place += f"[{json.dumps(key)}]"
        if key not in node:
            raise ValueError(f"{line.place}: {place} does not exist; the files do not fit together")
        node = node[key]
    if not isinstance(node, list) or not node:
        raise ValueError(f"{place}: found {_kind(node)}, expected a list of paths")
    prefix = f"{line.identity}/{folder}/{line.camera}/"
    for path in node:
        # Nothing else is a path below DATA: none that is absolute or climbs out.
        if not (
            isinstance(path, str)
            and path.startswith(prefix)
            and _FRAME.fullmatch(path, len(prefix))
        ):
            raise ValueError(f"{place}: found {path!r:.100}, expected {prefix}<name>.jpg")
    return schema.Tracklet(
        modality=modality,
        identity=line.identity,
        camera=1 + CAMERAS.index(line.camera),
        frames=tuple(f"DATA/{path}" for path in node),
        row=line.row,
    )


def _kind(node: Any) -> str:
    if node == []:
        return "an empty list"
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(node), "a number"
    )


def _pairs(paths: Any, lines: Sequence[_Line]) -> list[schema.Tracklet]:
    """Returns the two tracklets of each line, the visible one first."""
    tracklets = []
    for line in lines:
        visible, infrared = (_tracklet(paths, line, modality) for modality in line.modalities)
        if len(visible.frames) != len(infrared.frames):
            raise ValueError(
                f"{line.place}: {PATHS_FILE} lists {len(visible.frames)} RGB and "
                f"{len(infrared.frames)} IR frames, a pair must have as many of each"
            )
        tracklets += [visible, infrared]
    return tracklets


def _queries_and_gallery(
    paths: Any, query_lines: Sequence[_Line], gallery_lines: Sequence[_Line]
) -> list[schema.Tracklet]:
    queries = {line[2:]: line for line in query_lines}
    gallery = {line[2:]: line for line in gallery_lines}

    def tracklet(key: tuple) -> schema.Tracklet:
        line = queries.get(key) or gallery[key]
        return dataclasses.replace(
            _tracklet(paths, line, *line.modalities), query=key in queries, gallery=key in gallery
        )

    return [tracklet(key) for key in [*(key for key in queries if key not in gallery), *gallery]]


def _count(tracklets: Sequence[schema.Tracklet], split: str) -> dict[str, int]:
    if split != "test":
        return {
            "pairs": len(tracklets) // 2,
            "identities": len({tracklet.identity for tracklet in tracklets}),
        }
    queries = [tracklet.modality for tracklet in tracklets if tracklet.query]
    gallery = [tracklet.modality for tracklet in tracklets if tracklet.gallery]
    return {
        "visible_queries": queries.count(schema.VISIBLE),
        "infrared_queries": queries.count(schema.INFRARED),
        "visible_gallery": gallery.count(schema.VISIBLE),
        "infrared_gallery": gallery.count(schema.INFRARED),
        "identities": len({tracklet.identity for tracklet in tracklets if tracklet.gallery}),
    }


def _renamed(tracklet: schema.Tracklet, rename: Any) -> schema.Tracklet:
    return dataclasses.replace(tracklet, frames=tuple(map(rename, tracklet.frames)))


class _VisibleKeypoints:
    """The skeletons of the visible frames, for the FakeIR frames made from them."""

    def __init__(self, source: keypoints_lib.Keypoints):
        self._source = source

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._source.__exit__(*error)

    def read(self, tracklet: schema.Tracklet) -> Any:
        """See `keypoints.Keypoints.read`."""
        return self._source.read(_renamed(tracklet, visible_path))
