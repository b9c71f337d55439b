"""In the tests, each call checks its arrays against its annotations: `support/array_checks.py`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from data_pipelines.skeletons.sources import without_skeleton
from star_jax.evaluation.retrieval import RetrievalResult
from star_jax.losses import cross_entropy, modality_consistency
from star_jax.models import StyleSources
from star_jax.models.skeleton import EdgeSequence
from star_jax.models.star import l2_normalize

LOGITS = jnp.zeros((3, 5))


def test_arrays_that_fit_pass_also_those_of_numpy():
    np.testing.assert_allclose(l2_normalize(jnp.array([[3.0, 4.0]])), [[0.6, 0.8]], rtol=1e-6)
    np.testing.assert_allclose(l2_normalize(np.float32([[3, 4]])), [[0.6, 0.8]], rtol=1e-6)


def test_a_wrong_rank_is_an_error():
    with pytest.raises(TypeCheckError, match="parameter 'labels'"):
        cross_entropy(logits=LOGITS, labels=jnp.zeros((3, 1), jnp.int32))
    with pytest.raises(TypeCheckError, match="parameter 'x'"):
        l2_normalize(jnp.float32(1))


def test_a_wrong_dtype_is_an_error():
    with pytest.raises(TypeCheckError, match="parameter 'labels'"):
        cross_entropy(logits=LOGITS, labels=jnp.zeros(3))
    with pytest.raises(TypeCheckError, match="parameter 'keypoints'"):
        without_skeleton(np.zeros((2, 17, 3)))


def test_an_axis_that_differs_between_arguments_is_an_error():
    modality_consistency(visible_logits=LOGITS, infrared_logits=LOGITS)
    with pytest.raises(TypeCheckError, match="parameter 'infrared_logits'"):
        modality_consistency(visible_logits=LOGITS, infrared_logits=LOGITS[:2])


def test_modules_are_checked_under_transformations():
    keypoints, detected = jnp.ones((2, 4, 17, 3)), jnp.ones((2, 4, 17), bool)
    init = EdgeSequence(8).init
    jax.eval_shape(init, jax.random.key(0), keypoints, detected)
    with pytest.raises(TypeCheckError, match="parameter 'detected'"):
        jax.eval_shape(init, jax.random.key(0), keypoints, detected[:1])


def test_fields_of_a_dataclass_are_checked():
    ranks, shares = np.ones(2, np.int64), np.ones(2)
    RetrievalResult(ranks, shares, shares, ranks, num_gallery=2)
    with pytest.raises(TypeCheckError, match="parameter 'average_precision'"):
        RetrievalResult(ranks, np.ones((2, 2)), shares, ranks, num_gallery=2)


def test_a_tree_may_hold_what_describes_its_arrays():
    style = StyleSources(same=jnp.arange(4), other=jnp.arange(4))
    assert jax.eval_shape(lambda: style).same == jax.ShapeDtypeStruct((4,), jnp.int32)
    assert jax.tree.map(np.shape, style).other == (4,)
