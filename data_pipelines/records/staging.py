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

RECORDS = "records"  # the folder of finished shards, which becomes the packed dataset


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
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                write_json(claim, source)
            (staging / RECORDS).mkdir(exist_ok=True)
            yield
        except BaseException as error:
            kept = len(list(staging.glob("*.facts.json")))
            if not kept:
                shutil.rmtree(staging)
            elif isinstance(error, KeyboardInterrupt):
                log(f"{kept} finished shards are kept: the same command resumes after them")
            raise
        shutil.rmtree(staging)


def write_facts(staging: pathlib.Path, name: str, facts: Mapping[str, Any]) -> None:
    """Writes the facts of a shard, which is finished once it is in the folder of records."""
    write_json(staging / f"{name}.facts.json", facts)


def read_facts(staging: pathlib.Path, name: str) -> dict[str, Any] | None:
    """Returns the facts of a finished shard; None if it is not finished, or damaged."""
    path, shard = staging / f"{name}.facts.json", staging / RECORDS / name
    if not path.exists() or not shard.exists():
        return None
    facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return facts if facts["sha256"] == sha256(shard) else None


def sha256(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
