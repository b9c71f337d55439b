"""Pictures for TensorBoard: what the network is trained on."""

import numpy as np
from jaxtyping import UInt8

from data_pipelines.schema import MODALITIES, TrainBatch
from data_pipelines.skeletons.drawing import draw_skeleton


def draw_batch(batch: TrainBatch, pairs: int = 4) -> dict[str, UInt8[np.ndarray, "H W 3"]]:
    """Returns the first pairs of a batch as loaded, one picture of each modality.

    A row of a picture is a tracklet: its frames in order of time, with their skeletons drawn on.
    """
    pictures = {}
    for modality, name in enumerate(MODALITIES):
        frames = batch["frames"][:pairs, :, modality].copy()
        for tracklet, skeletons in zip(
            frames, batch["keypoints"][:pairs, :, modality], strict=True
        ):
            for frame, skeleton in zip(tracklet, skeletons, strict=True):
                draw_skeleton(frame, skeleton)
        pictures[f"first_batch/{name}"] = np.concatenate(np.concatenate(frames, axis=1), axis=1)
    return pictures
