import dataclasses

import numpy as np
import pytest

from data_pipelines.schema import INFRARED, VISIBLE
from star_jax.evaluation.protocols import evaluate, rank
from star_jax.evaluation.retrieval import evaluate_retrieval
from star_jax.evaluation.scores import METRICS


@dataclasses.dataclass(frozen=True)
class Index:
    modalities: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray
    rows: np.ndarray
    queries: np.ndarray
    galleries: np.ndarray

    @property
    def camera_names(self):
        return self.cameras.astype(str)

    @property
    def conditions(self):
        return np.where(self.cameras % 2, "clean", "")


def random_index(rng, num_tracklets=120):
    """Returns six identities in mixed order; infrared on cameras 1 to 3, visible on 4 to 6."""
    modalities = rng.permutation(np.arange(num_tracklets) % 2)
    return Index(
        modalities=modalities,
        identities=rng.choice(["0503", "0504", "0510", "0600", "0701", "0937"], num_tracklets),
        cameras=rng.integers(1, 4, num_tracklets) + np.where(modalities == VISIBLE, 3, 0),
        rows=np.arange(1, num_tracklets + 1),
        queries=np.full(num_tracklets, True),
        galleries=np.full(num_tracklets, True),
    )


def random_embeddings(rng, num_tracklets, width=8):
    embeddings = rng.standard_normal((num_tracklets, width)).astype(np.float32)
    return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def test_directions_are_infrared_to_visible_and_back():
    rng = np.random.default_rng(0)
    index = random_index(rng)
    embeddings = random_embeddings(rng, 120)
    report = evaluate("hitsz_vcm/v1", embeddings, index)
    assert report["protocol"] == "hitsz_vcm/v1"
    infrared, visible = index.modalities == INFRARED, index.modalities == VISIBLE
    for direction, query, gallery in (("i2v", infrared, visible), ("v2i", visible, infrared)):
        expected = evaluate_retrieval(
            embeddings[query] @ embeddings[gallery].T,
            query_ids=index.identities[query],
            gallery_ids=index.identities[gallery],
            query_cameras=index.cameras[query],
            gallery_cameras=index.cameras[gallery],
        )
        found = {name: report[direction][name] for name in METRICS}
        assert found == {
            "rank1": 100 * expected.cmc[0],
            "rank5": 100 * expected.cmc[4],
            "rank10": 100 * expected.cmc[9],
            "rank20": 100 * expected.cmc[19],
            "map": 100 * expected.mean_ap,
            "minp": 100 * expected.mean_inp,
        }
        counts = [report[direction][name] for name in ("queries", "gallery", "unmatched")]
        assert counts == [60, 60, 0]
        assert len(report[direction]["by_camera_pair"]) == 9
        chosen = np.isin(index.cameras[query], (1, 3, 5))
        assert report[direction]["by_condition"]["clean"]["queries"] == chosen.sum()
        assert all(type(report[direction][key]) is int for key in ("queries", "gallery"))
    assert report["i2v"]["map"] != report["v2i"]["map"]


def test_by_hand():
    # One identity in both modalities, another in infrared only.
    report = evaluate(
        "hitsz_vcm/v1",
        np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32),
        Index(
            modalities=np.array([INFRARED, INFRARED, VISIBLE]),
            identities=np.array(["0503", "0504", "0503"]),
            cameras=np.array([1, 1, 2]),
            rows=np.array([1, 2, 3]),
            queries=np.full(3, True),
            galleries=np.full(3, True),
        ),
    )
    i2v, v2i = report["i2v"], report["v2i"]
    assert (i2v["queries"], i2v["unmatched"], i2v["gallery"]) == (1, 1, 1)
    assert (i2v["rank1"], i2v["map"]) == (100, 100)
    # The visible query is nearer to the infrared tracklet of the other identity.
    assert (v2i["queries"], v2i["unmatched"], v2i["gallery"]) == (1, 0, 2)
    assert (v2i["rank1"], v2i["rank5"], v2i["map"], v2i["minp"]) == (0, 100, 50, 50)


