"""File layouts of the generated dataset: those of HITSZ-VCM and of BUPTCampus."""

import collections
import json
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8

from data_pipelines.datasets import bupt_lists
from data_pipelines.schema import INFRARED, VISIBLE
from data_pipelines.synthetic.plan import PlannedTracklet, SyntheticConfig, plan, plan_pairs


class Layout(NamedTuple):
    """How a dataset's files are laid out.

    Attributes:
      plan: takes config and seed, returns the tracklets.
      frame_path: takes a tracklet and the number of one of its frames, returns the path below the
        root; its last four parts, without `.jpg`, are the key of the skeleton.
      pictures: takes path and frame, uint8[H, W, 3], returns the paths and pictures to store.
      write_index: takes root and tracklets, writes the files that list them, and returns identity
        and row of each as the dataset's reader does (`schema.Tracklet`).
    """

    plan: Callable[[SyntheticConfig, int], list[PlannedTracklet]]
    frame_path: Callable[[PlannedTracklet, int], str]
    pictures: Callable[
        [str, UInt8[np.ndarray, "H W 3"]], list[tuple[str, UInt8[np.ndarray, "H _ 3"]]]
    ]
    write_index: Callable[[pathlib.Path, Sequence[PlannedTracklet]], list[tuple[str, int]]]


# --- HITSZ-VCM ----------------------------------------------------------------------------------


def _hitsz_frame(tracklet: PlannedTracklet, number: int) -> str:
    folder = {VISIBLE: "rgb", INFRARED: "ir"}[tracklet.modality]
    split = tracklet.split.capitalize()
    return f"{split}/{tracklet.identity:04}/{folder}/D{tracklet.camera}/{number}.jpg"


def _hitsz_pictures(path: str, frame: np.ndarray) -> list[tuple[str, np.ndarray]]:
    return [(path, frame)]


def _write_hitsz_index(
    root: pathlib.Path, planned: Sequence[PlannedTracklet]
) -> list[tuple[str, int]]:
    codes = {VISIBLE: 2, INFRARED: 1}
    (root / "info").mkdir()
    for split in ("train", "test"):
        names: list[str] = []
        rows: list[str] = []
        queries: list[str] = []
        for tracklet in planned:
            if tracklet.split != split:
                continue
            code, pid, camera = codes[tracklet.modality], tracklet.identity, tracklet.camera
            first = len(names) + 1
            names += [
                f"{pid:04}M{code}D{camera}T{tracklet.track}F{frame}.jpg"
                for frame in tracklet.frames
            ]
            rows.append(f"{code} {first} {len(names)} {pid:04} {camera}")
            if tracklet.modality == INFRARED:
                queries.append(str(tracklet.row))
        (root / "info" / f"{split}_name.txt").write_text("\n".join(names) + "\n", "utf-8")
        (root / "info" / f"track_{split}_info.txt").write_text("\n".join(rows) + "\n", "utf-8")
    (root / "info" / "query_IDX.txt").write_text(
        " ".join(queries) + "\n", "utf-8"
    )  # the test split's
    return [(f"{tracklet.identity:04}", tracklet.row) for tracklet in planned]


# --- BUPTCampus ---------------------------------------------------------------------------------


def _bupt_frame(tracklet: PlannedTracklet, number: int) -> str:
    pid, modality, camera, track = _bupt_words(tracklet)
    return f"DATA/{pid}/{modality}/{camera}/{pid}_{modality}_{camera}_{track}_{number}.jpg"


def _bupt_words(tracklet: PlannedTracklet) -> tuple[str, str, str, str]:
    return (
        str(tracklet.identity),
        bupt_lists.FOLDERS[tracklet.modality],
        bupt_lists.CAMERAS[tracklet.camera - 1],
        str(tracklet.track),
    )


def _bupt_pictures(path: str, frame: np.ndarray) -> list[tuple[str, np.ndarray]]:
    """Returns the frame and, of a visible one, FakeIR: its luminance instead of a translation."""
    fake = bupt_lists.fake_infrared_path(path)
    if fake == path:
        return [(path, frame)]
    gray = cv2.cvtColor(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return [(path, frame), (fake, gray)]


def _write_bupt_index(
    root: pathlib.Path, planned: Sequence[PlannedTracklet]
) -> list[tuple[str, int]]:
    """Writes the lists: all test tracklets are the gallery, and one of each identity is a query.

    Two of three queries are visible, so that the two directions differ in size.
    """
    paths: dict[str, Any] = collections.defaultdict(
        lambda: collections.defaultdict(lambda: collections.defaultdict(dict))
    )
    lines: dict[str, list[str]] = {
        name: [] for names in bupt_lists.LISTS.values() for name in names
    }
    queried: set[int] = set()
    listed: list[tuple[str, int]] = []
    for tracklet in planned:
        pid, modality, camera, track = _bupt_words(tracklet)
        frames = [_bupt_frame(tracklet, number) for number in tracklet.frames]
        paths[pid][modality][camera][track] = [frame.removeprefix("DATA/") for frame in frames]
        if tracklet.split != "test":
            if tracklet.modality == VISIBLE:  # the infrared one of the pair follows
                name = bupt_lists.LISTS[tracklet.split][0]
                lines[name].append(f"{pid} RGB/IR {camera} {track}")
            listed.append((pid, tracklet.row))
            continue
        line = f"{pid} {modality} {camera} {track}"
        lines["gallery.txt"].append(line)
        row = len(lines["gallery.txt"])
        is_visible = tracklet.modality == VISIBLE
        if tracklet.identity not in queried and is_visible == (tracklet.identity % 3 > 0):
            queried.add(tracklet.identity)
            lines["query.txt"].append(line)
            row = len(lines["query.txt"])
        listed.append((pid, row))
    for name, content in lines.items():
        (root / name).write_text("\n".join(content) + "\n", "utf-8")
    (root / bupt_lists.PATHS_FILE).write_text(json.dumps(paths), "utf-8")
    return listed


LAYOUTS: Mapping[str, Layout] = {
    "hitsz_vcm": Layout(plan, _hitsz_frame, _hitsz_pictures, _write_hitsz_index),
    "bupt_campus": Layout(plan_pairs, _bupt_frame, _bupt_pictures, _write_bupt_index),
}
