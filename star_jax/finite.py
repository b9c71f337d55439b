"""Numbers that no network can compute with: NaN, infinity and negative variances."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Running variances: of Flax by path, of PyTorch by name.
_VARIANCE = re.compile(r"(^|/)batch_stats/(.*/)?var$|(^|[./])running_var$")


def find_unusable(tree: Any) -> str | None:
    """Returns which array contains NaN, infinity or a negative running variance, the first one.

    Arrays are reduced on their devices, and only flags are copied to the host. In a run of several
    processes, all must call this.

    Args:
      tree: JAX arrays, which may be sharded, NumPy arrays and numbers. Integers, booleans and
        random keys are never unusable.

    Returns:
      The beginning of a sentence, such as "params/backbone/stem_visible/bn/scale contains NaN or
      infinity", or None.
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)
    ]
    facts = jax.device_get(
        [_facts(leaf) if isinstance(leaf, jax.Array) else _facts_of(np, leaf) for _, leaf in leaves]
    )
    for (path, _), (finite, not_negative) in zip(leaves, facts, strict=True):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not finite:
            return f"{name} contains NaN or infinity"
        if not not_negative and _VARIANCE.search(name):
            return f"{name} contains a negative variance"
    return None


def _facts_of(numpy: Any, array: Any) -> tuple[Any, Any]:
    """Returns whether all values are finite, and whether none is negative."""
    return numpy.all(numpy.isfinite(array)), numpy.all(array >= 0)


@jax.jit  # compiled per shape: one program for all arrays would take long to compile
def _facts(array: jax.Array) -> tuple[jax.Array, jax.Array]:
    return _facts_of(jnp, array)
