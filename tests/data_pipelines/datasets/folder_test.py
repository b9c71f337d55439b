"""A folder of footage: layouts, names, errors, and packing."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest
import video_files
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_pipelines import sampling, schema
from data_pipelines.datasets import folder, folder_layout
from data_pipelines.records import reading
from data_pipelines.records.dataset import open_dataset

ROOT = Path(__file__).parents[3]


@pytest.fixture
def root(tmp_path):
    """Two people and a stranger, pictures and videos."""
    root = tmp_path / "root"
    for number in (1, 2, 10):
        video_files.write_image(root / f"alice/visible/door/walk/frame{number}.png")
    video_files.write_image(root / "bob/visible/door/run/1.JPG")
    video_files.write_video(root / "alice/infrared/yard/walk.mp4", 7)
    video_files.write_video(root / "unknown/infrared/yard/a b#1.avi", 4)
    return root


def test_finds_pictures_and_videos_in_natural_order(root):
    found = {tracklet.frames[0]: tracklet for tracklet in folder.read_index(root)}
    walk = found["alice/visible/door/walk/frame1.png"]
    assert [frame[-11:] for frame in walk.frames] == ["/frame1.png", "/frame2.png", "frame10.png"]
    assert (walk.identity, walk.modality, walk.camera) == ("alice", schema.VISIBLE, 1)
    assert walk.camera_name == "door"
    video = found["alice/infrared/yard/walk.mp4#0"]
    assert video.frames == tuple(f"alice/infrared/yard/walk.mp4#{n}" for n in range(7))
    assert (video.modality, video.camera, video.camera_name) == (schema.INFRARED, 2, "yard")
    assert found["unknown/infrared/yard/a b#1.avi#0"].identity == "unknown"
    assert sorted(tracklet.row for tracklet in found.values()) == [1, 2, 3, 4]


def test_every_second_frame(root):
    by_name = {t.frames[0]: [f[-1] for f in t.frames] for t in folder.read_index(root, every=3)}
    assert by_name["alice/infrared/yard/walk.mp4#0"] == ["0", "3", "6"]
    assert len(by_name["alice/visible/door/walk/frame1.png"]) == 1
    with pytest.raises(ValueError, match="every is 0"):
        folder.read_index(root, every=0)


@pytest.mark.parametrize(
    ("names", "numbers"),
    [
        (["10", "2"], [2, 10]),
        (["10", "2", "x"], [1, 2, 3]),
        (["1", "01"], [1, 2]),
        (["1", "99999999999"], [1, 2]),
    ],
)
def test_cameras_are_numbered(tmp_path, names, numbers):
    for name in names:
        video_files.write_image(tmp_path / "alice" / "visible" / name / "walk" / "1.jpg")
    found = folder.read_index(tmp_path)
    assert [tracklet.camera for tracklet in found] == numbers
    assert {tracklet.camera_name for tracklet in found} == set(names)


def test_stray_files_are_skipped_and_counted(root, capsys):
    before = folder.read_index(root)
    strays = ("Thumbs.db", "alice/.DS_Store", "alice/visible/door/notes.txt")
    for name in (*strays, "alice/visible/door/walk/frame1.npy", "skeletons.json"):
        (root / name).write_text("x")
    (root / ".git").mkdir()
    (root / "skeletons").mkdir()
    assert folder.read_index(root) == before
    assert "skipped 4 files that are not footage" in capsys.readouterr().err


def picture(root, path):
    return video_files.write_image(root / path / "1.jpg")


def test_forms_of_unicode_are_one_person_and_one_camera(tmp_path):
    """Names of the one form are copied on Linux, of the other unpacked from a Mac's archive."""
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    picture(tmp_path, f"{composed}/visible/{composed}/walk")
    picture(tmp_path, f"{decomposed}/infrared/{decomposed}/walk")
    picture(tmp_path, f"unknown/visible/{composed} /{decomposed}")
    (tmp_path / "identities.csv").write_text(
        f"tracklet,identity\nunknown/visible/{composed}/{composed},{decomposed}\n", "utf-8"
    )
    found = folder.read_index(tmp_path)
    assert {tracklet.identity for tracklet in found} == {composed}
    assert {(tracklet.camera, tracklet.camera_name) for tracklet in found} == {(1, composed)}
    for tracklet in found:  # as the file system has them
        assert (tmp_path / tracklet.frames[0]).is_file()


