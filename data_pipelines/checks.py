"""What is wrong with a dataset, found before it is packed."""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines import frames as frames_lib
from data_pipelines import keypoints as keypoints_lib
from data_pipelines import packing, schema
from data_pipelines.progress import with_progress
from data_pipelines.tables import aligned

_SHOWN = 100  # of the things that are wrong


@dataclasses.dataclass
class Findings:
    """What a check has found.

    Attributes:
      tables: rows of cells, the first row a header.
      wrong: one line for each thing that is wrong; empty if all is well.
    """

    tables: list[list[tuple[Any, ...]]] = dataclasses.field(default_factory=list)
    wrong: list[str] = dataclasses.field(default_factory=list)

    def report(self, message: str) -> None:
        """Notes one thing that is wrong."""
        self.wrong.append(message)

    @contextlib.contextmanager
    def catch(self) -> Iterator[None]:
        """Notes an error of reading as a thing that is wrong; what follows it is not checked."""
        try:
            yield
        except (ValueError, OSError) as error:
            self.report(str(error))

    def __str__(self) -> str:
        tables = [aligned([[str(cell) for cell in row] for row in table]) for table in self.tables]
        wrong = self.wrong[:_SHOWN]
        if len(self.wrong) > _SHOWN:
            wrong.append(f"... and {len(self.wrong) - _SHOWN} more")
        verdict = f"wrong ({len(self.wrong)}):" if wrong else "nothing is wrong"
        return "\n".join(["\n\n".join(tables), "", verdict, *(f"- {line}" for line in wrong)])


def check_tracklets(
    findings: Findings,
    builder: packing.TrackletBuilder,
    splits: Mapping[str, Sequence[schema.Tracklet]],
    min_frames: int = 1,
    *,
    both_modalities: bool = True,
    own_cameras: bool = True,
) -> None:
    """Checks frames, skeletons, identities and cameras of a dataset.

    Args:
      findings: is told what is wrong, and gets a table.
      builder: knows where frames and skeletons are.
      splits: the tracklets, also those that are too short to be packed.
      min_frames: identities and cameras are judged by tracklets of so many frames.
      both_modalities: whether an identity must have tracklets of both modalities.
      own_cameras: whether a camera may show a test identity in one modality only; otherwise the
        rule that removes gallery entries of the query's camera removes some.
    """
    table: dict[str, list[Any]] = collections.defaultdict(list)
    for split, tracklets in splits.items():
        kept = [tracklet for tracklet in tracklets if len(tracklet.frames) >= min_frames]
        infrared = sum(tracklet.modality == schema.INFRARED for tracklet in kept)
        frames = sum(len(tracklet.frames) for tracklet in tracklets)
        table["tracklets that are packed"].append(len(kept))
        table["visible ones"].append(len(kept) - infrared)
        table["infrared ones"].append(infrared)
        table["too short"].append(len(tracklets) - len(kept))
        table["identities"].append(len({tracklet.identity for tracklet in kept}))
        table["frames"].append(frames)
        table["unreadable frames"].append(_check_frames(findings, builder, split, tracklets))
        missing = _check_skeletons(findings, builder, split, tracklets)
        share = 100 * missing / max(frames, 1)
        table["frames without a skeleton"].append(f"{missing} ({share:.1f} %)")
        single, few = _identities_short_of_tracklets(kept)
        table["identities seen in one modality"].append(len(single))
        table["with one tracklet of a modality"].append(len(few))
        if both_modalities:
            for identity in single:
                findings.report(
                    f"{split}: identity {identity} has no tracklet of {min_frames} frames in one "
                    "of the modalities, so it cannot be trained on or matched"
                )
        shared = _cameras_of_both_modalities(kept)
        table["cameras of one identity with both"].append(len(shared))
        if own_cameras and split == "test":
            for identity, camera in shared:
                findings.report(
                    f"{split}: camera {camera} shows identity {identity} in both modalities, so "
                    "the same-camera rule would remove gallery entries"
                )
    findings.tables.append([("files", *splits), *((name, *row) for name, row in table.items())])


def _check_frames(
    findings: Findings,
    builder: packing.TrackletBuilder,
    split: str,
    tracklets: Sequence[schema.Tracklet],
) -> int:
    """Decodes every frame; returns how many cannot be."""
    unreadable = 0
    start = time.monotonic()
    errors_of = functools.partial(frames_lib.frame_errors, builder.source)
    with concurrent.futures.ThreadPoolExecutor(builder.num_workers) as pool:
        found = packing.map_ahead(pool, errors_of, tracklets, ahead=4 * builder.num_workers)
        for errors in with_progress(found, len(tracklets), f"{split}: reading"):
            unreadable += len(errors)
            findings.wrong += errors
    frames = sum(len(tracklet.frames) for tracklet in tracklets)
    packing.tell(f"{split}: read {frames / (time.monotonic() - start):.0f} frames/s")
    return unreadable


def _check_skeletons(
    findings: Findings,
    builder: packing.TrackletBuilder,
    split: str,
    tracklets: Sequence[schema.Tracklet],
) -> int:
    """Reads every skeleton; returns how many frames have none."""
    missing = 0
    frames = sum(len(tracklet.frames) for tracklet in tracklets)
    with findings.catch(), builder.open_keypoints() as source:
        for tracklet in with_progress(tracklets, len(tracklets), f"{split}: skeletons"):
            with findings.catch():
                missing += int(keypoints_lib.without_skeleton(source.read(tracklet)).sum())
        if missing == frames and not builder.without_skeletons:
            findings.report(
                f"{split}: no frame has a skeleton; make skeletons of these very frames with "
                "launch/extract_skeletons.py"
            )
        return missing
    return frames


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
