"""Many processes as one run: their start, what they must agree on, and how they are preempted."""

import contextlib
import hashlib
import itertools
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 30  # a process that is silent for so long is dead, and the others stop
SIGTERM_EXIT_CODE = 128 + signal.SIGTERM


class Preempted(SystemExit):
    """The run was told to stop.

    The exit code is not 0, for a scheduler must not take the run for finished.
    """

    def __init__(self) -> None:
        super().__init__(SIGTERM_EXIT_CODE)


def start(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    timeout_seconds: int = 300,
) -> None:
    """Connects this process with the others of the run; call it before anything else of JAX.

    Without arguments the environment says who the others are: on Cloud TPU, under SLURM and Open
    MPI JAX finds out; elsewhere `JAX_COORDINATOR_ADDRESS`, `JAX_NUM_PROCESSES` and
    `JAX_PROCESS_ID` tell. Where nothing says so, the process is alone.

    Args:
      coordinator: address of process 0, `host:port`.
      num_processes: of the run.
      process_id: of this process, from 0.
      timeout_seconds: how long to wait for the others.

    Raises:
      ValueError: some but not all of the three are given, or they contradict each other.
      ConnectionError: the others could not be reached in time.
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
            "give all of --coordinator, --num_processes and --process_id, or none: found "
            f"{coordinator}, {num_processes} and {process_id}"
        )
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
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,  # how long one that failed waits for others
        )
    except RuntimeError as error:
        raise ConnectionError(
            f"the processes did not find each other within {timeout_seconds} s (coordinator "
            f"{coordinator}): {' '.join(str(error).split())[:200]}"
        ) from error
    _require_devices()


def _wait_for_coordinator(address: str, timeout_seconds: float) -> None:
    """Waits until the coordinator listens; JAX would end the process without an exception."""
    host, _, port = address.rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise ConnectionError(
                    f"nobody answered at --coordinator={address} within {timeout_seconds} s "
                    f"({error}); start process 0 there, or give its address"
                ) from error
        time.sleep(0.5)


def _require_devices() -> None:
    try:
        jax.devices()
    except RuntimeError as error:
        raise OSError(f"JAX finds no device: {error}; see the variable JAX_PLATFORMS") from error


def _number_from_environment(name: str) -> int | None:
    text = os.environ.get(name)
    if text is not None and not text.isdecimal():
        raise InputError(f"the environment variable {name} is {text!r}, no number")
    return None if text is None else int(text)


def _in_a_known_cluster() -> bool:
    from jax._src.clusters import ClusterEnv  # JAX offers no public way to ask

    return any(
        cluster.is_env_present() and not cluster.opt_in_only_method
        for cluster in ClusterEnv._cluster_types
    )


def check_same(what: str, text: str) -> None:
    """Raises a ValueError, on all processes, if a text is not the same on all of them."""
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


def is_first() -> bool:
    """Whether this is process 0, which alone writes and prints."""
    return jax.process_index() == 0


def all_agree(fact: bool) -> bool:
    """Whether something holds on all processes; all of them must ask."""
    if jax.process_count() == 1:
        return fact
    return bool(multihost_utils.process_allgather(np.array(fact)).all())


def largest(number: int) -> int:
    """Returns the largest of the numbers that the processes give; all of them must ask."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.process_allgather(np.array(number)).max())


def of_the_first(content: bytes) -> bytes:
    """What process 0 gives, on all processes."""
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(content))))
    padded = np.frombuffer(content.ljust(size, b"\0")[:size], np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded), np.uint8))


def wait_for_all(event: str) -> None:
    """Waits until all processes are there.

    Before the first collective between all devices they must meet, for on CPUs and GPUs these
    connect then, and one that has compiled half a minute before the other gives up.
    """
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(event)


@contextlib.contextmanager
def watch_for_stop() -> Iterator[Callable[[], bool]]:
    """Yields a function that returns whether the run was told to stop, by SIGTERM or Ctrl-C.

    It is for every step of training and every batch of an evaluation: of several processes all must
    call it equally often, and the same call returns True on all of them, whichever received the
    signal. A second Ctrl-C ends the process at once.
    """
    told = threading.Event()
    calls = itertools.count(1)
    distributed = jax.distributed.is_initialized()  # JAX has caught SIGTERM since then

    def interrupt(*_: object) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.write(2, b"\nstopping once the state is saved; Ctrl-C again ends at once\n")
        if distributed:
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            told.set()

    handlers = {signal.SIGINT: interrupt}
    if not distributed:
        handlers[signal.SIGTERM] = lambda *_: told.set()
    if threading.current_thread() is not threading.main_thread():
        handlers = {}  # signals reach the main thread only
    before = {signum: signal.signal(signum, handler) for signum, handler in handlers.items()}
    try:
        if distributed:
            yield lambda: multihost_utils.reached_preemption_sync_point(next(calls))
        else:
            yield told.is_set
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
