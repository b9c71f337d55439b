"""What a training run needs beside its state, checked before the first step."""

import contextlib
import dataclasses
import json
import logging
import math
import os
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental.compilation_cache import compilation_cache
from jax.sharding import Mesh
from jaxtyping import Int32

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.io.remote import absolute, is_remote, locate
from data_pipelines.records.dataset import Split, open_dataset
from data_pipelines.sampling import BatchSpec, find_sampler, steps_per_epoch, trainable_labels
from star_jax.augment import find_augmentation
from star_jax.config import Config, as_config, with_values
from star_jax.config.checks import as_section, check_training
from star_jax.distributed import processes
from star_jax.distributed.parallel import make_mesh
from star_jax.evaluation.evaluate import evaluation_split
from star_jax.evaluation.protocols import find_protocol, require_scorable
from star_jax.losses import build_losses
from star_jax.models import Star, build_model
from star_jax.optim import learning_rate_factor, make_optimizer
from star_jax.runs import checkpoint, run_files
from star_jax.runs.manifest import Manifest
from star_jax.state import TrainState, abstract_state
from star_jax.stored import parse_config
from star_jax.training.initialization import starting_state
from star_jax.training.steps import check_style, make_train_step

log = logging.getLogger(__name__)


class Run(NamedTuple):
    """What a training run needs beside its state, made by `prepare`.

    Attributes:
      workdir: folder of the run.
      config: the experiment, with the number of identities.
      mesh: of the devices.
      model: the network.
      train_step: see `steps.make_train_step`.
      split: the training tracklets.
      steps_per_epoch: steps of an epoch.
    """

    workdir: epath.Path
    config: Config
    mesh: Mesh
    model: Star
    train_step: Any
    split: Split
    steps_per_epoch: int

    @property
    def batch(self) -> BatchSpec:
        """Which tracklets make a batch."""
        data = self.config.data
        return BatchSpec(self.config.seed, data.identities_per_batch, data.tracklets_per_identity)

    @property
    def evaluated(self) -> Split:
        """The tracklets of evaluations during training."""
        name = evaluation_split(self.config)
        return self.split.dataset.split(name, self.config.data.validation_identities)

    @property
    def pairs(self) -> int:
        """Pairs of clips in a batch, over all processes."""
        return self.batch.identities * self.batch.tracklets

    @property
    def num_steps(self) -> int:
        """Steps of the whole run."""
        return self.config.optim.epochs * self.steps_per_epoch

    def is_evaluated(self, step: int) -> bool:
        """Returns whether there is an evaluation after a step."""
        every = self.config.eval.every_epochs * self.steps_per_epoch
        return bool(every) and step % every == 0


def prepare(config: Config, workdir: epath.Path) -> Run:
    """Checks that a config fits the dataset and the devices, and opens and builds what it names.

    Raises:
      InputError: as `train` does.
    """
    config = as_config(config)
    check_training(config)
    check_parts(config)
    processes.check_same("the config", json.dumps(config.to_dict(), sort_keys=True))
    mesh = make_mesh(config)
    dataset = open_dataset(config.data.dir)
    split = dataset.split("train", config.data.validation_identities)
    require_a_batch(config, split.index)
    config = with_identities(config, split.index.labels)
    epoch = steps_of_an_epoch(config, split.index)
    require_steps_ahead(config, workdir, epoch)
    model = build_model(config.model)
    train_step = make_train_step(config, model, epoch, mesh)
    run = Run(workdir, config, mesh, model, train_step, split, epoch)
    if config.eval.every_epochs:
        require_scorable(config.eval.protocol, run.evaluated.index)
    return run


def check_parts(config: Config) -> None:
    """Raises an InputError if a component that the config names cannot be loaded."""
    identities = config.model.num_identities or 2  # not known yet
    model = build_model(dataclasses.replace(config.model, num_identities=identities))
    build_losses(config)
    check_style(config, model)
    find_sampler(config.data.sampling)
    find_protocol(config.eval.protocol)
    make_optimizer(config.optim, steps_per_epoch=1)
    for name in config.augment.parts:
        find_augmentation(name)


def require_a_batch(config: Config, index: schema.Index) -> None:
    """Raises an InputError if too few training identities have tracklets of both modalities."""
    held_out, batch = config.data.validation_identities, config.data.identities_per_batch
    left = len(trainable_labels(index))
    if left < batch <= left + held_out:
        raise InputError(
            f"config.data.validation_identities is {held_out}: it leaves {left} training "
            f"identities of {config.data.dir}, and config.data.identities_per_batch is {batch}; "
            f"use at most {left + held_out - batch}"
        )
    if left < batch:
        raise InputError(
            f"config.data.identities_per_batch is {batch}: {left} training identities of "
            f"{config.data.dir} have tracklets of both modalities; use fewer per batch, or add some"
        )


def with_identities(config: Config, labels: Int32[np.ndarray, " n"]) -> Config:
    """Returns the config with one class per training identity.

    Raises:
      InputError: the config has a different number, or there are too few for a batch.
    """
    num_identities = len(np.unique(labels))
    if config.model.num_identities not in (None, num_identities):
        raise InputError(
            f"config.model.num_identities is {config.model.num_identities}, but {config.data.dir} "
            f"has {num_identities} training identities; leave it out, or pass "
            f"--config.model.num_identities={num_identities}"
        )
    return with_values(config, {"model.num_identities": num_identities})


