"""The benchmarks run; what they measure is in docs/benchmarks.md."""

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_input_pipeline_is_measured(tmp_path):
    packed = tiny.packed_dataset(tmp_path)
    sizes = ("--identities=2", "--frames=3", "--size", "32", "16", "--pack=9")
    command = [sys.executable, "-m", "benchmarks.input_pipeline", tmp_path / "source", packed]
    result = subprocess.run(
        [*map(str, command), *sizes, "--steps=1", "--turns=1"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    for measured in ("packing", "bare decoding", "plain loader", "star_jax: ", "shares: "):
        assert measured in result.stdout, result.stdout


@pytest.mark.slow
def test_a_large_gallery_is_ranked():
    command = [sys.executable, "-m", "benchmarks.large_gallery", "--queries=30", "--gallery=200"]
    result = subprocess.run(
        [*command, "--width=64"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert "30 x 200 embeddings of 64 numbers" in result.stdout
    assert "100,000 x 1,000,000 at this rate" in result.stdout


@pytest.mark.slow
def test_an_evaluation_is_measured(tmp_path):
    run = tiny.saved_run(tmp_path / "run", tiny.baseline(tiny.packed_dataset(tmp_path)))
    command = [sys.executable, "-m", "benchmarks.evaluation", f"--workdir={run}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "16 tracklets, 16 clips of 2 frames" in result.stdout
    assert "load and embed: " in result.stdout and "rank and score: " in result.stdout
