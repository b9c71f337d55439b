"""Addresses in an object store, `gs://bucket/folder`, used like local paths."""

import contextlib
import os
from collections.abc import Iterator

from etils import epath

from data_pipelines.errors import InputError, MissingPackageError

SCHEME = "gs://"

# Otherwise epath would import TensorFlow wherever it is installed, and read addresses with it.
os.environ.setdefault("EPATH_USE_TF", "false")


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is an address in an object store."""
    return os.fspath(path).startswith(SCHEME)


def locate(path: str | os.PathLike[str]) -> epath.Path:
    """Returns a local path or an address as a path object, which `pathlib` could not represent.

    Raises:
      ValueError: the address does not begin with `SCHEME`.
      ImportError: the package that addresses need is missing.
    """
    scheme, separator, _ = os.fspath(path).partition("//")
    if separator and scheme.endswith(":"):
        if not is_remote(path):
            raise InputError(f"{path}: give a local path or an address that begins with {SCHEME}")
        import fsspec  # slow to import, and local paths do not need it

        try:
            fsspec.get_filesystem_class("gs")
        except ImportError as error:
            raise MissingPackageError(
                f'{path}: addresses need the package gcsfs; pip install -e ".[gcs]"'
            ) from error
        # Listings are not cached, since other processes write there, too.
        fsspec.config.conf.setdefault("gs", {}).setdefault("use_listings_cache", False)
    return epath.Path(path)


def absolute(path: str | os.PathLike[str]) -> epath.Path:
    """Returns an address, or a local path made absolute, as `locate` does."""
    return locate(path if is_remote(path) else os.path.abspath(path))


@contextlib.contextmanager
def naming_failures(path: str | os.PathLike[str]) -> Iterator[None]:
    """Turns the many errors of an object store's libraries into an OSError that names the path."""
    try:
        yield
    except Exception as error:
        kind = FileNotFoundError if isinstance(error, FileNotFoundError) else OSError
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise kind(f"{os.fspath(path)}: {reason}") from error
