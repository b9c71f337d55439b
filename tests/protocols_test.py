import dataclasses

import numpy as np
import pytest

from data_pipelines.schema import INFRARED, VISIBLE
from star_jax.evaluation.protocols import evaluate, format_table
from star_jax.evaluation.retrieval import evaluate_retrieval


@dataclasses.dataclass(frozen=True)
class Index:
    modalities: np.ndarray
    identities: np.ndarray
    cameras: np.ndarray


def random_index(rng, num_tracklets=120):
    """Six identities in mixed order; infrared on cameras 1 to 3, visible on 4 to 6."""
    modalities = rng.permutation(np.arange(num_tracklets) % 2)
    return Index(
        modalities=modalities,
        identities=rng.choice(["0503", "0504", "0510", "0600", "0701", "0937"], num_tracklets),
        cameras=rng.integers(1, 4, num_tracklets) + np.where(modalities == VISIBLE, 3, 0),
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
        assert report[direction] == {
            "rank1": 100 * expected.cmc[0],
            "rank5": 100 * expected.cmc[4],
            "rank10": 100 * expected.cmc[9],
            "rank20": 100 * expected.cmc[19],
            "map": 100 * expected.mean_ap,
            "minp": 100 * expected.mean_inp,
            "queries": 60,
            "gallery": 60,
            "unmatched": 0,
        }
        assert all(type(report[direction][key]) is int for key in ("queries", "gallery"))
    assert report["i2v"]["map"] != report["v2i"]["map"]


def test_by_hand():
    # One identity in both modalities, a second one in infrared only.
    report = evaluate(
        "hitsz_vcm/v1",
        np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32),
        Index(
            modalities=np.array([INFRARED, INFRARED, VISIBLE]),
            identities=np.array(["0503", "0504", "0503"]),
            cameras=np.array([1, 1, 2]),
        ),
    )
    i2v, v2i = report["i2v"], report["v2i"]
    assert (i2v["queries"], i2v["unmatched"], i2v["gallery"]) == (1, 1, 1)
    assert (i2v["rank1"], i2v["map"]) == (100, 100)
    # The visible query is nearer to the infrared tracklet of the other identity.
    assert (v2i["queries"], v2i["unmatched"], v2i["gallery"]) == (1, 0, 2)
    assert (v2i["rank1"], v2i["rank5"], v2i["map"], v2i["minp"]) == (0, 100, 50, 50)


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


def test_bad_input_is_named():
    rng = np.random.default_rng(0)
    index, embeddings = random_index(rng), random_embeddings(rng, 120)
    with pytest.raises(ValueError, match=r"'hitsz_vcm'; known: hitsz_vcm/v1"):
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


def test_table_has_one_row_a_direction():
    scores = {
        "rank1": 69.4444,
        "rank5": 80.0,
        "rank10": 90.0,
        "rank20": 100.0,
        "map": 5.129,
        "minp": 0.0,
        "queries": 4584,
        "gallery": 5099,
        "unmatched": 0,
    }
    table = format_table(
        {"protocol": "hitsz_vcm/v1", "i2v": scores, "v2i": scores | {"rank1": 7.0}}
    )
    header, i2v, v2i = table.splitlines()
    assert header.split() == ["hitsz_vcm/v1", *scores]
    assert " ".join(i2v.split()) == "i2v 69.44 80.00 90.00 100.00 5.13 0.00 4584 5099 0"
    assert v2i.split()[:2] == ["v2i", "7.00"]
    assert len(header) == len(i2v) == len(v2i)
