"""Checking a dataset before it is packed."""

import subprocess
import sys
from pathlib import Path

import hitsz_files
import numpy as np
import pytest
import tiny

from data_pipelines.datasets import checks, hitsz_vcm
from data_pipelines.datasets.findings import Findings
from data_pipelines.records.dataset import open_dataset

ROOT = Path(__file__).parents[3]
SPLITS = {"train": tiny.rows_of([1, 2, 3]), "test": tiny.rows_of([503, 504])}


@pytest.fixture
def root(tmp_path):
    return hitsz_files.write_dataset(tmp_path / "root", "split", SPLITS)


def cell(findings: Findings, name: str) -> list:
    rows = {row[0]: list(row[1:]) for table in findings.tables for row in table}
    return rows[name]


def test_nothing_is_wrong_with_a_good_dataset(root, capsys):
    before = sorted(root.rglob("*"))
    findings = hitsz_vcm.check(root, published=False)
    assert findings.wrong == []
    assert str(findings).endswith("No problems found.")
    frames = [sum(row.num_frames for row in rows) for rows in SPLITS.values()]
    assert cell(findings, "frames") == frames
    assert cell(findings, "tracklets that are packed") == [12, 8]
    assert cell(findings, "visible ones") == [6, 4]
    assert cell(findings, "identities") == [3, 2]
    assert cell(findings, "unreadable frames") == [0, 0]
    assert cell(findings, "frames without a skeleton") == ["0 (0.0 %)", "0 (0.0 %)"]
    log = capsys.readouterr().err
    assert "train: reading: 12/12 [" in log
    assert "frames/s" in log
    assert sorted(root.rglob("*")) == before


def test_the_counts_of_the_published_dataset_are_expected(root):
    findings = hitsz_vcm.check(root)
    assert len(findings.wrong) == 1
    assert "train names 158 instead of 232496" in findings.wrong[0]
    assert cell(findings, "names") == [158, 106, 232_496, 230_763]


def test_every_broken_frame_is_named(root):
    train, test = (hitsz_vcm.read_index(root).train, hitsz_vcm.read_index(root).test)
    missing, truncated, empty = train[0].frames[3], train[5].frames[0], test[7].frames[11]
    (root / missing).unlink()
    (root / truncated).write_bytes((root / truncated).read_bytes()[:200])
    (root / empty).write_bytes(b"")
    findings = hitsz_vcm.check(root, published=False)
    assert len(findings.wrong) == 3
    for name, line in zip((missing, truncated, empty), findings.wrong, strict=True):
        assert line.startswith(name)
    assert cell(findings, "unreadable frames") == [2, 1]


def test_short_tracklets_are_read_too(tmp_path):
    splits = {"train": [*SPLITS["train"], hitsz_files.Row(2, 3, 9, 1, 5)], "test": SPLITS["test"]}
    root = hitsz_files.write_dataset(tmp_path / "root", splits=splits)
    frame = hitsz_vcm.read_index(root, min_frames=1).train[-1].frames[-1]
    (root / frame).write_bytes(b"")
    findings = hitsz_vcm.check(root, published=False)
    assert cell(findings, "too short") == [1, 0]
    assert [line.partition(":")[0] for line in findings.wrong] == [frame]


def test_missing_skeletons_are_counted_and_broken_ones_named(root):
    tracklets = hitsz_vcm.read_index(root).train
    left_out = [frame.removeprefix("Train/") for frame in tracklets[0].frames[:3]]
    broken = tracklets[1].frames[2].removeprefix("Train/").removesuffix(".jpg")
    hitsz_files.write_skeletons(
        root / "skeletons.h5", SPLITS, leave_out=(*left_out, f"{broken}.jpg")
    )
    with hitsz_files.h5py.File(root / "skeletons.h5", "a") as file:
        file[broken] = [[1.0, 2.0]]
    findings = hitsz_vcm.check(root, published=False)
    assert cell(findings, "frames without a skeleton")[0].startswith("3 (")
    assert len(findings.wrong) == 1
    assert broken in findings.wrong[0]
    (root / "skeletons.h5").unlink()
    findings = hitsz_vcm.check(root, published=False)
    assert [line for line in findings.wrong if "no skeletons" not in line] == []
    assert len(findings.wrong) == 1  # not once per split
    assert cell(findings, "unreadable frames") == [0, 0]  # the frames are still checked


def test_skeletons_of_other_frames_are_detected(root):
    hitsz_files.write_skeletons(root / "skeletons.h5", {"train": tiny.rows_of([900])})
    findings = hitsz_vcm.check(root, published=False)
    assert [line.partition(";")[0] for line in findings.wrong] == [
        "train: no frame has a skeleton",
        "test: no frame has a skeleton",
    ]


def test_identities_and_cameras_are_checked(tmp_path):
    rows = tiny.rows_of([503, 504])
    rows.append(hitsz_files.Row(1, 503, 1, 1, 12))  # camera 1 sees 503 in visible light, too
    splits = {
        "train": [
            *SPLITS["train"],
            hitsz_files.Row(2, 9, 1, 1, 12),
            hitsz_files.Row(1, 9, 3, 1, 5),
        ],
        "test": rows,
    }
    root = hitsz_files.write_dataset(tmp_path / "root", splits=splits)
    findings = hitsz_vcm.check(root, published=False)
    assert len(findings.wrong) == 2
    assert (
        "identity 0009 has no tracklet of 12 frames in one of the modalities" in findings.wrong[0]
    )
    assert "camera 1 shows identity 0503 in both modalities" in findings.wrong[1]
    assert cell(findings, "identities seen in one modality") == [1, 0]
    assert cell(findings, "cameras of one identity with both") == [0, 1]


