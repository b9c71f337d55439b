"""Packs a dataset into records for training; draws it first if it is the generated one.

  python launch/prepare.py --dataset=hitsz_vcm --source=/datasets/HITSZ-VCM
  python launch/prepare.py --dataset=synthetic_vcm --size=demo

The records of hitsz_vcm go to <data_dir>/hitsz_vcm/<version>. The generated dataset is drawn in
HITSZ-VCM's own layout to <data_dir>/synthetic_vcm_<size>/source, with a contact sheet to look at,
and packed beside it. What is drawn or packed already is not done again.
"""

from pathlib import Path

import command
from absl import flags

DATASET = flags.DEFINE_enum(
    "dataset", None, ["hitsz_vcm", "synthetic_vcm"], "Which dataset.", required=True
)
SOURCE = flags.DEFINE_string("source", None, "Root of hitsz_vcm, with the images and index files.")
KEYPOINTS = flags.DEFINE_string(
    "keypoints", None, "Skeletons of hitsz_vcm (HDF5); looked for in the source if not given."
)
DATA_DIR = flags.DEFINE_string("data_dir", "data", "Where packed datasets go.")
SIZE = flags.DEFINE_enum("size", "demo", ["tiny", "demo", "full"], "Size of synthetic_vcm.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of synthetic_vcm.", lower_bound=0)
NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    None,
    "Processes that draw and threads that pack; one a core if not given.",
    lower_bound=1,
)


def main() -> None:
    """Prepares as the flags say."""
    from data_pipelines import hitsz_vcm

    data_dir = Path(DATA_DIR.value)
    keypoints = KEYPOINTS.value
    if DATASET.value == "hitsz_vcm":
        if SOURCE.value is None:
            raise ValueError("--dataset=hitsz_vcm needs --source, the root of the dataset")
        source = Path(SOURCE.value)
    else:
        if SOURCE.value is not None or keypoints is not None:
            raise ValueError(
                "--dataset=synthetic_vcm is drawn here: leave out --source, --keypoints"
            )
        data_dir = data_dir / f"synthetic_vcm_{SIZE.value}"
        source = data_dir / "source"
        draw(source, data_dir / "contact_sheet.png")
    packed = hitsz_vcm.prepare(source, data_dir, keypoints=keypoints, num_workers=NUM_WORKERS.value)
    print(f"packed dataset: {packed}\ntrain on it with --config.data.dir={packed}")


def draw(source: Path, picture: Path) -> None:
    """Draws the generated dataset and a picture to judge it by."""
    from data_pipelines import synthetic_vcm
    from data_pipelines.contact_sheet import contact_sheet

    synthetic_vcm.generate(source, size=SIZE.value, seed=SEED.value, processes=NUM_WORKERS.value)
    contact_sheet(source, picture)
    print(f"contact sheet: {picture}")


if __name__ == "__main__":
    command.run(main)
