"""Plain text tables."""

from collections.abc import Sequence

from data_pipelines.io.terminal import printable

_CELL = 200  # characters shown of a cell


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines: the first column flush left, the others flush right."""
    rows = [[printable(cell, _CELL) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )
