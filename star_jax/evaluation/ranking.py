"""A gallery ranked for each query by the rules of a protocol; galleries are sorted only here.

Evaluation, reports and search show and score the same rankings, and query expansion and re-ranking
find their neighbors here.
"""

import dataclasses
import functools
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int64, Shaped

from data_pipelines.schema import UNKNOWN
from star_jax.evaluation.retrieval import Labels, RetrievalResult, score_queries


@dataclasses.dataclass(frozen=True)
class Ranking:
    """The gallery ranked for each query of one direction; made by `protocols.rank` or a search.

    Attributes:
      queries: int64[Q], positions of the queries in their index, in their order.
      gallery: int64[G], positions of the gallery entries in theirs.
      similarity: float32[Q, G].
      labels: identities, and which entries are excluded for which query.
    """

    queries: Int[np.ndarray, " Q"]
    gallery: Int[np.ndarray, " G"]
    similarity: Float32[np.ndarray, "Q G"]
    labels: Labels

    @functools.cached_property
    def result(self) -> RetrievalResult:
        """The scores of the queries; raises an InputError if a similarity is NaN."""
        return score_queries(self.similarity, self.labels)

    def top(self, row: int, count: int) -> Int64[np.ndarray, " n"]:
        """Returns the most similar gallery entries of a query, best first.

        Entries of equal similarity are in the order of the gallery.

        Args:
          row: of the query.
          count: how many entries; fewer are returned if fewer are ranked.

        Returns:
          int64[n], columns of `similarity`.
        """
        _, removed = self.labels.of_queries(slice(row, row + 1)).removed()
        kept: np.ndarray = np.delete(np.arange(len(self.gallery)), removed)
        best: np.ndarray = kept[most_similar(self.similarity[row, kept][None], count)[0]]
        return best

    def among(self, rows: Int[np.ndarray, " q"], columns: Int[np.ndarray, " g"]) -> "Ranking":
        """Returns the ranking of some gallery entries for some queries, by the same rules."""
        return Ranking(
            self.queries[rows],
            self.gallery[columns],
            self.similarity[np.ix_(rows, columns)],
            self.labels.among(rows, columns),
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
    """The result for one query.

    Attributes:
      query: its position.
      matches: the most similar gallery entries, best first.
      first_match: rank of the first entry of the query's identity in the whole gallery, from 1;
        0 if the gallery has none, None if the query's identity is unknown.
    """

    query: int
    matches: list[Match]
    first_match: int | None


def is_known(identities: Shaped[np.ndarray, " N"]) -> Bool[np.ndarray, " N"]:
    """Returns which people are known: no others are scored, nor compared with each other."""
    known: np.ndarray = identities != UNKNOWN
    return known


def own_entries(
    queries: Int[np.ndarray, " Q"], gallery: Int[np.ndarray, " G"]
) -> Int64[np.ndarray, " Q"]:
    """Returns the gallery entry that is the query itself, -1 if there is none, by positions."""
    entries = np.full(max(queries.max(), gallery.max()) + 1, -1)
    entries[gallery] = np.arange(len(gallery))
    own: np.ndarray = entries[queries]
    return own


def most_similar(similarity: Float[np.ndarray, "n G"], count: int) -> Int64[np.ndarray, "n k"]:
    """Returns the columns of the `count` largest values of each row, in descending order.

    Equal values are in the order of their columns. All columns count if there are fewer.
    """
    count = min(count, similarity.shape[1])
    if not count:
        return np.zeros((len(similarity), 0), np.int64)
    last = np.partition(similarity, -count, axis=1)[:, -count, None]
    chosen = similarity >= last
    (tied,) = np.nonzero(chosen.sum(axis=1) > count)
    equal = similarity[tied] == last[tied]
    room = count - (similarity[tied] > last[tied]).sum(axis=1, keepdims=True)
    chosen[tied] &= ~equal | (np.cumsum(equal, axis=1) <= room)
    columns = np.nonzero(chosen)[1].reshape(len(similarity), count)
    values = np.take_along_axis(similarity, columns, axis=1)
    return np.take_along_axis(columns, np.argsort(-values, axis=1, kind="stable"), axis=1)
