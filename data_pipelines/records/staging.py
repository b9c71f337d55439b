"""The folder in which shards wait until all of them are packed, and from which packing resumes."""

import contextlib
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from data_pipelines.errors import InputError
from data_pipelines.io.files import hold, write_json
from data_pipelines.io.terminal import log


@contextlib.contextmanager
def claimed(staging: pathlib.Path, source: Mapping[str, str]) -> Iterator[None]:
    """Locks the staging folder, and empties it first if it belongs to another source.

    Removes it at the end; after an error it keeps finished shards, if any, to resume from.
    """
    staging.mkdir(parents=True, exist_ok=True)
    with open(staging / "lock", "w", encoding="utf-8") as lock:
        refusal = f"{staging}: another process is packing this dataset; let it finish"
        hold(lock, refusal)
        if not os.fstat(lock.fileno()).st_nlink:  # the other one has just finished and removed it
            raise InputError(refusal)
        claim = staging / "fingerprint.json"
        try:
            if not claim.exists() or json.loads(claim.read_text(encoding="utf-8")) != source:
                for path in {*staging.iterdir()} - {staging / "lock"}:
                    path.unlink()
                write_json(claim, source)
            yield
        except BaseException as error:
            kept = len(list(staging.glob("*.facts.json")))
            if not kept:
                shutil.rmtree(staging)
            elif isinstance(error, KeyboardInterrupt):
                log(f"{kept} finished shards are kept: the same command resumes after them")
            raise
        shutil.rmtree(staging)


def read_facts(shard: pathlib.Path) -> dict[str, Any] | None:
    """Returns the facts of a finished shard; None if it is not finished, or damaged."""
    path = shard.with_name(f"{shard.name}.facts.json")
    facts = (
        json.loads(path.read_text(encoding="utf-8")) if path.exists() and shard.exists() else None
    )
    return facts if facts and facts["sha256"] == sha256(shard) else None


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
