"""Every loss against loops and hand-worked numbers, and their combination."""

import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs import star_synthetic_demo
from data_pipelines.errors import InputError
from star_jax import losses
from star_jax.losses import LOSSES, Losses, build_losses
from star_jax.models import StarOutput

PAIRS, T, C, N = 3, 2, 8, 5
LABELS = np.array([0, 0, 2], np.int32)


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(row):
    powers = [np.exp(float(x) - float(max(row))) for x in row]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * np.log(a / b) for a, b in zip(p, q, strict=True))


def cross_entropy_by_loops(logits, labels):
    rows = zip(logits.reshape(-1, logits.shape[-1]), labels.ravel(), strict=True)
    return np.mean([-np.log(softmax(row)[label]) for row, label in rows])


def batch_hard_by_loops(embeddings, labels, margin):
    terms = []
    for anchor, label in zip(embeddings, labels, strict=True):
        distances = [np.linalg.norm(anchor - other) for other in embeddings]
        positives = [d for d, other in zip(distances, labels, strict=True) if other == label]
        negatives = [d for d, other in zip(distances, labels, strict=True) if other != label]
        terms.append(max(max(positives) - min(negatives) + margin, 0))
    return np.mean(terms)


def defense_by_loops(features, disturbed):
    return np.mean(
        [
            np.linalg.norm(clean - other)
            for rows in zip(features, disturbed, strict=True)
            for clean, other in zip(*rows, strict=True)
        ]
    )


def modality_consistency_by_loops(visible, infrared):
    pairs = [(softmax(a), softmax(b)) for a, b in zip(visible, infrared, strict=True)]
    return np.mean([kl(p, q) + kl(q, p) for p, q in pairs])


def skeleton_consistency_by_loops(joints, edges):
    return np.mean([kl(softmax(e), softmax(j)) for j, e in zip(joints, edges, strict=True)])


@pytest.mark.parametrize("shape", [(6,), (3, 4)])
def test_cross_entropy(shape):
    labels = np.random.default_rng(1).integers(0, N, shape).astype(np.int32)
    logits = 3 * random(0, *shape, N)
    loss = losses.cross_entropy(logits=logits, labels=labels)
    np.testing.assert_allclose(loss, cross_entropy_by_loops(logits, labels), rtol=1e-5)


def test_cross_entropy_by_hand():
    # Equal logits over four classes, and a probability of 3/4 for the correct one of two.
    even = losses.cross_entropy(logits=jnp.zeros((2, 4)), labels=jnp.array([0, 3]))
    np.testing.assert_allclose(even, np.log(4), rtol=1e-6)
    likely = losses.cross_entropy(logits=jnp.log(jnp.array([[3.0, 1.0]])), labels=jnp.array([0]))
    np.testing.assert_allclose(likely, np.log(4 / 3), rtol=1e-6)


@pytest.mark.parametrize("wrong", [-1, N, 1000])
def test_a_label_without_a_class_is_no_other_class(wrong):
    """Indexing takes -1 for the last class, which would train the network on wrong identities."""
    logits, labels = random(0, 3, N), np.array([0, wrong, 2], np.int32)
    loss = lambda logits, labels: losses.cross_entropy(logits=logits, labels=labels)  # noqa: E731
    with pytest.raises(InputError, match=f"{wrong}: "):
        loss(logits, labels)
    with pytest.raises(InputError, match=f"{wrong}: "):
        jax.jit(lambda logits: loss(logits, labels))(logits)  # a constant of the program
    assert np.isnan(jax.jit(loss)(logits, labels))
    assert np.isfinite(jax.jit(loss)(logits, LABELS))


@pytest.mark.parametrize(("labels", "named"), [([0, 0, 1, -1], "-1"), ([3, 3, 3, 3], "3")])
def test_a_triplet_needs_two_identities(labels, named):
    labels = np.array(labels, np.int32)
    with pytest.raises(InputError, match=named):
        losses.batch_hard_triplet(embeddings=random(0, 4, C), labels=labels)


def test_pairwise_distances_far_from_the_origin():
    a, b = 1000 + random(0, 5, C), 1000 + random(1, 4, C)
    expected = [[np.linalg.norm(x.astype(float) - y) for y in b] for x in a]
    np.testing.assert_allclose(losses.pairwise_distances(a=a, b=b), expected, rtol=1e-4)


@settings(deadline=None, max_examples=25)
@given(
    seed=st.integers(0, 1000),
    labels=st.lists(st.integers(0, 3), min_size=6, max_size=6).filter(lambda x: len(set(x)) > 1),
    scale=st.sampled_from([0.01, 0.3, 5.0]),
)
def test_batch_hard_triplet(seed, labels, scale):
    embeddings = scale * random(seed, len(labels), C)
    labels = np.array(labels, np.int32)
    loss = losses.batch_hard_triplet(embeddings=embeddings, labels=labels)
    # An anchor without other positives is its own positive, at distance 1e-6 instead of 0.
    expected = batch_hard_by_loops(embeddings, labels, 0.3)
    np.testing.assert_allclose(loss, expected, rtol=1e-4, atol=1e-5)


