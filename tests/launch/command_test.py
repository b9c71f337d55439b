"""How commands end: one line for what a user can fix, a traceback for anything else."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import video_files

from launch import command

ROOT = Path(__file__).parents[2]


def run(body, *arguments):
    """A command whose main function has this body."""
    code = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from launch import command
def main():
    {body}
command.run(main)
"""
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("body", "line"),
    [
        (
            "from data_pipelines.errors import InputError; raise InputError('a.txt: is\\nempty')",
            "error: a.txt: is empty",
        ),
        (
            "from data_pipelines.errors import MissingPackageError as E; raise E('no gcsfs')",
            "error: no gcsfs",
        ),
        (
            "open('/nowhere')",
            "error: [Errno 2] No such file or directory: '/nowhere'",
        ),
    ],
)
def test_what_a_user_can_fix_is_one_line(body, line):
    result = run(body)
    assert result.returncode == 1 and result.stderr == f"{line}\n"
    verbose = run(body, "--verbosity=1")
    assert verbose.returncode == 1 and "Traceback" in verbose.stderr and line in verbose.stderr


@pytest.mark.parametrize(
    "body",
    [
        "import numpy as np; np.ones(3) @ np.ones(4)  # a ValueError of a user's own loss",
        "import a_package_that_does_not_exist",
        "raise FloatingPointError('of jax_debug_nans')",
    ],
)
def test_any_other_error_shows_where_it_comes_from(body):
    result = run(body)
    assert result.returncode == 1
    assert "Traceback" in result.stderr and "in main" in result.stderr


def test_what_a_thread_cannot_write_is_one_line():
    failing = "import threading; t = threading.Thread(target=lambda: open('/nowhere'), name='w')"
    result = run(f"{failing}; t.start(); t.join()")
    assert result.returncode == 0
    assert result.stderr == "warning: w: [Errno 2] No such file or directory: '/nowhere'\n"
    result = run(f"{failing.replace(chr(39) + '/nowhere' + chr(39), '0 / 0')}; t.start(); t.join()")
    assert "ZeroDivisionError" in result.stderr and "Traceback" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        (["--workdir=a"], "a"),
        (["--checkpoint=a/checkpoints/7"], "a/checkpoints/7"),
        ([], "error: give either --workdir or --checkpoint"),
        (["--workdir=a", "--checkpoint=b"], "error: give either --workdir or --checkpoint"),
        (["--workdir="], "error: give either --workdir or --checkpoint"),
    ],
)
def test_one_of_two_flags_is_given(arguments, printed):
    define = "from absl import flags; define = lambda name: flags.DEFINE_string(name, None, '')"
    body = (
        f"print(command.either(*FLAGS))\n{define}\nFLAGS = define('workdir'), define('checkpoint')"
    )
    ended = run(body, *arguments)
    assert (ended.stdout + ended.stderr).strip() == printed


COMMANDS = [
    path
    for path in sorted((ROOT / "launch").rglob("*.py"))
    if "command.run(main" in path.read_text(encoding="utf-8")
]


TEXTS = {  # flags that are neither paths nor of another type
    *("camera", "coordinator", "corrupt", "dataset", "input_size", "protocol", "split", "topology"),
}


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
def test_paths_are_flags_of_their_own_kind(path):
    """Otherwise --flag=~/x and --flag=gs://x would make folders of these names."""
    calls = [
        node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if type(node) is ast.Call
    ]
    plain = [
        c for c in calls if ast.unparse(c.func).endswith((".DEFINE_string", "define_required"))
    ]
    assert {call.args[0].value for call in plain} <= TEXTS


DEFINED = (
    "print(HERE.value, ANYWHERE.value)\n"
    "HERE = command.define_path('here', 'data', 'A folder.')\n"
    "ANYWHERE = command.define_path('anywhere', None, 'A folder.', addresses=True)"
)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        ([], "data None"),
        (["--here=~/x", "--anywhere=~"], "/homes/me/x /homes/me"),
        (["--here=./~/x", "--anywhere=a/~"], "./~/x a/~"),
        (["--here=", "--anywhere=gs://bucket/~/x"], "gs://bucket/~/x"),
        (["--here=gs://bucket/x"], "error: --here=gs://bucket/x: is an address"),
        (["--here=gs:/bucket"], "error: --here=gs:/bucket: is an address"),
        (["--here=~nobody0/x"], "error: --here=~nobody0/x: there is no such user"),
        (["--anywhere=~nobody0"], "error: --anywhere=~nobody0: there is no such user"),
        (["--anywhere=s3://bucket"], "error: --anywhere=s3://bucket: give a local path"),
    ],
)
def test_paths_on_the_command_line(monkeypatch, arguments, printed):
    monkeypatch.setenv("HOME", "/homes/me")
    ended = run(DEFINED, *arguments)
    assert (ended.stdout + ended.stderr).strip().startswith(printed)
    assert ended.returncode == (2 if printed.startswith("error") else 0)


def test_paths_of_config_files(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "grid.py").write_text("def get_grid(x='none'):\n    return x\n")
    assert command.call_in_file("grid", "~/grid.py", "get_grid") == "none"
    assert command.call_in_file("grid", "~/grid.py:a", "get_grid") == "a"


@pytest.mark.slow
@pytest.mark.parametrize("place", ["~/packed", "gs://bucket/packed"])
def test_no_folder_is_named_after_an_address_or_a_tilde(tmp_path, place):
    video_files.write_image(tmp_path / "people/alice/visible/door/walk/1.jpg")
    (tmp_path / "home").mkdir()
    packing = subprocess.run(
        [
            *(sys.executable, str(ROOT / "launch/prepare.py"), "--dataset=folder"),
            *("--source=people", "--without_skeletons", f"--data_dir={place}"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path / "home")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "people"]
    is_address = place.startswith("gs")
    assert (tmp_path / "home/packed/folder/1.1.0").exists() != is_address
    assert packing.returncode == (2 if is_address else 0)


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("as_module", [False, True])
def test_a_command_is_a_file_and_a_module(path, as_module):
    name = path.relative_to(ROOT)
    started = ["-m", ".".join(name.with_suffix("").parts)] if as_module else [str(name)]
    result = subprocess.run(
        [sys.executable, *started, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    description = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    assert description in result.stdout, result.stderr  # examples keep their line breaks
    assert max(map(len, description.splitlines())) <= 100
    assert result.returncode == 0


def test_help_marks_flags_that_must_be_given():
    result = subprocess.run(
        [sys.executable, "launch/train.py", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    text = " ".join(result.stdout.split())
    for flag in ("--config: A file in", "--workdir: Folder of the run"):
        assert re.search(f"{flag}[^()]*Required\\.", text)
    assert "Required" not in text.partition("--num_processes")[2].partition("--")[0]
