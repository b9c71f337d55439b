"""A packed dataset and a config small enough to train in a test."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import hitsz_files
import jax
import ml_collections
import numpy as np
from safetensors.numpy import save_file

from configs import star_synthetic_demo
from data_pipelines.datasets import hitsz_vcm
from data_pipelines.schema import COLUMN_TYPES, Index
from star_jax.distributed import parallel
from star_jax.embedding.embeddings import Embeddings, Provenance
from star_jax.models import build_model
from star_jax.runs import checkpoint
from star_jax.state import TrainState, abstract_state


def packed_dataset(
    folder: pathlib.Path,
    *,
    train: Sequence[int] = (1, 2, 3, 4, 5, 7),
    test: Sequence[int] = (503, 504, 505, 506),
    cameras: Sequence[int] = (1, 2, 3, 4),
) -> pathlib.Path:
    """Returns a packed dataset of noise; each identity has the four tracklets of `rows_of`."""
    splits = {"train": rows_of(train, cameras), "test": rows_of(test, cameras)}
    source = hitsz_files.write_dataset(folder / "source", splits=splits)
    return hitsz_vcm.prepare(source, folder)


def rows_of(
    identities: Sequence[int], cameras: Sequence[int] = (1, 2, 3, 4)
) -> list[hitsz_files.Row]:
    """Returns two visible and two infrared tracklets per identity, by these cameras."""
    return [
        hitsz_files.Row(code, identity, camera, 1, 12 + identity % 3)
        for identity in identities
        for code, camera in zip((2, 2, 1, 1), cameras, strict=True)
    ]


def config(dataset_dir: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns a config: twelve steps of a tiny network, in batches of eight pairs."""
    config = star_synthetic_demo.get_config()
    config.data.dir = str(dataset_dir)
    config.data.frame_size = (64, 48)
    config.data.clip_length = 2
    config.data.identities_per_batch = 4
    config.data.validation_identities = 0
    config.model.num_identities = 6
    config.model.backbone_options.width = 4
    config.optim.lr = config.optim.backbone_lr = 0.05
    config.optim.clip_norm = 0.0
    config.optim.epochs = 12
    config.optim.warmup_epochs = 2
    config.optim.decay_epochs = (10,)
    config.eval.protocol = "hitsz_vcm/v1"
    config.eval.batch_size = 8
    config.eval.every_epochs = 0
    config.checkpoint.every_steps = 3
    config.log_every_steps = 1
    return config


def baseline(dataset_dir: pathlib.Path) -> ml_collections.ConfigDict:
    """Returns the config without skeletons, whose steps compile in half the time."""
    without = config(dataset_dir)
    without.model.guidance, without.model.pooling = "none", "gem"
    return without


def random_weights(shapes: Any, seed: int = 0) -> Any:
    """Returns arrays of these shapes and shardings, without compiling an initialization.

    None is 0 or 1 throughout, as some are at initialization; scales and variances are positive.
    """
    rng = np.random.default_rng(seed)

    def drawn(path: Any, array: jax.ShapeDtypeStruct) -> jax.Array:
        if jax.tree_util.keystr(path[-1:], simple=True) in ("scale", "var"):
            values = rng.uniform(0.5, 1.5, array.shape)
        else:
            values = rng.normal(size=array.shape) * np.sqrt(2 / np.prod(array.shape[:-1]))
        return jax.device_put(values.astype(array.dtype), array.sharding)

    return jax.tree_util.tree_map_with_path(drawn, shapes)


def random_state(shapes: TrainState, seed: int = 0) -> TrainState:
    """Returns a state of these shapes and shardings before its first step, without compiling."""
    zeros = lambda x: jax.device_put(np.zeros(x.shape, x.dtype), x.sharding)  # noqa: E731
    step, opt_state = jax.tree.map(zeros, (shapes.step, shapes.opt_state))
    return random_weights(shapes, seed).replace(step=step, opt_state=opt_state)


def saved_run(workdir: pathlib.Path, run: ml_collections.ConfigDict, step: int = 0) -> pathlib.Path:
    """Returns the workdir of a run that has saved random weights as the state of a step."""
    state = random_state(abstract_state(run, build_model(run.model), 1, parallel.make_mesh()))
    with checkpoint.open_manager(workdir, 1) as manager:
        checkpoint.save(manager, state.replace(step=np.int32(step)), run.to_dict(), dataset="")
        manager.wait_until_finished()
    return workdir


