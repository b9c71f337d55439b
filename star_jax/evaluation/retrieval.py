"""Retrieval metrics of person re-identification: CMC, mean average precision and mINP.

Uses only NumPy: the similarities are on the host when the gallery is ranked. The metrics depend on
the ranks of the matches alone, so gallery entries are not sorted: similarities are sorted by value,
which is much faster than sorting indices, and the few of the query's identity are looked up. The
entries that are shown, in order, come from `ranking.Ranking.top`.
"""

import concurrent.futures
import dataclasses
import functools
import math
import os
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from jaxtyping import Bool, Float64, Int, Int64

from data_pipelines.errors import InputError
from star_jax.trees import is_masked

_SIMILARITIES_PER_CHUNK = 2**20  # about 10 MB of working memory per thread


@dataclasses.dataclass(frozen=True)
class RetrievalResult:
    """Scores of one ranking task of Q queries, as fractions of one.

    Queries without a match are left out of all means.

    Attributes:
      first_match: int64[Q], rank of the first match, from 1; 0 without a match.
      average_precision: float64[Q], mean of the precisions at the query's matches; NaN without one.
      inverse_negative_penalty: float64[Q], the number of matches divided by the rank of the last
        one (Ye et al., arXiv 2001.04193); NaN without a match.
      removed: int64[Q], gallery entries that are excluded for a query, see `Labels`.
      num_gallery: gallery entries, G.
    """

    first_match: Int64[np.ndarray, " Q"]
    average_precision: Float64[np.ndarray, " Q"]
    inverse_negative_penalty: Float64[np.ndarray, " Q"]
    removed: Int64[np.ndarray, " Q"]
    num_gallery: int

    @property
    def matched(self) -> Bool[np.ndarray, " Q"]:
        """bool[Q], whether a query has a match."""
        return self.first_match > 0

    @property
    def num_queries(self) -> int:
        """Number of queries with a match."""
        return int(self.matched.sum())

    @property
    def num_unmatched(self) -> int:
        """Number of queries without a match."""
        return len(self.first_match) - self.num_queries

    @property
    def num_removed(self) -> int:
        """Number of removed gallery entries, summed over all queries."""
        return int(self.removed.sum())

    @functools.cached_property
    def cmc(self) -> Float64[np.ndarray, " G"]:
        """float64[G]; `cmc[k - 1]` is the share of queries with a match among the first k."""
        counts = np.bincount(self.first_match[self.matched] - 1, minlength=self.num_gallery)
        return np.cumsum(counts) / self.num_queries

    @property
    def mean_ap(self) -> float:
        """Mean average precision."""
        return float(self.average_precision[self.matched].mean())

    @property
    def mean_inp(self) -> float:
        """Mean inverse negative penalty."""
        return float(self.inverse_negative_penalty[self.matched].mean())

    def rank(self, k: int) -> float:
        """Returns the share of queries with a match among the first k; k beyond G counts as G."""
        if k < 1:
            raise InputError(f"ranks count from 1, found k = {k}")
        return float(self.cmc[min(k, self.num_gallery) - 1])

    def of_queries(self, chosen: Bool[np.ndarray, " Q"]) -> Self:
        """Returns the result for the chosen queries alone."""
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in _COLUMNS})


