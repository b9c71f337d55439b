"""Checks that this machine computes STAR correctly, by small programs and recorded outputs.

float32 is compared with the authors' PyTorch network: the outputs in `star_jax.golden` were
recorded in float32 on a CPU, with the `reference` setting and parameters and inputs generated from
a seed. The environment variable STAR_PARITY_FIXTURES may name a folder of additional
`eval_seed*.npz` and `train_seed*.npz`; a file of the same name replaces ours.

bfloat16 is compared with float32 on the same machine, in the setting that is trained in it. In the
`reference` setting it would be noise: an LSTM that reads pixels saturates, and rounding flips it.
"""

import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float32, Float64

from data_pipelines.errors import InputError
from data_pipelines.io.progress import with_progress
from data_pipelines.schema import MODALITIES
from star_jax.config import Config, with_values
from star_jax.distributed.parallel import batch_shardings, make_mesh, put
from star_jax.golden.passes import (
    FOLDER,
    inference_program,
    inputs,
    state_dict,
    training_program,
    without_dropout,
)
from star_jax.models import build_model
from star_jax.state import initial_state, random_batch
from star_jax.training.steps import make_train_step
from star_jax.weights import from_authors

PER_FRAME = ("frame_features", "disturbed", "edges", "guided", "frame_logits", "disturbed_logits")

# The largest acceptable differences from the recorded float32 outputs, relative to a tensor's
# largest magnitude, or to the value itself for a loss or a gradient norm. The authors' network in
# float64 differs from them by 4e-5 for S, 1e-6 for other tensors and for losses, and 1e-3 for
# gradient norms.
TOLERANCES = {
    "eval": 1e-4,
    "train": 1e-4,
    "losses": 1e-5,
    "running statistics": 1e-5,
    "gradient norms": 5e-3,
    "gradient norms, LSTM": 5e-3,
}
# Share of the norm of all gradients below which a gradient counts as rounding error: for example,
# that of the graph's receiver vectors may be zero up to rounding.
GRADIENT_FLOOR = 1e-6
# The largest acceptable differences of bfloat16 from float32, as the norm of the difference divided
# by that of the float32 array (of each module, for gradients). On CPUs with AVX2 and with AVX-512
# and AMX for bfloat16, with JAX 0.10.2 and 0.12.0, inference differs by 0.003 to 0.009 for S, 0.004
# to 0.006 for attention and at most 0.004 for other tensors; a module whose parameters are scaled
# by 1.1, by four times that or more (tests/star_jax/verify_test.py). Training differs by 0.03 for
# outputs, 0.004 for losses, 0.0008 for running statistics, 0.31 for gradients and 0.02 for norms.
BFLOAT16_TOLERANCES = {
    "inference": 0.01,
    **dict.fromkeys(("edges", "edges_last", "skeleton", "skeleton_logits"), 0.03),
    "attention weights": 0.02,
    "pooling weights": 0.007,
    "training": 0.1,
    "losses": 0.02,
    "running statistics": 0.003,
    "gradients": 0.9,
    "gradient norms": 0.06,
}
# Tracklets, frames, height, width.
INFERENCE_SHAPE, TRAINING_SHAPE = (1, 12, 288, 144), (4, 12, 64, 32)
BFLOAT16_TRAINING_SHAPE = (4, 4, 64, 48)
INFERENCE_IDENTITIES, TRAINING_IDENTITIES = 500, 10
BFLOAT16_SEED = 7

CANARIES_TOLERANCE = 1e-5  # sums of 60 products of float32 numbers
# Sums in a different order; a single ReLU that rounding switches moved a gradient by 6e-4.
DEVICES_TOLERANCE = 5e-3

# Layers of the authors' network whose running statistics are recorded, and their names in ours.
RUNNING = {
    "pose_bottleneck": "skeleton_bnneck",
    "global_bottleneck": "bnneck",
    "local_bottleneck": "frame_bnneck",
    "base_resnet.base.layer4.2.bn3": "backbone/stage4/block2/bn3",
    "base_resnet.base.layer3.0.bn1": "backbone/stage3/block0/bn1",
    "visible_module.visible.bn1": "backbone/stem_visible/bn",
}


@dataclasses.dataclass(frozen=True)
class Check:
    """What was compared, the largest difference found and the largest acceptable one."""

    what: str
    difference: float
    tolerance: float

    @property
    def passed(self) -> bool:
        """Whether the difference is within the tolerance; False for NaN."""
        return self.difference <= self.tolerance


