"""Retrieval metrics of person re-identification: CMC, mean average precision and mINP.

Uses only NumPy: the embeddings are on the host when the gallery is ranked. The metrics depend on
the ranks of the matches alone, so no gallery is put in order: similarities are sorted by value,
which is much faster than sorting indices, and the few of the query's identity are looked up.
"""

import dataclasses

import numpy as np
import numpy.typing as npt
from jaxtyping import Float64

from data_pipelines.errors import InputError

_SIMILARITIES_PER_CHUNK = 2**20  # about 10 MB of working memory


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """Scores of one ranking task, as fractions of one.

    Attributes:
      cmc: float64[G]; `cmc[k - 1]` is the share of the evaluated queries whose first match is among
        the first k gallery entries.
      mean_ap: mean over queries of the average precision, the mean of the precisions at matches.
      mean_inp: mean over queries of the inverse negative penalty, the number of matches divided by
        the rank of the last one (Ye et al., arXiv 2001.04193).
      num_queries: evaluated queries, those with at least one match.
      num_gallery: gallery entries, G.
      num_unmatched: queries without a match, left out of the means.
      num_removed: gallery entries removed for a query of the same identity and camera, summed over
        all queries.
    """

    cmc: Float64[np.ndarray, " G"]
    mean_ap: float
    mean_inp: float
    num_queries: int
    num_gallery: int
    num_unmatched: int
    num_removed: int

    def rank(self, k: int) -> float:
        """Returns the share of queries with a match among the first k; k beyond G counts as G."""
        if k < 1:
            raise InputError(f"ranks count from 1, found k = {k}")
        return float(self.cmc[min(k, self.num_gallery) - 1])


