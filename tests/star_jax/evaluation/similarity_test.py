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


def re_ranked(queries, gallery, k1, k2, jaccard_share):
    """Returns the distances of Zhong et al., CVPR 2017, by their definitions."""
    everything = np.concatenate([queries, gallery]).astype(np.float64)
    total = len(everything)
    distance = np.array([[((a - b) ** 2).sum() for b in everything] for a in everything])
    nearest = [sorted(range(total), key=lambda j: distance[i, j]) for i in range(total)]

    def reciprocal(i, k):
        return {j for j in nearest[i][: k + 1] if i in nearest[j][: k + 1]}

    weights = np.zeros((total, total))
    for i in range(total):
        own = reciprocal(i, k1)
        extended = set(own)
        for j in own:
            others = reciprocal(j, round(k1 / 2))
            if len(others & own) > 2 / 3 * len(others):
                extended |= others
        for j in extended:
            weights[i, j] = np.exp(-distance[i, j] / distance[i].max())
        weights[i] /= weights[i].sum()
    weights = np.array(
        [np.mean([weights[j] for j in nearest[i][:k2]], axis=0) for i in range(total)]
    )
    result = np.empty((len(queries), len(gallery)))
    for i in range(len(queries)):
        for j in range(len(gallery)):
            a, b = weights[i], weights[len(queries) + j]
            jaccard = 1 - np.minimum(a, b).sum() / np.maximum(a, b).sum()
            euclidean = distance[i, len(queries) + j] / distance[i].max()
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
    total = sum(sizes)
    expected = re_ranked(queries, gallery, min(k1, total - 1), min(k2, total), share)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(similarity, "_BLOCK", block)
        found = k_reciprocal(queries, gallery, k1=k1, k2=k2, jaccard_share=share)
    np.testing.assert_allclose(1 - found, expected, atol=2e-5)


def test_re_ranking_finds_what_shares_neighbors():
    # Entry 0 is nearer to the query than entry 1, but only entry 1 has the query's neighbors.
    angles = np.deg2rad([0, 1, 2, 3, 12, -10, -21, -22, -23, -24])
    everything = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    queries, gallery = everything[:1], everything[[5, 4, 1, 2, 3, 6, 7, 8, 9]]
    plain = queries @ gallery.T
    found = k_reciprocal(queries, gallery, k1=4, k2=1, jaccard_share=1.0)
    assert plain[0, 0] > plain[0, 1] and found[0, 0] < found[0, 1]


@pytest.mark.parametrize("block", [1, 30, 2**24])
@pytest.mark.parametrize("count", [1, 3, 50])
def test_query_expansion_against_a_loop(monkeypatch, block, count):
    monkeypatch.setattr(similarity, "_BLOCK", block)
    queries, gallery = vectors(0, 7), vectors(1, 20)
    expected = []
    for query in queries:
        nearest = sorted(range(20), key=lambda j: -(query @ gallery[j]))[:count]
        mean = np.mean([query, *gallery[nearest]], axis=0)
        expected.append(mean / np.sqrt((mean**2).sum()))
    before = queries.copy()
    np.testing.assert_allclose(expand_queries(queries, gallery, count), expected, rtol=1e-5)
    np.testing.assert_array_equal(queries, before)


def test_expansion_comes_before_re_ranking():
    queries, gallery = vectors(0, 7), vectors(1, 30)
    expanded = expand_queries(queries, gallery, 3)
    both = make_similarity(expansion=3, rerank=True)(queries, gallery)
    np.testing.assert_array_equal(both, k_reciprocal(expanded, gallery))
    plain = make_similarity()(queries, gallery)
    np.testing.assert_array_equal(plain, queries @ gallery.T)
    np.testing.assert_array_equal(
        make_similarity(expansion=3)(queries, gallery), expanded @ gallery.T
    )
    with pytest.raises(ValueError, match="query expansion by -1 entries"):
        make_similarity(expansion=-1)
