"""Embedding a split of a packed dataset with a checkpoint, and evaluating it."""

import hashlib
import json
import math
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Float32

from data_pipelines.errors import InputError
from data_pipelines.io.progress import Progress
from data_pipelines.io.remote import absolute, is_remote, locate
from data_pipelines.loader import test_clips
from data_pipelines.records.reading import fingerprint, open_index, open_records
from data_pipelines.schema import MODALITIES
from star_jax.config import check_config
from star_jax.distributed import processes
from star_jax.distributed.parallel import gather, local_part, local_rows, make_mesh, put, split_rows
from star_jax.evaluation.embeddings import Embeddings
from star_jax.evaluation.protocols import evaluate
from star_jax.models import Star, build_model
from star_jax.training import checkpoint, run_files
from star_jax.training.steps import abstract_variables, make_embed_step


def embed_split(
    config: ml_collections.ConfigDict,
    model: Star,
    variables: Any,
    mesh: Mesh,
    split: str = "test",
    stop_requested: Callable[[], bool] = lambda: False,
) -> Float32[np.ndarray, "n C"]:
    """Embeds every tracklet of a split; the embeddings of its clips are averaged.

    Args:
      config: the experiment; `data` and `eval` are read.
      model: the network.
      variables: its parameters and statistics, on the mesh.
      mesh: the device mesh.
      split: a split of the packed dataset `config.data.dir`.
      stop_requested: called after each batch, equally often by each process.

    Returns:
      float32[n, C], rows of length 1, in the order of `open_index(config.data.dir, split)`.

    Raises:
      InputError: the split is empty.
      Preempted: `stop_requested` returned True.
    """
    batch_size = (
        math.ceil(config.eval.batch_size / mesh.size) * mesh.size
    )  # a multiple of the devices
    index = open_index(config.data.dir, split)
    if not len(index.modalities):
        raise InputError(f"{config.data.dir}: split {split} has no tracklets")
    rows = split_rows(mesh)
    positions: list[np.ndarray] = []
    embeddings: list[np.ndarray] = []
    done = 0
    total, first = len(index.modalities), processes.is_first()
    with Progress(total, "embedding", unit="tracklet", enabled=first) as progress:
        for number, modality in enumerate(MODALITIES):
            embed = make_embed_step(model, modality, mesh)
            clips = test_clips(
                config.data.dir,
                positions=np.flatnonzero(index.modalities == number),
                clip_length=config.data.clip_length,
                frame_size=tuple(config.data.frame_size),
                batch_size=batch_size,
                split=split,
                mode=config.eval.clips,
                sampling=config.data.sampling,
                move_keypoints=config.model.keypoints == "relative",
                rows=local_rows(rows, (batch_size,)),
                num_threads=config.data.num_threads,
            )
            for batch in clips:
                inputs = put((batch["frames"], batch["keypoints"]), rows, batch_size)
                embeddings.append(local_part(embed(variables, *inputs)))
                positions.append(batch["position"])
                found = np.unique(batch["position"][batch["position"] >= 0])
                done += len(found) * jax.process_count()  # approximate with several processes
                progress.update(min(done, total))
                if stop_requested():
                    raise processes.Preempted
    position, embedding = gather((np.concatenate(positions), np.concatenate(embeddings)))
    sums = np.zeros((len(index.modalities), embedding.shape[1]), np.float32)
    np.add.at(sums, position[position >= 0], embedding[position >= 0])
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def describe_evaluation(config: ml_collections.ConfigDict, step: int) -> dict[str, Any]:
    """Returns what identifies an evaluation among others of the same run.

    Returns:
      `protocol`, `step` of the checkpoint, `split`, `clips`, and `dataset` with its `dir` and
      `fingerprint`.
    """
    dataset = {"dir": config.data.dir, "fingerprint": fingerprint(config.data.dir)}
    return {
        "protocol": config.eval.protocol,
        "step": step,
        "split": "test",
        "clips": config.eval.clips,
        "dataset": dataset,
    }


