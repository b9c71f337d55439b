"""Embeds tracklets with a trained network: arrays of frames, or a folder of footage."""

import functools
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Iterator
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Float32

from data_pipelines.coco17 import is_detected
from data_pipelines.datasets.folder import SPLIT, open_source
from data_pipelines.errors import InputError
from data_pipelines.loader import Clip, batch_clips
from data_pipelines.pixels import resize_frame, resize_keypoints
from data_pipelines.records.reading import decode_clip
from data_pipelines.records.record import columns_of
from data_pipelines.sampling import clips_to_embed
from data_pipelines.schema import MODALITIES, NUM_JOINTS, Index
from star_jax.distributed.parallel import local_rows, split_rows
from star_jax.embedding.embed import embed_clips, whole_batch
from star_jax.embedding.embeddings import Embeddings, provenance_by_names
from star_jax.network import Network, clip_spec, load_weights
from star_jax.trees import is_masked

MAX_DISTANCE = 100  # of a joint from its frame, in widths and heights of the frame
MAX_CONFIDENCE = 1000  # of a joint; some pose models give more than 1


class Embedder:
    """Embeds tracklets with a trained network, on all devices.

    Tracklets are treated as in the evaluation of the network: frames are resized to
    `config.data.frame_size`, and clips of `config.data.clip_length` frames are taken of each
    tracklet as `config.eval.clips` and `config.data.sampling` say, whatever its length. "first"
    takes one clip of frames spread over the tracklet, "dense" takes all frames, in consecutive
    clips whose embeddings are averaged. With `config.eval.flip`, so are those of their mirror
    images. An embedding is therefore that of `launch/embed.py` for the same tracklet.

        embedder = star_jax.Embedder.from_checkpoint("runs/demo")
        embeddings = embedder(frames, keypoints, modality="infrared")

    In a run of several processes, each of them makes the same calls.

    Attributes:
      network: the trained network. Change `network.config.eval.clips` to take other clips.
    """

    def __init__(self, network: Network):
        """Stores the network.

        Args:
          network: as `star_jax.load_weights` returns it.
        """
        self.network = network

    @classmethod
    def from_checkpoint(
        cls,
        path: str | os.PathLike[str],
        *,
        weights: str = "trained",
        trusted: Collection[str] = (),
    ) -> Self:
        """Returns the embedder of a run, a checkpoint or an exported file.

        Args:
          path: see `star_jax.load_weights`, which also lists the errors.
          weights: "trained" or "ema"; likewise.
          trusted: likewise.
        """
        return cls(load_weights(path, weights=weights, trusted=trusted))

    def __call__(
        self,
        frames: npt.ArrayLike,
        keypoints: npt.ArrayLike | None = None,
        *,
        modality: str,
        batch_size: int = 64,
    ) -> Float32[np.ndarray, "B C"]:
        """Returns the embeddings of B tracklets of one modality.

        Args:
          frames: uint8[B, T, H, W, 3], RGB, of NumPy or JAX: the T frames of each tracklet, in
            order, each a crop of the person. B, T, H and W are arbitrary; for tracklets of several
            lengths, call once per length.
          keypoints: float[B, T, 17, 3], COCO-17 joints (`data_pipelines.coco17`): x, y in pixels
            of the given frames, where (0, 0) is the center of the upper left pixel, and the
            confidence, which is 0 for undetected joints and at most 1000. Joints may be outside of
            the frame, by up to 100 times its size. None if the network uses no skeletons.
          modality: "visible" or "infrared".
          batch_size: clips that are embedded at once, over all devices. Fewer are padded to a
            power of two, so that few programs are compiled.

        Returns:
          float32[B, C], rows of length 1.

        Raises:
          InputError: an argument is not as described above, or the network uses skeletons and
            there are none.
        """
        frames, keypoints = self._checked(frames, keypoints, modality)
        _require_positive("batch_size", batch_size)
        config = self.network.config

        def read(position: int, chosen: np.ndarray, clip: np.ndarray) -> np.ndarray:
            for place, number in enumerate(chosen):
                resize_frame(frames[position, number], clip[place])
            joints: np.ndarray = keypoints[position, chosen]
            if config.model.keypoints == "pixels":
                return joints
            return resize_keypoints(joints, frames.shape[2:4], clip.shape[1:3])

        clips = [
            Clip(position, functools.partial(read, position, chosen))
            for position in range(len(frames))
            for chosen in self._clips_of(frames.shape[1])
        ]
        batch_size = min(batch_size, 1 << (len(clips) - 1).bit_length())
        return self._embed([(modality, clips)], batch_size, len(frames), show_progress=False)

    def folder(
        self,
        path: str | os.PathLike[str],
        *,
        every: int = 1,
        keypoints: str | os.PathLike[str] | None = None,
        batch_size: int = 64,
    ) -> Embeddings:
        """Returns the embeddings of a folder of footage, without packing it.

        They are those of `launch/prepare.py --dataset=folder` and `launch/embed.py`. Frames are
        read in threads, a few tracklets ahead, so that the memory does not grow with their number;
        a progress bar shows how many are embedded. `star_jax.embedding.embeddings.save` writes
        what `launch/search.py` reads; that search shows no pictures, for which it needs a packed
        dataset.

        Args:
          path: the folder. Tracklets are `<identity>/<visible|infrared>/<camera>/<tracklet>/*.jpg`
            (.jpeg, .png) or `<identity>/<visible|infrared>/<camera>/<tracklet>.mp4` (.m4v, .mov,
            .avi, .mkv).
          every: N takes every N-th frame of a tracklet, the first one included.
          keypoints: the skeletons: HDF5, COCO JSON or a folder of .npy (see
            `data_pipelines.skeletons.sources.open_keypoints`). None looks for them in the folder;
            a network that uses no skeletons reads none.
          batch_size: clips that are embedded at once, over all devices.

        Returns:
          Embeddings in the order of the folder's paths. `dataset_dir` is the folder, and the
          `provenance` has a fingerprint of its content as the dataset and "test" as the split.

        Raises:
          FileNotFoundError: there is no such folder, or no skeletons although the network uses
            them.
          InputError: a file is broken or in the wrong place, or no frame has a skeleton; names it.
        """
        _require_positive("batch_size", batch_size)
        network = self.network
        footage = open_source(
            path,
            keypoints=keypoints,
            without_skeletons=not network.model.uses_skeletons,
            every=every,
        )
        tracklets = footage.tracklets[SPLIT]
        modalities = np.array([tracklet.modality for tracklet in tracklets])
        joints = network.config.model.keypoints
        columns: dict[int, dict[str, Any]] = {}

        def clips(positions: np.ndarray) -> Iterator[Clip]:
            records = footage.read([tracklets[position] for position in positions])
            for position, record in zip(positions.tolist(), records, strict=True):
                columns[position] = columns_of(tracklets[position], record)
                read = functools.partial(decode_clip, record, joints=joints)
                for chosen in self._clips_of(len(record["frames"])):
                    yield Clip(position, functools.partial(read, chosen))

        vectors = self._embed(
            [
                (modality, clips(np.flatnonzero(modalities == number)))
                for number, modality in enumerate(MODALITIES)
            ],
            batch_size,
            len(tracklets),
        )
        fingerprint = json.dumps(footage.fingerprint, sort_keys=True)
        in_order = [columns[position] for position in range(len(tracklets))]
        return Embeddings(
            vectors=vectors,
            index=Index.from_columns(
                {name: [row[name] for row in in_order] for name in in_order[0]}
            ),
            first_frames=np.array([tracklet.frames[0] for tracklet in tracklets]),
            dataset_dir=os.path.realpath(footage.root),
            provenance=provenance_by_names(
                network, hashlib.sha256(fingerprint.encode()).hexdigest(), SPLIT
            ),
        )

    def _clips_of(self, num_frames: int) -> np.ndarray:
        """Returns the frames of a tracklet's clips, int64[clips, T]."""
        config = self.network.config
        return clips_to_embed(
            num_frames,
            config.data.clip_length,
            mode=config.eval.clips,
            sampling=config.data.sampling,
        )

    def _embed(
        self,
        clips: Iterable[tuple[str, Iterable[Clip]]],
        batch_size: int,
        num_tracklets: int,
        *,
        show_progress: bool = True,
    ) -> np.ndarray:
        """Embeds the clips of each modality; returns the averages of each tracklet's clips."""
        network, mesh = self.network, self.network.mesh
        batch_size = whole_batch(batch_size, mesh)
        rows = local_rows(split_rows(mesh), (batch_size,))
        batches = (
            (modality, batch)
            for modality, own in clips
            for batch in batch_clips(own, clip_spec(network.config), batch_size, rows)
        )
        return embed_clips(
            network,
            batches,
            batch_size=batch_size,
            num_tracklets=num_tracklets,
            show_progress=show_progress,
        )

    def _checked(
        self, frames: npt.ArrayLike, keypoints: npt.ArrayLike | None, modality: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns frames and keypoints as arrays, zeros for no keypoints; raises InputError."""
        if modality not in MODALITIES:
            raise InputError(f"modality is {modality!r}: use {' or '.join(map(repr, MODALITIES))}")
        frames = _array("frames", frames)
        if frames.ndim != 5 or frames.shape[-1] != 3:
            raise InputError(
                f"frames have the shape {list(frames.shape)}: pass uint8[B, T, H, W, 3], T frames "
                "of each of B tracklets (frames[None] for a single tracklet)"
            )
        if frames.dtype != np.uint8:
            raise InputError(
                f"frames are {frames.dtype}: pass uint8, RGB values from 0 to 255, not normalized"
            )
        if not frames.size:
            raise InputError(
                f"frames have the shape {list(frames.shape)}, which is empty: pass at least one "
                "tracklet of one frame"
            )
        expected = (*frames.shape[:2], NUM_JOINTS, 3)
        if keypoints is None:
            if self.network.model.uses_skeletons:
                raise InputError(
                    f"keypoints are required: pass keypoints=..., float32{list(expected)}, "
                    "since skeletons guide the network, or use a network "
                    "trained with --config.model.guidance=none --config.model.pooling=gem"
                )
            return frames, np.zeros(expected, np.float32)
        keypoints = _array("keypoints", keypoints)
        if keypoints.shape != expected:
            raise InputError(
                f"keypoints have the shape {list(keypoints.shape)}: pass {list(expected)} for "
                f"frames of the shape {list(frames.shape)}, x, y and confidence of 17 joints "
                "per frame"
            )
        if not np.issubdtype(keypoints.dtype, np.floating):
            raise InputError(f"keypoints are {keypoints.dtype}: pass float32")
        with np.errstate(over="ignore"):  # infinity is refused below
            keypoints = keypoints.astype(np.float32)
        matters = is_detected(keypoints) | (self.network.config.model.keypoints == "pixels")
        height, width = frames.shape[2:4]
        far = np.abs(keypoints[..., :2]) > MAX_DISTANCE * np.array([width, height])
        for what, wrong in (
            ("not finite", ~np.isfinite(keypoints)),
            ("a negative confidence", keypoints[..., 2:] < 0),
            (f"a confidence above {MAX_CONFIDENCE}", keypoints[..., 2:] > MAX_CONFIDENCE),
            (
                f"more than {MAX_DISTANCE} times the frame's size, {width} x {height}, away",
                far & matters[..., None],
            ),
        ):
            if wrong.any():
                b, t, joint, _ = np.argwhere(wrong)[0].tolist()
                raise InputError(
                    f"keypoints[{b}, {t}, {joint}] is {keypoints[b, t, joint].tolist()}, {what}: "
                    "pass x, y and confidence; an undetected joint has confidence 0"
                )
        return frames, keypoints


def _array(name: str, values: npt.ArrayLike) -> np.ndarray:
    if is_masked(values):
        raise InputError(f"{name} is a masked array: pass all values, {name}.filled(...)")
    try:
        return np.asarray(values)
    except (ValueError, TypeError) as error:  # of lists of several lengths
        raise InputError(
            f"{name} is not an array ({error}): for tracklets of several lengths, call once per "
            "length"
        ) from error


def _require_positive(name: str, value: Any) -> None:
    if value < 1:
        raise InputError(f"{name} is {value}: use 1 or more")
