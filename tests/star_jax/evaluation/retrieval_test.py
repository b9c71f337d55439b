import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from star_jax.evaluation import retrieval
from star_jax.evaluation.retrieval import evaluate_retrieval

properties = settings(deadline=None, max_examples=60)


def brute_force(similarity, *, query_ids, gallery_ids, query_cameras, gallery_cameras):
    """Computes the metrics by their definitions, one query and one gallery entry at a time."""
    cmc, precisions, penalties, removed = [0] * len(gallery_ids), [], [], 0
    for row, identity, camera in zip(similarity, query_ids, query_cameras, strict=True):
        kept = []
        for entry in range(len(gallery_ids)):
            if gallery_ids[entry] == identity and gallery_cameras[entry] == camera:
                removed += 1
            else:
                kept.append(entry)
        kept.sort(key=lambda entry: -row[entry])  # Python's sort is stable
        hit_ranks = [
            rank for rank, entry in enumerate(kept, start=1) if gallery_ids[entry] == identity
        ]
        if not hit_ranks:
            continue
        for k in range(hit_ranks[0], len(gallery_ids) + 1):
            cmc[k - 1] += 1
        precisions.append(sum((n + 1) / rank for n, rank in enumerate(hit_ranks)) / len(hit_ranks))
        penalties.append(len(hit_ranks) / hit_ranks[-1])
    queries = len(precisions)
    return {
        "cmc": [count / queries for count in cmc] if queries else None,
        "mean_ap": sum(precisions) / queries if queries else None,
        "mean_inp": sum(penalties) / queries if queries else None,
        "num_queries": queries,
        "num_unmatched": len(query_ids) - queries,
        "num_removed": removed,
    }


