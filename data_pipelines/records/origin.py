"""`origin.json`: the files of a packed dataset, their checksums, and where they come from.

It includes its own checksum, so that one changed digit anywhere in a packed dataset is detected.
"""

import hashlib
import json
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from data_pipelines.errors import InputError

NAME = "origin.json"
GENERATOR = "generator.json"  # in the root of a source: it is synthetic and shows no real people
AGAIN = "remove the directory and pack the dataset again"
_NAME_OF_A_FILE = re.compile(r"\w[\w.-]*", re.ASCII)


class File(NamedTuple):
    """A file of a packed dataset.

    Attributes:
      bytes: its size.
      sha256: of its content.
      split: the split whose tracklets it holds; None if it holds no records.
      records: number of tracklets.
    """

    bytes: int
    sha256: str
    split: str | None = None
    records: int = 0


def sealed(origin: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the content of an `origin.json` with its checksum."""
    return {**origin, "checksum": _checksum(origin)}


def parse_files(content: bytes, path: str) -> dict[str, File]:
    """Returns the files that an `origin.json` lists, by name; shards in the order of their records.

    Args:
      content: of the file.
      path: of the file, for errors.

    Raises:
      ValueError: it is damaged, or of a version of star_jax without checksums.
    """
    origin = parse_object(content, path)
    checksum = origin.pop("checksum", None)
    if checksum is None:
        raise InputError(f"{path}: has no checksum, it is of an older version of star_jax; {AGAIN}")
    try:
        if checksum != _checksum(origin):
            raise InputError(f"{path}: is damaged (its checksum differs); {AGAIN}")
        files = {name: File(**facts) for name, facts in origin["files"].items()}
    except (TypeError, KeyError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: does not list the files ({type(error).__name__}); {AGAIN}"
        ) from error
    for name, file in files.items():
        if not _NAME_OF_A_FILE.fullmatch(name) or name == NAME:
            raise InputError(f"{path}: {name[:100]!r} is not a file name; {AGAIN}")
        types = [type(fact) for fact in file]
        if types not in ([int, str, str, int], [int, str, type(None), int]) or file.records < 0:
            raise InputError(f"{path}: lists {name[:100]} with wrong types; {AGAIN}")
    return files


def parse_object(content: bytes, path: str | pathlib.Path) -> dict[str, Any]:
    """Returns the JSON object that a file holds.

    Raises:
      ValueError: it holds something else.
    """
    try:
        parsed = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged, not readable JSON ({error}); {AGAIN}") from error
    if not isinstance(parsed, dict):
        raise InputError(f"{path}: is damaged, not a JSON object; {AGAIN}")
    return parsed


def _checksum(origin: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(origin).encode()).hexdigest()
