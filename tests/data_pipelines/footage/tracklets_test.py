"""Raw videos to tracklets: painted people, interruptions, what is kept and what is refused."""

import concurrent.futures
import csv
import json
import pathlib
import shutil
import time
import weakref

import cv2
import detector_models
import numpy as np
import pytest
import simplejpeg
import street
import video_files

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.footage import contact_sheet, crops, detection, tracklets
from data_pipelines.io import frames, tables

COLORS = {"red": (230, 20, 30), "green": (20, 220, 40), "blue": (40, 30, 230)}
SIZE = (120, 200)  # height and width of the video
PERSON = (60, 24)
GRAY = 128


def walks(frame):
    """Returns left and top of everybody who is seen in a frame, the nearest one last.

    Red and green cross at frame 30; blue is seen for six frames.
    """
    places = {"red": (170 - 3 * frame, 32), "green": (3 * frame - 10, 40)}
    if 20 <= frame < 26:
        places["blue"] = (150, 0)
    return places


def write_video(path, num_frames=60, number_of=lambda frame: frame):
    path.parent.mkdir(parents=True, exist_ok=True)
    code = cv2.VideoWriter.fourcc(*"MJPG")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, 10, SIZE[::-1])
    assert writer.isOpened()
    for frame in range(num_frames):
        image = np.full((*SIZE, 3), GRAY, np.uint8)
        for name, (left, top) in walks(number_of(frame)).items():
            part = image[top : top + PERSON[0], max(left, 0) : max(left + PERSON[1], 0)]
            part[:] = COLORS[name][::-1]
        writer.write(image)
    writer.release()
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("raw") / "cam1.avi")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model") / "colors.onnx"
    return detector_models.write_color_model(path, list(COLORS.values()), SIZE)


class Counting:
    """A detector that counts its calls, and is interrupted at one of them."""

    def __init__(self, model, stop_at=None):
        self._detector = detection.load_detector(str(model))
        self.sha256 = self._detector.sha256
        self.calls = 0
        self._stop_at = stop_at

    def detect(self, image):
        if self.calls == self._stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        return self._detector.detect(image)


def extract(video, output, detector, camera="door", **options):
    if isinstance(detector, pathlib.Path):
        detector = detection.load_detector(str(detector))
    return tracklets.extract(
        video, output, detector, modality="visible", camera=camera, **{"min_frames": 5, **options}
    )


