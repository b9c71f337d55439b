"""The device mesh, the shardings, and the transfer of batches to devices.

The mesh has three axes. Pairs of tracklets are split over `data` and `fsdp`, the frames of a pair
over `frames`, and parameters over `fsdp`; everything else is replicated.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Shaped

from data_pipelines.errors import InputError
from star_jax.config import Config
from star_jax.trees import name_at

AXES = ("data", "fsdp", "frames")
_ROWS = ("data", "fsdp")

# Which arrays of a training state are split over `fsdp`: the first pattern that matches an array's
# path decides. "largest" splits the longest axis that divides evenly, the last of equal ones. Small
# arrays are replicated, since gathering them would cost more than the memory they take.
RULES = (
    (r"batch_stats|step$", "whole"),
    (r"(scale|bias)$", "whole"),
    (r"", "largest"),
)
_SMALL = 2**14  # elements


def make_mesh(config: Config | None = None, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns the mesh for training with a config or, without one, for embedding.

    Up to as many devices as a batch has pairs, each device gets whole pairs. With more, several
    devices share the frames of each pair. The axes are `Auto`, since JAX's default of explicit axes
    rejects plain gathers such as those of graphs.

    Args:
      config: an experiment; `data` and `parallel` are read.
      devices: the devices to use; all if None.

    Raises:
      InputError: the devices do not fit the batch or `config.parallel.fsdp`; says what would.
    """
    devices = jax.devices() if devices is None else devices
    if config is None:
        shape = (len(devices), 1, 1)
    else:
        pairs = config.data.identities_per_batch * config.data.tracklets_per_identity
        groups = math.gcd(len(devices), pairs)
        fsdp, frames = config.parallel.fsdp, len(devices) // groups
        fits = usable_devices(pairs, config.data.clip_length, len(devices))
        if len(devices) not in fits:
            raise InputError(
                f"{len(devices)} devices cannot share {pairs} pairs of tracklets "
                "(config.data.identities_per_batch * tracklets_per_identity) of "
                f"{config.data.clip_length} frames: use {', '.join(map(str, fits))} devices, or a "
                f"multiple of {len(devices)} pairs"
            )
        if fsdp < 1 or groups % fsdp:
            raise InputError(
                f"config.parallel.fsdp is {fsdp}: it must divide {groups}, the number of groups "
                f"into which {len(devices)} devices split {pairs} pairs"
            )
        shape = (groups // fsdp, fsdp, frames)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def usable_devices(pairs: int, clip_length: int, most: int) -> list[int]:
    """Returns the device counts up to `most` that can split a batch by pairs or by frames."""
    whole = [n for n in range(1, min(pairs, most) + 1) if pairs % n == 0]
    shared = [pairs * n for n in range(2, clip_length + 1) if clip_length % n == 0]
    return [n for n in whole + shared if n <= most]


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of arrays that are replicated on every device."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of clips to embed: rows split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def batch_shardings(mesh: Mesh) -> dict[str, Any]:
    """Returns the shardings of a `data_pipelines.schema.TrainBatch`."""
    pairs, frames = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((_ROWS,), (_ROWS, "frames"))
    )
    rows = dict.fromkeys(("keypoints", "labels", "cameras", "positions"), pairs)
    return {"frames": frames, **rows}


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """Returns the shardings of a tree of arrays, or of their shapes, by `RULES`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, _rule(mesh, name_at(path), leaf.shape)),
        state,
    )


def _rule(mesh: Mesh, path: str, shape: Sequence[int]) -> PartitionSpec:
    rule = next(rule for pattern, rule in RULES if re.search(pattern, path))
    fsdp = mesh.shape["fsdp"]
    axes = [axis for axis, size in enumerate(shape) if size % fsdp == 0]
    if rule == "whole" or fsdp == 1 or math.prod(shape) < _SMALL or not axes:
        return PartitionSpec()
    longest = max(axes, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*[None] * longest, "fsdp")


def local_rows(sharding: NamedSharding, shape: tuple[int, ...]) -> list[int]:
    """Returns the rows that devices of this process hold at least partly, in ascending order.

    They need not be contiguous: on a torus of chips, the chips of one machine are not consecutive
    in the mesh.
    """
    indices = sharding.addressable_devices_indices_map(shape).values()
    parts = [range(shape[0])[index[0]] for index in indices if index is not None]
    return sorted(set().union(*parts))


def put(tree: Any, shardings: Any, num_rows: int) -> Any:
    """Returns global arrays of `num_rows` rows, made from the rows that this process loaded.

    Args:
      tree: NumPy arrays whose first axis holds the `local_rows` of their sharding.
      shardings: one for all arrays, or a tree of them.
      num_rows: number of rows over all processes.
    """

    def global_array(part: np.ndarray, sharding: NamedSharding) -> jax.Array:
        shape = (num_rows, *part.shape[1:])
        rows = local_rows(sharding, shape)

        def piece(index: Any) -> np.ndarray:
            start, stop, _ = index[0].indices(num_rows)
            first, end = np.searchsorted(rows, (start, stop))
            return part[(slice(first, end), *index[1:])]

        return jax.make_array_from_callback(shape, sharding, piece)

    if isinstance(shardings, NamedSharding):
        shardings = jax.tree.map(lambda _: shardings, tree)
    return jax.tree.map(global_array, tree, shardings)


def local_part(array: Shaped[Array, " _ *row"]) -> Shaped[np.ndarray, " _ *row"]:
    """Returns the rows held by this process of an array sharded by `split_rows`."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def to_numpy(array: Any) -> np.ndarray:
    """Returns all of an array, of NumPy or on any devices, on every process."""
    if isinstance(array, jax.Array) and not (
        array.is_fully_addressable or array.is_fully_replicated
    ):
        array = multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(array)


def gather(tree: Any) -> Any:
    """Returns, on every process, the concatenated rows of all processes' NumPy arrays."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))
