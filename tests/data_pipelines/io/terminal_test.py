"""Names from untrusted files neither control the terminal nor flood it."""

import re
import subprocess
import sys
from pathlib import Path

import hitsz_files
import pytest
import video_files
from hypothesis import given
from hypothesis import strategies as st

from data_pipelines.datasets.findings import Findings
from data_pipelines.io import progress, tables, terminal

ROOT = Path(__file__).parents[3]
# Clears the screen; sets the title; reverses the writing direction; ends the line; C1's CSI.
HOSTILE = "a\x1b[2J\x1b]0;title\x07\u202egpj.exe\r\n\x9b31mz"
ESCAPED = r"a\x1b[2J\x1b]0;title\x07\u202egpj.exe\r\n\x9b31mz"
STEERING = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def test_what_controls_a_terminal_is_escaped():
    assert terminal.printable(HOSTILE) == ESCAPED
    assert terminal.printable("Zoë 张伟 ~ 'x' \\") == "Zoë 张伟 ~ 'x' \\"
    assert terminal.printable("\udcff") == r"\udcff"  # of a name that is not UTF-8


@given(text=st.text(max_size=60))
def test_any_text_is_one_harmless_line(text):
    shown = terminal.printable(text)
    assert not STEERING.search(shown) and len(shown.splitlines()) <= 1
    shown.encode()


def test_the_middle_of_a_long_text_is_cut():
    shown = terminal.printable("begin " + "x" * 10_000_000 + " end")
    assert len(shown) < 2100
    assert shown.startswith("begin xxx") and shown.endswith("xxx end")
    assert "[... 9998010 characters ...]" in shown


def test_logs_tables_findings_and_progress_are_harmless(capsys):
    terminal.log(HOSTILE)
    list(progress.with_progress([1], 1, HOSTILE))
    findings = Findings()
    findings.tables.append([("identity", HOSTILE), (HOSTILE, 1)])
    findings.report(HOSTILE, "these")
    for number in range(11):
        findings.report(f"{HOSTILE}: {number}", HOSTILE)
    print(findings)
    print(tables.aligned([[HOSTILE, "1"]]))
    out, err = capsys.readouterr()
    assert not STEERING.search(out + err)
    assert err.splitlines()[0] == ESCAPED
    assert err.splitlines()[1].startswith(f"{ESCAPED}: 1/1 [")
    assert f"- {ESCAPED}\n" in out and f"more of {ESCAPED}\n" in out


def prepare(source, *flags) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "launch/prepare.py", f"--source={source}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.mark.slow
def test_hostile_names_of_folders_are_shown_escaped(tmp_path):
    for name in ("walk", HOSTILE):
        video_files.write_image(tmp_path / "footage/alice/visible/1" / name / "1.jpg")
    (tmp_path / "footage/alice/visible/1" / HOSTILE / "1.jpg").write_bytes(b"no picture")
    for flags in (["--check"], [f"--data_dir={tmp_path / 'data'}"]):
        done = prepare(tmp_path / "footage", "--dataset=folder", "--without_skeletons", *flags)
        assert done.returncode == 1
        assert not STEERING.search(done.stdout + done.stderr)
        # An error is one line, so line ends in a name become spaces.
        shown = [ESCAPED, ESCAPED.replace(r"\r\n", " ")]
        assert any(f"{name}/1.jpg" in done.stdout + done.stderr for name in shown)
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("flags", [[], ["--check"]])
def test_a_line_of_ten_megabytes_is_not_shown_in_full(tmp_path, flags):
    root = hitsz_files.write_dataset(tmp_path / "root")
    rows = root / "track_train_info.txt"
    rows.write_text("2 1 5 0007 " + "3" * 10_000_000 + "\n" + rows.read_text())
    done = prepare(root, "--dataset=hitsz_vcm", f"--data_dir={tmp_path / 'data'}", *flags)
    assert done.returncode == 1
    assert len(done.stdout + done.stderr) < 20_000
    (line,) = [
        x for x in (done.stdout + done.stderr).splitlines() if "track_train_info.txt:1:" in x
    ]
    assert "found '2 1 5 0007 333" in line and line.endswith("such as '2 1 24 0001 3'")
