"""Plain text tables, and CSV files that users write."""

import csv
import os
from collections.abc import Sequence

from data_pipelines.errors import InputError
from data_pipelines.io.files import require_regular
from data_pipelines.io.terminal import printable

_CELL = 200  # characters shown of a cell


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines: the first column flush left, the others flush right."""
    rows = [[printable(cell, _CELL) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def read_rows(
    path: str | os.PathLike[str], columns: Sequence[str]
) -> list[tuple[str, dict[str, str]]]:
    """Reads a CSV file; returns its rows, each with the file and the line for messages.

    Args:
      path: of the file, UTF-8.
      columns: that it must have; there may be others.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is not a CSV file, or lacks a column.
    """
    require_regular(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, restval="", strict=True)
            found = reader.fieldnames or ()
            rows = [(f"{path}:{reader.line_num}", row) for row in reader]
    except (csv.Error, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not a readable CSV file ({error})") from error
    missing = [name for name in columns if name not in found]
    if missing:
        raise InputError(f"{path}: the column {missing[0]} is missing; use {','.join(columns)}")
    return rows
