"""HITSZ-VCM: reading its index and packing it."""

import hashlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import hitsz_files
import hypothesis
import numpy as np
import pytest
import simplejpeg
import tensorflow_datasets as tfds
from hypothesis import strategies as st

from data_pipelines import schema
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.datasets.findings import Findings
from data_pipelines.io import frames as frames_lib
from data_pipelines.records import packing, reading, staging
from data_pipelines.records.dataset import open_dataset


def all_files(directory: pathlib.Path) -> list[pathlib.Path]:
    return sorted(directory.rglob("*"))


@pytest.mark.parametrize("layout", hitsz_files.LAYOUTS)
def test_reads_every_layout(tmp_path, layout):
    hitsz_files.write_index(tmp_path, layout)
    for split, rows in hitsz_files.SPLITS.items():
        for row in rows:
            folder = tmp_path / hitsz_files.LAYOUTS[layout][1][split] / row.frames()[0]
            folder.parent.mkdir(parents=True, exist_ok=True)
    index = hitsz_vcm.read_index(tmp_path)
    for split, tracklets in (("train", index.train), ("test", index.test)):
        prefix = hitsz_files.LAYOUTS[layout][1][split]
        expected = [
            schema.Tracklet(
                modality=schema.INFRARED if row.code == 1 else schema.VISIBLE,
                identity=f"{row.identity:04d}",
                camera=row.camera,
                frames=tuple(prefix + frame for frame in row.frames()),
                row=number,
            )
            for number, row in enumerate(hitsz_files.SPLITS[split], start=1)
            if row.num_frames >= 12
        ]
        assert tracklets == expected


ROWS = st.builds(
    hitsz_files.Row,
    code=st.sampled_from([1, 2]),
    identity=st.integers(0, 9999),
    camera=st.integers(0, 999),
    first_frame=st.integers(0, 10**8),
    num_frames=st.integers(1, 20),
)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(st.lists(ROWS, min_size=1), st.lists(ROWS, min_size=1))
def test_any_index_is_read_as_it_was_written(train, test):
    test = [*test, hitsz_files.Row(1, 1, 1, 1, 12)]  # at least one query
    with tempfile.TemporaryDirectory() as directory:
        root = hitsz_files.write_index(
            pathlib.Path(directory), splits={"train": train, "test": test}
        )
        index = hitsz_vcm.read_index(root, min_frames=1)
    for rows, tracklets in ((train, index.train), (test, index.test)):
        assert [list(tracklet.frames) for tracklet in tracklets] == [row.frames() for row in rows]
        assert [int(tracklet.identity) for tracklet in tracklets] == [row.identity for row in rows]
        assert [tracklet.camera for tracklet in tracklets] == [row.camera for row in rows]
        assert [tracklet.row for tracklet in tracklets] == list(range(1, len(rows) + 1))


def test_strays_do_not_hide_the_layout(tmp_path):
    hitsz_files.write_index(tmp_path, "split")
    hitsz_files.write_frames(tmp_path, "split")
    index = hitsz_vcm.read_index(tmp_path)
    for stray in ("0007", "0503", "0002/ir/D1", "Train/Train/0007/rgb/D1"):
        (tmp_path / stray).mkdir(parents=True)
    (tmp_path / "query_IDX.txt").write_bytes((tmp_path / "info" / "query_IDX.txt").read_bytes())
    assert hitsz_vcm.read_index(tmp_path) == index
    assert index.train[0].frames[0] == "Train/0007/rgb/D1/11.jpg"
    assert (tmp_path / index.test[0].frames[0]).exists()


def test_min_frames_keeps_shorter_tracklets(tmp_path):
    hitsz_files.write_index(tmp_path)
    assert len(hitsz_vcm.read_index(tmp_path, min_frames=5).train) == 13
    assert len(hitsz_vcm.read_index(tmp_path, min_frames=6).train) == 12
    with pytest.raises(ValueError, match="no tracklet of split train has 99 frames"):
        hitsz_vcm.read_index(tmp_path, min_frames=99)


def test_all_tracklets_are_those_of_both_splits_and_of_any_length(tmp_path):
    hitsz_files.write_index(tmp_path)
    lengths = [len(tracklet.frames) for tracklet in hitsz_vcm.all_tracklets(tmp_path)]
    rows = [*hitsz_files.SPLITS["train"], *hitsz_files.SPLITS["test"]]
    assert lengths == [row.num_frames for row in rows] and min(lengths) == 5


