"""NaN, infinity and negative variances are found wherever they are."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from star_jax.distributed.parallel import AXES
from star_jax.trees import find_unusable


def tree():
    largest = np.finfo(np.float32).max  # whose sum is infinite
    return {
        "params": {
            "conv": {"kernel": jnp.full((3, 3), largest), "bias": np.zeros(3)},
            "half": jnp.ones((2, 5), jnp.bfloat16),
            "stored": np.ones(4, ml_dtypes.bfloat16),
        },
        "stats": [np.full((4, 4), largest, np.float32), jnp.zeros(0), 1.5],
        "step": jnp.array(2**31 - 1, jnp.int32),
        "random": jax.random.key(0),
        "nothing": None,
    }


def named(arrays):
    """Returns the name of the unusable array."""
    return find_unusable(arrays).split(" ")[0]


def test_finite_arrays_of_all_kinds():
    assert find_unusable(tree()) is None
    assert find_unusable({}) is None


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, -1])
def test_the_array_is_named(value, place):
    for path in ("params/conv/kernel", "params/conv/bias", "params/half", "params/stored"):
        spoilt = tree()
        *folders, name = path.split("/")
        inner = spoilt
        for folder in folders:
            inner = inner[folder]
        array = np.array(inner[name])
        array.flat[place] = value
        inner[name] = jnp.asarray(array) if isinstance(inner[name], jax.Array) else array
        assert named(spoilt) == path
    spoilt = tree()
    spoilt["stats"][2] = value
    assert named(spoilt) == "stats/2"
    spoilt["params"]["half"] = spoilt["params"]["half"].at[place].set(value)
    assert named(spoilt) == "params/half"


@pytest.mark.parametrize("kind", [jnp.asarray, np.asarray])
@pytest.mark.parametrize(
    ("path", "refused"),
    [
        ("batch_stats/bnneck/var", True),
        ("batch_stats/backbone/stem_visible/bn/var", True),
        ("layer1.0.bn1.running_var", True),
        ("batch_stats/bnneck/mean", False),
        ("params/bnneck/var", False),  # a parameter that somebody called so
        ("layer1.0.bn1.running_mean", False),
    ],
)
def test_only_variances_must_not_be_negative(path, refused, kind):
    arrays = {"params": {"kernel": -np.ones(3, np.float32)}}
    *folders, name = path.split("/")
    inner = arrays
    for folder in folders:
        inner = inner.setdefault(folder, {})
    inner[name] = kind(np.array([1, 0, 2], np.float32))
    assert find_unusable(arrays) is None
    inner[name] = kind(np.array([1, -1e-20, 2], np.float32))
    assert (find_unusable(arrays) or "").startswith(path) == refused


@pytest.mark.parametrize("row", [0, 5, 15])
def test_arrays_that_are_split_over_devices(row):
    mesh = jax.make_mesh((2, 4, 1), AXES, axis_types=(jax.sharding.AxisType.Auto,) * 3)
    array = np.zeros((16, 3), np.float32)
    split = NamedSharding(mesh, PartitionSpec(("data", "fsdp")))
    arrays = {"whole": jnp.zeros(3), "split": jax.device_put(array, split)}
    assert find_unusable(arrays) is None
    array[row, 1] = np.nan
    assert named(arrays | {"split": jax.device_put(array, split)}) == "split"


def test_it_compiles_once_a_shape(caplog):
    jax.config.update("jax_log_compiles", True)
    try:
        arrays = {"a": jnp.zeros((7, 3)), "b": jnp.ones(11)}
        for _ in range(3):
            find_unusable(arrays)
    finally:
        jax.config.update("jax_log_compiles", False)
    assert sum("Compiling jit(_facts)" in line for line in caplog.messages) == 2
