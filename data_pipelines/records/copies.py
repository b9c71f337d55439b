"""Makes local copies of packed datasets at a URL, since ArrayRecord reads local files only."""

import concurrent.futures
import fcntl
import functools
import hashlib
import os
import pathlib
import shutil
from collections.abc import Mapping

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.io.progress import with_progress
from data_pipelines.io.remote import locate, naming_failures
from data_pipelines.records import origin

NUM_THREADS = 8  # files copied at a time


@functools.cache  # a run sees one dataset, even if another one is put at its URL
def local_copy(address: str) -> pathlib.Path:
    """Returns a local copy of a packed dataset; the first caller makes it.

    Copies are in `$XDG_CACHE_HOME/star_jax`, or `~/.cache/star_jax`, in folders named after the
    checksum of `origin.json`, which holds the checksums of the other files. Other processes on this
    machine wait for the first one. An interrupted copy resumes after its last finished file.

    Raises:
      FileNotFoundError: there is no packed dataset at the URL.
      ValueError: its files are not those that origin.json lists, or that file is damaged.
      ImportError: the package that URLs need is missing.
      OSError: it cannot be read, or there is too little space for the copy.
    """
    source = locate(address)
    try:
        with naming_failures(source):
            listing = (source / origin.NAME).read_bytes()
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"{address}: no packed dataset here; copy to it all files of the directory that "
            "preparing the dataset returned"
        ) from error
    files = origin.parse_files(listing, f"{source}/{origin.NAME}")
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "star_jax"
    cache.mkdir(parents=True, exist_ok=True)
    copy = cache / hashlib.sha256(listing).hexdigest()
    with open(cache / f"{copy.name}.lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not copy.exists():
            partial = cache / f"{copy.name}.partial"
            partial.mkdir(exist_ok=True)
            _copy_files(source, files, partial)
            (partial / origin.NAME).write_bytes(listing)
            partial.rename(copy)
    return copy


def _copy_files(source: epath.Path, files: Mapping[str, origin.File], folder: pathlib.Path) -> None:
    """Copies the files that are not yet in the folder."""
    missing = [name for name in files if not (folder / name).exists()]
    needed, free = sum(files[name].bytes for name in missing), shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            f"{folder.parent}: the copy of {source} needs {needed / 1e9:.1f} GB, but "
            f"{free / 1e9:.1f} GB are free; set XDG_CACHE_HOME to another place"
        )
    with concurrent.futures.ThreadPoolExecutor(NUM_THREADS) as pool:
        copied = pool.map(
            lambda name: _copy_file(source / name, files[name].sha256, folder), missing
        )
        for _ in with_progress(copied, len(missing), f"copying {source}", "files"):
            pass


def _copy_file(source: epath.Path, sha256: str, folder: pathlib.Path) -> None:
    partial = folder / f".{source.name}.partial"
    digest = hashlib.sha256()
    with naming_failures(source), source.open("rb") as stored, open(partial, "wb") as file:
        while chunk := stored.read(1 << 20):
            digest.update(chunk)
            file.write(chunk)
    if digest.hexdigest() != sha256:
        raise InputError(
            f"{source}: {partial.stat().st_size} bytes that do not have the checksum of "
            "origin.json; copy the packed dataset to its URL again"
        )
    partial.rename(folder / source.name)
