"""Which tracklets and which frames make a batch: pure functions of (seed, step), NumPy only.

Nothing here keeps a state, so a run resumes exactly at any step and on any number of processes.
Datasets are sampled in different ways in the literature: see `SAMPLERS`.
"""

from collections.abc import Callable, Mapping
from typing import Literal, NamedTuple, Protocol

import numpy as np
from jaxtyping import Int32, Int64

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.parts import find_part

# The last word of the random counter names what is drawn: the frames of a row of either modality
# (its number), or the tracklets of the whole batch.
_TRACKLETS = len(schema.MODALITIES)

CLIPS = ("first", "chunk_first", "linspace", "dense")  # see `clips_to_embed`


class ClipSpec(NamedTuple):
    """What clips are made of tracklets.

    Attributes:
      length: frames of a clip, T.
      frame_size: height and width, H and W, to which frames are resized where they differ.
      sampling: how tracklets and frames are drawn; see `find_sampler`.
      joints: how keypoints follow resized frames; see `reading.decode_clip`.
    """

    length: int
    frame_size: tuple[int, int]
    sampling: str = "hitsz_vcm"
    joints: Literal["relative", "pixels"] = "relative"


class BatchSpec(NamedTuple):
    """Which tracklets make a training batch of P * K pairs, over all processes.

    Attributes:
      seed: of the run, not negative.
      identities: P.
      tracklets: K, of each identity and modality.
    """

    seed: int
    identities: int
    tracklets: int


class BatchPlan(NamedTuple):
    """The rows of a training batch; row b of both modalities shows the same identity.

    Attributes:
      visible: int64[B], positions of visible tracklets in the index.
      infrared: int64[B], positions of infrared tracklets in the index.
      labels: int32[B].
    """

    visible: Int64[np.ndarray, " B"]
    infrared: Int64[np.ndarray, " B"]
    labels: Int32[np.ndarray, " B"]


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


