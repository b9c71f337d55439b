"""Paths as users write them: URLs in an object store, `gs://bucket/folder`, and `~`."""

import contextlib
import os
import re
from collections.abc import Iterator

from etils import epath

from data_pipelines.errors import InputError, MissingPackageError

SCHEME = "gs://"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:/")  # also as pathlib writes it, with one slash

# Otherwise epath would import TensorFlow wherever it is installed, and read URLs with it.
os.environ.setdefault("EPATH_USE_TF", "false")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is a URL in an object store."""
    return os.fspath(path).startswith(SCHEME)


def expand(path: str | os.PathLike[str]) -> str:
    """Returns a local path with the user's home directory for `~` at its start, or a URL.

    Raises:
      InputError: there is no such user, or the URL does not begin with `SCHEME`.
    """
    if _ADDRESS.match(os.fspath(path)) and not is_remote(path):
        raise InputError(f"{path}: use a local path or a URL that begins with {SCHEME}")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise InputError(f"{path}: there is no such user; write a local path in full")
    return expanded


def local(path: str | os.PathLike[str]) -> str:
    """Returns a local path with the user's home directory for `~` at its start.

    Raises:
      InputError: it is a URL, or there is no such user.
    """
    if _ADDRESS.match(os.fspath(path)):
        raise InputError(f"{path}: is a URL; only a local path can be used here")
    return expand(path)


def locate(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a local path or a URL as a path object, which `pathlib` could not represent.

    Raises:
      InputError: as `expand` does.
      ImportError: the package that URLs need is missing.
    """
    expanded = expand(path)
    if is_remote(expanded):
        import fsspec  # slow to import, and local paths do not need it

        try:
            fsspec.get_filesystem_class("gs")
        except ImportError as error:
            raise MissingPackageError(
                f'{path}: gs:// URLs need the package gcsfs; pip install -e ".[gcs]"'
            ) from error
        # Listings are not cached, since other processes write there, too.
        fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    return epath.Path(expanded)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a URL, or a local path made absolute, as `locate` does."""
    located = locate(path)
    return located if is_remote(located) else epath.Path(os.path.abspath(located))


@contextlib.contextmanager
def naming_failures(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the many errors of an object store's libraries into an OSError that names the path."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise kind(f"{os.fspath(path)}: {reason}") from error