def verify(reference: Config, trained: Config) -> list[Check]:
    """Runs all checks on the devices of this process and returns their results.

    Args:
      reference: the experiment `star_hitsz_vcm_reference`.
      trained: the experiment `star_hitsz_vcm`, whose network is checked in bfloat16.

    Raises:
      InputError: STAR_PARITY_FIXTURES names a folder without fixtures.
    """
    parts: list[Callable[[], list[Check]]] = [check_canaries]
    for path in [*fixtures("train"), *fixtures("eval")]:  # the longest ones first
        parts.append(functools.partial(check_network, path, reference))
    parts += [
        functools.partial(check_bfloat16, stage, trained) for stage in ("training", "inference")
    ]
    if jax.local_device_count() > 1:
        parts.append(functools.partial(check_devices, reference))
    with concurrent.futures.ThreadPoolExecutor(2) as pool:  # most of the time is compilation
        results = pool.map(lambda part: part(), parts)
        found = with_progress(results, len(parts), "verify", unit="parts")
        return [check for checks in found for check in checks]


def check_canaries() -> list[Check]:
    """Checks the programs that XLA's CPU compiler got wrong (see `star_jax.compiler`)."""
    programs = {"a product with a broadcast": broadcast_product, "a sum in vmap": sums_in_vmap}
    return [
        Check(f"canary: {what}", relative_difference(*program()), CANARIES_TOLERANCE)
        for what, program in programs.items()
    ]


def broadcast_product() -> tuple[Float32[np.ndarray, "m n"], Float64[np.ndarray, "m n"]]:
    """Returns the results of the device and of NumPy; off by 1e28 with JAX 0.10.2 to 0.12."""
    rng = np.random.default_rng(0)
    e = rng.standard_normal((5, 60, 60)).astype(np.float32)
    c = rng.standard_normal((60, 1)).astype(np.float32)

    @jax.jit
    def program(e: jax.Array, c: jax.Array) -> jax.Array:
        wide = jnp.broadcast_to(c, e.shape)
        return jnp.sum(jnp.matmul(e, wide, precision=jax.lax.Precision.HIGHEST) * e, -1)

    wide = np.broadcast_to(c, e.shape).astype(np.float64)
    return np.asarray(program(e, c)), np.sum((e.astype(np.float64) @ wide) * e, -1)


