"""The training loop."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from etils import epath
from jaxtyping import Int32

from data_pipelines import schema
from data_pipelines.errors import DivergedError, InputError
from data_pipelines.io.progress import Progress
from data_pipelines.io.remote import absolute, is_remote, locate
from data_pipelines.loader import train_batches
from data_pipelines.records.reading import fingerprint, open_index, resolve
from data_pipelines.sampling import find_sampler, steps_per_epoch, trainable_labels
from star_jax.config import check_config, check_training
from star_jax.distributed import memory, processes
from star_jax.distributed.parallel import batch_shardings, local_rows, make_mesh, put
from star_jax.evaluation.embed import describe_evaluation, evaluate_split, evaluation_split
from star_jax.evaluation.protocols import find_protocol, require_scorable
from star_jax.evaluation.reports import read_report
from star_jax.evaluation.scores import DIRECTIONS, format_table
from star_jax.losses import build_losses
from star_jax.models import build_model
from star_jax.optim import learning_rate_factor, make_optimizer
from star_jax.stored import parse_config
from star_jax.training import checkpoint, run_files
from star_jax.training.initialization import starting_state
from star_jax.training.metrics import MetricsWriter
from star_jax.training.pictures import draw_batch
from star_jax.training.steps import (
    TrainState,
    abstract_state,
    check_style,
    make_train_step,
)

log = logging.getLogger(__name__)


def train(
    config: ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    started: float | None = None,
    trusted: Collection[str] = (),
) -> TrainState:
    """Trains the network that `config` describes, or resumes the run in `workdir`.

    Args:
      config: an experiment, as in `configs/`.
      workdir: receives config, checkpoints, metrics and evaluations; a folder or an address.
      started: start time of the command by `time.monotonic`; now if None. The time from then to the
        end of the first step is logged and written to run.json.
      trusted: packages of which the config stored with `config.init.checkpoint` may name parts; see
        `star_jax.load_weights`. `config` itself may name any.

    Returns:
      The state after the last step.

    Raises:
      InputError: the config is invalid, or does not fit the dataset, the devices or the workdir.
      DivergedError: a loss, a parameter or a statistic is not finite.
      OutOfMemoryError: a training step or an evaluation needs more memory than the devices have.
      OSError: a checkpoint could not be written or read.
      Preempted: the run was interrupted (SIGTERM or Ctrl-C) and has saved its state.
    """
    workdir = locate(workdir)
    started = time.monotonic() if started is None else started
    check_config(config)
    check_training(config)
    check_parts(config)
    processes.check_same("the config", config.to_json(sort_keys=True))
    mesh = make_mesh(config)
    pairs = config.data.identities_per_batch * config.data.tracklets_per_identity
    shardings = batch_shardings(mesh)
    held_out = config.data.validation_identities
    index = open_index(config.data.dir, "train", held_out)
    require_a_batch(config, index)
    config = with_identities(config, index.labels)
    epoch = steps_per_epoch(
        index, config.data.identities_per_batch, config.data.tracklets_per_identity
    )
    if not epoch:
        infrared = int(np.sum(index.modalities == schema.INFRARED))
        raise InputError(
            f"{config.data.dir} has {len(index.rows) - infrared} visible and {infrared} infrared "
            f"training tracklets, and a batch takes {pairs} of each; lower "
            "config.data.identities_per_batch or tracklets_per_identity"
        )
    num_steps = config.optim.epochs * epoch
    require_steps_ahead(config, workdir, epoch)
    dataset = fingerprint(config.data.dir)
    model = build_model(config.model)
    train_step = make_train_step(config, model, epoch, mesh)

    evaluated_every = config.eval.every_epochs * epoch
    if evaluated_every:
        evaluated = open_index(config.data.dir, evaluation_split(config), held_out)
        require_scorable(config.eval.protocol, evaluated)

    with (
        memory.explained(remedies := less_memory(config)),
        run_files.claimed(workdir, config),
        run_files.timed(workdir, started),
        checkpoint.open_manager(workdir, config.checkpoint.keep) as manager,
    ):
        compiled_before = keep_compiled_programs(workdir)
        restored = checkpoint.restore_state(manager, abstract_state(config, model, epoch, mesh))
        if restored is None:
            state = starting_state(config, model, epoch, mesh, trusted)
        else:
            state, manifest = restored
            config = continued(config, manifest, manager.directory, dataset)
            run_files.write_config(workdir, config)
            log_resumption(config, manifest, int(state.step), epoch)
        described = {"dir": resolve(config.data.dir), "fingerprint": dataset}
        run_files.add_to_record(workdir, dataset=described)
        start = int(state.step)
        batches = train_batches(
            config.data.dir,
            clip_length=config.data.clip_length,
            frame_size=tuple(config.data.frame_size),
            identities_per_batch=config.data.identities_per_batch,
            tracklets_per_identity=config.data.tracklets_per_identity,
            seed=config.seed,
            start_step=start,
            num_steps=num_steps - start,
            sampling=config.data.sampling,
            validation_identities=held_out,
            joints=config.model.keypoints,
            rows=local_rows(shardings["labels"], (pairs,)),
            num_threads=config.data.num_threads,
        )
        step_log = StepLog(config, frames_per_step=2 * pairs * config.data.clip_length)
        with (
            MetricsWriter(workdir, enabled=processes.is_first(), resume_step=start) as writer,
            Progress(num_steps, "training", start=start, enabled=processes.is_first()) as progress,
            processes.watch_for_stop() as stop_requested,
            saving_before_a_stop(manager),
        ):
            if start and evaluated_every and start % evaluated_every == 0:
                kind = describe_evaluation(config, start, evaluation_split(config))
                report = run_files.report_path(workdir, kind)
                if processes.all_agree(not report.exists()):  # interrupted before it
                    evaluate(config, model, state, mesh, workdir, writer, stop_requested)
                elif processes.is_first():  # perhaps interrupted after it
                    write_scores(writer, read_report(report))
            for step, batch in enumerate(batches, start=start + 1):
                on_devices = put(batch, shardings, pairs)
                if step == start + 1:
                    run_step = train_step.lower(state, on_devices).compile()
                    memory.require(run_step, "a training step", remedies)
                    processes.wait_for_all("the training step is compiled")
                state, metrics = run_step(state, on_devices)
                # The previous step is read now, so that the device computes while the host writes.
                step_log.flush(writer, progress)
                step_log.pending = (step, metrics)
                if step == start + 1:
                    jax.block_until_ready(metrics)
                    if step == 1:
                        writer.write_pictures(step, draw_batch(batch))
                    log_start(workdir, time.monotonic() - started, compiled_before)
                stop_now = stop_requested() and step < num_steps
                evaluate_now = evaluated_every and step % evaluated_every == 0
                due = step % config.checkpoint.every_steps == 0 or step == num_steps
                if due or evaluate_now or stop_now:
                    step_log.flush(writer, progress)  # raises before NaN or infinity is saved
                    writer.upload()
                    checkpoint.save(manager, state, config.to_dict(), dataset)
                if stop_now:
                    raise processes.Preempted
                if evaluate_now:
                    with step_log.paused():
                        evaluate(config, model, state, mesh, workdir, writer, stop_requested)
            step_log.flush(writer, progress)
            checkpoint.finish(manager)  # while signals do not end the process
    return state


def less_memory(config: ml_collections.ConfigDict) -> str:
    """Returns what to change in a config so that training takes less memory."""
    remat = "" if config.model.remat else ", or set config.model.remat to True"
    return (
        "lower config.data.identities_per_batch, data.tracklets_per_identity, data.clip_length or "
        f"data.frame_size{remat}"
    )


@contextlib.contextmanager
def saving_before_a_stop(manager: Any) -> Iterator[None]:
    """Waits for the last checkpoint before an interrupted run ends."""
    try:
        yield
    except processes.Preempted:
        checkpoint.finish(manager)
        log.info("interrupted: step %s is saved; the same command resumes", manager.latest_step())
        raise


def check_parts(config: ml_collections.ConfigDict) -> None:
    """Raises an InputError if a part that the config names cannot be loaded."""
    config = config.copy_and_resolve_references()
    config.model.num_identities = config.model.num_identities or 2  # not known yet
    model = build_model(config.model)
    build_losses(config)
    check_style(config, model)
    find_sampler(config.data.sampling)
    find_protocol(config.eval.protocol)
    make_optimizer(config.optim, steps_per_epoch=1)


def continued(
    config: ml_collections.ConfigDict,
    manifest: checkpoint.Manifest,
    where: epath.Path,
    dataset: str,
) -> ml_collections.ConfigDict:
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
            f"{config.data.dir} has {dataset[:12]}. The classifiers' rows stand for its "
            "identities; use the dataset that the run was started with, or another --workdir"
        )
    for key, value in config.init.items():
        if value and value != stored["init"][key]:
            log.warning(
                "config.init.%s=%s is ignored: %s has checkpoints; give another --workdir to start "
                "from it",
                *(key, value, where.parent),
            )
    config = config.copy_and_resolve_references()
    config.init.update(stored["init"])
    return config


def require_steps_ahead(
    config: ml_collections.ConfigDict, workdir: epath.Path, steps_per_epoch: int
) -> None:
    """Raises an InputError if the run has trained for more epochs than the config has."""
    trained = checkpoint.last_step(workdir) / steps_per_epoch
    if trained > config.optim.epochs:
        raise InputError(
            f"config.optim.epochs is {config.optim.epochs}: {workdir} has trained for {trained:g} "
            f"epochs; use {math.ceil(trained)} or more, or another --workdir"
        )


def log_resumption(
    config: ml_collections.ConfigDict,
    manifest: checkpoint.Manifest,
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


def keep_compiled_programs(workdir: epath.Path) -> bool:
    """Enables the compilation cache; returns whether it has programs already."""
    if jax.config.jax_compilation_cache_dir is None:  # type: ignore[attr-defined]
        jax.config.update("jax_compilation_cache_dir", str(absolute(workdir / "compiled")))
    folder = locate(jax.config.jax_compilation_cache_dir)  # type: ignore[attr-defined]
    if is_remote(folder):  # JAX can write there; XLA, which caches for GPUs, cannot
        jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
    return folder.is_dir() and any(folder.iterdir())


def log_start(workdir: epath.Path, seconds: float, compiled_before: bool) -> None:
    """Logs the time to the end of the first step, and adds it to run.json."""
    if processes.is_first():
        how = "with a compilation cache" if compiled_before else "compiled from scratch"
        log.info("first step %.1f s after the start (%s)", seconds, how)
    run_files.add_to_record(
        workdir, seconds_to_first_step=round(seconds, 1), compilation_cache=compiled_before
    )


def require_a_batch(config: ml_collections.ConfigDict, index: schema.Index) -> None:
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


def with_identities(
    config: ml_collections.ConfigDict, labels: Int32[np.ndarray, " n"]
) -> ml_collections.ConfigDict:
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
    config = config.copy_and_resolve_references()
    config.model.num_identities = num_identities
    check_config(config)
    return config


class StepLog:
    """Checks, shows and writes the metrics of a step while the next one runs."""

    def __init__(self, config: ml_collections.ConfigDict, frames_per_step: int):
        self.every_steps = config.log_every_steps
        self.frames_per_step = frames_per_step
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.measured_from: tuple[int, float] | None = None

    def flush(self, writer: MetricsWriter, progress: Progress) -> None:
        """Checks, shows and writes the metrics of the pending step, if there is one.

        Raises:
          DivergedError: a loss is not finite; names it.
        """
        if self.pending is None:
            return
        step, arrays = self.pending
        self.pending = None
        metrics = {name: float(value) for name, value in jax.device_get(arrays).items()}
        wrong = [name for name, value in metrics.items() if not math.isfinite(value)]
        if wrong:
            raise DivergedError(
                f"step {step}: {', '.join(wrong)} not finite; the last checkpoint is good. Lower "
                "config.optim.lr and backbone_lr, or lengthen config.optim.warmup_epochs"
            )
        now = time.monotonic()
        shown = {"loss": metrics["loss/total"]}
        since, then = self.measured_from or (step, now)
        if step > since:
            speed = (step - since) * self.frames_per_step / (now - then)
            shown["frames/s"] = metrics["frames_per_second"] = speed
        progress.update(step, shown, timed=self.measured_from is not None)  # not to compile it
        written = step == 1 or step % self.every_steps == 0
        if written:
            writer.write(step, metrics)
        if written or self.measured_from is None:
            self.measured_from = (step, now)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Excludes the time in the `with` block from the measured speed."""
        began = time.monotonic()
        yield
        if self.measured_from is not None:
            step, then = self.measured_from
            self.measured_from = (step, then + time.monotonic() - began)


def evaluate(
    config: ml_collections.ConfigDict,
    model: Any,
    state: TrainState,
    mesh: Any,
    workdir: epath.Path,
    writer: MetricsWriter,
    stop_requested: Callable[[], bool],
) -> None:
    """Evaluates the state, writes and logs the scores; raises Preempted if interrupted."""
    step = int(state.step)
    report, queries = evaluate_split(
        config,
        model,
        state.variables,
        mesh,
        step,
        evaluation_split(config),
        stop_requested,
    )
    if processes.is_first():
        run_files.write_report(workdir, report, queries)
    write_scores(writer, report)
    log.info("step %d\n%s", step, format_table(report))


def write_scores(writer: MetricsWriter, report: Mapping[str, Any]) -> None:
    """Writes the scores of a report as a row of metrics."""
    writer.write(
        report["step"],
        {
            f"{direction}/{name}": report[direction][name]
            for direction in DIRECTIONS
            for name in ("rank1", "map")
        },
    )
    writer.upload()