def test_unknown_people_are_unknown_however_they_are_written(tmp_path, capsys):
    for person in ("Unknown", "alice", "UNKNOWN", "bob"):
        picture(tmp_path, f"{person}/visible/door/walk")
    (tmp_path / "identities.csv").write_text(
        "tracklet,identity\nalice/visible/door/walk, unKnown \n"
    )
    found = {t.frames[0].split("/")[0]: t.identity for t in folder.read_index(tmp_path)}
    assert found == {"bob": "bob", **dict.fromkeys(("Unknown", "UNKNOWN", "alice"), "unknown")}
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and "' unKnown '" in lines[0] and "identities.csv:2" in lines[0]
    assert "'Unknown'" in lines[1] and "'UNKNOWN'" in lines[1]


@pytest.mark.parametrize("name", ["al\u200bice", "alice\x07"])
def test_names_that_look_like_others_are_named(tmp_path, name):
    for path in (f"{name}/visible/door/walk", f"alice/visible/{name}/walk"):
        picture(tmp_path, path)
        with pytest.raises(ValueError, match=f"^{re.escape(path)}: .*U\\+"):
            folder.read_index(tmp_path)
        (tmp_path / path / "1.jpg").rename(tmp_path / "1.jpg")
        shutil.rmtree(tmp_path / path.split("/")[0])
        (tmp_path / "1.jpg").unlink()


@pytest.mark.parametrize("name", ["tracks", "skeletons"])
@pytest.mark.parametrize("footage", ["door/walk/1.jpg", "door/walk.mp4"])
def test_people_in_folders_for_other_files_are_refused(root, name, footage):
    """launch/footage/tracklets.py writes to `tracks`, and `skeletons` holds arrays."""
    for other in ("visible/door.jpg", "visible/.door.partial/crops/1.jpg", "alice/visible/1/2.npy"):
        (root / name / other).parent.mkdir(parents=True, exist_ok=True)
        (root / name / other).touch()
    assert len(folder.read_index(root)) == 4
    path = root / name / "infrared" / footage
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(ValueError, match=f"^{name}/infrared/{footage}: "):
        folder.read_index(root)


@pytest.mark.parametrize("names", [("Zo\u00eb", "Zoe\u0308"), ("walk", "walk ")])
def test_tracklets_whose_names_look_alike_are_refused(tmp_path, names):
    for name in names:
        picture(tmp_path, f"alice/visible/door/{name}")
    with pytest.raises(ValueError, match=r"^alice/visible/door: "):
        folder.read_index(tmp_path)


@pytest.mark.parametrize("suffix", [".MOV", ".m4v"])
def test_videos_of_cameras_and_phones_are_read(tmp_path, suffix):
    path = tmp_path / f"alice/visible/1/walk{suffix}"
    video_files.write_video(path.with_suffix(suffix.lower()), 3).rename(path)
    (found,) = folder.read_index(tmp_path)
    assert found.frames == tuple(f"alice/visible/1/walk{suffix}#{number}" for number in range(3))


WRONG = {
    "alice/rgb/1/walk/1.jpg": "alice/rgb: .*visible and infrared, not 'rgb'",
    "1.jpg": "1.jpg: is in the wrong place",
    "alice/1.jpg": "alice/1.jpg: is in the wrong place",
    "alice/visible/walk.mp4": "alice/visible/walk.mp4: is in the wrong place",
    "alice/visible/1/1.jpg": "alice/visible/1/1.jpg: a tracklet's pictures need their own folder",
    "alice/visible/1/walk/more/1.jpg": "alice/visible/1/walk/more: is in the wrong place",
    "alice/visible/1/walk/a.mp4": "alice/visible/1/walk/a.mp4: is in the wrong place",
    "alice/visible/1/walk/notes.txt": "alice/visible/1/walk: a tracklet without a picture",
}


@pytest.mark.parametrize(("name", "message"), WRONG.items())
def test_what_is_in_the_wrong_place_is_named(tmp_path, name, message):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ValueError, match=message):
        folder.read_index(tmp_path)


