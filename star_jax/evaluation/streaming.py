"""Ranks galleries whose similarities do not fit into memory, in blocks of queries."""

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jaxtyping import Shaped

from data_pipelines.errors import InputError
from data_pipelines.io.progress import Progress
from star_jax.evaluation.retrieval import (
    RetrievalResult,
    concatenated,
    number_labels,
    real_numbers,
    require_a_match,
    score_queries,
)

_ENTRIES = 2**15  # gallery entries on the device at a time: 256 MB at 2,048 numbers


def evaluate_embeddings(
    queries: Shaped[np.ndarray, "Q C"],
    gallery: Shaped[np.ndarray, "G _"],
    *,
    query_ids: npt.ArrayLike,
    gallery_ids: npt.ArrayLike,
    query_cameras: npt.ArrayLike | None = None,
    gallery_cameras: npt.ArrayLike | None = None,
    similarities_bytes: int = 2**30,
) -> RetrievalResult:
    """Scores rankings as `evaluate_retrieval` does for `queries @ gallery.T`, without that matrix.

    The gallery is read once for each block of queries. Dot products are computed in float32 on the
    default device, an accelerator where there is one.

    Args:
      queries: float[Q, C]; `np.load(path, mmap_mode="r")` leaves it on disk.
      gallery: float[G, C], likewise.
      query_ids: [Q], identities: strings or integers.
      gallery_ids: [G], of the same type.
      query_cameras: [Q], given together with `gallery_cameras` or not at all.
      gallery_cameras: [G].
      similarities_bytes: memory for the similarities of a block of queries, one or more. A larger
        block reads the gallery less often.

    Raises:
      InputError: as `evaluate_retrieval` does.
    """
    queries, gallery = real_numbers("queries", queries), real_numbers("gallery", gallery)
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1:] != gallery.shape[1:]:
        raise InputError(
            "queries and gallery must be [Q, C] and [G, C], found "
            f"{queries.shape} and {gallery.shape}"
        )
    shape = len(queries), len(gallery)
    if 0 in shape:
        raise InputError(f"there must be queries and gallery entries, found {shape[0]}, {shape[1]}")
    labels = number_labels(shape, query_ids, gallery_ids, query_cameras, gallery_cameras)
    rows_per_block = min(max(1, similarities_bytes // (4 * shape[1])), shape[0])
    similarity = np.empty((rows_per_block, shape[1]), np.float32)
    results = []
    with Progress(shape[0], "ranking", unit="query") as progress:
        for start in range(0, shape[0], rows_per_block):
            rows = slice(start, min(start + rows_per_block, shape[0]))
            block = similarity[: rows.stop - start]
            own = jnp.asarray(queries[rows], jnp.float32)
            for begin in range(0, shape[1], _ENTRIES):
                entries = slice(begin, begin + _ENTRIES)
                block[:, entries] = _dot_products(own, jnp.asarray(gallery[entries], jnp.float32))
            results.append(score_queries(block, labels.of_queries(rows), start))
            progress.update(rows.stop)
    return require_a_match(concatenated(results))


@jax.jit
def _dot_products(queries: jax.Array, gallery: jax.Array) -> jax.Array:
    return jnp.dot(queries, gallery.T, precision=jax.lax.Precision.HIGHEST)
