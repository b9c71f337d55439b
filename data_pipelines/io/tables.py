"""Plain text tables, and CSV files: those that users write, and those for spreadsheets."""

import codecs
import csv
import io
import itertools
import os
import pathlib
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from data_pipelines.errors import InputError
from data_pipelines.io.files import require_regular, write_file
from data_pipelines.io.names import read_identities
from data_pipelines.io.terminal import printable

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

_CELL = 200  # characters shown of a cell
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")  # first characters of spreadsheet formulas
_WITH_MARK = "utf-8-sig"  # begins with a byte order mark, by which Excel recognizes UTF-8
_MARKS = {
    codecs.BOM_UTF8: _WITH_MARK,
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_DELIMITERS = (",", ";", "\t")
_REMEDY = "save the table as CSV UTF-8"


class _Csv(NamedTuple):
    text: str
    encoding: str
    delimiter: str
    header: list[str]


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Returns rows of cells as lines: the first column flush left, the others flush right."""
    rows = [[printable(cell, _CELL) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows
    )


def csv_file(rows: Iterable[Sequence[object]]) -> bytes:
    """Returns the content of a CSV file for spreadsheets: UTF-8 with a byte order mark.

    Text that a spreadsheet would read as a formula is prefixed with `'`; numbers are unchanged.
    """

    def inert(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell

    text = io.StringIO(newline="")
    csv.writer(text).writerows([inert(cell) for cell in row] for row in rows)
    return text.getvalue().encode(_WITH_MARK)


def read_table(
    path: str | os.PathLike[str],
    columns: Sequence[str],
    entry: Callable[[Mapping[str, str]], tuple[Key, Value]],
) -> dict[Key, tuple[str, Value]]:
    """Reads a CSV file about people, whose rows are about different things.

    Args:
      path: of the file; see `read_rows`.
      columns: that it must have, `identity` among them; there may be others.
      entry: returns what a row is about and what it says. Cells come without whitespace at their
        ends, identities as `names.read_identities` returns them. Its InputErrors need no place.

    Returns:
      What the rows are about, in their order, with the place (file and line) and what they say.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: as `read_rows`, `read_identities` and `entry`, or two rows are about the same.
    """
    rows = read_rows(path, columns)
    identities = read_identities({row["identity"]: place for place, row in reversed(rows)})
    found: dict[Key, tuple[str, Value]] = {}
    for place, row in rows:
        cells = {name: cell.strip() for name, cell in row.items()}
        try:
            key, value = entry({**cells, "identity": identities[row["identity"]]})
        except InputError as error:
            raise InputError(f"{place}: {error}") from error
        if key in found:
            raise InputError(f"{place}: is about the same as {found[key][0]}; delete one of them")
        found[key] = place, value
    return found


def read_rows(
    path: str | os.PathLike[str], columns: Sequence[str]
) -> list[tuple[str, dict[str, str]]]:
    """Reads a CSV file; returns its rows, each with the file and the line for messages.

    Rows without text are left out, and cells that a row lacks are empty.

    Args:
      path: of the file: UTF-8, or UTF-16 with a byte order mark, with commas, semicolons or tabs
        between the cells.
      columns: that it must have; there may be others.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is not a CSV file, lacks a column, has two columns of one name, or a row has
        more cells than the header.
    """
    table = _parse(path, columns)
    reader = _reader(table.text, table.delimiter)
    rows = []
    try:
        for cells in itertools.islice(reader, 1, None):
            place = f"{path}:{reader.line_num}"
            named = list(itertools.zip_longest(table.header, cells, fillvalue=""))
            if extra := [cell for name, cell in named if cell.strip() and not name]:
                raise InputError(
                    f"{place}: has a cell too many, {extra[0]!r:.80}; put text with a separator in "
                    "double quotes"
                )
            if any(map(str.strip, cells)):
                rows.append((place, {name: cell for name, cell in named if name}))
    except csv.Error as error:
        raise InputError(f"{path}:{reader.line_num}: not a readable CSV file ({error})") from error
    return rows


def add_rows(
    path: str | os.PathLike[str], columns: Sequence[str], rows: Iterable[Mapping[str, str]]
) -> None:
    """Adds rows to a CSV file that users edit, and keeps its encoding, separators and columns.

    Args:
      path: of the file, which is begun if there is none.
      columns: that it has at least.
      rows: cells by their columns.

    Raises:
      InputError: as `read_rows` does.
      OSError: it cannot be written; then it is as it was.
    """
    table = _Csv("", _WITH_MARK, _DELIMITERS[0], list(columns))
    if os.path.exists(path):
        table = _parse(path, columns)
    added = io.StringIO(newline="")
    end = "\r\n" if "\r\n" in table.text else "\n"
    writer = csv.DictWriter(
        added, table.header, restval="", delimiter=table.delimiter, lineterminator=end
    )
    if not table.text:
        writer.writeheader()
    elif not table.text.endswith("\n"):
        added.write(end)
    writer.writerows(rows)
    write_file(path, (table.text + added.getvalue()).encode(table.encoding))


def _parse(path: str | os.PathLike[str], columns: Sequence[str]) -> _Csv:
    """Returns the text of a CSV file, and its header; raises as `read_rows` does."""
    require_regular(path)
    content = pathlib.Path(path).read_bytes()
    encoding = next((name for mark, name in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        kind = "UTF-16" if encoding == "utf-16" else "UTF-8"
        byte = content[error.start]
        raise InputError(f"{path}:{line}: is not {kind} (byte 0x{byte:02X}); {_REMEDY}") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{path}:{line}: has a NUL character; {_REMEDY}")
    headers = {delimiter: _header(text, delimiter) for delimiter in _DELIMITERS}
    # The one by which the header has most of the columns; of several, the first.
    delimiter = max(headers, key=lambda one: len({*columns} & {*headers[one]}))
    header = headers[delimiter]
    if missing := [name for name in columns if name not in header]:
        raise InputError(f"{path}: the column {missing[0]} is missing; use {','.join(columns)}")
    if several := [name for name in header if name and header.count(name) > 1]:
        raise InputError(f"{path}: two columns are called {several[0]}; rename or remove one")
    return _Csv(text, encoding, delimiter, header)


def _header(text: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(_reader(text, delimiter), [])]
    except csv.Error:  # quotes that end beside another delimiter
        return []


def _reader(text: str, delimiter: str) -> Any:
    return csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