def files_of(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def table_of(output, camera="door"):
    with open(output / f"tracks/visible/{camera}.csv", newline="") as file:
        return list(csv.DictReader(file))


def names_in(image):
    """Returns the share of the pixels of each person's color."""
    return {
        name: float((np.abs(image.astype(int) - color).max(axis=-1) < 60).mean())
        for name, color in COLORS.items()
    }


def test_each_tracklet_shows_one_person(tmp_path, video, model):
    output = tmp_path / "people"
    summary = extract(video, output, model)
    folder = output / "unknown/visible/door"
    assert summary == (
        folder,
        5,
        summary.frames,
        True,
        output / "tracks/visible/door.jpg",
        output / "identities.csv",
    )
    people = {}
    for row in table_of(output):
        frame = int(row["frame"])
        image = simplejpeg.decode_jpeg((folder / row["track"] / f"{frame}.jpg").read_bytes())
        shares = names_in(image)
        name = max(shares, key=shares.get)
        people.setdefault(row["track"], []).append((name, frame))
        assert shares[name] > 0.4
        assert all(share < 0.3 for other, share in shares.items() if other != name)
        # The box in the table is where the person was painted, where not at the border.
        left, top = walks(frame)[name]
        assert abs(float(row["y"]) - top) <= 2
        if 0 < left < SIZE[1] - PERSON[1]:
            assert abs(float(row["x"]) - left) <= 2
            assert abs(float(row["width"]) - PERSON[1]) <= 4
        assert float(row["score"]) == pytest.approx(detector_models.SCORE, abs=1e-4)
    assert {track: {name for name, _ in rows} for track, rows in people.items()} == {
        "0001": {"red"},
        "0002": {"green"},
        "0003": {"blue"},
        "0004": {"green"},
        "0005": {"red"},
    }
    assert {path.name for path in folder.iterdir()} == set(people)
    assert sum(len(list(path.iterdir())) for path in folder.iterdir()) == summary.frames
    assert summary.frames == sum(map(len, people.values()))
    assert len(people["0003"]) == 6


def test_identities_have_a_row_for_each_tracklet(tmp_path, video, model):
    extract(video, tmp_path, model)
    expected = "".join(f"unknown/visible/door/000{n},unknown\n" for n in range(1, 6))
    content = f"\ufefftracklet,identity\n{expected}"  # the mark is for spreadsheets
    assert (tmp_path / "identities.csv").read_bytes().decode() == content


def test_short_fragments_are_left_out(tmp_path, video, model):
    """Blue is seen for six frames."""
    assert extract(video, tmp_path / "six", model, min_frames=6).tracklets == 5
    summary = extract(video, tmp_path, model, min_frames=7)
    assert summary.tracklets == 4
    tracks = [row["track"] for row in table_of(tmp_path)]
    assert sorted(set(tracks)) == ["0001", "0002", "0003", "0004"]
    assert min(tracks.count(track) for track in set(tracks)) >= 7
    assert sorted(path.name for path in summary.folder.iterdir()) == sorted(set(tracks))


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        ((20, 30, 10, 40), 0.0, (30, 70, 20, 30)),
        ((20, 30, 10, 40), 0.1, (26, 74, 19, 31)),
        ((20.4, 30.6, 10, 40), 0.0, (30, 71, 20, 31)),
        ((2, 1, 10, 40), 0.5, (0, 61, 0, 17)),
        ((90, 60, 10, 40), 0.5, (40, 100, 85, 100)),
        ((99.5, 99.5, 0.5, 0.5), 0.0, (99, 100, 99, 100)),
    ],
)
def test_the_margin_ends_at_the_border(box, margin, expected):
    """Expected: the first row and the one after the last, the same for columns."""
    numbers = np.arange(100, dtype=np.uint8)
    image = np.stack([*np.meshgrid(numbers, numbers), np.zeros((100, 100), np.uint8)], axis=-1)
    part = crops.crop(image, np.array(box, float), margin)
    found = (part[0, 0, 1], part[-1, -1, 1] + 1, part[0, 0, 0], part[-1, -1, 0] + 1)
    assert found == expected


def test_every_takes_every_nth_frame(tmp_path, video, model):
    detector = Counting(model)
    extract(video, tmp_path, detector, every=2)
    assert detector.calls == 30
    assert {int(row["frame"]) % 2 for row in table_of(tmp_path)} == {0}


@pytest.mark.slow
@pytest.mark.parametrize("stop_at", [0, 1, 17, 59])
def test_an_interrupted_run_continues_and_ends_alike(tmp_path, video, model, stop_at, capsys):
    whole, output = tmp_path / "whole", tmp_path / "people"
    extract(video, whole, model)
    with pytest.raises(KeyboardInterrupt):
        extract(video, output, Counting(model, stop_at))
    assert "the same command continues there" in capsys.readouterr().err
    assert not (output / "unknown").exists()
    assert not (output / "identities.csv").exists()
    detector = Counting(model)
    extract(video, output, detector)
    assert detector.calls == 60 - stop_at
    assert files_of(output) == files_of(whole)


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["write_json", "write_file", "read_rows", "boxes", "record"])
def test_a_kill_while_files_are_moved_or_written(tmp_path, video, model, monkeypatch, broken):
    """Whatever fails at the end, the next call detects nothing again and ends alike."""
    whole, output = tmp_path / "whole", tmp_path / "people"
    for root in (whole, output):
        (root / "tracks").mkdir(parents=True)
        (root / "identities.csv").write_text("tracklet,identity\nunknown/visible/yard/1,bob\n")
    extract(video, whole, model)

    class Killed(BaseException):
        pass

    def kill(*args, **kwargs):
        raise Killed

    if broken == "read_rows":  # the second time, after the crops were moved
        real = tracklets.read_rows
        calls = iter([real, kill])
        monkeypatch.setattr(tracklets, "read_rows", lambda *args: next(calls)(*args))
    elif broken in ("boxes", "record"):  # before the first file is moved, or the last one
        real_replace, suffix = pathlib.Path.replace, ".csv" if broken == "boxes" else ".json"

        def replace(path, target):
            return kill() if target.suffix == suffix else real_replace(path, target)

        monkeypatch.setattr(pathlib.Path, "replace", replace)
    else:
        monkeypatch.setattr(tables if broken == "write_file" else tracklets, broken, kill)
    with pytest.raises(Killed):
        extract(video, output, model)
    monkeypatch.undo()
    detector = Counting(model)
    assert extract(video, output, detector).is_new
    assert detector.calls == 0
    assert files_of(output) == files_of(whole)


