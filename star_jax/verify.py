"""Checks that this machine computes STAR correctly, by small programs and recorded outputs.

The outputs in `star_jax.golden` were recorded from the authors' PyTorch network in float32 on a
CPU, with the `reference` setting and parameters and inputs generated from a seed. The environment
variable STAR_PARITY_FIXTURES may name a folder of additional `eval_seed*.npz` and
`train_seed*.npz`; a file of the same name replaces ours.
"""

import concurrent.futures
import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from jaxtyping import Array, Float32, Float64

from data_pipelines.errors import InputError
from data_pipelines.io.progress import with_progress
from star_jax import golden
from star_jax.distributed.parallel import batch_shardings, make_mesh, put
from star_jax.golden import reference_arrays
from star_jax.losses import build_losses
from star_jax.models import StarOutput, StyleSources, build_model
from star_jax.training.steps import initial_state, make_train_step, random_batch
from star_jax.weights import from_authors

GOLDEN = pathlib.Path(golden.__file__).parent
MODALITIES = ("visible", "infrared")
PER_FRAME = ("frame_features", "disturbed", "edges", "guided", "frame_logits", "disturbed_logits")

# The largest acceptable differences, relative to a tensor's largest magnitude, or to the value
# itself for a loss or a gradient norm.
#
# float32: the recorded outputs differ from those of the authors' network in float64 by 4e-5 for S,
# 1e-6 for other tensors and for losses, and 1e-3 for gradient norms.
#
# bfloat16: at least three times the differences from float32 measured on a CPU with seeds 7 and 11:
# at most 0.004 for a tensor of inference, 0.04 for one of the training pass, where batch statistics
# amplify differences, 0.002 for losses and statistics, and 0.08 for gradient norms. The LSTM is the
# exception: keypoints in pixels saturate its gates, so that rounding flips some of them; S differs
# by 0.54, the gradients of its kernels by 0.24. Zeros in place of S would differ by 1.
TOLERANCES: dict[str, dict[str, float]] = {
    "float32": {
        "eval": 1e-4,
        "train": 1e-4,
        "losses": 1e-5,
        "running statistics": 1e-5,
        "gradient norms": 5e-3,
        "gradient norms, LSTM": 5e-3,
    },
    "bfloat16": {
        "eval": 0.015,
        "edges": 0.9,
        "train": 0.15,
        "losses": 0.01,
        "running statistics": 0.01,
        "gradient norms": 0.25,
        "gradient norms, LSTM": 0.75,
    },
}
# Share of the norm of all gradients below which a gradient counts as rounding error: for example,
# that of the graph's receiver vectors may be zero up to rounding.
GRADIENT_FLOOR = {"float32": 1e-6, "bfloat16": 1e-4}
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


def verify(config: ml_collections.ConfigDict) -> list[Check]:
    """Runs all checks on the devices of this process and returns their results.

    Args:
      config: the experiment `star_hitsz_vcm_reference`.

    Raises:
      InputError: STAR_PARITY_FIXTURES names a folder without fixtures.
    """
    parts: list[Callable[[], list[Check]]] = [check_canaries]
    for dtype in TOLERANCES:
        for path in [*fixtures("eval"), *fixtures("train")]:
            parts.append(functools.partial(check_network, path, config, dtype))
    if jax.local_device_count() > 1:
        parts.append(functools.partial(check_devices, config))
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
    paths = {path.name: path for path in GOLDEN.glob(f"{kind}_seed*.npz")}
    further = os.environ.get("STAR_PARITY_FIXTURES")
    if further:
        if not any(pathlib.Path(further).glob("*_seed*.npz")):
            raise InputError(
                f"STAR_PARITY_FIXTURES is {further}: no eval_seed*.npz or train_seed*.npz there"
            )
        paths |= {path.name: path for path in pathlib.Path(further).glob(f"{kind}_seed*.npz")}
    return [paths[name] for name in sorted(paths)]


