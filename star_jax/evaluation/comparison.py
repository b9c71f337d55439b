"""Compares the evaluations of several runs: methods, their seeds, and paired differences."""

import dataclasses
import io
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Float64

from data_pipelines.errors import InputError
from data_pipelines.io.remote import locate
from data_pipelines.io.tables import aligned
from star_jax.config import complete
from star_jax.evaluation import bootstrap
from star_jax.evaluation.scores import DIRECTIONS, METRICS, title_of
from star_jax.training import run_files

# Entries of a report that describe what was evaluated and how, but not with which network.
_LIKE_RESULTS = {*DIRECTIONS, "step", "environment", "queries"}
_SHOWN = ("rank1", "map", "minp")


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """An evaluation that a run wrote.

    Attributes:
      path: of the report.
      config: of the run, with keys joined by dots.
      report: what the evaluation printed.
      queries: the scores of each query, see `protocols.queries_of`.
    """

    path: epath.Path
    config: Mapping[str, Any]
    report: Mapping[str, Any]
    queries: Mapping[str, np.ndarray]

    @property
    def seed(self) -> int:
        """The training seed."""
        return self.config["seed"]


class Score(NamedTuple):
    """A score of a method, or a difference of two, in percent.

    Attributes:
      mean: over seeds of the mean over queries.
      low: start of the 95 % bootstrap interval, over identities and seeds.
      high: its end.
      spread: standard deviation over seeds; NaN for one seed.
    """

    mean: float
    low: float
    high: float
    spread: float


class Comparison(NamedTuple):
    """The scores of methods in one direction.

    Attributes:
      scores: of each method each metric.
      differences: of each pair of methods the second's scores minus the first's, paired.
      num_queries: queries with a match.
    """

    scores: dict[str, dict[str, Score]]
    differences: dict[tuple[str, str], dict[str, Score]]
    num_queries: int


def read_evaluation(path: str | os.PathLike[str], **facts: Any) -> Evaluation:
    """Reads an evaluation of a run.

    Args:
      path: a report, `<workdir>/eval/<name>.json`, or a workdir whose last evaluated step has one
        evaluation.
      **facts: entries that the report of a workdir must have, to choose among several.

    Raises:
      FileNotFoundError: there is no evaluation.
      InputError: there are several, or a file is damaged or of another version.
    """
    report_path = locate(path)
    if report_path.suffix != ".json":
        report_path = _last_report(report_path, facts)
    if not report_path.is_file():
        raise FileNotFoundError(f"{report_path}: no such evaluation; run launch/eval.py first")
    report = run_files.read_json(report_path)
    stored = run_files.read_json(report_path.parent.parent / "config.json")
    config = run_files.flatten(run_files.as_json(complete(stored)))
    arrays_path = run_files.queries_path(report_path)
    try:
        with np.load(io.BytesIO(arrays_path.read_bytes()), allow_pickle=False) as file:
            queries = {name: file[name] for name in file.files}
        for direction in DIRECTIONS:
            shape = (len(queries[f"{direction}_identities"]), len(METRICS))
            if queries[f"{direction}_scores"].shape != shape:
                raise ValueError(f"{direction}_scores is not {shape}")
    except Exception as error:  # zipfile and NumPy raise many kinds of errors on a damaged file
        raise InputError(
            f"{arrays_path}: the scores of the queries cannot be read ({error}); evaluate again "
            f"with launch/eval.py"
        ) from error
    return Evaluation(report_path, config, report, queries)