def training_frames(
    num_frames: int, clip_length: int, rng: np.random.Generator
) -> Int64[np.ndarray, " {clip_length}"]:
    """Draws one frame from each of `clip_length` equal chunks of a tracklet.

    The chunks hold `ceil(num_frames / clip_length)` frames; past the end the last frame repeats.

    Returns:
      int64[clip_length], ascending.
    """
    _check_clip(num_frames, clip_length)
    chunk = -(-num_frames // clip_length)
    drawn = np.arange(clip_length) * chunk + rng.integers(chunk, size=clip_length)
    frames: np.ndarray = np.minimum(drawn, num_frames - 1)
    return frames


def test_frames(num_frames: int, clip_length: int) -> Int64[np.ndarray, " {clip_length}"]:
    """Takes the first frame of each chunk of `training_frames`; returns int64[clip_length]."""
    _check_clip(num_frames, clip_length)
    chunk = -(-num_frames // clip_length)
    return np.minimum(np.arange(clip_length) * chunk, num_frames - 1)


def sorted_training_frames(
    num_frames: int, clip_length: int, rng: np.random.Generator
) -> Int64[np.ndarray, " {clip_length}"]:
    """Draws `clip_length` frames, each at most once if the tracklet has that many.

    Returns:
      int64[clip_length], ascending.
    """
    _check_clip(num_frames, clip_length)
    return np.sort(rng.choice(num_frames, clip_length, replace=num_frames < clip_length))


def spread_test_frames(num_frames: int, clip_length: int) -> Int64[np.ndarray, " {clip_length}"]:
    """Takes frames at equal distances from the first on, rounded down; int64[clip_length]."""
    _check_clip(num_frames, clip_length)
    return np.linspace(0, num_frames, clip_length, endpoint=False).astype(np.int64)


def dense_clips(num_frames: int, clip_length: int) -> Int64[np.ndarray, "clips {clip_length}"]:
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
        raise InputError(
            f"a clip of {clip_length} frames from a tracklet of {num_frames}: "
            "both must be 1 or more"
        )


def trainable_labels(index: schema.Index) -> Int32[np.ndarray, " labels"]:
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
    rng = _generator(seed, step, 0, _TRACKLETS)
    chosen = _draw_labels(index, identities_per_batch, rng)

    def draw(label: int, modality: int) -> np.ndarray:
        candidates = np.flatnonzero((index.labels == label) & (index.modalities == modality))
        return rng.choice(candidates, tracklets_per_identity)

    return BatchPlan(
        visible=np.concatenate([draw(label, schema.VISIBLE) for label in chosen]),
        infrared=np.concatenate([draw(label, schema.INFRARED) for label in chosen]),
        labels=np.repeat(chosen, tracklets_per_identity).astype(np.int32),
    )


def _draw_labels(index: schema.Index, count: int, rng: np.random.Generator) -> np.ndarray:
    labels = trainable_labels(index)
    if count > len(labels):
        excluded = len(np.unique(index.labels)) - len(labels)
        raise InputError(
            f"a batch of {count} identities: only {len(labels)} have tracklets of "
            f"both modalities ({excluded} have not)"
        )
    return rng.choice(labels, count, replace=False)


def aligned_pairs(
    index: schema.Index,
) -> tuple[Int64[np.ndarray, " pairs"], Int64[np.ndarray, " pairs"]]:
    """Returns the positions of the visible and the infrared tracklet of each pair, int64[pairs].

    Raises:
      ValueError: a training tracklet is in no pair, or those of a pair differ in identity, camera
        or number of frames.
    """
    visible, infrared = (
        positions[np.argsort(index.rows[positions], kind="stable")]
        for positions in (
            np.flatnonzero(index.modalities == modality)
            for modality in (schema.VISIBLE, schema.INFRARED)
        )
    )
    for name in ("rows", "labels", "cameras", "num_frames"):
        values = getattr(index, name)
        if not np.array_equal(values[visible], values[infrared]):
            raise InputError(
                f"sampling bupt_campus takes aligned pairs, but the {name} of visible and infrared "
                "training tracklets differ; sample this dataset as hitsz_vcm"
            )
    return visible, infrared


def sample_pairs(
    index: schema.Index,
    *,
    seed: int,
    step: int,
    identities_per_batch: int,
    tracklets_per_identity: int,
) -> BatchPlan:
    """Draws the aligned pairs of the global training batch number `step`.

    P identities are drawn without replacement, and for each of them K cameras and one pair of each
    camera. An identity that fewer cameras have seen gives each of them in turn.

    Args:
      index: of the training split.
      seed: of the run, not negative.
      step: of training, not negative.
      identities_per_batch: P.
      tracklets_per_identity: K.

    Raises:
      ValueError: there are fewer than P identities, or tracklets that are in no pair.
    """
    visible, infrared = aligned_pairs(index)
    labels, cameras = index.labels[visible], index.cameras[visible]
    rng = _generator(seed, step, 0, _TRACKLETS)
    chosen = _draw_labels(index, identities_per_batch, rng)
    pairs = []
    for label in chosen:
        own_cameras = rng.permutation(np.unique(cameras[labels == label]))
        for camera in np.resize(own_cameras, tracklets_per_identity):
            pairs.append(rng.choice(np.flatnonzero((labels == label) & (cameras == camera))))
    return BatchPlan(
        visible=visible[pairs],
        infrared=infrared[pairs],
        labels=np.repeat(chosen, tracklets_per_identity).astype(np.int32),
    )


class SampleBatch(Protocol):
    """Draws the tracklets of a training batch."""

    def __call__(
        self,
        index: schema.Index,
        *,
        seed: int,
        step: int,
        identities_per_batch: int,
        tracklets_per_identity: int,
    ) -> BatchPlan:
        """Returns the rows of the batch number `step`, as `sample_batch` does."""


class Sampler(NamedTuple):
    """How a dataset is sampled.

    Attributes:
      sample_batch: index, seed, step, P and K to the `BatchPlan`.
      training_frames: number of frames, T and random numbers to int64[T].
      test_frames: number of frames and T to int64[T].
      aligned: whether both modalities of a row draw their frames with the same random numbers.
    """

    sample_batch: SampleBatch
    training_frames: Callable[[int, int, np.random.Generator], Int64[np.ndarray, " T"]]
    test_frames: Callable[[int, int], Int64[np.ndarray, " T"]]
    aligned: bool


SAMPLERS: Mapping[str, Sampler] = {
    "hitsz_vcm": Sampler(sample_batch, training_frames, test_frames, aligned=False),
    "bupt_campus": Sampler(sample_pairs, sorted_training_frames, spread_test_frames, aligned=True),
}


def find_sampler(name: str) -> Sampler:
    """Returns the sampler of a name, or at a path; raises InputError if there is none."""
    where = "config.data.sampling"
    return find_part(
        SAMPLERS, name, where, kind="a Sampler", include=lambda part: isinstance(part, Sampler)
    )


def clips_to_embed(
    num_frames: int, clip_length: int, *, mode: str, sampling: str
) -> Int64[np.ndarray, "clips {clip_length}"]:
    """Returns the frames of the clips of a tracklet whose embeddings are averaged.

    Args:
      num_frames: of the tracklet.
      clip_length: frames of a clip, T; both must be 1 or more.
      mode: "first" takes one clip by the rule of `sampling`, "chunk_first" one by `test_frames`,
        "linspace" one by `spread_test_frames`, and "dense" all frames in consecutive clips
        (`dense_clips`).
      sampling: see `find_sampler`.

    Returns:
      int64[clips, T].

    Raises:
      InputError: the mode or the sampling is unknown, or a number is not positive.
    """
    if mode not in CLIPS:
        raise InputError(f"clips {mode!r}: use {', '.join(CLIPS[:-1])} or {CLIPS[-1]}")
    rules = {
        "first": find_sampler(sampling).test_frames,
        "chunk_first": test_frames,
        "linspace": spread_test_frames,
    }
    if mode == "dense":
        return dense_clips(num_frames, clip_length)
    return rules[mode](num_frames, clip_length)[None]


def steps_per_epoch(
    index: schema.Index, identities_per_batch: int, tracklets_per_identity: int
) -> int:
    """Returns the batches that the tracklets of the rarer modality, or all pairs, fill."""
    counts = np.bincount(index.modalities, minlength=len(schema.MODALITIES))
    return int(counts.min()) // (identities_per_batch * tracklets_per_identity)
