"""The flags of launch/search.py: where its embeddings come from."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ([], "none of them"),
        (["--workdir=a"], "--workdir"),
        (["--source=a"], "--source"),
        (["--query=a"], "--query"),
        (["--workdir=a", "--checkpoint=b", "--source=c"], "--checkpoint, --source, --workdir"),
        (
            ["--workdir=a", "--source=b", "--query=c", "--gallery=d"],
            "--gallery, --query, --source, --workdir",
        ),
    ],
)
def test_either_a_network_and_a_dataset_or_two_files(arguments, found):
    result = run(*arguments, "--output=x")
    assert result.returncode == 1
    assert result.stderr.strip() == (
        "error: give a network (--workdir or --checkpoint) and a packed dataset (--source), or two "
        f"files of launch/embed.py (--query and --gallery); found {found}"
    )


def test_a_search_has_a_match_and_a_query():
    for flag in ("--top=0", "--max_queries=0"):
        result = run("--query=a", "--gallery=b", "--output=x", flag)
        assert result.returncode == 2 and flag.partition("=")[0].strip("-") in result.stderr


def run(*arguments):
    command = [sys.executable, "launch/search.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