_COLUMNS = ("first_match", "average_precision", "inverse_negative_penalty", "removed")


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
      similarity: real numbers, [Q, G], larger is more alike.
      query_ids: [Q], identities: strings or integers.
      gallery_ids: [G], of the same type.
      query_cameras: [Q], given together with `gallery_cameras` or not at all.
      gallery_cameras: [G].

    Returns:
      The scores of each query and their means.

    Raises:
      InputError: the shapes do not match, an argument holds anything else (such as NaN or None
        among identities, identities of both types, complex numbers or masked arrays), a similarity
        is NaN, or no query has a match.
    """
    similarity = np.asarray(real_numbers("similarity", similarity))
    if similarity.dtype.kind not in "biu":
        similarity = similarity.astype(np.result_type(similarity, np.float32), copy=False)
    if similarity.ndim != 2 or 0 in similarity.shape:
        raise InputError(f"similarity must be [Q, G] and not empty, found {similarity.shape}")
    labels = number_labels(similarity.shape, query_ids, gallery_ids, query_cameras, gallery_cameras)
    return require_a_match(score_queries(similarity, labels))


class Labels(NamedTuple):
    """The identities in a ranking task, as integers, which avoids Q x G comparisons of strings.

    They say which gallery entries are excluded for a query: the query itself, and with a camera
    rule those of its identity and camera.

    Attributes:
      query_ids: int[Q], identities.
      by_identity: int[G], the gallery in the order of its identities.
      sorted_ids: int[G], the identities in this order.
      own: int[Q], the gallery entry that is the query itself; -1 if there is none.
      query_cameras: int[Q]; None without a camera rule.
      gallery_cameras: int[G]; None without a camera rule.
    """

    query_ids: Int[np.ndarray, " Q"]
    by_identity: Int[np.ndarray, " G"]
    sorted_ids: Int[np.ndarray, " G"]
    own: Int[np.ndarray, " Q"]
    query_cameras: Int[np.ndarray, " Q"] | None
    gallery_cameras: Int[np.ndarray, " G"] | None

    def of_queries(self, rows: slice) -> Self:
        """Returns the labels with these queries only."""
        cameras = None if self.query_cameras is None else self.query_cameras[rows]
        return self._replace(
            query_ids=self.query_ids[rows], own=self.own[rows], query_cameras=cameras
        )

    def among(self, rows: Int[np.ndarray, " q"], columns: Int[np.ndarray, " g"]) -> Self:
        """Returns the labels of some queries and some gallery entries."""
        places = np.full(len(self.sorted_ids) + 1, -1)
        places[columns] = np.arange(len(columns))  # the last one stays -1, for no entry
        chosen = places[self.by_identity] >= 0
        query_cameras, gallery_cameras = self.query_cameras, self.gallery_cameras
        return type(self)(
            query_ids=self.query_ids[rows],
            by_identity=places[self.by_identity[chosen]],
            sorted_ids=self.sorted_ids[chosen],
            own=places[self.own[rows]],
            query_cameras=None if query_cameras is None else query_cameras[rows],
            gallery_cameras=None if gallery_cameras is None else gallery_cameras[columns],
        )

    def of_same_identity(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Returns all pairs of a query and an entry of its identity, in order of the queries."""
        begin = np.searchsorted(self.sorted_ids, self.query_ids, side="left")
        counts = np.searchsorted(self.sorted_ids, self.query_ids, side="right") - begin
        query = np.repeat(np.arange(len(begin)), counts)
        return query, self.by_identity[begin[query] + _numbers_within(counts)]

    def without_part(
        self, query: Int[np.ndarray, " n"], entry: Int[np.ndarray, " n"]
    ) -> Bool[np.ndarray, " n"]:
        """Returns which entries are excluded, of pairs of a query and an entry of its identity."""
        without: np.ndarray = entry == self.own[query]
        if self.query_cameras is None or self.gallery_cameras is None:
            return without
        without |= self.query_cameras[query] == self.gallery_cameras[entry]
        return without

    def removed(self) -> tuple[Int[np.ndarray, " n"], Int[np.ndarray, " n"]]:
        """Returns all pairs of a query and an entry that is excluded, in order of the queries."""
        if self.query_cameras is None:
            query = np.flatnonzero(self.own >= 0)
            return query, self.own[query]
        query, entry = self.of_same_identity()
        removed = self.without_part(query, entry)
        return query[removed], entry[removed]


