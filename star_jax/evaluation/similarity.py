"""How embeddings are compared: dot products, query expansion, k-reciprocal re-ranking.

The published numbers of this field use dot products; the other two change the ranking with what is
known of the whole test set, so reports name them.
"""

from collections.abc import Callable

import numpy as np
import scipy.sparse
from jaxtyping import Float32

from data_pipelines.errors import InputError

Similarity = Callable[[np.ndarray, np.ndarray], np.ndarray]  # of queries and gallery
NEIGHBORS, EXPANDED, JACCARD_SHARE = 20, 6, 0.7  # k1, k2 and 1 - lambda of the paper
_BLOCK = 2**24  # similarities sorted at a time, 64 MB


def dot_product(
    queries: Float32[np.ndarray, "Q C"], gallery: Float32[np.ndarray, "G C"]
) -> Float32[np.ndarray, "Q G"]:
    """Returns the dot products, in float32."""
    return queries @ gallery.T


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

    def compare(queries: np.ndarray, gallery: np.ndarray) -> np.ndarray:
        if expansion:
            queries = expand_queries(queries, gallery, expansion)
        return k_reciprocal(queries, gallery) if rerank else dot_product(queries, gallery)

    return compare


def expand_queries(
    queries: Float32[np.ndarray, "Q C"], gallery: Float32[np.ndarray, "G C"], count: int
) -> Float32[np.ndarray, "Q C"]:
    """Returns the mean of each query and its `count` most similar gallery entries, of length 1.

    Average query expansion (Chum et al., Total Recall, ICCV 2007). All entries count if there are
    fewer.
    """
    expanded = queries.copy()
    for rows in _blocks(len(queries), len(gallery)):
        nearest = _most_similar(dot_product(queries[rows], gallery), count)
        expanded[rows] += gallery[nearest].sum(axis=1)
    return expanded / np.linalg.norm(expanded, axis=1, keepdims=True)


def k_reciprocal(
    queries: Float32[np.ndarray, "Q C"],
    gallery: Float32[np.ndarray, "G C"],
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

    Args:
      queries: float32[Q, C], rows of length 1.
      gallery: float32[G, C], rows of length 1.
      k1: neighbors of a vector; the paper's 20 by default.
      k2: vectors whose weights are averaged; the paper's 6 by default.
      jaccard_share: 1 - lambda of the paper, 0.7 by default.

    Returns:
      float32[Q, G], 1 minus the distance.
    """
    vectors = np.concatenate([queries, gallery])
    total = len(vectors)
    k1, k2 = min(k1, total - 1), min(k2, total)
    nearest = np.empty((total, max(k1 + 1, k2)), np.int64)  # of a vector, itself included
    largest = np.empty(total, np.float32)
    for rows in _blocks(total, total):
        similarity = dot_product(vectors[rows], vectors)
        largest[rows] = _squared_distance(similarity.min(axis=1))
        nearest[rows] = _most_similar(similarity, nearest.shape[1])

    weights = _reciprocal_weights(vectors, nearest[:, : k1 + 1], largest)
    if k2 > 1:
        ones = np.full((total, k2), 1 / k2, np.float32)
        averaged = _sparse(nearest[:, :k2], ones) @ weights
    else:
        averaged = weights

    # Every row of the weights sums to 1, so the Jaccard distance follows from the sum of minima.
    result = np.empty((len(queries), len(gallery)), np.float32)
    by_neighbor = averaged[len(queries) :].tocsc()
    own = averaged[: len(queries)]
    for row in range(len(queries)):
        minima = np.zeros(len(gallery), np.float32)
        begin, end = own.indptr[row : row + 2]
        for neighbor, weight in zip(own.indices[begin:end], own.data[begin:end], strict=True):
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
        for candidate in own[vector]:
            others = of_half[candidate]
            if np.isin(others, own[vector]).sum() > 2 / 3 * len(others):
                extended.append(others)
        chosen = np.unique(np.concatenate(extended))
        distance = _squared_distance(vectors[chosen] @ vectors[vector]) / largest[vector]
        weight = np.exp(-distance)
        indices.append(chosen)
        values.append((weight / weight.sum()).astype(np.float32))
    starts = np.cumsum([0, *map(len, indices)])
    return scipy.sparse.csr_array(
        (np.concatenate(values), np.concatenate(indices), starts), shape=(total, total)
    )


def _reciprocal(nearest: np.ndarray) -> list[np.ndarray]:
    """Returns the neighbors of each vector that have it among their own, nearest first."""
    return [row[(nearest[row] == vector).any(axis=1)] for vector, row in enumerate(nearest)]


def _sparse(indices: np.ndarray, values: np.ndarray) -> scipy.sparse.csr_array:
    """Returns a square matrix from the columns and values of its rows, int and float[n, k]."""
    total, count = indices.shape
    starts = np.arange(0, total * count + 1, count)
    return scipy.sparse.csr_array((values.ravel(), indices.ravel(), starts), shape=(total, total))


def _squared_distance(similarity: np.ndarray) -> np.ndarray:
    """Returns the squared Euclidean distances of vectors of length 1 from their dot products."""
    return np.maximum(2 - 2 * similarity, 0)


def _most_similar(similarity: np.ndarray, count: int) -> np.ndarray:
    """Returns the columns of the largest values of each row, in descending order, int[n, count]."""
    count = min(count, similarity.shape[1])
    found = np.argpartition(-similarity, count - 1, axis=1)[:, :count]
    values = np.take_along_axis(similarity, found, axis=1)
    order = np.lexsort((found, -values), axis=1)
    return np.take_along_axis(found, order, axis=1)


def _blocks(rows: int, columns: int) -> list[slice]:
    """Returns slices of rows whose matrices have at most `_BLOCK` numbers."""
    step = max(1, _BLOCK // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
