"""Tracking: who follows whom, and that a tracklet is cut rather than shows two people."""

import itertools

import numpy as np
import pytest

from data_pipelines.footage import tracking
from data_pipelines.footage.tracking import Detections, Tracker

WIDTH, HEIGHT = 40, 100


def box(x, y=100.0, width=WIDTH, height=HEIGHT):
    """Returns the box with this center."""
    return (x - width / 2, y - height / 2, width, height)


def track(frames, score=0.9):
    """Tracks lists of boxes, or of (box, score); returns each tracklet's frames and boxes."""
    tracker = Tracker(min_score=0.5)
    tracklets = {}
    for number, people in enumerate(frames):
        people = [person if len(person) == 2 else (person, score) for person in people]
        boxes = np.array([found for found, _ in people], float).reshape(-1, 4)
        for sighting in tracker.update(Detections(boxes, np.array([s for _, s in people], float))):
            assert sighting.tracklet in tracker.tracklets()
            tracklets.setdefault(sighting.tracklet, []).append((number, *sighting.box))
    return [np.array(rows) for rows in tracklets.values()]


def frames_of(tracklets):
    return [rows[:, 0].astype(int).tolist() for rows in tracklets]


def test_a_walker_is_one_tracklet():
    places = [box(50 + 10 * frame, 100 + frame, height=HEIGHT + frame) for frame in range(30)]
    (tracklet,) = track([place] for place in places)
    np.testing.assert_array_equal(tracklet, [(n, *place) for n, place in enumerate(places)])


def test_a_fast_walker_is_found_where_constant_velocity_says():
    """Successive boxes of a runner at full speed do not touch."""
    steps = np.minimum(5 * np.arange(30), 60)
    (tracklet,) = track([box(place)] for place in np.cumsum(steps))
    assert len(tracklet) == 30
    assert tracklet[-1, 1] - tracklet[-2, 1] > WIDTH


def crossing(frames=60, speed=5.0, start=300.0):
    """Returns the centers of two people who walk past each other, float[frames, 2]."""
    time = np.arange(frames)
    return np.stack([speed * time, start - speed * time], axis=1)


def shared(first, second):
    """Returns the area that two boxes of one size and height share, by that of one of them."""
    return max(WIDTH - abs(first - second), 0) / WIDTH


@pytest.mark.parametrize("hidden", [None, 0.3, 0.6])
@pytest.mark.parametrize("reverse", [False, True])
def test_two_people_who_cross_are_cut(hidden, reverse):
    """The detector may lose the person behind where more than a share of the box is covered."""
    places = crossing()
    frames = []
    for first, second in places:
        lost = hidden is not None and shared(first, second) > hidden
        people = [box(first), box(second)][: 1 if lost else 2]
        frames.append(people[::-1] if reverse else people)
    tracklets = track(frames)
    meeting = [n for n, pair in enumerate(places) if shared(*pair) > tracking._MAX_SHARED]
    assert meeting
    for rows in tracklets:
        people = {int(np.abs(places[int(n)] - (x + WIDTH / 2)).argmin()) for n, x, *_ in rows}
        assert len(people) == 1
        assert not set(rows[:, 0]) & set(meeting)
        assert rows[:, 0].max() < meeting[0] or rows[:, 0].min() > meeting[-1]
    assert len(tracklets) == 4
    seen = sum(len(rows) for rows in tracklets)
    assert seen >= 2 * (len(frames) - len(meeting)) - 2 * tracking._MAX_LOST


def test_people_who_walk_side_by_side_are_not_cut():
    frames = [[box(5 * n), box(5 * n + 0.8 * WIDTH)] for n in range(20)]
    assert frames_of(track(frames)) == [list(range(20))] * 2


def test_a_small_person_behind_a_large_one_counts_as_overlap():
    large, small = box(100, 200, 100, 300), box(110, 150, 20, 60)
    assert track([[large, small]] * 5) == []


def test_others_stay_away_from_where_a_lost_person_should_be():
    """One is lost behind a pillar; another one comes out where the first would be a bit later."""
    walk = [[box(100 + 5 * n)] for n in range(20)] + [[]] * 2
    ahead = 100 + 5 * len(walk) + 0.65 * WIDTH  # too far to be the first one, but overlapping
    first, second = frames_of(track(walk + [[box(ahead)]] * 20))
    assert first == list(range(20))
    assert second[0] > len(walk)
    assert second[-1] == len(walk) + 19


@pytest.mark.parametrize("gap", [1, tracking._MAX_GAP, tracking._MAX_GAP + 1])
def test_a_gap_is_bridged_up_to_a_length(gap):
    frames = [[box(5 * n)] if not 10 <= n < 10 + gap else [] for n in range(30)]
    seen = [n for n in range(30) if frames[n]]
    cut = gap > tracking._MAX_GAP
    assert frames_of(track(frames)) == ([seen[:10], seen[10:]] if cut else [seen])


