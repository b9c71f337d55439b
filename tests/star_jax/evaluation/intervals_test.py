"""Intervals against SciPy's, a leave-one-out loop, and what is known of simple cases."""

import numpy as np
import pytest
from scipy import stats

from star_jax.evaluation.intervals import difference_interval, score_interval


def test_one_run_with_a_query_per_identity_is_students_interval():
    values = np.random.default_rng(0).normal(3, 10, 30)
    found = difference_interval([values[None, :, None]], np.arange(30).astype(str))
    np.testing.assert_allclose(found[:, 0], stats.ttest_1samp(values, 0).confidence_interval())


def test_queries_of_an_identity_that_agree_count_once():
    values = np.random.default_rng(0).normal(50, 10, 40)[None, :, None]
    once = score_interval(values, np.arange(40).astype(str))
    copies = score_interval(np.repeat(values, 10, axis=1), np.repeat(np.arange(40), 10).astype(str))
    np.testing.assert_allclose(copies, once)


def test_identities_of_several_queries_are_left_out_one_by_one():
    """The jackknife as textbooks have it, with a loop."""
    rng = np.random.default_rng(3)
    identities = np.array(list("abbcccdeeee"))
    scores = rng.uniform(-50, 50, (11, 2))
    without = np.array([scores[identities != name].mean(axis=0) for name in "abcde"])
    pseudo = 5 * scores.mean(axis=0) - 4 * without
    half = stats.t.ppf(0.975, 4) * pseudo.std(axis=0, ddof=1) / np.sqrt(5)
    low, high = difference_interval([scores[None]], identities)
    np.testing.assert_allclose(low, scores.mean(axis=0) - half)
    np.testing.assert_allclose(high, scores.mean(axis=0) + half)


@pytest.mark.parametrize("right", [500, 190, 10, 0])
def test_right_and_wrong_queries_have_wilsons_interval(right):
    """Of many independent queries, so that Student's quantile is that of the normal."""
    scores = 100.0 * (np.arange(500) < right)
    expected = stats.binomtest(right, 500).proportion_ci(method="wilson")
    found = score_interval(scores[None, :, None], np.arange(500).astype(str))
    np.testing.assert_allclose(found[:, 0] / 100, expected, atol=6e-4)


def test_seeds_that_shift_all_identities_alike():
    """Then only the seeds are uncertain: Student's interval of their means."""
    shifts = np.array([-6.0, 1.0, 8.0, 4.0])
    runs = np.repeat(shifts[:, None, None], 50, axis=1)
    found = difference_interval([runs], np.arange(50).astype(str))
    np.testing.assert_allclose(found[:, 0], stats.ttest_1samp(shifts, 0).confidence_interval())
    others = np.array([20.0, 31.0, 28.0])
    welch = stats.ttest_ind(others, shifts, equal_var=False).confidence_interval()
    second = np.repeat(others[:, None, None], 50, axis=1)
    found = difference_interval([second, -runs], np.arange(50).astype(str))
    np.testing.assert_allclose(found[:, 0], welch)


def test_seeds_that_change_nothing_leave_the_interval_of_one():
    values = np.random.default_rng(0).uniform(0, 100, (1, 30, 2))
    identities = np.arange(30).astype(str)
    for interval in (score_interval, lambda runs, names: difference_interval([runs], names)):
        alone = interval(values, identities)
        np.testing.assert_allclose(interval(np.repeat(values, 3, axis=0), identities), alone)


def test_seeds_and_identities_add_up():
    """Seeds shift all identities alike: the variances are those of a table of sums."""
    shifts = np.array([-3.0, 0.0, 3.0])
    values = np.random.default_rng(0).normal(0, 12, 25)
    runs = (values + shifts[:, None])[:, :, None]
    of_seeds, of_identities = 9 / 3, values.var(ddof=1) / 25
    weights = np.array([of_seeds, of_identities]) / (of_seeds + of_identities)
    quantile = weights @ stats.t.ppf(0.975, [2, 24])
    half = quantile * np.sqrt(of_seeds + of_identities)
    found = difference_interval([runs], np.arange(25).astype(str))
    np.testing.assert_allclose(found[:, 0], [values.mean() - half, values.mean() + half])


def test_paired_runs_that_differ_by_a_constant_leave_no_doubt():
    runs = np.random.default_rng(0).uniform(0, 100, (3, 30, 1))
    found = difference_interval([(runs + 2.0) - runs], np.arange(30).astype(str))
    np.testing.assert_allclose(found[:, 0], 2.0)


def test_ends_stay_in_the_range_of_scores():
    """Two seeds far apart, identities all right, and an identity alone."""
    names = np.arange(4).astype(str)
    apart = np.repeat([[[10.0]], [[95.0]]], 4, axis=1)
    low, high = score_interval(apart, names)[:, 0]
    assert 0 <= low < 10 and 95 < high <= 100
    np.testing.assert_array_equal(difference_interval([apart], names)[:, 0], [-100, 100])
    low, high = score_interval(np.full((2, 4, 1), 100.0), names)[:, 0]
    assert 20 < low < 60 and high == 100
    of_one = np.array(["a"] * 4)
    np.testing.assert_array_equal(score_interval(apart, of_one)[:, 0], [0, 100])
    np.testing.assert_array_equal(difference_interval([apart], of_one)[:, 0], [-100, 100])
