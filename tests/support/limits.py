"""Takes from this process, for a while, what the system lends it."""

import contextlib
import pathlib
import resource


@contextlib.contextmanager
def no_file_can_be_opened():
    with _limited(resource.RLIMIT_NOFILE, 0):
        yield


@contextlib.contextmanager
def little_memory(num_bytes: int):
    """Allows this many bytes more than are in use."""
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
    with _limited(resource.RLIMIT_AS, pages * resource.getpagesize() + num_bytes):
        yield


@contextlib.contextmanager
def _limited(kind: int, limit: int):
    before = resource.getrlimit(kind)
    resource.setrlimit(kind, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(kind, before)
