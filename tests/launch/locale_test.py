"""Commands in a locale without UTF-8."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import video_files

from data_pipelines.records.dataset import open_dataset

PREPARE = Path(__file__).parents[2] / "launch/prepare.py"


@pytest.mark.slow
def test_footage_is_packed_in_a_locale_without_utf_8(tmp_path):
    place = tmp_path / "people/Jürgen/visible/door/walk"
    video_files.write_image(place / "1.jpg")
    ended = subprocess.run(
        [
            *(sys.executable, PREPARE, "--dataset=folder", "--without_skeletons"),
            *(f"--source={tmp_path / 'people'}", f"--data_dir={tmp_path / 'däta'}"),
        ],
        env=os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        capture_output=True,
    )
    assert ended.returncode == 0, ended.stderr
    packed = tmp_path / "däta/folder/1.1.0"
    assert str(packed).encode() in ended.stdout
    assert open_dataset(packed).split("test").records[0]["identity"] == "Jürgen"
