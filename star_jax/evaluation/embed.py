"""Embeddings of a whole test split."""

from pathlib import Path
from typing import Any

import ml_collections
import numpy as np
from jax.sharding import Mesh

from data_pipelines.loader import test_clips
from data_pipelines.records import open_index
from data_pipelines.schema import MODALITIES
from star_jax import checkpoint, run_files
from star_jax.evaluation.protocols import evaluate
from star_jax.metrics import Progress
from star_jax.models import Star, build_model
from star_jax.parallel import check_rows, make_mesh, put_batch
from star_jax.steps import abstract_variables, make_embed_step


def embed_test_split(
    config: ml_collections.ConfigDict, model: Star, variables: Any, mesh: Mesh
) -> np.ndarray:
    """Embeds every tracklet of the test split; several clips of one are averaged.

    Args:
      config: the experiment; `data` and `eval` are read.
      model: the network.
      variables: its parameters and statistics, on the mesh.
      mesh: of devices.

    Returns:
      float32[n, C], rows of length 1, in the order of `open_index(config.data.dir, "test")`.
    """
    check_rows(config.eval.batch_size, mesh, "config.eval.batch_size")
    index = open_index(config.data.dir, "test")
    sums: np.ndarray | None = None
    done = 0
    with Progress(len(index.modalities), 0, "embedding", unit="tracklet") as progress:
        for number, modality in enumerate(MODALITIES):
            embed = make_embed_step(model, modality, mesh)
            clips = test_clips(
                config.data.dir,
                positions=np.flatnonzero(index.modalities == number),
                clip_length=config.data.clip_length,
                frame_size=tuple(config.data.frame_size),
                batch_size=config.eval.batch_size,
                mode=config.eval.clips,
                num_threads=config.data.num_threads,
            )
            for batch in clips:
                position = batch["position"]
                inputs = put_batch((batch["frames"], batch["keypoints"]), mesh)
                embeddings = np.asarray(embed(variables, *inputs))
                if sums is None:
                    sums = np.zeros((len(index.modalities), embeddings.shape[1]), np.float32)
                np.add.at(sums, position[position >= 0], embeddings[position >= 0])
                done += len(np.unique(position[position >= 0]))
                progress.update(min(done, len(index.modalities)))
    if sums is None:
        raise ValueError(f"{config.data.dir}: the test split holds no tracklet")
    return sums / np.linalg.norm(sums, axis=1, keepdims=True)


def evaluate_test_split(
    config: ml_collections.ConfigDict, model: Star, variables: Any, mesh: Mesh, step: int
) -> dict[str, Any]:
    """Embeds the test split and scores it; see `star_jax.evaluation.protocols.evaluate`.

    Returns:
      The report, with the `step` of the weights.
    """
    embeddings = embed_test_split(config, model, variables, mesh)
    report = evaluate(config.eval.protocol, embeddings, open_index(config.data.dir, "test"))
    protocol = report.pop("protocol")
    return {"protocol": protocol, "step": step, **report}


def evaluate_checkpoint(
    workdir: Path, step: int | None, *, dataset_dir: str | None = None, clips: str | None = None
) -> tuple[dict[str, Any], Path]:
    """Evaluates a checkpoint of a run.

    Args:
      workdir: of the run.
      step: of the checkpoint; the last one if None.
      dataset_dir: the packed dataset, if not the config's.
      clips: "first" or "dense", if not the config's.

    Returns:
      The report and the file that it was written to.

    Raises:
      FileNotFoundError: the run has no such checkpoint.
      ValueError: the checkpoint or the dataset does not fit the config.
    """
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(f"{workdir}: no run here (no checkpoints folder)")
    with checkpoint.open_manager(workdir, keep=None) as manager:
        steps = sorted(manager.all_steps())
        if not steps or step not in (None, *steps):
            found = ", ".join(map(str, steps)) or "none"
            raise FileNotFoundError(f"{workdir}: no checkpoint {step or ''} (there are: {found})")
        step = steps[-1] if step is None else step
        config = checkpoint.restore_config(manager, step)
        if dataset_dir is not None:
            config.data.dir = dataset_dir
        if clips is not None:
            config.eval.clips = clips
        mesh = make_mesh()
        model = build_model(config.model)
        abstract = abstract_variables(config, model, mesh)
        variables = checkpoint.restore_variables(manager, step, abstract)
    report = evaluate_test_split(config, model, variables, mesh, step)
    return report, run_files.write_report(workdir, report)