@st.composite
def tasks(draw):
    """Yields small tasks with ties, shared cameras and queries without a match."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    num_queries, num_gallery = draw(st.integers(1, 9)), draw(st.integers(1, 12))
    identities = np.array(["0001", "0002", "0010", "0503"])[: draw(st.integers(1, 4))]
    levels = draw(st.sampled_from([2, 5, 1000]))
    similarity = rng.integers(0, levels, (num_queries, num_gallery)).astype(np.float32) / levels
    return similarity, {
        "query_ids": rng.choice(identities, num_queries),
        "gallery_ids": rng.choice(identities, num_gallery),
        "query_cameras": rng.integers(1, 4, num_queries),
        "gallery_cameras": rng.integers(1, 4, num_gallery),
    }


@properties
@given(task=tasks(), similarities_per_chunk=st.sampled_from([1, 20, 2**21]))
def test_agrees_with_brute_force_whatever_the_chunks(task, similarities_per_chunk):
    similarity, labels = task
    expected = brute_force(similarity, **labels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_SIMILARITIES_PER_CHUNK", similarities_per_chunk)
        if not expected["num_queries"]:
            with pytest.raises(ValueError, match="has a match"):
                evaluate_retrieval(similarity, **labels)
            return
        result = evaluate_retrieval(similarity, **labels)
    assert result.num_gallery == similarity.shape[1]
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(result, name), value, rtol=1e-12, err_msg=name)


def test_agrees_with_brute_force_on_more_than_one_full_chunk():
    rng = np.random.default_rng(0)
    similarity = rng.standard_normal((90, 300)).astype(np.float32)
    labels = {
        "query_ids": rng.integers(0, 40, 90),
        "gallery_ids": rng.integers(0, 40, 300),
        "query_cameras": rng.integers(0, 6, 90),
        "gallery_cameras": rng.integers(0, 6, 300),
    }
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "_SIMILARITIES_PER_CHUNK", 32 * 300)
        result = evaluate_retrieval(similarity, **labels)
    for name, value in brute_force(similarity, **labels).items():
        np.testing.assert_allclose(getattr(result, name), value, rtol=1e-12, err_msg=name)


def test_by_hand():
    # Query "a" ranks c, a, b, a: hits at 2 and 4. Query "b" ranks b first.
    result = evaluate_retrieval(
        [[0.8, 0.7, 0.9, 0.1], [0.2, 0.9, 0.1, 0.3]],
        query_ids=["a", "b"],
        gallery_ids=["a", "b", "c", "a"],
        query_cameras=[1, 1],
        gallery_cameras=[2, 2, 2, 2],
    )
    np.testing.assert_allclose(result.cmc, [0.5, 1, 1, 1])
    assert result.cmc.dtype == np.float64
    assert result.mean_ap == pytest.approx(((1 / 2 + 2 / 4) / 2 + 1) / 2)
    assert result.mean_inp == pytest.approx((2 / 4 + 1) / 2)
    assert (result.num_queries, result.num_gallery) == (2, 4)
    assert (result.num_unmatched, result.num_removed) == (0, 0)


def test_removed_entries_take_no_rank():
    # The two best entries show the query's identity on its own camera, the third another one.
    result = evaluate_retrieval(
        [[0.9, 0.8, 0.7, 0.6]],
        query_ids=[7],
        gallery_ids=[7, 7, 3, 7],
        query_cameras=[1],
        gallery_cameras=[1, 1, 1, 2],
    )
    np.testing.assert_allclose(result.cmc, [0, 1, 1, 1])
    assert result.mean_ap == result.mean_inp == pytest.approx(1 / 2)
    assert result.num_removed == 2


def test_unmatched_queries_are_counted_and_not_averaged():
    # Query 8 has no entry, query 9 only one of its own camera.
    result = evaluate_retrieval(
        np.zeros((3, 2)),
        query_ids=[7, 8, 9],
        gallery_ids=[7, 9],
        query_cameras=[1, 1, 1],
        gallery_cameras=[2, 1],
    )
    assert (result.num_queries, result.num_unmatched, result.num_removed) == (1, 2, 1)
    assert result.mean_ap == 1


def test_ties_keep_the_order_of_the_gallery():
    labels = {"query_ids": [1], "query_cameras": [1], "gallery_cameras": [2, 2, 2]}
    for position, gallery_ids in enumerate([[1, 2, 3], [2, 1, 3], [2, 3, 1]]):
        result = evaluate_retrieval(np.zeros((1, 3)), gallery_ids=gallery_ids, **labels)
        assert result.mean_ap == pytest.approx(1 / (position + 1))


def test_rank_beyond_the_gallery_is_the_last_value():
    labels = {"query_ids": [1], "gallery_ids": [2, 1], "query_cameras": [1]}
    result = evaluate_retrieval([[0.9, 0.1]], gallery_cameras=[2, 2], **labels)
    assert [result.rank(k) for k in (1, 2, 3, 20)] == [0, 1, 1, 1]
    with pytest.raises(ValueError, match="k = 0"):
        result.rank(0)


@properties
@given(seed=st.integers(0, 2**32 - 1))
def test_order_of_gallery_and_of_queries_does_not_matter(seed):
    rng = np.random.default_rng(seed)
    similarity = rng.permutation(8 * 15).reshape(8, 15) / 120  # no ties
    query_ids, gallery_ids = rng.integers(0, 3, 8), rng.permutation(np.arange(15) % 3)
    query_cameras, gallery_cameras = rng.integers(0, 2, 8), rng.integers(2, 4, 15)
    q, g = rng.permutation(8), rng.permutation(15)
    first = evaluate_retrieval(
        similarity,
        query_ids=query_ids,
        gallery_ids=gallery_ids,
        query_cameras=query_cameras,
        gallery_cameras=gallery_cameras,
    )
    second = evaluate_retrieval(
        similarity[q][:, g],
        query_ids=query_ids[q],
        gallery_ids=gallery_ids[g],
        query_cameras=query_cameras[q],
        gallery_cameras=gallery_cameras[g],
    )
    np.testing.assert_allclose(first.cmc, second.cmc)
    assert first.mean_ap == pytest.approx(second.mean_ap)
    assert first.mean_inp == pytest.approx(second.mean_inp)


@properties
@given(task=tasks())
def test_perfect_similarity_scores_one_and_no_other_scores_more(task):
    similarity, labels = task
    labels["gallery_cameras"] = labels["gallery_cameras"] + 3  # removes nothing
    same = labels["query_ids"][:, None] == labels["gallery_ids"]
    if not same.any():
        return
    perfect = evaluate_retrieval(same.astype(np.float32), **labels)
    np.testing.assert_array_equal(perfect.cmc, np.ones(similarity.shape[1]))
    assert perfect.mean_ap == perfect.mean_inp == 1
    result = evaluate_retrieval(similarity, **labels)
    assert (np.diff(result.cmc) >= 0).all() and result.cmc[-1] == pytest.approx(1)
    assert 0 < result.mean_inp <= 1 and 0 < result.mean_ap <= 1


def test_unsigned_similarities_rank_as_numbers():
    labels = {"query_ids": [1], "gallery_ids": [2, 1], "query_cameras": [1]}
    similarity = np.array([[0, 200]], np.uint8)
    assert evaluate_retrieval(similarity, gallery_cameras=[2, 2], **labels).mean_ap == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"similarity": np.zeros(3)}, r"\[Q, G\].*\(3,\)"),
        ({"similarity": np.zeros((2, 0))}, r"not empty.*\(2, 0\)"),
        ({"query_ids": [1, 2, 3]}, r"query_ids must be \[2\].*\(3,\)"),
        ({"gallery_ids": [1, 2]}, r"gallery_ids must be \[3\].*\(2,\)"),
        ({"query_cameras": [[1, 2]]}, r"query_cameras must be \[2\].*\(1, 2\)"),
        ({"gallery_cameras": [1]}, r"gallery_cameras must be \[3\].*\(1,\)"),
        ({"similarity": [[0, 1, 2], [0, np.nan, 1]]}, "query 1 and gallery entry 1 is NaN"),
        ({"gallery_ids": [5, 6, 7]}, "none of the 2 queries has a match among the 3 gallery"),
        ({"gallery_cameras": [1, 1, 1], "query_cameras": [1, 1]}, r"\(2 removed"),
    ],
)
def test_bad_input_is_named(changes, message):
    arguments = {
        "similarity": np.zeros((2, 3)),
        "query_ids": [1, 2],
        "gallery_ids": [1, 2, 3],
        "query_cameras": [1, 2],
        "gallery_cameras": [3, 3, 3],
    }
    with pytest.raises(ValueError, match=message):
        evaluate_retrieval(**(arguments | changes))


def test_nan_is_found_in_a_later_chunk(monkeypatch):
    monkeypatch.setattr(retrieval, "_SIMILARITIES_PER_CHUNK", 4)
    similarity = np.zeros((5, 2))
    similarity[3, 1] = np.nan
    with pytest.raises(ValueError, match="query 3 and gallery entry 1 is NaN"):
        evaluate_retrieval(
            similarity,
            query_ids=[1] * 5,
            gallery_ids=[1, 2],
            query_cameras=[1] * 5,
            gallery_cameras=[2, 2],
        )


@properties
@given(task=tasks())
def test_without_cameras_nothing_is_removed(task):
    similarity, entries = task
    identities = {name: entries[name] for name in ("query_ids", "gallery_ids")}
    if not set(identities["query_ids"]) & set(identities["gallery_ids"]):
        return
    expected = brute_force(
        similarity,
        **identities,
        query_cameras=[1] * len(identities["query_ids"]),
        gallery_cameras=[2] * len(identities["gallery_ids"]),
    )
    result = evaluate_retrieval(similarity, **identities)
    assert result.num_removed == expected["num_removed"] == 0
    np.testing.assert_allclose(result.cmc, expected["cmc"])
    np.testing.assert_allclose(result.mean_ap, expected["mean_ap"])
    with pytest.raises(ValueError, match="cameras of both queries and gallery, or of neither"):
        evaluate_retrieval(similarity, **identities, query_cameras=entries["query_cameras"])


integers = st.integers(-3, 3) | st.sampled_from([2**53, 2**53 + 1, 2**63, 2**64 + 1, -(2**63)])
names = st.text("ab\0\u0301é", max_size=2)
anything = integers | names | st.floats() | st.none() | st.binary(max_size=1) | st.complex_numbers()


@st.composite
def many_ids(draw):
    """Yields identities of queries and gallery, as lists of Python and in some container."""
    one_kind = draw(st.sampled_from([integers, names, st.floats(0, 3), anything]))
    both = [draw(st.lists(one_kind, min_size=n, max_size=n)) for n in (3, 4)]
    contained = []
    for values in both:
        container = draw(st.sampled_from([list, tuple, "array", np.int64, np.uint64, object]))
        try:
            if container in (list, tuple):
                contained.append(container(values))
            else:
                contained.append(np.array(values, None if container == "array" else container))
                values[:] = contained[-1].tolist()  # what it holds, such as strings of numbers
        except (ValueError, TypeError, OverflowError):
            contained.append(values)
    return both, contained


@settings(deadline=None, max_examples=150)
@given(ids=many_ids(), seed=st.integers(0, 99))
def test_any_identities_are_compared_as_they_are_or_refused(ids, seed):
    (queries, gallery), (query_ids, gallery_ids) = ids
    similarity = np.random.default_rng(seed).permutation(12).reshape(3, 4).astype(np.float32)
    kinds = {type(value) for value in (*queries, *gallery)}
    plain = kinds <= {int, bool} or kinds in ({str}, {bytes})
    numbers = [value for value in (*queries, *gallery) if isinstance(value, int | float)]
    finite = all(abs(value) < float("inf") for value in numbers)
    try:
        result = evaluate_retrieval(similarity, query_ids=query_ids, gallery_ids=gallery_ids)
    except InputError as error:
        if "has a match" in str(error):
            assert not set(queries) & set(gallery)
        else:
            assert not plain and ("query_ids" in str(error) or "gallery_ids" in str(error))
        return
    assert plain or (kinds <= {int, bool, float} and finite)
    expected = brute_force(
        similarity,
        query_ids=queries,
        gallery_ids=gallery,
        query_cameras=[1] * 3,
        gallery_cameras=[2] * 4,
    )
    assert result.mean_ap == pytest.approx(expected["mean_ap"])
    assert result.num_queries == expected["num_queries"]


BAD_NUMBERS = {
    "complex": np.ones((2, 3)) * 1j,
    "masked": np.ma.masked_equal(np.arange(6.0).reshape(2, 3), 0),
    "list of masked rows": list(np.ma.masked_equal(np.arange(6.0).reshape(2, 3), 0)),
    "objects": np.ones((2, 3), object),
    "ragged": [[0.1, 0.2, 0.3], [0.1]],
    "strings": [["a", "b", "c"]] * 2,
    "dates": np.zeros((2, 3), "M8[s]"),
}


@pytest.mark.parametrize("kind", BAD_NUMBERS)
def test_similarities_that_are_no_real_numbers_are_refused(kind):
    with pytest.raises(InputError, match=r"^similarity "):
        evaluate_retrieval(BAD_NUMBERS[kind], query_ids=[1, 2], gallery_ids=[1, 2, 3])


BAD_LABELS = {
    "None": [None, 1],
    "mixed": ["a", 1],
    "NaN": [float("nan"), 1.0],
    "array with NaN": np.array([1, np.nan]),
    "complex": np.array([1, 2j]),
    "array with None": np.array([1, None]),
    "masked": np.ma.masked_equal([1, 2], 2),
    "list with a masked value": list(np.ma.masked_equal([1, 2], 2)),
    "objects with a masked value": np.array([1, np.ma.masked], object),
    "ragged": [[1, 2], [3]],
    "dates": np.zeros(2, "M8[s]"),
}


@pytest.mark.parametrize("name", ["query_ids", "gallery_ids", "query_cameras", "gallery_cameras"])
@pytest.mark.parametrize("kind", BAD_LABELS)
def test_bad_labels_are_named(name, kind):
    labels = {"query_ids": [1, 2], "gallery_ids": [1, 2]}
    labels |= {"query_cameras": [1, 1], "gallery_cameras": [2, 2]}
    with pytest.raises(InputError, match=name):
        evaluate_retrieval(np.eye(2), **labels | {name: BAD_LABELS[kind]})


def test_large_integers_are_not_rounded():
    """As floats, which NumPy makes of int64 beside uint64, 2^53 and 2^53 + 1 are equal."""
    result = evaluate_retrieval(
        [[0.9, 0.1]],
        query_ids=np.array([2**53], np.int64),
        gallery_ids=np.array([2**53 + 1, 2**53], np.uint64),
    )
    assert result.first_match.tolist() == [2]
    result = evaluate_retrieval(
        np.array([[2**53, 2**53 + 1]]), query_ids=["a"], gallery_ids=["b", "a"]
    )
    assert result.first_match.tolist() == [1]


def test_labels_of_different_types_that_mean_the_same_are_equal():
    for ids in (
        [np.int8(1), np.int64(2)],
        np.array([1.0, 2.0]),
        np.array(["1", "2"], object),
        np.array(["1", "2"], np.dtypes.StringDType()),
    ):
        other = ["1", "2"] if isinstance(ids[0], str) else [1, 2]
        result = evaluate_retrieval(np.eye(2), query_ids=ids, gallery_ids=other)
        assert result.rank(1) == 1
