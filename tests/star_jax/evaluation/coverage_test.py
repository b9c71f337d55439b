"""How often 95 % intervals hold the truth, by simulation of runs whose truth is known.

  python -m pytest -s tests/star_jax/evaluation/coverage_test.py

prints the tables of docs/evaluation.md: the coverage in percent and, in parentheses, the mean width
relative to the ideal interval, the mean ± 1.96 of its true standard deviations, which the runs do
not tell.
"""

import numpy as np
import pytest
from scipy import stats
from scipy.special import expit

from star_jax.evaluation import intervals

REPETITIONS = 2500
# Relative width of Student's interval for the mean of so many normal values: where seeds are all
# that matters, no interval can be narrower.
STUDENT = {2: 5.17, 3: 1.95, 5: 1.33}


def effects(rng, seeds, identities, deviations):
    """Returns [S, I, repetitions]: the sum of effects of seed, identity and their interaction."""
    of_seed, of_identity, of_both = deviations
    return (
        rng.normal(0, of_seed, (seeds, 1, REPETITIONS))
        + rng.normal(0, of_identity, (1, identities, REPETITIONS))
        + rng.normal(0, of_both, (seeds, identities, REPETITIONS))
    )


def names(identities):
    return np.arange(identities).astype(str)


def coverage(ends, truth, means):
    """Returns the percentage of intervals that hold the truth, and their relative width."""
    low, high = ends
    return 100 * np.mean((low <= truth) & (truth <= high)), (high - low).mean() / 3.92 / means.std()


def report(title, rows):
    """Prints a row of a table."""
    cells = "".join(f"{covered:8.1f} ({width:.2f})" for covered, width in rows)
    print(f"{title:64}{cells}")


@pytest.mark.parametrize("identities", [20, 40, 200])
def test_differences_over_seeds(identities):
    """Standard deviations in points, from seeds that hardly matter to seeds that matter alone."""
    rng = np.random.default_rng(identities)
    for deviations in ((0.0, 20.0, 20.0), (3.0, 30.0, 10.0), (3.0, 10.0, 20.0), (3.0, 0.0, 1.0)):
        found = []
        for seeds in (2, 3, 5):
            runs = effects(rng, seeds, identities, deviations)
            ends = intervals.difference_interval([runs], names(identities))
            found.append(coverage(ends, 0.0, runs.mean(axis=(0, 1))))
            assert 93 < found[-1][0] < 98.6 and found[-1][1] < 1.05 * STUDENT[seeds]
        report(f"difference, {identities} identities, deviations {deviations}", found)


def test_differences_of_methods_with_other_seeds():
    rng = np.random.default_rng(1)
    found = []
    for seeds in ((2, 2), (2, 5), (3, 3), (5, 5)):
        shared = effects(rng, 1, 40, (0.0, 30.0, 0.0))
        first, second = (shared + effects(rng, own, 40, (3.0, 5.0, 15.0)) for own in seeds)
        ends = intervals.difference_interval([second, -first], names(40))
        found.append(coverage(ends, 0.0, second.mean(axis=(0, 1)) - first.mean(axis=(0, 1))))
        assert 93 < found[-1][0] < 98.6 and found[-1][1] < 1.05 * STUDENT[min(seeds)]
    report("difference, 40 identities, seeds 2 and 2, 2 and 5, 3 and 3, 5 and 5", found)


@pytest.mark.parametrize("identities", [20, 60, 200])
def test_scores_over_seeds(identities):
    """Skewed scores between 0 and 100, as average precision is."""
    rng = np.random.default_rng(identities)
    quantiles = stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    for level, deviation in ((0.0, 0.15), (2.0, 0.5), (-2.5, 0.15), (3.5, 0.15)):
        found = []
        for seeds in (1, 2, 3, 5):
            # One seed: of this run, since another one has another true score.
            deviations = (deviation if seeds > 1 else 0.0, 1.5, 1.0)
            runs = 100 * expit(level + effects(rng, seeds, identities, deviations))
            truth = 100 * expit(level + np.linalg.norm(deviations) * quantiles).mean()
            ends = intervals.score_interval(runs, names(identities))
            found.append(coverage(ends, truth, runs.mean(axis=(0, 1))))
            # Few identities show little of a long tail.
            least = 88 if identities == 20 and level > 3 else 92
            assert least < found[-1][0] < 98.6
            assert found[-1][1] < 1.05 * STUDENT.get(seeds, 1.0)
        report(f"score of {truth:.0f}, {identities} identities", found)


@pytest.mark.parametrize(("share", "identities"), [(0.5, 20), (0.8, 40), (0.95, 20), (0.95, 200)])
def test_rank_1_of_a_run(share, identities):
    """A query of each identity, right or wrong. Often all of 20 are right."""
    rng = np.random.default_rng(0)
    runs = 100.0 * (rng.random((1, identities, REPETITIONS)) < share)
    ends = intervals.score_interval(runs, names(identities))
    found = coverage(ends, 100 * share, runs.mean(axis=(0, 1)))
    assert 93 < found[0] < 98.6 and found[1] < 1.3
    report(f"Rank-1 of {100 * share:.0f}, {identities} identities", [found])
