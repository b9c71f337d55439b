"""Several processes as one run: start-up, agreement and preemption."""

import contextlib
import hashlib
import itertools
import logging
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax._src import distributed  # JAX has no public access to the store that processes share
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError
from data_pipelines.io.terminal import printable

log = logging.getLogger(__name__)

# A process silent for this long counts as dead, and the others stop. JAX's default: shorter ones
# have expired on TPUs during long compilations.
HEARTBEAT_SECONDS = 100
SHUTDOWN_SECONDS = 30  # wait for the others after a failure
LEAVE_SECONDS = 5  # for the others to end by themselves when one has failed
STOPPING = (
    b"\ninterrupted: stops after the current step and saves its state; Ctrl-C again ends at once\n"
)


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = 300,
) -> None:
    """Connects this process with the others of the run; must precede any other use of JAX.

    Without arguments, the other processes are found from the environment: JAX detects Cloud TPU,
    SLURM and Open MPI; elsewhere `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID` are read. If none of these apply, the run has a single process.

    Args:
      coordinator: address of process 0, `host:port`.
      num_processes: number of processes of the run.
      process_id: index of this process, from 0.
      timeout_seconds: how long to wait for the other processes.

    Raises:
      InputError: some but not all of the three are given, they are invalid, or SLURM starts fewer
        tasks than there are GPUs.
      ConnectionError: the other processes could not be reached in time.
      OSError: JAX finds no device.
    """
    if coordinator is None:
        coordinator = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if num_processes is None:
        num_processes = _number_from_environment("JAX_NUM_PROCESSES")
    if process_id is None:
        process_id = _number_from_environment("JAX_PROCESS_ID")
    given = [x is not None for x in (coordinator, num_processes, process_id)]
    if any(given) and not all(given):
        raise InputError(
            "pass all of --coordinator, --num_processes and --process_id, or none: found "
            f"{coordinator}, {num_processes} and {process_id}"
        )
    require_a_task_for_each_gpu(os.environ)
    if not any(given) and not _in_a_known_cluster():
        _require_devices()
        return
    if process_id is not None and num_processes is not None and coordinator is not None:
        if not 0 <= process_id < num_processes:
            raise InputError(f"--process_id={process_id} of --num_processes={num_processes}")
        if not coordinator.rpartition(":")[2].isdecimal():
            raise InputError(f"--coordinator={coordinator} must be host:port")
        if process_id:
            _wait_for_coordinator(coordinator, timeout_seconds)
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            process_id,
            initialization_timeout=timeout_seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except RuntimeError as error:
        raise ConnectionError(
            f"the processes could not connect within {timeout_seconds} s (coordinator "
            f"{coordinator}): {' '.join(str(error).split())[:200]}"
        ) from error
    _require_devices()
    client = distributed.global_state.client
    threading.Thread(target=_end_with_others, args=[client], name="failures", daemon=True).start()


def require_a_task_for_each_gpu(environment: Mapping[str, str]) -> None:
    """Raises an InputError if SLURM starts fewer tasks on this node than it has GPUs for the job.

    JAX gives each task the GPU `SLURM_LOCALID`, unless `JAX_LOCAL_DEVICE_IDS` is set, so that the
    others would be idle without a word.

    Args:
      environment: variables; those of SLURM are described in `man srun`.
    """
    if "JAX_LOCAL_DEVICE_IDS" in environment or environment.get("JAX_PLATFORMS") == "cpu":
        return
    if "SLURM_LOCALID" not in environment:
        return
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    tasks = [  # of each node; "8(x2),4" are those of three
        int(count)
        for count, times in re.findall(
            r"(\d+)(?:\(x(\d+)\))?", environment.get("SLURM_STEP_TASKS_PER_NODE", "")
        )
        for _ in range(int(times or 1))
    ]
    node = environment.get("SLURM_NODEID", "")
    if not gpus.isdecimal() or not node.isdecimal() or int(node) >= len(tasks):
        return
    if tasks[int(node)] < int(gpus):
        raise InputError(
            f"SLURM starts {tasks[int(node)]} of the tasks on this node, which has {gpus} GPUs, "
            f"and JAX gives each task one GPU: use --ntasks-per-node={gpus} as in "
            "launch/slurm/train.sbatch, or for a single task "
            f"JAX_LOCAL_DEVICE_IDS={','.join(map(str, range(int(gpus))))}"
        )


