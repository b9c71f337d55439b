"""The flags of launch/search.py: where its embeddings come from."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny

from star_jax.embedding import embeddings

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
        "error: pass a network (--workdir or --checkpoint) and a packed dataset (--source), or two "
        f"files of launch/embed.py (--query and --gallery); found {found}"
    )


def test_a_search_has_a_match_and_a_query():
    for flag in ("--top=0", "--max_queries=0"):
        result = run("--query=a", "--gallery=b", "--output=x", flag)
        assert result.returncode == 2 and flag.partition("=")[0].strip("-") in result.stderr


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Returns a folder with files of embeddings, one of which has a name that is not Unicode."""
    folder = tmp_path_factory.mktemp("files")
    npz, _ = embeddings.save(folder / "right", tiny.embeddings(6))
    shutil.copy(npz, folder / NOT_UNICODE)
    embeddings.save(folder / "dense", tiny.embeddings(6, provenance={"clips": "dense"}))
    return folder


NOT_UNICODE = os.fsdecode(b"\xff.npz")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query", "output", "named"),
    [
        ("http://host/right.npz", "out", "http://host/right.npz"),
        ("right.npz", "http://host/out", "http://host/out"),
        ("dense.npz", "out", "clips is dense and first"),
    ],
)
def test_what_cannot_be_searched_is_one_line(files, query, output, named):
    result = run(f"--query={query}", "--gallery=right.npz", f"--output={output}", cwd=files)
    assert result.returncode in (1, 2) and result.stderr.startswith("error: ")
    assert named in result.stderr and result.stderr.count("\n") == 1
    assert not any(path.is_dir() for path in files.iterdir())


@pytest.mark.slow
def test_paths_that_are_not_unicode_are_shown_escaped(files, tmp_path):
    output = tmp_path / os.fsdecode(b"\xfe")
    result = run(
        f"--query={NOT_UNICODE}", f"--gallery={NOT_UNICODE}", f"--output={output}", cwd=files
    )
    assert result.returncode == 0, result.stderr
    assert r"\udcfe/matches.html" in result.stdout
    page = (output / "matches.html").read_text("utf-8")
    assert r"\udcff.npz" in page


def run(*arguments, cwd=ROOT):
    command = [sys.executable, str(ROOT / "launch/search.py"), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUTF8": "1"}
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env=environment
    )
