"""Replaces a packed dataset by that of a source which has changed."""

import os
import pathlib
import shutil

from data_pipelines import schema
from data_pipelines.io import frames as frames_lib
from data_pipelines.io.terminal import log
from data_pipelines.records import contents, packing
from data_pipelines.records.dataset import open_dataset
from data_pipelines.records.source import PackedFrames, Source

# Folders in the data_dir, kept when packing is interrupted, to resume. What an update has finished
# may be from the packed dataset, which overwriting does not use.
_UPDATE, _OVERWRITE = ".update", ".overwrite"


def replace(source: Source, data_dir: pathlib.Path, dataset: str, *, update: bool) -> pathlib.Path:
    """Packs a dataset in place of an earlier state of it, which is kept until packing has finished.

    Args:
      source: what is packed.
      data_dir: where packed datasets are kept. Without a packed dataset there, packs all.
      dataset: its name and version, such as "people/1.0.0".
      update: take frames from the packed dataset whose files have the same content as then, see
        `contents`; if nothing has changed, return at once. Otherwise read everything again.

    Returns:
      The directory of the packed dataset.

    Raises:
      ValueError, OSError: as `packing.prepare` does.
    """
    directory = data_dir / dataset
    if update and directory.exists():
        if not packing.change(directory, source):
            log(f"{directory}: is up to date")
            return directory
        source.packed_frames = _packed_frames(directory, source)
    packed = packing.prepare(source, data_dir / (_UPDATE if update else _OVERWRITE), dataset)
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


def _packed_frames(directory: pathlib.Path, source: Source) -> PackedFrames:
    """Returns a function to the frames in a packed dataset; logs how many tracklets it keeps."""
    places, dataset = {}, open_dataset(directory)
    for split, rows in contents.read_described(dataset.metadata).items():
        records = dataset.split(split).records
        places.update({row.content: (records, position) for position, row in enumerate(rows)})
    source.identify_footage()
    tracklets = [*source.all_tracklets()]
    kept = {
        tracklet: places[content]
        for tracklet in tracklets
        if (content := source.footage_of(tracklet).content) in places
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
