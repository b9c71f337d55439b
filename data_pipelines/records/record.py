"""The tracklets of a dataset: what they must have, their records, the columns of their index."""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow_datasets as tfds

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io import frames as frames_lib
from data_pipelines.io.names import read_identities
from data_pipelines.records import reading
from data_pipelines.skeletons import sources


def checked(
    source: pathlib.Path, splits: Mapping[str, Sequence[schema.Tracklet]]
) -> dict[str, list[schema.Tracklet]]:
    """Returns the tracklets of a dataset, with the identities that their names stand for.

    Raises:
      InputError: there is no split, one has no tracklet, a tracklet has no frame, or a name cannot
        be used (see `names.read_name`).
    """
    if not splits:
        raise InputError(f"{source}: the dataset has no split; add one with tracklets")
    for split, tracklets in splits.items():
        if not tracklets:
            raise InputError(f"{source}: split {split} has no tracklet; add some, or leave it out")
        for tracklet in tracklets:
            if not tracklet.frames:
                raise InputError(
                    f"{source}: the {split} tracklet of row {tracklet.row} has no frame; leave it "
                    "out"
                )
    every = list(itertools.chain.from_iterable(splits.values()))
    names = read_identities({one.identity: f"{source}, row {one.row}" for one in every})
    return {
        split: [dataclasses.replace(one, identity=names[one.identity]) for one in tracklets]
        for split, tracklets in splits.items()
    }


def make_record(
    tracklet: schema.Tracklet, frames: frames_lib.Frames, keypoints: sources.Keypoints
) -> schema.Record:
    """Returns the record of a tracklet, with label -1.

    Args:
      tracklet: what is known of it.
      frames: its frames.
      keypoints: the opened skeletons.
    """
    return schema.Record(
        frames=frames.jpegs,
        keypoints=keypoints.read(tracklet),
        height=frames.heights,
        width=frames.widths,
        identity=tracklet.identity,
        label=-1,
        camera=tracklet.camera,
        camera_name=tracklet.camera_name,
        modality=tracklet.modality,
        tracklet=tracklet.row,
        frame_ids=list(tracklet.frames),
        conditions=list(tracklet.conditions),
    )


def serialized(record: schema.Record) -> bytes:
    """Returns a record as TFDS stores it, the same bytes each time, so that checksums agree."""
    example = _serializer().get_tf_example(reading.features().encode_example(record))
    content: bytes = example.SerializeToString(deterministic=True)
    return content


@functools.cache
def _serializer() -> tfds.core.ExampleSerializer:
    return tfds.core.ExampleSerializer(reading.features().get_serialized_info())


def columns_of(tracklet: schema.Tracklet, record: schema.Record) -> dict[str, Any]:
    """Returns the entries of `schema.Index` for a tracklet."""
    return {
        "identities": record["identity"],
        "labels": record["label"],
        "cameras": record["camera"],
        "camera_names": record["camera_name"],
        "modalities": record["modality"],
        "num_frames": len(record["frames"]),
        "rows": record["tracklet"],
        "missing_skeletons": int(sources.without_skeleton(record["keypoints"]).sum()),
        "queries": tracklet.query,
        "galleries": tracklet.gallery,
        "conditions": ";".join(record["conditions"]),
    }


def joined(parts: Sequence[Mapping[str, list[Any]]]) -> dict[str, list[Any]]:
    """Returns the columns of one or more shards as those of their split."""
    return {name: [value for part in parts for value in part[name]] for name in parts[0]}


def counts_of(columns: Mapping[str, list[Any]]) -> dict[str, int]:
    """Returns what the columns of a split hold, by names for `origin.json`."""
    infrared = columns["modalities"].count(schema.INFRARED)
    return {
        "tracklets": len(columns["rows"]),
        "visible_tracklets": len(columns["rows"]) - infrared,
        "infrared_tracklets": infrared,
        "frames": sum(columns["num_frames"]),
        "frames_without_skeleton": sum(columns["missing_skeletons"]),
        "identities": len(set(columns["identities"])),
        "cameras": len(set(columns["cameras"])),
    }