@pytest.mark.parametrize("names", [("walk.mp4", "walk.avi"), ("walk.mp4", "walk/1.jpg")])
def test_names_that_skeletons_cannot_distinguish_are_refused(tmp_path, names):
    for name in names:
        path = tmp_path / "alice/visible/1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    with pytest.raises(ValueError, match="differ only in their extension"):
        folder.read_index(tmp_path)


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such folder"):
        folder.read_index(tmp_path / "none")
    with pytest.raises(ValueError, match="no tracklet; expected <identity>"):
        folder.read_index(tmp_path)


@pytest.mark.parametrize("place", ["carol", "alice/visible/yard", "alice/visible/door/walk/3.png"])
def test_links_out_of_the_root_are_refused(root, place):
    outside = root.parent / "outside"
    video_files.write_image(outside / "visible/1/walk/1.jpg")
    (root / place).symlink_to(outside)
    with pytest.raises(ValueError, match=f"{place}: leads out of the dataset's root"):
        folder.read_index(root)


def test_a_broken_video_is_named(root):
    (root / "alice/infrared/yard/walk.mp4").write_bytes(b"\0\0\0\x1cftypisom")
    with pytest.raises(ValueError, match=r"alice/infrared/yard/walk.mp4: "):
        folder.read_index(root)


def test_packs_without_skeletons(root, tmp_path):
    packed = folder.prepare(root, tmp_path / "data", without_skeletons=True, every=2)
    assert packed == tmp_path / "data" / "folder" / "1.1.0"
    index = open_dataset(packed).split("test").index
    assert index.identities.tolist() == ["alice", "alice", "bob", "unknown"]
    assert index.labels.tolist() == [-1] * 4 and index.num_frames.tolist() == [4, 2, 1, 2]
    record = open_dataset(packed).split("test").records[0]
    assert record["frame_ids"][1] == "alice/infrared/yard/walk.mp4#2"
    clip = np.empty((2, 64, 32, 3), np.uint8)
    assert not reading.decode_clip(record, np.array([0, 1]), clip).any()
    color = video_files.color_of(2)
    assert np.abs(clip[1, 24:].mean(axis=(0, 1)) - color).max() < 10


def test_a_table_names_people_and_unpacked_folders_stay_out(root, capsys):
    video_files.write_image(root / "tracks/visible/door.jpg")  # a contact sheet, not an identity
    (root / "identities.csv").write_text(
        "tracklet,identity\nunknown/infrared/yard/a b#1.avi,carol\n"
        "bob/visible/door/run, robert \nunknown/infrared/yard/7,dave\n"
    )
    found = [(t.identity, t.frames[0].split("/")[0]) for t in folder.read_index(root)]
    names = [("alice", "alice"), ("alice", "alice"), ("robert", "bob"), ("carol", "unknown")]
    assert found == names
    assert capsys.readouterr().err.startswith(
        "identities.csv: 1 of its tracklets do not exist (unknown/infrared/yard/7)\n"
    )


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ("tracklet,name\n", "identities.csv: the column identity is missing"),
        ("tracklet,identity\na/b,x\na/b,y\n", r"identities.csv:3: .*identities.csv:2;"),
        ("tracklet,identity\na/b,\n", "identities.csv:2: .*empty"),
        ("tracklet,identity\na/b,x\n", "identities.csv:2: .*'a/b'.*'alice/infrared/yard/walk.mp4'"),
    ],
)
def test_a_strange_table_of_people_is_named(root, rows, message):
    (root / "identities.csv").write_text(rows)
    with pytest.raises(ValueError, match=message):
        folder.read_index(root)


def test_videos_of_whole_scenes_are_no_tracklets(root, tmp_path):
    street = root / "unknown/infrared/yard/street.avi"
    writer = cv2.VideoWriter(str(street), cv2.VideoWriter.fourcc(*"MJPG"), 10, (64, 48))
    for _ in range(3):
        writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    message = r"street.avi: 64 x 48 pixels, wider than tall.*footage/tracklets.py.*--allow_whole_vi"
    with pytest.raises(ValueError, match=message):
        folder.prepare(root, tmp_path / "data", without_skeletons=True)
    (found,) = folder.check(root, without_skeletons=True).wrong
    assert re.search(message, found)
    packed = folder.prepare(
        root, tmp_path / "data", without_skeletons=True, allow_whole_videos=True
    )
    assert sorted(open_dataset(packed).split("test").index.num_frames) == [1, 3, 3, 4, 7]


