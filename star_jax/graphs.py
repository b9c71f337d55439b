"""The COCO-17 skeleton: joints, edges and mirror pairs, and the graphs that STAR builds from them.

Everything here is a constant or a pure NumPy function of sizes, so the data pipelines may import it
without starting JAX.
"""

import numpy as np

JOINTS = (
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
)

# Order and direction follow the authors' network: the edge features are read in this order.
EDGES = (
    (15, 13),
    (13, 11),
    (16, 14),
    (14, 12),
    (11, 12),
    (5, 11),
    (6, 12),
    (5, 6),
    (5, 7),
    (6, 8),
    (7, 9),
    (8, 10),
    (1, 2),
    (0, 1),
    (0, 2),
    (1, 3),
    (2, 4),
    (3, 5),
    (4, 6),
)

# MIRROR[j] is the joint that joint j becomes when the picture is flipped left to right.
MIRROR = (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 16, 15)


def tracklet_edges(
    num_frames: int, *, skeleton_in_every_frame: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Edges of the space-time keypoint graph of one tracklet (STAR, sequence level).

    Node `t * 17 + j` is joint j in frame t. Joints are linked along the skeleton inside a frame and
    to themselves in the next frame, both ways, and every node has a self loop.

    Args:
      num_frames: frames per tracklet, T.
      skeleton_in_every_frame: False links the joints along the skeleton in frame 0 only, as the
        authors' code does (setting `reference`).

    Returns:
      senders and receivers, int32[edges] each, in ascending order of the receivers.
    """
    num_joints = len(JOINTS)
    skeleton = np.array(EDGES)
    skeleton_frames = np.arange(num_frames if skeleton_in_every_frame else 1)
    within = (skeleton_frames[:, None, None] * num_joints + skeleton).reshape(-1, 2)
    nodes = np.arange(num_frames * num_joints)
    forward_in_time = np.stack([nodes[:-num_joints], nodes[num_joints:]], axis=1)
    one_way = np.concatenate([within, forward_in_time])
    self_loops = np.stack([nodes, nodes], axis=1)
    edges = np.concatenate([one_way, one_way[:, ::-1], self_loops]).astype(np.int32)
    edges = edges[np.argsort(edges[:, 1], kind="stable")]
    return edges[:, 0], edges[:, 1]
