"""The sections of a report: each function computes one from what is known of a run."""

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.schema import MODALITIES, Index
from star_jax.config import Config
from star_jax.evaluation.evaluate import evaluation_split
from star_jax.evaluation.ranking import Ranking, Result
from star_jax.evaluation.scores import DIRECTIONS, METRIC_NAMES, METRICS, natural, title_of
from star_jax.models.pooling import GuidedPooling
from star_jax.report import analysis, figures
from star_jax.report.page import (
    Card,
    Folded,
    Panels,
    RankedList,
    RankedLists,
    Score,
    Section,
    Table,
    kind_of,
)
from star_jax.report.pictures import DrawnFrames, data_address, sheet
from star_jax.report.theme import VISIBLE, Rendered, render

MATCHES = 5  # shown of a ranked list
QUERIES = 2  # of the best, median and worst ones each
_NO_SKELETONS = "The network uses no skeletons (config.model.guidance and config.model.pooling)."


def scores(
    report: Mapping[str, Any],
    others: Sequence[Mapping[str, Any]],
    rankings: Mapping[str, Ranking],
    index: Index,
) -> Section:
    """Returns the scores of the evaluation with their intervals, its CMC, and other evaluations."""
    rows: list[list[str | Score]] = [
        [METRIC_NAMES[metric], *(score_of(report[direction], metric) for direction in DIRECTIONS)]
        for metric in METRICS
    ]
    for name in ("queries", "gallery"):
        rows.append([name, *(f"{report[direction][name]:,}" for direction in DIRECTIONS)])
    blocks: list[Table | Panels] = [
        Table(
            ["", *(figures.NAMES[direction] for direction in DIRECTIONS)],
            rows,
            "In percent, with 95 % intervals over the identities of the queries, since the queries "
            "of one identity succeed and fail together. Bars run from 0 to 100 %.",
        ),
        cmc(rankings, index),
    ]
    plain = [other for other in others if "corrupt" not in other["options"]]
    if plain:
        columns = [(direction, metric) for metric in ("rank1", "map") for direction in DIRECTIONS]
        blocks.append(
            Table(
                ["", *(f"{METRIC_NAMES[metric]}, {direction}" for direction, metric in columns)],
                [
                    [
                        title_of(other),
                        *(score_of(other[direction], metric) for direction, metric in columns),
                    ]
                    for other in plain
                ],
                "Other evaluations of this checkpoint on the same dataset.",
            )
        )
    return Section("scores", "Scores", "", blocks, beside=True)


def score_of(scores: Mapping[str, Any], metric: str) -> Score:
    """Returns one of the METRICS of `scores.summary` with its interval."""
    return Score(scores[metric], *scores["intervals"][metric])


def training(metrics: Sequence[Mapping[str, float]], config: Config) -> Section:
    """Returns the curves of training, and those of evaluations during it if there were any."""
    section = Section("training", "Training", "")
    if len(metrics) < 2:
        return section._replace(missing="The run has no metrics.jsonl with two rows or more.")
    names = list(dict.fromkeys(name for row in metrics for name in row if name != "step"))
    losses = sorted(name for name in names if name.startswith("loss/"))
    losses.sort(key=lambda name: name != "loss/total")
    evaluated = [name for name in names if name.removeprefix("ema/").split("/")[0] in DIRECTIONS]
    drawn = []
    for name in losses:
        own = name.removeprefix("loss/")
        weight = getattr(config.losses, own, None)
        title = "total loss, weighted" if own == "total" else own.replace("_", " ")
        title += f" (weight {weight:g})" if isinstance(weight, int | float) else ""
        drawn.append(_curve(f"loss_{own}", title, metrics, {name: name}, "loss"))
    units = {"gradient_norm": "L2 norm", "frames_per_second": "frames/s"}
    for name in names:
        if name not in (*losses, *evaluated):
            unit = units.get(name, "")
            drawn.append(_curve(name, name.replace("_", " "), metrics, {name: name}, unit))
    for averaged, metric in dict.fromkeys(
        (name.startswith("ema/"), name.rpartition("/")[2]) for name in evaluated
    ):
        prefix, of = ("ema/", " of the average") if averaged else ("", "")
        columns = {
            f"{prefix}{direction}/{metric}": figures.NAMES[direction] for direction in DIRECTIONS
        }
        columns = {name: shown for name, shown in columns.items() if name in evaluated}
        title = f"{METRIC_NAMES.get(metric, metric)}{of}, {evaluation_split(config)} split"
        drawn.append(_curve(f"evaluated_{prefix}{metric}", title, metrics, columns, "%"))
    caption = (
        "As logged in metrics.jsonl: thin lines the logged values, thick lines their running "
        "medians. Losses are shown before they are weighted; scales are logarithmic where values "
        "span a factor of 100 or more."
    )
    found = [figure for figure in drawn if figure is not None]
    missing = "" if evaluated else "The run was not evaluated during training (eval.every_epochs)."
    return section._replace(blocks=[Panels(found, caption)], missing=missing)


