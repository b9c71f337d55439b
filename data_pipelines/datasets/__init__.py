"""What the files of each dataset mean, what is wrong with them, and the datasets by name.

A dataset is a module, or any other object, with these functions:

  prepare(source, data_dir, *, keypoints, num_workers)  packs it and returns the directory
  check(source, *, keypoints, num_workers)              returns `findings.Findings`, packs nothing
  all_tracklets(source)                                 returns the tracklets of all splits
"""

import importlib
from collections.abc import Mapping
from typing import Any

from data_pipelines.parts import find_part

# Names of modules instead of modules, since --help lists the datasets and must not import TFDS.
DATASETS = {
    "hitsz_vcm": "data_pipelines.datasets.hitsz_vcm",
    "bupt_campus": "data_pipelines.datasets.bupt_campus",
    "folder": "data_pipelines.datasets.folder",
}


def find_dataset(name: str, *, needs: str, datasets: Mapping[str, str] = DATASETS) -> Any:
    """Returns the dataset of this name: a module, or an object of another package.

    Args:
      name: a key of `datasets`, or `package.module:object`, the value of the flag `--dataset`.
      needs: the function that the caller uses: "prepare", "check" or "all_tracklets".
      datasets: names of modules.

    Raises:
      InputError: there is no such dataset, its module cannot be imported, or it lacks the function.
    """
    found = find_part(
        datasets,
        name,
        "--dataset",
        kind=f"an object with a function {needs}",
        include=lambda part: callable(getattr(part, needs, None)),
    )
    return importlib.import_module(found) if name in datasets else found
