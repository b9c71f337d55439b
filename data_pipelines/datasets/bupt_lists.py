"""Reads and checks the lists of BUPTCampus and its `data_paths.json`.

The dataset: Du et al., "Video-based Visible-Infrared Person Re-Identification with Auxiliary
Samples", IEEE Transactions on Information Forensics and Security, 2023.
"""

import collections
import dataclasses
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines import schema
from data_pipelines.datasets.findings import RAISE_ERRORS, Findings, first_of
from data_pipelines.errors import InputError
from data_pipelines.io import files, remote

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

_LINE = re.compile(r"([0-9]{1,9})[ \t]+(RGB/IR|RGB|IR)[ \t]+(\S+)[ \t]+([\w-]+)", re.ASCII)
_FRAME = re.compile(r"[\w.-]+\.jpg", re.ASCII)
_MOMENT = re.compile(r".*_([0-9]{1,18})\.jpg")  # the number of a frame, if its name has one

_Warnings = dict[str, list[str]]  # what may be wrong: places of each kind


@dataclasses.dataclass(frozen=True)
class BuptIndex:
    """The tracklets that the lists name.

    Attributes:
      splits: "train", "test" and, if asked for, "auxiliary". A training or auxiliary pair is two
        tracklets, the visible one first, whose `row` is their line. The test split holds what is
        query only, in the order of query.txt, and then the gallery in the order of gallery.txt;
        `row` is the line in query.txt of a query, even one that is in the gallery too, and the
        line in gallery.txt of the others, so that both lists' orders are known.
      counts: what was counted in each split, by the names of GOLDEN_COUNTS.
    """

    splits: Mapping[str, list[schema.Tracklet]]
    counts: Mapping[str, Mapping[str, int]]


def read_index(
    root: str | os.PathLike[str],
    *,
    auxiliary: bool = False,
    fake_infrared: bool = False,
    findings: Findings = RAISE_ERRORS,
) -> BuptIndex:
    """Reads and checks the lists of BUPTCampus and its `data_paths.json`; opens no image.

    Of a pair with more visible than infrared frames, the last visible ones are left out: the
    dataset's authors take frames of both by their place in the infrared list.

    Args:
      root: of the dataset: the folder that holds `DATA` and the lists.
      auxiliary: whether to read the auxiliary training list, too.
      fake_infrared: whether visible frames are those of `FakeIR`, made from the ones of `RGB`.
      findings: collects the wrong lists and lines, which are left out; by default the first one is
        raised. Pairs that are cut, and numbers of frames that differ within a pair or do not
        ascend, give one warning for each kind, with the first place.

    Raises:
      FileNotFoundError: a list or `data_paths.json` is missing.
      ValueError: a file is broken or contradicts another (the message names file and line, or
        key), or the lists have the length of the published ones but not their counts.
    """
    root = pathlib.Path(remote.local(root))
    splits = ("train", "auxiliary", "test") if auxiliary else ("train", "test")
    names = [name for split in splits for name in LISTS[split]]
    if not any((root / name).exists() for name in names):
        raise FileNotFoundError(
            f"{root}: none of {', '.join(names)} there; pass the folder of BUPTCampus that holds "
            "DATA and the lists"
        )
    lines: dict[str, list[_Line]] = {name: [] for name in names}
    for name in names:
        with findings.catch():
            lines[name] = _read_list(root, name, pairs="train" in name, findings=findings)
    _check_identities_of_one_split(splits, lines, findings)
    paths = _read_paths(root)
    warnings: _Warnings = collections.defaultdict(list)
    tracklets = {
        split: _pairs(paths, lines[LISTS[split][0]], warnings, findings)
        for split in splits
        if split != "test"
    }
    tracklets["test"] = _queries_and_gallery(
        paths, lines["query.txt"], lines["gallery.txt"], warnings, findings
    )
    for trouble, places in warnings.items():
        findings.warn(f"{first_of(places)}: {trouble}")
    counts = {split: _count(tracklets[split], split) for split in splits}
    if all(_length(counts[split]) == _length(GOLDEN_COUNTS[split]) for split in splits):
        check_golden_counts(counts, findings)
    if fake_infrared:
        tracklets = {
            split: [renamed(tracklet, fake_infrared_path) for tracklet in rows]
            for split, rows in tracklets.items()
        }
    return BuptIndex(splits=tracklets, counts=counts)