@pytest.fixture
def people(tmp_path):
    """Four people in both modalities; `split.csv`, beside them, tests on alice."""
    root = tmp_path / "people"
    for name in ("alice", "bob", "carol", "dave"):
        for modality in schema.MODALITIES:
            video_files.write_image(root / name / modality / "yard" / "walk" / "1.png")
    video_files.write_image(root / "unknown/visible/yard/walk/1.png")
    rows = "dave,train\nalice,test\nbob,train\ncarol,train\nzoe,test\n"
    (tmp_path / "split.csv").write_text(f"identity,split\n{rows}")
    return root


def test_packs_people_to_train_on_and_to_test_on(people, tmp_path):
    packed = folder.prepare(
        people, tmp_path / "data", without_skeletons=True, split_file=tmp_path / "split.csv"
    )
    train, test = (open_dataset(packed).split(split).index for split in ("train", "test"))
    assert train.identities.tolist() == ["bob", "bob", "carol", "carol", "dave", "dave"]
    assert train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert test.identities.tolist() == ["alice"] * 2 and test.labels.tolist() == [-1] * 2
    assert sampling.trainable_labels(train).tolist() == [0, 1, 2]
    unsplit = folder.prepare(people, tmp_path / "all", without_skeletons=True)
    with pytest.raises(
        ValueError, match=r"split 'train': .* has test; to train on your own footag"
    ):
        open_dataset(unsplit).split("train")
    with pytest.raises(ValueError, match=r"already packed from another source \(its index differ"):
        folder.prepare(people, tmp_path / "data", without_skeletons=True)


