"""Which tracklets and which frames make a batch: pure functions of (seed, step), NumPy only.

Nothing here keeps a state, so a run resumes exactly at any step and on any number of processes.
"""

from typing import NamedTuple

import numpy as np

from data_pipelines import schema

# The last word of the random counter names what is drawn: the frames of a row of either modality
# (its number), or the tracklets of the whole batch.
_TRACKLETS = len(schema.MODALITIES)


class BatchPlan(NamedTuple):
    """The rows of a training batch; row b of both modalities shows the same identity.

    Attributes:
      visible: int64[B], positions of visible tracklets in the index.
      infrared: int64[B], positions of infrared tracklets in the index.
      labels: int32[B].
    """

    visible: np.ndarray
    infrared: np.ndarray
    labels: np.ndarray


def _generator(seed: int, step: int, row: int, stream: int) -> np.random.Generator:
    # Philox is counter-based: the low word of the counter advances as numbers are drawn, the
    # other three name the stream, so different (step, row, stream) never overlap.
    return np.random.Generator(np.random.Philox(key=seed, counter=[0, step, row, stream]))


def row_generator(seed: int, step: int, row: int, modality: int) -> np.random.Generator:
    """Returns the random numbers that choose the frames of one row of a training batch.

    Args:
      seed: of the run, not negative.
      step: of training, not negative.
      row: in the global batch.
      modality: schema.VISIBLE or schema.INFRARED.
    """
    return _generator(seed, step, row, modality)


def training_frames(num_frames: int, clip_length: int, rng: np.random.Generator) -> np.ndarray:
    """Draws one frame from each of `clip_length` equal chunks of a tracklet.

    The chunks hold `ceil(num_frames / clip_length)` frames; past the end the last frame repeats.

    Returns:
      int64[clip_length], ascending.
    """
    _check_clip(num_frames, clip_length)
    chunk = -(-num_frames // clip_length)
    drawn = np.arange(clip_length) * chunk + rng.integers(chunk, size=clip_length)
    return np.minimum(drawn, num_frames - 1)


def test_frames(num_frames: int, clip_length: int) -> np.ndarray:
    """Takes the first frame of each chunk of `training_frames`; returns int64[clip_length]."""
    _check_clip(num_frames, clip_length)
    chunk = -(-num_frames // clip_length)
    return np.minimum(np.arange(clip_length) * chunk, num_frames - 1)


def dense_clips(num_frames: int, clip_length: int) -> np.ndarray:
    """Cuts all frames into consecutive clips; the last is filled with its own frames, in a cycle.

    Returns:
      int64[ceil(num_frames / clip_length), clip_length].
    """
    _check_clip(num_frames, clip_length)
    starts = np.arange(0, num_frames, clip_length)[:, None]
    lengths = np.minimum(num_frames - starts, clip_length)
    return starts + np.arange(clip_length) % lengths


def _check_clip(num_frames: int, clip_length: int) -> None:
    if num_frames < 1 or clip_length < 1:
        raise ValueError(
            f"a clip of {clip_length} frames from a tracklet of {num_frames}: "
            "both must be 1 or more"
        )


def trainable_labels(index: schema.Index) -> np.ndarray:
    """Returns int32[identities]: the labels that have tracklets of both modalities, ascending."""
    visible = index.labels[index.modalities == schema.VISIBLE]
    infrared = index.labels[index.modalities == schema.INFRARED]
    labels = np.intersect1d(visible, infrared)
    return labels[labels >= 0]


def sample_batch(
    index: schema.Index,
    *,
    seed: int,
    step: int,
    identities_per_batch: int,
    tracklets_per_identity: int,
) -> BatchPlan:
    """Draws the tracklets of the global training batch number `step`.

    P identities are drawn without replacement among those seen in both modalities, and for each of
    them K tracklets of each modality with replacement; the batch has B = P * K rows, those of an
    identity side by side.

    Args:
      index: of the training split.
      seed: of the run, not negative.
      step: of training, not negative.
      identities_per_batch: P.
      tracklets_per_identity: K.

    Raises:
      ValueError: fewer than P identities have tracklets of both modalities.
    """
    labels = trainable_labels(index)
    if identities_per_batch > len(labels):
        excluded = len(np.unique(index.labels)) - len(labels)
        raise ValueError(
            f"a batch of {identities_per_batch} identities: only {len(labels)} have tracklets of "
            f"both modalities ({excluded} have not)"
        )
    rng = _generator(seed, step, 0, _TRACKLETS)
    chosen = rng.choice(labels, identities_per_batch, replace=False)

    def draw(label: int, modality: int) -> np.ndarray:
        candidates = np.flatnonzero((index.labels == label) & (index.modalities == modality))
        return rng.choice(candidates, tracklets_per_identity)

    return BatchPlan(
        visible=np.concatenate([draw(label, schema.VISIBLE) for label in chosen]),
        infrared=np.concatenate([draw(label, schema.INFRARED) for label in chosen]),
        labels=np.repeat(chosen, tracklets_per_identity).astype(np.int32),
    )


def steps_per_epoch(
    index: schema.Index, identities_per_batch: int, tracklets_per_identity: int
) -> int:
    """Returns the batches that the tracklets of the rarer modality fill."""
    counts = np.bincount(index.modalities, minlength=len(schema.MODALITIES))
    return int(counts.min()) // (identities_per_batch * tracklets_per_identity)