def test_batch_hard_triplet_by_hand():
    # On a line: identity 0 at 0 and 3, identity 1 at 4 and 4.1.
    embeddings = jnp.array([[0.0], [3.0], [4.0], [4.1]])
    labels = jnp.array([0, 0, 1, 1])
    # 3 - 4 + 0.3 < 0;  3 - 1 + 0.3 = 2.3;  0.1 - 1 + 0.3 < 0;  0.1 - 1.1 + 0.3 < 0
    loss = losses.batch_hard_triplet(embeddings=embeddings, labels=labels)
    np.testing.assert_allclose(loss, 2.3 / 4, rtol=1e-5)
    wider = losses.batch_hard_triplet(embeddings=embeddings, labels=labels, margin=1.0)
    # 0;  3;  0.1 - 1 + 1 = 0.1;  0.1 - 1.1 + 1 = 0
    np.testing.assert_allclose(wider, 3.1 / 4, rtol=1e-5)


def test_batch_hard_triplet_of_equal_rows_has_a_finite_gradient():
    loss = lambda x: losses.batch_hard_triplet(embeddings=x, labels=jnp.array([0, 0, 1, 1]))  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(jnp.ones((4, C)))
    np.testing.assert_allclose(value, 0.3, rtol=1e-5)
    assert np.isfinite(gradient).all()


def test_defense():
    features, disturbed = random(0, PAIRS, T, C), random(1, PAIRS, T, C)
    loss = losses.defense(features=features, disturbed=disturbed)
    np.testing.assert_allclose(loss, defense_by_loops(features, disturbed), rtol=1e-5)


def test_defense_by_hand():
    # Distances 5 (3, 4), 0, 0 and 13 (5, 12).
    features = jnp.zeros((2, 2, 2))
    disturbed = jnp.array([[[3.0, 4.0], [0.0, 0.0]], [[0.0, 0.0], [-5.0, 12.0]]])
    loss = losses.defense(features=features, disturbed=disturbed)
    np.testing.assert_allclose(loss, 18 / 4, rtol=1e-6)


def test_defense_of_equal_features_has_a_finite_gradient():
    features = random(0, PAIRS, T, C)
    gradient = jax.grad(lambda x: losses.defense(features=x, disturbed=features))(features)
    assert np.isfinite(gradient).all()


def test_modality_consistency():
    visible, infrared = 2 * random(0, PAIRS, N), 2 * random(1, PAIRS, N)
    loss = losses.modality_consistency(visible_logits=visible, infrared_logits=infrared)
    np.testing.assert_allclose(loss, modality_consistency_by_loops(visible, infrared), rtol=1e-5)


def test_modality_consistency_by_hand():
    # (3/4, 1/4) and (1/4, 3/4): each KL is 3/4 log 3 - 1/4 log 3; the second pair agrees.
    visible = jnp.log(jnp.array([[3.0, 1.0], [1.0, 1.0]]))
    infrared = jnp.log(jnp.array([[1.0, 3.0], [5.0, 5.0]]))
    loss = losses.modality_consistency(visible_logits=visible, infrared_logits=infrared)
    np.testing.assert_allclose(loss, np.log(3) / 2, rtol=1e-6)


def test_skeleton_consistency():
    joints, edges = random(0, 2 * PAIRS, C), 2 * random(1, 2 * PAIRS, C)
    loss = losses.skeleton_consistency(joints=joints, edges=edges)
    np.testing.assert_allclose(loss, skeleton_consistency_by_loops(joints, edges), rtol=1e-5)


def test_skeleton_consistency_by_hand():
    # KL of the edges' (3/4, 1/4) from the joints' (1/2, 1/2), not the other way round.
    joints, edges = jnp.zeros((1, 2)), jnp.log(jnp.array([[3.0, 1.0]]))
    loss = losses.skeleton_consistency(joints=joints, edges=edges)
    expected = 3 / 4 * np.log(3 / 2) + 1 / 4 * np.log(1 / 2)
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


def network_output(**changes):
    output = StarOutput(
        frame_features=random(0, PAIRS, T, 2, C),
        disturbed=random(1, PAIRS, T, 2, C),
        edges=random(2, PAIRS, T, 2, C),
        edges_last=random(3, PAIRS, 2, C),
        guided=random(4, PAIRS, T, 2, C),
        graph=random(5, PAIRS, 2, C),
        skeleton=random(6, PAIRS, 2, 2 * C),
        tracklet=random(7, PAIRS, 2, C),
        embedding=random(8, PAIRS, 2, C),
        logits=random(9, PAIRS, 2, N),
        frame_logits=random(10, PAIRS, T, 2, N),
        disturbed_logits=random(11, PAIRS, T, 2, N),
        skeleton_logits=random(12, PAIRS, 2, N),
    )
    return output.replace(**changes)


