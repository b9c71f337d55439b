"""Runs a command in several processes on this machine that train together.

  python launch/local_processes.py -n 2 --devices=2 -- launch/train.py --config=... --workdir=...

Put the command, a Python file and its flags, after `--`. Each process gets its own virtual CPU
devices, unless --devices=0. If one exits with an error, the others are stopped. Each line of output
begins with the number of its process.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO

from absl import flags

from data_pipelines.errors import InputError
from launch import command

NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", 2, "Number of processes.", short_name="n", lower_bound=1
)
DEVICES = flags.DEFINE_integer(
    "devices", 1, "Virtual CPU devices of each process; 0 for the real ones.", lower_bound=0
)
STOP_SECONDS = flags.DEFINE_integer(
    "stop_seconds", 60, "Seconds that the others have to stop by themselves when one has failed."
)


def main(*arguments: str) -> None:
    """Runs the command in all processes and exits with the first code that is not 0."""
    if not arguments:
        raise InputError("put the command after `--`, for instance -- launch/train.py ...")
    coordinator = f"localhost:{free_port()}"
    started = [start(number, coordinator, list(arguments)) for number in range(NUM_PROCESSES.value)]

    def pass_signal_on(signum: int, _: object) -> None:
        for process, _ in started:
            process.send_signal(signum)

    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(signum, pass_signal_on)
    code = wait([process for process, _ in started])
    for _, printer in started:
        printer.join()
    sys.exit(code)


def free_port() -> int:
    """Returns a free local port."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port: int = probe.getsockname()[1]
    return port


def start(
    number: int, coordinator: str, arguments: list[str]
) -> tuple[subprocess.Popen[str], threading.Thread]:
    """Starts a process, and a thread that prints its output."""
    environment = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": coordinator,
        "JAX_NUM_PROCESSES": str(NUM_PROCESSES.value),
        "JAX_PROCESS_ID": str(number),
    }
    if DEVICES.value:
        environment["JAX_PLATFORMS"] = "cpu"
        # By default a device waits 40 seconds for the others of its process, also while one of them
        # waits for another process: too short if all of them share a few cores.
        environment["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} "
            f"--xla_force_host_platform_device_count={DEVICES.value} "
            "--xla_cpu_collective_call_terminate_timeout_seconds=600"
        )
        # JAX 0.10 deadlocks with fewer threads than twice the devices.
        environment.setdefault("NPROC", str(max(16, 4 * DEVICES.value)))
    process = subprocess.Popen(
        [sys.executable, *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        errors="replace",
        process_group=0,  # otherwise Ctrl-C would reach it twice, from the terminal and from here
    )
    assert process.stdout is not None
    printer = threading.Thread(target=pass_on, args=(number, process.stdout), daemon=True)
    printer.start()
    return process, printer


def pass_on(number: int, lines: IO[str]) -> None:
    """Prints the lines of a process, each after the number of the process."""
    for line in lines:
        sys.stdout.write(f"[{number}] {line}")
        sys.stdout.flush()


def wait(running: list[subprocess.Popen[str]]) -> int:
    """Waits for all processes; after a failure, kills those that do not stop in time.

    Returns:
      The first exit code that is not 0, or 0.
    """
    failed_at: float | None = None
    code = 0
    while any(process.poll() is None for process in running):
        codes = [process.poll() for process in running]
        code = code or next((c for c in codes if c), 0)
        if code and failed_at is None:
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() > failed_at + STOP_SECONDS.value:
            for process in running:
                process.kill()
        time.sleep(0.1)
    code = code or next((c for c in (process.poll() for process in running) if c), 0)
    return 128 - code if code < 0 else code


if __name__ == "__main__":
    command.run(main, takes_arguments=True)
