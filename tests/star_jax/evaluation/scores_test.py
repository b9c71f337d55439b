"""Reports of rankings: what is counted, per camera pair and condition, and the tables."""

import numpy as np
import pytest

from star_jax.evaluation import scores
from star_jax.evaluation.ranking import Ranking
from star_jax.evaluation.retrieval import evaluate_retrieval, number_labels


@pytest.fixture
def task():
    """Four queries on cameras a and b: ranks of first matches 1, 2, 1 and none."""
    similarity = np.array(
        [
            [0.9, 0.1, 0.5, 0.0],
            [0.8, 0.9, 0.1, 0.0],
            [0.1, 0.8, 0.2, 0.0],
            [0.1, 0.2, 0.3, 0.4],
        ],
        np.float32,
    )
    labels = {
        "query_ids": np.array(["1", "1", "2", "9"]),
        "gallery_ids": np.array(["1", "2", "1", "3"]),
    }
    return similarity, labels


def test_summary_by_hand(task):
    similarity, labels = task
    found = scores.summary(evaluate_retrieval(similarity, **labels), labels["query_ids"])
    # Average precisions: (1 + 2 / 2) / 2, (1 / 2 + 2 / 3) / 2 and 1; penalties 2 / 2, 2 / 3 and 1.
    assert found["rank1"] == pytest.approx(100 * 2 / 3) and found["rank5"] == 100
    assert found["map"] == pytest.approx(100 * (1 + 7 / 12 + 1) / 3)
    assert found["minp"] == pytest.approx(100 * (1 + 2 / 3 + 1) / 3)
    counts = {name: found[name] for name in scores.COUNTS}
    assert counts == {"queries": 3, "gallery": 4, "unmatched": 1, "removed": 0}
    assert all(type(count) is int for count in counts.values())
    # Two identities say little of others, also where all of their queries are right.
    for metric in ("rank1", "rank5", "map"):
        low, high = found["intervals"][metric]
        assert 0 < low < 20 and high > 95
    assert found["intervals"]["rank5"][1] == 100


def test_scores_of_queries_average_to_the_summary(task):
    similarity, labels = task
    result = evaluate_retrieval(similarity, **labels)
    means = scores.scores_of_queries(result).mean(axis=0)
    found = scores.summary(result, labels["query_ids"])
    np.testing.assert_allclose(means, [found[metric] for metric in scores.METRICS])


def test_camera_pairs_by_hand(task):
    similarity, labels = task
    numbered = number_labels((4, 4), **labels)
    ranking = Ranking(np.arange(4), np.arange(4, 8), similarity, numbered)
    cameras = np.array(["a", "b", "b", "b", "x", "x", "y", "y"])
    found = scores.by_camera_pair(ranking, labels["query_ids"], cameras)
    pairs = {(pair["query_camera"], pair["gallery_camera"]): pair for pair in found}
    assert set(pairs) == {("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")}
    # Of camera b, query 1 finds entry 1 (of identity 2) before entry 0, query 2 finds entry 1.
    assert pairs["b", "x"]["map"] == pytest.approx(75) and pairs["b", "x"]["queries"] == 2
    assert pairs["b", "y"]["queries"] == 1 and pairs["b", "y"]["unmatched"] == 2
    assert pairs["a", "y"]["rank1"] == 100 and pairs["a", "y"]["gallery"] == 2


def test_conditions_by_hand(task):
    similarity, labels = task
    conditions = np.array(["occluded;smeared", "occluded", "", "clean"])
    found = scores.by_condition(
        evaluate_retrieval(similarity, **labels), labels["query_ids"], conditions
    )
    assert set(found) == {"occluded", "smeared"}  # the clean query has no match
    assert (found["occluded"]["rank1"], found["occluded"]["queries"]) == (50, 2)
    assert (found["smeared"]["rank1"], found["smeared"]["gallery"]) == (100, 4)


def test_tables():
    own = {
        **{"rank1": 69.4444, "rank5": 80.0, "rank10": 90.0, "rank20": 100.0},
        **{"map": 5.129, "minp": 0.0, "queries": 4584, "gallery": 5099, "unmatched": 0},
        **{"removed": 3, "intervals": {name: [1.26, 99.0] for name in scores.METRICS}},
    }
    pair = {**own, "query_camera": "10", "gallery_camera": "2"}
    report = {
        "protocol": "hitsz_vcm/v1",
        "options": {"rerank": True, "expansion": 3},
        "i2v": own | {"by_condition": {"occluded": own}, "by_camera_pair": []},
        "v2i": own | {"by_camera_pair": [pair, pair | {"query_camera": "9", "map": 7.0}]},
    }
    whole = scores.format_table(report)
    conditions, cameras = scores.format_details(report).split("\n\n")
    header, *rows = [" ".join(line.split()) for line in whole.splitlines()]
    names = " ".join((*scores.METRICS, "queries gallery", "no match", "filtered"))
    assert header == f"hitsz_vcm/v1, rerank, expansion 3 {names}"
    assert rows[0] == "i2v 69.44 80.00 90.00 100.00 5.13 0.00 4584 5099 0 3"
    assert rows[1] == "95 %" + 6 * " 1.3 to 99.0"
    assert rows[2].startswith("v2i") and len({len(line) for line in whole.splitlines()}) == 1
    assert [" ".join(line.split()) for line in conditions.splitlines()] == [
        "i2v by condition of the query rank1 map queries",
        "occluded 69.44 5.13 4584",
        "95 % 1.3 to 99.0 1.3 to 99.0",
    ]
    held_out = scores.format_table(report | {"split": "validation"}).split()
    assert held_out[:4] == ["hitsz_vcm/v1,", "validation,", "rerank,", "expansion"]
    assert scores.format_table(report | {"split": "test", "clips": "first"}) == whole
    dense = report | {"clips": "dense", "split": "validation"}
    assert scores.title_of(dense) == "hitsz_vcm/v1, validation, dense clips, rerank, expansion 3"
    assert scores.format_table(report | {"dataset": {"synthetic": False}}) == whole
    drawn = scores.format_table(report | {"dataset": {"synthetic": True}}).split()
    assert drawn[:4] == ["hitsz_vcm/v1,", "synthetic", "people,", "rerank,"]
    assert [" ".join(line.split()) for line in cameras.splitlines()] == [
        "v2i map, query camera by gallery camera 2",
        "9 7.00",  # by number, before 10
        "10 5.13",
    ]
