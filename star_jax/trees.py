"""Arrays of a tree by name, and numbers that no network can compute with."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Running variances: of Flax by path, of PyTorch by name.
_VARIANCE = re.compile(r"(^|/)batch_stats/(.*/)?var$|(^|[./])running_var$")


def name_at(path: Any) -> str:
    """Returns the name of a leaf by its path, such as "params/backbone/conv1/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def named_leaves(tree: Any, is_leaf: Callable[[Any], bool] | None = None) -> list[tuple[str, Any]]:
    """Returns the leaves of a tree with their names."""
    leaves = jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf)
    return [(name_at(path), leaf) for path, leaf in leaves]


def find_unusable(tree: Any) -> str | None:
    """Returns which array contains NaN, Inf or a negative running variance, the first one.

    Arrays are reduced on their devices, and only flags are copied to the host. In a run of several
    processes, all must call this.

    Args:
      tree: JAX arrays, which may be sharded, NumPy arrays and numbers. Integers, booleans and
        random keys are never unusable.

    Returns:
      The beginning of a sentence, such as "params/backbone/stem_visible/bn/scale contains NaN or
      Inf", or None.
    """
    leaves = [
        (name, leaf)
        for name, leaf in named_leaves(tree)
        if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)
    ]
    facts = jax.device_get(
        [_facts(leaf) if isinstance(leaf, jax.Array) else _facts_of(np, leaf) for _, leaf in leaves]
    )
    for (name, _), (finite, not_negative) in zip(leaves, facts, strict=True):
        if not finite:
            return f"{name} contains NaN or Inf"
        if not not_negative and _VARIANCE.search(name):
            return f"{name} contains a negative variance"
    return None


def _facts_of(numpy: Any, array: Any) -> tuple[Any, Any]:
    """Returns whether all values are finite, and whether none is negative."""
    return numpy.all(numpy.isfinite(array)), numpy.all(array >= 0)


@jax.jit  # compiled per shape: one program for all arrays would take long to compile
def _facts(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _facts_of(jnp, array)


def is_masked(values: Any) -> bool:
    """Returns whether values are a masked array, or a list or an array of objects with some.

    NumPy drops the mask when it makes a plain array of them.
    """
    if np.ma.isMaskedArray(values):
        return True
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = values.ravel().tolist()
    return isinstance(values, list | tuple) and any(map(is_masked, values))
