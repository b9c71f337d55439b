"""Search among embedded tracklets: the most similar gallery entries of each query."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data_pipelines.errors import InputError
from data_pipelines.io.tables import aligned
from data_pipelines.io.terminal import printable
from data_pipelines.schema import UNKNOWN
from star_jax.evaluation.embeddings import Embeddings, csv_file

_HEADER = (
    *("query", "query_identity", "query_camera", "query_modality", "query_first_frame"),
    *("rank", "score", "identity", "camera", "modality", "first_frame", "same_identity"),
)


class Match(NamedTuple):
    """One tracklet of the gallery that was found.

    Attributes:
      position: its index in the gallery.
      score: cosine similarity of its embedding and the query's.
      same: whether the identities are the same; None if one of them is unknown.
    """

    position: int
    score: float
    same: bool | None


class Result(NamedTuple):
    """The result for one query: its position, and the matches, best first."""

    query: int
    matches: list[Match]


def search(
    query: Embeddings,
    gallery: Embeddings,
    *,
    query_modality: str = "any",
    gallery_modality: str = "any",
    top: int = 10,
    max_queries: int = 20,
) -> list[Result]:
    """Returns the most similar tracklets of the gallery for each query.

    A tracklet never matches itself if both sets are the same packed split. Matches of equal score
    are in the order of the gallery.

    Args:
      query: embeddings of the queries.
      gallery: embeddings of the gallery.
      query_modality: "visible", "infrared" or "any".
      gallery_modality: likewise.
      top: maximum number of matches per query.
      max_queries: maximum number of queries; the first ones are used.

    Raises:
      InputError: the embeddings come from different networks, or none has the modality.
    """
    require_same_network(query, gallery)
    queries = _of_modality(query, query_modality, "queries")[:max_queries]
    candidates = _of_modality(gallery, gallery_modality, "gallery")
    scores = query.embeddings[queries] @ gallery.embeddings[candidates].T
    same_split = (query.dataset_fingerprint, query.split) == (
        gallery.dataset_fingerprint,
        gallery.split,
    )
    results = []
    for position, row in zip(queries.tolist(), scores, strict=True):
        matches: list[Match] = []
        for place in np.argsort(-row, kind="stable").tolist():
            found = int(candidates[place])
            if len(matches) == top:
                break
            if not (same_split and found == position):
                names = {str(query.identities[position]), str(gallery.identities[found])}
                same = None if UNKNOWN in names else len(names) == 1
                matches.append(Match(found, float(row[place]), same))
        results.append(Result(position, matches))
    return results


def require_same_network(query: Embeddings, gallery: Embeddings) -> None:
    """Raises an InputError with the reason if embeddings cannot be compared."""
    widths = query.embeddings.shape[1], gallery.embeddings.shape[1]
    reason = ""
    if widths[0] != widths[1]:
        reason = f"they have {widths[0]} and {widths[1]} numbers"
    elif query.config_hash != gallery.config_hash:
        reason = "the configs of the checkpoints differ"
    elif query.step != gallery.step:
        reason = f"the checkpoints have steps {query.step} and {gallery.step}"
    if reason:
        raise InputError(
            f"the embeddings of queries and gallery come from different networks: {reason}; embed "
            "both with the same checkpoint"
        )


def _of_modality(embeddings: Embeddings, modality: str, role: str) -> np.ndarray:
    chosen = np.flatnonzero((embeddings.modalities == modality) | (modality == "any"))
    if not chosen.size:
        raise InputError(
            f"{role}: none of the {len(embeddings.rows)} tracklets of {embeddings.dataset_dir} is "
            f"{modality}"
        )
    return chosen


def format_result(query: Embeddings, gallery: Embeddings, result: Result) -> str:
    """Returns a query and its matches as text for a terminal."""
    rows = [("rank", "score", "identity", "camera", "modality", "first frame")]
    for rank, match in enumerate(result.matches, start=1):
        identity, camera, modality, frame = facts_of(gallery, match.position)
        rows.append((str(rank), f"{match.score:.3f}", identity, camera, modality, frame))
    identity, camera, modality, frame = facts_of(query, result.query)
    title = f"query {identity}, camera {camera}, {modality}, {frame}"
    return f"{printable(title)}\n{aligned(rows)}"


def matches_csv(query: Embeddings, gallery: Embeddings, results: Sequence[Result]) -> bytes:
    """Returns all matches as a CSV file, one row per match."""
    rows: list[tuple] = [_HEADER]
    for result in results:
        own = (result.query, *facts_of(query, result.query))
        for rank, match in enumerate(result.matches, start=1):
            same = {True: "yes", False: "no", None: ""}[match.same]
            score = round(match.score, 6)
            rows.append((*own, rank, score, *facts_of(gallery, match.position), same))
    return csv_file(rows)


def facts_of(embeddings: Embeddings, position: int) -> tuple[str, str, str, str]:
    """Returns identity, camera, modality and first frame of a tracklet as text."""
    columns = (
        embeddings.identities,
        embeddings.cameras,
        embeddings.modalities,
        embeddings.first_frames,
    )
    identity, camera, modality, frame = (str(column[position]) for column in columns)
    return identity, camera, modality, frame
