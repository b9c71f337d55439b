"""How embeddings are compared: dot products, query expansion, k-reciprocal re-ranking.

The published numbers of this field use dot products; the other two change the ranking with what is
known of the whole test set, so reports name them. A query that is in the gallery, too, is not its
own neighbor. Entries of its identity and camera, which a camera rule removes from its ranking, may
be neighbors: a method knows no identities.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from jaxtyping import Float32, Int

from data_pipelines.errors import InputError
from star_jax.evaluation.ranking import most_similar

# Of queries float32[Q, C], gallery float32[G, C] and own entries int64[Q] (see `retrieval.Labels`).
Similarity = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
NEIGHBORS, EXPANDED, JACCARD_SHARE = 20, 6, 0.7  # k1, k2 and 1 - lambda of the paper
_BLOCK = 2**24  # similarities sorted at a time, 64 MB


def dot_product(
    queries: Float32[np.ndarray, "Q C"], gallery: Float32[np.ndarray, "G C"]
) -> Float32[np.ndarray, "Q G"]:
    """Returns the dot products, in float32."""
    products: np.ndarray = queries @ gallery.T
    return products


def make_similarity(*, expansion: int = 0, rerank: bool = False) -> Similarity:
    """Returns the function that compares queries and gallery.

    Args:
      expansion: how many gallery entries are averaged with a query before it searches; 0 for none.
      rerank: whether k-reciprocal neighbors re-rank the gallery, after the expansion.

    Raises:
      InputError: the expansion is negative.
    """
    if expansion < 0:
        raise InputError(f"query expansion by {expansion} entries: use an integer of 0 or more")

    def compare(queries: np.ndarray, gallery: np.ndarray, own: np.ndarray) -> np.ndarray:
        if expansion:
            queries = expand_queries(queries, gallery, expansion, own)
        return k_reciprocal(queries, gallery, own) if rerank else dot_product(queries, gallery)

    return compare


def expand_queries(
    queries: Float32[np.ndarray, "Q C"],
    gallery: Float32[np.ndarray, "G C"],
    count: int,
    own: Int[np.ndarray, " Q"],
) -> Float32[np.ndarray, "Q C"]:
    """Returns the mean of each query and its `count` most similar gallery entries, of length 1.

    Average query expansion (Chum et al., Total Recall, ICCV 2007). All entries count if there are
    fewer, and a query's own entry never does.

    Args:
      queries: float32[Q, C], rows of length 1.
      gallery: float32[G, C], rows of length 1.
      count: how many entries.
      own: int64[Q], the gallery entry that is the query itself; -1 if there is none.
    """
    expanded = queries.copy()
    for rows in _blocks(len(queries), len(gallery)):
        similarity = dot_product(queries[rows], gallery)
        (both,) = np.nonzero(own[rows] >= 0)
        similarity[both, own[rows][both]] = -np.inf
        nearest = most_similar(similarity, count)
        entries = gallery[nearest]
        entries[nearest == own[rows, None]] = 0
        expanded[rows] += entries.sum(axis=1)
    lengths = np.linalg.norm(expanded, axis=1, keepdims=True)
    expanded /= np.maximum(lengths, np.finfo(np.float32).tiny)  # opposite vectors cancel
    return expanded


def k_reciprocal(
    queries: Float32[np.ndarray, "Q C"],
    gallery: Float32[np.ndarray, "G C"],
    own: Int[np.ndarray, " Q"],
    *,
    k1: int = NEIGHBORS,
    k2: int = EXPANDED,
    jaccard_share: float = JACCARD_SHARE,
) -> Float32[np.ndarray, "Q G"]:
    """Returns similarities re-ranked by k-reciprocal neighbors (Zhong et al., CVPR 2017).

    Each vector, query or gallery, is described by weights over its k1-reciprocal neighbors, which
    are extended by those of neighbors that share two thirds of theirs; the weights are averaged
    over the k2 nearest. The distance is `jaccard_share` times the Jaccard distance of the weights
    plus the rest times the squared Euclidean distance, divided by the largest of its row.

    A tracklet that is both query and gallery entry is one vector. If the query was expanded, its
    own neighbors are those of the expanded vector, and to others it is what it was.

    Args:
      queries: float32[Q, C], rows of length 1.
      gallery: float32[G, C], rows of length 1.
      own: int64[Q], the gallery entry that is the query itself; -1 if there is none.
      k1: neighbors of a vector; the paper's 20 by default.
      k2: vectors whose weights are averaged; the paper's 6 by default.
      jaccard_share: 1 - lambda of the paper, 0.7 by default.

    Returns:
      float32[Q, G], 1 minus the distance.
    """
    vectors = np.concatenate([queries, gallery])
    total = len(vectors)
    itself = np.arange(total)  # the vector that stands for each one among the neighbors
    itself[: len(queries)] = np.where(own < 0, itself[: len(queries)], len(queries) + own)
    candidates = np.unique(itself)
    pool = vectors[candidates]
    k1, k2 = min(k1, len(candidates) - 1), min(k2, len(candidates))
    nearest = np.empty((total, max(k1 + 1, k2)), np.int64)  # of a vector, first of all itself
    largest = np.empty(total, np.float32)
    for rows in _blocks(total, len(candidates)):
        similarity = dot_product(vectors[rows], pool)
        largest[rows] = _squared_distance(similarity.min(axis=1))
        places = np.searchsorted(candidates, itself[rows])
        similarity[np.arange(len(similarity)), places] = np.inf
        nearest[rows] = candidates[most_similar(similarity, nearest.shape[1])]
    largest = np.maximum(largest, np.finfo(np.float32).tiny)  # all vectors may be the same

    weights = _reciprocal_weights(vectors, nearest[:, : k1 + 1], largest)
    averaged = weights
    if k2 > 1:
        ones = np.full((total, k2), 1 / k2, np.float32)
        rows_to_average = np.column_stack([np.arange(total), nearest[:, 1:k2]])
        averaged = _sparse(rows_to_average, ones) @ weights

    # Every row of the weights sums to 1, so the Jaccard distance follows from the sum of minima.
    result = np.empty((len(queries), len(gallery)), np.float32)
    by_neighbor = averaged[len(queries) :].tocsc()
    of_queries = averaged[: len(queries)]
    for row in range(len(queries)):
        minima = np.zeros(len(gallery), np.float32)
        begin, end = of_queries.indptr[row : row + 2]
        for neighbor, weight in zip(
            of_queries.indices[begin:end], of_queries.data[begin:end], strict=True
        ):
            first, last = by_neighbor.indptr[neighbor : neighbor + 2]
            entries = by_neighbor.indices[first:last]
            minima[entries] += np.minimum(weight, by_neighbor.data[first:last])
        result[row] = 1 - jaccard_share * (1 - minima / (2 - minima))
    for rows in _blocks(len(queries), len(gallery)):
        distance = _squared_distance(dot_product(queries[rows], gallery))
        result[rows] -= (1 - jaccard_share) * distance / largest[rows, None]
    return result


def _reciprocal_weights(
    vectors: np.ndarray, nearest: np.ndarray, largest: np.ndarray
) -> scipy.sparse.csr_array:
    """Returns the weights of each vector over its extended k-reciprocal neighbors, sums of 1."""
    total, k1 = len(vectors), nearest.shape[1] - 1
    half = round(k1 / 2)
    own = _reciprocal(nearest)
    of_half = _reciprocal(nearest[:, : half + 1])
    indices, values = [], []
    for vector in range(total):
        extended = [own[vector]]
        for candidate in own[vector][1:]:  # what is near to the vector itself is among its own
            others = of_half[candidate]
            if np.isin(others, own[vector]).sum() > 2 / 3 * len(others):
                extended.append(others)
        chosen = np.unique(np.concatenate(extended))
        distance = _squared_distance(vectors[chosen] @ vectors[vector]) / largest[vector]
        distance[chosen == nearest[vector, 0]] = 0
        weight = np.exp(-distance)
        indices.append(chosen)
        values.append((weight / weight.sum()).astype(np.float32))
    starts = np.cumsum([0, *map(len, indices)])
    return scipy.sparse.csr_array(
        (np.concatenate(values), np.concatenate(indices), starts), shape=(total, total)
    )


def _reciprocal(nearest: np.ndarray) -> list[np.ndarray]:
    """Returns the neighbors of each vector that have it among their own, nearest first."""
    return [row[(nearest[row] == row[0]).any(axis=1)] for row in nearest]


def _sparse(indices: np.ndarray, values: np.ndarray) -> scipy.sparse.csr_array:
    """Returns a square matrix from the columns and values of its rows, int and float[n, k]."""
    total, count = indices.shape
    starts = np.arange(0, total * count + 1, count)
    return scipy.sparse.csr_array((values.ravel(), indices.ravel(), starts), shape=(total, total))


def _squared_distance(similarity: np.ndarray) -> np.ndarray:
    """Returns the squared Euclidean distances of vectors of length 1 from their dot products."""
    distances: np.ndarray = np.maximum(2 - 2 * similarity, 0)
    return distances


def _blocks(rows: int, columns: int) -> list[slice]:
    """Returns slices of rows whose matrices have at most `_BLOCK` numbers."""
    step = max(1, _BLOCK // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
