"""The skeleton's constants and the edges of the space-time graph."""

import subprocess
import sys

import numpy as np
import pytest

from star_jax.graphs import EDGES, JOINTS, MIRROR, tracklet_edges

# As STAR.md lists them.
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


def edges_by_loops(num_frames, skeleton_in_every_frame):
    edges = []
    for t in range(num_frames):
        for j in range(17):
            edges.append((t * 17 + j, t * 17 + j))
            if t + 1 < num_frames:
                edges.append((t * 17 + j, (t + 1) * 17 + j))
                edges.append(((t + 1) * 17 + j, t * 17 + j))
        if skeleton_in_every_frame or t == 0:
            for i, j in EDGES:
                edges.append((t * 17 + i, t * 17 + j))
                edges.append((t * 17 + j, t * 17 + i))
    return edges


@pytest.mark.parametrize("skeleton_in_every_frame", [False, True])
@pytest.mark.parametrize("num_frames", [1, 2, 5, 12])
def test_tracklet_edges_are_those_of_the_loops(num_frames, skeleton_in_every_frame):
    senders, receivers = tracklet_edges(num_frames, skeleton_in_every_frame=skeleton_in_every_frame)
    edges = list(zip(senders.tolist(), receivers.tolist(), strict=True))
    assert sorted(edges) == sorted(edges_by_loops(num_frames, skeleton_in_every_frame))
    assert len(set(edges)) == len(edges)
    assert senders.dtype == receivers.dtype == np.int32
    assert (np.diff(receivers) >= 0).all()


def test_importing_the_skeleton_does_not_import_jax():
    code = "import sys, star_jax.graphs; print('jax' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "False"
