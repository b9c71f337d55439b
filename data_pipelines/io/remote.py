"""Addresses of an object store, `gs://bucket/folder`, where local paths would do."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from data_pipelines.errors import InputError, MissingPackageError

SCHEME = "gs://"

# Or epath would import TensorFlow wherever it is installed, and read addresses with it.
os.environ.setdefault("EPATH_USE_TF", "false")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Tells whether a path is an address of an object store."""
    return os.fspath(path).startswith(SCHEME)


def locate(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a local path or an address as a path; `pathlib` would spoil the `//` of an address.

    Raises:
      ValueError: the address is of another kind.
      ImportError: the package that addresses need is missing.
    """
    scheme, separator, _ = os.fspath(path).partition("//")
    if separator and scheme.endswith(":"):
        if not is_remote(path):
            raise InputError(f"{path}: give a local path or an address that begins with {SCHEME}")
        import fsspec  # slow to import, and local paths do without

        try:
            fsspec.get_filesystem_class("gs")
        except ImportError as error:
            raise MissingPackageError(
                f'{path}: addresses need the package gcsfs; pip install -e ".[gcs]"'
            ) from error
        # Listings are not kept, for other processes write there, too.
        fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    return epath.Path(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Returns an address as `locate` does, and a local path made absolute."""
    return locate(path if is_remote(path) else os.path.abspath(path))


@contextlib.contextmanager
def naming_failures(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns what the libraries of an object store raise, of many kinds, into an OSError."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise kind(f"{os.fspath(path)}: {reason}") from error
