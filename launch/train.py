"""Trains STAR, or continues a run that was interrupted.

  python launch/train.py --config=configs/star_hitsz_vcm.py --workdir=runs/star
  python launch/train.py --config=configs/star_hitsz_vcm.py --workdir=runs/low_rate \
    --config.optim.lr=0.05

The workdir takes config.json and run.json (what ran), metrics.jsonl and tensorboard/,
checkpoints/<step> and eval/<step>.json. The same command continues from the last checkpoint.
"""

import command
from absl import flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "A file in configs/; override a value with --config.KEY=VALUE.",
    lock_config=True,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; made if missing.", required=True)
flags.mark_flag_as_required("config")


def main() -> None:
    """Trains as the flags say."""
    from star_jax.train import train  # starts JAX, which --help should not wait for

    train(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
    command.run(main)
