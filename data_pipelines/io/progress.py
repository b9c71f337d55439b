"""Progress of long loops, on the terminal or in a log."""

import collections
import concurrent.futures
import sys
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from typing import Self, TextIO, TypeVar

from tqdm import tqdm

from data_pipelines.io.terminal import printable

Item = TypeVar("Item")
Result = TypeVar("Result")


class Progress:
    """Shows how far a loop is: a bar on a terminal, else a plain line now and then.

    Both show the step, the rate, the time left and a few metrics. Use as a context manager.

    Args:
      total: steps of the whole run; 0 if unknown.
      label: what is being done.
      start: steps done before this loop; the rate does not count them.
      unit: what is counted.
      every_seconds: least time between two plain lines.
      stream: where to write; stderr if None.
      enabled: False shows nothing, for all processes of a run except process 0.
    """

    def __init__(
        self,
        total: int,
        label: str,
        *,
        start: int = 0,
        unit: str = "step",
        every_seconds: float = 30.0,
        stream: TextIO | None = None,
        enabled: bool = True,
    ):
        self._total, self._start, self._label, self._unit = total, start, printable(label), unit
        self._every_seconds = every_seconds
        self._stream = sys.stderr if stream is None else stream
        self._enabled = enabled
        self._started = self._updated = time.monotonic()
        self._step = start
        self._next_line = self._started  # the first step is shown at once: the loop runs
        self._bar = None
        if enabled and self._stream.isatty():
            self._bar = tqdm(
                total=total, initial=start, desc=self._label, unit=unit, file=self._stream
            )

    def update(
        self, step: int, metrics: Mapping[str, float] | None = None, *, timed: bool = True
    ) -> None:
        """Shows that `step` steps of the run are done, and the metrics.

        Args:
          step: steps done.
          metrics: shown behind the rate, by name.
          timed: False leaves the steps since the last update, and their time, out of the rate and
            so of the time left, for instance because a program was compiled.
        """
        now = time.monotonic()
        if not timed:
            self._started += now - self._updated
            self._start += step - self._step
        self._updated, done = now, step - self._step
        self._step = step
        due = now >= self._next_line or step == self._total
        if not self._enabled or (self._bar is None and not due):
            return
        postfix = ", ".join(f"{name}={value:.4g}" for name, value in (metrics or {}).items())
        if self._bar is not None:
            self._bar.set_postfix_str(postfix, refresh=False)
            if timed:
                self._bar.update(done)
            else:
                self._bar.unpause()
                self._bar.initial += done
                self._bar.n = self._bar.last_print_n = step
                self._bar.refresh()
            return
        self._next_line = now + self._every_seconds
        line = tqdm.format_meter(
            n=step,
            total=self._total,
            initial=self._start,
            elapsed=now - self._started,
            prefix=self._label,
            unit=self._unit,
            postfix=postfix,
            bar_format="{desc}: {n_fmt}/{total_fmt} [{rate_fmt}, {remaining} left{postfix}]",
        )
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Ends the bar and leaves the terminal to others."""
        if self._bar is not None:
            self._bar.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def with_progress(
    items: Iterable[Item], total: int, label: str, unit: str = "tracklets"
) -> Iterator[Item]:
    """Yields the items and shows the progress; an item counts once the next one is requested."""
    with Progress(total, label, unit=unit) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(done)


def map_ahead(
    pool: concurrent.futures.Executor,
    function: Callable[[Item], Result],
    items: Iterable[Item],
    ahead: int,
) -> Generator[Result, None, None]:
    """Yields function(item) in order, computing at most `ahead` results in advance."""
    futures: collections.deque[concurrent.futures.Future[Result]] = collections.deque()
    try:
        for item in items:
            futures.append(pool.submit(function, item))
            if len(futures) > ahead:
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        for future in futures:
            future.cancel()
