"""Compares the evaluations of several runs: methods, their seeds, and paired differences."""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float64

from data_pipelines.errors import InputError
from data_pipelines.io.tables import aligned
from data_pipelines.io.terminal import printable
from star_jax.evaluation.intervals import difference_interval, score_interval
from star_jax.evaluation.reports import Evaluation
from star_jax.evaluation.scores import DIRECTIONS, METRICS, title_of
from star_jax.runs import run_files

_SHOWN = ("rank1", "map", "minp")


class Score(NamedTuple):
    """A score of a method, or a difference of two, in percent.

    Attributes:
      mean: over seeds of the mean over queries.
      low: start of the 95 % interval over identities and seeds. With one seed, that of a score is
        over identities alone, and that of a difference is NaN.
      high: its end.
      spread: standard deviation over seeds; NaN for one seed, and for the difference of methods
        whose seeds are not the same.
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


def require_same_test_set(evaluations: Sequence[Evaluation]) -> None:
    """Raises an InputError that names what differs between evaluations other than the network."""
    first = evaluations[0]
    for other in evaluations[1:]:
        before, after = _test_of(first), _test_of(other)
        differences = [
            f"{key} is {before.get(key)} and {after.get(key)}"
            for key in sorted({*before, *after})
            if before.get(key) != after.get(key)
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


def _test_of(evaluation: Evaluation) -> dict[str, Any]:
    """Returns what was evaluated, and how, but not with which network."""
    report = evaluation.report
    return {
        **{"protocol": report["protocol"], "split": report["split"], "clips": report["clips"]},
        "dataset.fingerprint": report["dataset"]["fingerprint"],
        **{f"options.{name}": value for name, value in report["options"].items()},
    }


def methods_of(evaluations: Sequence[Evaluation]) -> dict[str, list[Evaluation]]:
    """Groups evaluations of networks that differ only in the seed; names the groups.

    Returns:
      For each method, in order of appearance, its evaluations by ascending seed. Its name lists
      what it has of the facts of `_origin` in which the methods differ.

    Raises:
      InputError: two evaluations are of the same method and seed.
    """
    groups: dict[tuple[tuple[str, str], ...], list[Evaluation]] = {}
    for evaluation in evaluations:
        key = tuple(sorted((key, repr(value)) for key, value in _origin(evaluation).items()))
        groups.setdefault(key, []).append(evaluation)
    origins = [_origin(group[0]) for group in groups.values()]
    keys = sorted(set().union(*origins))
    different = [key for key in keys if len({repr(origin.get(key)) for origin in origins}) > 1]
    methods = {}
    for origin, group in zip(origins, groups.values(), strict=True):
        group.sort(key=lambda evaluation: evaluation.seed)
        for first, second in itertools.pairwise(group):
            if first.seed == second.seed:
                raise InputError(
                    f"{first.path} and {second.path} are of the same seed, config, initial "
                    "weights, training dataset, revision and step; pass one of them"
                )
        own = [f"{key}={origin[key]}" for key in different if key in origin]
        methods[", ".join(own) or "all runs"] = group
    return methods


def _origin(evaluation: Evaluation) -> dict[str, Any]:
    """Returns what determines a network apart from its seed and chance.

    That is the config without the keys that do not affect training, what training started from, the
    training dataset, the revision of the code that trained, and the evaluated step. Initial weights
    are distinguished by their path.
    """
    config = run_files.flatten(evaluation.config)
    free = tuple(key for key in run_files.FREE_KEYS if key != "init.")
    trained_on = evaluation.record.get("dataset", {}).get("fingerprint", "unknown")
    return {
        **{
            key: value
            for key, value in config.items()
            if key != "seed" and not key.startswith(free)
        },
        "training dataset": trained_on[:8],
        "trained by": run_files.short_revision(evaluation.record),
        "step": evaluation.report["step"],
    }


def revisions_note(evaluations: Iterable[Evaluation]) -> str:
    """Returns a warning if several revisions of the code trained or evaluated runs, else ""."""
    runs = [(evaluation.record, evaluation.report["environment"]) for evaluation in evaluations]
    found = []
    for what, facts in zip(("trained", "evaluated"), zip(*runs, strict=True), strict=True):
        revisions = collections.Counter(map(run_files.short_revision, facts))
        if len(revisions) > 1:
            listed = (f"{name} ({count})" for name, count in revisions.items())
            found.append(f"{what} by {', '.join(listed)}")
    if not found:
        return ""
    return (
        f"Runs of several revisions of the code: {'; '.join(found)}. What has changed between them "
        "may account for part of the scores and differences."
    )


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
    runs = {
        name: np.stack(
            [own.queries[f"{direction}_scores"][chosen] for own in evaluations], dtype=np.float64
        )
        for name, evaluations in methods.items()
    }
    differences = {}
    for first, second in itertools.combinations(methods, 2):
        paired = [own.seed for own in methods[first]] == [own.seed for own in methods[second]]
        groups = [runs[second] - runs[first]] if paired else [runs[second], -runs[first]]
        ends = difference_interval(groups, identities)
        if min(len(runs[first]), len(runs[second])) == 1:
            ends = np.full_like(ends, np.nan)  # the variance between seeds is unknown
        differences[first, second] = _scores(groups, ends)
    return Comparison(
        scores={
            name: _scores([own], score_interval(own, identities)) for name, own in runs.items()
        },
        differences=differences,
        num_queries=len(identities),
    )


def _scores(
    groups: Sequence[Float64[np.ndarray, "_ Q M"]], ends: Float64[np.ndarray, "2 M"]
) -> dict[str, Score]:
    """Returns the sum over groups of runs of their means, of each metric."""
    mean = np.sum([runs.mean(axis=(0, 1)) for runs in groups], axis=0)
    spread = np.full(len(mean), np.nan)
    if len(groups) == 1 and len(groups[0]) > 1:
        spread = groups[0].mean(axis=1).std(axis=0, ddof=1)
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
        f"{short[name]} {printable(name)}: {len(evaluations)} seed{'s' * (len(evaluations) > 1)}"
        for name, evaluations in methods.items()
    ]
    what = printable(title_of(next(iter(methods.values()))[0].report))
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
    return "\n\n".join([*texts, *explanation(methods)])


def explanation(methods: Mapping[str, Sequence[Evaluation]]) -> list[str]:
    """Returns paragraphs on what the intervals of a comparison stand for, and on what limits it."""
    seeds = [len(evaluations) for evaluations in methods.values()]
    paragraphs = []
    if max(seeds) > 1:
        paragraphs.append(
            "± standard deviation over seeds [95 % interval over training seeds and the identities "
            "of the queries]; differences are paired by identity, and by seed where both methods "
            "have the same seeds."
        )
    if min(seeds) == 1:
        paragraphs.append(
            "One seed: how much another training seed would change the score is not known. Its "
            "interval is over the identities of the queries alone, and differences have none, "
            "since they say nothing about the methods; train each with several seeds."
        )
    note = revisions_note(itertools.chain.from_iterable(methods.values()))
    return [*paragraphs, *([note] if note else [])]


def cell(score: Score, *, signed: bool = False) -> str:
    """Returns a score or a difference as text: mean ± standard deviation over seeds [interval].

    Args:
      score: of a method, or a difference.
      signed: whether it is a difference.
    """
    sign = "+" if signed else ""
    mean, interval = f"{score.mean:{sign}.2f}", f"[{score.low:{sign}.2f}, {score.high:{sign}.2f}]"
    if np.isfinite(score.spread):
        return f"{mean} ± {score.spread:.2f} {interval}"
    if np.isnan(score.low):
        return f"{mean} (one seed)"
    return f"{mean} {interval}" if signed else f"{mean} {interval} (one seed)"
