"""Packs a dataset into records for training, or checks it; the generated one is rendered first.

  python launch/prepare.py --dataset=hitsz_vcm --source=/datasets/HITSZ-VCM --check
  python launch/prepare.py --dataset=hitsz_vcm --source=/datasets/HITSZ-VCM
  python launch/prepare.py --dataset=bupt_campus --source=/datasets/BUPTCampus
  python launch/prepare.py --dataset=folder --source=/footage --every=5
  python launch/prepare.py --dataset=folder --source=/footage --test_share=0.3
  python launch/prepare.py --dataset=folder --source=/footage --test_share=0.3 --update
  python launch/prepare.py --dataset=synthetic_vcm --size=demo
  python launch/prepare.py --dataset=my_package.my_module:MY_DATASET --source=/datasets/mine

The records go to <data_dir>/<dataset>/<version>. In a folder of your own footage, images or videos
are DIR/<identity>/<visible or infrared>/<camera>/<tracklet>, as launch/footage/tracklets.py writes
them; to train on it, split its people with --test_share or --split_file. The generated dataset is
rendered to <data_dir>/synthetic_vcm_<size>/source, with a contact sheet, and packed beside it;
--layout selects another dataset's file layout. docs/how_to/dataset.md describes what a dataset of
your own package needs. What is already rendered or packed is kept, and interrupted packing resumes.
--check reads everything, packs nothing, lists the problems, and exits with code 1 if there are any.
"""

import sys
from pathlib import Path
from typing import Any

from absl import flags

from data_pipelines.datasets import DATASETS, find_dataset
from data_pipelines.errors import InputError
from launch import command

DATASET = command.define_required(
    "dataset",
    f"{', '.join(DATASETS)}, synthetic_vcm, or package.module:object for one of your own.",
)
SOURCE = command.define_path(
    "source", None, "Root of the dataset. Required, except for synthetic_vcm."
)
KEYPOINTS = command.define_path(
    "keypoints",
    None,
    "Skeletons: HDF5, COCO JSON or a folder of .npy; default: searched for in the source.",
)
CHECK = flags.DEFINE_bool("check", False, "Check the dataset instead of packing it.")
DATA_DIR = command.define_path("data_dir", "data", "Folder for packed datasets.")
AUXILIARY = flags.DEFINE_bool("auxiliary", False, "bupt_campus: pack the auxiliary split, too.")
FAKE_INFRARED = flags.DEFINE_bool(
    "fake_infrared", False, "bupt_campus: FakeIR frames in place of the visible ones."
)
EVERY = flags.DEFINE_integer("every", 1, "folder: take every N-th frame.", lower_bound=1)
WITHOUT_SKELETONS = flags.DEFINE_bool(
    "without_skeletons", False, "folder: pack no skeletons, for a network without guidance."
)
SPLIT_FILE = command.define_path(
    "split_file",
    None,
    "folder: CSV file with the columns identity,split: assigns people to train or test.",
)
TEST_SHARE = flags.DEFINE_float(
    "test_share",
    None,
    "folder: share of the people in test, such as 0.3; the rest are for training.",
)
ALLOW_WHOLE_VIDEOS = flags.DEFINE_bool(
    "allow_whole_videos", False, "folder: also pack videos that are wider than tall."
)
UPDATE = flags.DEFINE_bool(
    "update",
    False,
    "folder: update the packed dataset to the current content of the folder; files whose size and "
    "modification time are unchanged are not read.",
)
OVERWRITE = flags.DEFINE_bool("overwrite", False, "folder: replace the packed dataset.")
SPLIT_SEED = flags.DEFINE_integer("split_seed", 0, "folder: seed of --test_share.", lower_bound=0)
SIZE = flags.DEFINE_enum("size", "demo", ["tiny", "demo", "full"], "Size of synthetic_vcm.")
LAYOUT = flags.DEFINE_enum("layout", "hitsz_vcm", list(DATASETS), "File layout of synthetic_vcm.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of synthetic_vcm.", lower_bound=0)
NUM_WORKERS = flags.DEFINE_integer(
    "num_workers",
    None,
    "Processes that render and threads that pack; default: one per core.",
    lower_bound=1,
)