def _curve(
    name: str,
    title: str,
    metrics: Sequence[Mapping[str, float]],
    columns: Mapping[str, str],
    unit: str,
) -> Rendered | None:
    """Returns the curve of columns, by their names in the figure; None if they hold no numbers."""
    rows = [row for row in metrics if all(np.isfinite(row.get(key, np.nan)) for key in columns)]
    if not rows:
        return None
    series = {shown: np.array([row[key] for row in rows]) for key, shown in columns.items()}
    colors = list(figures.OF_DIRECTION.values()) if len(columns) > 1 else [VISIBLE]
    steps = np.array([row["step"] for row in rows])
    file_name = "training_" + re.sub(r"\W", "_", name)
    return render(file_name, figures.curves(title, steps, series, unit=unit, colors=colors))


def cmc(rankings: Mapping[str, Ranking], index: Index) -> Panels:
    """Returns the CMC with its intervals."""
    found = {
        direction: analysis.cmc_curve(ranking, index.identities)
        for direction, ranking in rankings.items()
    }
    caption = (
        "Share of the queries that have a tracklet of their identity among the first k of the "
        "gallery. Bands: 95 % intervals over the identities of the queries."
    )
    return Panels([render("cmc", figures.cmc(found))], caption)


def ranked_lists(rankings: Mapping[str, Ranking], index: Index, frames: DrawnFrames) -> Section:
    """Returns the first matches of the best, median and worst queries."""
    lead = (
        "Queries of the highest, middle and lowest average precision, of different identities, and "
        "their first matches, most similar first. Each picture shows up to four of the frames that "
        "the network sees, in order of time, with their skeletons. ✓ and a solid border: the "
        "query's identity. ✗ and a dashed border: another one. Numbers are cosine similarities."
    )
    blocks = []
    for direction, ranking in rankings.items():
        lists = []
        chosen = analysis.chosen_queries(ranking, index.identities[ranking.queries], QUERIES)
        for kind, rows in chosen.items():
            for row in rows:
                precision = 100 * ranking.result.average_precision[row]
                first = ranking.result.first_match[row]
                title = f"average precision {precision:.0f} %, first match at rank {first}"
                result = analysis.first_matches(ranking, row, index.identities, MATCHES)
                lists.append(RankedList(kind, title, _cards(result, index, frames)))
        title = figures.NAMES[direction]
        blocks.append(RankedLists(title[0].upper() + title[1:], lists))
    return Section("ranked-lists", "Ranked lists", lead, blocks)


def _cards(result: Result, index: Index, frames: DrawnFrames) -> list[Card]:
    cards = [_card(result.query, "query", "query", index, frames)]
    for place, match in enumerate(result.matches, start=1):
        title = f"{place}: {match.score:.3f}"
        cards.append(_card(match.position, kind_of(match.same), title, index, frames))
    return cards


def _card(position: int, kind: str, title: str, index: Index, frames: DrawnFrames) -> Card:
    return Card(
        picture=data_address(sheet(frames(position))),
        kind=kind,
        title=title,
        identity=str(index.identities[position]),
        where=f"{MODALITIES[index.modalities[position]]}, camera {index.camera_names[position]}",
    )