def check_golden_counts(
    counts: Mapping[str, Mapping[str, int]], findings: Findings = RAISE_ERRORS
) -> None:
    """Reports which of `BuptIndex.counts` differ from the published dataset's, if any."""
    findings.report_counts(counts, GOLDEN_COUNTS, "the lists are not those of BUPTCampus")


def fake_infrared_path(frame: str) -> str:
    """Returns the path of the FakeIR frame of a visible one; infrared frames keep theirs."""
    return frame.replace("/RGB/", "/FakeIR/")


def visible_path(frame: str) -> str:
    """Returns the path of the visible frame that a FakeIR one was made from."""
    return frame.replace("/FakeIR/", "/RGB/")


class _Line(NamedTuple):
    """A line of a list, and its place."""

    place: str
    row: int
    identity: str
    modalities: tuple[int, ...]
    camera: str
    tracklet: str


def _read_list(root: pathlib.Path, name: str, pairs: bool, findings: Findings) -> list[_Line]:
    modalities = (
        {"RGB/IR": (schema.VISIBLE, schema.INFRARED)}
        if pairs
        else {"RGB": (schema.VISIBLE,), "IR": (schema.INFRARED,)}
    )
    lines: dict[tuple[str, ...], _Line] = {}
    for row, text in enumerate(files.read_lines(root, name), start=1):
        place = f"{name}:{row}"
        with findings.catch():
            match = _LINE.fullmatch(text)
            if match is None or match[2] not in modalities:
                raise InputError(
                    f"{place}: found {text!r}, expected identity, modality "
                    f"({' or '.join(modalities)}), camera and tracklet, such as "
                    f"'1 {next(iter(modalities))} LS3 1'"
                )
            if match[3] not in CAMERAS:
                raise InputError(
                    f"{place}: camera {match[3]!r} is unknown; there are {', '.join(CAMERAS)}"
                )
            key = match.groups()
            if key in lines:
                raise InputError(f"{place}: {text!r} is already in {lines[key].place}; delete one")
            lines[key] = _Line(place, row, match[1], modalities[match[2]], match[3], match[4])
    return list(lines.values())


def _check_identities_of_one_split(
    splits: Sequence[str],
    lines: Mapping[str, Sequence[_Line]],
    findings: Findings,
) -> None:
    seen: dict[str, tuple[str, str]] = {}  # split and place of an identity
    for split in splits:
        for line in (line for name in LISTS[split] for line in lines[name]):
            other, place = seen.setdefault(line.identity, (split, line.place))
            if other != split:
                findings.report(
                    f"{line.place}: identity {line.identity} belongs to another split, see {place}"
                )


