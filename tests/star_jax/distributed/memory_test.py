"""Running out of memory: before a program runs, while it runs, and what is said about it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from data_pipelines.errors import InputError, OutOfMemoryError
from star_jax.distributed import memory
from star_jax.distributed.memory import Capacity

PETABYTE = 10**15


def compiled(rows):
    """Returns a program that keeps a matrix of `rows` x `rows` floats while it runs."""

    @jax.jit
    def program(x):
        matrix = jnp.sort(jnp.outer(x, x), axis=0)
        return matrix @ x

    return program.lower(jax.ShapeDtypeStruct((rows,), jnp.float32)).compile()


@pytest.mark.parametrize("sharing", [1, 8])
def test_a_program_must_fit(monkeypatch, sharing):
    program, matrix = compiled(1000), 4 * 1000 * 1000
    for num_bytes, fits in ((matrix * sharing - 1, False), (4 * matrix * sharing, True)):
        monkeypatch.setattr(memory, "capacity", lambda n=num_bytes: Capacity(n, sharing))
        if fits:
            memory.require(program, "a step", "shrink it")
        else:
            with pytest.raises(OutOfMemoryError, match=r"a step needs .* GB .*: shrink it"):
                memory.require(program, "a step", "shrink it")
    monkeypatch.setattr(memory, "capacity", lambda: None)
    memory.require(program, "a step", "shrink it")


def test_donated_arguments_are_counted_once(monkeypatch):
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    program = step.lower(jax.ShapeDtypeStruct((10**6,), jnp.float32)).compile()
    monkeypatch.setattr(memory, "capacity", lambda: Capacity(6 * 10**6, 1))
    memory.require(program, "a step", "shrink it")
    monkeypatch.setattr(memory, "capacity", lambda: Capacity(3 * 10**6, 1))
    with pytest.raises(OutOfMemoryError):
        memory.require(program, "a step", "shrink it")


def test_the_devices_of_a_cpu_share_its_memory():
    found = memory.capacity()
    assert found.num_sharing == jax.local_device_count() == 8
    assert 10**8 < found.num_bytes < PETABYTE


@pytest.mark.parametrize(
    ("content", "expected"), [("max\n", None), ("123456789\n", 123456789), (f"{2**63}", None)]
)
def test_a_container_may_use_less_than_its_machine_has(tmp_path, monkeypatch, content, expected):
    whole = memory.host_memory()
    (tmp_path / "memory.max").write_text(content)
    monkeypatch.setattr(memory, "_LIMITS", (f"{tmp_path}/memory.max", f"{tmp_path}/none"))
    found = memory.host_memory()
    assert found == expected if expected else found >= whole


def allocate_in_jax():
    jax.block_until_ready(jnp.ones(PETABYTE, jnp.float32))


def allocate_in_numpy():
    np.ones(PETABYTE)


@pytest.mark.parametrize("allocate", [allocate_in_jax, allocate_in_numpy])
def test_an_error_of_memory_says_what_to_do(allocate):
    with (
        pytest.raises(OutOfMemoryError, match="shrink the step") as caught,
        memory.explained("shrink the step"),
    ):
        allocate()
    assert isinstance(caught.value, MemoryError) and "\n" not in str(caught.value)
    # The innermost explanation is the closest to what has failed.
    with pytest.raises(OutOfMemoryError, match="shrink the step"), memory.explained("anything"):
        raise caught.value


@pytest.mark.parametrize(
    "error",
    [
        jax.errors.JaxRuntimeError("INVALID_ARGUMENT: of no memory"),
        jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Received message larger than max"),
        RuntimeError("no memory"),
        InputError("lower config.data.clip_length"),
        ValueError("out of memory"),
    ],
)
def test_any_other_error_stays_as_it_is(error):
    with pytest.raises(type(error)) as caught, memory.explained("shrink the step"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize(
    "text",
    [
        "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 36507222016 bytes.",
        "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space "
        "hbm. Used 36.51G of 15.48G hbm.",
        "RESOURCE_EXHAUSTED: Attempting to reserve 8.59G at the bottom of memory.",
        "RESOURCE_EXHAUSTED: Error allocating device buffer: Attempting to allocate 1.50G.",
        "INTERNAL: Failed to load in-memory CUBIN: CUDA_ERROR_OUT_OF_MEMORY: out of memory",
    ],
)
def test_errors_of_devices_are_recognized(text):
    with pytest.raises(OutOfMemoryError), memory.explained("shrink the step"):
        raise jax.errors.JaxRuntimeError(text)