OPTIONS: dict[str, dict[str, Any]] = {  # flags that belong to one dataset
    "bupt_campus": {"auxiliary": AUXILIARY, "fake_infrared": FAKE_INFRARED},
    "folder": {
        "every": EVERY,
        "without_skeletons": WITHOUT_SKELETONS,
        "split_file": SPLIT_FILE,
        "test_share": TEST_SHARE,
        "split_seed": SPLIT_SEED,
        "allow_whole_videos": ALLOW_WHOLE_VIDEOS,
        "update": UPDATE,
        "overwrite": OVERWRITE,
    },
    "synthetic_vcm": {"size": SIZE, "layout": LAYOUT, "seed": SEED},
}


def main() -> None:
    """Packs or checks the dataset that the flags name."""
    drawn = DATASET.value == "synthetic_vcm"
    name, data_dir = LAYOUT.value if drawn else DATASET.value, Path(DATA_DIR.value)
    options = {"keypoints": KEYPOINTS.value, "num_workers": NUM_WORKERS.value, **options_of(name)}
    dataset = find_dataset(
        DATASET.value,
        needs="check" if CHECK.value else "prepare",
        datasets={**DATASETS, "synthetic_vcm": DATASETS[LAYOUT.value]},
    )
    if drawn:
        if SOURCE.value is not None or KEYPOINTS.value is not None:
            raise InputError(
                "--dataset=synthetic_vcm is rendered here: leave out --source, --keypoints"
            )
        data_dir = data_dir / f"synthetic_vcm_{SIZE.value}"
        if name != "hitsz_vcm":
            data_dir = data_dir.with_name(f"{data_dir.name}_{name}")
        source = data_dir / "source"
        draw(source, data_dir / "contact_sheet.png")
    elif SOURCE.value is None:
        raise InputError(f"--dataset={name} needs --source, the root of the dataset")
    else:
        source = Path(SOURCE.value)
    if CHECK.value:
        if drawn and name != "folder":
            options["published"] = False
        findings = dataset.check(source, **options)
        print(findings)
        sys.exit(1 if findings.wrong else 0)
    packed = dataset.prepare(source, data_dir, **options)
    print(f"packed dataset: {packed}")
    if name == "folder" and SPLIT_FILE.value is None and TEST_SHARE.value is None:
        print(f"search it with launch/search.py --source={packed}")
    else:
        print(f"train on it with --config.data.dir={packed}")


def options_of(dataset: str) -> dict[str, Any]:
    """Returns the dataset's own options; raises an error for those of another."""
    for other, options in OPTIONS.items():
        for name, flag in options.items():
            if flag.present and other not in (dataset, DATASET.value):
                raise InputError(f"--{name} is for --dataset={other}, not for {dataset}")
    return {name: flag.value for name, flag in OPTIONS.get(dataset, {}).items()}


def draw(source: Path, picture: Path) -> None:
    """Renders the generated dataset, and a contact sheet of it unless it is videos."""
    from data_pipelines.datasets import bupt_lists, hitsz_vcm
    from data_pipelines.synthetic import generate, plan, videos
    from data_pipelines.synthetic.contact_sheet import contact_sheet

    if LAYOUT.value == "folder":
        videos.write(source, plan.SIZES[SIZE.value], SEED.value)
        return
    generate.generate(
        source,
        size=SIZE.value,
        seed=SEED.value,
        processes=NUM_WORKERS.value,
        layout=LAYOUT.value,
    )
    if LAYOUT.value == "hitsz_vcm":
        tracklets = hitsz_vcm.read_index(source, min_frames=1).train
    else:
        tracklets = list(bupt_lists.read_index(source).splits["train"])
    contact_sheet(source, tracklets, picture)
    print(f"contact sheet: {picture}")


if __name__ == "__main__":
    command.run(main)
