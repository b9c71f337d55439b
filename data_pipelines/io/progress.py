"""How far a long pass over tracklets or frames is."""

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

import tqdm

from data_pipelines.io.terminal import log, printable

Item = TypeVar("Item")


def with_progress(
    items: Iterable[Item], total: int, label: str, unit: str = "tracklets"
) -> Iterator[Item]:
    """Passes the items on and tells of them: a bar on a terminal, a line each tenth elsewhere."""
    label = printable(label)
    if sys.stderr.isatty():
        yield from tqdm.tqdm(items, label, total, unit=f" {unit}")
        return
    for done, item in enumerate(items, start=1):
        yield item
        if done * 10 // total > (done - 1) * 10 // total:
            log(f"{label}: {done} of {total} {unit}")
