"""Evaluating a network on a split: embeddings, rankings, scores and their report."""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float32

from data_pipelines.errors import InputError
from data_pipelines.records.dataset import VALIDATION, Split, open_dataset
from data_pipelines.skeletons.corruption import Corruption
from star_jax.config import Config
from star_jax.distributed import processes
from star_jax.embedding.embed import embed_once, embed_split
from star_jax.evaluation.protocols import queries_of, rank, require_scorable, summarize
from star_jax.evaluation.similarity import make_similarity
from star_jax.network import Network, restore_network
from star_jax.runs import run_files
from star_jax.state import TRAINED


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


def evaluation_split(config: Config) -> str:
    """Returns the split of evaluations during training: "validation" if identities are held out."""
    return VALIDATION if config.data.validation_identities else "test"


def describe_evaluation(
    config: Config, step: int, split: Split, options: Options = AS_TRAINED
) -> dict[str, Any]:
    """Returns what identifies an evaluation among others of the same run.

    Args:
      config: the experiment; `eval` is read.
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
    dataset = split.dataset
    return {
        "protocol": config.eval.protocol,
        "step": step,
        "split": split.name,
        "clips": config.eval.clips,
        "dataset": {
            "dir": dataset.address,
            "fingerprint": dataset.fingerprint,
            "synthetic": dataset.is_synthetic,
        },
        "options": described,
    }


def score(
    config: Config,
    step: int,
    split: Split,
    vectors: Float32[np.ndarray, "n C"],
    options: Options = AS_TRAINED,
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Scores the embeddings of a split.

    Returns:
      The report, which has the entries of `describe_evaluation` and of `protocols.summarize`, and
      the scores of each query, see `protocols.queries_of`.
    """
    compare = make_similarity(expansion=options.expansion, rerank=options.rerank)
    rankings = rank(config.eval.protocol, vectors, split.index, compare)
    report = {
        **describe_evaluation(config, step, split, options),
        **summarize(config.eval.protocol, rankings, split.index),
    }
    return report, queries_of(rankings, split.index)


def evaluate_network(
    network: Network,
    split: Split,
    workdir: epath.Path,
    options: Options = AS_TRAINED,
    stop_requested: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Evaluates a network of a run, and writes the report and the scores of each query.

    With `config.eval.save_embeddings`, the embeddings are left beside them, and existing ones are
    reused.

    Args:
      network: of the run.
      split: its tracklets are embedded and ranked.
      workdir: folder of the run.
      options: how the evaluation differs from that of the network's config.
      stop_requested: see `embed.embed`.

    Returns:
      The report.
    """
    if network.config.eval.save_embeddings:
        vectors = embed_once(
            network,
            split,
            run_files.reports_folder(workdir),
            corruption=options.corruption,
            stop_requested=stop_requested,
        ).vectors
    else:
        vectors = embed_split(
            network, split, corruption=options.corruption, stop_requested=stop_requested
        )
    report, queries = score(network.config, network.step, split, vectors, options)
    if processes.is_first():
        run_files.write_report(workdir, report, queries)
    return report


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
    """Evaluates a checkpoint of a run, and leaves its embeddings beside the scores.

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
      trusted: see `star_jax.load_weights`; `protocol` may come from any package.

    Returns:
      The report and the path that it was written to.

    Raises:
      FileNotFoundError: the run has no such checkpoint.
      InputError: the checkpoint or the dataset does not fit the config, a value is invalid, or
        skeletons are to be corrupted and the network uses none.
    """
    network = restore_network(workdir, step, weights=options.weights, trusted=trusted)
    if options.corruption is not None and not network.model.uses_skeletons:
        raise InputError(
            f"--corrupt={options.corruption}: the network of {workdir} uses no skeletons; leave it "
            "out"
        )
    if options.clip_length == network.config.data.clip_length:
        options = options._replace(clip_length=None)
    network = network.with_config(
        **{
            **{"data.clip_length": options.clip_length, "eval.save_embeddings": True},
            **{"eval.protocol": protocol, "eval.clips": clips, "eval.flip": flip},
        }
    )
    config = network.config
    dataset = open_dataset(dataset_dir or config.data.dir)
    evaluated = dataset.split(split, config.data.validation_identities)
    require_scorable(config.eval.protocol, evaluated.index)
    report = evaluate_network(network, evaluated, workdir, options)
    return report, run_files.report_path(workdir, report)