def sums_in_vmap() -> tuple[Float32[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """Returns the results of the device and of NumPy; one row is wrong with JAX 0.10.2."""
    rows = np.random.default_rng(0).standard_normal((32769, 3)).astype(np.float32)

    @jax.jit
    @jax.vmap
    def program(row: jax.Array) -> jax.Array:
        return jnp.sum(jnp.matmul(jnp.eye(3), row, precision=jax.lax.Precision.HIGHEST) ** 2)

    return np.asarray(program(rows)), np.sum(rows.astype(np.float64) ** 2, -1)


def relative_difference(actual: Any, expected: Any) -> float:
    """Returns the largest difference of two arrays, relative to the largest expected magnitude.

    NaN if either contains NaN.

    Raises:
      ValueError: the shapes differ.
    """
    actual, expected = np.asarray(actual), np.asarray(expected)
    if actual.shape != expected.shape:
        raise ValueError(f"shapes {actual.shape} and {expected.shape}")
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def fixtures(kind: str) -> list[pathlib.Path]:
    """Returns the fixtures of a kind, "eval" or "train": ours, and those of STAR_PARITY_FIXTURES.

    Raises:
      InputError: STAR_PARITY_FIXTURES names a folder without any.
    """
    paths = {path.name: path for path in FOLDER.glob(f"{kind}_seed*.npz")}
    further = os.environ.get("STAR_PARITY_FIXTURES")
    if further:
        if not any(pathlib.Path(further).glob("*_seed*.npz")):
            raise InputError(
                f"STAR_PARITY_FIXTURES is {further}: no eval_seed*.npz or train_seed*.npz there"
            )
        paths |= {path.name: path for path in pathlib.Path(further).glob(f"{kind}_seed*.npz")}
    return [paths[name] for name in sorted(paths)]


def check_network(path: pathlib.Path, config: Config) -> list[Check]:
    """Compares the network with a fixture: one check per tensor, and one per kind of the rest."""
    stage = path.stem.partition("_")[0]
    compare = {"eval": inference_differences, "train": training_differences}[stage]
    found: dict[str, list[float]] = {}
    for name, difference in compare(path, config).items():
        found.setdefault(kind_of(name), []).append(difference)
    return [
        Check(
            f"float32 {path.stem}: {kind}",
            largest(differences),
            TOLERANCES.get(kind, TOLERANCES[stage]),
        )
        for kind, differences in found.items()
    ]


def kind_of(name: str) -> str:
    """Returns the line of the table to which a name in a fixture belongs."""
    first, _, rest = name.partition(".")
    if first == "grad_norm":
        return "gradient norms, LSTM" if rest.startswith("lstm_edge.") else "gradient norms"
    kinds = dict.fromkeys(("running_mean", "running_var"), "running statistics")
    return {**kinds, "loss": "losses"}.get(first, rest or first)


def largest(differences: list[float]) -> float:
    """Returns the largest of some numbers, or NaN if one is NaN."""
    return float(np.max(differences))


def inference_differences(path: pathlib.Path, config: Config) -> dict[str, float]:
    """Returns differences of inference by the names of a fixture, such as `visible.embedding`."""
    seed = seed_of(path)
    config = without_dropout(config, INFERENCE_IDENTITIES)
    variables = from_authors(state_dict(seed, INFERENCE_IDENTITIES), config.model)
    differences = {}
    with np.load(path) as known:
        for modality in MODALITIES:
            clip = inputs(seed, "", modality, *INFERENCE_SHAPE)
            output, _ = jax.device_get(inference_program(config, modality)(variables, *clip))
            for name in sorted(name for name in known.files if name.startswith(f"{modality}.")):
                found = getattr(output, name.partition(".")[2])
                differences[name] = relative_difference(found, known[name])
    return differences


def training_differences(path: pathlib.Path, config: Config) -> dict[str, float]:
    """Returns differences of a training pass by the names of a fixture, such as `loss.triplet`."""
    seed = seed_of(path)
    config = without_dropout(config, TRAINING_IDENTITIES)
    arrays = state_dict(seed, TRAINING_IDENTITIES)
    fixed = {k: v for k, v in arrays.items() if k.endswith(("tracked", "mean", "var"))}
    run = training_program(
        config,
        lambda trained: from_authors({**fixed, **trained}, config.model),
        *inputs(seed, "train.", None, *TRAINING_SHAPE),
    )
    trained = {name: array for name, array in arrays.items() if name not in fixed}
    gradients, (losses, output, statistics) = jax.device_get(run(trained))
    with np.load(path) as known:
        numbers = {name: known[name] for name in known.files}
    norms = {name: value for name, value in numbers.items() if name.startswith("grad_norm.")}
    floor = GRADIENT_FLOOR * np.linalg.norm(list(norms.values()))

    def difference(name: str, expected: np.ndarray) -> float:
        kind, _, rest = name.partition(".")
        if kind == "loss":
            return relative_difference(losses[rest], expected)
        if kind == "grad_norm":
            apart = abs(np.linalg.norm(gradients[rest]) - expected)
            return 0.0 if apart <= floor else float((apart - floor) / expected)
        if kind in ("running_mean", "running_var"):
            layer = functools.reduce(
                lambda tree, key: tree[key], RUNNING[rest].split("/"), statistics
            )
            return relative_difference(layer[kind.removeprefix("running_")], expected)
        pairs = getattr(output, name)
        axis = 2 if name in PER_FRAME else 1
        visible_then_infrared = np.concatenate([pairs.take(i, axis) for i in (0, 1)])
        return relative_difference(visible_then_infrared, expected)

    return {name: difference(name, expected) for name, expected in sorted(numbers.items())}


def check_bfloat16(stage: str, config: Config) -> list[Check]:
    """Compares the network of a config in bfloat16 with the same in float32.

    Args:
      stage: "inference" or "training".
      config: an experiment with keypoints "relative".
    """
    values_of = {"inference": values_of_inference, "training": values_of_training}[stage]
    exact, rounded = (values_of(config, dtype) for dtype in ("float32", "bfloat16"))
    return [
        Check(
            f"bfloat16 {stage}: {kind}",
            largest([norm_of_difference(rounded[kind][name], values[name]) for name in values]),
            BFLOAT16_TOLERANCES.get(kind, BFLOAT16_TOLERANCES[stage]),
        )
        for kind, values in exact.items()
    ]


def norm_of_difference(actual: Any, expected: Any) -> float:
    """Returns the norm of the difference of two arrays, relative to that of the expected one."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def values_of_inference(config: Config, dtype: str) -> dict[str, dict[str, Any]]:
    """Returns what inference computes of a pair of tracklets, by line of the table and name."""
    config, variables, clips = in_dtype(config, dtype, INFERENCE_SHAPE)
    output, sown = jax.device_get(inference_program(config, None)(variables, *clips))
    found = {name: {name: value} for name, value in vars(output).items() if value is not None}
    for path, (weights,) in flatten_dict(sown, sep="/").items():
        kind = "pooling weights" if "/pooling/" in path else "attention weights"
        found.setdefault(kind, {})[path] = weights
    return found


def values_of_training(config: Config, dtype: str) -> dict[str, dict[str, Any]]:
    """Returns what a training pass computes, by line of the table and name."""
    config, variables, clips = in_dtype(config, dtype, BFLOAT16_TRAINING_SHAPE)
    run = training_program(config, lambda params: {**variables, "params": params}, *clips)
    found = jax.device_get(run(variables["params"]))
    gradients, (losses, output, statistics) = found
    gradients = by_module(gradients)
    return {
        "outputs": {name: value for name, value in vars(output).items() if value is not None},
        "losses": losses,
        "running statistics": by_module(statistics),
        "gradients": gradients,
        "gradient norms": {name: np.linalg.norm(values) for name, values in gradients.items()},
    }


def in_dtype(
    config: Config, dtype: str, shape: tuple[int, ...]
) -> tuple[Config, Any, tuple[Array, ...]]:
    """Returns config and variables of a network in a dtype, and pairs of clips of a shape.

    The stages have two blocks: further ones only repeat the second.
    """
    arrays = state_dict(BFLOAT16_SEED, TRAINING_IDENTITIES)
    variance = "pose_bottleneck.running_var"  # that of fixtures, whose keypoints are in pixels
    arrays[variance] = arrays[variance] / 1000
    variables = from_authors(arrays, without_dropout(config, TRAINING_IDENTITIES).model)
    flat = flatten_dict(variables, sep="/")
    kept = {path: flat[path] for path in flat if not re.search(r"/block[2-9]/", path)}
    few = {"stage_sizes": (2, 2, 2, 2)}
    config = without_dropout(config, TRAINING_IDENTITIES, dtype=dtype, backbone_options=few)
    frames, keypoints = inputs(BFLOAT16_SEED, "", None, *shape)
    keypoints *= keypoints[..., 2:] > 0.1  # the others are not detected
    return config, unflatten_dict(kept, sep="/"), (frames, keypoints)


def by_module(tree: Any) -> dict[str, Float32[np.ndarray, " n"]]:
    """Returns the arrays of each module, joined, by the first two parts of their paths."""
    found: dict[str, list[np.ndarray]] = {}
    for path, array in flatten_dict(tree, sep="/").items():
        found.setdefault("/".join(path.split("/")[:2]), []).append(np.ravel(array))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def seed_of(path: pathlib.Path) -> int:
    """Returns the seed in a fixture's file name.

    Raises:
      InputError: the name contains none.
    """
    match = re.search(r"_seed(\d+)$", path.stem)
    if not match:
        raise InputError(f"{path}: rename it to eval_seed<number>.npz or train_seed<number>.npz")
    return int(match[1])


def check_devices(config: Config) -> list[Check]:
    """Compares a training step over all devices of this process with one on a single device."""
    local = jax.local_devices()
    one, all_ = (small_step(config, local[:count], len(local)) for count in (1, len(local)))
    differences = [
        float((np.abs(a - b) / (1 + np.abs(a))).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(all_), strict=True)
    ]
    what = f"a training step on {len(local)} devices and on one"
    return [Check(what, largest(differences), DEVICES_TOLERANCE)]


def small_step(config: Config, devices: list[jax.Device], num_identities: int) -> Any:
    """Returns state and metrics after a step of a small network with all augmentation."""
    small = {
        "model.backbone": "resnet18",
        "model.backbone_options": {"stage_sizes": (1, 1, 1, 1), "width": 8},
        "model.num_identities": num_identities,
        "model.dtype": "float32",
        "data.frame_size": (64, 48),
        "data.clip_length": 2,
        "data.identities_per_batch": num_identities,
        "data.tracklets_per_identity": 2,
    }
    config = with_values(config, small)
    mesh = make_mesh(config, devices)
    model = build_model(config.model)
    pairs = 2 * num_identities
    batch = random_batch(config, pairs)
    step = make_train_step(config, model, 1, mesh)
    state = initial_state(config, model, 1, mesh)
    return jax.device_get(step(state, put(batch, batch_shardings(mesh), pairs)))
