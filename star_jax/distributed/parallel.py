"""One program for one chip or many: the mesh, the shardings and the way of a batch onto devices.

The mesh has three axes. Pairs of tracklets are split over `data` and `fsdp`, the frames of a pair
over `frames`, and parameters over `fsdp`; everything else is on every device.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import jax
import ml_collections
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from data_pipelines.errors import InputError

AXES = ("data", "fsdp", "frames")
_ROWS = ("data", "fsdp")

# Which of the arrays of a training state are split over `fsdp`: the first pattern that is found in
# an array's path decides. "largest" splits the longest axis that can be split evenly, the last of
# equals. Small arrays would cost more to gather than they take up.
RULES = (
    (r"batch_stats|step$", "whole"),
    (r"(scale|bias)$", "whole"),
    (r"", "largest"),
)
_SMALL = 2**14  # elements


def make_mesh(
    config: ml_collections.ConfigDict | None = None, devices: Sequence[jax.Device] | None = None
) -> Mesh:
    """The mesh for training as a config says; without one, for embedding rows of any kind.

    As many devices as there are pairs in a batch get whole pairs. If there are more, each pair goes
    to several, which share its frames. The axes are `Auto`: JAX's default, explicit axes, refuses
    plain gathers such as those of graphs.

    Args:
      config: an experiment; `data` and `parallel` are read.
      devices: all devices if None.

    Raises:
      ValueError: the devices do not suit the batch or `config.parallel.fsdp`; says what would.
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
    """The numbers of devices, up to `most`, that can share a batch by pairs or by their frames."""
    whole = [n for n in range(1, min(pairs, most) + 1) if pairs % n == 0]
    shared = [pairs * n for n in range(2, clip_length + 1) if clip_length % n == 0]
    return [n for n in whole + shared if n <= most]


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of clips to embed: rows that are split over all devices."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def batch_shardings(mesh: Mesh) -> dict[str, Any]:
    """The shardings of a `data_pipelines.schema.TrainBatch`."""
    pairs, frames = (
        NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((_ROWS,), (_ROWS, "frames"))
    )
    rows = dict.fromkeys(("keypoints", "labels", "cameras", "positions"), pairs)
    return {"frames": frames, **rows}


def state_shardings(mesh: Mesh, state: Any) -> Any:
    """The shardings of a tree of arrays, or of their shapes, by `RULES`."""
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(
            mesh, _rule(mesh, jax.tree_util.keystr(path, simple=True, separator="/"), leaf.shape)
        ),
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
    """The rows of an array of a shape of which devices of this process hold a part, ascending.

    They need not be neighbors: on a torus of chips, a machine's chips are not those that follow
    each other in the mesh.
    """
    indices = sharding.addressable_devices_indices_map(shape).values()
    parts = [range(shape[0])[index[0]] for index in indices if index is not None]
    return sorted(set().union(*parts))


def put(tree: Any, shardings: Any, num_rows: int) -> Any:
    """Makes global arrays of `num_rows` rows from the rows that this process has loaded.

    Args:
      tree: NumPy arrays whose first axis holds the `local_rows` of their sharding.
      shardings: one for all arrays, or a tree of them.
      num_rows: over all processes.
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


def local_part(array: jax.Array) -> np.ndarray:
    """The rows of an array, split as `split_rows` says, that this process holds."""
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


def gather(tree: Any) -> Any:
    """Puts the rows of NumPy arrays of all processes one after the other, on every process."""
    if jax.process_count() == 1:
        return tree
    return jax.tree.map(np.asarray, multihost_utils.process_allgather(tree, tiled=True))
