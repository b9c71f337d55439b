"""Traces of training steps, for xprof and TensorBoard."""

import logging
import shutil
import tempfile
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TypeVar

import jax
from etils import epath

log = logging.getLogger(__name__)

FIRST = 3  # the first profiled step of those that a process trains: the earlier ones compile
Drawn = TypeVar("Drawn")


def profiled(
    batches: Iterator[Drawn], num_steps: int, folder: epath.Path
) -> Generator[Drawn, None, None]:
    """Yields the batches of training and traces the steps on some of them, with what loads them.

    The trace ends when the batch after them is asked for, or when this is closed.

    Args:
      batches: one for each step.
      num_steps: how many steps are traced; none if 0.
      folder: receives `plugins/profile/<time>/`, which TensorBoard and xprof open; may be a URL.
    """
    with tempfile.TemporaryDirectory() as trace:
        tracing = False
        try:
            for number, batch in enumerate(batches, 1):
                if num_steps and number == FIRST:
                    jax.profiler.start_trace(trace)
                    tracing = True
                if tracing and number == FIRST + num_steps:
                    tracing = False
                    _write(trace, folder)
                yield batch
        finally:
            if tracing:
                _write(trace, folder)


def _write(trace: str, folder: epath.Path) -> None:
    """Ends the trace and copies it to its folder."""
    jax.profiler.stop_trace()
    for path in Path(trace).rglob("*"):
        if path.is_file():
            target = folder / path.relative_to(trace).as_posix()
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    log.info("profile: %s; open it with: tensorboard --logdir=%s", folder, folder)
