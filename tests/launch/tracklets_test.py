"""launch/footage/tracklets.py: a raw video to the folders of footage, and errors in one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import street

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    return street.write_street(tmp_path_factory.mktemp("street"), num_people=2)


def command(filmed, output, **flags):
    flags = {
        "video": filmed.videos["visible"],
        "modality": "visible",
        "camera": "door",
        "output": output,
        "detector": filmed.detector,
        **flags,
    }
    script = ROOT / "launch/footage/tracklets.py"
    return [sys.executable, str(script), *(f"--{name}={value}" for name, value in flags.items())]


def run(filmed, output, **flags):
    return subprocess.run(
        command(filmed, output, **flags),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
def test_a_video_becomes_tracklets_once(tmp_path, filmed):
    output = tmp_path / "people"
    result = run(filmed, output)
    assert result.returncode == 0, result.stderr
    folder = output / "unknown/visible/door"
    frames = len(list(folder.glob("*/*.jpg")))
    assert result.stdout.splitlines() == [
        f"2 tracklets, {frames} frames: {folder}",
        f"look at {output}/tracks/visible/door.jpg; name people in {output}/identities.csv",
    ]
    assert "frames/s" in result.stderr
    assert set(filmed.name_people(output).values()) == {"person0", "person1"}
    again = run(filmed, output)
    assert (
        again.stdout.splitlines()[0] == f"2 tracklets, {frames} frames: {folder} (written earlier)"
    )
    other = run(filmed, output, video=filmed.videos["infrared"])
    assert other.returncode == 1
    assert other.stderr.startswith("error: ")
    assert other.stderr.count("\n") == 1
    assert "choose another camera name" in other.stderr


@pytest.mark.slow
def test_ctrl_c_says_how_to_continue(tmp_path, filmed):
    journal = tmp_path / "people/tracks/visible/.door.partial/detections"
    process = subprocess.Popen(
        command(filmed, tmp_path / "people"),
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (journal.exists() and journal.read_bytes().count(b"\n") > 3):
        assert process.poll() is None, "the command ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert error.endswith(
        "detections so far are kept: the same command continues there\nerror: interrupted\n"
    )
    result = run(filmed, tmp_path / "people")
    assert result.returncode == 0, result.stderr
    assert "frames are taken from the interrupted run" in result.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"video": "no.mp4"}, "no.mp4: no such video"),
        ({"detector": "hog"}, "--detector=hog: no such file, nor the name of a model"),
        ({"camera": "a/b"}, "camera is 'a/b': it names a folder"),
        ({"modality": "thermal"}, "flag --modality=thermal: value should be one of"),
        ({"min_score": "1.5"}, "min_score is 1.5: use a number from 0.1 to 1"),
    ],
)
def test_errors_are_one_line(tmp_path, filmed, flags, message):
    result = run(filmed, tmp_path / "people", **flags)
    assert result.returncode in (1, 2)
    assert result.stderr.startswith(f"error: {message}")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "people").exists()