def _last_report(workdir: epath.Path, facts: Mapping[str, Any]) -> epath.Path:
    reports = run_files.report_paths(workdir)
    steps = {path: int(path.name.split("-")[0]) for path in reports}
    last = [path for path in reports if steps[path] == max(steps.values())]
    if facts:
        last = [path for path in last if facts.items() <= run_files.read_json(path).items()]
        if not last:
            described = ", ".join(f"{key} {value!r}" for key, value in facts.items())
            raise FileNotFoundError(
                f"{workdir}: has no evaluation of step {max(steps.values())} with {described}; run "
                f"launch/eval.py --workdir={workdir} first"
            )
    if len(last) > 1:
        raise InputError(
            f"{workdir}: has {len(last)} evaluations of step {max(steps.values())}; give one of "
            f"{', '.join(map(str, last))}"
        )
    return last[0]


def require_same_test_set(evaluations: Sequence[Evaluation]) -> None:
    """Raises an InputError that names what differs between evaluations other than the network."""
    first = evaluations[0]
    for other in evaluations[1:]:
        facts = [
            {
                key: value
                for key, value in run_files.flatten(evaluation.report).items()
                if key.split(".")[0] not in _LIKE_RESULTS and key != "dataset.dir"
            }
            for evaluation in (first, other)
        ]
        differences = [
            f"{key} is {facts[0].get(key)} and {facts[1].get(key)}"
            for key in sorted({*facts[0], *facts[1]})
            if facts[0].get(key) != facts[1].get(key)
        ]
        if not differences and not all(
            np.array_equal(first.queries[name], other.queries[name])
            for direction in DIRECTIONS
            for name in (f"{direction}_positions", f"{direction}_identities")
        ):
            differences = ["the queries differ"]
        if differences:
            raise InputError(
                f"{first.path} and {other.path} cannot be compared: {'; '.join(differences)}; "
                "evaluate both in the same way"
            )


