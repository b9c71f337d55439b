"""Evaluates a trained STAR network on its test or validation split, in both directions.

  python launch/eval.py --workdir=runs/star
  python launch/eval.py --checkpoint=runs/star/checkpoints/34840 --dataset_dir=data/hitsz_vcm/2.1.0

Prints a table and writes <workdir>/eval/<step>-<protocol>-<clips>-<dataset>.json, named after
what was evaluated and how, so that different kinds of evaluations do not overwrite each other. The
scores of each query, which launch/compare.py reads, are saved beside it. Uses the last checkpoint
unless one is named; settings without a flag are those of the run's config. In a multi-process job
(Cloud TPU, SLURM, Open MPI), run this command in every process.
"""

from absl import flags

from data_pipelines.skeletons.corruption import parse
from launch import command

WORKDIR, CHECKPOINT, TRUSTED = command.define_checkpoint()
WEIGHTS = command.define_weights()
DATASET_DIR = command.define_path(
    "dataset_dir", None, "Packed dataset; default: the config's.", addresses=True
)
SPLIT = flags.DEFINE_enum(
    "split", "test", ["test", "validation"], "validation: the identities that training held out."
)
CLIPS = command.define_clips()
CLIP_LENGTH = flags.DEFINE_integer(
    "clip_length", None, "Frames of a clip; default: as in training.", lower_bound=1
)
FLIP = flags.DEFINE_bool(
    "flip", None, "Average the embeddings of clips and their mirror images; default: the config's."
)
CORRUPT = flags.DEFINE_string(
    "corrupt",
    "none",
    "How to corrupt the skeletons: drop:P makes joints undetected with probability P; jitter:S "
    "moves them, with a standard deviation of S times the frame's height; swap_people gives each "
    "tracklet those of another person.",
)
PROTOCOL = flags.DEFINE_string(
    "protocol",
    None,
    "hitsz_vcm/v1, buptcampus/full, buptcampus/official-bs64, cross-modality, any (queries "
    "search both modalities), either of the two with /other-cameras (without gallery entries of "
    "the query's identity and camera), or package.module:object; default: the config's.",
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
    from data_pipelines.io.terminal import printable
    from star_jax.distributed import processes  # imports JAX, which --help should not wait for
    from star_jax.evaluation.evaluate import Options, evaluate_checkpoint
    from star_jax.evaluation.scores import format_details, format_table
    from star_jax.network import locate_checkpoint

    corruption = parse(CORRUPT.value)
    processes.start()
    workdir, step = locate_checkpoint(command.either(WORKDIR, CHECKPOINT))
    report, path = evaluate_checkpoint(
        workdir,
        step,
        dataset_dir=DATASET_DIR.value,
        split=SPLIT.value,
        clips=CLIPS.value,
        protocol=PROTOCOL.value,
        flip=FLIP.value,
        options=Options(
            CLIP_LENGTH.value, corruption, EXPANSION.value, RERANK.value, WEIGHTS.value
        ),
        trusted=TRUSTED.value,
    )
    if processes.is_first():
        print(f"{format_table(report)}\n\n{format_details(report)}\n")
        print(printable(f"written to {path}"))


if __name__ == "__main__":
    command.run(main)
