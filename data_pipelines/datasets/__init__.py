"""Reading and checking the files of each dataset, and the datasets by name."""

import importlib
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from data_pipelines import schema
from data_pipelines.datasets.findings import Findings
from data_pipelines.parts import find_part


class Dataset(Protocol):
    """A module, or any other object, with these functions.

    Functions that are never called may be missing. Functions may have more options, with defaults.
    """

    def prepare(
        self,
        source: str | os.PathLike[str],
        data_dir: str | os.PathLike[str],
        *,
        keypoints: str | os.PathLike[str] | None = None,
        num_workers: int | None = None,
    ) -> pathlib.Path:
        """Packs the dataset and returns the directory.

        Args:
          source: root of its files.
          data_dir: where directories of packed datasets are.
          keypoints: the skeletons; None takes those in the source.
          num_workers: threads that read; None takes as many as there are CPUs.
        """

    def check(
        self,
        source: str | os.PathLike[str],
        *,
        keypoints: str | os.PathLike[str] | None = None,
        num_workers: int | None = None,
    ) -> Findings:
        """Returns the problems of the files; packs nothing."""

    def all_tracklets(self, source: str | os.PathLike[str]) -> Sequence[schema.Tracklet]:
        """Returns the tracklets of all splits."""


# Names of modules instead of modules, since --help lists the datasets and must not import TFDS.
DATASETS: Mapping[str, str] = {
    "hitsz_vcm": "data_pipelines.datasets.hitsz_vcm",
    "bupt_campus": "data_pipelines.datasets.bupt_campus",
    "folder": "data_pipelines.datasets.folder",
}


def find_dataset(name: str, *, needs: str, datasets: Mapping[str, str] = DATASETS) -> Dataset:
    """Returns the dataset of this name: a module, or an object of another package.

    Args:
      name: a key of `datasets`, or `package.module:object`, the value of the flag `--dataset`.
      needs: the function that the caller uses: "prepare", "check" or "all_tracklets".
      datasets: names of modules.

    Raises:
      InputError: there is no such dataset, its module cannot be imported, or it lacks the function.
    """
    found: Any = find_part(
        datasets,
        name,
        "--dataset",
        kind=f"an object with a function {needs}",
        include=lambda part: callable(getattr(part, needs, None)),
    )
    dataset: Dataset = importlib.import_module(found) if name in datasets else found
    return dataset
