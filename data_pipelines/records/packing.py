"""Packs tracklets, one record each, into ArrayRecord files that TFDS can read.

`source` reads the files to pack, and `reading` reads packed records.
"""

import collections
import contextlib
import datetime
import os
import pathlib
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import tensorflow_datasets as tfds

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import remote
from data_pipelines.io.files import naming_full_disk, write_json
from data_pipelines.io.progress import with_progress
from data_pipelines.io.terminal import log
from data_pipelines.records import contents, origin, reading, staging
from data_pipelines.records.dataset import open_dataset
from data_pipelines.records.record import columns_of, counts_of, joined, serialized
from data_pipelines.records.source import Source

TRACKLETS_PER_SHARD = 512
OLDER = "older"  # what `change` returns for a dataset without contents


class _Shard(NamedTuple):
    name: str
    split: str
    tracklets: Sequence[schema.Tracklet]
    labels: Mapping[str, int]  # of the split's identities; empty if they have none


def prepare(
    source: Source,
    data_dir: str | os.PathLike[str],
    dataset: str,
    *,
    hint: str = "remove the directory",
) -> pathlib.Path:
    """Packs a dataset, all of it or nothing; returns at once if it is already packed.

    Shards wait in `<data_dir>/<name>/.<version>.packing` until all of them are finished.
    Interrupted packing resumes after the last finished one.

    Args:
      source: what is packed.
      data_dir: where packed datasets are kept.
      dataset: its name and version, such as "people/1.0.0".
      hint: what users can do if the directory holds another source.

    Returns:
      The directory of the packed dataset, `<data_dir>/<name>/<version>`. Beside the records it
      holds `origin.json`: source, counts, checksums.

    Raises:
      ValueError: the directory holds another source or is damaged, another process packs it, a
        frame or a skeleton is broken, `dataset` is no name and version, or `data_dir` is a
        URL.
      OSError: the disk is full.
      FileNotFoundError: an index file, a frame or the skeletons are missing.
    """
    if not re.fullmatch(r"[a-zA-Z]\w*/[0-9]+\.[0-9]+\.[0-9]+", dataset, re.ASCII):
        raise ValueError(f"dataset is {dataset!r}: use a name and a version, as in people/1.0.0")
    directory = pathlib.Path(remote.local(data_dir)) / dataset
    if not directory.exists():
        _fill(directory, source)
    changed = change(directory, source)
    if changed == OLDER:
        log(
            f"{directory}: was packed by an older version, which stored only the sizes of files, "
            f"so their content is not compared; if they have changed, {hint}"
        )
    elif changed:
        raise InputError(
            f"{directory}: already packed from another source (its {changed} differ); choose "
            f"another data_dir, or {hint}"
        )
    return directory


def change(directory: pathlib.Path, source: Source) -> str:
    """Returns which part of the fingerprint of a packed dataset differs from the source's.

    It is the first of several, `OLDER` if all that is known of the footage is its sizes, and ""
    if there is none.
    """
    metadata = open_dataset(directory).metadata
    for rows in contents.read_described(metadata).values():
        source.known_contents.update(rows)
    packed = metadata.get("fingerprint", {})
    for name, digest in source.without_footage.items():
        if packed.get(name) != digest:
            return name
    if "contents" not in packed:
        return OLDER
    return "" if packed == source.fingerprint else "contents"


def _fill(directory: pathlib.Path, source: Source) -> None:
    """Packs all shards in a folder beside the directory, then renames the folder."""
    folder = directory.with_name(f".{directory.name}.packing")
    # Other footage invalidates only its own shards, whose facts record it.
    fingerprint = source.without_footage
    missing_parents = [path for path in directory.parents if not path.exists()]
    try:
        with staging.claimed(folder, fingerprint):
            if directory.exists():  # another process has just finished it
                return
            shards = _plan_shards(source, directory.parent.name)
            facts = _pack(shards, source, folder)
            _describe(shards, facts, source, directory, folder / staging.RECORDS)
            os.rename(folder / staging.RECORDS, directory)
    except BaseException:
        for parent in missing_parents:  # the innermost first
            with contextlib.suppress(OSError):
                parent.rmdir()
        raise


