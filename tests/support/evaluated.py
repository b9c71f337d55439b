"""Runs with an evaluation, written by hand: their config, run.json, report and scores."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tiny
from etils import epath

from data_pipelines.io.files import write_json
from star_jax.evaluation.scores import DIRECTIONS, METRICS
from star_jax.runs import run_files

IDENTITIES = np.repeat([f"{i:04}" for i in range(20)], 3)
DATASET = "0123456789abcdef"


def values() -> np.ndarray:
    """Returns scores of 60 queries, float64[60, 6]."""
    return np.random.default_rng(7).uniform(20, 80, (len(IDENTITIES), len(METRICS)))


def arrays_of(scores: np.ndarray, conditions: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the arrays of queries with these scores in both directions."""
    count = len(scores)
    own = {
        "positions": np.arange(count),
        "identities": IDENTITIES[:count],
        "conditions": np.array(conditions or [""] * count),
        "scores": scores,
    }
    return {f"{way}_{name}": array for way in DIRECTIONS for name, array in own.items()}


def report_of(queries: Mapping[str, np.ndarray], **facts: Any) -> dict[str, Any]:
    """Returns the report of an evaluation of step 12 with these scores of queries."""
    report: dict[str, Any] = {
        **{"protocol": "hitsz_vcm/v1", "step": 12, "split": "test", "clips": "first"},
        **{"dataset": {"dir": "data", "fingerprint": DATASET}, "options": {}},
    }
    for direction in DIRECTIONS:
        scores = queries[f"{direction}_scores"]
        means = dict(zip(METRICS, scores.mean(axis=0).tolist(), strict=True))
        report[direction] = {
            **means,
            **{"queries": len(scores), "gallery": 9, "unmatched": 0, "removed": 0},
            "intervals": {name: [0.9 * mean, mean] for name, mean in means.items()},
            **{"by_camera_pair": [], "by_condition": {}},
        }
    return {**report, **facts}


def write_run(
    workdir: pathlib.Path,
    *,
    changes: Mapping[str, Any] | None = None,
    shift: float = 0.0,
    conditions: Sequence[str] | None = None,
    trained_on: str = DATASET,
    revision: str = "1111111111",
    **facts: Any,
) -> epath.Path:
    """Writes a run, all of which have the same scores but for a shift; returns its report's path.

    Args:
      workdir: folder of the run.
      changes: of `tiny.config`, by key.
      shift: of all scores.
      conditions: of the queries.
      trained_on: fingerprint of the training dataset.
      revision: of the code that trained and evaluated.
      **facts: of the report.
    """
    config = tiny.config(workdir)
    config.update_from_flattened_dict(dict(changes or {}))
    write_json(workdir / "config.json", run_files.as_json(config))
    dataset = {"dir": "data", "fingerprint": trained_on}
    write_json(workdir / "run.json", {"dataset": dataset, "git_revision": revision})
    queries = arrays_of(values() + shift, conditions)
    path = run_files.write_report(epath.Path(workdir), report_of(queries, **facts), queries)
    report = run_files.read_json(path)
    report["environment"]["git_revision"] = revision
    write_json(path, report)
    return path
