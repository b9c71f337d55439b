"""Trains STAR, or continues a run that was interrupted.

  python launch/train.py --config=configs/star_hitsz_vcm.py --workdir=runs/star
  python launch/train.py --config=configs/star_hitsz_vcm.py --workdir=runs/low_rate \
    --config.optim.lr=0.05

docs/config.md lists every key of the config, its values and its meaning.

The workdir takes config.json and run.json (what ran), metrics.jsonl and tensorboard/,
checkpoints/<step> and eval/. The same command continues from the last checkpoint. Told to stop
(SIGTERM or Ctrl-C), it saves its state and ends with code 143; a second Ctrl-C ends it at once.
Workdir and packed dataset may be addresses, gs://bucket/folder.

Several processes train together if each of them runs this command with the same workdir, which all
of them must see. On Cloud TPU, under SLURM and Open MPI they find each other; elsewhere they are
told by --coordinator, --num_processes and --process_id, or by JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID.
"""

import command
from absl import flags

CONFIG = command.define_config()
WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run, made if missing, or gs://bucket/folder.", required=True
)
COORDINATOR = flags.DEFINE_string("coordinator", None, "Address of process 0, host:port.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes train together.")
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Number of this process, from 0.")
CONNECT_SECONDS = flags.DEFINE_integer(
    "connect_seconds", 300, "How long to wait for the other processes.", lower_bound=1
)


def main() -> None:
    """Trains as the flags say."""
    from star_jax.distributed import processes  # imports JAX, which --help should not wait for
    from star_jax.training.loop import train

    processes.start(COORDINATOR.value, NUM_PROCESSES.value, PROCESS_ID.value, CONNECT_SECONDS.value)
    train(CONFIG.value, WORKDIR.value, started=command.STARTED)


if __name__ == "__main__":
    command.run(main)
