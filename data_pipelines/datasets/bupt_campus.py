"""BUPTCampus: packs its tracklets, and checks it before.

The dataset: Du et al., "Video-based Visible-Infrared Person Re-Identification with Auxiliary
Samples", IEEE Transactions on Information Forensics and Security, 2023. It is licensed, so users
bring it themselves.
"""

import os
import pathlib
from typing import Any, Self

import numpy as np
from jaxtyping import Float32

from data_pipelines import schema
from data_pipelines.datasets import checks
from data_pipelines.datasets.bupt_lists import (
    GOLDEN_COUNTS,
    LISTS,
    check_golden_counts,
    read_index,
    renamed,
    visible_path,
)
from data_pipelines.datasets.findings import Findings
from data_pipelines.records import packing
from data_pipelines.records.source import Source
from data_pipelines.skeletons import sources


def prepare(
    source: str | os.PathLike[str],
    data_dir: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    auxiliary: bool = False,
    fake_infrared: bool = False,
    num_workers: int | None = None,
) -> pathlib.Path:
    """Packs BUPTCampus into `<data_dir>/bupt_campus/1.1.0`, all of it or nothing.

    If the same source is already packed there, it returns at once.

    Args:
      source: the dataset's root, the folder that holds `DATA` and the lists.
      data_dir: where packed datasets are kept.
      keypoints: the skeletons (see `sources.open_keypoints`); None looks in the root.
      auxiliary: whether to pack the auxiliary training list, too, as split "auxiliary".
      fake_infrared: whether to take FakeIR frames in place of the visible ones; these go to
        `<data_dir>/bupt_campus_fake_infrared/1.1.0`.
      num_workers: threads that read and check frames; None uses one per core.

    Returns:
      The directory of the packed dataset.

    Raises:
      FileNotFoundError: a list, a frame or the skeletons are missing.
      ValueError: a file is broken, or the directory holds another source. The message names it.
    """
    index = read_index(source, auxiliary=auxiliary, fake_infrared=fake_infrared)
    kind = _FakeInfrared if fake_infrared else Source
    return packing.prepare(
        kind(source, index.splits, keypoints=keypoints, num_workers=num_workers),
        data_dir,
        "bupt_campus_fake_infrared/1.1.0" if fake_infrared else "bupt_campus/1.1.0",
    )


def check(
    source: str | os.PathLike[str],
    *,
    keypoints: str | os.PathLike[str] | None = None,
    auxiliary: bool = False,
    fake_infrared: bool = False,
    published: bool = True,
    num_workers: int | None = None,
) -> Findings:
    """Reads all that packing would read, and packs nothing.

    Checked are the lists, their counts, every frame, the skeletons, and that every identity has
    tracklets of both modalities.

    Args:
      source: see `prepare`.
      keypoints: see `prepare`.
      auxiliary: see `prepare`.
      fake_infrared: see `prepare`.
      published: whether the counts must be those of the published dataset.
      num_workers: see `prepare`.
    """
    findings = Findings()
    with findings.catch():
        index = read_index(
            source,
            auxiliary=auxiliary,
            fake_infrared=fake_infrared,
            findings=findings,
        )
        if published:
            check_golden_counts(index.counts, findings)
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
        kind = _FakeInfrared if fake_infrared else Source
        checks.check_tracklets(
            findings,
            kind(source, index.splits, keypoints=keypoints, num_workers=num_workers),
            own_cameras=False,
        )
    return findings


def all_tracklets(source: str | os.PathLike[str]) -> list[schema.Tracklet]:
    """Returns the tracklets of all splits, of the auxiliary one if its list is there.

    Raises as `read_index` does.
    """
    auxiliary = all((pathlib.Path(source) / name).exists() for name in LISTS["auxiliary"])
    splits = read_index(source, auxiliary=auxiliary).splits
    return [tracklet for tracklets in splits.values() for tracklet in tracklets]


class _FakeInfrared(Source):
    """BUPTCampus with FakeIR frames, which have the skeletons of the visible ones."""

    def open_keypoints(self) -> sources.Keypoints:
        """Opens the skeletons, for a `with` statement."""
        return _VisibleKeypoints(super().open_keypoints())


class _VisibleKeypoints:
    """The skeletons of the visible frames, for the FakeIR frames made from them."""

    def __init__(self, source: sources.Keypoints):
        self._source = source

    def __enter__(self) -> Self:
        self._source.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._source.__exit__(*error)

    def read(self, tracklet: schema.Tracklet) -> Float32[np.ndarray, "n 17 3"]:
        """Returns float32[n, 17, 3]; see `sources.Keypoints.read`."""
        return self._source.read(renamed(tracklet, visible_path))

    def example(self) -> str | None:
        """Returns the name of a skeleton; see `sources.Keypoints.example`."""
        return self._source.example()
