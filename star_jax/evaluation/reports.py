"""The evaluations that a run wrote: their content, and reading them."""

import dataclasses
import io
import os
import re
from collections.abc import Mapping
from typing import Annotated, Any, TypedDict

import numpy as np
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.io.remote import locate
from data_pipelines.io.typed_json import Range
from star_jax.evaluation.scores import DIRECTIONS, METRICS
from star_jax.runs import run_files
from star_jax.runs.run_files import Dataset, Facts, Record

Percent = Annotated[float, Range(0, 100)]
Count = Annotated[int, Range(0)]
_AGAIN = "evaluate again with launch/eval.py"


class Intervals(TypedDict):
    """The ends of the 95 % intervals of scores."""

    rank1: tuple[Percent, Percent]
    rank5: tuple[Percent, Percent]
    rank10: tuple[Percent, Percent]
    rank20: tuple[Percent, Percent]
    map: tuple[Percent, Percent]
    minp: tuple[Percent, Percent]


class Scores(TypedDict):
    """The scores of a ranking task, as `scores.summary` returns them."""

    rank1: Percent
    rank5: Percent
    rank10: Percent
    rank20: Percent
    map: Percent
    minp: Percent
    queries: Count
    gallery: Count
    unmatched: Count
    removed: Count
    intervals: Intervals


class OfCameras(Scores):
    """The scores of the queries of one camera against the gallery of another."""

    query_camera: str
    gallery_camera: str


class OfDirection(Scores):
    """The scores of a direction, as `protocols.summarize` returns them."""

    by_camera_pair: list[OfCameras]
    by_condition: dict[str, Scores]


class Report(TypedDict):
    """An evaluation, as its JSON file has it."""

    protocol: str
    step: Count
    split: str
    clips: str
    dataset: Dataset
    options: dict[str, bool | int | str]
    environment: Facts
    i2v: OfDirection
    v2i: OfDirection


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation, and the run that wrote it.

    Attributes:
      path: of the report.
      report: what the evaluation found.
      queries: the scores of each query, see `protocols.queries_of`.
      config: of the run.
      record: of the run, run.json; empty if it has none.
    """

    path: epath.Path
    report: Report
    queries: Mapping[str, np.ndarray]
    config: dict[str, Any]
    record: Record

    @property
    def seed(self) -> int:
        """The training seed."""
        return int(self.config["seed"])


def read_report(path: epath.Path) -> Report:
    """Returns the report in a file.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is not a report; names the file and the key.
    """
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such evaluation; run launch/eval.py first")
    report: Report = run_files.read_json(path, Report, f"remove it, and {_AGAIN}")
    return report


def read_evaluation(path: str | os.PathLike[str], dataset: str | None = None) -> Evaluation:
    """Reads an evaluation of a run.

    Args:
      path: a report, `<workdir>/eval/<name>.json`; or a workdir, which stands for the report that
        launch/eval.py without other flags wrote for the last evaluated step.
      dataset: fingerprint of the dataset that a workdir's report must be of. Without it, the report
        is of the training dataset if there is one, else the only one of the step.

    Raises:
      FileNotFoundError: there is no such evaluation.
      InputError: there are several, or a file is damaged or of another version.
    """
    report_path = locate(path)
    is_report = report_path.suffix == ".json"
    workdir = report_path.parent.parent if is_report else report_path
    if not is_report:
        run_files.report_paths(workdir)  # says that a run has no evaluation
    config = run_files.read_config(workdir / "config.json")
    record = read_record(workdir)
    if not is_report:
        report_path = _plain_report(workdir, config, record, dataset)
    report = read_report(report_path)
    return Evaluation(report_path, report, _read_queries(report_path, report), config, record)


def read_record(workdir: epath.Path) -> Record:
    """Returns what run.json says; nothing if there is none."""
    path = workdir / "run.json"
    return run_files.read_json(path, Record) if path.exists() else {}


def _plain_report(
    workdir: epath.Path,
    config: Mapping[str, Any],
    record: Record,
    dataset: str | None,
) -> epath.Path:
    """Returns the path of the report that a workdir stands for, see `read_evaluation`."""
    steps = {
        path: int(match[1])
        for path in run_files.report_paths(workdir)
        if (match := re.match(r"(\d+)-", path.name))
    }
    step = max(steps.values(), default=0)
    last = [path for path in steps if steps[path] == step]
    trained_on = record.get("dataset", {}).get("fingerprint", "unknown")
    plain = run_files.report_path(
        workdir,
        {
            "step": step,
            "protocol": config["eval"]["protocol"],
            "split": "test",
            "clips": config["eval"]["clips"],
            "dataset": {"fingerprint": dataset or trained_on},
            "options": {"flip": True} if config["eval"]["flip"] else {},
        },
    )
    if plain in last:
        return plain
    if dataset is not None or not last:
        raise FileNotFoundError(
            f"{plain}: no such evaluation; run launch/eval.py --workdir={workdir} first"
        )
    if len(last) > 1:
        raise InputError(
            f"{workdir}: has {len(last)} evaluations of step {step}, and none is that of "
            f"launch/eval.py --workdir={workdir}; run this, or pass one of "
            f"{', '.join(map(str, last))}"
        )
    return last[0]


def _read_queries(path: epath.Path, report: Report) -> dict[str, np.ndarray]:
    """Returns the scores of each query beside a report; raises an InputError if they do not fit."""
    path = run_files.queries_path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the scores of the queries are missing; {_AGAIN}")
    content = path.read_bytes()
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # zipfile and NumPy raise many kinds of errors on a damaged file
        raise InputError(
            f"{path}: the scores of the queries cannot be read ({error}); {_AGAIN}"
        ) from error
    for direction in DIRECTIONS:
        _check_queries(path, direction, arrays, report)
    return arrays


def _check_queries(
    path: epath.Path, direction: str, arrays: Mapping[str, np.ndarray], report: Mapping[str, Any]
) -> None:
    """Raises an InputError unless the arrays of a direction are those that a report is about."""
    means = report[direction]
    count = means["queries"]
    kinds = {"positions": "iu", "identities": "U", "conditions": "U", "scores": "f"}
    for name, kind in kinds.items():
        key, shape = f"{direction}_{name}", (count, len(METRICS)) if name == "scores" else (count,)
        if key not in arrays:
            raise InputError(f"{path}: {key} is missing; {_AGAIN}")
        found = arrays[key]
        if found.shape != shape or found.dtype.kind not in kind:
            raise InputError(
                f"{path}: {key} is {found.dtype}{list(found.shape)}, not of {count} queries as the "
                f"report is; {_AGAIN}"
            )
    scores = arrays[f"{direction}_scores"]
    wrong = scores[~((scores >= 0) & (scores <= 100 + 1e-6))]  # the negation also catches NaN
    if not count or wrong.size:
        problem = f"holds {wrong[0]}, not percentages" if count else "is empty"
        raise InputError(f"{path}: {direction}_scores {problem}; {_AGAIN}")
    for metric, mean in zip(METRICS, scores.mean(axis=0, dtype=np.float64), strict=True):
        reported = means[metric]
        if abs(mean - reported) > 1e-4:
            raise InputError(
                f"{path}: {direction}_scores have a {metric} of {mean:.4f}, and the report beside "
                f"it has {reported:.4f}, so that they are of different evaluations; {_AGAIN}"
            )