def ranked_picture(ranking: Ranking, index: Index, frames: DrawnFrames) -> bytes:
    """Returns the ranked lists of one direction as the content of a PNG file."""

    def captioned(position: int, title: str, kind: str) -> figures.Captioned:
        caption = f"{title}, {index.identities[position]}"
        return figures.Captioned(sheet(frames(position)), caption, kind)

    rows = []
    chosen = analysis.chosen_queries(ranking, index.identities[ranking.queries], QUERIES)
    for row in [row for rows_of_kind in chosen.values() for row in rows_of_kind]:
        result = analysis.first_matches(ranking, row, index.identities, MATCHES)
        pictures = [captioned(result.query, "query", "query")]
        for place, match in enumerate(result.matches, start=1):
            title = f"{place}: {match.score:.3f}"
            pictures.append(captioned(match.position, title, kind_of(match.same)))
        rows.append(pictures)
    return render("ranked", figures.ranked_lists(rows)).png


def distances(embeddings: np.ndarray, index: Index) -> Section:
    """Returns the distributions of the distances within and across modalities."""
    found = analysis.distance_densities(embeddings, index.identities, index.modalities)
    drawn = []
    for (first, second), own in found.items():
        title = f"{MODALITIES[first]} to {MODALITIES[second]}"
        name = f"distances_{MODALITIES[first]}_{MODALITIES[second]}"
        drawn.append(render(name, figures.densities(title, "cosine distance", own)))
    caption = (
        f"Distributions of the cosine distances (1 - cosine similarity) of all pairs among "
        f"{len(embeddings):,} test tracklets, each curve with an area of 1. The less filled and "
        "hollow shapes overlap, the better a threshold separates the identities."
    )
    return Section("distances", "Distances", "", [Panels(drawn, caption)])


def embedding_map(embeddings: np.ndarray, index: Index) -> Section:
    """Returns a map of the embeddings."""
    points = analysis.embedding_map(embeddings)
    drawn = figures.embedding_map(points, index.identities, index.modalities)
    caption = (
        f"t-SNE of {len(embeddings):,} test tracklets, started at their principal components, with "
        "a fixed seed. The eight identities of the most tracklets are colored and named; lines "
        "lead to the mean of an identity. Others are gray. Points that are close in the map are "
        "similar; sizes of groups and distances between them have no meaning."
    )
    return Section("map", "Map of the embeddings", "", [Panels([render("map", drawn)], caption)])


def pooling(details: analysis.Details, index: Index, model: Any) -> Section:
    """Returns the weights of the powers of guided pooling."""
    section = Section("pooling", "Guided pooling", "")
    if details.powers is None or details.favorites is None:
        reason = "The pooling is not guided by the skeleton (config.model.pooling)."
        if isinstance(model.pooling, GuidedPooling):
            reason = "The weights of the pooling could not be read."
        return section._replace(missing=reason)
    lead = (
        "For each channel, the skeleton weights five generalized means over time. A power p of 1 "
        "is the mean; the larger p, the closer to the maximum."
    )
    drawn = [
        figures.powers("Mean weight", "weight (%)", details.powers, index.modalities),
        figures.powers(
            "Channels that favor a power", "channels (%)", details.favorites, index.modalities
        ),
    ]
    caption = (
        "Left: softmax weights, averaged over the channels. Right: share of the channels whose "
        f"largest weight is that of a power. A point is one of {len(details.powers):,} test "
        "tracklets, a bar the median of a modality, the dotted line what equal weights would give."
    )
    names = ("pooling_weights", "pooling_favorites")
    rendered = [render(name, figure) for name, figure in zip(names, drawn, strict=True)]
    return section._replace(lead=lead, blocks=[Panels(rendered, caption)])


