"""Rankings against plain loops: who takes part, and what is shown first."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.schema import INFRARED, VISIBLE, Index
from star_jax.evaluation.protocols import PROTOCOLS, rank, summarize
from star_jax.evaluation.ranking import most_similar
from star_jax.evaluation.similarity import make_similarity

PLAIN = [name for name in PROTOCOLS if name.startswith(("any", "cross-modality"))]


def index_of(seed, num_tracklets=40):
    """Returns tracklets of five people, one of them unknown, on cameras of both modalities."""
    rng = np.random.default_rng(seed)
    zeros, everyone = np.zeros(num_tracklets, np.int32), np.full(num_tracklets, True)
    cameras = rng.integers(1, 4, num_tracklets, np.int32)
    return Index(
        identities=rng.choice(["a", "b", "c", "d", "unknown"], num_tracklets),
        labels=zeros - 1,
        cameras=cameras,
        camera_names=cameras.astype(str),
        modalities=np.arange(num_tracklets, dtype=np.int32) % 2,
        num_frames=zeros + 2,
        rows=rng.permutation(num_tracklets).astype(np.int32),
        missing_skeletons=zeros,
        queries=everyone,
        galleries=everyone,
        conditions=rng.choice(["", "clean", "occluded"], num_tracklets),
    )


def random_embeddings(seed, num_tracklets=40, width=8):
    vectors = np.random.default_rng(seed).standard_normal((num_tracklets, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def allowed(protocol, index, query):
    """Returns the tracklets that a query may find under a protocol."""
    found = []
    for other in range(len(index.rows)):
        if index.identities[other] == "unknown" or other == query:
            continue
        if protocol.startswith("cross") and index.modalities[other] == index.modalities[query]:
            continue
        same = index.identities[other] == index.identities[query]
        same_camera = index.cameras[other] == index.cameras[query]
        if protocol.endswith("other-cameras") and same and same_camera:
            continue
        found.append(other)
    return found


@pytest.mark.parametrize("protocol", PLAIN)
@pytest.mark.parametrize("options", [{}, {"expansion": 2}, {"rerank": True}], ids=str)
def test_what_is_shown_is_what_is_scored(protocol, options):
    index = index_of(0)
    embeddings = random_embeddings(1)
    rankings = rank(protocol, embeddings, index, make_similarity(**options))
    for direction, modality in (("i2v", INFRARED), ("v2i", VISIBLE)):
        ranking = rankings[direction]
        known = index.identities != "unknown"
        assert set(ranking.queries) == set(np.flatnonzero(known & (index.modalities == modality)))
        for row, query in enumerate(ranking.queries.tolist()):
            may_find = allowed(protocol, index, query)
            score = dict(zip(ranking.gallery.tolist(), ranking.similarity[row], strict=True))
            expected = sorted(may_find, key=lambda other: -score[other])
            assert ranking.gallery[ranking.top(row, 99)].tolist() == expected
            assert ranking.gallery[ranking.top(row, 3)].tolist() == expected[:3]
            hits = index.identities[expected] == index.identities[query]
            ranks = 1 + np.flatnonzero(hits)
            assert ranking.result.first_match[row] == (ranks[0] if hits.any() else 0)
            if hits.any():
                precision = np.mean(np.arange(1, len(ranks) + 1) / ranks)
                assert ranking.result.average_precision[row] == pytest.approx(precision)


@pytest.mark.parametrize("protocol", PLAIN)
def test_a_part_of_a_ranking_has_the_same_rules(protocol):
    index = index_of(2)
    ranking = rank(protocol, random_embeddings(3), index)["v2i"]
    rng = np.random.default_rng(4)
    rows = np.sort(rng.choice(len(ranking.queries), 6, replace=False))
    columns = np.sort(rng.choice(len(ranking.gallery), 9, replace=False))
    part = ranking.among(rows, columns)
    for place, row in enumerate(rows):
        kept = [entry for entry in ranking.top(row, 99) if entry in columns]
        assert columns[part.top(place, 99)].tolist() == kept
        same = index.identities[ranking.gallery[kept]] == index.identities[ranking.queries[row]]
        first = 1 + np.flatnonzero(same)[0] if same.any() else 0
        assert part.result.first_match[place] == first


def test_unknown_people_change_no_score():
    """They stand in for queries and entries that are not there."""
    index = index_of(5)
    embeddings = random_embeddings(6)
    known = np.flatnonzero(index.identities != "unknown")
    without = index.of(known)
    for protocol in PLAIN:
        both = (rank(protocol, embeddings, index), rank(protocol, embeddings[known], without))
        reports = [summarize(protocol, *one) for one in zip(both, (index, without), strict=True)]
        assert reports[0] == reports[1]


def test_expansion_by_one_entry_changes_a_query_that_is_in_the_gallery():
    index = index_of(7)
    embeddings = random_embeddings(8)
    plain = rank("any", embeddings, index)["i2v"]
    expanded = rank("any", embeddings, index, make_similarity(expansion=1))["i2v"]
    for row, query in enumerate(plain.queries):
        mean = embeddings[query] + embeddings[plain.gallery[plain.top(row, 1)[0]]]
        expected = embeddings[plain.gallery] @ (mean / np.linalg.norm(mean))
        np.testing.assert_allclose(expanded.similarity[row], expected, atol=1e-5)


@settings(deadline=None, max_examples=100)
@given(
    values=st.lists(st.lists(st.integers(0, 4), min_size=6, max_size=6), min_size=1, max_size=4),
    count=st.integers(0, 8),
)
def test_the_most_similar_are_those_of_a_stable_sort(values, count):
    found = most_similar(np.array(values, np.float32), count)
    expected = [sorted(range(6), key=lambda column: -row[column])[:count] for row in values]
    assert found.tolist() == expected
