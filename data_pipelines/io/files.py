"""Reads untrusted files without leaving the dataset root; writes whole files; locks files.

Files are also written to URLs (`remote`); untrusted files are read from local paths only.
"""

import contextlib
import errno
import fcntl
import json
import os
import pathlib
import secrets
from collections.abc import Iterator
from typing import IO, Any

from data_pipelines.errors import InputError
from data_pipelines.io import remote


def resolve_inside(root: str | os.PathLike[str], relative: str) -> pathlib.Path:
    """Returns the path of the file at `root/relative`, with links resolved.

    Args:
      root: the dataset's root, which may itself be a link.
      relative: a path below the root, with forward slashes.

    Raises:
      ValueError: the path or a link on it leads out of the root, or it is not a regular file.
      FileNotFoundError: there is no such file.
    """
    real_root = os.path.realpath(root)
    path = os.path.realpath(os.path.join(real_root, relative))
    if os.path.commonpath([real_root, path]) != real_root:
        raise InputError(
            f"{relative}: leads out of the dataset's root {root} (to {path}); "
            "put the file itself, not a link, below the root"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(f"{relative}: no such file below the dataset's root {root}")
    require_regular(path, relative)
    return pathlib.Path(path)


def require_regular(path: str | os.PathLike[str], name: str | None = None) -> None:
    """Raises an error if a path is not a regular file: opening a pipe could block forever.

    Args:
      path: of the file to read; it may be missing.
      name: what the error calls the file; its path by default.

    Raises:
      ValueError: it is a folder, a pipe, a socket or a device.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise InputError(
            f"{name or path}: is a folder, a pipe or a device, not a regular file; put the file "
            "itself there"
        )


def read_file(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a local file or of a URL.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is a folder, a pipe, a socket or a device.
      OSError: it cannot be read.
    """
    if not remote.is_remote(path):
        path = remote.expand(path)
        require_regular(path)
        return pathlib.Path(path).read_bytes()
    with remote.naming_failures(path):
        content: bytes = remote.locate(path).read_bytes()
    return content


# How files begin that stand in for one that was not downloaded: what they are, and what to do.
_STAND_INS = (
    (
        (b"version https://git-lfs.github.com/spec/",),
        "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`",
    ),
    (
        (b"<!doctype html", b"<html", b"<head", b"<?xml"),
        "a web page, not the file itself; download it again, from the URL of the file",
    ),
)


def refuse_stand_in(path: str | os.PathLike[str], content: bytes | None = None) -> None:
    """Raises an InputError if a file stands in for a binary file that was not downloaded.

    Args:
      path: of the file; it may be missing.
      content: of the file, or its first bytes; None reads a local one.
    """
    if content is None:
        require_regular(path)
        if not os.path.exists(path):
            return
        with open(path, "rb") as file:
            content = file.read(1024)
    start = content[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if not content:
        raise InputError(f"{path}: is empty; download or copy it again")
    for beginnings, what in _STAND_INS:
        if start.startswith(beginnings):
            raise InputError(f"{path}: is {what}")


def read_inside(root: str | os.PathLike[str], relative: str) -> bytes:
    """Returns the content of the file at `root/relative`; raises as `resolve_inside` does."""
    return resolve_inside(root, relative).read_bytes()


def read_lines(root: str | os.PathLike[str], relative: str) -> list[str]:
    """Returns the lines of the text file at `root/relative`, stripped of whitespace.

    A byte order mark, Windows line ends and trailing blank lines are accepted.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is empty or not text, or its path leads out of the root.
    """
    content = read_inside(root, relative)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{relative}: not a text file ({error})") from error
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if lines == [""]:
        raise InputError(f"{relative}: the file is empty")
    return lines


def hold(file: IO[Any], refusal: str | None) -> None:
    """Locks an open local file for this process until it is closed.

    Raises:
      ValueError: another process holds the lock; `refusal` is the message. None waits instead.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if refusal is None else fcntl.LOCK_NB))
    except BlockingIOError as error:
        raise InputError(refusal) from error


@contextlib.contextmanager
def naming_full_disk(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds the path to an OSError about a full disk, which comes without one."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        if error.filename is not None or not full:
            raise
        raise OSError(f"{os.fspath(path)}: cannot be written ({error.strerror})") from error


def write_file(path: str | os.PathLike[str], content: bytes) -> None:
    """Writes a file, all of it or nothing, and creates its folder.

    If several processes write the same file, the last one wins.

    Raises:
      InputError: a URL begins with another scheme than `remote.SCHEME`.
      OSError: it cannot be written, for instance because the disk is full; the old file is kept.
    """
    if remote.is_remote(path):
        with remote.naming_failures(path):
            remote.locate(path).write_bytes(content)  # an object store shows whole files only
        return
    path = pathlib.Path(remote.local(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")  # one for each writer
    try:
        with naming_full_disk(path), open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def write_json(path: str | os.PathLike[str], content: Any) -> None:
    """Writes a JSON file, all of it or nothing, and creates its folder."""
    write_file(path, (json.dumps(content, indent=2) + "\n").encode())