def test_a_finished_video_returns_at_once(tmp_path, video, model):
    first = extract(video, tmp_path, model)
    before = files_of(tmp_path)
    detector = Counting(model)
    assert extract(video, tmp_path, detector) == first._replace(is_new=False)
    assert detector.calls == 0
    assert files_of(tmp_path) == before
    copy = shutil.copy(video, tmp_path.parent / "renamed.avi")  # the content counts
    assert not extract(copy, tmp_path, model).is_new


def test_what_users_named_is_kept(tmp_path, video, model):
    """Other columns, a byte order mark, semicolons, Windows line ends and a missing last one."""
    extract(video, tmp_path, model)
    content = (
        "\ufeffidentity;tracklet;notes\r\nalice;unknown\\visible\\door\\0001;coat\r\n"
        'bob;unknown/visible/door/0003;"two\nlines"'
    )
    path = tmp_path / "identities.csv"
    path.write_bytes(content.encode())
    extract(video, tmp_path, model, camera="yard")
    added = "".join(f"unknown;unknown/visible/yard/000{n};\r\n" for n in range(1, 6))
    assert path.read_bytes().decode() == f"{content}\r\n{added}"
    before = path.read_bytes()
    extract(video, tmp_path, model, camera="door")  # finished: nothing is added
    assert path.read_bytes() == before


@pytest.mark.slow
def test_cameras_that_are_finished_at_the_same_time(tmp_path, video, model, monkeypatch):
    """Each has to see the rows that the others add."""
    real_write = tables.write_file

    def slow_write(path, content):
        time.sleep(0.1)
        real_write(path, content)

    monkeypatch.setattr(tables, "write_file", slow_write)
    cameras = ["a", "b", "c", "d"]
    with concurrent.futures.ThreadPoolExecutor(len(cameras)) as pool:
        list(pool.map(lambda camera: extract(video, tmp_path, model, camera), cameras))
    with open(tmp_path / "identities.csv", encoding="utf-8-sig", newline="") as file:
        rows = [row["tracklet"] for row in csv.DictReader(file)]
    assert sorted(rows) == [
        f"unknown/visible/{camera}/000{track}" for camera in cameras for track in range(1, 6)
    ]


def test_modalities_do_not_mix(tmp_path, video, model):
    extract(video, tmp_path, model)
    detector = detection.load_detector(str(model))
    tracklets.extract(video, tmp_path, detector, modality="infrared", camera="door", min_frames=5)
    names = [path.name for path in sorted((tmp_path / "unknown").iterdir())]
    assert names == ["infrared", "visible"]
    assert (tmp_path / "identities.csv").read_text().count("unknown/infrared/door/") == 5