@pytest.mark.parametrize("protocol", ["any", "any/other-cameras"])
def test_any_modality_is_searched_but_not_oneself(protocol):
    rng = np.random.default_rng(3)
    index = dataclasses.replace(random_index(rng, 40), cameras=rng.integers(1, 3, 40))
    embeddings = random_embeddings(rng, 40)
    report = evaluate(protocol, embeddings, index)
    for direction, modality in (("i2v", INFRARED), ("v2i", VISIBLE)):
        precisions, by_camera = [], {}
        for query in np.flatnonzero(index.modalities == modality):
            others = [
                other
                for other in np.argsort(-embeddings @ embeddings[query], kind="stable")
                if other != query
            ]
            if protocol == "any/other-cameras":
                same = index.identities == index.identities[query]
                camera = index.cameras == index.cameras[query]
                others = [other for other in others if not (same & camera)[other]]
            precisions.append(precision_of(index, query, others))
            for camera in (1, 2):
                own = [other for other in others if index.cameras[other] == camera]
                key = str(index.cameras[query]), str(camera)
                by_camera.setdefault(key, []).append(precision_of(index, query, own))
        assert report[direction]["map"] == pytest.approx(100 * np.nanmean(precisions))
        assert report[direction]["gallery"] == 40
        assert {
            (pair["query_camera"], pair["gallery_camera"]): pytest.approx(pair["map"])
            for pair in report[direction]["by_camera_pair"]
        } == {
            key: 100 * np.nanmean(values)
            for key, values in by_camera.items()
            if not np.isnan(values).all()  # under the camera rule, a camera paired with itself
        }


def precision_of(index, query, ranked):
    """The average precision of ranked positions; NaN without a match."""
    hits = np.array([index.identities[other] == index.identities[query] for other in ranked])
    return np.mean((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits]) if hits.any() else np.nan


def test_one_camera_in_both_modalities_is_refused():
    rng = np.random.default_rng(0)
    index = random_index(rng)
    cameras = index.cameras.copy()
    cameras[(index.modalities == INFRARED) & (index.identities == "0510")] = 4
    with pytest.raises(ValueError, match="camera 4 shows identity 0510 in both"):
        evaluate(
            "hitsz_vcm/v1",
            random_embeddings(rng, 120),
            dataclasses.replace(index, cameras=cameras),
        )


def bupt_index(rng, num_query, num_gallery):
    """Returns tracklets by counts of queries and gallery; some are both, rows are shuffled."""
    index = random_index(rng, 2 * (num_query + num_gallery))
    queries, galleries = np.zeros((2, len(index.rows)), bool)
    for modality in (VISIBLE, INFRARED):
        own = np.flatnonzero(index.modalities == modality)
        galleries[own[-num_gallery:]] = True
        queries[rng.permutation(own)[: num_query + modality]] = True  # some of both lists
    rows = index.rows.copy()
    rows[queries] = rng.permutation(queries.sum()) + 1
    return dataclasses.replace(
        index, rows=rows, queries=queries, galleries=galleries, cameras=np.ones_like(rows)
    )


def by_hand(embeddings, index, direction, dropped_from):
    """Computes Rank-1 and mAP in percent, and the sizes, in a plain loop over the lists."""
    modality = {"i2v": (INFRARED, VISIBLE), "v2i": (VISIBLE, INFRARED)}[direction]
    everything = range(len(index.rows))
    queries = [p for p in everything if index.queries[p] and index.modalities[p] == modality[0]]
    queries.sort(key=lambda position: index.rows[position])
    gallery = [p for p in everything if index.galleries[p] and index.modalities[p] == modality[1]]
    if dropped_from and modality[0] == VISIBLE:
        while len(queries) % dropped_from:
            queries.pop()
    if dropped_from and modality[1] == VISIBLE:
        while len(gallery) % dropped_from:
            gallery.pop()
    first, precisions = [], []
    for query in queries:
        ranked = sorted(gallery, key=lambda entry: -(embeddings[query] @ embeddings[entry]))
        hits = [
            rank
            for rank, entry in enumerate(ranked, start=1)
            if index.identities[entry] == index.identities[query]
        ]
        first.append(hits[0] == 1)
        precisions.append(np.mean([(n + 1) / rank for n, rank in enumerate(hits)]))
    return 100 * np.mean(first), 100 * np.mean(precisions), len(queries), len(gallery)


