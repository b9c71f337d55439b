"""Search among embeddings: its ranking, its scores, and its texts."""

import csv
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import embeddings

from data_pipelines.errors import InputError
from data_pipelines.schema import INFRARED, VISIBLE
from star_jax.search import search

ANY = {"query_modality": "any", "gallery_modality": "any"}
modalities = st.sampled_from(["any", "visible", "infrared"])


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.tuples(st.integers(2, 7), st.integers(2, 7)),
    same=st.booleans(),
    query_modality=modalities,
    gallery_modality=modalities,
    top=st.integers(1, 9),
)
def test_finds_what_trying_all_finds(sizes, same, query_modality, gallery_modality, top):
    query = embeddings(sizes[0])
    gallery = query if same else embeddings(sizes[1], seed=1, provenance={"dataset": "b"})
    found = search.search(
        query,
        gallery,
        query_modality=query_modality,
        gallery_modality=gallery_modality,
        top=top,
    )
    wanted, searched = (
        {"any": (0, 1), "visible": (0,), "infrared": (1,)}[name]
        for name in (query_modality, gallery_modality)
    )
    asked, stored = query.index, gallery.index
    chosen = [q for q in range(sizes[0]) if asked.modalities[q] in wanted]
    assert [result.query for result in found.results] == chosen
    for result in found.results:
        q = result.query
        scored = [
            (-float(query.vectors[q] @ gallery.vectors[g]), g)
            for g in range(len(gallery.vectors))
            if stored.modalities[g] in searched and not (same and g == q)
        ]
        ranked = sorted(scored)
        expected = ranked[:top]
        assert [match.position for match in result.matches] == [g for _, g in expected]
        for match, (score, g) in zip(result.matches, expected, strict=True):
            assert match.score == pytest.approx(-score, abs=1e-5)
            names = asked.identities[q], stored.identities[g]
            assert match.same == (None if "unknown" in names else names[0] == names[1])
        name = asked.identities[q]
        ranks = [n for n, (_, g) in enumerate(ranked, 1) if stored.identities[g] == name]
        assert result.first_match == (None if name == "unknown" else min(ranks, default=0))


def of_similarity(similarity, queries, gallery):
    """Returns embeddings of queries and gallery with these similarities, [Q, G], and identities."""
    num_queries, num_gallery = np.shape(similarity)
    own = np.eye(num_queries, num_queries + num_gallery)
    rest = np.sqrt(1 - np.square(similarity).sum(axis=0))
    others = np.concatenate([np.transpose(similarity), np.diag(rest)], axis=1)
    return (
        embeddings(
            len(names),
            vectors=vectors.astype(np.float32),
            identities=np.array(names),
            modalities=np.full(len(names), modality, np.int32),
            provenance={"dataset": str(modality)},
        )
        for vectors, names, modality in (
            (own, queries, INFRARED),
            (others, gallery, VISIBLE),
        )
    )


def test_scores_are_those_worked_out_by_hand():
    """Queries of unknown identity or without a true match are left out; so are unknown entries.

    "a" finds unknown, b, a, b, a: among known entries, its identity has ranks 2 and 4, and the
    average precision is (1/2 + 2/4) / 2. "b" finds b, b: 1.
    """
    similarity = [
        [0.1, 0.4, 0.3, 0.5, 0.2],
        [0.0, 0.5, -0.1, 0.1, 0.4],
        [0.3, 0.1, 0.2, 0.4, 0.5],
        [0.0, 0.1, 0.2, 0.3, 0.4],
    ]
    found = search.search(
        *of_similarity(similarity, ["a", "b", "c", "unknown"], ["a", "b", "a", "unknown", "b"]),
        top=2,
    )
    assert [result.first_match for result in found.results] == [3, 1, 0, None]
    assert [len(result.matches) for result in found.results] == [2] * 4
    scores = found.scores
    assert (scores["rank1"], scores["rank5"], scores["map"]) == (50, 100, 75)
    assert (scores["queries"], scores["gallery"], scores["unmatched"]) == (2, 4, 1)
    assert (
        search.format_scores(found) == "Rank-1 50.0 %, Rank-5 100.0 %, Rank-10 100.0 %, mAP 75.0 %"
    )
    assert search.format_counts(found) == (
        "4 infrared queries searched 5 visible tracklets; left out of the scores: 1 without a true "
        "match and 1 of unknown identity"
    )


def test_without_a_true_match_there_are_no_scores():
    for queries in (["a"], ["unknown"]):
        found = search.search(*of_similarity([[0.1, 0.2]], queries, ["b", "unknown"]))
        assert found.scores is None and "no scores" in search.format_scores(found)
    assert search.format_counts(found).startswith("1 infrared query searched 2 visible tracklets;")