def attention(
    details: analysis.Details, positions: np.ndarray, index: Index, frames: DrawnFrames, model: Any
) -> Section:
    """Returns the attention over time of a few tracklets, and that between joints."""
    section = Section("attention", "Attention", "")
    blocks, missing = [], ""
    if details.to_features is not None and details.to_edges is not None:
        blocks.append(_over_time(details.to_features, details.to_edges, positions, index, frames))
    else:
        missing = "No attention over time: the guidance is not that of this package (“frame”). "
    if details.joints is not None:
        seen = details.joints > 0
        means = details.joints.sum((0, 1)) / np.maximum(seen.sum((0, 1)), 1)
        figure = figures.body(
            "Attention to joints", means, [f"{mean:.2f}" for mean in means], np.zeros(17, bool)
        )
        caption = (
            "How much other nodes of the keypoint graph attend to a joint in the graph's last "
            "layer: the sum of the weights of the edges that leave the joint, without the one to "
            "itself, averaged over the frames in which it is detected. A node's incoming weights "
            "sum to 1. Left and right are from the person's point of view; areas are proportional "
            "to the number."
        )
        blocks.append(Panels([render("attention_joints", figure)], caption))
    else:
        missing = _NO_SKELETONS
    return section._replace(blocks=blocks, missing=missing.strip())


def _over_time(
    to_features: np.ndarray,
    to_edges: np.ndarray,
    positions: np.ndarray,
    index: Index,
    frames: DrawnFrames,
) -> Panels:
    """Returns the attention of the tracklet of each modality that attends least evenly."""
    drawn = []
    unevenness = to_features.max((1, 2))
    for number, modality in enumerate(MODALITIES):
        own = np.flatnonzero(index.modalities == number)
        for place in own[np.argsort(-unevenness[own], kind="stable")][:2]:
            position = int(positions[place])
            title = f"{figures.shown(str(index.identities[place]), 16)}, {modality}"
            figure = figures.attention(title, frames(position), to_features[place], to_edges[place])
            drawn.append(render(f"attention_{modality}_{position}", figure))
    time = to_features.shape[-1]
    caption = (
        "Attention over time that guides the features of the frames, averaged over heads. A row "
        f"sums to 100 %; equal attention is {100 / time:.1f} %, half of the full shade. Columns "
        "are the frames above, in order of time; frames without a skeleton are masked, 0 %. Shown "
        "are the two tracklets of each modality whose skeletons attend least evenly. Over all "
        f"tracklets, weights of skeletons to frames are {100 * to_features.min():.2f} to "
        f"{100 * to_features.max():.2f} %."
    )
    return Panels(drawn, caption)


def joints(protocol: str, details: analysis.Details, index: Index, total: int) -> Section:
    """Returns how much is lost when a joint is hidden.

    Args:
      protocol: of the evaluation.
      details: of some tracklets.
      index: of these tracklets.
      total: tracklets of the whole test split.
    """
    section = Section("joints", "Sensitivity to joints", "")
    if details.hidden is None:
        return section._replace(missing=_NO_SKELETONS)
    try:
        lost = analysis.joint_sensitivity(protocol, details.embeddings, details.hidden, index)
    except InputError as error:
        return section._replace(missing=f"The analyzed tracklets cannot be scored: {error}.")
    labels = [
        "{} ({} to {})".format(*map(_signed, change))
        for change in zip(-lost.mean, -lost.high, -lost.low, strict=True)
    ]
    certain = (lost.low > 0) | (lost.high < 0)
    figure = figures.body("Change of mAP, percentage points", lost.mean, labels, certain)
    some = f"all {total:,}" if len(index.rows) == total else f"{len(index.rows):,} of {total:,}"
    caption = (
        "How much the mean average precision of both directions changes when a joint is "
        "undetected (confidence 0) in all frames of all tracklets, with 95 % intervals over "
        "identities. Bold: the interval excludes 0. Filled circles: hiding the joint costs; "
        f"hollow ones: it helps. Computed on {some} test tracklets, one clip of each. Left and "
        "right are from the person's point of view."
    )
    return section._replace(blocks=[Panels([render("joints", figure)], caption)])


def _signed(number: float) -> str:
    """Returns a number with its sign and one digit after the point; no sign for 0.0."""
    text = f"{number:+.1f}".replace("-", "\N{MINUS SIGN}")
    return text[1:] if text.endswith("0.0") else text


