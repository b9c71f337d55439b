"""One program for one chip or many: the mesh, the shardings and the way of a batch onto devices."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh() -> Mesh:
    """A mesh of all devices along the axis `data`.

    Its axis is `Auto`: JAX's default, explicit axes, refuses plain gathers such as those of graphs.
    """
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The sharding of what every device holds whole."""
    return NamedSharding(mesh, PartitionSpec())


def split_rows(mesh: Mesh) -> NamedSharding:
    """The sharding of a batch: its first axis is split over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def check_rows(rows: int, mesh: Mesh, key: str) -> None:
    """Raises ValueError if `rows`, which the config's `key` sets, cannot be split over the mesh."""
    if rows % mesh.size:
        raise ValueError(
            f"{key}: {rows} rows cannot be split over {mesh.size} devices; "
            f"use a multiple of {mesh.size}, or fewer devices"
        )


def put_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts this process's rows of a batch (a tree of NumPy arrays) on its devices."""
    sharding = split_rows(mesh)
    return jax.tree.map(
        lambda rows: jax.make_array_from_process_local_data(sharding, np.asarray(rows)), batch
    )