def _plan_shards(source: Source, dataset: str) -> list[_Shard]:
    shards = []
    for split, tracklets in source.tracklets.items():
        identities = sorted({tracklet.identity for tracklet in tracklets})
        labels = {identity: label for label, identity in enumerate(identities)}
        num_shards = -(-len(tracklets) // TRACKLETS_PER_SHARD)
        for number in range(num_shards):
            start = number * TRACKLETS_PER_SHARD
            shards.append(
                _Shard(
                    name=f"{dataset}-{split}.array_record-{number:05d}-of-{num_shards:05d}",
                    split=split,
                    tracklets=tracklets[start : start + TRACKLETS_PER_SHARD],
                    labels={} if split == "test" else labels,
                )
            )
    return shards


def _pack(
    shards: Sequence[_Shard], source: Source, folder: pathlib.Path
) -> dict[str, dict[str, Any]]:
    """Packs the shards that are not yet in the staging folder; returns the facts of all."""
    facts = {}
    for shard in shards:
        if (known := staging.read_facts(folder, shard.name)) is None:
            continue
        packed = known.get("footage", [])
        source.known_contents.update(packed)
        found = [source.footage_of(tracklet).content for tracklet in shard.tracklets]
        if found == [content for _, content in packed]:
            facts[shard.name] = known
    missing = [shard for shard in shards if shard.name not in facts]
    if len(missing) < len(shards):
        log(f"{len(shards) - len(missing)} of {len(shards)} shards are packed already")
    tracklets = [tracklet for shard in missing for tracklet in shard.tracklets]
    with contextlib.closing(source.read(tracklets)) as read:
        records = with_progress(read, len(tracklets), "packing")
        for shard in missing:
            facts[shard.name] = _write_shard(shard, records, source, folder)
        next(records, None)  # there are none left; this ends the progress
    return facts


def _write_shard(
    shard: _Shard, records: Iterator[schema.Record], source: Source, folder: pathlib.Path
) -> dict[str, Any]:
    """Writes the facts of a shard, then the shard, which exists only when it is complete."""
    columns: dict[str, list[Any]] = collections.defaultdict(list)
    partial = folder / f"{shard.name}.partial"
    with reading.open_writer(partial) as write:
        for tracklet in shard.tracklets:
            record = next(records)
            record["label"] = shard.labels.get(tracklet.identity, -1)
            write(serialized(record))
            for name, value in columns_of(tracklet, record).items():
                columns[name].append(value)
    facts = {
        "footage": [source.footage_of(tracklet) for tracklet in shard.tracklets],
        "bytes": partial.stat().st_size,
        "sha256": staging.sha256(partial),
        "columns": dict(columns),
    }
    staging.write_facts(folder, shard.name, facts)
    os.replace(partial, folder / staging.RECORDS / shard.name)
    return facts


def _describe(
    shards: Sequence[_Shard],
    facts: Mapping[str, Mapping[str, Any]],
    source: Source,
    directory: pathlib.Path,
    records: pathlib.Path,
) -> None:
    """Writes TFDS' metadata and `origin.json`.

    Args:
      shards: all shards of the dataset.
      facts: of the shards, by name.
      source: what they were packed from.
      directory: where the dataset will be.
      records: the folder of the shards; other files in it are removed.
    """
    for path in records.iterdir():  # of an attempt that was interrupted
        if path.name not in facts:
            path.unlink()
    fingerprint = source.fingerprint
    footage = {split: [*map(source.footage_of, rows)] for split, rows in source.tracklets.items()}
    columns = {
        split: joined([facts[shard.name]["columns"] for shard in shards if shard.split == split])
        for split in source.tracklets
    }
    files = {
        shard.name: {
            "bytes": facts[shard.name]["bytes"],
            "sha256": facts[shard.name]["sha256"],
            "split": shard.split,
            "records": len(shard.tracklets),
        }
        for shard in shards
    }
    with naming_full_disk(records):
        tfds.folder_dataset.write_metadata(
            data_dir=records,
            version=directory.name,
            features=reading.features(),
            split_infos=[_split_info(split, files) for split in source.tracklets],
            check_data=False,  # that would need TensorFlow
            description="Tracklets for video person re-identification, one record each.",
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(
                fingerprint=fingerprint,
                synthetic=(source.root / origin.GENERATOR).is_file(),
                footage=contents.described(footage),
                **columns,
            ),
        )
    counts = {split: counts_of(columns[split]) for split in columns}
    for split, count in counts.items():
        missing, frames = count["frames_without_skeleton"], count["frames"]
        log(f"{split}: {missing} of {frames} frames have no skeleton")
    for path in sorted(records.iterdir()):
        if path.name not in files:
            files[path.name] = {"bytes": path.stat().st_size, "sha256": staging.sha256(path)}
    keypoints = "none" if source.without_skeletons else str(source.keypoints_path.absolute())
    content = {
        "dataset": directory.parent.name,
        "version": directory.name,
        "source": str(source.root.absolute()),
        "keypoints": keypoints,
        "packed": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "fingerprint": fingerprint,
        "splits": counts,
        "files": files,
    }
    write_json(records / origin.NAME, origin.sealed(content))


def _split_info(split: str, files: Mapping[str, Mapping[str, Any]]) -> tfds.core.SplitInfo:
    shards = [file for file in files.values() if file["split"] == split]
    return tfds.core.SplitInfo(
        name=split,
        shard_lengths=[shard["records"] for shard in shards],
        num_bytes=sum(shard["bytes"] for shard in shards),
    )
