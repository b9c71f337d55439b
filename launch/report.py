"""Writes a report of an evaluated run: a web page with figures, and the figures as PNG files.

  python launch/report.py --workdir=runs/star
  python launch/report.py --checkpoint=runs/star/checkpoints/34840 --output=star.html

Writes <workdir>/report.html, one file that needs no network, and <workdir>/report/*.png. It shows
scores, training curves, ranked lists, distances, a map of the embeddings, what the skeletons guide,
and scores by camera and condition. Run launch/eval.py first; evaluations of the same checkpoint
with other options are shown beside each other.
"""

import shlex
import sys

from launch import command

WORKDIR, CHECKPOINT, TRUSTED = command.define_checkpoint()
DATASET_DIR = command.define_path(
    "dataset_dir",
    None,
    "Location of the evaluated dataset; default: where it was evaluated.",
    addresses=True,
)
OUTPUT = command.define_path(
    "output",
    None,
    "The page; default: <workdir>/report.html. Figures go to a folder beside it.",
    addresses=True,
)


def main() -> None:
    """Writes the report of the checkpoint given by the flags."""
    from star_jax.network import locate_checkpoint  # imports JAX, which --help should not wait for
    from star_jax.report.build import write_report

    workdir, step = locate_checkpoint(command.either(WORKDIR, CHECKPOINT))
    page, folder = write_report(
        workdir,
        step,
        dataset_dir=DATASET_DIR.value,
        output=OUTPUT.value,
        command=shlex.join(["python", *sys.argv]),
        trusted=TRUSTED.value,
    )
    print(f"report: {page} (figures: {folder})")


if __name__ == "__main__":
    command.run(main)
