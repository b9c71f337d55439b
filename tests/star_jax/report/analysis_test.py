"""What the report computes, against brute force and networks whose behavior is known."""

import dataclasses
import types

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from data_pipelines.schema import Index
from star_jax.distributed.parallel import make_mesh, put, split_rows
from star_jax.evaluation.protocols import rank
from star_jax.report import analysis


def index_of(identities, modalities):
    n = len(identities)
    zeros = np.zeros(n, np.int32)
    known = dict(
        identities=np.array(identities),
        labels=zeros - 1,
        cameras=np.array(modalities, np.int32),
        modalities=np.array(modalities, np.int32),
        num_frames=zeros + 2,
        rows=np.arange(n, dtype=np.int32),
        missing_skeletons=zeros,
        queries=np.ones(n, bool),
        galleries=np.ones(n, bool),
        camera_names=np.array([str(modality) for modality in modalities]),
        conditions=np.full(n, ""),
    )
    names = {field.name for field in dataclasses.fields(Index)}
    return Index(**{name: value for name, value in known.items() if name in names})


def random_embeddings(n, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(n, 6)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def ranked():
    """Returns embeddings of ten identities in both modalities, their index and the rankings."""
    names = [f"{number:02d}" for number in range(10)]
    index = index_of(np.repeat(names, 4), [0, 0, 1, 1] * 10)
    embeddings = random_embeddings(40)
    return embeddings, index, rank("hitsz_vcm/v1", embeddings, index)


def test_the_cmc_is_that_of_sorting(ranked):
    embeddings, index, rankings = ranked
    curve = analysis.cmc_curve(rankings["i2v"], index.identities, max_rank=7)
    visible, infrared = (np.flatnonzero(index.modalities == number) for number in (0, 1))
    hits = np.zeros(7)
    for query in infrared:
        order = visible[np.argsort(-(embeddings[visible] @ embeddings[query]))]
        same = index.identities[order] == index.identities[query]
        hits += [same[:k].any() for k in range(1, 8)]
    np.testing.assert_allclose(curve.mean, 100 * hits / len(infrared))
    assert (curve.low <= curve.mean).all() and (curve.mean <= curve.high).all()


def test_queries_are_the_best_middle_and_worst_of_different_identities(ranked):
    _, index, rankings = ranked
    for ranking in rankings.values():
        identities = index.identities[ranking.queries]
        precision = ranking.result.average_precision
        chosen = analysis.chosen_queries(ranking, identities, 2)
        assert precision[chosen["best"][0]] == precision.max()
        assert precision[chosen["worst"][0]] == precision.min()
        rows = [row for kind in chosen.values() for row in kind]
        assert len(rows) == len(set(identities[rows])) == 6
        assert precision[chosen["worst"]].max() <= precision[chosen["median"]].min()
        assert precision[chosen["median"]].max() <= precision[chosen["best"]].min()


@pytest.mark.parametrize(
    "protocol", ["hitsz_vcm/v1", "cross-modality/other-cameras", "any", "any/other-cameras"]
)
def test_first_matches_are_those_that_count(protocol):
    """Against a loop over everyone whom a query may find under the protocol."""
    rng = np.random.default_rng(0)
    identities = np.repeat([f"{number:02d}" for number in range(9)] + ["unknown"], 4)
    index = index_of(identities, [0, 0, 1, 1] * 10)
    if protocol != "hitsz_vcm/v1":  # whose cameras are of one modality
        index = dataclasses.replace(index, cameras=rng.integers(0, 2, 40, np.int32))
    embeddings = random_embeddings(40)
    for direction, ranking in rank(protocol, embeddings, index).items():
        for row, query in enumerate(ranking.queries.tolist()):
            allowed = [
                other
                for other in range(40)
                if other != query
                and identities[other] != "unknown"
                and (protocol.startswith("any") or index.modalities[other] == (direction == "v2i"))
                and not (
                    protocol.endswith("other-cameras")
                    and identities[other] == identities[query]
                    and index.cameras[other] == index.cameras[query]
                )
            ]
            expected = sorted(allowed, key=lambda other: -(embeddings[other] @ embeddings[query]))
            found, matches, first = analysis.first_matches(ranking, row, index.identities, 5)
            assert found == query and [match.position for match in matches] == expected[:5]
            same = [identities[other] == identities[query] for other in expected]
            assert [match.same for match in matches] == same[:5]
            for match in matches:
                assert match.score == pytest.approx(
                    embeddings[match.position] @ embeddings[query], abs=1e-6
                )
            assert first == (1 + same.index(True) if any(same) else 0)


def test_distances_count_every_pair_once(ranked):
    embeddings, index, _ = ranked
    identities = np.where(index.identities == "04", "unknown", index.identities)
    found = analysis.distance_densities(embeddings, identities, index.modalities)
    counts = {pair: [0, 0] for pair in found}
    within = {pair: [0, 0] for pair in found}  # a distance below 1
    known = np.flatnonzero(identities != "unknown")
    for i in known:
        for j in known[known > i]:
            pair = tuple(sorted((int(index.modalities[i]), int(index.modalities[j]))))
            different = int(identities[i] != identities[j])
            counts[pair][different] += 1
            within[pair][different] += 1 - embeddings[i] @ embeddings[j] < 1
    for pair, own in found.items():
        assert [own.num_same, own.num_different] == counts[pair]
        width = own.edges[1] - own.edges[0]
        for number, density in enumerate((own.same, own.different)):
            assert density.sum() * width == pytest.approx(1)
            share = density[own.edges[1:] <= 1 + 1e-9].sum() * width
            assert share == pytest.approx(within[pair][number] / counts[pair][number])


def test_identities_are_taken_whole():
    identities = np.array(["a", "b", "a", "c", "b", "a", "c", "d"])
    for limit in range(1, 9):
        chosen = analysis.whole_identities(identities, limit)
        assert (np.diff(chosen) > 0).all()
        rest = np.setdiff1d(np.arange(8), chosen)
        assert not set(identities[chosen]) & set(identities[rest])
        assert len(chosen) <= limit or len(set(identities[chosen])) == 1
    assert len(analysis.whole_identities(identities, 8)) == 8


def test_unknown_people_are_not_looked_at():
    """Neither in the distances nor in the map, whose identities would be one."""
    identities = np.array(["unknown", "b", "unknown", "a", "unknown", "b"])
    for limit in (2, 3, 6):
        chosen = analysis.whole_identities(identities, limit)
        assert "unknown" not in identities[chosen] and chosen.size
    assert analysis.whole_identities(identities, 6).tolist() == [1, 3, 5]


@pytest.mark.parametrize("n", [2, 5, 12])
def test_the_map_is_the_same_each_time(n):
    points = analysis.embedding_map(random_embeddings(n))
    assert points.shape == (n, 2) and np.isfinite(points).all()
    np.testing.assert_array_equal(points, analysis.embedding_map(random_embeddings(n)))


DECISIVE = 9  # the left wrist


class OneJointDecides:
    """Embeds a tracklet by the place of one joint; without it, all embeddings are the same."""

    uses_skeletons = True
    pooling = guidance = None

    def apply(self, variables, frames, keypoints, *, modality, train, mutable=()):
        assert modality in ("visible", "infrared") and not train
        x, _, confidence = jnp.moveaxis(keypoints[:, 0, DECISIVE], -1, 0)
        angle = jnp.where(confidence > 0, x, 0.0)
        output = types.SimpleNamespace(embedding=jnp.stack([jnp.cos(angle), jnp.sin(angle)], -1))
        return (output, {}) if mutable else output


def test_only_the_joint_that_decides_is_worth_anything():
    index = index_of(["a", "b", "c", "d"] * 2, [0] * 4 + [1] * 4)
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0.1, 1, (8, 2, 17, 3)).astype(np.float32)
    keypoints[:, :, DECISIVE, 0] = np.tile([0.5, 1.5, 2.5, 3.5], 2)[:, None]
    mesh = make_mesh()
    step = analysis.make_details_step(OneJointDecides(), "visible", mesh)
    inputs = put((np.zeros((8, 2, 4, 4, 3), np.uint8), keypoints), split_rows(mesh), 8)
    details = analysis.Details(**{name: np.asarray(x) for name, x in step({}, *inputs).items()})
    lost = analysis.joint_sensitivity("hitsz_vcm/v1", details.embeddings, details.hidden, index)
    # All entries tie without the joint and keep their order, so the matches are at ranks 1 to 4.
    expected = np.zeros(17)
    expected[DECISIVE] = 100 * (1 - np.mean([1, 1 / 2, 1 / 3, 1 / 4]))
    np.testing.assert_allclose(lost.mean, expected, atol=1e-6)
    of_identities = 100 * (1 - 1 / np.array([1, 2, 3, 4]))
    interval = stats.ttest_1samp(of_identities, 0).confidence_interval()
    ends = lost.low[DECISIVE], lost.high[DECISIVE]
    np.testing.assert_allclose(ends, np.minimum(interval, 100), rtol=1e-6)
    assert (lost.low[:5] == 0).all() and (lost.high[:5] == 0).all()