def methods_of(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Groups evaluations whose configs differ in nothing but the seed; names the groups.

    Returns:
      For each method, in order of appearance, its evaluations by ascending seed. Its name lists
      what its config has of the keys in which the methods differ.

    Raises:
      InputError: two runs have the same config and seed.
    """
    groups: dict[tuple, list[Evaluation]] = {}
    for evaluation in evaluations:
        key = tuple(sorted((key, repr(value)) for key, value in _of_training(evaluation).items()))
        groups.setdefault(key, []).append(evaluation)
    configs = [_of_training(group[0]) for group in groups.values()]
    keys = sorted(set().union(*configs))
    different = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    methods = {}
    for config, group in zip(configs, groups.values(), strict=True):
        group.sort(key=lambda evaluation: evaluation.seed)
        for first, second in itertools.pairwise(group):
            if first.seed == second.seed:
                raise InputError(
                    f"{first.path} and {second.path} have the same config and seed; give one"
                )
        own = [f"{key}={config[key]}" for key in different if key in config]
        methods[", ".join(own) or "all runs"] = group
    return methods


def _of_training(evaluation: Evaluation) -> dict[str, Any]:
    """Returns the config without its seed and what does not affect the results of training.

    `init.backbone` is left out, since the same file may have another path on another machine.
    """
    free = ("seed", *run_files.FREE_KEYS)
    return {
        key: value
        for key, value in evaluation.config.items()
        if key == "init.checkpoint" or not key.startswith(free)
    }


def compare(
    methods: Mapping[str, Sequence[Evaluation]], direction: str, condition: str | None = None
) -> Comparison:
    """Compares methods in one direction.

    Args:
      methods: of each the evaluations of its seeds, ascending, all of the same test set.
      direction: "i2v" or "v2i".
      condition: under which the queries were filmed; all queries if None.

    Raises:
      InputError: no query has the condition.
    """
    queries = next(iter(methods.values()))[0].queries
    chosen = np.ones(len(queries[f"{direction}_identities"]), bool)
    if condition is not None:
        chosen = np.array(
            [condition in text.split(";") for text in queries[f"{direction}_conditions"].tolist()]
        )
    if not chosen.any():
        raise InputError(f"no query of {direction} has the condition {condition!r}")
    identities = queries[f"{direction}_identities"][chosen]
    means, resampled = {}, {}
    for name, evaluations in methods.items():
        scores = [own.queries[f"{direction}_scores"][chosen] for own in evaluations]
        seeds = [own.seed for own in evaluations]
        means[name] = np.array([own.mean(axis=0) for own in scores])
        resampled[name] = bootstrap.seed_means(bootstrap.resampled_means(scores, identities), seeds)
    differences = {}
    for first, second in itertools.combinations(methods, 2):
        same = [own.seed for own in methods[first]] == [own.seed for own in methods[second]]
        spread = means[second] - means[first] if same else None
        mean = means[second].mean(axis=0) - means[first].mean(axis=0)
        differences[first, second] = _scores(mean, resampled[second] - resampled[first], spread)
    return Comparison(
        scores={
            name: _scores(means[name].mean(axis=0), resampled[name], means[name])
            for name in methods
        },
        differences=differences,
        num_queries=len(identities),
    )


def _scores(
    mean: Float64[np.ndarray, " M"],
    resampled: Float64[np.ndarray, "resamples M"],
    of_seeds: Float64[np.ndarray, "S M"] | None,
) -> dict[str, Score]:
    ends = bootstrap.ends(resampled)
    spread = np.full(len(mean), np.nan)
    if of_seeds is not None and len(of_seeds) > 1:
        spread = of_seeds.std(axis=0, ddof=1)
    rows = zip(METRICS, mean, *ends, spread, strict=True)
    return {metric: Score(*map(float, values)) for metric, *values in rows}


def conditions_of(evaluation: Evaluation, direction: str) -> list[str]:
    """Returns the conditions under which any query of a direction was filmed, sorted."""
    texts = evaluation.queries[f"{direction}_conditions"].tolist()
    return sorted({name for text in texts for name in text.split(";") if name})


def format_comparison(methods: Mapping[str, Sequence[Evaluation]]) -> str:
    """Returns the comparison of methods in both directions as plain text tables.

    Methods are listed with their names first, and have numbers in the tables.
    """
    short = {name: f"({number})" for number, name in enumerate(methods, start=1)}
    listed = [
        f"{short[name]} {name}: {len(evaluations)} seed{'s' * (len(evaluations) > 1)}"
        for name, evaluations in methods.items()
    ]
    what = title_of(next(iter(methods.values()))[0].report)
    texts = ["\n".join(listed)]
    for direction in DIRECTIONS:
        found = compare(methods, direction)
        rows = [[direction, *_SHOWN]]
        for name, scores in found.scores.items():
            rows.append([short[name], *(cell(scores[metric]) for metric in _SHOWN)])
        for (first, second), scores in found.differences.items():
            cells = (cell(scores[metric], signed=True) for metric in _SHOWN)
            rows.append([f"{short[second]} - {short[first]}", *cells])
        texts.append(f"{what}, {found.num_queries} queries, in percent\n{aligned(rows)}")
    return "\n\n".join([*texts, explanation([len(group) for group in methods.values()])])


def explanation(seeds: Sequence[int]) -> str:
    """Returns what the intervals of a comparison stand for, by the number of seeds of a method."""
    if min(seeds) == 1:
        return (
            "[95 % bootstrap interval over the identities of the queries]. A method of one seed: "
            "how much another training seed changes its scores is not in its interval, so these "
            "differences say nothing about the methods; train each with several seeds."
        )
    return (
        "± standard deviation over seeds [95 % bootstrap interval over training seeds and the "
        "identities of the queries]; differences are paired by identity, and by seed where both "
        "methods have the same seeds."
    )


def cell(score: Score, *, signed: bool = False) -> str:
    """Returns a score as text: mean ± standard deviation over seeds [interval]."""
    sign = "+" if signed else ""
    spread = "" if np.isnan(score.spread) else f" ± {score.spread:.2f}"
    return f"{score.mean:{sign}.2f}{spread} [{score.low:{sign}.2f}, {score.high:{sign}.2f}]"
