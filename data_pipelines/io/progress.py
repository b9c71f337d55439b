"""Progress of long passes over tracklets or frames."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

from data_pipelines.io.terminal import log, printable

Item = TypeVar("Item")


def with_progress(
    items: Iterable[Item], total: int, label: str, unit: str = "tracklets"
) -> Iterator[Item]:
    """Yields the items and reports progress: a bar on a terminal, a line every tenth elsewhere."""
    label = printable(label)
    if sys.stderr.isatty():
        yield from tqdm.tqdm(items, label, total, unit=f" {unit}")
        return
    for done, item in enumerate(items, start=1):
        yield item
        if done * 10 // total > (done - 1) * 10 // total:
            log(f"{label}: {done} of {total} {unit}")
