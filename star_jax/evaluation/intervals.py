"""Confidence intervals of retrieval scores over test identities and training seeds.

All runs of a method are scored on the same identities, so both the identities and the seeds are
random effects, and they are crossed. Radiology has the same design, readers for seeds and cases
for identities, and this is its analysis (Dorfman, Berbaum and Metz, Investigative Radiology 27,
1992; Hillis, Statistics in Medicine 26, 2007):

* The queries of an identity succeed and fail together. Jackknife pseudo-values, which leave out one
  identity at a time, turn the mean over queries into a mean over identities.
* A two-way analysis of variance of the pseudo-values, of S seeds and I identities, estimates the
  variance of the mean: var_seeds / S + var_identities / I + var_interaction / (S I).
* A few seeds estimate their variance poorly. The quantile is that of Cochran and Cox (Experimental
  Designs, 1950, 4.14): the mean of Student's quantiles for S - 1 and I - 1 degrees of freedom,
  weighted by the parts of the variance. Satterthwaite's degrees of freedom, which Hillis uses,
  cover 88 % with two seeds.

A score lies between 0 and 100 %, and its variance vanishes at both ends. So its interval is
Wilson's (JASA 22, 1927), with the effective number of queries that the variance stands for (Franco
et al., Journal of Survey Statistics and Methodology 7, 2019). That of a difference is symmetric.

With one seed, the variance between seeds is unknown; the interval is then one over identities only.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float64, Shaped
from scipy import stats

_LEVEL = 0.975  # both tails have 2.5 %


def score_interval(
    runs: Float64[np.ndarray, "S Q M"], identities: Shaped[np.ndarray, " Q"]
) -> Float64[np.ndarray, "2 M"]:
    """Returns the ends of the 95 % intervals of the mean scores of a method.

    Args:
      runs: float64[S, Q, M], of each of S training seeds the M scores of Q queries, in percent.
      identities: str[Q], of the queries.

    Returns:
      float64[2, M], between 0 and 100. One identity says nothing about others: 0 and 100.
    """
    count = len(np.unique(identities))
    if count == 1:
        return np.stack([np.zeros(runs.shape[2]), np.full(runs.shape[2], 100.0)])
    mean = runs.mean(axis=(0, 1)) / 100
    variance, quantile = _variance([_pseudo_values(runs, identities) / 100])
    of_a_query = np.maximum(mean * (1 - mean), 0.0)  # its variance if it is either right or wrong
    with np.errstate(divide="ignore", invalid="ignore"):
        # The mean over this many independent queries has this variance. Where all queries are right
        # or all are wrong, the number of identities is used.
        queries = np.where(of_a_query > 0, of_a_query / variance, count)
    shrink = quantile**2 / queries
    center = (mean + shrink / 2) / (1 + shrink)
    half = np.sqrt(shrink * of_a_query + shrink**2 / 4) / (1 + shrink)
    ends: np.ndarray = 100 * np.clip([center - half, center + half], 0, 1)
    return ends


def difference_interval(
    groups: Sequence[Float64[np.ndarray, "_ Q M"]], identities: Shaped[np.ndarray, " Q"]
) -> Float64[np.ndarray, "2 M"]:
    """Returns the ends of the 95 % intervals of mean differences.

    The difference is the sum over groups of the mean over the runs of a group. Two methods whose
    runs are paired by seed are one group: the differences of the pairs. Otherwise they are two: the
    scores of the second method, and the negative ones of the first.

    Args:
      groups: float64[S, Q, M] each, of each of S training seeds the M differences of Q queries, in
        points. S may differ between groups, whose seeds are independent.
      identities: str[Q], of the queries.

    Returns:
      float64[2, M], between -100 and 100. One identity says nothing about others: -100 and 100.
    """
    ends = np.array([[-100.0], [100.0]])
    if len(np.unique(identities)) == 1:
        return np.repeat(ends, groups[0].shape[2], axis=1)
    mean = np.sum([runs.mean(axis=(0, 1)) for runs in groups], axis=0)
    variance, quantile = _variance([_pseudo_values(runs, identities) for runs in groups])
    half = quantile * np.sqrt(variance)
    clipped: np.ndarray = np.clip([mean - half, mean + half], *ends)
    return clipped


def _pseudo_values(
    runs: Float64[np.ndarray, "S Q M"], identities: Shaped[np.ndarray, " Q"]
) -> Float64[np.ndarray, "S I M"]:
    """Returns what each identity contributes to the mean over queries, at least two identities."""
    _, numbers, sizes = np.unique(identities, return_inverse=True, return_counts=True)
    count, total = len(sizes), len(identities)
    sums = np.zeros((len(runs), count, runs.shape[2]))
    for own, run in zip(sums, runs, strict=True):
        np.add.at(own, numbers, run)
    everything = sums.sum(axis=1, keepdims=True)
    without = (everything - sums) / (total - sizes)[:, None]
    values: np.ndarray = count * everything / total - (count - 1) * without
    return values


def _variance(
    groups: Sequence[Float64[np.ndarray, "_ I M"]],
) -> tuple[Float64[np.ndarray, " M"], Float64[np.ndarray, " M"]]:
    """Returns the variance of the sum of the groups' means, and the quantile of its interval."""
    of_identities = np.sum([group.mean(axis=0) for group in groups], axis=0)
    count = len(of_identities)
    # Parts of the variance of the mean. The interaction counts with the seeds.
    identities = of_identities.var(axis=0, ddof=1) / count
    seeds, squares = np.zeros_like(identities), np.zeros_like(identities)
    for group in groups:
        size = len(group)
        if size == 1:
            continue
        of_seeds = group.mean(axis=1)
        rest = group - group.mean(axis=0) - of_seeds[:, None] + group.mean(axis=(0, 1))
        interaction = np.square(rest).sum(axis=(0, 1)) / ((size - 1) * (count - 1))
        identities = identities - interaction / (size * count)
        part = of_seeds.var(axis=0, ddof=1) / size
        seeds = seeds + part
        squares = squares + part**2 / (size - 1)
    identities = np.maximum(identities, 0.0)
    variance = identities + seeds
    with np.errstate(divide="ignore", invalid="ignore"):
        freedom = np.where(squares > 0, seeds**2 / squares, 1.0)  # Welch; S - 1 of a single group
        share = np.where(variance > 0, seeds / variance, 0.0)
    quantile = share * stats.t.ppf(_LEVEL, freedom) + (1 - share) * stats.t.ppf(_LEVEL, count - 1)
    return variance, quantile
