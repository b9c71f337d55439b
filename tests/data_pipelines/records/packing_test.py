"""Packing: sources that change, damaged records, full disks and processes side by side."""

import contextlib
import dataclasses
import os
import re
import resource
import shutil

import h5py
import hitsz_files
import numpy as np
import pytest
import simplejpeg
import video_files

from data_pipelines import loader, schema
from data_pipelines.datasets import checks, folder, hitsz_vcm
from data_pipelines.datasets.findings import Findings
from data_pipelines.errors import InputError
from data_pipelines.io import frames as frames_lib
from data_pipelines.records import packing, staging
from data_pipelines.records.dataset import open_dataset
from data_pipelines.records.source import Source
from data_pipelines.sampling import BatchSpec, ClipSpec
from data_pipelines.skeletons import formats
from data_pipelines.synthetic import generate


@pytest.fixture
def root(tmp_path):
    return hitsz_files.write_dataset(tmp_path / "root")


def blacken(path):
    """Puts another picture of the same size, also in bytes, into a file; returns its bytes."""
    before = path.read_bytes()
    black = simplejpeg.encode_jpeg(0 * simplejpeg.decode_jpeg(before), quality=10)
    path.write_bytes(black.ljust(len(before), b"\0"))  # zeros after the end of a JPEG are ignored
    assert path.stat().st_size == len(before)
    return path.read_bytes()


def test_changed_pictures_are_detected(root, tmp_path):
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    copy = shutil.copytree(root, tmp_path / "copy", copy_function=shutil.copyfile)
    assert hitsz_vcm.prepare(copy, tmp_path / "data") == packed
    blacken(root / hitsz_vcm.read_index(root).test[-1].frames[-1])
    with pytest.raises(ValueError, match=r"another source \(its contents differ\); choose another"):
        hitsz_vcm.prepare(root, tmp_path / "data")


def test_changed_videos_are_detected(tmp_path):
    video = tmp_path / "root/alice/visible/1/walk.avi"
    video_files.write_video(video, 3)
    settings = {"data_dir": tmp_path / "data", "without_skeletons": True}
    packed = folder.prepare(tmp_path / "root", **settings)
    assert folder.prepare(tmp_path / "root", **settings) == packed
    size = video.stat().st_size
    video_files.write_video(video, 3, first=1)  # recorded again
    assert video.stat().st_size == size
    with pytest.raises(ValueError, match=r"its contents differ"):
        folder.prepare(tmp_path / "root", **settings)


def test_finished_shards_of_changed_pictures_are_packed_again(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing, "TRACKLETS_PER_SHARD", 3)
    index = hitsz_vcm.read_index(root)
    last = root / index.test[-1].frames[-1]
    content = last.read_bytes()
    last.unlink()
    with pytest.raises(FileNotFoundError, match="no such file"):
        hitsz_vcm.prepare(root, tmp_path / "data")
    last.write_bytes(content)
    black = blacken(root / index.train[4].frames[2])
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    assert "5 of 7 shards are packed already" in capsys.readouterr().err
    assert open_dataset(packed).split("train").records[4]["frames"][2] == black


def test_an_interruption_keeps_finished_shards(root, tmp_path, monkeypatch, capsys):
    interrupted = hitsz_vcm.read_index(root).test[-1].frames
    read_frames = frames_lib.read_frames

    def read(root, tracklet):
        if tracklet.frames == interrupted:
            raise KeyboardInterrupt
        return read_frames(root, tracklet)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "TRACKLETS_PER_SHARD", 3)
        patch.setattr(frames_lib, "read_frames", read)
        with pytest.raises(KeyboardInterrupt):
            hitsz_vcm.prepare(root, tmp_path / "data")
        shown = capsys.readouterr().err
        assert "6 finished shards are kept: the same command resumes after them" in shown
        patch.setattr(frames_lib, "read_frames", read_frames)
        packed = hitsz_vcm.prepare(root, tmp_path / "data")
    assert "6 of 7 shards are packed already" in capsys.readouterr().err
    assert len(open_dataset(packed).split("test").records) == len(hitsz_vcm.read_index(root).test)