def cameras_and_conditions(report: Mapping[str, Any]) -> Section:
    """Returns the scores by pair of cameras and by condition, as far as the evaluation has them."""
    section = Section("conditions", "Cameras and conditions", "")
    blocks, missing = [], []
    found = {direction: report[direction].get("by_condition", {}) for direction in DIRECTIONS}
    if any(found.values()):
        caption = (
            "mAP of the queries filmed under each condition, against the whole gallery. A query "
            "can be under several. Lines: 95 % intervals over identities."
        )
        blocks.append(Panels([render("conditions", figures.conditions(found))], caption))
    else:
        missing.append("The dataset records no conditions of tracklets.")
    drawn = []
    for direction in DIRECTIONS:
        pairs = report[direction].get("by_camera_pair", [])
        if pairs:
            queries = sorted({pair["query_camera"] for pair in pairs}, key=natural)
            entries = sorted({pair["gallery_camera"] for pair in pairs}, key=natural)
            figure = figures.cameras(direction, pairs, queries, entries)
            drawn.append(render(f"cameras_{direction}", figure))
    if drawn:
        caption = (
            "mAP of the queries of one camera against the gallery of another. Empty: no query of "
            "the pair has a match. Scores of pairs with few queries vary considerably by chance."
        )
        blocks.append(Panels(drawn, caption))
    else:
        missing.append("The evaluation has no scores by pair of cameras.")
    return section._replace(blocks=blocks, missing=" ".join(missing))


def corruption(
    report: Mapping[str, Any], others: Sequence[Mapping[str, Any]], workdir: str
) -> Section:
    """Returns the mAP against the corruption of the skeletons, where it was evaluated."""
    section = Section("corruption", "Corrupted skeletons", "")
    alike = [
        other
        for other in others
        if other["options"].keys() == {"corrupt"}
        and all(other.get(key) == report.get(key) for key in ("protocol", "clips", "split"))
    ]
    if not alike:
        missing = (
            "No evaluation with corrupted skeletons; run some with "
            f"launch/eval.py --workdir={workdir} --corrupt=drop:0.3"
        )
        return section._replace(missing=missing)
    kinds: dict[str, dict[float, Mapping[str, Any]]] = {}
    rows: list[list[str | Score]] = []
    for other in alike:
        kind, _, amount = str(other["options"]["corrupt"]).partition(":")
        if re.fullmatch(r"[0-9.]+(e-?[0-9]+)?", amount):
            kinds.setdefault(kind, {0.0: report})[float(amount)] = other
        else:
            name = kind.replace("_", " ")
            rows.append([name, *(score_of(other[direction], "map") for direction in DIRECTIONS)])
    units = {
        "drop": "probability that a joint is undetected",
        "jitter": "standard deviation of joints, share of the frame's height",
    }
    drawn = []
    for kind, found in sorted(kinds.items()):
        amounts = sorted(found)
        figure = figures.corruption(
            kind, units.get(kind, "amount"), amounts, [found[amount] for amount in amounts]
        )
        drawn.append(render("corruption_" + re.sub(r"\W", "_", kind), figure))
    blocks: list[Any] = []
    if drawn:
        caption = (
            "mAP of the same network when the skeletons of queries and gallery are corrupted; an "
            "amount of 0 is the evaluation above. Bands: 95 % intervals over identities."
        )
        blocks.append(Panels(drawn, caption))
    if rows:
        header = ["mAP", *(figures.NAMES[direction] for direction in DIRECTIONS)]
        blocks.append(Table(header, rows, "mAP in percent, with 95 % intervals."))
    return section._replace(blocks=blocks)


def origin(
    config: Mapping[str, Any],
    record: Mapping[str, Any],
    environment: Mapping[str, Any],
    command: str,
) -> Section:
    """Returns the config, the records of training and evaluation, and the report's command."""
    texts = {
        "config.json: all keys": config,
        "run.json: what trained it": record,
        "What evaluated it": environment,
    }
    blocks: list[Any] = [
        Folded(title, json.dumps(content, indent=2)) for title, content in texts.items() if content
    ]
    blocks.insert(0, Folded("Command that makes this report", command))
    return Section("origin", "How it was made", "", blocks)
