"""The commands of docs/footage.md lead from two raw videos to a page of ranked matches."""

import csv
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pose_models
import pytest
from street import write_street

ROOT = Path(__file__).parents[2]
SMALL = """
    model.backbone=resnet18 data.frame_size=64,32 data.clip_length=2
    data.identities_per_batch=2 data.tracklets_per_identity=1 optim.epochs=2 optim.warmup_epochs=1
    optim.decay_epochs=9 eval.every_epochs=2 eval.batch_size=4
"""


def commands_of_the_page():
    """Returns the commands of the first section of docs/footage.md, as lists of arguments."""
    section = (ROOT / "docs/footage.md").read_text(encoding="utf-8").split("\n## ")[1]
    assert section.startswith("From raw videos to ranked matches")
    (block,) = re.findall(r"```\n(python .*?)```", section, re.DOTALL)
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.mark.slow
def test_from_raw_videos_to_ranked_matches(tmp_path):
    street = write_street(tmp_path / "videos", num_people=6)
    pose = pose_models.write_simcc_model(tmp_path / "pose.onnx")
    (tmp_path / "configs").symlink_to(ROOT / "configs")  # as in the root of a clone
    commands = commands_of_the_page()
    assert len(commands) <= 6
    printed = {}
    for python, script, *arguments in commands:
        name = Path(script).stem
        arguments = [
            *(argument for argument in arguments if not argument.startswith("--config.init")),
            *([f"--detector={street.detector}"] if name == "tracklets" else []),
            *([f"--model={pose}"] if name == "extract_skeletons" else []),
            *(f"--config.{value}" for value in SMALL.split() if name == "train"),
        ]
        for shown, drawn in (("door.mp4", "visible"), ("yard.avi", "infrared")):
            arguments = [a.replace(shown, str(street.videos[drawn])) for a in arguments]
        if name == "extract_skeletons":
            named = street.name_people(tmp_path / "people")
        ended = subprocess.run(
            [{"python": sys.executable}[python], ROOT / script, *arguments],
            cwd=tmp_path,
            env=os.environ | {"XLA_FLAGS": os.environ["XLA_FLAGS"].replace("count=8", "count=1")},
            capture_output=True,
            text=True,
        )
        assert ended.returncode == 0, ended.stderr
        printed[name] = ended.stdout
    # Everybody walks once past each camera.
    assert sorted(named.values()) == sorted(2 * [f"person{number}" for number in range(6)])
    (evaluation,) = (tmp_path / "runs/people/eval").glob("*.json")
    report = json.loads(evaluation.read_text())
    assert report["protocol"] == "cross-modality" and report["i2v"]["queries"] > 0
    with open(tmp_path / "matches/matches.csv", encoding="utf-8-sig", newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["query_modality"] for row in rows} == {"infrared"}
    assert {row["query_camera"] for row in rows} == {"yard"}
    firsts = {row["query_identity"]: int(row["first_true_match"]) for row in rows}
    assert len(firsts) == report["i2v"]["queries"]
    rank1 = 100 * sum(first == 1 for first in firsts.values()) / len(firsts)
    assert report["i2v"]["rank1"] == pytest.approx(rank1)
    assert f"Rank-1 {rank1:.1f} %" in printed["search"]
    page = (tmp_path / "matches/matches.html").read_text()
    assert all(name in page for name in firsts)
