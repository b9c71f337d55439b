"""Embedding the tracklets of an opened dataset."""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Callable, Collection, Iterable, Iterator

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from data_pipelines import loader
from data_pipelines.errors import DivergedError, InputError, Preempted
from data_pipelines.io.files import write_file
from data_pipelines.io.progress import Progress
from data_pipelines.io.remote import absolute, is_remote, locate
from data_pipelines.io.terminal import log
from data_pipelines.loader import EmbedBatch
from data_pipelines.records.dataset import Dataset, Split, open_dataset
from data_pipelines.schema import MODALITIES
from data_pipelines.skeletons.corruption import Corruption
from star_jax.distributed import memory, processes
from star_jax.distributed.parallel import gather, local_part, local_rows, put, split_rows
from star_jax.embedding import embeddings as files
from star_jax.embedding.embeddings import Embeddings, Provenance, provenance_of
from star_jax.embedding.step import make_embed_step
from star_jax.network import Network, clip_spec


def open_to_embed(dataset_dir: str | os.PathLike[str]) -> Dataset:
    """Opens a packed dataset; the error for a folder of footage says how to pack it.

    Raises:
      FileNotFoundError, InputError, OSError, ImportError: as `dataset.open_dataset` does.
    """
    try:
        return open_dataset(dataset_dir)
    except FileNotFoundError as error:
        if is_remote(dataset_dir):
            raise
        raise FileNotFoundError(
            f"{dataset_dir}: not a packed dataset; pack a folder of footage with `python "
            f"launch/prepare.py --dataset=folder --source={dataset_dir}` and pass the directory "
            "that it prints"
        ) from error


