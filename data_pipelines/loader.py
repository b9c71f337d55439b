"""Packed tracklets to batches: Grain threads that decode only the frames that are needed.

A batch is a function of its number alone, so threads share no state and a run resumes at any step.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict

import grain
import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from data_pipelines import schema
from data_pipelines.records.dataset import Split
from data_pipelines.records.reading import decode_clip
from data_pipelines.sampling import (
    BatchPlan,
    BatchSpec,
    ClipSpec,
    clips_to_embed,
    find_sampler,
    row_generator,
)
from data_pipelines.skeletons.corruption import Corruption, corrupted

MAX_THREADS = 16  # the default; each holds a batch, 48 MB at 384 frames of 288 x 144


class EmbedBatch(TypedDict):
    """Clips to embed; `position` is -1 in the rows that only fill the last batch."""

    frames: UInt8[np.ndarray, "B T H W 3"]  # RGB
    keypoints: Float32[np.ndarray, "B T 17 3"]  # x, y in pixels of the H x W frame, confidence
    position: Int32[np.ndarray, " B"]  # the tracklet in the index of the split


class Clip(NamedTuple):
    """A clip to embed.

    Attributes:
      position: of its tracklet.
      read: writes the frames, RGB, to uint8[T, H, W, 3] and returns their keypoints,
        float32[T, 17, 3]: x, y in pixels of the H x W frame, confidence.
    """

    position: int
    read: Callable[[np.ndarray], np.ndarray]


def train_batches(
    split: Split,
    spec: ClipSpec,
    batch: BatchSpec,
    steps: range,
    *,
    rows: Sequence[int] | None = None,
    num_threads: int | None = None,
) -> Iterator[schema.TrainBatch]:
    """Yields the training batches of some steps.

    The global batch of P * K rows is the same on all processes; each loads its part of B rows.

    Args:
      split: the tracklets to train with.
      spec: what clips are made of them.
      batch: which tracklets make a batch.
      steps: consecutive numbers of batches.
      rows: of the global batch, ascending, which are loaded here; all if None.
      num_threads: batches loaded at a time; None uses one per core, 16 at most.

    Raises:
      InputError: fewer than P identities have tracklets of both modalities, or the split cannot be
        sampled in this way.
    """
    sampler = find_sampler(spec.sampling)
    index, records = split.index, split.records
    own = list(range(batch.identities * batch.tracklets) if rows is None else rows)

    def plan(step: int) -> BatchPlan:
        return sampler.sample_batch(
            index,
            seed=batch.seed,
            step=step,
            identities_per_batch=batch.identities,
            tracklets_per_identity=batch.tracklets,
        )

    def load_batch(step: int) -> schema.TrainBatch:
        tracklets = plan(step)
        positions = np.stack([tracklets.visible, tracklets.infrared], axis=1)[own]
        axes = (len(own), spec.length, len(schema.MODALITIES))
        frames = np.zeros((*axes, *spec.frame_size, 3), np.uint8)
        keypoints = np.zeros((*axes, schema.NUM_JOINTS, 3), np.float32)
        for place, row in enumerate(own):
            for modality in (schema.VISIBLE, schema.INFRARED):
                record = records[int(positions[place, modality])]
                stream = schema.VISIBLE if sampler.aligned else modality
                rng = row_generator(batch.seed, step, row, stream)
                chosen = sampler.training_frames(len(record["frames"]), spec.length, rng)
                keypoints[place, :, modality] = decode_clip(
                    record, chosen, frames[place, :, modality], joints=spec.joints
                )
        return schema.TrainBatch(
            frames=frames,
            keypoints=keypoints,
            labels=tracklets.labels[own],
            cameras=index.cameras[positions],
            positions=positions.astype(np.int32),
        )

    plan(steps.start)  # raises here, not in a thread, if the index cannot fill a batch
    return _load_ahead(load_batch, steps, num_threads)


def embed_batches(
    split: Split,
    spec: ClipSpec,
    positions: Sequence[int] | Int[np.ndarray, " n"],
    batch_size: int,
    *,
    mode: str = "first",
    corruption: Corruption | None = None,
    rows: Sequence[int] | None = None,
    num_threads: int | None = None,
) -> Iterator[EmbedBatch]:
    """Yields clips of tracklets to embed, in the order of `positions`, in batches of one size.

    Args:
      split: the tracklets.
      spec: what clips are made of them.
      positions: which tracklets of the split.
      batch_size: clips in a batch, B; the last batch is filled with zeros.
      mode: which clips; "dense" takes several of a tracklet, so that its position comes up several
        times; see `sampling.clips_to_embed`.
      corruption: what is done to the skeletons; see `skeletons.corruption`.
      rows: of each batch, ascending, which are loaded here; all if None.
      num_threads: batches loaded at a time; None uses one per core, 16 at most.

    Raises:
      InputError: the mode or the sampling is unknown, or the split cannot be corrupted in this way.
      IndexError: a position is not in the split.
    """
    read_any = corrupted(split.records, split.index, corruption)
    clips: list[tuple[int, np.ndarray]] = []
    for position in positions:
        if not 0 <= position < len(split):
            raise IndexError(f"tracklet {position}: the {split.name} split holds {len(split)}")
        num_frames = int(split.index.num_frames[position])
        chosen = clips_to_embed(num_frames, spec.length, mode=mode, sampling=spec.sampling)
        clips.extend((int(position), clip) for clip in chosen)

    def load_batch(number: int) -> EmbedBatch:
        read_record = functools.lru_cache(maxsize=1)(read_any)

        def read(position: int, chosen: np.ndarray, frames: np.ndarray) -> np.ndarray:
            return decode_clip(read_record(position), chosen, frames, joints=spec.joints)

        part = [
            Clip(position, functools.partial(read, position, chosen))
            for position, chosen in clips[number * batch_size : (number + 1) * batch_size]
        ]
        return _load_clips(part, spec, range(batch_size) if rows is None else rows)

    return _load_ahead(load_batch, range(-(-len(clips) // batch_size)), num_threads)


def batch_clips(
    clips: Iterable[Clip], spec: ClipSpec, batch_size: int, rows: Sequence[int] | None = None
) -> Iterator[EmbedBatch]:
    """Yields clips in batches of one size, reading no further ahead than a batch.

    Args:
      clips: to embed.
      spec: what they are made of.
      batch_size: clips in a batch, B; the last batch is filled with zeros.
      rows: of each batch, ascending, which are loaded here; all if None.
    """
    remaining = iter(clips)
    while part := list(itertools.islice(remaining, batch_size)):
        yield _load_clips(part, spec, range(batch_size) if rows is None else rows)


def _load_clips(clips: Sequence[Clip], spec: ClipSpec, rows: Sequence[int]) -> EmbedBatch:
    """Returns those rows of a batch of clips; rows beyond the last clip are zeros."""
    axes = (len(rows), spec.length)
    batch = EmbedBatch(
        frames=np.zeros((*axes, *spec.frame_size, 3), np.uint8),
        keypoints=np.zeros((*axes, schema.NUM_JOINTS, 3), np.float32),
        position=np.full(len(rows), -1, np.int32),
    )
    for place, row in enumerate(rows):
        if row < len(clips):
            batch["keypoints"][place] = clips[row].read(batch["frames"][place])
            batch["position"][place] = clips[row].position
    return batch


def _load_ahead(load_batch: Any, numbers: range, num_threads: int | None) -> Iterator[Any]:
    threads = num_threads or min(os.cpu_count() or 1, MAX_THREADS)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    batches = grain.MapDataset.range(numbers.start, numbers.stop).map(load_batch)
    return iter(batches.to_iter_dataset(options))
