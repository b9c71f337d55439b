"""Several devices: the mesh, the shardings, and the same results on any number of them."""

import collections
import dataclasses
import functools
import re

import jax
import numpy as np
import pytest
import tiny

from star_jax.distributed import parallel
from star_jax.models import build_model
from star_jax.state import abstract_state, initial_state
from star_jax.training import steps

P = jax.sharding.PartitionSpec


def config(**changes):
    """Returns the config of the tiny network: 8 pairs of 2 frames per batch unless changed."""
    config = tiny.config("nowhere")
    config.model.backbone_options.width = 8
    config.model.num_identities = 32
    config.update_from_flattened_dict(changes)
    return config


@functools.cache
def batch(pairs, clip_length):
    rng = np.random.default_rng(0)
    keypoints = rng.uniform(0, 48, (pairs, clip_length, 2, 17, 3))
    keypoints[rng.uniform(size=keypoints.shape[:-1]) < 0.2] = 0
    return {
        "frames": rng.integers(0, 256, (pairs, clip_length, 2, 64, 48, 3)).astype(np.uint8),
        "keypoints": keypoints.astype(np.float32),
        "labels": np.repeat(np.arange(pairs // 2, dtype=np.int32), 2),
        "cameras": rng.integers(1, 13, (pairs, 2)).astype(np.int32),
        "positions": rng.integers(0, 99, (pairs, 2)).astype(np.int32),
    }


def pairs_of(config):
    return config.data.identities_per_batch * config.data.tracklets_per_identity


@functools.cache  # its shapes are those of all meshes, so that it is compiled once
def fresh_state():
    mesh = parallel.make_mesh(devices=jax.devices()[:1])
    return jax.device_get(initial_state(config(), build_model(config().model), 10, mesh))


def compiled_step(config, devices):
    """Returns the compiled step, the initial state and the batch on a mesh."""
    mesh = parallel.make_mesh(config, devices)
    model = build_model(config.model)
    abstract = abstract_state(config, model, 10, mesh)
    state = jax.tree.map(lambda x, on: jax.device_put(x, on.sharding), fresh_state(), abstract)
    step = steps.make_train_step(config, model, 10, mesh)
    pairs = pairs_of(config)
    on_devices = parallel.put(
        batch(pairs, config.data.clip_length), parallel.batch_shardings(mesh), pairs
    )
    return step, state, on_devices


def trained(config, devices):
    """Returns state and metrics after a step; momentum is the gradient plus weight decay."""
    step, state, on_devices = compiled_step(config, devices)
    state, metrics = step(state, on_devices)
    return jax.device_get((dataclasses.asdict(state), metrics))


@functools.cache
def trained_on_one(identities, clip_length):
    return trained(
        config(**{"data.identities_per_batch": identities, "data.clip_length": clip_length}),
        jax.devices()[:1],
    )


def assert_same(found, expected):
    (state, metrics), (expected_state, expected_metrics) = found, expected
    for name, value in expected_metrics.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    # Sums in a different order may flip a ReLU, which changes a few gradients before it.
    close = []
    for (path, one), other in zip(
        jax.tree_util.tree_leaves_with_path(expected_state), jax.tree.leaves(state), strict=True
    ):
        largest = np.abs(one).max(initial=0.0)
        np.testing.assert_allclose(
            other, one, rtol=0, atol=1e-5 + 0.05 * largest, err_msg=str(path)
        )
        close.append(np.isclose(other, one, rtol=1e-5, atol=1e-5).ravel())
    assert np.concatenate(close).mean() > 0.99


# identities of 2 pairs, frames per clip, devices for parameters; and the resulting mesh
MESHES = {
    "pairs": (4, 2, 1, (8, 1, 1)),
    "pairs, parameters in two": (4, 2, 2, (4, 2, 1)),
    "frames in two": (2, 2, 1, (4, 1, 2)),
    "frames in four": (1, 4, 1, (2, 1, 4)),
    "frames in two, parameters in four": (2, 2, 4, (1, 4, 2)),
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("identities", "clip_length", "fsdp", "shape"), MESHES.values(), ids=MESHES.keys()
)
def test_eight_devices_train_as_one(identities, clip_length, fsdp, shape):
    changes = {
        "data.identities_per_batch": identities,
        "data.clip_length": clip_length,
        "parallel.fsdp": fsdp,
    }
    assert parallel.make_mesh(config(**changes)).devices.shape == shape
    assert_same(trained(config(**changes), jax.devices()), trained_on_one(identities, clip_length))


@pytest.mark.slow
def test_rematerialized_blocks_give_the_same_numbers():
    changes = {"data.identities_per_batch": 2, "data.clip_length": 2}
    remat = trained(config(**changes, **{"model.remat": True}), jax.devices()[:1])
    assert_same(remat, trained_on_one(2, 2))


COLLECTIVE = re.compile(r"= (.*?) (all-[a-z]+|reduce-scatter|collective-permute)(-start)?\(")


def collectives(config):
    """Returns the collectives of the compiled step: kind and bytes, 4 bytes per element."""
    step, state, on_devices = compiled_step(config, jax.devices())
    found = []
    for shapes, kind, _ in COLLECTIVE.findall(step.lower(state, on_devices).compile().as_text()):
        sizes = re.findall(r"[fsu]\d+\[([\d,]*)\]", shapes)
        numbers = sum(int(np.prod([int(n) for n in size.split(",") if n])) for size in sizes)
        found.append((kind, 4 * numbers))
    return found, 4 * sum(x.size for x in jax.tree.leaves(state.params))


@pytest.mark.slow  # what `optimized` changes comes after the passes that add collectives
@pytest.mark.parametrize("identities", [4, 2], ids=["pairs", "frames in two"])
def test_only_gradients_are_large_among_what_devices_exchange(identities):
    found, params = collectives(config(**{"data.identities_per_batch": identities}))
    gradients = sum(size for kind, size in found if kind == "all-reduce")
    assert params < gradients < 2 * params  # and statistics of frames
    frames_of_a_device = 64 * 48 * 3 * 4 * (2 * 2 * identities * 2) // 8
    assert all(size < frames_of_a_device for kind, size in found if kind != "all-reduce")


@pytest.mark.slow
def test_nothing_is_compiled_after_the_first_step():
    step, state, on_devices = compiled_step(config(), jax.devices())
    state, metrics = step(state, on_devices)
    before = step._cache_size()
    for _ in range(3):
        state, metrics = step(state, on_devices)
        jax.block_until_ready(metrics)
    assert step._cache_size() == before == 1


@pytest.mark.slow
def test_parameters_are_split_and_nothing_else():
    mesh = parallel.make_mesh(config(**{"parallel.fsdp": 4}))
    state = initial_state(config(), build_model(config().model), 10, mesh)
    split = collections.Counter()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        is_split = leaf.sharding.spec != P()
        split[is_split] += leaf.size
        if is_split:
            assert leaf.size >= 2**14 and name.startswith(("params", "opt_state")), name
            shard = leaf.addressable_shards[0].data
            assert shard.size * 4 == leaf.size, name
    assert split[True] > split[False]


def test_rules():
    mesh = parallel.make_mesh(config(**{"parallel.fsdp": 4}))

    def spec(path, *shape):
        tree = {path: jax.ShapeDtypeStruct(shape, np.float32)}
        return parallel.state_shardings(mesh, tree)[path].spec

    assert spec("params/backbone/conv/kernel", 3, 3, 128, 256) == P(None, None, None, "fsdp")
    assert spec("params/classifier/kernel", 2048, 500) == P("fsdp")
    assert spec("params/square/kernel", 512, 512) == P(None, "fsdp")
    assert spec("params/small/kernel", 16, 16) == P()
    assert spec("params/odd/kernel", 333, 555) == P()
    assert spec("params/norm/scale", 2**16) == P()
    assert spec("batch_stats/norm/mean", 2**16) == P()


def test_devices_that_do_not_fit_are_refused_with_those_that_would():
    with pytest.raises(ValueError, match="use 1, 2, 3, 6 devices, or a multiple of 8 pairs"):
        parallel.make_mesh(config(**{"data.identities_per_batch": 3}))
    with pytest.raises(ValueError, match=r"config.parallel.fsdp is 3: it must divide 8"):
        parallel.make_mesh(config(**{"parallel.fsdp": 3}))
    with pytest.raises(
        ValueError, match="it must divide 4"
    ):  # parameters are not split over frames
        parallel.make_mesh(config(**{"data.identities_per_batch": 2, "parallel.fsdp": 8}))
    assert parallel.usable_devices(16, 12, 256) == [1, 2, 4, 8, 16, 32, 48, 64, 96, 192]


def test_rows_are_put_where_they_belong():
    mesh = parallel.make_mesh(config(**{"data.identities_per_batch": 2}))
    shardings = parallel.batch_shardings(mesh)
    given = batch(4, 2)
    on_devices = parallel.put(given, shardings, 4)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(on_devices), given)
    for shard in on_devices["frames"].addressable_shards:
        assert shard.data.shape == (1, 1, 2, 64, 48, 3)  # one frame of each tracklet of a pair
    assert parallel.local_rows(shardings["labels"], (4,)) == [0, 1, 2, 3]


@pytest.mark.parametrize("order", [(0, 4, 1, 5, 2, 6, 3, 7), (7, 0, 6, 1, 5, 2, 4, 3)])
def test_a_process_whose_devices_are_no_neighbors_loads_its_rows_only(order):
    devices = [jax.devices()[i] for i in order]
    shardings = parallel.batch_shardings(parallel.make_mesh(config(), devices))
    given = batch(8, 2)

    class OfTheFirstHalf:
        """A sharding as seen by one process of two."""

        def addressable_devices_indices_map(self, shape):
            indices = shardings["labels"].addressable_devices_indices_map(shape)
            return {device: indices[device] for device in jax.devices()[:4]}

    rows = parallel.local_rows(OfTheFirstHalf(), (8,))
    assert rows == sorted(order.index(i) for i in range(4))
    # This process has all devices here, so all rows are put, each in its place.
    on_devices = parallel.put(given, shardings, 8)
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(on_devices), given)
    np.testing.assert_array_equal(parallel.local_part(on_devices["labels"]), given["labels"])
