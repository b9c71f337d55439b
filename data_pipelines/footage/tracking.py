"""Joins the detections of successive frames into tracklets of one person each.

Detections are associated as in ByteTrack (https://arxiv.org/abs/2110.06864): those of high score
with the boxes that constant velocity predicts, then those of low score with the tracks that remain,
each time so that the sum of the overlaps is largest. A tracker for re-identification must not mix
people, and need not follow anyone through a crowd: a tracklet ends where it becomes uncertain
whether it still shows only the same person, and another one begins after that.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float64
from scipy import optimize

LOWEST_SCORE = 0.1  # of detections that may continue a track
_MIN_IOU = 0.3  # of a detection and the predicted box
_MIN_IOU_UNSURE = 0.5  # of a detection of low score
_MAX_GAP = 3  # frames without a detection within a tracklet
_MAX_LOST = 10  # frames for which others must stay away from where a lost person should be
_MAX_SHARED = 0.3  # area that two boxes share, by that of the smaller one
_MAX_JUMP = 0.25  # of the center from where it is predicted, as a share of the height
_MAX_RESIZING = 1.5  # of the height, from one detection to the next
_GAIN = 0.5  # of the last motion in the velocity


class Detections(NamedTuple):
    """The n people that a detector finds in a frame.

    Attributes:
      boxes: float64[n, 4], left, top, width and height in pixels; (0, 0) is the frame's corner.
      scores: float64[n], from 0 to 1.
    """

    boxes: Float64[np.ndarray, "n 4"]
    scores: Float64[np.ndarray, " n"]


class Sighting(NamedTuple):
    """A person in a frame: tracklet's number, box float64[4] as in `Detections`, score."""

    tracklet: int
    box: Float64[np.ndarray, "4"]
    score: float


@dataclasses.dataclass(eq=False)
class _Track:
    box: np.ndarray  # float64[4], of the last detection
    score: float
    velocity: np.ndarray | None = None  # float64[2], pixels per frame; None after one detection
    frames_since: int = 0  # the last detection
    tracklet: int | None = None  # None while the identity is uncertain

    def predict(self) -> np.ndarray:
        """Returns the box where the person should be now."""
        if self.velocity is None:
            return self.box
        predicted: np.ndarray = self.box + np.append(self.frames_since * self.velocity, [0, 0])
        return predicted

    def follow(self, box: np.ndarray, score: float) -> None:
        """Moves to a detection; ends the tracklet if the person should be elsewhere."""
        jump = np.hypot(*(_center(box) - _center(self.predict())))
        resizing = box[3] / self.box[3]
        if jump > _MAX_JUMP * box[3] or not 1 / _MAX_RESIZING < resizing < _MAX_RESIZING:
            self.tracklet = self.velocity = None
        else:
            motion = (_center(box) - _center(self.box)) / self.frames_since
            before = motion if self.velocity is None else self.velocity
            self.velocity = _GAIN * motion + (1 - _GAIN) * before
        self.box, self.score, self.frames_since = box, score, 0


class Tracker:
    """Follows the people of one video, from frame to frame.

    Args:
      min_score: of a detection that begins a track.
    """

    def __init__(self, min_score: float):
        self._min_score = min_score
        self._tracks: list[_Track] = []
        self._count = 0

    def update(self, detections: Detections) -> list[Sighting]:
        """Returns who is seen in the next frame, without people whose boxes overlap."""
        for track in self._tracks:
            track.frames_since += 1
        sure = detections.scores >= self._min_score
        unsure = ~sure & (detections.scores >= LOWEST_SCORE)
        begun = _follow(self._tracks, _select(detections, sure), _MIN_IOU)
        # A low score continues a track, but does not recover one that was lost.
        recent = [track for track in self._tracks if track.frames_since == 1]
        _follow(recent, _select(detections, unsure), _MIN_IOU_UNSURE)
        for track in self._tracks:
            if track.frames_since > _MAX_GAP:
                track.tracklet = None
        kept = [track for track in self._tracks if track.frames_since <= _MAX_LOST]
        self._tracks = kept + begun
        return self._sightings()

    def tracklets(self) -> set[int]:
        """Returns the numbers of the tracklets that may go on."""
        return {track.tracklet for track in self._tracks if track.tracklet is not None}

    def _sightings(self) -> list[Sighting]:
        """Ends the tracklets of overlapping tracks, and begins those of others that have none."""
        places = np.array([track.predict() for track in self._tracks]).reshape(-1, 4)
        sightings = []
        for track, overlaps in zip(self._tracks, _overlapping(places), strict=True):
            if overlaps:
                track.tracklet = None
            elif not track.frames_since:
                if track.tracklet is None:
                    track.tracklet = self._count
                    self._count += 1
                sightings.append(Sighting(track.tracklet, track.box, track.score))
        return sightings


def _select(detections: Detections, chosen: Bool[np.ndarray, " n"]) -> Detections:
    return Detections(detections.boxes[chosen], detections.scores[chosen])


def _follow(tracks: list[_Track], detections: Detections, min_iou: float) -> list[_Track]:
    """Moves tracks to detections, by the largest sum of IoUs; returns tracks of the other ones."""
    predicted = np.array([track.predict() for track in tracks]).reshape(-1, 4)
    boxes, scores = detections
    shared = _intersections(predicted, boxes)
    iou = shared / (_areas(predicted)[:, None] + _areas(boxes) - shared)
    iou[iou < min_iou] = 0
    begun = dict(enumerate(map(_Track, boxes, scores)))
    for track, detection in zip(*optimize.linear_sum_assignment(iou, maximize=True), strict=True):
        if iou[track, detection]:
            tracks[track].follow(boxes[detection], scores[detection])
            del begun[detection]
    return list(begun.values())


def _center(box: Float64[np.ndarray, "4"]) -> Float64[np.ndarray, "2"]:
    return box[:2] + box[2:] / 2


def _areas(boxes: Float64[np.ndarray, "n 4"]) -> Float64[np.ndarray, " n"]:
    areas: np.ndarray = boxes[:, 2:].prod(axis=1)
    return areas


def _intersections(
    first: Float64[np.ndarray, "n 4"], second: Float64[np.ndarray, "m 4"]
) -> Float64[np.ndarray, "n m"]:
    """Returns float64[n, m], the areas that each two boxes share."""
    start = np.maximum(first[:, None, :2], second[:, :2])
    end = np.minimum(first[:, None, :2] + first[:, None, 2:], second[:, :2] + second[:, 2:])
    areas: np.ndarray = np.maximum(end - start, 0).prod(axis=-1)
    return areas


def _overlapping(boxes: Float64[np.ndarray, "n 4"]) -> Bool[np.ndarray, " n"]:
    """Returns bool[n], whether a box overlaps another one too much to show one person."""
    areas = _areas(boxes)
    shares = _intersections(boxes, boxes) / np.minimum(areas[:, None], areas)
    np.fill_diagonal(shares, 0)
    overlapping: np.ndarray = (shares > _MAX_SHARED).any(axis=1)
    return overlapping