@pytest.mark.slow
def test_memory_does_not_grow_with_the_video(tmp_path, model, monkeypatch):
    """One frame at a time, and crops of tracklets that are still too short."""
    video = write_video(tmp_path / "raw/long.avi", 400, lambda frame: frame % 60)
    alive, most, waiting = set(), [0], [0]
    real_write, real_pixels = crops.CropWriter.write, frames._Video.pixels

    def pixels(*args):
        image = real_pixels(*args)
        alive.add(id(image))
        weakref.finalize(image, alive.discard, id(image))
        most[0] = max(most[0], len(alive))
        return image

    def write(self, *args):
        real_write(self, *args)
        waiting[0] = max(waiting[0], sum(map(len, self._waiting.values())))

    monkeypatch.setattr(frames._Video, "pixels", pixels)
    monkeypatch.setattr(crops.CropWriter, "write", write)
    summary = extract(video, tmp_path / "people", model)
    assert summary.tracklets > 20
    assert most[0] <= 2
    assert 4 <= waiting[0] <= 3 * 4  # three people, four crops each


def test_the_contact_sheet_shows_the_tracklets(tmp_path, video, model):
    summary = extract(video, tmp_path, model)
    sheet = simplejpeg.decode_jpeg(summary.sheet.read_bytes())
    rows = np.split(sheet, 5)
    names = [max(shares := names_in(row), key=shares.get) for row in rows]
    assert names == ["red", "green", "blue", "green", "red"]
    for row in rows:
        assert row[:, :60].min() < 60  # its name
    dark = [(row[:, :60] < 100).sum() for row in rows]
    assert dark[0] != dark[1]


def test_many_tracklets_have_several_sheets(tmp_path, video, model, monkeypatch):
    monkeypatch.setattr(tracklets, "ROWS", 2)
    extract(video, tmp_path, model)
    folder = tmp_path / "tracks/visible"
    heights = [
        simplejpeg.decode_jpeg_header((folder / name).read_bytes())[0]
        for name in ("door.jpg", "door.2.jpg", "door.3.jpg")
    ]
    assert heights[0] == heights[1] == 2 * heights[2]
    assert contact_sheet.ROWS * heights[2] < 65500  # rows of a JPEG


def test_nobody_found_says_what_to_change(tmp_path, video, model):
    with pytest.raises(
        InputError, match=r"visible/door: no tracklet of at least 50 frames in \d+ detections"
    ):
        extract(video, tmp_path, model, min_frames=50)
    assert not (tmp_path / "unknown").exists()
    detector = Counting(model)
    assert extract(video, tmp_path, detector).tracklets == 5
    assert detector.calls == 0


def test_other_work_on_the_same_camera_is_refused(tmp_path, video, model):
    output = tmp_path / "people"
    other = write_video(tmp_path / "raw/cam2.avi", 40)
    with pytest.raises(KeyboardInterrupt):
        extract(video, output, Counting(model, 7))
    unfinished = r"\.door\.partial: holds unfinished tracklets.*\({}\).*choose another camera name"
    with pytest.raises(InputError, match=unfinished.format("video changed")):
        extract(other, output, model)
    with pytest.raises(InputError, match=unfinished.format("every changed")):
        extract(video, output, model, every=2)
    extract(video, output, model)
    before = files_of(output)
    finished = r"door.json: there are tracklets of cam1.avi already \({}\); choose another camera"
    with pytest.raises(InputError, match=finished.format("video changed")):
        extract(other, output, model)
    with pytest.raises(InputError, match=finished.format("min_frames and margin changed")):
        extract(video, output, model, min_frames=6, margin=0.2)
    assert files_of(output) == before
    (output / "tracks/visible/door.json").write_text("{}")
    with pytest.raises(InputError, match=r"door.json: not a record of tracklets"):
        extract(video, output, model)


def test_what_others_put_there_is_refused(tmp_path, video, model):
    detector = Counting(model)
    (tmp_path / "unknown/visible/door/mine").mkdir(parents=True)
    with pytest.raises(InputError, match=r"unknown/visible/door: exists already"):
        extract(video, tmp_path, detector)
    rows = "tracklet,identity\nunknown/visible/yard/0001,alice\n"
    (tmp_path / "identities.csv").write_text(rows)
    with pytest.raises(InputError, match=r"rows of earlier tracklets, such as .*yard/0001; remove"):
        extract(video, tmp_path, detector, camera="yard")
    (tmp_path / "identities.csv").write_text("name\n")
    with pytest.raises(InputError, match="the column tracklet is missing"):
        extract(video, tmp_path, detector, camera="roof")
    assert detector.calls == 0


