"""Checks a dataset before it is packed."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from data_pipelines import schema
from data_pipelines.datasets import skeleton_checks
from data_pipelines.datasets.findings import Findings
from data_pipelines.io import frames as frames_lib
from data_pipelines.io.progress import map_ahead, with_progress
from data_pipelines.io.terminal import log
from data_pipelines.records import conditions
from data_pipelines.records.record import checked
from data_pipelines.records.source import Source
from data_pipelines.skeletons import sources
from data_pipelines.skeletons.sheets import evenly_spaced

_SAMPLE = 200  # tracklets of a split, some of whose skeletons are compared with their frames
_SKELETONS = 3  # of each


def check_tracklets(
    findings: Findings,
    source: Source,
    min_frames: int = 1,
    *,
    both_modalities: bool = True,
    own_cameras: bool = True,
) -> None:
    """Checks frames, skeletons, conditions, identities and cameras of a dataset.

    Args:
      findings: collects the problems, and gets a table.
      source: of the dataset; its splits include the tracklets that are too short to be packed.
      min_frames: only tracklets with at least this many frames count for identities and cameras.
      both_modalities: whether an identity must have tracklets of both modalities.
      own_cameras: whether a camera may show a test identity in one modality only; otherwise the
        rule that removes gallery entries of the query's camera removes some.
    """
    table: dict[str, list[Any]] = collections.defaultdict(list)
    packed = {
        split: [tracklet for tracklet in tracklets if len(tracklet.frames) >= min_frames]
        for split, tracklets in source.splits.items()
    }
    with findings.catch():
        conditions.with_conditions(source.root, checked(source.root, packed))
    missing = _check_skeletons(findings, source)
    for split, tracklets in source.splits.items():
        kept = packed[split]
        infrared = sum(tracklet.modality == schema.INFRARED for tracklet in kept)
        frames = _count_frames(tracklets)
        table["tracklets that are packed"].append(len(kept))
        table["visible ones"].append(len(kept) - infrared)
        table["infrared ones"].append(infrared)
        table["too short"].append(len(tracklets) - len(kept))
        table["identities"].append(len({tracklet.identity for tracklet in kept}))
        table["frames"].append(frames)
        table["unreadable frames"].append(_check_frames(findings, source, split, tracklets))
        share = 100 * missing[split] / max(frames, 1)
        table["frames without a skeleton"].append(f"{missing[split]} ({share:.1f} %)")
        single, few = _identities_short_of_tracklets(kept)
        table["identities seen in one modality"].append(len(single))
        table["with one tracklet of a modality"].append(len(few))
        if both_modalities:
            for identity in single:
                findings.report(
                    f"{split}: identity {identity} has no tracklet of {min_frames} frames in one "
                    "of the modalities, so it cannot be trained on or matched",
                    f"the identities of {split}",
                )
        shared = _cameras_of_both_modalities(kept)
        table["cameras of one identity with both"].append(len(shared))
        if own_cameras and split == "test":
            for identity, camera in shared:
                findings.report(
                    f"{split}: camera {camera} shows identity {identity} in both modalities, so "
                    "the same-camera rule would remove gallery entries",
                    f"the cameras of {split}",
                )
    findings.tables.append(
        [("files", *source.splits), *((name, *row) for name, row in table.items())]
    )


def _count_frames(tracklets: Sequence[schema.Tracklet]) -> int:
    return sum(len(tracklet.frames) for tracklet in tracklets)


def _check_frames(
    findings: Findings, source: Source, split: str, tracklets: Sequence[schema.Tracklet]
) -> int:
    """Decodes every frame; returns how many are unreadable."""
    unreadable = 0
    start = time.monotonic()
    errors_of = functools.partial(frames_lib.frame_errors, source.root)
    with concurrent.futures.ThreadPoolExecutor(source.num_workers) as pool:
        found = map_ahead(pool, errors_of, tracklets, ahead=4 * source.num_workers)
        for errors in with_progress(found, len(tracklets), f"{split}: reading"):
            unreadable += len(errors)
            for error in errors:
                findings.report(error, f"the frames of {split}")
    rate = _count_frames(tracklets) / (time.monotonic() - start)
    log(f"{split}: read {rate:.0f} frames/s")
    return unreadable


def _check_skeletons(findings: Findings, source: Source) -> dict[str, int]:
    """Reads every skeleton; returns how many frames of each split have none."""
    missing = {split: _count_frames(tracklets) for split, tracklets in source.splits.items()}
    with findings.catch("the skeletons"), source.open_keypoints() as opened:
        for split, tracklets in source.splits.items():
            frames = missing[split]
            missing[split] = _check_skeletons_of_split(findings, source, opened, split, tracklets)
            if missing[split] == frames > 0 and not source.without_skeletons:
                trouble = sources.no_match(opened, tracklets[0].frames[0])
                findings.report(f"{split}: {trouble}", "the skeletons")
    return missing


def _check_skeletons_of_split(
    findings: Findings,
    source: Source,
    opened: sources.Keypoints,
    split: str,
    tracklets: Sequence[schema.Tracklet],
) -> int:
    """Reads a split's skeletons, compares some with their frames; returns how many are missing."""
    missing = 0
    sample: list[tuple[schema.Tracklet, np.ndarray]] = []  # some frames, and their skeletons
    step = -(-len(tracklets) // _SAMPLE) | 1  # odd, since modalities may alternate
    passing = with_progress(tracklets, len(tracklets), f"{split}: skeletons")
    for number, tracklet in enumerate(passing):
        with findings.catch(f"the skeletons of {split}"):
            keypoints = opened.read(tracklet)
            empty = sources.without_skeleton(keypoints)
            missing += int(empty.sum())
            if number % step == 0 and not empty.all():
                present = np.flatnonzero(~empty)
                chosen = present[evenly_spaced(len(present), _SKELETONS)]
                frames = tuple(tracklet.frames[frame] for frame in chosen)
                sample.append((dataclasses.replace(tracklet, frames=frames), keypoints[chosen]))
    for modality, name in enumerate(schema.MODALITIES):
        parts = [part for part in sample if part[0].modality == modality]
        if fault := skeleton_checks.find_fault(_with_sizes(source, parts)):
            findings.report(f"{source.keypoints_path}: {split}, {name}: {fault}", "the skeletons")
    return missing


def _with_sizes(
    source: Source, parts: Sequence[tuple[schema.Tracklet, np.ndarray]]
) -> list[skeleton_checks.Sample]:
    """Returns skeletons with the sizes of their frames."""
    samples = []
    for tracklet, skeletons in parts:
        with contextlib.suppress(ValueError, OSError):  # broken frames are reported elsewhere
            pictures = frames_lib.read_images(source.root, tracklet)
            for frame, picture, skeleton in zip(tracklet.frames, pictures, skeletons, strict=True):
                height, width = picture.shape[:2]
                samples.append(skeleton_checks.Sample(frame, (width, height), skeleton))
    return samples


def _identities_short_of_tracklets(
    tracklets: Sequence[schema.Tracklet],
) -> tuple[list[str], list[str]]:
    """Returns identities without tracklets of one modality, and those with a single one."""
    counts: dict[str, list[int]] = collections.defaultdict(lambda: [0, 0])
    for tracklet in tracklets:
        counts[tracklet.identity][tracklet.modality] += 1
    fewest = {identity: min(count) for identity, count in sorted(counts.items())}
    return [i for i, count in fewest.items() if count == 0], [
        i for i, count in fewest.items() if count == 1
    ]


def _cameras_of_both_modalities(tracklets: Sequence[schema.Tracklet]) -> list[tuple[str, int]]:
    views = [
        {(t.identity, t.camera) for t in tracklets if t.modality == modality}
        for modality in (schema.VISIBLE, schema.INFRARED)
    ]
    return sorted(views[0] & views[1])
