"""Memory of devices: whether a program fits, and errors that say what to do if it does not."""

import contextlib
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax

from data_pipelines.errors import OutOfMemoryError, UserError, is_out_of_memory

# The limits of containers, which cannot use all memory of their machine.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


class Capacity(NamedTuple):
    """The memory of the devices of this process.

    Attributes:
      num_bytes: of each device, or of all that share it.
      num_sharing: how many devices share it: CPU devices are parts of one machine.
    """

    num_bytes: int
    num_sharing: int


@contextlib.contextmanager
def explained(remedies: str) -> Iterator[None]:
    """Raises an OutOfMemoryError with `remedies` if the block runs out of memory, on any device."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise OutOfMemoryError(f"out of memory ({reason}): {remedies}") from error


def require(program: jax.stages.Compiled, name: str, remedies: str) -> None:
    """Raises an OutOfMemoryError if a program needs more memory than the devices have.

    If it were run, a CPU might end the process instead of refusing the memory.

    Args:
      program: what will run.
      name: of the program, for the message.
      remedies: what to do.
    """
    usage, found = program.memory_analysis(), capacity()
    if usage is None or found is None:
        return
    # Donated arguments and the outputs that replace them are counted once.
    kept = usage.argument_size_in_bytes + usage.output_size_in_bytes - usage.alias_size_in_bytes
    needed = (kept + usage.temp_size_in_bytes) * found.num_sharing
    if needed > found.num_bytes:
        kind = jax.local_devices()[0].device_kind
        raise OutOfMemoryError(
            f"{name} needs {needed / 1e9:.1f} GB of memory on {found.num_sharing} x {kind}, where "
            f"there are {found.num_bytes / 1e9:.1f} GB: {remedies}"
        )


def capacity() -> Capacity | None:
    """Returns the memory of the devices of this process; None if it is not known."""
    device = jax.local_devices()[0]
    if limit := (device.memory_stats() or {}).get("bytes_limit"):
        return Capacity(limit, 1)
    return Capacity(host_memory(), jax.local_device_count()) if device.platform == "cpu" else None


def host_memory() -> int:
    """Returns the bytes of memory that this machine or container has."""
    limits = [pathlib.Path(path) for path in _LIMITS]
    texts = [path.read_text(encoding="utf-8").strip() for path in limits if path.is_file()]
    physical = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([physical, *(int(text) for text in texts if text.isdecimal())])
