"""How commands end: one line for what a user can fix, a traceback for anything else."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

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


@pytest.mark.slow
@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.stem)
@pytest.mark.parametrize("as_module", [False, True])
def test_a_command_is_a_file_and_a_module(path, as_module):
    name = path.relative_to(ROOT)
    command = ["-m", ".".join(name.with_suffix("").parts)] if as_module else [str(name)]
    result = subprocess.run(
        [sys.executable, *command, "--help"], cwd=ROOT, capture_output=True, text=True, check=False
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
