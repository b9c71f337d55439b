"""NaN and infinity in parameters, statistics and weights files."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def find_not_finite(tree: Any) -> str | None:
    """Returns the path of the first array that contains NaN or infinity, or None.

    Arrays are reduced on their devices, and only one flag per array is copied to the host. In a run
    of several processes, all must call this.

    Args:
      tree: JAX arrays, which may be sharded, NumPy arrays and numbers. Integers, booleans and
        random keys are always finite.

    Returns:
      The path, with slashes ("params/backbone/stem_visible/bn/scale").
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)
    ]
    flags = jax.device_get(
        [
            _is_finite(leaf) if isinstance(leaf, jax.Array) else np.isfinite(leaf).all()
            for _, leaf in leaves
        ]
    )
    for (path, _), finite in zip(leaves, flags, strict=True):
        if not finite:
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


@jax.jit  # compiled per shape: one program for all arrays would take long to compile
def _is_finite(array: jax.Array) -> jax.Array:
    return jnp.isfinite(array).all()