PROVENANCE = Provenance(
    weights="0123",
    network="abc",
    step=3,
    dataset="a",
    split="test",
    held_out=0,
    clips="first",
    clip_length=2,
    sampling="hitsz_vcm",
    flip=False,
    corruption="none",
)


def embeddings(
    n: int,
    *,
    seed: int = 0,
    width: int = 8,
    provenance: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Embeddings:
    """Returns random embeddings of n tracklets of three people, one of them unknown.

    Args:
      n: number of tracklets.
      seed: of the random numbers.
      width: of an embedding.
      provenance: what differs from PROVENANCE.
      **changes: other fields, or columns of the index.
    """
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, width)).astype(np.float32)
    identities = rng.choice(["alice", "bob", "unknown"], n)
    cameras = rng.choice(["door", "yard", "3"], n)
    index = Index(
        identities=identities,
        labels=np.full(n, -1, np.int32),
        cameras=np.unique(cameras, return_inverse=True)[1].astype(np.int32),
        camera_names=cameras,
        modalities=np.arange(n, dtype=np.int32) % 2,
        num_frames=np.full(n, 12, np.int32),
        rows=np.arange(1, n + 1, dtype=np.int32),
        missing_skeletons=np.zeros(n, np.int32),
        queries=np.ones(n, bool),
        galleries=np.ones(n, bool),
        conditions=np.full(n, ""),
    )
    columns = {name: changes.pop(name) for name in COLUMN_TYPES if name in changes}
    made = Embeddings(
        vectors=vectors / np.linalg.norm(vectors, axis=1, keepdims=True),
        index=dataclasses.replace(index, **columns),
        first_frames=np.array([f"{name}/{i}/1.jpg" for i, name in enumerate(identities)]),
        dataset_dir="/data/folder/1.1.0",
        provenance=dataclasses.replace(PROVENANCE, **(provenance or {})),
    )
    return dataclasses.replace(made, **changes)


def backbone_file(folder: pathlib.Path) -> tuple[pathlib.Path, dict[str, np.ndarray]]:
    """Returns random weights of the ResNet by torchvision's names, as a file and as arrays."""
    rng = np.random.default_rng(0)
    shapes = {"conv1.weight": (4, 3, 7, 7), "bn1": (4,)}
    for stage, (before, width) in enumerate([(4, 4), (4, 8), (8, 16), (16, 32)], start=1):
        block = f"layer{stage}.0"
        shapes |= {f"{block}.conv1.weight": (width, before, 3, 3), f"{block}.bn1": (width,)}
        shapes |= {f"{block}.conv2.weight": (width, width, 3, 3), f"{block}.bn2": (width,)}
        if stage > 1:
            shapes |= {f"{block}.downsample.0.weight": (width, before, 1, 1)}
            shapes |= {f"{block}.downsample.1": (width,)}
    arrays = {}
    for name, shape in shapes.items():
        if len(shape) > 1:
            arrays[name] = (rng.normal(size=shape) / np.sqrt(np.prod(shape[1:]))).astype("f4")
        else:
            for part in ("weight", "bias", "running_mean", "running_var"):
                arrays[f"{name}.{part}"] = rng.uniform(0.5, 1.5, shape).astype("f4")
    path = folder / "resnet.safetensors"
    save_file(arrays, path)
    return path, arrays


def config_file(
    folder: pathlib.Path,
    dataset_dir: pathlib.Path,
    *changes: str,
    base: str = "config",
    name: str = "config.py",
) -> pathlib.Path:
    """Writes a config of this module as a file for commands.

    Args:
      folder: where to write it.
      dataset_dir: the packed dataset.
      *changes: lines such as `config.seed = 1`.
      base: which config, "config" or "baseline".
      name: name of the file.
    """
    lines = [
        "import pathlib, sys",
        f"sys.path.insert(0, {str(pathlib.Path(__file__).parent)!r})",
        "import tiny",
        "def get_config():",
        f"    config = tiny.{base}(pathlib.Path({str(dataset_dir)!r}))",
        *(f"    {change}" for change in changes),
        "    return config",
    ]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path
