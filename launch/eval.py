"""Evaluates a trained STAR network on its test split, in both directions.

  python launch/eval.py --workdir=runs/star
  python launch/eval.py --checkpoint=runs/star/checkpoints/34840 --dataset_dir=data/hitsz_vcm/2.1.0

Prints a table and writes <workdir>/eval/<step>-<protocol>-<clips>-<dataset>.json, so that no kind
of evaluation overwrites another. Uses the last checkpoint unless one is named; protocol, clips and
batch size come from the run's config. In a run of several processes (Cloud TPU, SLURM, Open MPI),
each of them runs this command.
"""

from absl import flags

from launch import command

WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run; its last checkpoint is used.")
CHECKPOINT = flags.DEFINE_string(
    "checkpoint", None, "One checkpoint, <workdir>/checkpoints/<step>."
)
DATASET_DIR = flags.DEFINE_string("dataset_dir", None, "Packed dataset; default: the config's.")
CLIPS = flags.DEFINE_enum(
    "clips", None, ["first", "dense"], "First frame of each chunk, or the average over all frames."
)


PROTOCOL = flags.DEFINE_string(
    "protocol",
    None,
    "hitsz_vcm/v1, buptcampus/full, buptcampus/official-bs64 or package.module:object; default: "
    "the config's.",
)
EXPANSION = flags.DEFINE_integer(
    "query_expansion",
    0,
    "Average a query with this many of its nearest gallery entries before it searches.",
    lower_bound=0,
)
RERANK = flags.DEFINE_bool("rerank", False, "Re-rank the gallery by k-reciprocal neighbors.")


def main() -> None:
    """Evaluates the checkpoint given by the flags."""
    from star_jax.distributed import processes  # imports JAX, which --help should not wait for
    from star_jax.evaluation.embed import evaluate_checkpoint
    from star_jax.evaluation.scores import format_details, format_table
    from star_jax.network import locate_checkpoint

    processes.start()
    workdir, step = locate_checkpoint(command.either(WORKDIR, CHECKPOINT))
    report, path = evaluate_checkpoint(
        workdir,
        step,
        dataset_dir=DATASET_DIR.value,
        clips=CLIPS.value,
        protocol=PROTOCOL.value,
        expansion=EXPANSION.value,
        rerank=RERANK.value,
    )
    if processes.is_first():
        print(f"{format_table(report)}\n\n{format_details(report)}\n")
        print(f"written to {path}")


if __name__ == "__main__":
    command.run(main)
