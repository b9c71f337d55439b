"""Errors in a dataset's files: packing raises the first one, `--check` collects all of them."""

import contextlib
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from data_pipelines.errors import InputError
from data_pipelines.io.tables import aligned
from data_pipelines.io.terminal import log, printable

_SHOWN = 10  # errors shown of each kind


class Findings:
    """Collects the errors of a dataset, grouped by kind, or raises the first one.

    Attributes:
      tables: rows of cells, the first row a header.
    """

    def __init__(self, *, raise_errors: bool = False):
        """Starts without errors.

        Args:
          raise_errors: raise each error and log each warning instead of collecting them.
        """
        self._raise_errors = raise_errors
        self.tables: list[list[tuple[Any, ...]]] = []
        self._messages: dict[str, dict[str, None]] = {}  # by kind, in order, without duplicates

    @property
    def wrong(self) -> list[str]:
        """One line for each error and warning, kind by kind; empty if there are no problems."""
        return [message for messages in self._messages.values() for message in messages]

    def report(self, message: str, kind: str | None = None) -> None:
        """Collects or raises an error.

        Args:
          message: one line, which begins with the file and names the line or key.
          kind: errors that are counted together and whose first ones are shown; by default those
            of the file that the message begins with.

        Raises:
          InputError: errors are raised.
        """
        if self._raise_errors:
            raise InputError(message)
        kind = kind or re.split(r"[:\[]", message, maxsplit=1)[0]
        self._messages.setdefault(kind, {})[message] = None

    def warn(self, message: str) -> None:
        """Collects or logs what may be wrong and does not prevent packing."""
        if self._raise_errors:
            log(message)
        else:
            self.report(message, "the warnings")

    def report_counts(
        self,
        counts: Mapping[str, Mapping[str, int]],
        published: Mapping[str, Mapping[str, int]],
        trouble: str,
    ) -> None:
        """Reports which counts of the splits in `counts` are not the published ones, if any."""
        differences = [
            f"{split} {name} {count} instead of {published[split][name]}"
            for split, split_counts in counts.items()
            for name, count in split_counts.items()
            if count != published[split][name]
        ]
        if differences:
            self.report(f"{trouble}: {', '.join(differences)}; fetch them again")

    @contextlib.contextmanager
    def catch(self, kind: str | None = None) -> Iterator[None]:
        """Collects a ValueError or OSError, which ends the `with` block; `kind` as in `report`."""
        try:
            yield
        except (ValueError, OSError) as error:
            if self._raise_errors:
                raise
            self.report(str(error), kind)

    def __str__(self) -> str:
        tables = [aligned([[str(cell) for cell in row] for row in table]) for table in self.tables]
        count = len(self.wrong)
        lines = [f"{count} problem{'s' * (count > 1)}:" if count else "No problems found."]
        for kind, messages in self._messages.items():
            lines += [f"- {message}" for message in itertools.islice(messages, _SHOWN)]
            if len(messages) > _SHOWN:
                lines.append(f"- ... and {len(messages) - _SHOWN} more of {kind}")
        return "\n".join(["\n\n".join(tables), "", *map(printable, lines)])


RAISE_ERRORS = Findings(raise_errors=True)  # collects nothing, so that all callers can share it


def first_of(places: Sequence[str]) -> str:
    """Returns the first of several places and how many others there are."""
    return f"{places[0]} and {len(places) - 1} more" if len(places) > 1 else places[0]