def evaluate_test_split(
    config: ml_collections.ConfigDict,
    model: Star,
    variables: Any,
    mesh: Mesh,
    step: int,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Embeds the test split and scores it; see `star_jax.evaluation.protocols.evaluate`.

    Returns:
      The report: the entries of `describe_evaluation` and the scores.
    """
    description = describe_evaluation(config, step)
    embeddings = embed_split(
        config, model, variables, mesh, description["split"], stop_requested=stop_requested
    )
    scores = evaluate(config.eval.protocol, embeddings, open_index(config.data.dir, "test"))
    return {**description, **scores}


class Network(NamedTuple):
    """A network restored from a checkpoint.

    Attributes:
      step: step of the checkpoint.
      config: the experiment that trained it.
      model: the network.
      variables: its parameters and statistics, on the mesh.
      mesh: the mesh of all devices.
    """

    step: int
    config: ml_collections.ConfigDict
    model: Star
    variables: Any
    mesh: Mesh


def locate_checkpoint(workdir: str | None, path: str | None) -> tuple[epath.Path, int | None]:
    """Returns the workdir and the step given by either of two paths.

    Args:
      workdir: folder of a run; the step is None, which stands for the last checkpoint.
      path: path of a checkpoint, `<workdir>/checkpoints/<step>`.

    Raises:
      InputError: both are given or neither is, or the checkpoint's name is not a step.
    """
    if workdir and not path:
        return locate(workdir), None
    if path and not workdir:
        named = absolute(path)
        if not named.name.isdecimal():
            raise InputError(f"--checkpoint={path} must end with the number of a step")
        return named.parent.parent, int(named.name)
    raise InputError("give either --workdir or --checkpoint")


def restore_network(workdir: epath.Path, step: int | None) -> Network:
    """Restores the network of a checkpoint.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; the last one if None.

    Raises:
      FileNotFoundError: the run has no such checkpoint.
      InputError: the checkpoint does not fit its config.
    """
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{workdir}: not the folder of a run (it has no checkpoints folder)"
        )
    with checkpoint.open_manager(workdir, keep=None) as manager:
        steps = sorted(manager.all_steps())
        if not steps or step not in (None, *steps):
            found = ", ".join(map(str, steps)) or "none"
            raise FileNotFoundError(f"{workdir}: no checkpoint {step or ''} (there are: {found})")
        step = steps[-1] if step is None else step
        config = checkpoint.restore_config(manager, step)
        check_config(config)
        mesh = make_mesh()
        model = build_model(config.model)
        abstract = abstract_variables(config, model, mesh)
        variables = checkpoint.restore_variables(manager, step, abstract)
    return Network(step, config, model, variables, mesh)


def evaluate_checkpoint(
    workdir: epath.Path,
    step: int | None,
    *,
    dataset_dir: str | None = None,
    clips: str | None = None,
) -> tuple[dict[str, Any], epath.Path]:
    """Evaluates a checkpoint of a run.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; the last one if None.
      dataset_dir: the packed dataset; the config's if None.
      clips: "first" or "dense"; the config's if None.

    Returns:
      The report and the path that it was written to.

    Raises:
      FileNotFoundError: the run has no such checkpoint.
      InputError: the checkpoint or the dataset does not fit the config.
    """
    step, config, model, variables, mesh = restore_network(workdir, step)
    if dataset_dir is not None:
        config.data.dir = dataset_dir
    if clips is not None:
        config.eval.clips = clips
    report = evaluate_test_split(config, model, variables, mesh, step)
    if processes.is_first():
        run_files.write_report(workdir, report)
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
      network: as returned by `restore_network`.
      dataset_dir: the packed dataset.
      split: a split of the dataset.
      clips: "first" or "dense"; that of the network's config if None.

    Raises:
      FileNotFoundError: the directory is not a packed dataset.
      InputError: there is no such split, or it has no skeletons and the network needs them.
    """
    config = network.config.copy_and_resolve_references()
    remote = is_remote(dataset_dir)
    config.data.dir = os.fspath(dataset_dir) if remote else os.path.realpath(dataset_dir)
    if clips is not None:
        config.eval.clips = clips
    try:
        index = open_index(config.data.dir, split)
    except FileNotFoundError as error:
        if remote:
            raise
        raise FileNotFoundError(
            f"{dataset_dir}: not a packed dataset; pack a folder of footage with `python "
            f"launch/prepare.py --dataset=folder --source={dataset_dir}` and pass the directory "
            "that it prints"
        ) from error
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
        cameras=index.cameras,
        modalities=np.array(MODALITIES)[index.modalities],
        rows=index.rows,
        num_frames=index.num_frames,
        first_frames=np.array([records[i]["frame_ids"][0] for i in range(len(index.rows))]),
        dataset_dir=config.data.dir,
        dataset_fingerprint=fingerprint(config.data.dir),
        split=split,
        step=network.step,
        config_hash=config_hash(network.config),
    )


def config_hash(config: ml_collections.ConfigDict) -> str:
    """Returns the SHA-256 of a config, which together with the step identifies a network."""
    text = json.dumps(run_files.as_json(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
