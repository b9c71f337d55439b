"""Checksums of arrays, against the same sums with Python integers."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from star_jax.distributed import parallel
from star_jax.runs.checksums import checksums


def twin(array):
    """Computes the checksum element by element."""
    array = np.ascontiguousarray(array)
    kind = {1: "u1", 2: "u2", 4: "u4"}[array.dtype.itemsize]
    total = 0
    for position, bits in enumerate(array.reshape(-1).view(kind).tolist()):
        x = (bits + position * 0x9E3779B1) % 2**32
        x = (x ^ x >> 16) * 0x85EBCA6B % 2**32
        x = (x ^ x >> 13) * 0xC2B2AE35 % 2**32
        total += x ^ x >> 16
    return f"{total % 2**32:08x}"


def random_array(shape, dtype):
    rng = np.random.default_rng(math.prod(shape))
    return rng.standard_normal(shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int32", "bool", "float16", "uint8", jnp.bfloat16])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 5), (2, 3, 4, 5)])
def test_against_the_twin(shape, dtype):
    array = random_array(shape, dtype)
    expected = {"a": twin(array), "b/0": twin(array)}
    assert checksums({"a": jnp.asarray(array), "b": [array]}) == expected


def test_every_flipped_bit_is_noticed():
    array = random_array((4, 3), np.float32)
    before = checksums({"x": array})
    for element in range(array.size):
        for bit in range(32):
            bits = array.view(np.uint32).copy()
            bits.reshape(-1)[element] ^= np.uint32(1 << bit)
            assert checksums({"x": bits.view(np.float32)}) != before


@settings(max_examples=50, deadline=None)
@given(st.permutations(range(6)))
def test_the_order_counts(order):
    array = np.arange(6, dtype=np.float32)
    same = list(order) == list(range(6))
    assert (checksums([array[list(order)]]) == checksums([array])) == same


@pytest.mark.parametrize("spec", [("data",), (None, "data"), (("data", "fsdp"), "frames")])
def test_any_sharding_gives_the_same(spec):
    array = random_array((16, 8, 3), np.float32)
    mesh = jax.make_mesh((2, 2, 2), parallel.AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    sharded = jax.device_put(array, NamedSharding(mesh, PartitionSpec(*spec)))
    assert checksums([sharded]) == checksums([array]) == {"0": twin(array)}
