"""The result of an ablation: the scores of each variant, and its differences to the baseline."""

import io
import os
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from data_pipelines.io.tables import csv_file
from star_jax.comparison import comparison
from star_jax.comparison.comparison import Score
from star_jax.evaluation.reports import Evaluation, read_evaluation
from star_jax.evaluation.scores import DIRECTIONS, METRICS, title_of

OVERALL = "all"
_HEADER = (
    *("direction", "condition", "queries", "variant", "metric", "mean", "low", "high", "spread"),
    *("difference", "difference_low", "difference_high", "difference_spread"),
)


class Result(NamedTuple):
    """The comparison of all variants in one direction, for all queries or under a condition.

    Attributes:
      direction: "i2v" or "v2i".
      condition: of the queries, or OVERALL.
      num_queries: with a match.
      scores: of each variant each metric.
      differences: to the first variant, of each other variant each metric.
    """

    direction: str
    condition: str
    num_queries: int
    scores: Mapping[str, Mapping[str, Score]]
    differences: Mapping[str, Mapping[str, Score]]


class Ablation(NamedTuple):
    """The results, and the evaluations of each variant, whose first is the baseline."""

    results: list[Result]
    variants: Mapping[str, Sequence[Evaluation]]


def compare_variants(
    workdirs: Mapping[str, Sequence[str | os.PathLike[str]]], dataset: str
) -> Ablation:
    """Reads the evaluations of all runs that launch/eval.py wrote, and compares the variants.

    Args:
      workdirs: of each variant the runs of its seeds, ascending; the first is the baseline.
      dataset: fingerprint of the dataset that they were evaluated on.

    Raises:
      FileNotFoundError, InputError: as `reports.read_evaluation` and `require_same_test_set` do.
    """
    variants = {
        name: [read_evaluation(path, dataset) for path in paths] for name, paths in workdirs.items()
    }
    everything = [own for group in variants.values() for own in group]
    comparison.require_same_test_set(everything)
    results = []
    for direction in DIRECTIONS:
        for condition in (None, *comparison.conditions_of(everything[0], direction)):
            found = comparison.compare(variants, direction, condition)
            baseline = next(iter(variants))
            differences = {
                second: scores
                for (first, second), scores in found.differences.items()
                if first == baseline
            }
            name = OVERALL if condition is None else condition
            results.append(Result(direction, name, found.num_queries, found.scores, differences))
    return Ablation(results, variants)


def csv(ablation: Ablation) -> bytes:
    """Returns all scores as a CSV file, one row per direction, condition, variant and metric."""
    rows: list[tuple[Any, ...]] = [_HEADER]
    for result in ablation.results:
        facts = (result.direction, result.condition, result.num_queries)
        for variant, scores in result.scores.items():
            for metric in METRICS:
                difference = result.differences.get(variant, {}).get(metric, ("", "", "", ""))
                rows.append((*facts, variant, metric, *scores[metric], *difference))
    return csv_file(rows)


def markdown(ablation: Ablation) -> str:
    """Returns Rank-1 and mAP overall, and mAP by condition, as tables in Markdown."""
    seeds = [len(evaluations) for evaluations in ablation.variants.values()]
    first = next(iter(ablation.variants.values()))[0]
    lines = [f"{title_of(first.report)}, {seeds[0]} seed{'s' * (seeds[0] > 1)}, in percent."]
    for direction in DIRECTIONS:
        own = [result for result in ablation.results if result.direction == direction]
        overall, conditions = own[0], own[1:]
        header = ["variant", "Rank-1", "mAP", "mAP - baseline"]
        rows = []
        for variant, scores in overall.scores.items():
            difference = overall.differences.get(variant)
            cells = [comparison.cell(scores["rank1"]), comparison.cell(scores["map"])]
            cells.append(comparison.cell(difference["map"], signed=True) if difference else "")
            rows.append([variant, *cells])
        lines += ["", f"{direction}, {overall.num_queries} queries:", ""]
        lines += _table(header, rows)
        if conditions:
            header = [f"{direction}, mAP - baseline"]
            header += [f"{result.condition} ({result.num_queries})" for result in conditions]
            rows = [
                [
                    variant,
                    *(
                        comparison.cell(result.differences[variant]["map"], signed=True)
                        for result in conditions
                    ),
                ]
                for variant in overall.differences
            ]
            lines += ["", *_table(header, rows)]
    for paragraph in comparison.explanation(ablation.variants):
        lines += ["", paragraph]
    return "\n".join([*lines, ""])


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def plot(ablation: Ablation) -> bytes:
    """Draws mAP of all variants and their differences to the baseline; returns an SVG file.

    A row of panels per direction: dots are seeds, bars the 95 % intervals of the means.
    """
    names = list(ablation.variants)
    rows = np.arange(len(names))[::-1]
    colors = matplotlib.color_sequences["tab10"]
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "star_jax"}):
        figure = Figure(figsize=(11, 1.6 + 2 * (0.7 + 0.42 * len(names))), layout="constrained")
        panels = figure.subplots(2, 2, sharey=True)
        for direction, (scores, differences) in zip(DIRECTIONS, panels, strict=True):
            own = [result for result in ablation.results if result.direction == direction]
            overall = own[0]
            for row, name in zip(rows, names, strict=True):
                score = overall.scores[name]["map"]
                scores.plot([score.low, score.high], [row, row], color=colors[0], linewidth=2)
                scores.plot(score.mean, row, "|", color=colors[0], markersize=14)
                for evaluation in ablation.variants[name]:
                    seed = evaluation.queries[f"{direction}_scores"][:, METRICS.index("map")].mean()
                    scores.plot(seed, row, "o", color=colors[0], markersize=4, alpha=0.6)
            for place, result in enumerate(own):
                offset = 0.3 - 0.6 * (place + 0.5) / len(own)
                label = f"{result.condition} ({result.num_queries})"
                for row, name in zip(rows, names, strict=True):
                    if name not in result.differences:
                        continue
                    score = result.differences[name]["map"]
                    differences.errorbar(
                        score.mean,
                        row + offset,
                        xerr=[[score.mean - score.low], [score.high - score.mean]],
                        fmt="o",
                        markersize=4,
                        linewidth=2 if place == 0 else 1,
                        color="black" if place == 0 else colors[place % 10],
                        label=label,
                    )
                    label = "_"  # in the legend once
            differences.axvline(0, color="gray", linewidth=1)
            scores.set_yticks(rows, names)
            scores.set_xlabel(f"{direction} mAP, percent")
            differences.set_xlabel(f"{direction} mAP - that of {names[0]!r}, points")
            differences.legend(
                title="queries",
                fontsize="small",
                loc="center left",
                bbox_to_anchor=(1.0, 0.5),
                frameon=False,
            )
            for panel in (scores, differences):
                panel.grid(axis="x", alpha=0.3)
                panel.spines[["top", "right"]].set_visible(False)
        file = io.BytesIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()
