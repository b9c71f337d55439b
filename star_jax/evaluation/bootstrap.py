"""Confidence intervals of retrieval scores, by resampling identities and training seeds.

The queries of one identity succeed and fail together, so identities are resampled, not queries
(the cluster bootstrap: Davison and Hinkley, Bootstrap Methods and their Application, 1997, 3.8).
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Shaped

RESAMPLES = 2000
_PERCENTILES = (2.5, 97.5)


def resampled_means(
    scores: Sequence[Float64[np.ndarray, "Q M"]],
    identities: Shaped[np.ndarray, " Q"],
    *,
    resamples: int = RESAMPLES,
) -> Float64[np.ndarray, "S resamples M"]:
    """Returns the mean scores of each run over resampled identities of the queries.

    All runs have the same queries and see the same resamples, so that their means can be paired.

    Args:
      scores: of each of S runs the M scores of Q queries.
      identities: str[Q], of the queries.
      resamples: how many times as many identities as there are are drawn with replacement.

    Returns:
      float64[S, resamples, M].
    """
    _, numbers, sizes = np.unique(identities, return_inverse=True, return_counts=True)
    count = len(sizes)
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), resamples)
    sums = np.zeros((len(scores), count, scores[0].shape[1]))
    for run, own in zip(sums, scores, strict=True):
        np.add.at(run, numbers, own)
    return drawn @ sums / (drawn @ sizes)[:, None]


def ends(resampled: Float64[np.ndarray, "resamples M"]) -> Float64[np.ndarray, "2 M"]:
    """Returns the ends of the 95 % intervals of resampled means, float64[2, M]."""
    return np.percentile(resampled, _PERCENTILES, axis=0)


def seed_means(
    means: Float64[np.ndarray, "S resamples M"], seeds: Sequence[int]
) -> Float64[np.ndarray, "resamples M"]:
    """Returns the mean over the training seeds of a method, resampled with replacement.

    Methods with the same seeds get the same resamples of them, so that they can be paired.

    Args:
      means: float64[S, resamples, M], as `resampled_means` returns them for the seeds.
      seeds: of the S runs, ascending.
    """
    num_runs, resamples, _ = means.shape
    chosen = np.random.default_rng(list(seeds)).integers(num_runs, size=(num_runs, resamples))
    return means[chosen, np.arange(resamples)].mean(axis=0)