def test_tolerates_crlf_bom_and_trailing_blanks(tmp_path):
    plain = hitsz_vcm.read_index(hitsz_files.write_index(tmp_path))
    for path in tmp_path.glob("*.txt"):
        text = path.read_text().replace("\n", "  \n") + "\n\n  \n"
        path.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode())
    assert hitsz_vcm.read_index(tmp_path) == plain


BROKEN_LINES = {
    "name": ("train_name.txt", 3, "0007M3D1T1F3.jpg", "train_name.txt:3: found '0007M3D1T1F3.jpg'"),
    "blank name": ("train_name.txt", 3, "", "train_name.txt:3: found ''"),
    "camera beyond int32": (
        "train_name.txt",
        3,
        "0007M2D99999999999T1F3.jpg",
        "train_name.txt:3: found '0007M2D99999999999T1F3.jpg'",
    ),
    "track beyond int32": ("test_name.txt", 2, "0503M2D1T9999999999F2.jpg", "test_name.txt:2: fo"),
    "frame beyond int32": ("test_name.txt", 2, "0503M2D1T1F9999999999.jpg", "test_name.txt:2: fo"),
    "row of a camera beyond int32": (
        "track_train_info.txt",
        2,
        "2 6 17 7 99999999999",
        "track_train_info.txt:2: found '2 6 17 7 99999999999'",
    ),
    "unicode digits": ("test_name.txt", 1, "\u0660503M2D1T1F1.jpg", "test_name.txt:1: found"),
    "few numbers": (
        "track_train_info.txt",
        2,
        "2 6 17 7",
        "track_train_info.txt:2: found '2 6 17 7'",
    ),
    "modality": ("track_test_info.txt", 1, "3 1 5 503 1", "track_test_info.txt:1: found"),
    "past the end": (
        "track_train_info.txt",
        2,
        "2 6 9999 7 1",
        r"track_train_info.txt:2: frames 6 to 9999 .* lines of info/train_name.txt",
    ),
    "from zero": ("track_train_info.txt", 1, "2 0 5 7 1", "track_train_info.txt:1: frames 0 to 5"),
    "backwards": ("track_train_info.txt", 1, "2 5 1 7 1", "track_train_info.txt:1: frames 5 to 1"),
    "other identity": (
        "track_train_info.txt",
        2,
        "2 6 17 8 1",
        r"track_train_info.txt:2: .* 0008,.* contradicts info/train_name.txt:6, which has 0007",
    ),
    "other camera": ("track_train_info.txt", 2, "2 6 17 7 4", "camera 4 contradicts"),
    "other modality": ("track_train_info.txt", 2, "1 6 17 7 1", "modality 1, .* contradicts"),
    "copy of a row": (
        "track_train_info.txt",
        2,
        "2 1 5 7 1",
        "track_train_info.txt:2: frames 1 to 5 do not follow .* before, which reach to 5",
    ),
    "overlap": (
        "track_train_info.txt",
        2,
        "2 5 17 7 1",
        "track_train_info.txt:2: frames 5 to 17 do not follow",
    ),
    "disorder": (
        "track_train_info.txt",
        1,
        "2 6 17 7 1",
        "track_train_info.txt:2: frames 6 to 17 do not follow .* reach to 17",
    ),
    "not a query": ("query_IDX.txt", 1, "4 5 8", "3 queries .* 4 infrared rows .* differ in row 9"),
    "order": ("query_IDX.txt", 1, "5 4 8 9", "not in ascending order"),
    "query word": ("query_IDX.txt", 1, "4 5 8 x", "query_IDX.txt: expected row numbers"),
}


@pytest.mark.parametrize(
    ("file", "number", "line", "message"), BROKEN_LINES.values(), ids=BROKEN_LINES.keys()
)
def test_a_broken_line_is_named(tmp_path, file, number, line, message):
    hitsz_files.write_index(tmp_path, "info")
    lines = (tmp_path / "info" / file).read_text().split("\n")
    lines[number - 1] = line
    (tmp_path / "info" / file).write_text("\n".join(lines))
    with pytest.raises(
        ValueError, match=f"info/{message}" if message.startswith(file) else message
    ):
        hitsz_vcm.read_index(tmp_path)