def test_the_check_splits_people_as_packing_does(people):
    findings = folder.check(people, without_skeletons=True, test_share=0.17)  # alice and dave
    assert not findings.wrong
    (table,) = findings.tables
    assert table[0] == ("files", "train", "test") and ("identities", 2, 2) in table
    findings = folder.check(people, without_skeletons=True, test_share=0.01)
    assert findings.wrong[0].startswith("test: none of its 0 identities, of 4 in all, has visible")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split_file": "s.csv", "test_share": 0.3}, "split_file and test_share are both given"),
        ({"split_seed": 3}, "split_seed is 3: it needs a test_share"),
        ({"test_share": 0.0}, "test_share is 0.0: use a number above 0 and below 1"),
        ({"test_share": 1.5}, "test_share is 1.5: use a number above 0 and below 1"),
        ({"test_share": float("nan")}, "test_share is nan: use a number above 0 and below 1"),
    ],
)
def test_splits_that_contradict_themselves_are_refused(people, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        folder.prepare(people, tmp_path / "data", without_skeletons=True, **options)
    assert not (tmp_path / "data").exists()


def test_packs_the_skeletons_of_videos_and_pictures(root, tmp_path):
    skeleton = np.random.default_rng(0).uniform(0.1, 30, (17, 3)).astype(np.float32)
    with h5py.File(root / "skeletons.h5", "w") as file:
        file["alice/infrared/yard/walk/5"] = skeleton
        file["alice/visible/door/walk/frame10"] = 2 * skeleton
    packed = folder.prepare(root, tmp_path / "data")
    stored = open_dataset(packed).split("test").records
    np.testing.assert_array_equal(stored[0]["keypoints"][5], skeleton)
    np.testing.assert_array_equal(stored[1]["keypoints"][2], 2 * skeleton)
    assert open_dataset(packed).split("test").index.missing_skeletons.tolist() == [6, 2, 1, 4]


def test_skeletons_are_required_by_default(root, tmp_path):
    with pytest.raises(FileNotFoundError, match="no skeletons"):
        folder.prepare(root, tmp_path / "data")


def test_the_check_names_every_broken_picture(root):
    (root / "bob/visible/door/run/1.JPG").write_bytes(b"")
    (root / "alice/visible/door/walk/frame2.png").write_bytes(b"x")
    wrong = "\n".join(folder.check(root).wrong)
    assert "bob/visible/door/run/1.JPG: is empty" in wrong
    assert "alice/visible/door/walk/frame2.png: " in wrong


def test_the_check_names_every_broken_video_and_checks_the_rest(root):
    whole = (root / "alice/infrared/yard/walk.mp4").read_bytes()
    (root / "alice/infrared/yard/half.mp4").write_bytes(whole[: len(whole) // 2])
    (root / "bob/infrared/yard").mkdir(parents=True)
    (root / "bob/infrared/yard/none.avi").write_bytes(b"")
    (root / "bob/visible/door/run/1.JPG").write_bytes(b"")
    findings = folder.check(root, without_skeletons=True)
    names = [line.partition(":")[0] for line in findings.wrong]
    assert names == [
        "alice/infrared/yard/half.mp4",
        "bob/infrared/yard/none.avi",
        "bob/visible/door/run/1.JPG",
    ]
    (table,) = findings.tables
    assert ("tracklets that are packed", 4) in table
    with pytest.raises(ValueError, match=r"half.mp4: "):
        folder.read_index(root)


def test_footage_that_is_not_read_is_wrong_for_the_check_and_skipped_by_packing(root, capsys):
    before = folder.read_index(root)
    for name in ("walk.WebM", "run.wmv"):
        (root / f"alice/visible/door/{name}").write_bytes(b"x")
    (root / "bob/visible/door/run/2.bmp").write_bytes(b"x")
    for name in ("notes.txt", "visible/door/._walk.webm"):
        (root / "alice" / name).write_bytes(b"x")
    findings = folder.check(root, without_skeletons=True)
    (wrong,) = findings.wrong
    assert (
        "left out 3 files of footage in formats that are not read (alice/visible/door/run" in wrong
    )
    assert "skipped 2 files that are not footage (alice/notes.txt, " in capsys.readouterr().err
    assert folder.read_index(root) == before
    assert wrong in capsys.readouterr().err


@pytest.mark.parametrize("data_dir", ["", "data", "data/deeper"])
def test_packing_into_the_footage_is_refused(root, data_dir):
    before = sorted(root.rglob("*"))
    with pytest.raises(ValueError, match=r"lies within .* choose a data_dir elsewhere"):
        folder.prepare(root, root / data_dir, without_skeletons=True)
    assert sorted(root.rglob("*")) == before


def prepare_command(*flags):
    command = [sys.executable, str(ROOT / "launch/prepare.py"), *flags]
    return subprocess.run(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layout=hitsz_vcm"], "--layout is for --dataset=synthetic_vcm, not for folder"),
        (["--size=demo", "--check"], "--size is for --dataset=synthetic_vcm, not for folder"),
        (["--seed=0"], "--seed is for --dataset=synthetic_vcm, not for folder"),
        (["--auxiliary"], "--auxiliary is for --dataset=bupt_campus, not for folder"),
        (["--test_share=2"], "test_share is 2.0: use a number above 0 and below 1"),
    ],
)
def test_flags_of_another_dataset_are_refused(tmp_path, flags, message):
    run = prepare_command("--dataset=folder", f"--source={tmp_path}", *flags)
    assert (run.returncode, run.stderr) == (1, f"error: {message}\n")


def test_flags_of_another_layout_are_refused_before_drawing(tmp_path):
    run = prepare_command("--dataset=synthetic_vcm", f"--data_dir={tmp_path}/data", "--every=2")
    message = "error: --every is for --dataset=folder, not for hitsz_vcm\n"
    assert (run.returncode, run.stderr) == (1, message)
    assert not (tmp_path / "data").exists()


letters = st.characters(exclude_characters="/\0", exclude_categories=["Cs"])
names = st.text(letters, min_size=1, max_size=20).filter(lambda name: name.strip(".") == name)
visible = names.filter(lambda name: name.strip() and name.strip().isprintable())


@settings(
    deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    identity=visible.filter(lambda name: name not in folder_layout.RESERVED),
    camera=visible,
    tracklet=names,
    frame=names,
)
def test_any_names_are_read(tmp_path_factory, identity, camera, tracklet, frame):
    root = tmp_path_factory.mktemp("names")
    path = f"{identity}/visible/{camera}/{tracklet}/{frame}.jpg"
    for name in ("x/visible/1/y/1.jpg", path):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    found = folder.read_index(root)
    assert path in [frame for tracklet in found for frame in tracklet.frames]


@given(st.lists(st.text("ab019", max_size=6)))
def test_natural_order_sorts_numbers_by_value(texts):
    ordered = sorted(texts, key=folder_layout.natural_key)
    assert sorted(ordered) == sorted(texts)
    numbers = [text for text in ordered if text.isdigit()]
    assert [int(text) for text in numbers] == sorted(map(int, numbers))
