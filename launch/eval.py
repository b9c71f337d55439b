"""Evaluates a trained STAR network on its test split, in both directions.

  python launch/eval.py --workdir=runs/star
  python launch/eval.py --checkpoint=runs/star/checkpoints/34840 --dataset_dir=data/hitsz_vcm/2.0.0

Prints a table and writes <workdir>/eval/<step>-<protocol>-<clips>-<dataset>.json, so that no kind
of evaluation overwrites another. Uses the last checkpoint unless one is named; protocol, clips and
batch size come from the run's config. In a run of several processes (Cloud TPU, SLURM, Open MPI),
each of them runs this command.
"""

from absl import flags

from launch import command

WORKDIR, CHECKPOINT = command.define_checkpoint()
DATASET_DIR = flags.DEFINE_string("dataset_dir", None, "Packed dataset; default: the config's.")
CLIPS = flags.DEFINE_enum(
    "clips", None, ["first", "dense"], "First frame of each chunk, or the average over all frames."
)


def main() -> None:
    """Evaluates the checkpoint given by the flags."""
    from star_jax.distributed import processes  # imports JAX, which --help should not wait for
    from star_jax.evaluation.embed import evaluate_checkpoint
    from star_jax.evaluation.protocols import format_table
    from star_jax.network import locate_checkpoint

    processes.start()
    workdir, step = locate_checkpoint(command.either(WORKDIR, CHECKPOINT))
    report, path = evaluate_checkpoint(
        workdir, step, dataset_dir=DATASET_DIR.value, clips=CLIPS.value
    )
    if processes.is_first():
        print(format_table(report))
        print(f"written to {path}")


if __name__ == "__main__":
    command.run(main)
