r"""Trains STAR, or resumes a run that was interrupted.

  python launch/train.py --config=configs/star_hitsz_vcm.py --workdir=runs/star
  python launch/train.py --config=configs/star_hitsz_vcm.py --workdir=runs/low_rate \
    --config.optim.lr=0.05

docs/config.md lists every config key, its values and its meaning.

The workdir receives config.json and run.json (what ran), metrics.jsonl and tensorboard/,
checkpoints/<step>, eval/ and, with --profile, profile/. The same command resumes from the last
checkpoint, and trains a finished run longer if config.optim.epochs is larger. Without a checkpoint,
a run may start again with another config. When interrupted (SIGTERM or Ctrl-C), it stops after the
current step, saves its state and exits with code 143; a second Ctrl-C ends it at once. The workdir
and the packed dataset may each be a URL or path, such as gs://bucket/folder.

In a multi-process job, run this command in every process with the same workdir, which all of them
must be able to read and write. On Cloud TPU, under SLURM and under Open MPI they find each
other; elsewhere pass --coordinator, --num_processes and --process_id, or set
JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

from absl import flags

from launch import command

CONFIG = command.define_config()
WORKDIR = command.define_path(
    "workdir",
    None,
    "Folder of the run, created if missing, or gs://bucket/folder.",
    addresses=True,
    required=True,
)
TRUSTED = command.define_trusted()
COORDINATOR = flags.DEFINE_string("coordinator", None, "Address of process 0, host:port.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")
CONNECT_SECONDS = flags.DEFINE_integer(
    "connect_seconds", 300, "How long to wait for the other processes.", lower_bound=1
)
PROFILE = flags.DEFINE_integer(
    "profile", 0, "Trace this many steps into WORKDIR/profile, for TensorBoard.", lower_bound=0
)


def main() -> None:
    """Trains with the config and flags given."""
    from star_jax.distributed import processes  # imports JAX, which --help should not wait for
    from star_jax.training.loop import train

    processes.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, CONNECT_SECONDS.value)
    train(
        CONFIG.value,
        WORKDIR.value,
        started=command.STARTED,
        profile=PROFILE.value,
        trusted=TRUSTED.value,
    )


if __name__ == "__main__":
    command.run(main)