def steps_of_an_epoch(config: Config, index: schema.Index) -> int:
    """Returns the steps of an epoch; raises an InputError if there is not even one."""
    data = config.data
    epoch = steps_per_epoch(index, data.identities_per_batch, data.tracklets_per_identity)
    if not epoch:
        pairs = data.identities_per_batch * data.tracklets_per_identity
        infrared = int(np.sum(index.modalities == schema.INFRARED))
        raise InputError(
            f"{data.dir} has {len(index.rows) - infrared} visible and {infrared} infrared training "
            f"tracklets, and a batch takes {pairs} of each; lower "
            "config.data.identities_per_batch or tracklets_per_identity"
        )
    return epoch


def require_steps_ahead(config: Config, workdir: epath.Path, steps_per_epoch: int) -> None:
    """Raises an InputError if the run has trained for more epochs than the config has."""
    trained = checkpoint.last_step(workdir) / steps_per_epoch
    if trained > config.optim.epochs:
        raise InputError(
            f"config.optim.epochs is {config.optim.epochs}: {workdir} has trained for {trained:g} "
            f"epochs; use {math.ceil(trained)} or more, or another --workdir"
        )


def start_or_resume(
    run: Run, manager: ocp.CheckpointManager, trusted: Collection[str]
) -> tuple[Run, TrainState]:
    """Returns the state to train from, and the run with the `config.init` that this comes from."""
    config, model, epoch, mesh = run.config, run.model, run.steps_per_epoch, run.mesh
    restored = checkpoint.restore_state(manager, abstract_state(config, model, epoch, mesh))
    if restored is None:
        return run, starting_state(config, model, epoch, mesh, trusted)
    state, manifest = restored
    config = continued(config, manifest, manager.directory, run.split.dataset.fingerprint)
    run_files.write_config(run.workdir, config)
    log_resumption(config, manifest, int(state.step), epoch)
    return run._replace(config=config), state


def continued(
    config: Config,
    manifest: Manifest,
    where: epath.Path,
    dataset: str,
) -> Config:
    """Returns the config of a run that resumes from a checkpoint.

    It is `config`, except for `config.init`, which records the origin of the initial parameters.

    Raises:
      InputError: the checkpoint belongs to a different config or dataset, or has no valid config.
    """
    stored = parse_config(manifest.config, os.fspath(where))
    run_files.require_same(where, manifest.config, config)
    if manifest.dataset != dataset:
        raise InputError(
            f"{where} belongs to a different dataset: its fingerprint was {manifest.dataset[:12]}, "
            f"{config.data.dir} has {dataset[:12]}. Classifier rows correspond to "
            "identities; use the dataset that the run was started with, or another --workdir"
        )
    for key, value in dataclasses.asdict(config.init).items():
        if value and value != stored["init"][key]:
            log.warning(
                "config.init.%s=%s is ignored: %s has checkpoints; use another --workdir to start "
                "from it",
                *(key, value, where.parent),
            )
    return dataclasses.replace(config, init=as_section("init", stored["init"]))


def log_resumption(
    config: Config,
    manifest: Manifest,
    step: int,
    steps_per_epoch: int,
) -> None:
    """Logs where a run resumes, and with which learning rate if it has another number of epochs."""
    before, epochs = manifest.config["optim"]["epochs"], config.optim.epochs
    num_steps = epochs * steps_per_epoch
    if step == num_steps:
        log.info(
            "finished: step %d of %d; a larger --config.optim.epochs trains longer", step, num_steps
        )
        return
    log.info("resuming from step %d of %d", step, num_steps)
    if epochs != before:
        factor = learning_rate_factor(jnp.int32(step), config.optim, steps_per_epoch)
        log.info(
            "config.optim.epochs was %d, now %d; training continues at the learning rate %g",
            before,
            epochs,
            config.optim.lr * factor,
        )


def less_memory(config: Config) -> str:
    """Returns what to change in a config so that training takes less memory."""
    remat = "" if config.model.remat else ", or set config.model.remat to True"
    return (
        "lower config.data.identities_per_batch, data.tracklets_per_identity, data.clip_length or "
        f"data.frame_size{remat}"
    )


@contextlib.contextmanager
def compiled_programs_kept(workdir: epath.Path) -> Iterator[bool]:
    """Keeps compiled programs in the workdir, unless JAX has a compilation cache already.

    The settings of the process are restored, so that two trainings in it do not share a folder.
    Yields whether the cache has programs already.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_enable_xla_caches")
    before = {name: getattr(jax.config, name) for name in names}
    chosen = before["jax_compilation_cache_dir"]
    folder = locate(absolute(workdir / "compiled") if chosen is None else chosen)
    if chosen is None:
        compilation_cache.reset_cache()
        jax.config.update("jax_compilation_cache_dir", str(folder))
    if is_remote(folder):  # JAX can write there; XLA, which caches for GPUs, cannot
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    try:
        yield folder.is_dir() and any(folder.iterdir())
    finally:
        for name, value in before.items():
            jax.config.update(name, value)
        if chosen is None:
            compilation_cache.reset_cache()
