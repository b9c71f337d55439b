"""Packing again what has changed: `--update` and `--overwrite`."""

import shutil

import pytest
import video_files

from data_pipelines import schema
from data_pipelines.datasets import folder
from data_pipelines.records import packing, reading


@pytest.fixture
def root(tmp_path):
    """Three people in both modalities: two videos, pictures in two formats."""
    root = tmp_path / "root"
    for modality in schema.MODALITIES:
        video_files.write_video(root / f"alice/{modality}/yard/walk.avi", 5)
        for number in (1, 2):
            video_files.write_image(root / f"bob/{modality}/yard/walk/{number}.png")
            video_files.write_image(root / f"carol/{modality}/yard/walk/{number}.jpg")
    return root


@pytest.fixture
def read(monkeypatch):
    """The tracklets whose frames are read from the source."""
    found = []

    def read_frames(root, tracklet, read=packing.frames_lib.read_frames):
        found.append(tracklet.frames[0])
        return read(root, tracklet)

    monkeypatch.setattr(packing.frames_lib, "read_frames", read_frames)
    return found


def prepare(root, data_dir, **options):
    return folder.prepare(root, data_dir, without_skeletons=True, test_share=0.4, **options)


def assert_same(packed, other):
    assert reading.fingerprint(packed) == reading.fingerprint(other)
    for split in ("train", "test"):
        for one, two in zip(
            *(reading.open_records(p, split) for p in (packed, other)), strict=True
        ):
            assert one["frames"] == two["frames"] and one["frame_ids"] == two["frame_ids"]


def test_an_update_reads_what_is_new_or_changed_only(root, tmp_path, read, capsys):
    packed = prepare(root, tmp_path / "data")
    read.clear()
    assert prepare(root, tmp_path / "data", update=True) == packed
    assert not read and f"{packed}: is up to date" in capsys.readouterr().err

    for modality in schema.MODALITIES:  # first in the order, so that all rows and labels change
        video_files.write_video(root / f"aaron/{modality}/yard/walk.avi", 3)
    video_files.write_image(root / "bob/visible/yard/walk/3.png")
    shutil.rmtree(root / "carol/infrared/yard/walk")
    video_files.write_image(root / "carol/infrared/yard/run/1.jpg")
    with pytest.raises(
        ValueError, match=r"index differ.*add what is new to it with --update, repl"
    ):
        prepare(root, tmp_path / "data")
    read.clear()
    assert prepare(root, tmp_path / "data", update=True) == packed
    assert sorted(read) == [
        "aaron/infrared/yard/walk.avi#0",
        "aaron/visible/yard/walk.avi#0",
        "bob/visible/yard/walk/1.png",
        "carol/infrared/yard/run/1.jpg",
    ]
    printed = capsys.readouterr().err
    assert f"{packed}: keeps 4 tracklets, packs 4 that are new or changed, removes 2" in printed
    assert f"{packed}: updated" in printed
    assert_same(packed, prepare(root, tmp_path / "anew"))
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["folder"]
    assert [path.name for path in packed.parent.iterdir()] == ["1.1.0"]


def test_other_frames_of_a_video_are_read(root, tmp_path, read):
    prepare(root, tmp_path / "data")
    read.clear()
    packed = prepare(root, tmp_path / "data", every=2, update=True)
    assert len(read) == 6  # the pictures have other frames, too
    assert_same(packed, prepare(root, tmp_path / "anew", every=2))


def test_overwriting_reads_everything_again(root, tmp_path, read, capsys):
    packed = prepare(root, tmp_path / "data")
    (packed / "metadata.json").write_text("damaged")
    read.clear()
    assert prepare(root, tmp_path / "data", overwrite=True) == packed
    assert len(read) == 6 and f"{packed}: replaced" in capsys.readouterr().err
    assert_same(packed, prepare(root, tmp_path / "anew"))


@pytest.mark.parametrize("option", ["update", "overwrite"])
def test_without_a_packed_dataset_all_is_packed(root, tmp_path, option):
    assert_same(
        prepare(root, tmp_path / "data", **{option: True}), prepare(root, tmp_path / "anew")
    )


@pytest.mark.parametrize("option", ["update", "overwrite"])
def test_a_failure_keeps_what_is_packed(root, tmp_path, option):
    packed = prepare(root, tmp_path / "data")
    before = reading.fingerprint(packed)
    (root / "bob/visible/yard/walk/2.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"2.png"):
        prepare(root, tmp_path / "data", **{option: True})
    assert reading.fingerprint(packed) == before


def test_both_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="update and overwrite are both given"):
        prepare(root, tmp_path / "data", update=True, overwrite=True)
