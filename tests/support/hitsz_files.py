"""Draws tiny datasets laid out as HITSZ-VCM, for the tests of the data pipeline."""

import dataclasses
import pathlib

import bodies
import h5py
import numpy as np
import simplejpeg

HEIGHT, WIDTH = 32, 16
LAYOUTS = {  # name: folder of the text files, folder of the frames for each split
    "flat": ("", {"train": "", "test": ""}),
    "info": ("info/", {"train": "", "test": ""}),
    "split": ("info/", {"train": "Train/", "test": "Test/"}),
    "nested": ("info/", {"train": "Train/Train/", "test": "Test/Test/"}),
}


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a track_*_info.txt: modality code (1 infrared, 2 visible) and what it shows."""

    code: int
    identity: int
    camera: int
    first_frame: int
    num_frames: int

    def frames(self) -> list[str]:
        folder = f"{self.identity:04d}/{'ir' if self.code == 1 else 'rgb'}/D{self.camera}"
        numbers = range(self.first_frame, self.first_frame + self.num_frames)
        return [f"{folder}/{number}.jpg" for number in numbers]


def rows_of(identities: list[int]) -> list[Row]:
    """Returns two tracklets per identity and modality, and a short one for the first identity."""
    rows = [Row(2, identities[0], 1, 1, 5)]
    for identity in identities:
        rows += [
            Row(2, identity, 1, 11, 12),
            Row(2, identity, 2, 1, 13 + identity % 4),
            Row(1, identity, 1, 1, 15),
            Row(1, identity, 3, 1, 12),
        ]
    return rows


SPLITS = {"train": rows_of([7, 2, 11]), "test": rows_of([503, 504])}


def write_index(root: pathlib.Path, layout: str = "flat", splits=None) -> pathlib.Path:
    """Writes the five text files; each split has two frames at the end that no row uses.

    Each row is a track of its own.
    """
    folder = root / LAYOUTS[layout][0]
    folder.mkdir(parents=True, exist_ok=True)
    for split, rows in (splits or SPLITS).items():
        names, lines, queries = [], [], []
        for number, row in enumerate(rows, start=1):
            first = len(names) + 1
            names += [
                f"{row.identity:04d}M{row.code}D{row.camera}T{number}F{frame}.jpg"
                for frame in range(row.first_frame, row.first_frame + row.num_frames)
            ]
            pid = f"{row.identity:04d}" if number % 2 else f"{row.identity}"
            lines.append(f"{row.code} {first} {len(names)} {pid} {row.camera}")
            if row.code == 1:
                queries.append(str(number))
        names += ["0999M1D1T1F1.jpg", "0999M1D1T1F2.jpg"]
        (folder / f"{split}_name.txt").write_text("\n".join(names) + "\n")
        (folder / f"track_{split}_info.txt").write_text("\n".join(lines) + "\n")
    (folder / "query_IDX.txt").write_text(" ".join(queries))
    return root


def write_frames(root: pathlib.Path, layout: str = "flat", splits=None) -> None:
    """Writes noise as JPEG files, different for every frame."""
    rng = np.random.default_rng(0)
    for split, rows in (splits or SPLITS).items():
        for row in rows:
            for frame in row.frames():
                path = root / LAYOUTS[layout][1][split] / frame
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
                path.write_bytes(simplejpeg.encode_jpeg(pixels))


def skeleton_of(frame: str) -> np.ndarray:
    """Returns float32[17, 3], different for every frame, inside the frame and with confidence."""
    return bodies.standing(WIDTH, HEIGHT, np.random.default_rng(list(frame.encode())))


def write_skeletons(
    path: pathlib.Path, splits=None, *, flat: bool = False, suffix: str = "", leave_out=()
) -> None:
    """Writes the skeletons of all frames but `leave_out` as an HDF5 tree, or flat."""
    with h5py.File(path, "w") as file:
        for rows in (splits or SPLITS).values():
            for row in rows:
                for frame in row.frames():
                    key = frame.removesuffix(".jpg") + suffix
                    if frame not in leave_out:
                        file[key.replace("/", "_") if flat else key] = skeleton_of(frame)


def write_dataset(root: pathlib.Path, layout: str = "flat", splits=None) -> pathlib.Path:
    """Writes index, frames and skeletons."""
    write_index(root, layout, splits)
    write_frames(root, layout, splits)
    write_skeletons(root / "skeletons.h5", splits)
    return root
