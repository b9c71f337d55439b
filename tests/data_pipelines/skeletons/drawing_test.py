"""Skeletons drawn onto pictures."""

import numpy as np

from data_pipelines.skeletons.drawing import draw_skeleton


def colored(picture, color):
    """Returns x, y of the pixels of exactly this color."""
    rows, columns = np.nonzero((picture == color).all(-1))
    return set(zip(columns.tolist(), rows.tolist(), strict=True))


def test_joints_and_edges_are_where_they_were_detected():
    picture, skeleton = np.zeros((40, 60, 3), np.uint8), np.zeros((17, 3), np.float32)
    skeleton[5] = 10, 20, 1.0  # the shoulders, which an edge joins
    skeleton[6] = 50, 20, 0.1
    skeleton[16] = 30, 5, 0.0  # not detected
    draw_skeleton(picture, skeleton)
    assert (10, 20) in colored(picture, (0, 255, 0))
    assert (50, 20) in colored(picture, (255, 0, 0))
    red, green, blue = picture[20, 14:47].T  # the edge is smoothed
    assert (red > 150).all() and (green > 150).all() and (blue == 0).all()
    painted = np.argwhere(picture.any(-1))
    assert painted[:, 0].min() >= 17 and painted[:, 0].max() <= 23


def test_nothing_is_drawn_without_a_skeleton():
    picture = np.full((20, 20, 3), 7, np.uint8)
    draw_skeleton(picture, np.zeros((17, 3), np.float32))
    assert (picture == 7).all()
