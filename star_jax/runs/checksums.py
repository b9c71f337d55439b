"""Checksums of arrays, computed on their devices, for any sharding.

Orbax stores checksums of small arrays only. Our checkpoints contain one of every array, which
restoring compares.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from star_jax.trees import named_leaves


def checksums(tree: Any) -> dict[str, str]:
    """Returns a checksum of each array by its path in the tree, as eight hexadecimal digits.

    The bits of each element are hashed with its position, and the hashes are summed: each device
    reads its own shard once, and any sharding gives the same sum. The hash of an element is a
    bijection of its bits, so a change of one element always changes the checksum; other changes are
    missed once in 2^32.

    Args:
      tree: JAX or NumPy arrays with elements of at most four bytes.
    """
    leaves = named_leaves(tree)
    sums = jax.device_get([_hash_sum(leaf) for _, leaf in leaves])
    return {name: f"{int(value):08x}" for (name, _), value in zip(leaves, sums, strict=True)}


@jax.jit  # compiled per shape: one program for all arrays would take half a minute to compile
def _hash_sum(array: jax.Array) -> jax.Array:
    if array.dtype != jnp.bool:
        unsigned = jnp.dtype(f"uint{8 * array.dtype.itemsize}")
        array = jax.lax.bitcast_convert_type(array, unsigned)
    hashed = array.astype(jnp.uint32) + _positions(array.shape) * np.uint32(0x9E3779B1)
    # Multiplications by odd numbers and xor-shifts, each a bijection of 32 bits: the finalizer of
    # MurmurHash3 (Appleby, public domain).
    hashed = (hashed ^ hashed >> 16) * np.uint32(0x85EBCA6B)
    hashed = (hashed ^ hashed >> 13) * np.uint32(0xC2B2AE35)
    hashed = hashed ^ hashed >> 16
    return hashed.sum(dtype=jnp.uint32)


def _positions(shape: tuple[int, ...]) -> jax.Array:
    """Returns row-major positions without a reshape, which would gather a sharded array."""
    positions = jnp.zeros(shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(len(shape))):
        positions += jax.lax.broadcasted_iota(jnp.uint32, shape, axis) * np.uint32(stride)
        stride *= shape[axis]
    return positions
