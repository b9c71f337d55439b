"""A trained network, read from a run, a checkpoint or an exported file."""

import os
from collections.abc import Collection
from typing import Any, NamedTuple

import jax
from etils import epath
from jax.sharding import Mesh

from data_pipelines.errors import InputError
from data_pipelines.io.remote import absolute, locate
from data_pipelines.sampling import ClipSpec
from star_jax.config import Config, with_values
from star_jax.distributed.parallel import make_mesh
from star_jax.models import Star, build_model
from star_jax.runs import checkpoint
from star_jax.state import EMA, TRAINED, WEIGHTS, abstract_variables
from star_jax.weights.archive import check_variables, checksum, load_archive


class Network(NamedTuple):
    """A trained network, on the devices.

    The embedding of a batch is
    `network.model.apply(network.variables, frames, keypoints, modality=...).embedding`; see
    `star_jax.Embedder` for frames that are neither normalized nor of the network's size.

    Attributes:
      step: training step of the weights.
      config: the experiment that trained it.
      model: the network, a Flax module.
      variables: its parameters and statistics, on the mesh: `{"params": ..., "batch_stats": ...}`.
      mesh: the mesh of all devices.
    """

    step: int
    config: Config
    model: Star
    variables: Any
    mesh: Mesh

    def with_config(self, **values: Any) -> "Network":
        """Returns the same network with other values of its config, by key; None changes nothing.

        For instance, `network.with_config(**{"eval.clips": "dense"})`.

        Raises:
          InputError: a value is invalid.
        """
        given = {key: value for key, value in values.items() if value is not None}
        return self._replace(config=with_values(self.config, given))

    @property
    def checksum(self) -> str:
        """The SHA-256 of the weights, computed at each access; see `archive.checksum`."""
        return checksum(self.variables)


def clip_spec(config: Config) -> ClipSpec:
    """Returns what clips the network of a config sees."""
    data = config.data
    return ClipSpec(data.clip_length, data.frame_size, data.sampling, config.model.keypoints)


def load_weights(
    path: str | os.PathLike[str], *, weights: str = TRAINED, trusted: Collection[str] = ()
) -> Network:
    """Returns the trained network of a run, a checkpoint or an exported file.

    The config that is stored with the weights may name components of this repository only, so that
    loading someone else's file runs none of their code unless you trust a package by name.

    Args:
      path: the folder of a run, whose last checkpoint is read; a checkpoint,
        `<run>/checkpoints/<step>`; or a `.safetensors` file that launch/export.py wrote. Each of
        them may be a URL, `gs://bucket/...`.
      weights: of a run or a checkpoint: "trained", those after the last step, or "ema", their
        moving average (`config.optim.ema_decay`). An exported file has one kind, that which
        launch/export.py wrote.
      trusted: names of packages whose components the stored config may name, such as
        `("my_package",)`; their modules are then imported and run.

    Raises:
      FileNotFoundError: there is no run, checkpoint or exported file at the path.
      InputError: the file is of another kind, the weights are damaged or do not fit the config that
        is stored with them, there are no such weights, or the config names a component of a package
        that is not trusted.
      OSError: the path cannot be read.
    """
    if os.fspath(path).endswith(".safetensors"):
        if weights != TRAINED:
            raise InputError(
                f"{path}: weights is {weights!r}: an exported file has the weights that it was "
                "written with; leave it out, or name a run or a checkpoint"
            )
        return _read_archive(path, trusted)
    if os.path.isfile(path):
        raise InputError(
            f"{path}: not a network: pass the folder of a run, a checkpoint, "
            "<run>/checkpoints/<step>, or a .safetensors file of launch/export.py"
        )
    return restore_network(*locate_checkpoint(path), weights=weights, trusted=trusted)


def locate_checkpoint(path: str | os.PathLike[str]) -> tuple[epath.Path, int | None]:
    """Returns the run's folder and the step that a path stands for; nothing is read.

    Args:
      path: a checkpoint, `<run>/checkpoints/<step>`, or the folder of a run. The step is then
        None, which stands for the last checkpoint.
    """
    named = absolute(path)
    if named.name.isdecimal() and named.parent.name == "checkpoints":
        return named.parent.parent, int(named.name)
    return locate(path), None


def restore_network(
    workdir: epath.Path,
    step: int | None,
    *,
    weights: str = TRAINED,
    trusted: Collection[str] = (),
) -> Network:
    """Returns the network of a checkpoint.

    Args:
      workdir: folder of the run.
      step: step of the checkpoint; the last one if None.
      weights: see `load_weights`.
      trusted: likewise.

    Raises:
      FileNotFoundError: the run has no such checkpoint.
      InputError: the checkpoint does not fit its config or has no such weights, or the config names
        a component of a package that is not trusted.
    """
    if weights not in WEIGHTS:
        raise InputError(f"weights is {weights!r}: use {' or '.join(WEIGHTS)}")
    if not (workdir / "checkpoints").is_dir():
        raise FileNotFoundError(
            f"{workdir}: not the folder of a run (it has no checkpoints folder) nor a checkpoint, "
            "<run>/checkpoints/<step>"
        )
    with checkpoint.open_manager(workdir, keep=None) as manager:
        steps = sorted(manager.all_steps())
        if not steps or step not in (None, *steps):
            found = ", ".join(map(str, steps)) or "none"
            raise FileNotFoundError(f"{workdir}: no checkpoint {step or ''} (there are: {found})")
        step = steps[-1] if step is None else step
        config = checkpoint.restore_config(manager, step, trusted)
        if weights == EMA and not config.optim.ema_decay:
            raise InputError(
                f"{workdir}: config.optim.ema_decay is 0, so that its checkpoints have no moving "
                "average of the weights; use the trained ones"
            )
        model, mesh, abstract = _prepare(config)
        variables = checkpoint.restore_variables(manager, step, abstract, weights)
    return Network(step, config, model, variables, mesh)


def _read_archive(path: str | os.PathLike[str], trusted: Collection[str]) -> Network:
    """Returns the network of an exported file; raises as `load_archive` does."""
    config, variables, step = load_archive(path, trusted=trusted)
    model, mesh, abstract = _prepare(config)
    check_variables(path, variables, abstract)
    shardings = jax.tree.map(lambda array: array.sharding, abstract)
    return Network(step, config, model, jax.device_put(variables, shardings), mesh)


def _prepare(config: Config) -> tuple[Star, Mesh, Any]:
    """Returns the network of a config, the mesh, and the shapes and shardings of its variables."""
    mesh = make_mesh()
    model = build_model(config.model)
    return model, mesh, abstract_variables(config, model, mesh)
