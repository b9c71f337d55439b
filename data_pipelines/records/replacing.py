"""Replaces a packed dataset by that of a source which has changed."""

import os
import pathlib
import shutil
from collections.abc import Callable

from data_pipelines import schema
from data_pipelines.io import frames as frames_lib
from data_pipelines.io.terminal import log
from data_pipelines.records import packing, reading

_FOLDER = ".replacement"  # in the data_dir; kept when packing is interrupted, to resume


def replace(
    make_builder: Callable[..., packing.TrackletBuilder], data_dir: pathlib.Path, *, update: bool
) -> pathlib.Path:
    """Packs a dataset in the place of another state of it, which stays there until then.

    Args:
      make_builder: makes a builder, given a `data_dir`.
      data_dir: where packed datasets are kept. Without a packed dataset there, packs all.
      update: take frames from the packed dataset whose files have the same sizes as then; if
        nothing has changed, return at once. Otherwise read everything again.

    Returns:
      The directory of the packed dataset.

    Raises:
      ValueError, OSError: as `packing.prepare` does.
    """
    builder = make_builder(data_dir=data_dir / _FOLDER)
    directory = data_dir / pathlib.Path(builder.data_dir).relative_to(data_dir / _FOLDER)
    if update and directory.exists():
        if not packing.changes(directory, builder):
            log(f"{directory}: is up to date")
            return directory
        builder.packed_frames = _packed_frames(directory, builder)
    packed = packing.prepare(builder)
    directory.parent.mkdir(parents=True, exist_ok=True)
    before = directory.with_name(f".{directory.name}.replaced")
    if directory.exists():
        shutil.rmtree(before, ignore_errors=True)
        os.rename(directory, before)
        log(f"{directory}: {'updated' if update else 'replaced'}")
    os.rename(packed, directory)
    for done in (before, data_dir / _FOLDER):
        shutil.rmtree(done, ignore_errors=True)
    return directory


def _packed_frames(
    directory: pathlib.Path, builder: packing.TrackletBuilder
) -> packing.PackedFrames:
    """Returns a function to the frames in a packed dataset; logs how many tracklets it keeps."""
    footage = reading.open_packed(directory).metadata.get("footage", {})
    places = {}
    for split, keys in footage.items():
        records = reading.open_records(directory, split)
        places.update({key: (records, position) for position, key in enumerate(keys)})
    tracklets = [tracklet for split in builder.tracklets.values() for tracklet in split]
    kept = {
        tracklet: places[key]
        for tracklet in tracklets
        if (key := builder.footage_of(tracklet)) in places
    }
    log(
        f"{directory}: keeps {len(kept)} tracklets, packs {len(tracklets) - len(kept)} that are "
        f"new or changed, removes {len(places) - len(kept)}"
    )

    def frames_of(tracklet: schema.Tracklet) -> frames_lib.Frames | None:
        if tracklet not in kept:
            return None
        records, position = kept[tracklet]
        record = records[position]
        return frames_lib.Frames(record["frames"], record["height"], record["width"])

    return frames_of