def test_every_broken_line_of_the_index_is_named(root):
    names = (root / "info" / "train_name.txt").read_text().split("\n")
    names[2] = "0001M3D1T1F3.jpg"
    (root / "info" / "train_name.txt").write_text("\n".join(names))
    rows = (root / "info" / "track_train_info.txt").read_text().split("\n")
    rows[4] = rows[4].replace(" ", " -", 1)
    rows[6] = "2 1 99999 3 1"
    (root / "info" / "track_train_info.txt").write_text("\n".join(rows))
    findings = hitsz_vcm.check(root, published=False)
    places = [line.partition(": ")[0] for line in findings.wrong]
    assert places == [
        "info/train_name.txt:3",
        "info/track_train_info.txt:5",
        "info/track_train_info.txt:7",
    ]
    assert cell(findings, "tracklets that are packed") == [9, 8]  # what can be read is checked


def test_a_missing_index_is_named(tmp_path):
    findings = hitsz_vcm.check(tmp_path)
    assert len(findings.wrong) == 1
    assert "the root of HITSZ-VCM" in findings.wrong[0]


def test_many_missing_frames_hide_nothing_else(tmp_path):
    rows = [*SPLITS["train"], hitsz_files.Row(2, 9, 1, 1, 12)]
    root = hitsz_files.write_dataset(
        tmp_path / "root", "split", {"train": rows, "test": SPLITS["test"]}
    )
    for path in (root / "Train").rglob("*.jpg"):
        path.unlink()
    index = hitsz_vcm.read_index(root)
    broken = index.test[0].frames[0]
    (root / broken).write_bytes(b"")
    key = index.test[1].frames[2].removeprefix("Test/").removesuffix(".jpg")
    with hitsz_files.h5py.File(root / "skeletons.h5", "a") as file:
        file[key][3, 0] = float("nan")
    shown = str(hitsz_vcm.check(root, published=False))
    missing = sum(row.num_frames for row in rows)
    assert f"... and {missing - 10} more of the frames of train" in shown
    for line in (f"- {broken}: is empty", f"{key}.jpg: left_ear is ", "identity 0009 has"):
        assert line in shown


FAULTS = {
    "shares": (lambda xy: xy / [hitsz_files.WIDTH, hitsz_files.HEIGHT], "like shares of width"),
    "swapped": (lambda xy: xy[:, ::-1], "have x and y swapped"),
    "far off": (lambda xy: xy * [900, 400], "do not lie in their frames"),
    "another order": (lambda xy: xy[5 * np.arange(17) % 17], "another order than COCO's"),
}


def move_joints(root: Path, rows, move) -> None:
    """Replaces x and y of the skeletons of some tracklets, and makes all joints certain."""
    with hitsz_files.h5py.File(root / "skeletons.h5", "a") as file:
        for row in rows:
            for frame in row.frames():
                skeleton = file[frame.removesuffix(".jpg")]
                skeleton[:, :2] = move(skeleton[:, :2])
                skeleton[:, 2] = 1


@pytest.mark.parametrize(("move", "what"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_all_skeletons_of_a_split_is_named_by_modality(root, move, what):
    move_joints(root, SPLITS["test"], move)
    findings = hitsz_vcm.check(root, published=False)
    tracklets = hitsz_vcm.read_index(root).test
    for line, modality, name in zip(findings.wrong, (0, 1), ("visible", "infrared"), strict=True):
        assert line.startswith(f"{root / 'skeletons.h5'}: test, {name}: ")
        assert what in line
        assert " of 12 skeletons of a sample " in line  # three of each of four tracklets
        frames = [frame for row in tracklets if row.modality == modality for frame in row.frames]
        assert any(
            f"such as that of {frame} (16 x 32 pixels), where x is" in line for frame in frames
        )


def test_wrong_coordinates_of_one_modality_are_detected_in_a_sample(root, monkeypatch):
    monkeypatch.setattr(checks, "_SAMPLE", 5)
    infrared = [row for row in SPLITS["train"] if row.code == 1]
    move_joints(root, infrared, lambda xy: np.add(xy, [0, 40]))
    (line,) = hitsz_vcm.check(root, published=False).wrong
    assert "train, infrared: 6 of 6 skeletons of a sample do not lie in their frames (" in line


def test_a_few_stray_skeletons_are_accepted(root):
    frames = [tracklet.frames[0] for tracklet in hitsz_vcm.read_index(root).train[:4]]
    with hitsz_files.h5py.File(root / "skeletons.h5", "a") as file:
        for frame in frames[:3]:  # of a sample of 36
            file[frame.removeprefix("Train/").removesuffix(".jpg")][:, 0] += 5000
        far = file[frames[3].removeprefix("Train/").removesuffix(".jpg")]
        far[:, 2] = [0.1] * 12 + [1] * 5
        far[:12, :2] = 5000  # of low confidence
    assert hitsz_vcm.check(root, published=False).wrong == []


def test_the_command_exits_with_code_1_if_anything_is_wrong(root, tmp_path):
    command = [sys.executable, "launch/prepare.py", "--dataset=hitsz_vcm", f"--source={root}"]
    result = subprocess.run(
        [*command, "--check", f"--data_dir={tmp_path / 'data'}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 1, result.stderr
    assert "1 problem:" in result.stdout
    assert "are not those of HITSZ-VCM" in result.stdout
    assert not (tmp_path / "data").exists()
    with pytest.raises(FileNotFoundError):
        open_dataset(tmp_path / "data" / "hitsz_vcm" / "2.1.0").split("train")
