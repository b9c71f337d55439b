"""Draws raw videos of people who walk past a camera one after another, and a detector for them.

The people are those of the generated dataset, in the same clothes in both videos.
"""

import csv
import pathlib
from typing import NamedTuple

import cv2
import detector_models
import numpy as np

from data_pipelines import schema
from data_pipelines.synthetic import drawing, people
from data_pipelines.synthetic.plan import generator

HEIGHT, WIDTH = 128, 192
_SCALE = 96  # pixels of a body height
_GROUND = 118  # row
_SPEED = 6  # pixels per frame
_PAUSE = 4  # frames in which nobody is seen
_BACKGROUND = 128
_CODECS = {"visible": (".mp4", "mp4v"), "infrared": (".avi", "MJPG")}


class Street(NamedTuple):
    """What `write_street` wrote.

    Attributes:
      videos: "visible" and "infrared" to the path of the video.
      detector: path of a model that finds the people, for --detector.
      walks: "visible" and "infrared" to who is seen in which frames, a range each, by name.
    """

    videos: dict[str, pathlib.Path]
    detector: pathlib.Path
    walks: dict[str, dict[str, range]]

    def name_people(self, output: pathlib.Path, *, camera: str = "") -> dict[str, str]:
        """Fills in output/identities.csv, as users do; returns each tracklet's person.

        A tracklet's person is whoever is seen in its frames, by `walks`.

        Args:
          output: of launch/footage/tracklets.py.
          camera: whose tracklets are named; those of all cameras if left out.
        """
        path = output / "identities.csv"
        with open(path, encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
        named = {}
        for row in rows:
            _, modality, own_camera, _ = row["tracklet"].split("/")
            if camera in ("", own_camera):
                frames = [int(file.stem) for file in (output / row["tracklet"]).iterdir()]
                walks = self.walks[modality].items()
                seen = {name for name, walk in walks for frame in frames if frame in walk}
                assert len(seen) == 1, f"{row['tracklet']} shows {seen}"
                row["identity"] = named[row["tracklet"]] = seen.pop()
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        return named


def write_street(root: pathlib.Path, *, num_people: int = 4, seed: int = 0) -> Street:
    """Writes street.mp4 (visible), street.avi (infrared) and street.onnx.

    Everybody walks once through each video, alone, from left to right; in the infrared video in the
    reverse order. People are named person0, person1, ...

    Args:
      root: the folder to write to; it is made.
      num_people: who walk.
      seed: of the people.
    """
    root.mkdir(parents=True, exist_ok=True)
    detector = root / "street.onnx"
    detector_models.write_foreground_model(detector, _BACKGROUND, (HEIGHT, WIDTH))
    videos, walks = {}, {}
    for modality, (suffix, codec) in _CODECS.items():
        order = range(num_people) if modality == "visible" else range(num_people - 1, -1, -1)
        videos[modality] = root / f"street{suffix}"
        walks[modality] = _write(
            videos[modality], codec, schema.MODALITIES.index(modality), order, seed
        )
    return Street(videos, detector, walks)


def _write(path, codec, modality, order, seed) -> dict[str, range]:
    code = cv2.VideoWriter.fourcc(*codec)
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 12, (WIDTH, HEIGHT))
    assert writer.isOpened()
    walks = {}
    frame = 0
    for number in order:
        start = frame
        for canvas in _walk(people.draw_person(generator(seed, "person", number)), modality):
            writer.write(canvas[..., ::-1])
            frame += 1
        walks[f"person{number}"] = range(start, frame)
        for _ in range(_PAUSE):
            writer.write(np.full((HEIGHT, WIDTH, 3), _BACKGROUND, np.uint8))
            frame += 1
    writer.release()
    return walks


def _walk(person, modality):
    """Yields uint8[H, W, 3], RGB: the person walks in at the left and out at the right."""
    yaw, half = np.pi / 2, _SCALE // 2
    places = np.arange(-half, WIDTH + half, _SPEED)
    points = people.walk(person.body, person.gait, person.gait.cadence * np.arange(len(places)))
    xy, nearness = people.project(points, yaw, 0.05)
    outfit = drawing.dress(person, modality, yaw)
    for place, joints, near in zip(places, xy, nearness, strict=True):
        canvas = np.full((HEIGHT, WIDTH, 3), _BACKGROUND, np.uint8)
        drawing.draw_figure(canvas, joints * _SCALE + (place, _GROUND), near, _SCALE, outfit)
        yield canvas
