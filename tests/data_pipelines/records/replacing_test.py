"""Packing again what has changed: `--update` and `--overwrite`."""

import hashlib
import json
import os
import shutil

import numpy as np
import pytest
import simplejpeg
import video_files

from data_pipelines import schema
from data_pipelines.datasets import folder
from data_pipelines.io import frames as frames_lib
from data_pipelines.records import contents, origin, packing
from data_pipelines.records.dataset import open_dataset


@pytest.fixture
def root(tmp_path):
    """Three people in both modalities: two videos, pictures in two formats."""
    root = tmp_path / "root"
    for modality in schema.MODALITIES:
        video_files.write_video(root / f"alice/{modality}/yard/walk.avi", 6)
        for number in (1, 2):
            video_files.write_image(root / f"bob/{modality}/yard/walk/{number}.png")
            video_files.write_image(root / f"carol/{modality}/yard/walk/{number}.jpg")
    return root


@pytest.fixture
def read(monkeypatch):
    """The tracklets whose frames are read from the source."""
    found = []

    def read_frames(root, tracklet, read=frames_lib.read_frames):
        found.append(tracklet.frames[0])
        return read(root, tracklet)

    monkeypatch.setattr(frames_lib, "read_frames", read_frames)
    return found


def prepare(root, data_dir, **options):
    return folder.prepare(root, data_dir, without_skeletons=True, test_share=0.4, **options)


def assert_same(packed, other):
    assert open_dataset(packed).fingerprint == open_dataset(other).fingerprint
    for split in ("train", "test"):
        for one, two in zip(
            *(open_dataset(p).split(split).records for p in (packed, other)), strict=True
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


def record_again(root):
    """Replaces footage by other footage of the same size; returns whose frames are to be read."""
    video = root / "alice/visible/yard/walk.avi"
    size = video.stat().st_size
    video_files.write_video(video, 6, first=1)
    assert video.stat().st_size == size
    picture = root / "carol/infrared/yard/walk/2.jpg"
    before = picture.read_bytes()
    black = video_files.write_image(picture, np.zeros((64, 32, 3), np.uint8)).read_bytes()
    picture.write_bytes(black.ljust(len(before), b"\0"))  # zeros after its end are ignored
    assert picture.stat().st_size == len(before)
    return ["alice/visible/yard/walk.avi#0", "carol/infrared/yard/walk/1.jpg"]


def colors_of(packed, name):
    """The mean colors of the frames of a packed tracklet, uint8[n, 3]."""
    for split in ("train", "test"):
        for record in open_dataset(packed).split(split).records:
            if record["frame_ids"][0].startswith(name):
                pictures = map(simplejpeg.decode_jpeg, record["frames"])
                return np.array([picture[20:].mean(axis=(0, 1)) for picture in pictures])
    raise AssertionError(name)


@pytest.mark.parametrize("keep_times", [False, True])
def test_footage_of_the_same_size_is_told_apart(root, tmp_path, read, keep_times):
    packed = prepare(root, tmp_path / "data")
    np.testing.assert_allclose(colors_of(packed, "alice/visible")[:3], video_files.COLORS, atol=12)
    changed = record_again(root)
    if keep_times:  # a copy, whose times say nothing
        for path in root.rglob("*.*"):
            os.utime(path, (0, 0))
    read.clear()
    with pytest.raises(ValueError, match="contents differ"):
        prepare(root, tmp_path / "data")
    assert not read
    prepare(root, tmp_path / "data", update=True)
    assert sorted(read) == changed
    assert colors_of(packed, "carol/infrared")[1].max() < 3
    expected = [video_files.color_of(number) for number in (1, 2, 3)]
    np.testing.assert_allclose(colors_of(packed, "alice/visible")[:3], expected, atol=12)
    assert_same(packed, prepare(root, tmp_path / "anew"))


def test_files_are_read_only_if_sizes_or_times_have_changed(root, tmp_path, monkeypatch, capsys):
    packed = prepare(root, tmp_path / "data")
    opened = []

    def resolve(root, file, resolve=contents.resolve_inside):
        opened.append(file)
        return resolve(root, file)

    monkeypatch.setattr(contents, "resolve_inside", resolve)
    assert prepare(root, tmp_path / "data", update=True) == packed
    assert prepare(root, tmp_path / "data") == packed
    assert not opened
    os.utime(root / "bob/visible/yard/walk/2.png", (0, 0))
    assert prepare(root, tmp_path / "data", update=True) == packed
    assert opened == ["bob/visible/yard/walk/1.png", "bob/visible/yard/walk/2.png"]
    assert capsys.readouterr().err.count("is up to date") == 2
    copy = shutil.copytree(root, tmp_path / "copy")  # keeps the times
    opened.clear()
    video_files.write_image(copy / "dave/visible/yard/walk/1.png")
    prepare(copy, tmp_path / "data", update=True)
    assert not [file for file in opened if not file.startswith(("bob/visible", "dave"))]


def interrupt(monkeypatch, root, data_dir, **option):
    """Interrupts packing after its first shards."""

    def read_frames(root, tracklet, read=frames_lib.read_frames):
        if tracklet.frames[0].startswith("dave"):
            raise KeyboardInterrupt
        return read(root, tracklet)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "TRACKLETS_PER_SHARD", 1)
        patch.setattr(frames_lib, "read_frames", read_frames)
        with pytest.raises(KeyboardInterrupt):
            prepare(root, data_dir, num_workers=1, **option)