def test_two_processes_do_not_write_the_same_tracklets(tmp_path, video, model):
    class Nested(Counting):
        def detect(self, image):
            if self.calls == 3:
                with pytest.raises(InputError, match="another process is writing it"):
                    extract(video, tmp_path, model)
            return super().detect(image)

    assert extract(video, tmp_path, Nested(model)).tracklets == 5


@pytest.mark.parametrize("camera", ["", "a/b", "..", ".hidden", "a.b", "a\nb", "-x", "a\\b"])
def test_a_camera_is_the_name_of_a_folder(tmp_path, video, model, camera):
    with pytest.raises(InputError, match=r"^camera"):
        extract(video, tmp_path / "people", model, camera=camera)
    assert not (tmp_path / "people").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [("min_score", 0.05), ("min_score", 1.5), ("min_frames", 0), ("margin", -0.1), ("every", 0)],
)
def test_options_out_of_range(tmp_path, video, model, option, value):
    with pytest.raises(InputError, match=f"{option} is {value}: use a number"):
        extract(video, tmp_path, model, **{option: value})


def test_videos_that_cannot_be_used(tmp_path, video, model):
    output = tmp_path / "people"
    with pytest.raises(FileNotFoundError, match=r"no\.mp4: no such video"):
        extract(tmp_path / "no.mp4", output, model)
    with pytest.raises(InputError, match="not a regular file"):
        extract(tmp_path, output, model)
    image = video_files.write_image(tmp_path / "raw/image.jpg")
    with pytest.raises(InputError, match=r"image\.jpg: not a video in MP4"):
        extract(image, output, model)
    cut = tmp_path / "raw/cut.avi"
    cut.write_bytes(video.read_bytes()[:-5000])
    assert not output.exists()
    with pytest.raises(InputError, match=r"cut\.avi: the video ends early"):
        extract(cut, output, model)
    output.mkdir()
    inside = shutil.copy(video, output / "cam.avi")
    with pytest.raises(InputError, match=r"cam\.avi: lies within .*people"):
        extract(inside, output, model)
    link = tmp_path / "raw/link.avi"
    link.symlink_to(video)
    assert extract(link, output, model, camera="link").tracklets == 5


def test_outputs_that_cannot_be_used(tmp_path, video, model):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="file: is a file, not a folder"):
        extract(video, file, model)
    (tmp_path / "tracks").mkdir()
    (tmp_path / "tracks/visible").touch()
    with pytest.raises(InputError, match="tracks/visible: is a file"):
        extract(video, tmp_path, model)
    with pytest.raises(InputError, match="gs://bucket/people"):
        extract(video, "gs://bucket/people", model)


def test_the_record_says_what_tracklets_were_made_from(tmp_path, video, model):
    summary = extract(video, tmp_path, model, margin=0.2)
    record = json.loads((tmp_path / "tracks/visible/door.json").read_text())
    assert record["name"] == "cam1.avi"
    assert record["margin"] == 0.2
    assert (record["tracklets"], record["frames"]) == (5, summary.frames)
    assert record["detector"] == detection.load_detector(str(model)).sha256


@pytest.mark.slow
def test_a_street_in_both_modalities(tmp_path):
    """The synthetic people of tests/support/street.py: everyone is found once in each video."""
    filmed = street.write_street(tmp_path / "raw", num_people=3)
    detector = detection.load_detector(str(filmed.detector))
    output = tmp_path / "people"
    for modality, path in filmed.videos.items():
        summary = tracklets.extract(path, output, detector, modality=modality, camera="street")
        assert summary.tracklets == 3
    named = filmed.name_people(output)
    for modality in schema.MODALITIES:
        own = [name for tracklet, name in named.items() if f"/{modality}/" in tracklet]
        assert sorted(own) == ["person0", "person1", "person2"]
        assert own == list(filmed.walks[modality])
    with open(output / "identities.csv", encoding="utf-8-sig", newline="") as file:
        assert {row["tracklet"]: row["identity"] for row in csv.DictReader(file)} == named
