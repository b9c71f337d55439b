"""Search among embedded tracklets: the most similar gallery entries of each query."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.io.tables import aligned, csv_file
from data_pipelines.schema import MODALITIES
from star_jax.embedding.embeddings import Embeddings
from star_jax.evaluation.ranking import Match, Ranking, Result, is_known, own_entries
from star_jax.evaluation.retrieval import number_labels
from star_jax.evaluation.scores import METRIC_NAMES, summary
from star_jax.evaluation.similarity import dot_product

METRICS = ("rank1", "rank5", "rank10", "map")  # those of `scores.METRICS` that a search shows
_HEADER = (
    *("query", "query_identity", "query_camera", "query_modality", "query_first_frame"),
    *("first_true_match", "rank", "score", "identity", "camera", "modality", "first_frame"),
    "same_identity",
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search of Q queries among G gallery entries has found.

    Attributes:
      query: embeddings of the queries.
      gallery: embeddings of the gallery.
      modalities: of queries and gallery entries: "visible", "infrared" or "any".
      ranking: by cosine similarities, also of people of unknown identity.
      results: of each query, in this order.
      scores: `scores.summary` of the queries of known identity that have a match, among gallery
        entries of known identity; None if there is no such query.
    """

    query: Embeddings
    gallery: Embeddings
    modalities: tuple[str, str]
    ranking: Ranking
    results: Sequence[Result]
    scores: Mapping[str, Any] | None


def search(
    query: Embeddings,
    gallery: Embeddings,
    *,
    query_modality: str = "infrared",
    gallery_modality: str = "visible",
    top: int = 10,
) -> Found:
    """Returns the most similar tracklets of the gallery for each query, and the search's scores.

    A tracklet never matches itself if both sets are the same packed split. Matches of equal score
    are in the order of the gallery.

    Args:
      query: embeddings of the queries.
      gallery: embeddings of the gallery.
      query_modality: "visible", "infrared" or "any".
      gallery_modality: likewise.
      top: maximum number of matches per query.

    Raises:
      InputError: the embeddings were not made in the same way, or none has the modality.
    """
    require_comparable(query, gallery)
    queries = _of_modality(query, query_modality, "query")
    entries = _of_modality(gallery, gallery_modality, "gallery")
    ids = query.index.identities[queries], gallery.index.identities[entries]
    similarity = dot_product(query.vectors[queries], gallery.vectors[entries])
    own = own_entries(queries, entries) if same_split(query, gallery) else None
    labels = number_labels(similarity.shape, *ids, own=own)
    ranking = Ranking(queries, entries, similarity, labels)

    known = is_known(ids[0]), is_known(ids[1])
    rows, columns = np.flatnonzero(known[0]), np.flatnonzero(known[1])
    in_whole_gallery = ranking.among(rows, np.arange(len(entries))).result.first_match
    first_matches = dict(zip(rows.tolist(), in_whole_gallery.tolist(), strict=True))
    results = []
    for row, position in enumerate(queries.tolist()):
        matches = []
        for place in ranking.top(row, top).tolist():
            both_known = known[0][row] and known[1][place]
            same = bool(ids[0][row] == ids[1][place]) if both_known else None
            matches.append(Match(int(entries[place]), float(similarity[row, place]), same))
        results.append(Result(position, matches, first_matches.get(row)))

    scores = None
    if any(result.first_match for result in results):
        scores = summary(ranking.among(rows, columns).result, ids[0][rows])
    return Found(query, gallery, (query_modality, gallery_modality), ranking, results, scores)


def same_split(query: Embeddings, gallery: Embeddings) -> bool:
    """Returns whether queries and gallery are the same tracklets, of one split of a dataset."""
    first, second = query.provenance, gallery.provenance
    return all(
        getattr(first, name) == getattr(second, name) for name in ("dataset", "split", "held_out")
    )


