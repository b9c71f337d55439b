"""NaN and infinity in parameters, statistics and weights files."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec


def find_not_finite(tree: Any) -> str | None:
    """Returns the path of the first array that holds NaN or infinity, None if there is none.

    Arrays on devices are reduced where they are, all in one program, so that one flag an array
    reaches the host. In a run of several processes all must call this.

    Args:
      tree: of JAX arrays, which may be sharded, NumPy arrays and numbers. Integers, booleans and
        random keys are always finite.

    Returns:
      The path, with slashes ("params/backbone/stem_visible/bn/scale").
    """
    leaves = [
        (path, leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        if jnp.issubdtype(getattr(leaf, "dtype", type(leaf)), jnp.inexact)
    ]
    on_devices = [leaf for _, leaf in leaves if isinstance(leaf, jax.Array)]
    flags = iter(_flags(on_devices)) if on_devices else iter(())
    for path, leaf in leaves:
        finite = next(flags) if isinstance(leaf, jax.Array) else np.isfinite(leaf).all()
        if not finite:
            return jax.tree_util.keystr(path, simple=True, separator="/")
    return None


def _flags(arrays: list[jax.Array]) -> np.ndarray:
    meshes = [array.sharding.mesh for array in arrays if isinstance(array.sharding, NamedSharding)]
    everywhere = NamedSharding(meshes[0], PartitionSpec()) if meshes else None
    return np.asarray(jax.jit(_all_finite, out_shardings=everywhere)(arrays))


def _all_finite(arrays: list[jax.Array]) -> jax.Array:
    return jnp.stack([jnp.isfinite(array).all() for array in arrays])
