"""Embedding a split of a packed dataset with a checkpoint, and evaluating it."""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float32, Int

from data_pipelines.errors import DivergedError, InputError
from data_pipelines.io.progress import Progress
from data_pipelines.io.remote import is_remote
from data_pipelines.io.terminal import log
from data_pipelines.loader import TestBatch, test_clips
from data_pipelines.records.reading import (
    VALIDATION,
    fingerprint,
    is_synthetic,
    open_index,
    open_records,
    resolve,
)
from data_pipelines.schema import MODALITIES, Index
from data_pipelines.skeletons.corruption import Corruption
from star_jax.config import check_config
from star_jax.distributed import memory, processes
from star_jax.distributed.parallel import gather, local_part, local_rows, put, split_rows
from star_jax.evaluation import embeddings as embedding_files
from star_jax.evaluation.embeddings import Embeddings, provenance_of
from star_jax.evaluation.protocols import queries_of, rank, require_scorable, summarize
from star_jax.evaluation.similarity import make_similarity
from star_jax.models import Star
from star_jax.network import Network, restore_network
from star_jax.training import run_files
from star_jax.training.steps import TRAINED, make_embed_step


def embed_split(
    config: ml_collections.ConfigDict,
    model: Star,
    variables: Any,
    mesh: Mesh,
    split: str = "test",
    corruption: Corruption | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Float32[np.ndarray, "n C"]:
    """Embeds every tracklet of a split, as `embed_batches` does.

    Args:
      config: the experiment; `data` and `eval` are read.
      model: the network.
      variables: its parameters and statistics, on the mesh.
      mesh: the device mesh.
      split: a split of the packed dataset `config.data.dir`; see `reading.open_index`.
      corruption: what is done to the skeletons.
      stop_requested: called after each batch, equally often by each process.

    Returns:
      float32[n, C], rows of length 1, in the order of `open_index`.

    Raises:
      InputError: the split is empty.
      Preempted: `stop_requested` returned True.
    """
    batch_size = whole_batch(config.eval.batch_size, mesh)
    index = open_index(config.data.dir, split, config.data.validation_identities)
    if not len(index.modalities):
        raise InputError(f"{config.data.dir}: split {split} has no tracklets")

    positions = np.arange(len(index.modalities))
    batches = split_batches(
        config,
        mesh,
        split,
        index,
        positions,
        batch_size=batch_size,
        clips=config.eval.clips,
        corruption=corruption,
    )
    return embed_batches(
        model,
        variables,
        mesh,
        batches,
        batch_size=batch_size,
        num_tracklets=len(index.modalities),
        flip=config.eval.flip,
        stop_requested=stop_requested,
    )


def split_batches(
    config: ml_collections.ConfigDict,
    mesh: Mesh,
    split: str,
    index: Index,
    positions: Int[np.ndarray, " n"],
    *,
    batch_size: int,
    clips: str,
    corruption: Corruption | None = None,
) -> Iterator[tuple[str, TestBatch]]:
    """Yields the clips of tracklets in batches of one modality, with its name.

    Args:
      config: the experiment; `data` and `model.keypoints` are read.
      mesh: the device mesh; each process loads its rows.
      split: of the packed dataset `config.data.dir`.
      index: of the split.
      positions: int[n], of the tracklets in the index.
      batch_size: over all processes, a multiple of the devices.
      clips: see `sampling.clips_to_embed`.
      corruption: what is done to the skeletons.
    """
    for number, modality in enumerate(MODALITIES):
        for batch in test_clips(
            config.data.dir,
            positions=positions[index.modalities[positions] == number],
            clip_length=config.data.clip_length,
            frame_size=tuple(config.data.frame_size),
            batch_size=batch_size,
            split=split,
            validation_identities=config.data.validation_identities,
            mode=clips,
            sampling=config.data.sampling,
            corruption=corruption,
            joints=config.model.keypoints,
            rows=local_rows(split_rows(mesh), (batch_size,)),
            num_threads=config.data.num_threads,
        ):
            yield modality, batch


def whole_batch(batch_size: int, mesh: Mesh) -> int:
    """Returns a batch size rounded up to a multiple of the devices."""
    return math.ceil(batch_size / mesh.size) * mesh.size


def embed_batches(
    model: Star,
    variables: Any,
    mesh: Mesh,
    batches: Iterable[tuple[str, TestBatch]],
    *,
    batch_size: int,
    num_tracklets: int,
    flip: bool = False,
    show_progress: bool = True,
    stop_requested: Callable[[], bool] = lambda: False,
) -> Float32[np.ndarray, "n C"]:
    """Embeds clips and averages the embeddings of each tracklet's clips, and mirror images if any.

    Args:
      model: the network.
      variables: its parameters and statistics, on the mesh.
      mesh: the device mesh.
      batches: pairs of a modality and a batch of its clips, of which each process holds its
        `local_rows`; at least one.
      batch_size: clips in a batch over all processes, a multiple of the devices.
      num_tracklets: number of tracklets, n; all positions from 0 to n - 1 occur.
      flip: whether each clip's mirror image is embedded, too.
      show_progress: whether the first process shows how many tracklets are embedded.
      stop_requested: called after each batch, equally often by each process.

    Returns:
      float32[n, C], rows of length 1; row i is the tracklet of position i.

    Raises:
      DivergedError: an embedding is not finite, or 0.
      OutOfMemoryError: the devices have too little memory for a batch.
      Preempted: `stop_requested` returned True.
    """
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
            embed = make_embed_step(model, modality, mesh, flip)
            inputs = put((batch["frames"], batch["keypoints"]), rows, batch_size)
            embeddings.append(local_part(embed(variables, *inputs)))
            positions.append(batch["position"])
            found = np.unique(batch["position"][batch["position"] >= 0])
            done += len(found) * jax.process_count()  # approximate with several processes
            progress.update(min(done, num_tracklets), timed=modality in compiled)
            compiled.add(modality)
            if stop_requested():
                raise processes.Preempted
    position, embedding = gather((np.concatenate(positions), np.concatenate(embeddings)))
    sums = np.zeros((num_tracklets, embedding.shape[1]), np.float32)
    np.add.at(sums, position[position >= 0], embedding[position >= 0])
    lengths = np.linalg.norm(sums, axis=1, keepdims=True)
    if wrong := int(np.sum(~(np.isfinite(lengths) & (lengths > 0)))):
        raise DivergedError(
            f"{wrong} of {num_tracklets} embeddings are not finite or of length 0: the network "
            "computes with numbers that are too large; use other weights"
        )
    return sums / lengths


class Options(NamedTuple):
    """How an evaluation differs from that of the config.

    Attributes:
      clip_length: frames of a clip; None for that of training.
      corruption: what is done to the skeletons.
      expansion: see `similarity.make_similarity`.
      rerank: likewise.
      weights: "trained", or "ema" for their moving average.
    """

    clip_length: int | None = None
    corruption: Corruption | None = None
    expansion: int = 0
    rerank: bool = False
    weights: str = TRAINED


AS_TRAINED = Options()


def evaluation_split(config: ml_collections.ConfigDict) -> str:
    """Returns the split of evaluations during training: "validation" if identities are held out."""
    return VALIDATION if config.data.validation_identities else "test"


def describe_evaluation(
    config: ml_collections.ConfigDict, step: int, split: str, options: Options = AS_TRAINED
) -> dict[str, Any]:
    """Returns what identifies an evaluation among others of the same run.

    Args:
      config: the experiment; `data` and `eval` are read.
      step: of the checkpoint.
      split: of the dataset.
      options: how the evaluation differs from that of the config.

    Returns:
      `protocol`, `step` of the checkpoint, `split`, `clips`, `dataset` with its `dir`,
      `fingerprint` and whether it is `synthetic`, and `options`, those that are not at their
      default.
    """
    described: dict[str, Any] = {}
    if options.clip_length is not None:
        described["clip_length"] = options.clip_length
    if config.eval.flip:
        described["flip"] = True
    if options.corruption is not None:
        described["corrupt"] = str(options.corruption)
    if options.expansion:
        described["expansion"] = options.expansion
    if options.rerank:
        described["rerank"] = True
    if options.weights != TRAINED:
        described["weights"] = options.weights
    dataset = {
        "dir": resolve(config.data.dir),
        "fingerprint": fingerprint(config.data.dir),
        "synthetic": is_synthetic(config.data.dir),
    }
    return {
        "protocol": config.eval.protocol,
        "step": step,
        "split": split,
        "clips": config.eval.clips,
        "dataset": dataset,
        "options": described,
    }


def evaluate_split(
    config: ml_collections.ConfigDict,
    model: Star,
    variables: Any,
    mesh: Mesh,
    step: int,
    split: str,
    stop_requested: Callable[[], bool] = lambda: False,
    *,
    options: Options = AS_TRAINED,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Embeds a split and scores it.

    Returns:
      The report, which has the entries of `describe_evaluation` and of `protocols.summarize`, and
      the scores of each query, see `protocols.queries_of`.
    """
    description = describe_evaluation(config, step, split, options)
    embeddings = embed_split(
        config, model, variables, mesh, split, options.corruption, stop_requested
    )
    index = open_index(config.data.dir, split, config.data.validation_identities)
    compare = make_similarity(expansion=options.expansion, rerank=options.rerank)
    rankings = rank(config.eval.protocol, embeddings, index, compare)
    report = {**description, **summarize(config.eval.protocol, rankings, index)}
    return report, queries_of(rankings, index)


def evaluate_checkpoint(
    workdir: epath.Path,
    step: int | None,
    *,
    dataset_dir: str | None = None,
    split: str = "test",
    clips: str | None = None,
    protocol: str | None = None,
    flip: bool | None = None,
    options: Options = AS_TRAINED,
    trusted: Collection[str] = (),
) -> tuple[dict[str, Any], epath.Path]:
    """Evaluates a checkpoint of a run.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; the last one if None.
      dataset_dir: the packed dataset; the config's if None.
      split: "test", or "validation" for the identities that the run held out.
      clips: a value of `config.eval.clips`; the config's if None.
      protocol: one of PROTOCOLS, or a path; the config's if None.
      flip: whether to average the embeddings of clips and their mirror images; the config's if
        None.
      options: what else is different.
      trusted: see `star_jax.load_weights`; `protocol` may be a part of any package.

    Returns:
      The report and the path that it was written to.

    Raises:
      FileNotFoundError: the run has no such checkpoint.
      InputError: the checkpoint or the dataset does not fit the config, a value is invalid, or
        skeletons are to be corrupted and the network uses none.
    """
    step, config, model, variables, mesh = restore_network(
        workdir, step, weights=options.weights, trusted=trusted
    )
    if options.corruption is not None and not model.uses_skeletons:
        raise InputError(
            f"--corrupt={options.corruption}: the network of {workdir} uses no skeletons; leave it "
            "out"
        )
    if options.clip_length == config.data.clip_length:
        options = options._replace(clip_length=None)
    changes = {
        **{"data.dir": dataset_dir, "data.clip_length": options.clip_length},
        **{"eval.protocol": protocol, "eval.clips": clips, "eval.flip": flip},
    }
    config.update_from_flattened_dict(
        {key: value for key, value in changes.items() if value is not None}
    )
    check_config(config)
    index = open_index(config.data.dir, split, config.data.validation_identities)
    require_scorable(config.eval.protocol, index)
    report, queries = evaluate_split(config, model, variables, mesh, step, split, options=options)
    if processes.is_first():
        run_files.write_report(workdir, report, queries)
    return report, run_files.report_path(workdir, report)


def embed_dataset(
    network: Network,
    dataset_dir: str | os.PathLike[str],
    split: str = "test",
    *,
    clips: str | None = None,
) -> Embeddings:
    """Embeds a split of any packed dataset; clip length and frame size are the network's.

    Args:
      network: as returned by `load_weights`.
      dataset_dir: the packed dataset.
      split: a split of the dataset.
      clips: a value of `config.eval.clips`; that of the network's config if None.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      InputError: there is no such split, or it has no skeletons and the network needs them.
    """
    config = network.config.copy_and_resolve_references()
    config.data.validation_identities = 0  # of the dataset that the network was trained on
    remote = is_remote(dataset_dir)
    config.data.dir = os.fspath(dataset_dir) if remote else os.path.realpath(resolve(dataset_dir))
    if clips is not None:
        config.eval.clips = clips
    provenance = provenance_of(network, _fingerprint_of(dataset_dir), split, clips)
    index = open_index(config.data.dir, split)
    no_skeletons = (index.missing_skeletons == index.num_frames).all()
    if network.model.uses_skeletons and no_skeletons:
        raise InputError(
            f"{dataset_dir}: no frame has a skeleton, but the network is guided by skeletons; pack "
            "the dataset with skeletons, or use a network trained with "
            "--config.model.guidance=none --config.model.pooling=gem"
        )
    embeddings = embed_split(config, network.model, network.variables, network.mesh, split)
    records = open_records(config.data.dir, split)
    return Embeddings(
        embeddings=embeddings,
        identities=index.identities,
        cameras=index.camera_names,
        modalities=np.array(MODALITIES)[index.modalities],
        rows=index.rows,
        num_frames=index.num_frames,
        first_frames=np.array([records[i]["frame_ids"][0] for i in range(len(index.rows))]),
        dataset_dir=config.data.dir,
        provenance=provenance,
    )


def embed_once(
    network: Network,
    dataset_dir: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    split: str = "test",
    *,
    clips: str | None = None,
) -> pathlib.Path:
    """Writes the embeddings of `embed_dataset` to a folder, unless they are there from before.

    The file's name is a digest of its provenance, and the file holds it: a change of weights,
    config, dataset, split or clips embeds again, and so does a file that cannot be read or is of
    another provenance.

    Returns:
      The path, `<folder>/embeddings-<digits>.npz`, which the first process has written; see
      `embeddings.load`.

    Raises:
      FileNotFoundError, InputError: as `embed_dataset` does.
    """
    provenance = provenance_of(network, _fingerprint_of(dataset_dir), split, clips)
    facts = json.dumps(dataclasses.asdict(provenance))
    digest = hashlib.sha256(facts.encode()).hexdigest()
    output = pathlib.Path(folder) / f"embeddings-{digest[:16]}"
    path = output.with_suffix(".npz")
    there = processes.is_first() and embedding_files.holds(path, provenance)
    if processes.broadcast_from_process_0(bytes([there]))[0]:
        if processes.is_first():
            log(f"reusing the embeddings in {path}: same weights, dataset, split and clips")
        return path
    found = embed_dataset(network, dataset_dir, split, clips=clips)
    if processes.is_first():
        embedding_files.save(output, found)
    return path


def _fingerprint_of(dataset_dir: str | os.PathLike[str]) -> str:
    """Returns the fingerprint of a dataset; its error says how to pack a folder of footage."""
    try:
        return fingerprint(dataset_dir)
    except FileNotFoundError as error:
        if is_remote(dataset_dir):
            raise
        raise FileNotFoundError(
            f"{dataset_dir}: not a packed dataset; pack a folder of footage with `python "
            f"launch/prepare.py --dataset=folder --source={dataset_dir}` and pass the directory "
            "that it prints"
        ) from error