def evaluate_retrieval(
    similarity: npt.ArrayLike,
    *,
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    query_cameras: npt.ArrayLike | None = None,
    gallery_cameras: npt.ArrayLike | None = None,
) -> RetrievalResult:
    """Ranks the gallery for every query and scores the rankings.

    Gallery entries of the query's identity *and* camera are removed for that query; without cameras
    none are. Entries of equal similarity keep their order in the gallery.

    Args:
      similarity: float[Q, G], larger is more alike.
      query_ids: [Q], identities: strings or integers.
      gallery_ids: [G].
      query_cameras: [Q], given together with `gallery_cameras` or not at all.
      gallery_cameras: [G].

    Returns:
      The scores over the queries that have a match.

    Raises:
      InputError: the shapes do not match, a similarity is NaN, or no query has a match.
    """
    similarity = np.asarray(similarity)
    similarity = similarity.astype(np.result_type(similarity, np.float32), copy=False)
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise InputError(f"similarity must be [Q, G] and not empty, found {similarity.shape}")
    num_queries, num_gallery = similarity.shape
    query_ids, gallery_ids = _as_numbers(
        query_ids, gallery_ids, similarity.shape, ("query_ids", "gallery_ids")
    )
    if (query_cameras is None) != (gallery_cameras is None):
        raise InputError("give the cameras of both queries and gallery, or of neither")
    if query_cameras is None or gallery_cameras is None:
        query_cameras, gallery_cameras = np.zeros(num_queries), np.ones(num_gallery)  # all differ
    query_cameras, gallery_cameras = _as_numbers(
        query_cameras, gallery_cameras, similarity.shape, ("query_cameras", "gallery_cameras")
    )

    num_matches = np.zeros(num_queries, np.int64)
    first_match = np.zeros(num_queries, np.int64)  # rank, from 1; 0 without a match
    last_match = np.zeros(num_queries, np.int64)
    precision_sum = np.zeros(num_queries)
    num_removed = 0
    by_identity = np.argsort(gallery_ids, kind="stable")
    rows_per_chunk = max(1, _SIMILARITIES_PER_CHUNK // num_gallery)
    for start in range(0, num_queries, rows_per_chunk):
        rows = slice(start, start + rows_per_chunk)
        increasing = np.sort(similarity[rows], axis=1)
        if np.isnan(increasing[:, -1]).any():  # NaN comes last
            row, column = np.argwhere(np.isnan(similarity[rows]))[0]
            raise InputError(f"similarity of query {start + row} and gallery entry {column} is NaN")
        query, entry = _entries_of_identity(query_ids[rows], gallery_ids, by_identity)
        rank = _ranks(similarity[rows], increasing, query, entry)
        order = np.lexsort((rank, query))
        query, entry, rank = query[order], entry[order], rank[order]
        removed = query_cameras[rows][query] == gallery_cameras[entry]
        num_removed += int(removed.sum())

        # Matches are few: the arrays below have one entry per match, by query and then by rank.
        hit_rank = (rank - _count_within(removed, query))[~removed]
        query = query[~removed]
        matches = np.bincount(query, minlength=len(similarity[rows]))
        hit_number = 1 + np.arange(len(query)) - (np.cumsum(matches) - matches)[query]
        first, last = hit_number == 1, hit_number == matches[query]
        num_matches[rows] = matches
        first_match[rows][query[first]] = hit_rank[first]
        last_match[rows][query[last]] = hit_rank[last]
        precision_sum[rows] = np.bincount(query, hit_number / hit_rank, minlength=len(matches))

    matched = num_matches > 0
    if not matched.any():
        raise InputError(
            f"none of the {num_queries} queries has a match among the {num_gallery} gallery entries"
            f" ({num_removed} removed, which share the query's identity and camera)"
        )
    first_matches = np.bincount(first_match[matched] - 1, minlength=num_gallery)
    return RetrievalResult(
        cmc=np.cumsum(first_matches) / matched.sum(),
        mean_ap=float((precision_sum[matched] / num_matches[matched]).mean()),
        mean_inp=float((num_matches[matched] / last_match[matched]).mean()),
        num_queries=int(matched.sum()),
        num_gallery=num_gallery,
        num_unmatched=int((~matched).sum()),
        num_removed=num_removed,
    )


def _entries_of_identity(
    query_ids: np.ndarray, gallery_ids: np.ndarray, by_identity: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns all pairs of a query and a gallery entry of its identity, in order of the queries.

    Args:
      query_ids: int[q].
      gallery_ids: int[G].
      by_identity: int[G], sorts `gallery_ids`.
    """
    ordered = gallery_ids[by_identity]
    begin = np.searchsorted(ordered, query_ids, side="left")
    counts = np.searchsorted(ordered, query_ids, side="right") - begin
    query = np.repeat(np.arange(len(query_ids)), counts)
    number = np.arange(len(query)) - (np.cumsum(counts) - counts)[query]
    return query, by_identity[begin[query] + number]


def _ranks(
    similarity: np.ndarray, increasing: np.ndarray, query: np.ndarray, entry: np.ndarray
) -> np.ndarray:
    """Returns the rank of each pair's entry in the whole gallery of its query, from 1.

    Entries of equal similarity keep their order in the gallery.

    Args:
      similarity: float[q, G].
      increasing: the same with sorted rows.
      query: int[n], rows of `similarity`.
      entry: int[n], columns.
    """
    num_gallery = similarity.shape[1]
    values = similarity[query, entry]
    # Binary search for all pairs at once: how many similarities of the row are not larger.
    row = query * num_gallery
    not_larger = np.zeros(len(query), np.int64)
    for bit in reversed(range(num_gallery.bit_length())):
        more = not_larger + (1 << bit)
        found = increasing.take(row + np.minimum(more, num_gallery) - 1)
        not_larger = np.where((more <= num_gallery) & (found <= values), more, not_larger)
    ranks = num_gallery - not_larger + 1
    tied = np.flatnonzero(
        (not_larger > 1) & (increasing.take(row + np.maximum(not_larger, 2) - 2) == values)
    )
    pairs_per_chunk = max(1, _SIMILARITIES_PER_CHUNK // num_gallery)
    for start in range(0, len(tied), pairs_per_chunk):
        pairs = tied[start : start + pairs_per_chunk]
        equal = similarity[query[pairs]] == values[pairs, None]
        ranks[pairs] += (equal & (np.arange(num_gallery) < entry[pairs, None])).sum(axis=1)
    return ranks


def _count_within(marked: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Returns how many entries up to each one, itself included, are marked within its query.

    Args:
      marked: bool[n].
      query: int[n], not decreasing.
    """
    counts = np.cumsum(marked)
    before = np.concatenate([[0], counts])[np.searchsorted(query, query, side="left")]
    return counts - before


def _as_numbers(
    queries: npt.ArrayLike,
    gallery: npt.ArrayLike,
    shape: tuple[int, int],
    names: tuple[str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """Maps identities or cameras to integers, which avoids Q x G comparisons of strings."""
    queries, gallery = np.asarray(queries), np.asarray(gallery)
    for name, values, length in zip(names, (queries, gallery), shape, strict=True):
        if values.shape != (length,):
            raise InputError(
                f"{name} must be [{length}], since similarity is {shape}, found {values.shape}"
            )
    _, numbers = np.unique(np.concatenate([queries, gallery]), return_inverse=True)
    return numbers[: len(queries)], numbers[len(queries) :]