def test_a_row_of_several_tracks_is_read_with_a_warning(tmp_path):
    hitsz_files.write_index(tmp_path, "info")
    path = tmp_path / "info" / "track_train_info.txt"
    path.write_text("\n".join(["2 1 17 7 1", *path.read_text().split("\n")[2:]]))
    found = Findings()
    tracklet, *_ = hitsz_vcm.read_index(tmp_path, findings=found).train
    assert len(tracklet.frames) == 5 + 12
    line = "info/track_train_info.txt:1: the names have several track numbers in one row"
    assert found.wrong == [line]


LINES = st.one_of(
    st.text(max_size=30),
    st.lists(
        st.one_of(
            st.integers(-(10**20), 10**20).map(str), st.sampled_from(["", "x", "1.5", "0x1"])
        ),
        min_size=3,
        max_size=7,
    ).map(" ".join),
    st.from_regex(r"[0-9]{1,5}M[0-9]D-?[0-9]*T[0-9]F[0-9/.]{1,4}\.(jpg|png)", fullmatch=True),
    st.sampled_from(["../../etc/passwd", "0001M2D1T1F1.jpg\x00", "2 1 5 7 1", "1 1 5 7 1"]),
    # Rows and names that are well-formed and nearly correct.
    st.builds("2 {} {} 7 {}".format, *[st.integers(1, 40)] * 2, st.integers(1, 3)),
    st.builds("{:04}M2D1T{}F{}.jpg".format, *[st.integers(1, 9)] * 2, st.integers(1, 15)),
)


def plain_reading(root: pathlib.Path, split: str) -> list[schema.Tracklet]:
    """Reads a split of a correct index in another way; fails if it has a name twice."""
    names = (root / f"{split}_name.txt").read_text().split("\n")
    tracklets = []
    used: set[int] = set()
    for row, line in enumerate((root / f"track_{split}_info.txt").read_text().split("\n")):
        if not line.strip():
            continue
        code, first, last, identity, camera = map(int, line.split())
        numbers = range(first - 1, last)
        assert used.isdisjoint(numbers) and min(numbers) > max(used, default=-1)
        used.update(numbers)
        own = [re.split("[MDTF.]", names[number].strip()) for number in numbers]
        assert {tuple(map(int, name[:3])) for name in own} == {(identity, code, camera)}
        folder = "ir" if code == 1 else "rgb"
        frames = tuple(f"{pid}/{folder}/D{device}/{f}.jpg" for pid, _, device, _, f, _ in own)
        modality = schema.INFRARED if code == 1 else schema.VISIBLE
        tracklets.append(schema.Tracklet(modality, f"{identity:04}", camera, frames, row + 1))
    return [tracklet for tracklet in tracklets if len(tracklet.frames) >= 12]


@pytest.mark.slow
@hypothesis.settings(deadline=None, max_examples=200)
@hypothesis.given(file=st.sampled_from(hitsz_vcm.INDEX_FILES), place=st.integers(0, 12), line=LINES)
def test_any_line_is_read_or_refused_by_name(file, place, line):
    with tempfile.TemporaryDirectory() as directory:
        root = hitsz_files.write_index(pathlib.Path(directory))
        lines = (root / file).read_text().split("\n")
        lines[place % len(lines)] = line
        (root / file).write_text("\n".join(lines))
        raised = False
        try:
            index = hitsz_vcm.read_index(root)
        except ValueError as error:
            assert file in str(error) or "query_IDX.txt" in str(error)
            raised = True
        else:
            assert index.train == plain_reading(root, "train")
            assert index.test == plain_reading(root, "test")
            for tracklet in (*index.train, *index.test):
                assert all(".." not in frame and "\0" not in frame for frame in tracklet.frames)
        found = Findings()
        with found.catch():
            hitsz_vcm.read_index(root, findings=found)
        assert raised == any("several track numbers" not in line for line in found.wrong)


