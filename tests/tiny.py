"""A packed dataset and a config small enough to train in a test."""

import pathlib

import hitsz_files
import ml_collections

from configs import star_synthetic_demo
from data_pipelines import hitsz_vcm


def packed_dataset(folder: pathlib.Path) -> pathlib.Path:
    """Six training and four test identities of noise."""
    splits = {
        "train": rows_of([1, 2, 3, 4, 5, 7]),
        "test": rows_of([503, 504, 505, 506]),
    }
    source = hitsz_files.write_dataset(folder / "source", splits=splits)
    return hitsz_vcm.prepare(source, folder)


def rows_of(identities: list[int]) -> list[hitsz_files.Row]:
    """Two tracklets of each modality an identity; no camera shows one in both modalities."""
    views = [(2, 1), (2, 2), (1, 3), (1, 4)]  # modality code and camera
    return [
        hitsz_files.Row(code, identity, camera, 1, 12 + identity % 3)
        for identity in identities
        for code, camera in views
    ]


def config(dataset_dir: pathlib.Path) -> ml_collections.ConfigDict:
    """Twelve steps of a network of a few thousand parameters, in batches of eight pairs."""
    config = star_synthetic_demo.get_config()
    config.data.dir = str(dataset_dir)
    config.data.frame_size = (64, 48)
    config.data.clip_length = 2
    config.data.identities_per_batch = 4
    config.model.num_identities = 6
    config.model.stage_sizes = (1, 1, 1, 1)
    config.model.width = 4
    config.optim.lr = config.optim.backbone_lr = 0.05
    config.optim.clip_norm = 0.0
    config.optim.epochs = 12
    config.optim.warmup_epochs = 2
    config.optim.decay_epochs = (10,)
    config.eval.batch_size = 8
    config.checkpoint.every_steps = 3
    config.log_every_steps = 1
    return config


def config_file(
    folder: pathlib.Path, dataset_dir: pathlib.Path, *changes: str, name: str = "config.py"
) -> pathlib.Path:
    """The same as a file, for commands; changes are lines of Python such as `config.seed = 1`."""
    lines = [
        "import pathlib, sys",
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})",
        "import tiny",
        "def get_config():",
        f"    config = tiny.config(pathlib.Path({str(dataset_dir)!r}))",
        *(f"    {change}" for change in changes),
        "    return config",
    ]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path