def _wait_for_coordinator(address: str, timeout_seconds: float) -> None:
    """Waits until the coordinator listens; JAX would abort the process without an exception."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"no answer from --coordinator={address} within {timeout_seconds} s "
                    f"({error}); start process 0 there, or pass its address"
                ) from error
        time.sleep(0.5)


def _require_devices() -> None:
    try:
        jax.devices()
    except RuntimeError as error:
        raise OSError(f"JAX finds no device: {error}; check the variable JAX_PLATFORMS") from error


def _number_from_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise InputError(f"the environment variable {name} is {text!r}, not a number")
    return None if text is None else int(text)


def _in_a_known_cluster() -> bool:
    from jax._src.clusters import ClusterEnv  # JAX has no public function for this

    return any(
        cluster.is_env_present() and not cluster.opt_in_only_method
        for cluster in ClusterEnv._cluster_types
    )


_FAILED = "star_jax/failed"  # key of the first failure, in the store that the processes share
_LEFT = "star_jax/left/{}"  # key of each process that is about to end
_leaving = threading.Event()


def leave(failure: str, code: int) -> None:
    """Ends this process together with the others; does nothing in a run of a single process.

    The others may wait for this one in a collective, until JAX aborts them without saying why.

    Args:
      failure: what has failed, one line.
      code: the exit code.
    """
    state = distributed.global_state
    if state.client is None or state.num_processes == 1:
        return
    _leaving.set()
    try:
        state.client.key_value_set(_FAILED, f"process {state.process_id} has failed: {failure}")
    except jax.errors.JaxRuntimeError:  # another was first, so that this may be a consequence
        _print_failure(state.client, failure)
    with contextlib.suppress(jax.errors.JaxRuntimeError):  # another has ended otherwise
        state.client.key_value_set(_LEFT.format(state.process_id), "")
        for number in range(state.num_processes):  # their collectives end with this process
            state.client.blocking_key_value_get(_LEFT.format(number), 3000 * LEAVE_SECONDS)
        time.sleep(state.process_id == 0)  # the store ends with process 0
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _end_with_others(client: Any) -> None:
    """Ends this process if another has failed, unless it fails by itself for the same reason."""
    while not _leaving.wait(1):
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # none has
            client.key_value_try_get(_FAILED)
            if not _leaving.wait(LEAVE_SECONDS):
                leave("", 1)


def _print_failure(client: Any, known: str) -> None:
    """Prints the first failure of all processes, unless it is known."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        failure = client.key_value_try_get(_FAILED)
        if not known or not failure.endswith(known):
            os.write(2, f"error: {printable(failure)}\n".encode())


def check_same(what: str, text: str) -> None:
    """Raises an InputError on all processes if `text` is not the same on all of them."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(text.encode()).digest(), np.uint8)
    digests = multihost_utils.process_allgather(digest)
    others = [i for i, other in enumerate(digests) if not np.array_equal(other, digests[0])]
    if others:
        raise InputError(
            f"{what} of process {', '.join(map(str, others))} differs from that of process 0; "
            "start all processes with the same command and the same files"
        )


def describe_devices() -> str:
    """Returns the number and kinds of all devices, and the number of this process."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    return (
        f"{jax.device_count()} ({', '.join(kinds)}), {jax.local_device_count()} of this process; "
        f"processes: {jax.process_count()}"
    )


def is_first() -> bool:
    """Returns whether this is process 0, the only one that writes and prints."""
    return jax.process_index() == 0


def all_agree(fact: bool) -> bool:
    """Returns whether `fact` is true on all processes; all of them must call this."""
    if jax.process_count() == 1:
        return fact
    return bool(multihost_utils.process_allgather(np.array(fact)).all())


def largest(number: int) -> int:
    """Returns the largest `number` of all processes; all of them must call this."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number)).max())


def broadcast_from_process_0(content: bytes) -> bytes:
    """Returns the `content` of process 0 on all processes; all of them must call this."""
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.frombuffer(content.ljust(size, b"\0")[:size], np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8))


def wait_for_all(event: str) -> None:
    """Waits until all processes reach this call.

    Required before the first collective over all devices: CPUs and GPUs connect at that point, and
    a process that arrives half a minute before the others would time out.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


@contextlib.contextmanager
def watch_for_stop() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether the run was interrupted by SIGTERM or Ctrl-C.

    Call it after every training step and every batch of an evaluation. All processes must call it
    equally often; the same call returns True on all of them, whichever received the signal. A line
    says at once that the signal was noticed, and a second Ctrl-C ends the process at once, even
    while a program compiles or a step runs.
    """
    interrupted = threading.Event()
    calls = itertools.count(1)
    distributed = jax.distributed.is_initialized()  # then JAX handles SIGTERM

    def interrupt(*_: object) -> None:
        if distributed:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            interrupted.set()

    signals = [signal.SIGINT] if distributed else [signal.SIGINT, signal.SIGTERM]
    with _answered(signals, interrupt):
        if distributed:
            yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        else:
            yield interrupted.is_set


@contextlib.contextmanager
def _answered(signals: Sequence[int], handler: Callable[..., None]) -> Iterator[None]:
    """Handles signals, and answers them from a thread.

    Python runs handlers in the main thread, and not before a compilation or a step has ended. It
    writes the number of a signal to the "wakeup" file at once.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # signals reach the main thread only
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def answer() -> None:
        first = True
        with open(reader, "rb", buffering=0) as received:
            while number := received.read(1):
                if first:
                    os.write(2, STOPPING)
                elif number[0] == signal.SIGINT:
                    os._exit(128 + signal.SIGINT)
                first = False

    thread = threading.Thread(target=answer, name="signals", daemon=True)
    thread.start()
    before = {number: signal.signal(number, handler) for number in signals}
    woken = signal.set_wakeup_fd(writer)
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, earlier in before.items():
            signal.signal(number, earlier)
        os.close(writer)
        thread.join()