@contextlib.contextmanager
def files_up_to(size):
    """Limits the size of files, which fails like a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize(
    ("size", "name"),
    [
        (50, r"\.2\.1\.0\.packing/fingerprint\.json: cannot be written \(.+\)$"),
        (100_000, r"hitsz_vcm-train\S*\.partial: cannot be written \(.+\)"),
    ],
)
def test_a_full_disk_is_an_error_that_names_the_file(root, tmp_path, size, name):
    with files_up_to(size), pytest.raises(OSError, match=name):
        hitsz_vcm.prepare(root, tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("size", "name"),
    [(1000, r"\.2\.1\.0\.packing/records"), (5000, r"\.2\.1\.0\.packing/records/origin\.json")],
)
def test_a_disk_that_is_full_after_the_records(root, tmp_path, monkeypatch, capsys, size, name):
    monkeypatch.setattr(packing, "TRACKLETS_PER_SHARD", 1)  # makes the last file a large one
    describe = packing._describe

    def write_little(*args):
        with files_up_to(size):
            describe(*args)

    with monkeypatch.context() as patch:
        patch.setattr(packing, "_describe", write_little)
        with pytest.raises(OSError, match=rf"{name}: cannot be written \(.+\)$"):
            hitsz_vcm.prepare(root, tmp_path / "data")
    assert not (tmp_path / "data/hitsz_vcm/2.1.0").exists()
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    assert "20 of 20 shards are packed already" in capsys.readouterr().err
    assert os.listdir(packed.parent) == ["2.1.0"]


def test_what_an_earlier_attempt_has_left_is_not_packed(root, tmp_path, monkeypatch):
    """With other shards, and with files that TFDS and others wrote beside them."""
    with monkeypatch.context() as patch:
        patch.setattr(packing, "TRACKLETS_PER_SHARD", 1)
        patch.setattr(packing, "_describe", None)
        with pytest.raises(TypeError):
            hitsz_vcm.prepare(root, tmp_path / "data")
    (tmp_path / "data/hitsz_vcm/.2.1.0.packing/records/origin.json").write_text("{}")
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    other = hitsz_vcm.prepare(root, tmp_path / "other")
    assert sorted(os.listdir(packed)) == sorted(os.listdir(other))
    assert open_dataset(packed).fingerprint == open_dataset(other).fingerprint


@pytest.mark.parametrize(
    "dataset", ["people", "people/1", "../1.0.0", "my-people/1.0.0", "a/b/1.0.0"]
)
def test_a_dataset_needs_a_name_and_a_version(root, tmp_path, dataset):
    index = hitsz_vcm.read_index(root)
    with pytest.raises(ValueError, match="use a name and a version"):
        packing.prepare(Source(root, {"test": index.test}), tmp_path / "data", dataset)
    assert not (tmp_path / "data").exists()


def test_skeletons_on_a_full_disk_are_an_error(tmp_path):
    """HDF5 fails when it closes the file, and can crash the process."""
    path = tmp_path / "skeletons.h5"
    with (
        files_up_to(5000),
        pytest.raises(OSError, match=rf"^{path}: cannot be written \(.+\)$"),
        formats.new_hdf5(path) as file,
    ):
        for number in range(100):
            file[f"1/ir/D1/{number}"] = np.ones((17, 3))
    with formats.new_hdf5(path) as file:
        file["1/ir/D1/7"] = np.full((17, 3), 5.0)
    with h5py.File(path) as file:
        assert (file["1/ir/D1/7"][()] == 5).all()


def test_drawing_on_a_full_disk_is_an_error(tmp_path):
    with files_up_to(3000), pytest.raises(OSError, match=r"/drawn: cannot be written \(.+\)$"):
        generate.generate(tmp_path / "drawn", size="tiny", processes=1)
    assert not list(tmp_path.iterdir())


def shard_of(packed):
    return next(packed.glob("*-train.array_record*"))


def test_a_shard_of_another_size_is_named(root, tmp_path):
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    shard = shard_of(packed)
    size = shard.stat().st_size
    os.truncate(shard, size // 2)
    with pytest.raises(ValueError, match=rf"{shard}: .*has {size // 2} of {size} bytes; remove"):
        hitsz_vcm.prepare(root, tmp_path / "data")
    shard.unlink()
    with pytest.raises(ValueError, match=rf"{shard}: .*has 0 of {size} bytes; remove"):
        hitsz_vcm.prepare(root, tmp_path / "data")


def test_damaged_records_name_the_dataset(root, tmp_path):
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    shard = shard_of(packed)
    shard.write_bytes(bytes(byte ^ 255 for byte in shard.read_bytes()))
    message = rf"{packed}: record [0-9]+ cannot be read .* is damaged"
    with pytest.raises(ValueError, match=message):
        list(open_dataset(packed).split("train").records)
    with pytest.raises(ValueError, match=message):
        clips = ClipSpec(4, (hitsz_files.HEIGHT, hitsz_files.WIDTH))
        batch = BatchSpec(seed=5, identities=2, tracklets=3)
        list(loader.train_batches(open_dataset(packed).split("train"), clips, batch, range(3)))
    assert len(list(open_dataset(packed).split("test").records)) == 8


def test_records_are_a_sequence(root, tmp_path):
    stored = open_dataset(hitsz_vcm.prepare(root, tmp_path)).split("test").records
    assert [record["tracklet"] for record in stored] == list(range(2, 10))
    for position in (-1, 8):
        with pytest.raises(IndexError, match=f"record {position}: .* has 8"):
            stored[position]


NONE = schema.Tracklet(schema.VISIBLE, "0007", 1, (), 7)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda splits: {}, "no split"),
        (lambda splits: splits | {"test": []}, "test"),
        (lambda splits: {"extra": [], **splits}, "extra"),
        (lambda splits: splits | {"test": [*splits["test"], NONE]}, "test .* 7"),
    ],
)
def test_a_dataset_without_tracklets_is_refused_before_packing(
    root, tmp_path, monkeypatch, change, named
):
    index = hitsz_vcm.read_index(root)
    splits = change({"train": index.train, "test": index.test})
    monkeypatch.setattr(frames_lib, "read_frames", None)
    with pytest.raises(InputError, match=named):
        packing.prepare(Source(root, splits), tmp_path / "data", "people/1.0.0")
    assert not (tmp_path / "data").exists()
    if NONE not in splits.get("test", ()):  # which --check counts as too short
        findings = Findings()
        checks.check_tracklets(findings, Source(root, splits))
        assert any(re.search(named, line) for line in findings.wrong)


def test_names_of_people_are_read_in_any_dataset(root, tmp_path):
    """A dataset of another package returns them as they are on disk."""
    index = hitsz_vcm.read_index(root)
    first, second, *others = index.test
    spelled = [
        dataclasses.replace(first, identity="Zoe\u0308"),
        dataclasses.replace(second, identity="Unknown"),
        *others,
    ]
    splits = {"train": index.train, "test": spelled}
    packed = packing.prepare(Source(root, splits), tmp_path / "data", "people/1.0.0")
    assert open_dataset(packed).split("test").index.identities[:2].tolist() == [
        "Zo\u00eb",
        "unknown",
    ]


def test_the_dataset_is_locked_until_it_is_complete(root, tmp_path, monkeypatch):
    """The metadata is written after the records are there."""
    describe = packing._describe
    refused = []

    def pack_meanwhile(*args):
        with pytest.raises(ValueError, match="another process is packing this dataset") as error:
            hitsz_vcm.prepare(root, tmp_path / "data")
        refused.append(error)
        describe(*args)

    monkeypatch.setattr(packing, "_describe", pack_meanwhile)
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    assert len(refused) == 1
    assert os.listdir(packed.parent) == ["2.1.0"]
    assert len(list(open_dataset(packed).split("train").records)) == 12


def test_what_another_process_has_just_packed_is_kept(root, tmp_path):
    """It has finished after this one looked and before this one got the lock."""
    index = hitsz_vcm.read_index(root)
    packed = hitsz_vcm.prepare(root, tmp_path / "data")
    before = packed.stat().st_ino
    packing._fill(packed, Source(root, {"test": index.test}))
    assert packed.stat().st_ino == before and os.listdir(packed.parent) == ["2.1.0"]


def test_a_lock_that_its_owner_has_removed_does_not_count(root, tmp_path, monkeypatch):
    hold = staging.hold

    def hold_too_late(lock, refusal):
        os.unlink(lock.name)
        hold(lock, refusal)

    monkeypatch.setattr(staging, "hold", hold_too_late)
    with pytest.raises(ValueError, match="another process is packing this dataset"):
        hitsz_vcm.prepare(root, tmp_path / "data")


def test_tracklets_are_read_as_they_are_packed_a_few_ahead(root, tmp_path, monkeypatch):
    packed = open_dataset(hitsz_vcm.prepare(root, tmp_path / "data")).split("test").records
    tracklets = hitsz_vcm.read_index(root).test
    source = Source(root, {"test": tracklets}, num_workers=2)
    seen = []
    read_frames = frames_lib.read_frames
    monkeypatch.setattr(
        frames_lib, "read_frames", lambda *args: seen.append(1) or read_frames(*args)
    )
    records = source.read(tracklets)
    assert not seen
    found = [next(records)]
    assert len(seen) <= 5 < len(tracklets)  # twice the workers ahead
    found += records
    for record, expected in zip(found, packed, strict=True):
        assert record.keys() == expected.keys()
        for name, value in record.items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
