"""A picture that gives an overview of a dataset."""

import os
from collections.abc import Sequence

import numpy as np

from data_pipelines import schema
from data_pipelines.io import frames as frames_lib
from data_pipelines.skeletons import sources
from data_pipelines.skeletons.drawing import draw_skeleton
from data_pipelines.skeletons.sheets import evenly_spaced, write_picture

_GAP = 4


def contact_sheet(
    root: str | os.PathLike[str],
    tracklets: Sequence[schema.Tracklet],
    path: str | os.PathLike[str],
    *,
    identities: int = 8,
    rows: int = 2,
    frames: int = 6,
) -> None:
    """Writes a PNG that shows the first identities, two side by side.

    For each: rows of visible tracklets above rows of infrared ones, frames in the order of time.
    The first row of each modality also shows the estimated skeleton, joints of confidence below 0.3
    in red.

    Args:
      root: of a dataset whose frames have one size and whose skeletons lie in the root.
      tracklets: those of one of its splits.
      path: of the PNG.
      identities: number of identities.
      rows: number of tracklets of each modality.
      frames: number of frames of each tracklet, spread evenly.

    Raises:
      FileNotFoundError: a frame or the skeletons are missing.
      ValueError: a frame is broken.
    """
    blocks = []
    with sources.open_keypoints(sources.find_keypoints(root)) as keypoints:
        for identity in sorted({tracklet.identity for tracklet in tracklets})[:identities]:
            strips = []
            for modality in range(len(schema.MODALITIES)):
                own = [t for t in tracklets if (t.identity, t.modality) == (identity, modality)]
                for position, tracklet in enumerate(own[:rows]):
                    pictures = frames_lib.read_images(root, tracklet)
                    if position == 0:
                        for picture, skeleton in zip(
                            pictures, keypoints.read(tracklet), strict=True
                        ):
                            draw_skeleton(picture, skeleton)
                    chosen = evenly_spaced(len(pictures), frames)
                    strips.append(np.hstack([pictures[frame] for frame in chosen]))
            strips += [np.zeros_like(strips[0])] * (2 * rows - len(strips))
            blocks.append(np.pad(np.vstack(strips), ((0, _GAP), (0, _GAP), (0, 0))))
    if len(blocks) % 2:
        blocks.append(np.zeros_like(blocks[0]))
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    sheet = np.vstack([np.hstack(pair) for pair in pairs])
    write_picture(path, sheet)
