"""Kills a run repeatedly, and compares its metrics with those of an uninterrupted run.

    python -m benchmarks.kill_and_resume --config=CONFIG --folder=FOLDER -- --config.optim.epochs=60

Both runs are launch/train.py with this config; what follows `--` is passed on. The
process is killed (SIGKILL) after random times, some of them during its start; the kill in the
middle waits until a checkpoint is being written. Then the same command is started again. At the end
every row of metrics, except for the speed, must equal that of the uninterrupted run, bit for bit.
Prints a Markdown table; exits with code 1 if a row differs.
"""

import argparse
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="a file in configs/")
    parser.add_argument("--folder", type=pathlib.Path, required=True, help="takes both workdirs")
    parser.add_argument("--kills", type=int, default=20, help="number of kills (default: 20)")
    parser.add_argument("--longest", type=float, default=16, help="seconds until a kill, at most")
    parser.add_argument("--seed", type=int, default=0, help="of the times of the kills")
    parser.add_argument("overrides", nargs="*", help="flags for launch/train.py")
    args = parser.parse_args()
    command = [sys.executable, "launch/train.py", f"--config={args.config}", *args.overrides]
    whole, killed = args.folder / "whole", args.folder / "killed"
    if killed.exists():
        parser.error(f"{killed} exists; remove it or name another folder")
    # Otherwise no start would get past compiling, if that takes longer than until the kill.
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(args.folder / "compiled"))
    subprocess.run([*command, f"--workdir={whole}"], check=True)

    times = random.Random(args.seed)
    print("| kill | seconds after the start | killed while | last step written | resumed from |")
    print("| --- | --- | --- | --- | --- |")
    for number in range(1, args.kills + 1):
        before = last_step(killed)
        process = start([*command, f"--workdir={killed}"])
        delay = times.uniform(1, args.longest)
        seconds, saving = kill(process, killed, delay, in_a_save=number == args.kills // 2)
        step = last_step(killed)
        doing = "saving" if saving else "training" if step != before else "starting"
        print(f"| {number} | {seconds:.1f} | {doing} | {step} | {newest(killed)} |")
    subprocess.run([*command, f"--workdir={killed}"], check=True)

    rows, expected = read_rows(killed), read_rows(whole)
    differences = [row["step"] for row, other in zip(rows, expected, strict=False) if row != other]
    same = len(rows) == len(expected) and not differences
    print(f"\n{len(expected)} rows of metrics, {len(differences)} differ")
    sys.exit(0 if same else 1)


def start(command: list[str]) -> subprocess.Popen[bytes]:
    """Starts a run that prints nothing."""
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill(
    process: subprocess.Popen[bytes], workdir: pathlib.Path, delay: float, in_a_save: bool
) -> tuple[float, bool]:
    """Kills the process; returns after how many seconds, and whether it was saving."""
    begun = time.monotonic()
    while process.poll() is None:
        saving = any(workdir.glob("checkpoints/*tmp*"))
        if saving if in_a_save else time.monotonic() - begun > delay:
            process.send_signal(signal.SIGKILL)
            process.wait()
            return time.monotonic() - begun, saving
        time.sleep(0.001 if in_a_save else 0.02)
    raise RuntimeError("the run ended before it could be killed: use more epochs")


def last_step(workdir: pathlib.Path) -> int:
    """Returns the step of the last complete row of metrics; 0 if there is none."""
    rows = read_rows(workdir)
    return rows[-1]["step"] if rows else 0


def newest(workdir: pathlib.Path) -> int:
    """Returns the step of the last complete checkpoint; 0 if there is none."""
    steps = [int(p.name) for p in workdir.glob("checkpoints/*") if p.name.isdecimal()]
    return max(steps, default=0)


def read_rows(workdir: pathlib.Path) -> list[dict[str, Any]]:
    """Returns the rows of metrics without the speed; leaves out an incomplete last one."""
    path = workdir / "metrics.jsonl"
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        row.pop("frames_per_second", None)
        rows.append(row)
    return rows


if __name__ == "__main__":
    main()