def test_a_tracklet_is_no_match_of_itself_in_the_scores():
    vectors = np.array([[1, 0], [0, 1], [0.8, 0.6]], np.float32)
    own = embeddings(3, vectors=vectors, identities=np.array(["a", "a", "b"]))
    found = search.search(own, own, **ANY)
    assert [result.first_match for result in found.results] == [2, 2, 0]
    assert found.scores["rank1"] == 0 and found.scores["map"] == 50


def test_a_tracklet_does_not_find_itself_in_a_copy_of_its_dataset():
    query, copy = embeddings(4), embeddings(4, dataset_dir="/elsewhere")
    for result in search.search(query, copy, **ANY).results:
        assert len(result.matches) == 3
        assert result.query not in [match.position for match in result.matches]


def test_a_tracklet_finds_its_like_in_another_dataset_or_split():
    query = embeddings(4)
    for other in (
        embeddings(4, provenance={"dataset": "b"}),
        embeddings(4, provenance={"split": "train"}),
    ):
        results = search.search(query, other, top=1, **ANY).results
        assert [result.matches[0].position for result in results] == [0, 1, 2, 3]


@pytest.mark.parametrize(
    "changes",
    [
        {"weights": "4567"},
        {"network": "def"},
        {"step": 4},
        {"clips": "dense"},
        {"clip_length": 3},
        {"sampling": "bupt_campus"},
        {"flip": True},
        {"corruption": "drop:0.3"},
    ],
    ids=str,
)
def test_embeddings_that_were_made_in_another_way_are_refused(changes):
    own, other = embeddings(3), embeddings(3, provenance=changes)
    for first, second in ((own, other), (other, own)):
        with pytest.raises(InputError) as error:
            search.search(first, second)
        (name,) = changes
        assert f"{name} is " in str(error.value)
        assert all(str(made.provenance.__dict__[name]) in str(error.value) for made in (own, other))
    assert search.search(other, other).results


def test_embeddings_of_another_width_are_refused():
    with pytest.raises(InputError, match="8 and 5 numbers"):
        search.search(embeddings(3), embeddings(3, width=5))


def test_a_modality_that_nobody_has_is_named():
    visible = embeddings(2, modalities=np.zeros(2, np.int32))
    with pytest.raises(
        ValueError, match=r"^query: none of the 2 tracklets .* is infrared; .* --query_modality"
    ):
        search.search(visible, visible)
    with pytest.raises(ValueError, match=r"^gallery: none .* is infrared; .* --gallery_modality"):
        search.search(embeddings(2), visible, gallery_modality="infrared")


def test_the_table_and_the_file_have_the_same_content():
    query = embeddings(6)
    found = search.search(query, query, top=3, **ANY)
    lines = search.format_results(found, found.results[:4]).splitlines()
    assert len(lines) == 5  # one for each query
    rows = list(csv.DictReader(io.StringIO(search.matches_csv(found).decode("utf-8-sig"))))
    assert len(rows) == 18 and {row["same_identity"] for row in rows} <= {"yes", "no", ""}
    best = [row for row in rows if row["rank"] == "1"]
    for line, row, result in zip(lines[1:], best, found.results, strict=False):
        assert line.split() == [
            row["query_identity"],
            row["query_camera"],
            row["query_first_frame"],
            row["first_true_match"],
            row["identity"],
            row["camera"],
            f"{float(row['score']):.3f}",
        ]
        expected = {None: "unknown", 0: "none"}.get(result.first_match, str(result.first_match))
        assert row["first_true_match"] == expected


def test_names_do_not_control_the_terminal():
    query = embeddings(2, identities=np.array(["\x1b[2J", "b"]))
    found = search.search(query, query, **ANY)
    table = search.format_results(found, found.results)
    assert "\x1b" not in table and r"\x1b[2J" in table


FORMULAS = ["=1+1", "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1"]


def test_no_cell_of_the_table_is_a_formula():
    many = embeddings(
        6,
        identities=np.array(FORMULAS),
        first_frames=np.array([f"{name}/1.jpg" for name in FORMULAS]),
    )
    content = search.matches_csv(search.search(many, many, top=5, **ANY)).decode("utf-8-sig")
    rows = list(csv.reader(io.StringIO(content, newline="")))
    assert {row[8] for row in rows[1:]} == {f"'{name}" for name in FORMULAS}
    for row in rows[1:]:
        float(row[7])  # the score, which may be negative
        assert not any(cell[:1] in set("=+@\t\r") for cell in row)
        assert [n for n, cell in enumerate(row) if cell.startswith("-")] in ([], [7])
    assert any(row[7].startswith("-") for row in rows)