def number_labels(
    shape: tuple[int, int],
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    query_cameras: npt.ArrayLike | None = None,
    gallery_cameras: npt.ArrayLike | None = None,
    own: Int[np.ndarray, " Q"] | None = None,
) -> Labels:
    """Checks the labels of Q queries and G gallery entries, `shape`, and returns them as integers.

    Args:
      shape: of the similarities.
      query_ids: [Q], strings or integers.
      gallery_ids: [G].
      query_cameras: [Q]; None without a camera rule.
      gallery_cameras: [G]; likewise.
      own: int[Q], see `Labels`; None if no query is in the gallery.

    Raises:
      InputError: the shapes do not match, or labels are neither strings nor integers.
    """
    ids = _as_numbers(query_ids, gallery_ids, shape, ("query_ids", "gallery_ids"))
    if (query_cameras is None) != (gallery_cameras is None):
        raise InputError("pass the cameras of both queries and gallery, or of neither")
    cameras: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    if query_cameras is not None and gallery_cameras is not None:
        names = ("query_cameras", "gallery_cameras")
        cameras = _as_numbers(query_cameras, gallery_cameras, shape, names)
    own = np.full(shape[0], -1) if own is None else own
    by_identity = np.argsort(ids[1], kind="stable")
    return Labels(ids[0], by_identity, ids[1][by_identity], own, *cameras)


def concatenated(results: Sequence[RetrievalResult]) -> RetrievalResult:
    """Returns one result of consecutive queries that searched the same gallery."""
    columns = {
        name: np.concatenate([getattr(result, name) for result in results]) for name in _COLUMNS
    }
    return RetrievalResult(**columns, num_gallery=results[0].num_gallery)


def require_a_match(result: RetrievalResult) -> RetrievalResult:
    """Returns the result; raises an InputError if no query has a match."""
    if not result.num_queries:
        raise InputError(
            f"none of the {result.num_unmatched} queries has a match among the "
            f"{result.num_gallery} gallery entries ({result.num_removed} removed: queries "
            "themselves, or entries of their identity and camera)"
        )
    return result