def check_network(path: pathlib.Path, config: ml_collections.ConfigDict, dtype: str) -> list[Check]:
    """Compares the network with a fixture: one check per tensor, and one per kind of the rest."""
    stage = path.stem.partition("_")[0]
    compare = {"eval": inference_differences, "train": training_differences}[stage]
    found: dict[str, list[float]] = {}
    for name, difference in compare(path, config, dtype).items():
        found.setdefault(kind_of(name), []).append(difference)
    tolerances = TOLERANCES[dtype]
    return [
        Check(
            f"{dtype} {path.stem}: {kind}",
            largest(differences),
            tolerances.get(kind, tolerances[stage]),
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


def inference_differences(
    path: pathlib.Path, config: ml_collections.ConfigDict, dtype: str
) -> dict[str, float]:
    """Returns differences of inference by the names of a fixture, such as `visible.embedding`."""
    with np.load(path) as known:
        return {
            f"{modality}.{name}": relative_difference(
                getattr(output, name), known[f"{modality}.{name}"]
            )
            for modality in MODALITIES
            for output in [inference(seed_of(path), config, dtype, modality)]
            for name in sorted(n.split(".")[1] for n in known.files if n.startswith(f"{modality}."))
        }


def inference(
    seed: int, config: ml_collections.ConfigDict, dtype: str, modality: str
) -> StarOutput:
    """Returns our network's output for a tracklet of a modality, 12 frames of 288x144."""
    config = reference_config(config, 500, dtype)
    model = build_model(config.model)
    variables = from_authors(state_dict(seed, 500), config.model)
    frames, keypoints = inputs(seed, "", modality, 1, 12, 288, 144)
    apply = jax.jit(functools.partial(model.apply, modality=modality, train=False))
    return jax.device_get(apply(variables, frames, keypoints))


def training_differences(
    path: pathlib.Path, config: ml_collections.ConfigDict, dtype: str
) -> dict[str, float]:
    """Returns differences of a training pass by the names of a fixture, such as `loss.triplet`."""
    losses, output, statistics, gradients = training_pass(seed_of(path), config, dtype)
    with np.load(path) as known:
        numbers = {name: known[name] for name in known.files}
    norms = {name: value for name, value in numbers.items() if name.startswith("grad_norm.")}
    floor = GRADIENT_FLOOR[dtype] * np.linalg.norm(list(norms.values()))

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


def training_pass(
    seed: int, config: ml_collections.ConfigDict, dtype: str
) -> tuple[dict[str, Any], StarOutput, Any, dict[str, np.ndarray]]:
    """Runs one deterministic training pass over four pairs of tracklets.

    Returns:
      Losses, output of the pairs, new running statistics, and gradients by the authors' names.
    """
    pairs, clip_length, num_identities = 4, 12, 10
    config = reference_config(config, num_identities, dtype)
    model = build_model(config.model)
    clips = [
        inputs(seed, "train.", modality, pairs, clip_length, 64, 32) for modality in MODALITIES
    ]
    frames, keypoints = (jnp.stack(both, axis=2) for both in zip(*clips, strict=True))
    losses: Any = build_losses(config)
    batch = {"labels": jnp.array([0, 0, 1, 1])}
    index = np.arange(pairs * clip_length * 2)
    style = StyleSources(same=jnp.array(index), other=jnp.array(index ^ 1))
    arrays = state_dict(seed, num_identities)
    fixed = {k: v for k, v in arrays.items() if k.endswith(("tracked", "mean", "var"))}

    def loss(trained: Mapping[str, Any]) -> tuple[jax.Array, Any]:
        output, updates = model.apply(
            from_authors({**fixed, **trained}, config.model),
            frames,
            keypoints,
            train=True,
            style=style,
            mutable=["batch_stats"],
        )
        values = losses.apply({}, output, batch, jnp.int32(0))
        return values["total"], (values, output, updates["batch_stats"])

    trained = {k: jnp.asarray(v) for k, v in arrays.items() if k not in fixed}
    gradients, others = jax.device_get(jax.jit(jax.grad(loss, has_aux=True))(trained))
    return *others, gradients


def reference_config(
    config: ml_collections.ConfigDict, num_identities: int, dtype: str
) -> ml_collections.ConfigDict:
    """Returns the config with a number of identities, a dtype and no dropout."""
    config = config.copy_and_resolve_references()
    config.model.num_identities = num_identities
    config.model.dtype = dtype
    config.model.dropout_rate = config.model.attention_dropout_rate = 0.0
    return config


@functools.cache
def state_dict(seed: int, num_identities: int) -> dict[str, np.ndarray]:
    """Returns the parameters of a fixture, by the authors' names."""
    shapes = json.loads((GOLDEN / "state_dict.json").read_text(encoding="utf-8"))
    for name in ("local_classifier.weight", "global_classifier.weight", "pose_classifier.weight"):
        shapes[name][0] = num_identities
    shapes["pose_classifier.bias"] = [num_identities]
    return {
        name: reference_arrays.parameter(seed, name, tuple(shape)) for name, shape in shapes.items()
    }


def inputs(
    seed: int, prefix: str, modality: str, *shape: int
) -> tuple[Float32[Array, "B T H W 3"], Float32[Array, "B T 17 3"]]:
    """Returns frames float32[B, T, H, W, 3] and keypoints float32[B, T, 17, 3] of a fixture."""
    frames = reference_arrays.frames(seed, f"{prefix}frames.{modality}", *shape)
    keypoints = reference_arrays.keypoints(seed, f"{prefix}keypoints.{modality}", *shape)
    return jnp.asarray(frames.transpose(0, 1, 3, 4, 2)), jnp.asarray(keypoints)


def seed_of(path: pathlib.Path) -> int:
    """Returns the seed in a fixture's file name.

    Raises:
      InputError: the name contains none.
    """
    match = re.search(r"_seed(\d+)$", path.stem)
    if not match:
        raise InputError(f"{path}: rename it to eval_seed<number>.npz or train_seed<number>.npz")
    return int(match[1])


def check_devices(config: ml_collections.ConfigDict) -> list[Check]:
    """Compares a training step over all devices of this process with one on a single device."""
    local = jax.local_devices()
    one, all_ = (small_step(config, local[:count], len(local)) for count in (1, len(local)))
    differences = [
        float((np.abs(a - b) / (1 + np.abs(a))).max())
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(all_), strict=True)
    ]
    what = f"a training step on {len(local)} devices and on one"
    return [Check(what, largest(differences), DEVICES_TOLERANCE)]


def small_step(
    config: ml_collections.ConfigDict, devices: list[jax.Device], num_identities: int
) -> Any:
    """Returns state and metrics after a step of a small network with all augmentation."""
    config = config.copy_and_resolve_references()
    config.model.backbone = "resnet18"
    config.model.backbone_options = {"stage_sizes": (1, 1, 1, 1), "width": 8}
    config.model.update({"num_identities": num_identities, "dtype": "float32"})
    config.data.update({"frame_size": (64, 48), "clip_length": 2})
    config.data.update({"identities_per_batch": num_identities, "tracklets_per_identity": 2})
    mesh = make_mesh(config, devices)
    model = build_model(config.model)
    pairs = 2 * num_identities
    batch = random_batch(config, pairs)
    step = make_train_step(config, model, 1, mesh)
    state = initial_state(config, model, 1, mesh)
    return jax.device_get(step(state, put(batch, batch_shardings(mesh), pairs)))
