"""Query expansion and re-ranking against plain loops over dense matrices."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from star_jax.evaluation import similarity
from star_jax.evaluation.similarity import expand_queries, k_reciprocal, make_similarity


def vectors(seed, count, width=6, groups=4):
    """Returns unit vectors in a few groups, so that neighbors are often reciprocal."""
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((groups, width))
    found = centers[rng.integers(groups, size=count)] + 0.5 * rng.standard_normal((count, width))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)


def alone(queries):
    """Returns that no query is in the gallery."""
    return np.full(len(queries), -1)


def re_ranked(queries, gallery, k1, k2, jaccard_share, before_expansion=None):
    """Returns the distances of Zhong et al., CVPR 2017, by their definitions.

    To others, the queries are what they were before their expansion, if that is given.
    """
    before = queries if before_expansion is None else before_expansion
    own, seen = (np.concatenate([own, gallery]).astype(np.float64) for own in (queries, before))
    everyone = range(len(own))
    k1, k2 = min(k1, len(own) - 1), min(k2, len(own))
    half = round(k1 / 2)

    def distances(vectors):
        between = np.array([[((a - b) ** 2).sum() for b in seen] for a in vectors])
        np.fill_diagonal(between, 0)
        return between

    def nearest(between):
        return [sorted(everyone, key=lambda j: between[i, j]) for i in everyone]

    def reciprocal(near, i, k):
        return {j for j in near[i][: k + 1] if i in near_seen[j][: k + 1]}

    def describe(between, near):
        weights = np.zeros((len(own), len(own)))
        for i in everyone:
            extended = reciprocal(near, i, k1)
            for j in reciprocal(near, i, k1):
                others = reciprocal(near if i == j else near_seen, j, half)
                if len(others & reciprocal(near, i, k1)) > 2 / 3 * len(others):
                    extended |= others
            for j in extended:
                weights[i, j] = np.exp(-between[i, j] / between[i].max())
        return weights / weights.sum(axis=1, keepdims=True)

    near_seen = nearest(distances(seen))
    between = distances(own)
    near = nearest(between)
    weights, of_seen = describe(between, near), describe(distances(seen), near_seen)
    weights = [np.mean([weights[i], *of_seen[near[i][1:k2]]], axis=0) for i in everyone]
    result = np.empty((len(queries), len(gallery)))
    for i in range(len(queries)):
        for j in range(len(gallery)):
            a, b = weights[i], weights[len(queries) + j]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            euclidean = between[i, len(queries) + j] / between[i].max()
            result[i, j] = jaccard_share * jaccard + (1 - jaccard_share) * euclidean
    return result


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 9), st.integers(1, 25)),
    k1=st.integers(1, 12),
    k2=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.7, 1.0]),
    block=st.sampled_from([1, 40, 2**24]),
)
def test_k_reciprocal_against_loops_whatever_the_blocks(seed, sizes, k1, k2, share, block):
    everything = vectors(seed, sum(sizes))
    queries, gallery = everything[: sizes[0]], everything[sizes[0] :]
    expected = re_ranked(queries, gallery, k1, k2, share)
    options = {"k1": k1, "k2": k2, "jaccard_share": share}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_BLOCK", block)
        found = k_reciprocal(queries, gallery, alone(queries), **options)
    np.testing.assert_allclose(1 - found, expected, atol=2e-5)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 2**32 - 1),
    sizes=st.tuples(st.integers(1, 5), st.integers(0, 3), st.integers(5, 14)),
    k1=st.integers(1, 8),
    k2=st.integers(1, 5),
    expanded=st.booleans(),
    block=st.sampled_from([1, 40, 2**24]),
)
def test_the_own_entry_takes_no_part_in_re_ranking(seed, sizes, k1, k2, expanded, block):
    """As if each query that is in the gallery searched a gallery without it."""
    inside, outside, entries = sizes
    gallery, others = vectors(seed, entries), vectors(seed + 1, outside)
    own = np.random.default_rng(seed).permutation(entries)[:inside]
    before = gallery[own]
    queries = expand_queries(before, gallery, 2, own) if expanded else before
    options = {"k1": k1, "k2": k2, "jaccard_share": 0.7}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_BLOCK", block)
        found = k_reciprocal(
            np.concatenate([queries, others]), gallery, np.append(own, alone(others)), **options
        )
    for query in range(inside):
        expected = re_ranked(
            np.concatenate([queries[query, None], others]),
            np.delete(gallery, own[query], axis=0),
            **options,
            before_expansion=np.concatenate([before[query, None], others]),
        )
        np.testing.assert_allclose(1 - np.delete(found[query], own[query]), expected[0], atol=2e-5)


def test_re_ranking_finds_what_shares_neighbors():
    # Entry 0 is nearer to the query than entry 1, but only entry 1 has the query's neighbors.
    angles = np.deg2rad([0, 1, 2, 3, 12, -10, -21, -22, -23, -24])
    everything = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    queries, gallery = everything[:1], everything[[5, 4, 1, 2, 3, 6, 7, 8, 9]]
    plain = queries @ gallery.T
    found = k_reciprocal(queries, gallery, alone(queries), k1=4, k2=1, jaccard_share=1.0)
    assert plain[0, 0] > plain[0, 1] and found[0, 0] < found[0, 1]


@pytest.mark.parametrize("block", [1, 30, 2**24])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_query_expansion_against_a_loop(monkeypatch, block, count):
    monkeypatch.setattr(similarity, "_BLOCK", block)
    gallery = vectors(1, 20)
    own = np.array([-1, 3, -1, -1, 19, 0, -1])  # three of the queries are in the gallery, too
    queries = np.where(own[:, None] < 0, vectors(0, 7), gallery[own])
    expected = []
    for query, itself in zip(queries, own, strict=True):
        others = [j for j in range(20) if j != itself]
        nearest = sorted(others, key=lambda j: -(query @ gallery[j]))[:count]
        mean = np.mean([query, *gallery[nearest]], axis=0)
        expected.append(mean / np.sqrt((mean**2).sum()))
    before = queries.copy()
    found = expand_queries(queries, gallery, count, own)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(queries, before)


def test_embeddings_that_are_all_alike_are_ranked():
    same = np.tile(np.float32([[0.6, 0.8]]), (9, 1))
    opposite = -same[:1]
    own = np.arange(3)
    for compare in (make_similarity(rerank=True), make_similarity(expansion=1, rerank=True)):
        assert np.isfinite(compare(same[:3], same, own)).all()
        assert np.isfinite(compare(opposite, same, alone(opposite))).all()


def test_expansion_comes_before_re_ranking():
    queries, gallery = vectors(0, 7), vectors(1, 30)
    own = alone(queries)
    expanded = expand_queries(queries, gallery, 3, own)
    both = make_similarity(expansion=3, rerank=True)(queries, gallery, own)
    np.testing.assert_array_equal(both, k_reciprocal(expanded, gallery, own))
    plain = make_similarity()(queries, gallery, own)
    np.testing.assert_array_equal(plain, queries @ gallery.T)
    np.testing.assert_array_equal(
        make_similarity(expansion=3)(queries, gallery, own), expanded @ gallery.T
    )
    with pytest.raises(ValueError, match="query expansion by -1 entries"):
        make_similarity(expansion=-1)