def all_losses_by_loops(output):
    """Computes all losses in loops over the visible, then the infrared tracklets."""

    def rows(array, axis=1):
        return np.concatenate([np.take(array, modality, axis) for modality in (0, 1)])

    labels = np.concatenate([LABELS, LABELS])
    frames = np.repeat(labels[:, None], T, axis=1)
    skeletons = output.skeleton_logits
    return {
        "identity": cross_entropy_by_loops(rows(output.logits), labels),
        "triplet": batch_hard_by_loops(rows(output.tracklet), labels, 0.3),
        "frame_identity": cross_entropy_by_loops(rows(output.frame_logits, 2), frames),
        "disturbed_identity": cross_entropy_by_loops(rows(output.disturbed_logits, 2), frames),
        "defense": defense_by_loops(rows(output.frame_features, 2), rows(output.disturbed, 2)),
        "modality_consistency": modality_consistency_by_loops(skeletons[:, 0], skeletons[:, 1]),
        "skeleton_consistency": skeleton_consistency_by_loops(
            rows(output.graph), rows(output.edges_last)
        ),
    }


def losses_of(output, weights):
    parts = tuple((name, weight, LOSSES[name]) for name, weight in weights.items())
    return Losses(parts).apply({}, output, {"labels": LABELS}, jnp.int32(0))


def test_star_losses_are_those_of_the_loops_and_total_is_their_weighted_sum():
    weights = {name: 0.5 + i for i, name in enumerate(LOSSES)}
    output = network_output()
    values = losses_of(output, weights)
    expected = all_losses_by_loops(output)
    assert set(expected) == set(LOSSES)
    expected["total"] = sum(weights[name] * expected[name] for name in LOSSES)
    assert set(values) == set(expected)
    for name, value in values.items():
        assert value.shape == () and value.dtype == jnp.float32, name
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, err_msg=name)


def test_a_weight_of_zero_leaves_a_loss_out():
    config = star_synthetic_demo.get_config()
    config.losses.update({"triplet": 0.0, "defense": 0})
    built = build_losses(config)
    assert {name for name, _, _ in built.parts} == set(LOSSES) - {"triplet", "defense"}
    assert not built.has_state
    values = built.apply({}, network_output(), {"labels": LABELS}, jnp.int32(0))
    assert set(values) == set(LOSSES) - {"triplet", "defense"} | {"total"}


def ten(output, batch, step):
    return jnp.float32(10)


def one(output, batch, step):
    return jnp.float32(1)


@pytest.mark.parametrize(
    ("extra", "name"),
    [
        ((("first_losses:extra", 1.0), ("second_losses:extra", 1.0)), "extra"),
        ((("first_losses:extra", 1.0), ("first_losses:extra", 0.5)), "extra"),
        ((("first_losses:triplet", 1.0),), "triplet"),
        ((("first_losses:total", 1.0),), "total"),
    ],
)
def test_losses_of_one_name_are_refused(extra, name, monkeypatch):
    """Metrics would list one of them, and the total hold both."""
    for module, loss in {"first_losses": ten, "second_losses": one}.items():
        named = types.SimpleNamespace(extra=loss, triplet=loss, total=loss)
        monkeypatch.setitem(sys.modules, module, named)
    config = star_synthetic_demo.get_config()
    config.losses.extra = extra
    with pytest.raises(InputError, match=r"config\.losses\.extra") as caught:
        build_losses(config)
    assert extra[-1][0] in str(caught.value) and repr(name) in str(caught.value)


def test_a_loss_may_replace_one_of_the_same_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "first_losses", types.SimpleNamespace(triplet=ten))
    config = star_synthetic_demo.get_config()
    config.losses.update(dict.fromkeys(LOSSES, 0.0))
    config.losses.extra = (("first_losses:triplet", 0.5), ("first_losses:triplet", 0.0))
    values = build_losses(config).apply({}, network_output(), {"labels": LABELS}, jnp.int32(0))
    assert values == {"triplet": 10, "total": 5}


def test_losses_of_missing_branches_are_left_out():
    weights = dict.fromkeys(LOSSES, 1.0)
    no_style = network_output(disturbed=None, disturbed_logits=None)
    values = losses_of(no_style, weights)
    assert set(values) == set(LOSSES) - {"disturbed_identity", "defense"} | {"total"}
    no_skeleton = network_output(skeleton_logits=None, graph=None, edges=None, edges_last=None)
    values = losses_of(no_skeleton, weights)
    consistency = {"modality_consistency", "skeleton_consistency"}
    assert set(values) == set(LOSSES) - consistency | {"total"}
