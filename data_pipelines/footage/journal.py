"""Journals of long work, one line of JSON for each part that is done, so that it can resume.

A kill leaves at worst an incomplete last line. The first line says what the journal is about.
"""

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

from data_pipelines.io.files import hold, naming_full_disk


class Journal:
    """An open journal, made by `open_journal`; appends to it come after all entries are read."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self._start = file.tell()

    def entries(self) -> Iterator[Any]:
        """Yields the entries from the first one on; then cuts an incomplete line off."""
        self._file.seek(self._start)
        whole = self._start
        while (line := self._file.readline()).endswith(b"\n"):
            try:
                entry = json.loads(line)
            except ValueError:
                break
            whole = self._file.tell()
            yield entry
        self._file.truncate(whole)

    def append(self, entry: Any) -> None:
        """Writes an entry, which JSON can represent, to the file."""
        self._file.write(json.dumps(entry).encode() + b"\n")
        self._file.flush()


@contextlib.contextmanager
def open_journal(
    path: str | os.PathLike[str],
    origin: Mapping[str, str],
    require_same: Callable[[Mapping[str, Any]], None],
) -> Iterator[Journal]:
    """Opens a journal for this process alone, and creates it if there is none.

    Args:
      path: of the file; its folder exists.
      origin: what the journal is about, its first line.
      require_same: gets the origin of an existing journal; raises if it may not be continued.

    Raises:
      InputError: another process has it open.
      OSError: it cannot be written; the error names it.
    """
    with naming_full_disk(path), open(path, "a+b") as file:
        hold(file, f"{os.fspath(path)}: another process is writing it; let it finish")
        file.seek(0)
        header = file.readline()
        if header.endswith(b"\n"):
            try:
                found = json.loads(header)
            except ValueError:
                found = None
            require_same(found if isinstance(found, dict) else {})
        else:
            file.truncate(0)
            file.write(json.dumps(origin).encode() + b"\n")
            file.flush()
        yield Journal(file)
