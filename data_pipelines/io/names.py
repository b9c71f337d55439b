"""Names that users give to people, cameras and tracklets, with their spellings normalized."""

import unicodedata
from collections.abc import Mapping

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io.terminal import log


def read_name(written: str, place: str) -> str:
    """Returns a name in Unicode's composed form (NFC), without whitespace at its ends.

    Args:
      written: the name as a file or folder has it.
      place: where it is, for the error.

    Raises:
      InputError: the name is empty, or has an invisible character, such as NUL, a line end, or a
        zero-width space: names that look the same would denote different people.
    """
    name = unicodedata.normalize("NFC", written).strip()
    if not name:
        raise InputError(
            f"{place}: the name is empty; write one, or {schema.UNKNOWN} for people whose identity "
            "is not known"
        )
    if hidden := [letter for letter in name if not letter.isprintable()]:
        raise InputError(
            f"{place}: the name {name!r:.100} has an invisible character, "
            f"U+{ord(hidden[0]):04X}; write the name without it"
        )
    return name


def read_identities(written: Mapping[str, str]) -> dict[str, str]:
    """Returns the identities that names of people stand for, by the names as they are written.

    `schema.UNKNOWN` may have capitals, or whitespace at its ends, which one log line mentions.

    Args:
      written: the names as they are written, and the place of each.

    Raises:
      InputError: as `read_name` does.
    """
    names = {text: read_name(text, place) for text, place in written.items()}
    unknown = [text for text, name in names.items() if name.casefold() == schema.UNKNOWN]
    others = [text for text in unknown if text != schema.UNKNOWN]
    if others:
        log(
            f"{written[others[0]]}: {', '.join(map(repr, others))} means {schema.UNKNOWN}: people "
            "whose identity is not known"
        )
    return names | dict.fromkeys(unknown, schema.UNKNOWN)


def path_key(path: str) -> str:
    """Returns what is the same for all spellings of a relative path.

    Backslashes are separators, as on Windows; `.` and empty parts are left out; names are in NFC,
    without whitespace at their ends.
    """
    parts = unicodedata.normalize("NFC", path).replace("\\", "/").split("/")
    return "/".join(part for part in map(str.strip, parts) if part not in ("", "."))
