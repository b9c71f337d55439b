"""Random keys by name."""

import zlib

import jax
from jaxtyping import Array, Key


def stream(key: Key[Array, ""], name: str) -> Key[Array, ""]:
    """Returns the random key of a named stream; adding a stream does not change the others."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)