def require_comparable(query: Embeddings, gallery: Embeddings) -> None:
    """Raises an InputError with the reason if the embeddings were not made in the same way."""
    differences = query.provenance.differences(gallery.provenance)
    widths = query.vectors.shape[1], gallery.vectors.shape[1]
    if widths[0] != widths[1]:
        differences.append("they have {} and {} numbers".format(*widths))
    if differences:
        raise InputError(
            "the embeddings of queries and gallery cannot be compared: "
            f"{'; '.join(differences)}; embed both with the same checkpoint and flags"
        )


def _of_modality(embeddings: Embeddings, modality: str, role: str) -> np.ndarray:
    numbers = embeddings.index.modalities
    wanted = numbers if modality == "any" else MODALITIES.index(modality)
    chosen = np.flatnonzero(numbers == wanted)
    if not chosen.size:
        raise InputError(
            f"{role}: none of the {len(numbers)} tracklets of {embeddings.dataset_dir} is "
            f"{modality}; choose another --{role}_modality, or any"
        )
    return chosen


def format_results(found: Found, results: Sequence[Result]) -> str:
    """Returns a table for a terminal, one line for each query."""
    rows = [
        ("query", "camera", "first frame", "first true match", "best match", "camera", "score"),
    ]
    for result in results:
        identity, camera, _, frame = facts_of(found.query, result.query)
        best: tuple[str, str, str] = ("", "", "")
        for match in result.matches[:1]:
            other, its_camera, _, _ = facts_of(found.gallery, match.position)
            best = (other, its_camera, f"{match.score:.3f}")
        rows.append((identity, camera, frame, first_match_as_text(result), *best))
    return aligned(rows)


def first_match_as_text(result: Result) -> str:
    """Returns the rank of a query's first true match, or why there is none."""
    if result.first_match is None:
        return "unknown"
    return str(result.first_match or "none")


def format_scores(found: Found) -> str:
    """Returns the scores in one line."""
    if found.scores is None:
        return "no scores: no query of a known identity has a true match in the gallery"
    shown = (f"{METRIC_NAMES[metric]} {found.scores[metric]:.1f} %" for metric in METRICS)
    return ", ".join(shown)


def format_counts(found: Found) -> str:
    """Returns as text what was searched, and how many queries are left out of the scores."""
    kinds = ["" if modality == "any" else f"{modality} " for modality in found.modalities]
    queries, entries = found.ranking.similarity.shape
    text = f"{_count(queries, f'{kinds[0]}query', f'{kinds[0]}queries')} searched "
    text += _count(entries, f"{kinds[1]}tracklet", f"{kinds[1]}tracklets")
    firsts = [result.first_match for result in found.results]
    left_out = {"without a true match": firsts.count(0), "of unknown identity": firsts.count(None)}
    reasons = [f"{count:,} {reason}" for reason, count in left_out.items() if count]
    return text + (f"; left out of the scores: {' and '.join(reasons)}" if reasons else "")


def _count(number: int, one: str, many: str) -> str:
    return f"{number:,} {one if number == 1 else many}"


def matches_csv(found: Found) -> bytes:
    """Returns the matches of all queries as a CSV file, one row per match."""
    rows: list[tuple[Any, ...]] = [_HEADER]
    for result in found.results:
        own = (result.query, *facts_of(found.query, result.query), first_match_as_text(result))
        for rank, match in enumerate(result.matches, start=1):
            same = {True: "yes", False: "no", None: ""}[match.same]
            score = round(match.score, 6)
            rows.append((*own, rank, score, *facts_of(found.gallery, match.position), same))
    return csv_file(rows)


def facts_of(embeddings: Embeddings, position: int) -> tuple[str, str, str, str]:
    """Returns identity, camera, modality and first frame of a tracklet as text."""
    index = embeddings.index
    return (
        str(index.identities[position]),
        str(index.camera_names[position]),
        MODALITIES[index.modalities[position]],
        str(embeddings.first_frames[position]),
    )
