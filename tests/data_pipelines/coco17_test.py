"""The skeleton's constants, and which joints are detected."""

import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.coco17 import EDGES, JOINTS, MIRROR, is_detected

# As the paper's code lists them.
PUBLISHED_EDGES = """
(15,13) (13,11) (16,14) (14,12) (11,12) (5,11) (6,12) (5,6) (5,7) (6,8)
(7,9) (8,10) (1,2) (0,1) (0,2) (1,3) (2,4) (3,5) (4,6)
"""


def test_edges_are_the_published_ones_in_their_order():
    pairs = [pair.strip("()").split(",") for pair in PUBLISHED_EDGES.split()]
    assert [(int(i), int(j)) for i, j in pairs] == list(EDGES)


def test_the_skeleton_is_symmetric():
    undirected = {frozenset(edge) for edge in EDGES}
    assert len(undirected) == len(EDGES) == 19
    assert {frozenset(MIRROR[joint] for joint in edge) for edge in undirected} == undirected


def test_mirror_swaps_left_and_right():
    assert len(JOINTS) == len(MIRROR) == 17
    for joint, mirrored in enumerate(MIRROR):
        assert MIRROR[mirrored] == joint
        swapped = {"left": "right", "right": "left"}
        side, _, part = JOINTS[joint].partition("_")
        expected = f"{swapped[side]}_{part}" if side in swapped else JOINTS[joint]
        assert JOINTS[mirrored] == expected


@pytest.mark.parametrize("library", [np, jnp])
def test_joints_of_confidence_zero_are_not_detected(library):
    keypoints = np.ones((2, 17, 3), np.float32)
    keypoints[0, 5, 2] = 0
    keypoints[1, 7, :2] = 0  # at the origin, and yet detected
    keypoints[1, 8, 2] = 1e-6
    detected = is_detected(library.asarray(keypoints))
    assert isinstance(detected, library.ndarray) and detected.shape == (2, 17)
    assert np.argwhere(~np.asarray(detected)).tolist() == [[0, 5]]
