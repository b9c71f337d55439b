"""One picture that shows what a dataset in the layout of the generated one holds."""

import csv
import os
import pathlib

import cv2
import h5py
import numpy as np
import simplejpeg

from star_jax.graphs import EDGES

_GAP = 4


def contact_sheet(
    root: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    identities: int = 8,
    rows: int = 2,
    frames: int = 6,
) -> None:
    """Writes a PNG that shows the first training identities, two side by side.

    For each: rows of visible tracklets above rows of infrared ones, frames in the order of time.
    The first row of each modality also shows the estimated skeleton, joints of confidence below 0.3
    in red.

    Args:
      root: of a dataset that `synthetic_vcm.generate` made.
      path: of the PNG.
      identities: how many.
      rows: tracklets of each modality.
      frames: of each tracklet, spread evenly.

    Raises:
      FileNotFoundError: the root holds no generated dataset.
    """
    root = pathlib.Path(root)
    with open(root / "attributes.csv", newline="") as file:
        table = [row for row in csv.DictReader(file) if row["split"] == "train"]
    index = (root / "info" / "track_train_info.txt").read_text().splitlines()
    names = (root / "info" / "train_name.txt").read_text().splitlines()
    blocks = []
    with h5py.File(root / "skeletons.h5", "r") as skeletons:
        for identity in sorted({row["identity"] for row in table})[:identities]:
            strips = []
            for modality in ("rgb", "ir"):
                own = [r for r in table if (r["identity"], r["modality"]) == (identity, modality)]
                for position, row in enumerate(own[:rows]):
                    first, last = map(int, index[int(row["row"]) - 1].split()[1:3])
                    chosen = np.linspace(first - 1, last - 1, frames).round().astype(int)
                    numbers = [
                        names[line].rpartition("F")[2].removesuffix(".jpg") for line in chosen
                    ]
                    folder = f"{identity}/{modality}/D{row['camera']}"
                    pictures = []
                    for number in numbers:
                        jpeg = (root / "Train" / folder / f"{number}.jpg").read_bytes()
                        picture = simplejpeg.decode_jpeg(jpeg, "BGR")
                        skeleton = skeletons.get(f"{folder}/{number}")
                        if position == 0 and skeleton is not None:
                            _draw_skeleton(picture, skeleton[()])
                        pictures.append(picture)
                    strips.append(np.hstack(pictures))
            strips += [np.zeros_like(strips[0])] * (2 * rows - len(strips))
            blocks.append(np.pad(np.vstack(strips), ((0, _GAP), (0, _GAP), (0, 0))))
    if len(blocks) % 2:
        blocks.append(np.zeros_like(blocks[0]))
    pairs = zip(blocks[::2], blocks[1::2], strict=True)
    cv2.imwrite(str(path), np.vstack([np.hstack(pair) for pair in pairs]))


def _draw_skeleton(picture: np.ndarray, skeleton: np.ndarray) -> None:
    """Draws float32[17, 3] onto a BGR picture, in place."""
    points = [tuple(np.round(xy * 16).astype(int).tolist()) for xy in skeleton[:, :2]]
    for start, end in EDGES:
        cv2.line(picture, points[start], points[end], (0, 220, 220), 1, cv2.LINE_AA, shift=4)
    for point, confidence in zip(points, skeleton[:, 2], strict=True):
        colour = (0, 0, 255) if confidence < 0.3 else (0, 255, 0)
        cv2.circle(picture, point, 20, colour, cv2.FILLED, cv2.LINE_AA, shift=4)