@pytest.mark.parametrize(
    "file",
    [
        "train_name.txt",
        "test_name.txt",
        "track_train_info.txt",
        "track_test_info.txt",
        "query_IDX.txt",
    ],
)
def test_a_missing_or_empty_file_is_named(tmp_path, file):
    hitsz_files.write_index(tmp_path)
    (tmp_path / file).write_text("\n")
    with pytest.raises(ValueError, match=f"{file}: the file is empty"):
        hitsz_vcm.read_index(tmp_path)
    (tmp_path / file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=f"{file}: not a text file"):
        hitsz_vcm.read_index(tmp_path)
    (tmp_path / file).unlink()
    with pytest.raises(FileNotFoundError, match=file):
        hitsz_vcm.read_index(tmp_path)


def test_a_wrong_root_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="the root of HITSZ-VCM"):
        hitsz_vcm.read_index(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such directory"):
        hitsz_vcm.read_index(tmp_path / "nowhere")


def test_an_index_file_outside_the_root_is_refused(tmp_path):
    root = hitsz_files.write_index(tmp_path / "root")
    (root / "query_IDX.txt").rename(tmp_path / "elsewhere.txt")
    (root / "query_IDX.txt").symlink_to(tmp_path / "elsewhere.txt")
    with pytest.raises(ValueError, match=r"query_IDX.txt: leads out of the dataset's root"):
        hitsz_vcm.read_index(root)


def golden_rows(split: str) -> list[hitsz_files.Row]:
    """Rows that agree with all published counts of a split; the lengths are made up."""
    golden = hitsz_vcm.GOLDEN_COUNTS[split]
    identities = [*range(golden["first_identity"], golden["last_identity"] + 1)]
    surplus = len(identities) - golden["identities"]
    identities = identities[: -surplus - 1] + identities[-1:]  # keeps the first and the last
    rows = []
    for code, modality in ((1, "infrared"), (2, "visible")):
        for number in range(golden[f"{modality}_rows"]):
            length = 12 if number < golden[f"{modality}_tracklets"] else 5
            camera = 1 + number % golden["last_camera"]
            identity = identities[number % len(identities)]
            rows.append(hitsz_files.Row(code, identity, camera, 1, length))
    spare = golden["names"] - golden["unused_names"] - sum(row.num_frames for row in rows)
    first = rows[0]
    rows[0] = hitsz_files.Row(first.code, first.identity, first.camera, 1, 12 + spare)
    return rows


@pytest.fixture(scope="module")
def golden_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("golden")
    hitsz_files.write_index(root, splits={split: golden_rows(split) for split in ("train", "test")})
    for split in ("train", "test"):
        unused = hitsz_vcm.GOLDEN_COUNTS[split]["unused_names"]
        with (root / f"{split}_name.txt").open("a") as file:  # write_index has added two
            file.write("0999M1D1T1F3.jpg\n" * (unused - 2))
    return root


@pytest.mark.slow
def test_an_index_of_the_published_size_is_read_in_seconds(golden_root):
    start = time.process_time()
    index = hitsz_vcm.read_index(golden_root)
    assert time.process_time() - start < 30  # 3 s, or more while coverage is measured
    assert index.counts == hitsz_vcm.GOLDEN_COUNTS
    assert (len(index.train), len(index.test)) == (9751, 9683)


@pytest.mark.slow
def test_an_index_of_the_published_size_must_have_its_counts(golden_root, tmp_path):
    for path in golden_root.glob("*.txt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = (tmp_path / "track_train_info.txt").read_text().split("\n")
    modality, first, last, identity, camera = rows[1].split()
    rows[1] = f"{modality} {first} {int(last) - 1} {identity} {camera}"
    (tmp_path / "track_train_info.txt").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="train infrared_tracklets 4290 instead of 4291"):
        hitsz_vcm.read_index(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("row", "change", "message"),
    [
        (0, (0, -1), "train unused_names 16 instead of 15"),  # skips the last name of a long row
        (4500, (-12, -12), "track_train_info.txt:4501: frames .* do not follow"),
    ],
    ids=["skips a name", "repeats a row"],
)
def test_no_name_of_the_published_index_is_skipped_or_used_twice(
    golden_root, tmp_path, row, change, message
):
    for path in golden_root.glob("*.txt"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    rows = (tmp_path / "track_train_info.txt").read_text().split("\n")
    code, first, last, identity, camera = map(int, rows[row].split())
    rows[row] = f"{code} {first + change[0]} {last + change[1]} {identity} {camera}"
    (tmp_path / "track_train_info.txt").write_text("\n".join(rows))
    with pytest.raises(ValueError, match=message):
        hitsz_vcm.read_index(tmp_path)


def test_golden_counts_add_up():
    for counts in hitsz_vcm.GOLDEN_COUNTS.values():
        assert counts["rows"] == counts["infrared_rows"] + counts["visible_rows"]
        assert counts["tracklets"] == counts["infrared_tracklets"] + counts["visible_tracklets"]


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    root = hitsz_files.write_dataset(tmp_path_factory.mktemp("source"), "split")
    left_out = hitsz_files.SPLITS["train"][1].frames()[:3]
    hitsz_files.write_skeletons(root / "skeletons.h5", leave_out=left_out)
    return root


@pytest.fixture(scope="module")
def packed(source, tmp_path_factory):
    return hitsz_vcm.prepare(source, tmp_path_factory.mktemp("packed"), num_workers=2)


def test_every_record_is_what_the_source_holds(source, packed):
    index = hitsz_vcm.read_index(source)
    labels = {"0002": 0, "0007": 1, "0011": 2}
    for split, tracklets in (("train", index.train), ("test", index.test)):
        stored = open_dataset(packed).split(split).records
        assert len(stored) == len(tracklets)
        for record, tracklet in zip(stored, tracklets, strict=True):
            assert record["frames"] == [(source / name).read_bytes() for name in tracklet.frames]
            assert record["frame_ids"] == list(tracklet.frames)
            assert record["height"].tolist() == [32] * len(tracklet.frames)
            assert record["width"].tolist() == [16] * len(tracklet.frames)
            assert record["identity"] == tracklet.identity
            assert record["label"] == (labels[tracklet.identity] if split == "train" else -1)
            assert record["camera"] == tracklet.camera
            assert record["modality"] == tracklet.modality
            assert record["tracklet"] == tracklet.row
            assert record["keypoints"].dtype == np.float32
    first = open_dataset(packed).split("train").records[0]
    assert not first["keypoints"][:3].any()
    expected = hitsz_files.skeleton_of(hitsz_files.SPLITS["train"][1].frames()[3])
    np.testing.assert_array_equal(first["keypoints"][3], expected.astype(np.float32))


def test_the_index_agrees_with_the_records(packed):
    for split in ("train", "test"):
        index = open_dataset(packed).split(split).index
        stored = list(open_dataset(packed).split(split).records)
        assert index.identities.tolist() == [record["identity"] for record in stored]
        assert index.labels.tolist() == [record["label"] for record in stored]
        assert index.cameras.tolist() == [record["camera"] for record in stored]
        assert index.modalities.tolist() == [record["modality"] for record in stored]
        assert index.num_frames.tolist() == [len(record["frames"]) for record in stored]
        assert index.rows.tolist() == [record["tracklet"] for record in stored]
        assert index.queries.all()
        assert index.galleries.all()
    assert open_dataset(packed).split("train").index.missing_skeletons.tolist() == [3] + [0] * 11


def test_any_user_of_tfds_can_read_it(source, packed):
    found = tfds.builder_from_directory(str(packed)).as_data_source()
    assert {split: len(examples) for split, examples in found.items()} == {"train": 12, "test": 8}
    for split, examples in found.items():
        for example, record in zip(
            examples, open_dataset(packed).split(split).records, strict=True
        ):
            assert example["identity"].decode() == record["identity"]
            assert example["label"] == record["label"]
            np.testing.assert_array_equal(example["keypoints"], record["keypoints"])
    example = found["train"][0]
    index = hitsz_vcm.read_index(source)
    expected = simplejpeg.decode_jpeg((source / index.train[0].frames[0]).read_bytes())
    assert np.stack(example["frames"]).shape == (12, 32, 16, 3)
    difference = example["frames"][0].astype(int) - expected.astype(int)
    assert abs(difference).max() <= 2  # another JPEG decoder


def test_packing_leaves_no_temporary_files(source, tmp_path, monkeypatch):
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    packed = hitsz_vcm.prepare(source, tmp_path / "data")
    assert all_files(tmp_path / "temporary") == []
    assert all_files(tmp_path / "data")[:2] == [packed.parent, packed]
    assert {path.suffix for path in packed.iterdir()} == {
        ".json",
        ".array_record-00000-of-00001",
    }


def test_several_shards_keep_the_order(source, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "TRACKLETS_PER_SHARD", 4)  # divides both 12 and 8
    packed = hitsz_vcm.prepare(source, tmp_path)
    assert len(list(packed.glob("*train*array_record*"))) == 3
    rows = [record["tracklet"] for record in open_dataset(packed).split("train").records]
    assert rows == list(range(2, 14)) == open_dataset(packed).split("train").index.rows.tolist()


def test_packing_again_is_quick_and_changes_nothing(source, packed):
    before = {path: path.stat().st_mtime_ns for path in all_files(packed.parent)}
    assert hitsz_vcm.prepare(source, packed.parent.parent) == packed
    assert {path: path.stat().st_mtime_ns for path in all_files(packed.parent)} == before


def test_another_source_is_refused(source, packed, tmp_path):
    hitsz_files.write_skeletons(tmp_path / "other.h5")
    with pytest.raises(ValueError, match=r"packed from another source \(its keypoints differ\)"):
        hitsz_vcm.prepare(source, packed.parent.parent, keypoints=tmp_path / "other.h5")
    splits = hitsz_files.SPLITS | {"train": hitsz_files.rows_of([5, 6])}
    hitsz_files.write_index(tmp_path, splits=splits)
    with pytest.raises(ValueError, match=r"another source \(its index differ"):
        hitsz_vcm.prepare(tmp_path, packed.parent.parent, keypoints=source / "skeletons.h5")


def test_reports_progress_and_missing_skeletons(source, tmp_path, capsys):
    hitsz_vcm.prepare(source, tmp_path)
    lines = capsys.readouterr().err
    assert "packing: 20/20 [" in lines
    assert "train: 3 of 164 frames have no skeleton" in lines
    assert "test: 0 of 107 frames have no skeleton" in lines


def remove_frame(root, frame):
    (root / frame).unlink()


def truncate_frame(root, frame):
    content = (root / frame).read_bytes()
    (root / frame).write_bytes(content[: len(content) // 2])


def cut_end_marker(root, frame):
    (root / frame).write_bytes((root / frame).read_bytes()[:-2])


def replace_by_text(root, frame):
    (root / frame).write_text("not an image")


def link_outside(root, frame):
    (root / frame).rename(root.parent / "outside.jpg")
    (root / frame).symlink_to(root.parent / "outside.jpg")


def break_skeleton(root, frame):
    hitsz_files.write_skeletons(root / "skeletons.h5", leave_out=(frame,))
    with hitsz_files.h5py.File(root / "skeletons.h5", "a") as file:
        file[frame.removesuffix(".jpg")] = np.zeros((17, 2))


BROKEN_SOURCES = {
    "missing frame": (remove_frame, FileNotFoundError, "{frame}: no such file"),
    "truncated frame": (truncate_frame, ValueError, "{frame}: not an intact JPEG"),
    "frame without an end": (cut_end_marker, ValueError, "{frame}: not an intact JPEG"),
    "text for a frame": (replace_by_text, ValueError, "{frame}: .*not an image"),
    "link out of the root": (link_outside, ValueError, "{frame}: leads out of the dataset's root"),
    "broken skeleton": (break_skeleton, ValueError, r"0504/ir/D3/12: found \(17, 2\)"),
}


@pytest.mark.parametrize(
    ("damage", "error", "message"), BROKEN_SOURCES.values(), ids=BROKEN_SOURCES.keys()
)
def test_a_broken_source_is_named_and_nothing_looks_complete(tmp_path, damage, error, message):
    root = hitsz_files.write_dataset(tmp_path / "root")
    frame = hitsz_files.SPLITS["test"][-1].frames()[-1]  # the last one that is packed
    damage(root, frame)
    with pytest.raises(error, match=message.format(frame=frame)):
        hitsz_vcm.prepare(root, tmp_path / "packed")
    assert os.listdir(tmp_path / "packed" / "hitsz_vcm") == [".2.1.0.packing"]
    with pytest.raises(FileNotFoundError, match="not a packed dataset"):
        open_dataset(tmp_path / "packed" / "hitsz_vcm" / ".2.1.0.packing").split("train")


def test_a_first_frame_that_is_broken_leaves_nothing(tmp_path):
    root = hitsz_files.write_dataset(tmp_path / "root")
    remove_frame(root, hitsz_files.SPLITS["train"][1].frames()[0])
    with pytest.raises(FileNotFoundError, match="no such file"):
        hitsz_vcm.prepare(root, tmp_path / "new" / "packed")
    assert not (tmp_path / "new").exists()


def test_an_interruption_leaves_nothing_and_keeps_what_was_there(source, tmp_path, monkeypatch):
    kept = tmp_path / "kept.txt"
    kept.write_text("of the user")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(frames_lib, "read_frames", interrupt)
    with pytest.raises(KeyboardInterrupt):
        hitsz_vcm.prepare(source, tmp_path)
    assert all_files(tmp_path) == [kept]


def assert_same_records(one: pathlib.Path, other: pathlib.Path) -> None:
    """Compares packed datasets; the bytes differ, since protobuf writes maps in any order."""
    for split in ("train", "test"):
        stored = [open_dataset(packed).split(split).records for packed in (one, other)]
        for records_of_both in zip(*stored, strict=True):
            texts = [repr({**r, "keypoints": r["keypoints"].tolist()}) for r in records_of_both]
            assert texts[0] == texts[1]
        indexes = [repr(open_dataset(packed).split(split).index) for packed in (one, other)]
        assert indexes[0] == indexes[1]


def test_packing_resumes_where_it_was_interrupted(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(packing, "TRACKLETS_PER_SHARD", 3)
    root = hitsz_files.write_dataset(tmp_path / "root")
    whole = hitsz_vcm.prepare(root, tmp_path / "whole")
    frame = hitsz_files.SPLITS["test"][1].frames()[0]  # of the fifth shard of seven
    content = (root / frame).read_bytes()
    remove_frame(root, frame)
    with pytest.raises(FileNotFoundError):
        hitsz_vcm.prepare(root, tmp_path / "packed")
    (root / frame).write_bytes(content)
    read = []
    read_frames = frames_lib.read_frames

    def note(source, tracklet):
        read.append(tracklet)
        return read_frames(source, tracklet)

    monkeypatch.setattr(frames_lib, "read_frames", note)
    packed = hitsz_vcm.prepare(root, tmp_path / "packed")
    assert "4 of 7 shards are packed already" in capsys.readouterr().err
    assert sorted(read, key=lambda tracklet: tracklet.row) == hitsz_vcm.read_index(root).test
    assert os.listdir(packed.parent) == ["2.1.0"]
    assert_same_records(whole, packed)


def test_a_killed_packing_resumes_and_damaged_shards_are_packed_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(packing, "TRACKLETS_PER_SHARD", 3)
    root = hitsz_files.write_dataset(tmp_path / "root")
    whole = hitsz_vcm.prepare(root, tmp_path / "whole")
    program = f"""
import os, signal
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.io import frames as frames_lib
from data_pipelines.records import packing
packing.TRACKLETS_PER_SHARD = 3
read_frames = frames_lib.read_frames
test = hitsz_vcm.read_index({str(root)!r}).test
def die(source, tracklet):
    if tracklet == test[-1]:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_frames(source, tracklet)
frames_lib.read_frames = die
hitsz_vcm.prepare({str(root)!r}, {str(tmp_path / "packed")!r}, num_workers=1)
"""
    result = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True)
    assert result.returncode == -signal.SIGKILL
    folder = tmp_path / "packed" / "hitsz_vcm"
    assert not (folder / "2.1.0").exists()
    finished = sorted((folder / ".2.1.0.packing/records").glob("*.array_record-*-of-0000?"))
    assert len(finished) >= 4
    damaged = bytearray(finished[0].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    finished[0].write_bytes(damaged)
    packed = hitsz_vcm.prepare(root, tmp_path / "packed")
    assert f"{len(finished) - 1} of 7 shards are packed already" in capsys.readouterr().err
    assert os.listdir(folder) == ["2.1.0"]
    assert_same_records(whole, packed)


def test_unfinished_work_of_another_source_is_not_used(tmp_path):
    root = hitsz_files.write_dataset(tmp_path / "root")
    frame = hitsz_files.SPLITS["test"][-1].frames()[-1]
    content = (root / frame).read_bytes()
    remove_frame(root, frame)
    with pytest.raises(FileNotFoundError):
        hitsz_vcm.prepare(root, tmp_path / "packed")
    (root / frame).write_bytes(content)
    left_out = hitsz_files.SPLITS["train"][1].frames()
    hitsz_files.write_skeletons(root / "skeletons.h5", leave_out=left_out)
    packed = hitsz_vcm.prepare(root, tmp_path / "packed")
    assert not open_dataset(packed).split("train").records[0]["keypoints"].any()


def test_two_processes_do_not_pack_the_same_dataset(source, tmp_path):
    with (
        staging.claimed(tmp_path / "hitsz_vcm" / ".2.1.0.packing", {}),
        pytest.raises(ValueError, match="another process is packing this dataset"),
    ):
        hitsz_vcm.prepare(source, tmp_path)


def test_the_origin_is_kept_beside_the_records(source, packed):
    origin = json.loads((packed / "origin.json").read_text())
    assert origin["source"] == str(source)
    assert origin["splits"]["train"] == {
        "tracklets": 12,
        "visible_tracklets": 6,
        "infrared_tracklets": 6,
        "frames": 164,
        "frames_without_skeleton": 3,
        "identities": 3,
        "cameras": 3,
    }
    assert origin["files"].keys() == {path.name for path in packed.iterdir()} - {"origin.json"}
    for name, facts in origin["files"].items():
        content = (packed / name).read_bytes()
        expected = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for split, tracklets in (("train", 12), ("test", 8)):
            if f"-{split}.array_record" in name:
                expected |= {"split": split, "records": tracklets}
        assert facts == expected
    checksum = origin.pop("checksum")
    assert checksum == hashlib.sha256(json.dumps(origin).encode()).hexdigest()


def test_frames_of_a_tracklet_may_differ_in_size(tmp_path):
    root = hitsz_files.write_dataset(tmp_path / "root")
    tracklet = hitsz_vcm.read_index(root).train[0]
    pixels = np.full((64, 16, 3), 200, np.uint8)
    (root / tracklet.frames[1]).write_bytes(simplejpeg.encode_jpeg(pixels))
    packed = hitsz_vcm.prepare(root, tmp_path / "packed")
    record = open_dataset(packed).split("train").records[0]
    assert record["height"][:3].tolist() == [32, 64, 32]
    frames = np.empty((3, 32, 16, 3), np.uint8)
    keypoints = reading.decode_clip(record, np.arange(3), frames)
    assert abs(frames[1].astype(int) - 200).max() <= 1
    np.testing.assert_array_equal(keypoints[[0, 2]], record["keypoints"][[0, 2]])
    halved = record["keypoints"][1] * [1, 0.5, 1] - [0, 0.25, 0]  # rows 0 and 1 become row 0
    np.testing.assert_allclose(keypoints[1], halved, rtol=1e-6)


def test_skeletons_are_required(tmp_path):
    root = hitsz_files.write_index(tmp_path / "root")
    hitsz_files.write_frames(root)
    with pytest.raises(FileNotFoundError, match="COCO-17 keypoints of every frame"):
        hitsz_vcm.prepare(root, tmp_path / "packed")
    hitsz_files.write_skeletons(tmp_path / "strange.h5", {"train": hitsz_files.rows_of([999])})
    with pytest.raises(ValueError, match="no frame has a skeleton"):
        hitsz_vcm.prepare(root, tmp_path / "packed", keypoints=tmp_path / "strange.h5")
    assert not (tmp_path / "packed").exists()


def test_a_directory_that_is_not_a_packed_dataset_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="not a packed dataset"):
        open_dataset(tmp_path).split("train")
    with pytest.raises(FileNotFoundError, match="not a packed dataset"):
        open_dataset(tmp_path).split("train")


def test_an_unknown_split_is_named(packed):
    with pytest.raises(ValueError, match="has train and test"):
        open_dataset(packed).split("query")


def test_packing_and_reading_import_neither_tensorflow_nor_jax(source, tmp_path):
    program = f"""
import json, sys
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.records.dataset import open_dataset
packed = hitsz_vcm.prepare({str(source)!r}, {str(tmp_path)!r})
len(open_dataset(packed).split("train").records[0]["frames"])
print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    modules = json.loads(result.stdout.splitlines()[-1])
    assert "tensorflow_datasets" in modules
    assert not {"tensorflow", "jax", "jaxlib"} & set(modules)
