"""Bootstrap intervals against plain resampling and what is known of simple cases."""

import numpy as np
import pytest

from star_jax.evaluation import bootstrap


def test_means_are_those_of_resampled_identities():
    """A plain loop draws identities with the same counts and averages over their queries."""
    rng = np.random.default_rng(3)
    identities = np.array(["a", "b", "b", "c", "c", "c", "d"])
    scores = rng.uniform(size=(2, 7, 3))
    means = bootstrap.resampled_means(list(scores), identities, resamples=50)
    counts = np.random.default_rng(0).multinomial(4, [0.25] * 4, 50)
    for resample, own in enumerate(counts):
        rows = [
            row
            for name, count in zip("abcd", own, strict=True)
            for row in np.flatnonzero(identities == name).tolist() * count
        ]
        np.testing.assert_allclose(means[:, resample], scores[:, rows].mean(axis=1))


def test_the_interval_of_independent_queries_is_that_of_a_mean():
    """One query per identity: the textbook interval, mean ± 1.96 standard errors."""
    values = np.random.default_rng(0).normal(50, 10, 400)
    (means,) = bootstrap.resampled_means([values[:, None]], np.arange(400).astype(str))
    low, high = bootstrap.ends(means)[:, 0]
    error = values.std() / 20
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.1)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.1)


def test_queries_of_an_identity_that_agree_count_once():
    """Ten copies of each query leave the interval as it was, where resampled queries narrow it."""
    values = np.random.default_rng(0).normal(50, 10, 40)
    once = bootstrap.resampled_means([values[:, None]], np.arange(40).astype(str))
    copies = bootstrap.resampled_means(
        [np.repeat(values, 10)[:, None]], np.repeat(np.arange(40), 10).astype(str)
    )
    np.testing.assert_allclose(bootstrap.ends(copies[0]), bootstrap.ends(once[0]))


def test_seeds_widen_the_interval_and_the_same_seeds_are_paired():
    identities = np.arange(30).astype(str)
    values = np.random.default_rng(0).uniform(0, 100, 30)
    shifts = np.array([-6.0, 0.0, 6.0])
    runs = [(values + shift)[:, None] for shift in shifts]
    better = [run + 2.0 for run in runs]
    means = bootstrap.resampled_means(runs + better, identities)
    alone = bootstrap.ends(means[1])
    first = bootstrap.seed_means(means[:3], [0, 1, 2])
    second = bootstrap.seed_means(means[3:], [0, 1, 2])
    low, high = bootstrap.ends(first)[:, 0]
    assert low < alone[0, 0] and high > alone[1, 0]
    # Resampled seeds have a standard deviation of 6 * sqrt(2 / 3) / sqrt(3).
    spread = (first[:, 0] - means[1, :, 0]).std()
    assert spread == pytest.approx(6 * np.sqrt(2) / 3, rel=0.06)
    # Identities and seeds are paired: each resample has the difference.
    np.testing.assert_allclose(second - first, 2.0)
    others = bootstrap.seed_means(means[3:], [3, 4, 5])
    assert np.std(others - first) > 1
