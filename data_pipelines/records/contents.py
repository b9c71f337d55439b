"""Identifies footage by the content of its files.

Reading all files takes long, so the sizes and modification times at packing are kept, too: files
that still have theirs are not read again. For a copy, whose times may differ, the content decides.
"""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from data_pipelines.io.files import resolve_inside
from data_pipelines.io.frames import files_of

_MISSING = "missing"  # in place of a file that is not there: reading its frames raises the error


class Footage(NamedTuple):
    """What identifies a tracklet's footage.

    Attributes:
      stamp: SHA-256 of the frames' paths and of the sizes and modification times of their files.
      content: SHA-256 of the frames' paths and of the files.
    """

    stamp: str
    content: str


def identify(
    root: str | os.PathLike[str], frames: Sequence[str], known: Mapping[str, str]
) -> Footage:
    """Identifies the footage of a tracklet; a file may be missing.

    Args:
      root: of the dataset.
      frames: of the tracklet, their paths below the root.
      known: contents by stamps; the files of other stamps are read.

    Raises:
      InputError: a file leads out of the root, or is no regular file.
    """
    # The stamp comes first: of a file that is changed meanwhile, it will not fit.
    stamp = _hash(frames, lambda file: _stamp(f"{os.fspath(root)}/{file}"))
    content = known.get(stamp) or _hash(frames, lambda file: _content(root, file))
    return Footage(stamp, content)


def described(footage: Mapping[str, list[Footage]]) -> dict[str, Any]:
    """Returns the footage of the tracklets of each split, as a packed dataset's metadata has it."""
    return {
        split: {"stamps": [one.stamp for one in rows], "contents": [one.content for one in rows]}
        for split, rows in footage.items()
    }


def read_described(metadata: Mapping[str, Any]) -> dict[str, list[Footage]]:
    """Returns the footage of the tracklets of each split of a packed dataset.

    It is empty for datasets of versions that recorded only sizes.
    """
    return {
        split: [*map(Footage, columns["stamps"], columns["contents"])]
        for split, columns in metadata.get("footage", {}).items()
        if isinstance(columns, dict)
    }


def _hash(frames: Sequence[str], fact_of: Callable[[str], str]) -> str:
    facts = [*map(fact_of, files_of(frames)), *frames]
    return hashlib.sha256("\0".join(facts).encode()).hexdigest()


def _stamp(path: str) -> str:
    try:
        found = os.stat(path)
    except OSError:
        return _MISSING
    return f"{found.st_size} {found.st_mtime_ns}"


def _content(root: str | os.PathLike[str], file: str) -> str:
    try:
        with open(resolve_inside(root, file), "rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except FileNotFoundError:
        return _MISSING
