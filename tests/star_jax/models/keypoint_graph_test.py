"""The edges of the space-time graph of keypoints."""

import numpy as np
import pytest

from data_pipelines.coco17 import EDGES
from star_jax.models.keypoint_graph import tracklet_edges


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