@pytest.mark.parametrize(
    ("protocol", "batch"), [("buptcampus/full", 0), ("buptcampus/official-bs64", 64)]
)
@pytest.mark.parametrize(("num_query", "num_gallery"), [(70, 150), (64, 128), (129, 191)])
def test_buptcampus_against_a_plain_loop(protocol, batch, num_query, num_gallery):
    rng = np.random.default_rng(num_query)
    index = bupt_index(rng, num_query, num_gallery)
    embeddings = random_embeddings(rng, len(index.rows))
    report = evaluate(protocol, embeddings, index)
    for direction in ("i2v", "v2i"):
        scores = report[direction]
        found = (scores["rank1"], scores["map"], scores["queries"], scores["gallery"])
        np.testing.assert_allclose(found, by_hand(embeddings, index, direction, batch))
    whole = [size // 64 * 64 if batch else size for size in (num_query, num_gallery)]
    assert (report["v2i"]["queries"], report["v2i"]["gallery"]) == (whole[0], num_gallery)
    assert (report["i2v"]["queries"], report["i2v"]["gallery"]) == (num_query + 1, whole[1])


def test_buptcampus_directions_are_no_transposes():
    rng = np.random.default_rng(0)
    index = bupt_index(rng, 60, 60)
    embeddings = random_embeddings(rng, len(index.rows))
    before = evaluate("buptcampus/full", embeddings, index)
    # Visible tracklets that are only in the gallery matter in one direction only.
    changed = (index.modalities == VISIBLE) & index.galleries & ~index.queries
    embeddings[changed] = random_embeddings(rng, changed.sum())
    after = evaluate("buptcampus/full", embeddings, index)
    assert after["v2i"] == before["v2i"]
    assert after["i2v"] != before["i2v"]


def test_buptcampus_keeps_gallery_entries_of_the_querys_camera():
    index = bupt_index(np.random.default_rng(0), 60, 60)
    embeddings = random_embeddings(np.random.default_rng(1), len(index.rows))
    apart = dataclasses.replace(index, cameras=np.arange(len(index.rows)))
    assert (index.cameras == 1).all()
    first, second = (rank("buptcampus/full", embeddings, own) for own in (index, apart))
    for direction in ("i2v", "v2i"):
        found, expected = second[direction].result, first[direction].result
        assert found.num_removed == 0
        np.testing.assert_array_equal(found.average_precision, expected.average_precision)


def without_own_camera(embeddings, index, direction, camera_rule):
    """Computes Rank-1 and mAP in percent in a plain loop over queries and their galleries."""
    modality = {"i2v": (INFRARED, VISIBLE), "v2i": (VISIBLE, INFRARED)}[direction]
    known = [p for p, identity in enumerate(index.identities) if identity != "unknown"]
    first, precisions = [], []
    for query in (p for p in known if index.modalities[p] == modality[0]):
        own = (index.identities[query], index.cameras[query])
        gallery = [
            p
            for p in known
            if index.modalities[p] == modality[1]
            and not (camera_rule and (index.identities[p], index.cameras[p]) == own)
        ]
        ranked = sorted(gallery, key=lambda entry: -(embeddings[query] @ embeddings[entry]))
        hits = [n for n, p in enumerate(ranked, 1) if index.identities[p] == own[0]]
        if hits:
            first.append(hits[0] == 1)
            precisions.append(np.mean([(n + 1) / rank for n, rank in enumerate(hits)]))
    return 100 * np.mean(first), 100 * np.mean(precisions), len(first)


@pytest.mark.parametrize(
    ("protocol", "camera_rule"),
    [("cross-modality", False), ("cross-modality/other-cameras", True)],
)
def test_cross_modality_against_a_plain_loop(protocol, camera_rule):
    rng = np.random.default_rng(3)
    index = random_index(rng)
    identities = index.identities.astype("<U8")
    identities[identities == "0600"] = "unknown"
    cameras = rng.integers(1, 4, 120)  # each of which films in both modalities
    cameras[identities == "0937"] = 2  # who is left without a match by the camera rule
    index = dataclasses.replace(index, identities=identities, cameras=cameras)
    embeddings = random_embeddings(rng, 120)
    report = evaluate(protocol, embeddings, index)
    for direction in ("i2v", "v2i"):
        scores = report[direction]
        expected = without_own_camera(embeddings, index, direction, camera_rule)
        found = (scores["rank1"], scores["map"], scores["queries"])
        np.testing.assert_allclose(found, expected)
        assert (scores["unmatched"] > 0) == (scores["removed"] > 0) == camera_rule
        modality = {"i2v": VISIBLE, "v2i": INFRARED}[direction]
        assert scores["gallery"] == np.sum(
            (index.modalities == modality) & (identities != "unknown")
        )
    with pytest.raises(ValueError, match="in both modalities"):
        evaluate("hitsz_vcm/v1", embeddings, index)


def test_published_sizes_of_buptcampus():
    modalities = np.repeat([VISIBLE, INFRARED, VISIBLE, INFRARED], [540, 536, 2422, 2422])
    queries = np.arange(len(modalities)) < 540 + 536
    index = Index(
        modalities=modalities,
        identities=np.arange(len(modalities)) % 100,
        cameras=np.ones(len(modalities), int),
        rows=np.arange(len(modalities)),
        queries=queries,
        galleries=~queries,
    )
    embeddings = random_embeddings(np.random.default_rng(0), len(modalities))
    for protocol, visible in (
        ("buptcampus/full", (540, 2422)),
        ("buptcampus/official-bs64", (512, 2368)),
    ):
        report = evaluate(protocol, embeddings, index)
        assert (report["v2i"]["queries"], report["v2i"]["gallery"]) == (visible[0], 2422)
        assert (report["i2v"]["queries"], report["i2v"]["gallery"]) == (536, visible[1])


def test_too_few_visible_entries_for_a_batch_are_named():
    rng = np.random.default_rng(0)
    with pytest.raises(ValueError, match="bs64: i2v needs queries and a gallery, found 31 and 0"):
        evaluate("buptcampus/official-bs64", random_embeddings(rng, 120), bupt_index(rng, 30, 30))


def test_bad_input_is_named():
    rng = np.random.default_rng(0)
    index, embeddings = random_index(rng), random_embeddings(rng, 120)
    with pytest.raises(ValueError, match=r"is 'hitsz_vcm': use hitsz_vcm/v1, bupt"):
        evaluate("hitsz_vcm", embeddings, index)
    with pytest.raises(ValueError, match=r"\[120, C\].*\(119, 8\)"):
        evaluate("hitsz_vcm/v1", embeddings[1:], index)
    for bad in (2.0, np.nan):
        embeddings[7] *= bad
        with pytest.raises(ValueError, match=r"length 1, found (2|nan).* in row 7 \(1 such"):
            evaluate("hitsz_vcm/v1", embeddings, index)
    visible = dataclasses.replace(index, modalities=np.full(120, VISIBLE))
    with pytest.raises(ValueError, match="i2v needs queries and a gallery, found 0 and 120"):
        evaluate("hitsz_vcm/v1", random_embeddings(rng, 120), visible)
