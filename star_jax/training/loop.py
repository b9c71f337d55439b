"""The training loop."""

import contextlib
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import jax
import ml_collections
from etils import epath

from data_pipelines.errors import DivergedError, Preempted
from data_pipelines.io.progress import Progress
from data_pipelines.io.remote import locate
from data_pipelines.loader import train_batches
from star_jax.config import Config
from star_jax.distributed import memory, processes
from star_jax.distributed.parallel import batch_shardings, local_rows, put
from star_jax.evaluation.evaluate import Options, describe_evaluation, evaluate_network
from star_jax.evaluation.reports import read_report
from star_jax.evaluation.scores import DIRECTIONS, format_table
from star_jax.network import Network, clip_spec
from star_jax.runs import checkpoint, run_files
from star_jax.runs.metrics import MetricsWriter
from star_jax.state import EMA, TrainState
from star_jax.training.pictures import draw_batch
from star_jax.training.preparation import (
    Run,
    compiled_programs_kept,
    less_memory,
    prepare,
    start_or_resume,
)
from star_jax.training.profiling import profiled

log = logging.getLogger(__name__)


def train(
    config: Config | ml_collections.ConfigDict,
    workdir: str | os.PathLike[str],
    *,
    started: float | None = None,
    profile: int = 0,
    trusted: Collection[str] = (),
) -> TrainState:
    """Trains the network that `config` describes, or resumes the run in `workdir`.

    Args:
      config: an experiment, as in `configs/`.
      workdir: receives config, checkpoints, metrics and evaluations; a folder or a URL.
      started: start time of the command by `time.monotonic`; now if None. The time from then to the
        end of the first step is logged and written to run.json.
      profile: number of steps to trace, from the third of this start on, into `profile/` in the
        workdir, which TensorBoard and xprof open.
      trusted: packages whose components the config stored with `config.init.checkpoint` may name;
        see `star_jax.load_weights`. `config` itself may name any.

    Returns:
      The state after the last step.

    Raises:
      InputError: the config is invalid, or does not fit the dataset, the devices or the workdir.
      DivergedError: a loss, a parameter or a statistic is not finite.
      OutOfMemoryError: a training step or an evaluation needs more memory than the devices have.
      OSError: a checkpoint could not be written or read.
      Preempted: the run was interrupted (SIGTERM or Ctrl-C) and has saved its state.
    """
    started = time.monotonic() if started is None else started
    run = prepare(config, locate(workdir))
    workdir, config = run.workdir, run.config
    with (
        memory.explained(remedies := less_memory(config)),
        run_files.claimed(workdir, config),
        run_files.timed(workdir, started),
        checkpoint.open_manager(workdir, config.checkpoint.keep) as manager,
        compiled_programs_kept(workdir) as compiled_before,
    ):
        run, state = start_or_resume(run, manager, trusted)
        dataset = run.split.dataset
        described = {"dir": dataset.address, "fingerprint": dataset.fingerprint}
        run_files.add_to_record(workdir, dataset=described)
        start = int(state.step)
        shardings = batch_shardings(run.mesh)
        batches = train_batches(
            run.split,
            clip_spec(config),
            run.batch,
            range(start, run.num_steps),
            rows=local_rows(shardings["labels"], (run.pairs,)),
            num_threads=config.data.num_threads,
        )
        step_log = StepLog(config, frames_per_step=2 * run.pairs * config.data.clip_length)
        enabled = processes.is_first()
        with (
            MetricsWriter(workdir, enabled=enabled, resume_step=start) as writer,
            Progress(run.num_steps, "training", start=start, enabled=enabled) as progress,
            processes.watch_for_stop() as stop_requested,
            saving_before_a_stop(manager),
            contextlib.closing(profiled(batches, profile, run.workdir / "profile")) as drawn,
        ):
            if start and run.is_evaluated(start):  # perhaps interrupted before or during it
                evaluate(run, state, writer, stop_requested, keep_reports=True)
            for step, batch in enumerate(drawn, start=start + 1):
                on_devices = put(batch, shardings, run.pairs)
                if step == start + 1:
                    if enabled:
                        log.info("devices: %s", processes.describe_devices())
                    run_step = run.train_step.lower(state, on_devices).compile()
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
                stop_now = stop_requested() and step < run.num_steps
                evaluate_now = run.is_evaluated(step)
                due = step % config.checkpoint.every_steps == 0 or step == run.num_steps
                if due or evaluate_now or stop_now:
                    step_log.flush(writer, progress)  # raises before NaN or infinity is saved
                    writer.upload()
                    checkpoint.save(manager, state, run.config.to_dict(), dataset.fingerprint)
                if stop_now:
                    raise Preempted
                if evaluate_now:
                    with step_log.paused():
                        evaluate(run, state, writer, stop_requested)
            step_log.flush(writer, progress)
            checkpoint.finish(manager)  # while signals do not end the process
    return state


