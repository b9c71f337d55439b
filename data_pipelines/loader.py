"""Packed tracklets to batches: Grain threads that decode only the frames that are needed.

A batch is a function of its number alone, so threads share no state and a run resumes at any step.
"""

import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, TypedDict

import grain
import numpy as np
from jaxtyping import Float32, Int, Int32, UInt8

from data_pipelines import schema
from data_pipelines.records.reading import decode_clip, open_index, open_records
from data_pipelines.sampling import BatchPlan, clips_to_embed, find_sampler, row_generator
from data_pipelines.skeletons.corruption import Corruption, corrupted

MAX_THREADS = 16  # the default; each holds a batch, 48 MB at 384 frames of 288 x 144


class TestBatch(TypedDict):
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
    dataset_dir: str | os.PathLike[str],
    *,
    clip_length: int,
    frame_size: tuple[int, int],
    identities_per_batch: int,
    tracklets_per_identity: int,
    seed: int,
    start_step: int,
    num_steps: int,
    sampling: str = "hitsz_vcm",
    validation_identities: int = 0,
    joints: Literal["relative", "pixels"] = "relative",
    rows: Sequence[int] | None = None,
    num_threads: int | None = None,
) -> Iterator[schema.TrainBatch]:
    """Yields the training batches of `num_steps` steps from `start_step` on.

    The global batch of P * K rows is the same on all processes; each loads its part of B rows.

    Args:
      dataset_dir: what `prepare` returned.
      clip_length: frames drawn of a tracklet, T.
      frame_size: height and width to which frames are resized where they differ.
      identities_per_batch: P, over all processes.
      tracklets_per_identity: K, of each modality.
      seed: of the run, not negative.
      start_step: number of the first batch.
      num_steps: how many batches.
      sampling: how tracklets and frames are drawn; see `sampling.find_sampler`.
      validation_identities: how many identities are left out; see `reading.open_index`.
      joints: see `reading.decode_clip`.
      rows: of the global batch, ascending, which are loaded here; all if None.
      num_threads: batches loaded at a time; None takes one a core, 16 at most.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      ValueError: fewer than P identities have tracklets of both modalities, or the dataset cannot
        be sampled in this way.
    """
    sampler = find_sampler(sampling)
    if rows is None:
        rows = range(identities_per_batch * tracklets_per_identity)
    index = open_index(dataset_dir, "train", validation_identities)
    records = open_records(dataset_dir, "train", validation_identities)

    def plan(step: int) -> BatchPlan:
        return sampler.sample_batch(
            index,
            seed=seed,
            step=step,
            identities_per_batch=identities_per_batch,
            tracklets_per_identity=tracklets_per_identity,
        )

    def load_batch(step: int) -> schema.TrainBatch:
        tracklets = plan(step)
        positions = np.stack([tracklets.visible, tracklets.infrared], axis=1)[list(rows)]
        axes = (len(rows), clip_length, len(schema.MODALITIES))
        frames = np.zeros((*axes, *frame_size, 3), np.uint8)
        keypoints = np.zeros((*axes, schema.NUM_JOINTS, 3), np.float32)
        for place, row in enumerate(rows):
            for modality in (schema.VISIBLE, schema.INFRARED):
                record = records[int(positions[place, modality])]
                stream = schema.VISIBLE if sampler.aligned else modality
                rng = row_generator(seed, step, row, stream)
                chosen = sampler.training_frames(len(record["frames"]), clip_length, rng)
                keypoints[place, :, modality] = decode_clip(
                    record, chosen, frames[place, :, modality], joints=joints
                )
        return schema.TrainBatch(
            frames=frames,
            keypoints=keypoints,
            labels=tracklets.labels[list(rows)],
            cameras=index.cameras[positions],
            positions=positions.astype(np.int32),
        )

    plan(start_step)  # raises here, not in a thread, if the index cannot fill a batch
    return _load_ahead(load_batch, start_step, start_step + num_steps, num_threads)