def _read_paths(root: pathlib.Path) -> Any:
    content = files.read_inside(root, PATHS_FILE)
    try:
        return json.loads(content.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{PATHS_FILE}: not a readable JSON file ({error})") from error


def _tracklet(paths: Any, line: _Line, modality: int, warnings: _Warnings) -> schema.Tracklet:
    """Looks up the frames of a line's tracklet of one modality."""
    folder = FOLDERS[modality]
    node, place = paths, PATHS_FILE
    for key in (line.identity, folder, line.camera, line.tracklet):
        if not isinstance(node, dict):
            raise InputError(
                f"{place}: found {_kind(node)}, expected an object: identity, modality, camera, "
                "tracklet, list of paths"
            )
        place += f"[{json.dumps(key)}]"
        if key not in node:
            raise InputError(f"{line.place}: {place} does not exist; the files do not fit together")
        node = node[key]
    if not isinstance(node, list) or not node:
        raise InputError(f"{place}: found {_kind(node)}, expected a list of paths")
    prefix = f"{line.identity}/{folder}/{line.camera}/"
    for path in node:
        # Anything else could be absolute or lead out of DATA.
        if not (
            isinstance(path, str)
            and path.startswith(prefix)
            and _FRAME.fullmatch(path, len(prefix))
        ):
            raise InputError(f"{place}: found {path!r:.100}, expected {prefix}<name>.jpg")
    path, times = collections.Counter(node).most_common(1)[0]
    if times > 1:
        raise InputError(f"{place}: lists {path} {times} times; list it once")
    moments = _moments(node)
    if moments != sorted(moments):
        trouble = f"the numbers of the {folder} frames are not in ascending order"
        warnings[trouble].append(line.place)
    return schema.Tracklet(
        modality=modality,
        identity=line.identity,
        camera=1 + CAMERAS.index(line.camera),
        frames=tuple(f"DATA/{path}" for path in node),
        row=line.row,
        camera_name=line.camera,
    )


def _moments(frames: Sequence[str]) -> list[int]:
    """Returns the numbers at the ends of the frames' names; none if a name has no number."""
    matches = [_MOMENT.fullmatch(frame) for frame in frames]
    return [int(match[1]) for match in matches if match] if all(matches) else []


def _kind(node: Any) -> str:
    if node == []:
        return "an empty list"
    return {dict: "an object", list: "a list", str: "a string", type(None): "null"}.get(
        type(node), "a number"
    )


def _pairs(
    paths: Any, lines: Sequence[_Line], warnings: _Warnings, findings: Findings
) -> list[schema.Tracklet]:
    """Returns the two tracklets of each line, the visible one first."""
    tracklets = []
    for line in lines:
        with findings.catch():
            visible, infrared = (_tracklet(paths, line, m, warnings) for m in line.modalities)
            length = len(infrared.frames)
            if len(visible.frames) < length:
                raise InputError(
                    f"{line.place}: {PATHS_FILE} lists {len(visible.frames)} RGB and {length} IR "
                    "frames, a pair needs the same number of each"
                )
            if len(visible.frames) > length:
                warnings["more RGB than IR frames, so the last are left out"].append(line.place)
                visible = dataclasses.replace(visible, frames=visible.frames[:length])
            moments = [_moments(tracklet.frames) for tracklet in (visible, infrared)]
            if all(moments) and moments[0] != moments[1]:
                trouble = "the numbers of RGB and IR frames differ, so their times may, too"
                warnings[trouble].append(line.place)
            tracklets += [visible, infrared]
    return tracklets


def _queries_and_gallery(
    paths: Any,
    query_lines: Sequence[_Line],
    gallery_lines: Sequence[_Line],
    warnings: _Warnings,
    findings: Findings,
) -> list[schema.Tracklet]:
    queries = {line[2:]: line for line in query_lines}
    gallery = {line[2:]: line for line in gallery_lines}
    tracklets = []
    for key in [*(key for key in queries if key not in gallery), *gallery]:
        line = queries.get(key) or gallery[key]
        with findings.catch():
            tracklet = _tracklet(paths, line, line.modalities[0], warnings)
            tracklets.append(
                dataclasses.replace(tracklet, query=key in queries, gallery=key in gallery)
            )
    return tracklets


def _length(counts: Mapping[str, int]) -> int:
    """Returns the number of lines in the lists of a split, from its counts."""
    return sum(count for name, count in counts.items() if name != "identities")


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


def renamed(tracklet: schema.Tracklet, rename: Callable[[str], str]) -> schema.Tracklet:
    """Returns the tracklet with other paths of its frames."""
    return dataclasses.replace(tracklet, frames=tuple(map(rename, tracklet.frames)))