@contextlib.contextmanager
def saving_before_a_stop(manager: Any) -> Iterator[None]:
    """Waits for the last checkpoint before an interrupted run ends."""
    try:
        yield
    except Preempted:
        checkpoint.finish(manager)
        log.info("interrupted: step %s is saved; the same command resumes", manager.latest_step())
        raise


def log_start(workdir: epath.Path, seconds: float, compiled_before: bool) -> None:
    """Logs the time to the end of the first step, and adds it to run.json."""
    if processes.is_first():
        how = "with a compilation cache" if compiled_before else "compiled from scratch"
        log.info("first step %.1f s after the start (%s)", seconds, how)
    run_files.add_to_record(
        workdir, seconds_to_first_step=round(seconds, 1), compilation_cache=compiled_before
    )


class StepLog:
    """Checks, shows and writes the metrics of a step while the next one runs."""

    def __init__(self, config: Config, frames_per_step: int):
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
                f"step {step}: {', '.join(wrong)} not finite; that step was not saved, the "
                "previous checkpoint is intact. Lower config.optim.lr and backbone_lr, or lengthen "
                "config.optim.warmup_epochs"
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
    run: Run,
    state: TrainState,
    writer: MetricsWriter,
    stop_requested: Callable[[], bool],
    *,
    keep_reports: bool = False,
) -> None:
    """Evaluates the weights of the state, then their moving average if there is one.

    Writes and logs the scores.

    Args:
      run: the training run.
      state: the training state.
      writer: of its metrics.
      stop_requested: called after each batch, equally often by each process.
      keep_reports: whether weights that have a report for this step are not evaluated again; only
        its scores are written, since the run may have been interrupted before it wrote them.

    Raises:
      Preempted: `stop_requested` returned True.
    """
    step = int(state.step)
    for weights, variables in state.networks.items():
        options = Options(weights=weights)
        described = describe_evaluation(run.config, step, run.evaluated, options)
        path = run_files.report_path(run.workdir, described)
        if keep_reports and not processes.all_agree(not path.exists()):
            if processes.is_first():
                write_scores(writer, read_report(path))
            continue
        network = Network(step, run.config, run.model, variables, run.mesh)
        report = evaluate_network(network, run.evaluated, run.workdir, options, stop_requested)
        write_scores(writer, report)
        of = ", moving average of the weights" if weights == EMA else ""
        log.info("step %d%s\n%s", step, of, format_table(report))


def write_scores(writer: MetricsWriter, report: Mapping[str, Any]) -> None:
    """Writes the scores of a report as a row of metrics; `ema/` precedes those of the average."""
    prefix = "ema/" if report["options"].get("weights") == EMA else ""
    writer.write(
        report["step"],
        {
            f"{prefix}{direction}/{name}": report[direction][name]
            for direction in DIRECTIONS
            for name in ("rank1", "map")
        },
    )
    writer.upload()
