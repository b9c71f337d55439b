"""Compares evaluated runs: scores with intervals, and the differences between methods.

  python launch/compare.py runs/star_seed* runs/baseline_seed*
  python launch/compare.py runs/star/eval/34840-hitsz_vcm-v1-first-0b1c2d3e.json runs/other

Each argument is an evaluation report or the folder of a run, which stands for the report that
launch/eval.py writes without other flags for the last evaluated step. Runs form one method if they
differ only in the seed: config, initial weights, training dataset, code revision and step are the
same. Intervals are 95 % intervals over the identities of the queries and over the training seeds.
Runs that were evaluated on different test sets or in different ways are refused.
"""

from data_pipelines.errors import InputError
from launch import command


def main(*paths: str) -> None:
    """Compares the runs given as arguments."""
    from star_jax.comparison import comparison
    from star_jax.evaluation.reports import read_evaluation

    if len(paths) < 2:
        raise InputError("pass two or more runs, as in launch/compare.py runs/star runs/baseline")
    evaluations = [read_evaluation(path) for path in paths]
    comparison.require_same_test_set(evaluations)
    print(comparison.format_comparison(comparison.methods_of(evaluations)))


if __name__ == "__main__":
    command.run(main, takes_arguments=True)
