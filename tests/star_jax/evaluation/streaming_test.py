"""Streamed ranking against `evaluate_retrieval`, which holds all similarities."""

import numpy as np
import pytest

from data_pipelines.errors import InputError
from star_jax.evaluation import streaming
from star_jax.evaluation.retrieval import evaluate_retrieval
from star_jax.evaluation.streaming import evaluate_embeddings


@pytest.fixture
def task():
    """Vectors of small integers: their dot products are exact, and many are equal."""
    rng = np.random.default_rng(0)
    queries, gallery = (rng.integers(-2, 3, (n, 5)).astype(np.float32) for n in (23, 101))
    labels = {
        "query_ids": rng.integers(0, 9, 23),
        "gallery_ids": rng.integers(0, 7, 101),  # some queries have no match
        "query_cameras": rng.integers(0, 3, 23),
        "gallery_cameras": rng.integers(0, 3, 101),
    }
    return queries, gallery, labels


@pytest.mark.parametrize("similarities_bytes", [1, 4 * 101 * 7, 2**30])
@pytest.mark.parametrize("entries", [10, 101, 1000])
def test_results_are_the_same_whatever_the_blocks(task, monkeypatch, similarities_bytes, entries):
    queries, gallery, labels = task
    monkeypatch.setattr(streaming, "_ENTRIES", entries)
    expected = evaluate_retrieval(queries @ gallery.T, **labels)
    found = evaluate_embeddings(queries, gallery, **labels, similarities_bytes=similarities_bytes)
    assert 0 < found.num_unmatched < 23 and found.num_removed > 0
    np.testing.assert_array_equal(found.first_match, expected.first_match)
    np.testing.assert_array_equal(found.removed, expected.removed)
    for name in ("average_precision", "inverse_negative_penalty", "cmc"):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=1e-12)


def test_embeddings_may_stay_on_the_disk_in_half_precision(task, tmp_path):
    queries, gallery, labels = task
    np.save(tmp_path / "gallery.npy", gallery.astype(np.float16))
    on_disk = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    found = evaluate_embeddings(queries, on_disk, **labels)
    assert found.mean_ap == evaluate_retrieval(queries @ gallery.T, **labels).mean_ap


def test_bad_input_is_named(task):
    queries, gallery, labels = task
    with pytest.raises(ValueError, match=r"\[Q, C\] and \[G, C\], found \(23, 5\) and \(101, 4\)"):
        evaluate_embeddings(queries, gallery[:, :4], **labels)
    with pytest.raises(ValueError, match="found 0, 101"):
        evaluate_embeddings(queries[:0], gallery, **labels)
    with pytest.raises(ValueError, match=r"query_ids must be \[23\]"):
        evaluate_embeddings(queries, gallery, **labels | {"query_ids": [1]})
    gallery[3, 2] = np.nan
    with pytest.raises(ValueError, match="query 0 and gallery entry 3 is NaN"):
        evaluate_embeddings(queries, gallery, **labels, similarities_bytes=1)
    with pytest.raises(ValueError, match="none of the 23 queries has a match"):
        evaluate_embeddings(queries, queries, query_ids=range(23), gallery_ids=range(23, 46))


def test_what_are_no_real_numbers_or_labels_is_named(task):
    queries, gallery, labels = task
    for bad in (
        gallery * 1j,
        np.ma.masked_equal(gallery, 0),
        gallery.astype(object),
    ):
        with pytest.raises(InputError, match=r"^gallery "):
            evaluate_embeddings(queries, bad, **labels)
        with pytest.raises(InputError, match=r"^queries "):
            evaluate_embeddings(bad, gallery, **labels)
    for name in labels:
        bad = labels[name].astype(float)
        bad[3] = np.nan
        with pytest.raises(InputError, match=name):
            evaluate_embeddings(queries, gallery, **labels | {name: bad})
