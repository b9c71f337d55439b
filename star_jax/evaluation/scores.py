"""What an evaluation reports: scores with intervals, overall, by camera pair and by condition."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float64, Shaped

from data_pipelines.io.tables import aligned
from star_jax.evaluation.intervals import score_interval
from star_jax.evaluation.ranking import Ranking
from star_jax.evaluation.retrieval import RetrievalResult

RANKS = (1, 5, 10, 20)
METRICS = (*(f"rank{k}" for k in RANKS), "map", "minp")
COUNTS = ("queries", "gallery", "unmatched", "removed")
DIRECTIONS = ("i2v", "v2i")
METRIC_NAMES = {
    **{f"rank{k}": f"Rank-{k}" for k in RANKS},
    **{"map": "mAP", "minp": "mINP"},
}


def scores_of_queries(result: RetrievalResult) -> Float64[np.ndarray, "Q 6"]:
    """Returns the METRICS of each matched query in percent; the scores are their means."""
    matched = result.matched
    hits = [result.first_match[matched] <= k for k in RANKS]
    precision = result.average_precision[matched]
    penalty = result.inverse_negative_penalty[matched]
    return 100 * np.stack([*hits, precision, penalty], axis=1, dtype=np.float64)


def summary(result: RetrievalResult, identities: Shaped[np.ndarray, " Q"]) -> dict[str, Any]:
    """Returns the scores of a ranking task in percent, its counts and the scores' intervals.

    Args:
      result: at least one query has a match.
      identities: str[Q], of the queries.

    Returns:
      METRICS, COUNTS (`queries` have a match, `unmatched` have none and are left out of the means,
      `removed` gallery entries are excluded for a query, summed over the queries), and `intervals`,
      a dictionary of the 95 % interval over identities of each metric, [low, high].
    """
    counts = (result.num_queries, result.num_gallery, result.num_unmatched, result.num_removed)
    ends = score_interval(scores_of_queries(result)[None], identities[result.matched])
    return {
        **{f"rank{k}": 100 * result.rank(k) for k in RANKS},
        "map": 100 * result.mean_ap,
        "minp": 100 * result.mean_inp,
        **dict(zip(COUNTS, counts, strict=True)),
        "intervals": dict(zip(METRICS, ends.T.tolist(), strict=True)),
    }


def by_camera_pair(
    ranking: Ranking,
    identities: Shaped[np.ndarray, " Q"],
    camera_names: Shaped[np.ndarray, " N"],
) -> list[dict[str, Any]]:
    """Returns the scores of the queries of each camera against the gallery of each camera.

    Pairs without a match are left out.

    Args:
      ranking: of one direction.
      identities: str[Q], of its queries.
      camera_names: str[N], of all tracklets of the index.
    """
    pairs = []
    cameras = camera_names[ranking.queries], camera_names[ranking.gallery]
    for query_camera in np.unique(cameras[0]):
        rows = np.flatnonzero(cameras[0] == query_camera)
        for gallery_camera in np.unique(cameras[1]):
            columns = np.flatnonzero(cameras[1] == gallery_camera)
            result = ranking.among(rows, columns).result
            if result.num_queries:
                pair = {"query_camera": str(query_camera), "gallery_camera": str(gallery_camera)}
                pairs.append({**pair, **summary(result, identities[rows])})
    return pairs


def by_condition(
    result: RetrievalResult,
    identities: Shaped[np.ndarray, " Q"],
    conditions: Shaped[np.ndarray, " Q"],
) -> dict[str, dict[str, Any]]:
    """Returns the scores of the queries filmed under each condition, against the whole gallery.

    Args:
      result: of all queries.
      identities: str[Q].
      conditions: str[Q], of each query, joined by ";"; empty if unknown.
    """
    under = [set(filter(None, text.split(";"))) for text in conditions.tolist()]
    parts = {}
    for name in sorted(set().union(*under)):
        chosen = np.array([name in own for own in under])
        if (chosen & result.matched).any():
            parts[name] = summary(result.of_queries(chosen), identities[chosen])
    return parts


def format_table(report: Mapping[str, Any]) -> str:
    """Returns the scores of an evaluation as a plain text table: two rows per direction."""
    columns = (*METRICS, *COUNTS)
    headers = {"unmatched": "no match", "removed": "filtered"}
    rows = [[title_of(report), *(headers.get(column, column) for column in columns)]]
    for direction in DIRECTIONS:
        rows += _rows(direction, report[direction], columns)
    return aligned(rows)


def format_details(report: Mapping[str, Any]) -> str:
    """Returns the scores by condition and the mAP by camera pair as plain text tables."""
    tables = []
    for direction in DIRECTIONS:
        scores = report[direction]
        if scores.get("by_condition"):
            rows = [[f"{direction} by condition of the query", "rank1", "map", "queries"]]
            for name, own in scores["by_condition"].items():
                rows += _rows(name, own, ("rank1", "map", "queries"))
            tables.append(aligned(rows))
        if scores.get("by_camera_pair"):
            tables.append(_table_of_cameras(direction, scores["by_camera_pair"]))
    return "\n\n".join(tables)


def title_of(report: Mapping[str, Any]) -> str:
    """Returns an evaluation's protocol, split, clips and options, and whether people are synthetic.

    The split "test", the clips "first" and options at their default are left out.
    """
    people = ["synthetic people"] if report.get("dataset", {}).get("synthetic") else []
    split, clips = report.get("split", "test"), report.get("clips", "first")
    facts = [*people, *([split] if split != "test" else [])]
    facts += [f"{clips} clips"] if clips != "first" else []
    options = report.get("options", {})
    named = (name if value is True else f"{name} {value}" for name, value in options.items())
    return ", ".join([report["protocol"], *facts, *named])


def _rows(name: str, scores: Mapping[str, Any], columns: tuple[str, ...]) -> list[list[str]]:
    ends = scores["intervals"]
    return [
        [name, *(_cell(scores[column]) for column in columns)],
        ["  95 %", *(_span(*ends[column]) if column in ends else "" for column in columns)],
    ]


def _table_of_cameras(direction: str, pairs: list[dict[str, Any]]) -> str:
    galleries = sorted({pair["gallery_camera"] for pair in pairs}, key=natural)
    queries = sorted({pair["query_camera"] for pair in pairs}, key=natural)
    found = {(pair["query_camera"], pair["gallery_camera"]): pair["map"] for pair in pairs}
    rows = [[f"{direction} map, query camera by gallery camera", *galleries]]
    for query in queries:
        cells = (found.get((query, gallery)) for gallery in galleries)
        rows.append([query, *("" if value is None else _cell(value) for value in cells)])
    return aligned(rows)


def natural(name: str) -> tuple[bool, int, str]:
    """Returns a sorting key that puts numbers first, by value, and then other names."""
    is_number = name.isdecimal()
    return not is_number, int(name) if is_number else 0, name


def _cell(value: float | int) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _span(low: float, high: float) -> str:
    return f"{low:.1f} to {high:.1f}"
