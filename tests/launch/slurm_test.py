"""The batch script for SLURM, with programs in place of srun and scontrol."""

import os
import re
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "launch/slurm/train.sbatch"


def test_there_is_a_task_for_each_gpu():
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)=(\S+)$", SCRIPT.read_text(), re.MULTILINE))
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert options["signal"] == "TERM@300"  # to the tasks; "B:TERM@300" would be to this script


@pytest.mark.parametrize(
    ("code", "seconds_left", "requeued"),
    [(0, 250, False), (143, 250, True), (143, 7200, False), (1, 250, False), (2, 250, False)],
)
def test_only_the_time_limit_requeues_a_job(tmp_path, code, seconds_left, requeued):
    for name, then in (("srun", f"exit {code}"), ("scontrol", "exit 0")):
        program = tmp_path / name
        program.write_text(f'#!/bin/sh\nprintf "%s|" {name} "$@" >> {tmp_path}/calls\n{then}\n')
        program.chmod(0o755)
    variables = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_END_TIME": str(int(time.time()) + seconds_left),
    }
    result = subprocess.run(
        ["bash", SCRIPT, "--workdir=/shared/my runs"], env=variables, check=False
    )
    assert result.returncode == code
    trained = "srun|--kill-on-bad-exit=1|python|launch/train.py|--workdir=/shared/my runs|"
    assert (tmp_path / "calls").read_text() == trained + "scontrol|requeue|7|" * requeued