@pytest.mark.parametrize(("jump", "cut"), [(0.2, False), (0.3, True), (0.5, True), (3.0, True)])
def test_a_jump_cuts(jump, cut):
    """The jump is down, as a share of the height, in addition to the walk."""
    frames = [[box(5 * n, 100 + jump * HEIGHT * (n >= 10))] for n in range(20)]
    expected = [list(range(10)), list(range(10, 20))] if cut else [list(range(20))]
    assert frames_of(track(frames)) == expected


@pytest.mark.parametrize(("factor", "cut"), [(1.3, False), (0.8, False), (1.7, True), (0.55, True)])
def test_a_box_of_another_size_cuts(factor, cut):
    frames = [[box(5 * n, height=HEIGHT * (factor if n >= 10 else 1))] for n in range(20)]
    assert len(track(frames)) == 1 + cut


def test_low_scores_continue_a_track_and_begin_none():
    low, lowest = (0.2, tracking.LOWEST_SCORE / 2)
    frames = [[(box(50), 0.9 if n < 5 or n > 15 else low), (box(300), low)] for n in range(20)]
    assert frames_of(track(frames)) == [list(range(20))]
    frames = [[(box(50), 0.9 if n < 5 else lowest)] for n in range(20)]
    assert frames_of(track(frames)) == [list(range(5))]
    frames = [[(box(50), 0.9 if n < 5 else low)] if n != 7 else [] for n in range(20)]
    assert frames_of(track(frames)) == [list(range(7))]  # after a gap it takes a high score


def test_no_frames_without_people_are_a_problem():
    assert track([[]] * 20) == []
    assert frames_of(track([[], [box(50)], []])) == [[1]]


def test_the_assignment_has_the_largest_sum_of_ious():
    rng = np.random.default_rng(0)
    for _ in range(20):
        start = np.column_stack([rng.uniform(0, 60, (4, 2)), rng.uniform(30, 60, (4, 2))])
        moved = (start + rng.normal(0, 6, start.shape))[rng.permutation(4)]
        tracks = [tracking._Track(row, 1.0, frames_since=1) for row in start]
        begun = tracking._follow(tracks, Detections(moved, np.ones(4)), 0.0)
        found = [
            next(
                (n for n, row in enumerate(moved) if row is track.box or (row == track.box).all()),
                None,
            )
            for track in tracks
        ]
        best = max(
            itertools.permutations(range(4)),
            key=lambda order: sum(iou(start[n], moved[m]) for n, m in enumerate(order)),
        )
        expected = [m if iou(start[n], moved[m]) > 0 else None for n, m in enumerate(best)]
        assert found == expected
        assert len(begun) == expected.count(None)


def iou(first, second):
    """Counts pixels of a fine grid in both boxes and in either."""
    inside = []
    for left, top, width, height in (first, second):
        x, y = np.meshgrid(np.arange(-30.0, 160), np.arange(-30.0, 160))
        inside.append((x >= left) & (x < left + width) & (y >= top) & (y < top + height))
    return (inside[0] & inside[1]).sum() / (inside[0] | inside[1]).sum()


@pytest.mark.parametrize("seed", range(5))
def test_no_tracklet_of_a_crowd_shows_two_people(seed):
    """Eight people on straight paths; whoever is covered by half is lost, and anybody at times."""
    rng = np.random.default_rng(seed)
    count, length = 8, 200
    start, end = rng.uniform(50, 750, (2, count, 2)) * (1, 0.5)
    time = np.linspace(0, 1, length)[:, None, None]
    places = start + (end - start) * time
    frames, truth = [], []
    for centers in places:
        shown, front = [], []
        for person in range(count):  # from front to back
            apart = [np.abs(centers[person] - centers[other]) for other in front]
            hidden = any(
                max(WIDTH - x, 0) * max(HEIGHT - y, 0) > 0.5 * WIDTH * HEIGHT for x, y in apart
            )
            if not hidden and rng.random() < 0.95:
                shown.append(person)
            front.append(person)
        noisy = centers[shown] + rng.normal(0, 1.5, (len(shown), 2))
        frames.append([box(*center) for center in noisy])
        truth.append((shown, noisy))
    tracklets = track(frames)
    covered = set()
    for rows in tracklets:
        people = set()
        for number, left, top, *_ in rows:
            shown, noisy = truth[int(number)]
            distance = np.abs(noisy - (left + WIDTH / 2, top + HEIGHT / 2)).sum(axis=1)
            people.add(int(shown[distance.argmin()]))
        assert len(people) == 1
        covered |= people
    assert covered == set(range(count))
    assert sum(len(rows) for rows in tracklets) > 0.4 * count * length