def embed(
    network: Network,
    split: Split,
    *,
    corruption: Corruption | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Embeddings:
    """Embeds a split of any packed dataset, in the clips of the network's config.

    Args:
      network: as returned by `load_weights`; see `Network.with_config`.
      split: its tracklets are embedded.
      corruption: what is done to the skeletons.
      stop_requested: called after each batch, equally often by each process.

    Raises:
      InputError: the split is empty, or has no skeletons and the network needs them.
      DivergedError, OutOfMemoryError, Preempted: as `embed_clips` does.
    """
    require_skeletons(network, split)
    provenance = provenance_of(network, split, corruption)
    return _embed(network, split, provenance, corruption, stop_requested)


def _embed(
    network: Network,
    split: Split,
    provenance: Provenance,
    corruption: Corruption | None,
    stop_requested: Callable[[], bool],
) -> Embeddings:
    """Embeds as `embed` does; the provenance is known, and takes a checksum of all weights."""
    vectors = embed_split(network, split, corruption=corruption, stop_requested=stop_requested)
    return Embeddings(
        vectors=vectors,
        index=split.index,
        first_frames=np.array([record["frame_ids"][0] for record in split.records]),
        dataset_dir=_place_of(split.dataset),
        provenance=provenance,
    )


def embed_once(
    network: Network,
    split: Split,
    folder: str | os.PathLike[str],
    *,
    also_in: Collection[str | os.PathLike[str]] = (),
    corruption: Corruption | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Embeddings:
    """Returns the embeddings of `embed`, read from a folder if they are already there.

    A split without skeletons is embedded, too, as one in which no joint is detected.

    Otherwise process 0 writes them to `<folder>/embeddings-<digits>.npz`. The file's name is a
    digest of its provenance, and the file holds it: a change of weights, config, dataset, split,
    clips or corruption embeds again, and so does a file that cannot be read or is of another
    provenance.

    Args:
      network: as in `embed`.
      split: likewise.
      folder: where the embeddings are read or written.
      also_in: other folders from which they are read.
      corruption: as in `embed`.
      stop_requested: likewise.

    Raises:
      InputError: the split is empty.
      DivergedError, OutOfMemoryError, Preempted: as `embed_clips` does.
    """
    provenance = provenance_of(network, split, corruption)
    facts = json.dumps(dataclasses.asdict(provenance))
    digest = hashlib.sha256(facts.encode()).hexdigest()
    name, content = f"embeddings-{digest[:16]}.npz", b""
    for path in (locate(place) / name for place in (*also_in, folder)):
        if processes.is_first() and not content:
            content = files.read_if_of(path, provenance)
            if content:
                log(f"reusing the embeddings in {path}: same weights, dataset, split and clips")
    if content := processes.broadcast_from_process_0(content):
        stored = files.parse(content, path)
        return dataclasses.replace(stored, dataset_dir=_place_of(split.dataset))
    found = _embed(network, split, provenance, corruption, stop_requested)
    if processes.is_first():
        write_file(path, files.as_npz(found, path))
    return found


def _place_of(dataset: Dataset) -> str:
    place: str = os.fspath(absolute(dataset.address))
    return place


def require_skeletons(network: Network, split: Split) -> None:
    """Raises an InputError if the network needs skeletons and no frame of the split has one."""
    index = split.index
    if network.model.uses_skeletons and (index.missing_skeletons == index.num_frames).all():
        raise InputError(
            f"{split.dataset.address}: no frame of {split.name} has a skeleton, but the network is "
            "guided by skeletons; pack the dataset with skeletons, or use a network trained with "
            "--config.model.guidance=none --config.model.pooling=gem"
        )


def embed_split(
    network: Network,
    split: Split,
    *,
    corruption: Corruption | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Float32[np.ndarray, "n C"]:
    """Returns the embeddings of `embed` alone, also of frames without skeletons.

    Returns:
      float32[n, C], rows of length 1, in the order of the split's index.
    """
    if not len(split):
        raise InputError(f"{split.dataset.address}: split {split.name} has no tracklets")
    config, mesh = network.config, network.mesh
    batch_size = whole_batch(config.eval.batch_size, mesh)
    batches = split_batches(
        network,
        split,
        np.arange(len(split)),
        batch_size=batch_size,
        clips=config.eval.clips,
        corruption=corruption,
    )
    return embed_clips(
        network,
        batches,
        batch_size=batch_size,
        num_tracklets=len(split),
        stop_requested=stop_requested,
    )


def split_batches(
    network: Network,
    split: Split,
    positions: Int[np.ndarray, " n"],
    *,
    batch_size: int,
    clips: str,
    corruption: Corruption | None = None,
) -> Iterator[tuple[str, EmbedBatch]]:
    """Yields the clips of tracklets in batches of one modality, with its name.

    Args:
      network: whose config describes the clips; each process loads its rows.
      split: of a dataset.
      positions: int[n], of the tracklets in the split's index.
      batch_size: over all processes, a multiple of the devices.
      clips: see `sampling.clips_to_embed`.
      corruption: what is done to the skeletons.
    """
    for number, modality in enumerate(MODALITIES):
        for batch in loader.embed_batches(
            split,
            clip_spec(network.config),
            positions[split.index.modalities[positions] == number],
            batch_size,
            mode=clips,
            corruption=corruption,
            rows=local_rows(split_rows(network.mesh), (batch_size,)),
            num_threads=network.config.data.num_threads,
        ):
            yield modality, batch


def whole_batch(batch_size: int, mesh: Mesh) -> int:
    """Returns a batch size rounded up to a multiple of the devices."""
    return math.ceil(batch_size / mesh.size) * mesh.size


def embed_clips(
    network: Network,
    batches: Iterable[tuple[str, EmbedBatch]],
    *,
    batch_size: int,
    num_tracklets: int,
    show_progress: bool = True,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Float32[np.ndarray, "n C"]:
    """Embeds clips and averages the embeddings of each tracklet's clips, and mirror images if any.

    Args:
      network: `config.eval.flip` says whether each clip's mirror image is embedded, too.
      batches: pairs of a modality and a batch of its clips, of which each process holds its
        `local_rows`; at least one.
      batch_size: clips in a batch over all processes, a multiple of the devices.
      num_tracklets: number of tracklets, n; all positions from 0 to n - 1 occur.
      show_progress: whether process 0 shows how many tracklets are embedded.
      stop_requested: called after each batch, equally often by each process.

    Returns:
      float32[n, C], rows of length 1; row i is the tracklet of position i.

    Raises:
      DivergedError: an embedding is not finite, or 0.
      OutOfMemoryError: the devices have too little memory for a batch.
      Preempted: `stop_requested` returned True.
    """
    mesh = network.mesh
    rows = split_rows(mesh)
    positions: list[np.ndarray] = []
    embeddings: list[np.ndarray] = []
    done = 0
    compiled = set()
    enabled = show_progress and processes.is_first()
    remedies = (
        f"{batch_size} clips are embedded at once over {mesh.size} devices; lower "
        "config.eval.batch_size in training, or batch_size of the Embedder, or else use more "
        "devices or JAX_PLATFORMS=cpu"
    )
    with (
        memory.explained(remedies),
        Progress(num_tracklets, "embedding", unit="tracklet", enabled=enabled) as progress,
    ):
        for modality, batch in batches:
            step = make_embed_step(network.model, modality, mesh, network.config.eval.flip)
            inputs = put((batch["frames"], batch["keypoints"]), rows, batch_size)
            embeddings.append(local_part(step(network.variables, *inputs)))
            positions.append(batch["position"])
            found = np.unique(batch["position"][batch["position"] >= 0])
            done += len(found) * jax.process_count()  # approximate with several processes
            progress.update(min(done, num_tracklets), timed=modality in compiled)
            compiled.add(modality)
            if stop_requested():
                raise Preempted
    position, embedding = gather((np.concatenate(positions), np.concatenate(embeddings)))
    sums = np.zeros((num_tracklets, embedding.shape[1]), np.float32)
    np.add.at(sums, position[position >= 0], embedding[position >= 0])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if wrong := int(np.sum(~(np.isfinite(lengths) & (lengths > 0)))):
        raise DivergedError(
            f"{wrong} of {num_tracklets} embeddings are not finite or of length 0: the network "
            "computes with numbers that are too large; use other weights"
        )
    sums /= lengths
    return sums