def score_queries(similarity: np.ndarray, labels: Labels, first_query: int = 0) -> RetrievalResult:
    """Returns the scores of queries, in chunks on all cores.

    Args:
      similarity: float[Q, G].
      labels: of these Q queries and the gallery.
      first_query: number of the first query, for messages.

    Raises:
      InputError: a similarity is NaN.
    """
    rows_per_chunk = max(1, _SIMILARITIES_PER_CHUNK // similarity.shape[1])

    def score(start: int) -> RetrievalResult:
        rows = slice(start, start + rows_per_chunk)
        return _score_chunk(similarity[rows], labels.of_queries(rows), first_query + start)

    starts = range(0, max(1, len(similarity)), rows_per_chunk)
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:  # NumPy sorts without GIL
        results = list(pool.map(score, starts))
    return concatenated(results)


def _score_chunk(similarity: np.ndarray, labels: Labels, first_query: int) -> RetrievalResult:
    """Returns the scores of a few queries, as `score_queries` does."""
    num_queries, num_gallery = similarity.shape
    increasing = np.sort(similarity, axis=1)
    if np.isnan(increasing[:, -1]).any():  # NaN comes last
        row, column = np.argwhere(np.isnan(similarity))[0]
        raise InputError(
            f"similarity of query {first_query + row} and gallery entry {column} is NaN"
        )
    query, entry = labels.of_same_identity()
    rank = _ranks(similarity, increasing, query, entry)
    order = np.lexsort((rank, query))
    query, entry, rank = query[order], entry[order], rank[order]
    removed = labels.without_part(query, entry)
    num_removed = np.bincount(query[removed], minlength=num_queries)

    # Matches are few: the arrays below have one entry per match, by query and then by rank.
    hit_rank = (rank - _count_within(removed, query))[~removed]
    query = query[~removed]
    matches = np.bincount(query, minlength=num_queries)
    hit_number = 1 + _numbers_within(matches)
    first, last = hit_number == 1, hit_number == matches[query]
    first_match, last_match = np.zeros((2, num_queries), np.int64)
    first_match[query[first]] = hit_rank[first]
    last_match[query[last]] = hit_rank[last]
    precision_sum = np.bincount(query, hit_number / hit_rank, minlength=num_queries)
    with np.errstate(invalid="ignore"):  # 0 / 0 without a match
        return RetrievalResult(
            first_match=first_match,
            average_precision=precision_sum / matches,
            inverse_negative_penalty=matches / last_match,
            removed=num_removed,
            num_gallery=num_gallery,
        )


def _numbers_within(counts: np.ndarray) -> np.ndarray:
    """Returns 0, 1, ..., count - 1 for each of the counts, one after the other."""
    numbers: np.ndarray = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
    return numbers


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
    ranks: np.ndarray = num_gallery - not_larger + 1
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
    within: np.ndarray = counts - before
    return within


def real_numbers(name: str, values: Any) -> Any:
    """Returns an argument as an array; one of NumPy, of JAX or on disk as it is.

    Raises:
      InputError: it holds anything other than real numbers; names it.
    """
    _require_plain(name, values)
    if not isinstance(getattr(values, "dtype", None), np.dtype):
        values = _as_array(name, values)
    if not np.can_cast(values.dtype, np.longdouble):
        raise InputError(f"{name} is of the type {values.dtype}: use real numbers")
    return values


def _require_plain(name: str, values: Any) -> None:
    if is_masked(values):
        raise InputError(f"{name} is a masked array, or holds masked values: use a plain one")


def _as_array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:  # such as lists of several lengths
        raise InputError(f"{name} cannot be read as an array ({error})") from error


def _as_numbers(
    queries: npt.ArrayLike,
    gallery: npt.ArrayLike,
    shape: tuple[int, int],
    names: tuple[str, str],
) -> tuple[np.ndarray, np.ndarray]:
    """Maps identities or cameras to integers, equal ones to the same.

    They are compared as values of Python, exactly: NumPy would round integers to compare those of
    different types, and make strings of numbers to compare them with strings.
    """
    found = [
        _distinct(name, values, length, shape)
        for name, values, length in zip(names, (queries, gallery), shape, strict=True)
    ]
    kinds = {_kind(value) for values, _ in found for value in values}
    if len(kinds) > 1:
        raise InputError(
            f"{' and '.join(names)} hold {' and '.join(sorted(kinds))}: use strings or integers "
            "for all of them"
        )
    numbers: dict[Any, int] = {}
    first, second = (
        np.array([numbers.setdefault(value, len(numbers)) for value in values])[places]
        for values, places in found
    )
    return first, second


def _distinct(
    name: str, values: Any, length: int, shape: tuple[int, int]
) -> tuple[list[Any], np.ndarray]:
    """Returns the values of an argument as those of Python, and the place of each element.

    Raises:
      InputError: it is not of this length, or holds anything other than strings and finite numbers.
    """
    _require_plain(name, values)
    array = _as_array(name, values)
    if array.shape != (length,):
        raise InputError(
            f"{name} must be [{length}], since similarity is {shape}, found {array.shape}"
        )
    if not isinstance(values, list | tuple) and array.dtype.kind in "biufSU":
        distinct, places = np.unique(array, return_inverse=True)
        found = distinct.tolist()
    else:  # the array might have made strings of them, or rounded them
        elements = values if isinstance(values, list | tuple) else array.tolist()
        found = [value.item() if hasattr(value, "item") else value for value in elements]
        places = np.arange(length)
    for value in found:
        if not _kind(value):
            raise InputError(f"{name} holds {value!r:.80}: use strings or integers")
    return found, places


def _kind(value: Any) -> str:
    """Returns the kind of a value that can be an identity; "" for any other."""
    if isinstance(value, float):
        return "numbers" if math.isfinite(value) else ""
    return {int: "numbers", bool: "numbers", str: "strings", bytes: "bytes"}.get(type(value), "")