def test_clips(
    dataset_dir: str | os.PathLike[str],
    *,
    positions: Sequence[int] | Int[np.ndarray, " n"],
    clip_length: int,
    frame_size: tuple[int, int],
    batch_size: int,
    split: str = "test",
    validation_identities: int = 0,
    mode: str = "first",
    sampling: str = "hitsz_vcm",
    corruption: Corruption | None = None,
    joints: Literal["relative", "pixels"] = "relative",
    rows: Sequence[int] | None = None,
    num_threads: int | None = None,
) -> Iterator[TestBatch]:
    """Yields clips of tracklets to embed, in the order of `positions`, in batches of one size.

    Args:
      dataset_dir: what `prepare` returned.
      positions: which tracklets of the split.
      clip_length: frames of a clip, T.
      frame_size: height and width to which frames are resized where they differ.
      batch_size: clips in a batch, B; the last batch is filled with zeros.
      split: of the dataset; see `reading.open_index`.
      validation_identities: how many identities of "train" are held out; see `reading.open_index`.
      mode: which clips; "dense" takes several of a tracklet, so that its position comes up several
        times; see `sampling.clips_to_embed`.
      sampling: which frames make the one clip of the mode "first"; see `sampling.find_sampler`.
      corruption: what is done to the skeletons; see `skeletons.corruption`.
      joints: see `reading.decode_clip`.
      rows: of each batch, ascending, which are loaded here; all if None.
      num_threads: batches loaded at a time; None takes one a core, 16 at most.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      ValueError: the mode or the sampling is unknown, or the split cannot be corrupted in this way.
      IndexError: a position is not in the split.
    """
    index = open_index(dataset_dir, split, validation_identities)
    num_frames = index.num_frames
    records = open_records(dataset_dir, split, validation_identities)
    read_any = corrupted(records, index, corruption)
    clips: list[tuple[int, np.ndarray]] = []
    for position in positions:
        if not 0 <= position < len(num_frames):
            raise IndexError(f"tracklet {position}: the {split} split holds {len(num_frames)}")
        chosen = clips_to_embed(
            int(num_frames[position]), clip_length, mode=mode, sampling=sampling
        )
        clips.extend((int(position), clip) for clip in chosen)

    def load_batch(number: int) -> TestBatch:
        read_record = functools.lru_cache(maxsize=1)(read_any)

        def read(position: int, chosen: np.ndarray, frames: np.ndarray) -> np.ndarray:
            record = read_record(position)
            return decode_clip(record, chosen, frames, joints=joints)

        part = clips[number * batch_size : (number + 1) * batch_size]
        return _load_clips(
            [
                Clip(position, functools.partial(read, position, chosen))
                for position, chosen in part
            ],
            clip_length,
            frame_size,
            range(batch_size) if rows is None else rows,
        )

    return _load_ahead(load_batch, 0, -(-len(clips) // batch_size), num_threads)


def batch_clips(
    clips: Iterable[Clip],
    *,
    clip_length: int,
    frame_size: tuple[int, int],
    batch_size: int,
    rows: Sequence[int] | None = None,
) -> Iterator[TestBatch]:
    """Yields clips in batches of one size, reading no further ahead than a batch.

    Args:
      clips: to embed.
      clip_length: frames of a clip, T.
      frame_size: height and width, H and W.
      batch_size: clips in a batch, B; the last batch is filled with zeros.
      rows: of each batch, ascending, which are loaded here; all if None.
    """
    remaining = iter(clips)
    while part := list(itertools.islice(remaining, batch_size)):
        yield _load_clips(
            part, clip_length, frame_size, range(batch_size) if rows is None else rows
        )


def _load_clips(
    clips: Sequence[Clip], clip_length: int, frame_size: tuple[int, int], rows: Sequence[int]
) -> TestBatch:
    """Returns those rows of a batch of clips; rows beyond the last clip are zeros."""
    axes = (len(rows), clip_length)
    batch = TestBatch(
        frames=np.zeros((*axes, *frame_size, 3), np.uint8),
        keypoints=np.zeros((*axes, schema.NUM_JOINTS, 3), np.float32),
        position=np.full(len(rows), -1, np.int32),
    )
    for place, row in enumerate(rows):
        if row < len(clips):
            batch["keypoints"][place] = clips[row].read(batch["frames"][place])
            batch["position"][place] = clips[row].position
    return batch


def _load_ahead(load_batch: Any, start: int, stop: int, num_threads: int | None) -> Iterator[Any]:
    threads = num_threads or min(os.cpu_count() or 1, MAX_THREADS)
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    return iter(grain.MapDataset.range(start, stop).map(load_batch).to_iter_dataset(options))