def test_overwriting_takes_nothing_of_an_interrupted_update(
    root, tmp_path, read, monkeypatch, capsys
):
    """Also where footage has changed although its size and time have not."""
    packed = prepare(root, tmp_path / "data")
    video = root / "alice/visible/yard/walk.avi"
    times = (video.stat().st_atime_ns, video.stat().st_mtime_ns)
    video_files.write_video(video, 6, first=1)
    os.utime(video, ns=times)
    for modality in schema.MODALITIES:
        video_files.write_image(root / f"dave/{modality}/yard/walk/1.png")
    interrupt(monkeypatch, root, tmp_path / "data", update=True)
    assert "finished shards are kept" in capsys.readouterr().err
    monkeypatch.setattr(packing, "TRACKLETS_PER_SHARD", 1)  # the shards of the interrupted run
    read.clear()
    assert prepare(root, tmp_path / "data", overwrite=True) == packed
    assert len(read) == 8 and "packed already" not in capsys.readouterr().err
    np.testing.assert_allclose(
        colors_of(packed, "alice/visible")[0], video_files.color_of(1), atol=12
    )
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["folder"]


@pytest.mark.parametrize("option", ["update", "overwrite"])
def test_what_was_interrupted_resumes(root, tmp_path, read, monkeypatch, capsys, option):
    packed = prepare(root, tmp_path / "data")
    for modality in schema.MODALITIES:
        video_files.write_image(root / f"dave/{modality}/yard/walk/1.png")
    interrupt(monkeypatch, root, tmp_path / "data", **{option: True})
    monkeypatch.setattr(packing, "TRACKLETS_PER_SHARD", 1)
    read.clear()
    prepare(root, tmp_path / "data", **{option: True})
    assert sorted(read)[-2:] == [f"dave/{name}/yard/walk/1.png" for name in ("infrared", "visible")]
    assert len(read) < 8 and "shards are packed already" in capsys.readouterr().err
    assert_same(packed, prepare(root, tmp_path / "anew"))


def as_older_version(packed):
    """Leaves of the footage what packed datasets had before contents were compared."""
    metadata = json.loads((packed / "metadata.json").read_text())
    metadata["fingerprint"]["files"] = metadata["fingerprint"].pop("contents")
    metadata["footage"] = {
        split: columns["stamps"] for split, columns in metadata["footage"].items()
    }
    content = json.dumps(metadata).encode()
    (packed / "metadata.json").write_bytes(content)
    listing = json.loads((packed / "origin.json").read_text())
    listing.pop("checksum")
    facts = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    listing["files"]["metadata.json"].update(facts)
    (packed / "origin.json").write_text(json.dumps(origin.sealed(listing)))


def test_datasets_of_older_versions_are_read_and_updated(root, tmp_path, read, capsys):
    packed = prepare(root, tmp_path / "data")
    as_older_version(packed)
    before = open_dataset(packed).fingerprint
    split = open_dataset(packed).split("test")
    assert len(split.index.rows) == len(split.records)
    capsys.readouterr()
    read.clear()
    assert prepare(root, tmp_path / "data") == packed and not read
    assert f"{packed}: was packed by an older version" in capsys.readouterr().err
    assert prepare(root, tmp_path / "data", update=True) == packed
    assert len(read) == 6 and open_dataset(packed).fingerprint == before
    read.clear()
    assert prepare(root, tmp_path / "data", update=True) == packed and not read


@pytest.mark.parametrize("option", ["update", "overwrite"])
def test_without_a_packed_dataset_all_is_packed(root, tmp_path, option):
    assert_same(
        prepare(root, tmp_path / "data", **{option: True}), prepare(root, tmp_path / "anew")
    )


@pytest.mark.parametrize("option", ["update", "overwrite"])
def test_a_failure_keeps_what_is_packed(root, tmp_path, option):
    packed = prepare(root, tmp_path / "data")
    before = open_dataset(packed).fingerprint
    (root / "bob/visible/yard/walk/2.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match=r"2.png"):
        prepare(root, tmp_path / "data", **{option: True})
    assert open_dataset(packed).fingerprint == before


def test_both_are_refused(root, tmp_path):
    with pytest.raises(ValueError, match="update and overwrite are both given"):
        prepare(root, tmp_path / "data", update=True, overwrite=True)
