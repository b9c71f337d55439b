"""Replaces a packed dataset by that of a source which has changed."""

import os
import pathlib
import shutil
from collections.abc import Callable

from data_pipelines import schema
from data_pipelines.io import frames as frames_lib
from data_pipelines.io.terminal import log
from data_pipelines.records import contents, packing
from data_pipelines.records.dataset import open_dataset

# Folders in the data_dir, kept when packing is interrupted, to resume. What an update has finished
# may be from the packed dataset, of which overwriting takes nothing.
_UPDATE, _OVERWRITE = ".update", ".overwrite"


def replace(
    make_builder: Callable[..., packing.TrackletBuilder], data_dir: pathlib.Path, *, update: bool
) -> pathlib.Path:
    """Packs a dataset in the place of another state of it, which stays there until then.

    Args:
      make_builder: makes a builder, given a `data_dir`.
      data_dir: where packed datasets are kept. Without a packed dataset there, packs all.
      update: take frames from the packed dataset whose files have the same content as then, see
        `contents`; if nothing has changed, return at once. Otherwise read everything again.

    Returns:
      The directory of the packed dataset.

    Raises:
      ValueError, OSError: as `packing.prepare` does.
    """
    folder = data_dir / (_UPDATE if update else _OVERWRITE)
    builder = make_builder(data_dir=folder)
    directory = data_dir / pathlib.Path(builder.data_dir).relative_to(folder)
    if update and directory.exists():
        if not packing.change(directory, builder):
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
    for done in (before, data_dir / _UPDATE, data_dir / _OVERWRITE):
        shutil.rmtree(done, ignore_errors=True)
    return directory


def _packed_frames(
    directory: pathlib.Path, builder: packing.TrackletBuilder
) -> packing.PackedFrames:
    """Returns a function to the frames in a packed dataset; logs how many tracklets it keeps."""
    places, dataset = {}, open_dataset(directory)
    for split, rows in contents.read_described(dataset.metadata).items():
        records = dataset.split(split).records
        places.update({row.content: (records, position) for position, row in enumerate(rows)})
    builder.identify_footage()
    tracklets = [tracklet for split in builder.tracklets.values() for tracklet in split]
    kept = {
        tracklet: places[content]
        for tracklet in tracklets
        if (content := builder.footage_of(tracklet).content) in places
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
