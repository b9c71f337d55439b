r"""Compiles the training step for a TPU topology, on any machine, and estimates its costs.

  python launch/tpu/compile.py --config=configs/star_hitsz_vcm.py --topology=v5e:16x16 \
    --config.data.identities_per_batch=128

No TPU is needed, only its compiler: `pip install -e ".[tpu]"` in a separate environment. It takes
some minutes on two cores. It prints the bytes per chip, the collectives, flops, and estimates of
time, speed and model flops utilization (MFU). MFU is the flops that the network itself needs
(convolutions and matrix products of one training forward pass, times three for the backward pass)
over what all chips could do in the estimated time of a step.
"""

import importlib.util
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any

import ml_collections

from data_pipelines.errors import InputError, MissingPackageError
from launch import command
from launch.tpu.estimate import CHIPS, estimate, read_program, summary
from star_jax.config import Config, as_config, with_values

CONFIG = command.define_config()
TOPOLOGY = command.define_required(
    "topology", "Generation and chips in each dimension, e.g. v5e:2x4."
)
JSON = command.define_path("json", None, "Also write what is printed to this file.")
HLO = command.define_path("hlo", None, "Write the compiled program's text to this file.")

ENVIRONMENT = {  # of libtpu, which otherwise looks for a TPU and for Google's metadata server
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_MIN_LOG_LEVEL": "3",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several compilers may run at once
}
STEPS_PER_EPOCH = 268  # HITSZ-VCM's; in the program it is a constant of the learning rate


def main() -> None:
    """Compiles, prints and writes."""
    report = compile_step(CONFIG.value, TOPOLOGY.value, HLO.value)
    print("\n".join(lines(report)))
    if JSON.value:
        Path(JSON.value).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def parse_topology(topology: str) -> tuple[str, int]:
    """Returns the generation and the number of chips of a topology such as `v5p:4x4x8`.

    Raises:
      ValueError: it is malformed, or the generation is unknown.
    """
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)*)", topology)
    if not match or match[1] not in CHIPS:
        raise InputError(
            f"--topology={topology}: write the generation ({', '.join(CHIPS)}) and the chips in "
            "each dimension, for instance v5e:2x4 or v5p:4x4x8"
        )
    sides = [int(side) for side in match[2].split("x")]
    if len(sides) != CHIPS[match[1]].torus or not all(sides):
        raise InputError(
            f"--topology={topology}: {match[1]} has {CHIPS[match[1]].torus} dimensions"
        )
    return match[1], math.prod(sides)


def compile_step(
    config: Config | ml_collections.ConfigDict, topology: str, hlo: str | None = None
) -> dict[str, Any]:
    """Compiles the training step of a config; writes the program's text to `hlo` if given.

    Returns:
      What is printed, with plain numbers: bytes, seconds, flops. `memory`, `flops`, `bytes` and
      `collectives` are those of one chip.

    Raises:
      ImportError: libtpu is not installed.
      ValueError: the config is wrong, the topology does not exist, its devices cannot share the
        batch, or the program does not fit the chips' memory.
    """
    config = as_config(config)
    if config.model.num_identities is None:
        config = with_values(config, {"model.num_identities": 500})  # as in HITSZ-VCM
    generation, num_chips = parse_topology(topology)
    chip = CHIPS[generation]
    if importlib.util.find_spec("libtpu") is None:
        raise MissingPackageError(
            'libtpu, the TPU\'s compiler, is not installed: pip install -e ".[tpu]" in a separate '
            "virtual environment"
        )
    os.environ.update(ENVIRONMENT)
    import jax

    from star_jax.distributed.parallel import make_mesh
    from star_jax.models import build_model
    from star_jax.state import abstract_state
    from star_jax.training import steps

    mesh = make_mesh(config, topology_devices(topology, generation, num_chips))
    model = build_model(config.model)
    state = abstract_state(config, model, STEPS_PER_EPOCH, mesh)
    batch = abstract_batch(config, mesh)
    train_step: Any = steps.make_train_step(config, model, STEPS_PER_EPOCH, mesh)
    lowered = train_step.lower(state, batch)
    start = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"{topology}: {refusal(str(error))}") from error
    seconds = time.monotonic() - start
    text = compiled.as_text()
    if hlo:
        Path(hlo).write_text(text, encoding="utf-8")

    program = read_program(text, num_chips)
    costs, memory = compiled.cost_analysis(), compiled.memory_analysis()
    times = estimate(chip, costs["flops"], costs["bytes accessed"], program)
    pairs = config.data.identities_per_batch * config.data.tracklets_per_identity
    frames = 2 * pairs * config.data.clip_length
    model_flops = 3 * forward_flops(config, model, pairs)
    held = {
        "parameters": bytes_a_chip((state.params, state.batch_stats)),
        "optimizer": bytes_a_chip(state.opt_state),
        "batch": bytes_a_chip(batch),
        "temporaries": memory.temp_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    return {
        "topology": topology,
        "chips": num_chips,
        "mesh": dict(mesh.shape),
        "pairs": pairs,
        "frames_per_step": frames,
        "compile_seconds": seconds,
        "memory": held,
        "memory_limit": chip.memory_bytes,
        "flops": costs["flops"],
        "bytes": costs["bytes accessed"],
        "model_flops": model_flops,
        "collectives": summary(program.collectives, chip),
        "largest_collectives": [
            {"kind": c.kind, "bytes": c.num_bytes, "times": c.times, "name": c.name}
            for c in sorted(program.collectives, key=lambda c: -c.num_bytes)[:10]
        ],
        "compiler_optimal_seconds": costs.get("optimal_seconds"),
        "seconds": {
            "compute": times.compute,
            "memory": times.memory,
            "cycles": times.cycles,
            "transfer": times.transfer,
            "roofline": times.roofline,
            "step": times.step,
        },
        "frames_per_second": frames / times.step,
        "model_flops_utilisation": model_flops / (num_chips * chip.flops * times.step),
    }


def refusal(message: str) -> str:
    """Returns the error message for a program that the compiler refuses."""
    if "RESOURCE_EXHAUSTED" not in message:
        return f"the compiler refuses the program: {message}"
    used = re.search(r"Used (\S+) of (\S+) hbm", message)
    needs = (
        f"needs {used[1]} of {used[2]} of memory per chip" if used else "does not fit the memory"
    )
    return (
        f"the program {needs}; take more chips, --config.model.remat=True or fewer "
        "config.data.identities_per_batch"
    )


def topology_devices(topology: str, generation: str, num_chips: int) -> list[Any]:
    """Returns descriptions of the devices of a topology, one per chip."""
    import jax
    from jax.experimental import topologies

    # Otherwise both TensorCores of a v4 chip would be devices; on real chips they are one device.
    chip_config = {"chip_config_name": "megacore"} if generation == "v4" else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, **chip_config
        )
    except jax.errors.JaxRuntimeError as error:
        raise InputError(f"--topology={topology} is not available: {error}") from error
    devices = list(description.devices)
    if len(devices) != num_chips:
        raise InputError(f"--topology={topology}: {len(devices)} devices on {num_chips} chips")
    return devices


def abstract_batch(config: Any, mesh: Any) -> dict[str, Any]:
    """Returns shapes, dtypes and shardings of a `data_pipelines.schema.TrainBatch`."""
    import jax

    from star_jax.distributed.parallel import batch_shardings
    from star_jax.state import batch_shapes

    pairs = config.data.identities_per_batch * config.data.tracklets_per_identity
    batch: dict[str, Any] = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        batch_shapes(config, pairs),
        batch_shardings(mesh),
    )
    return batch


def forward_flops(config: Any, model: Any, pairs: int) -> float:
    """Returns the flops of convolutions and matrix products in a training forward pass."""
    import jax

    from star_jax.augment import random_style_sources
    from star_jax.state import batch_shapes, initial_variables

    batch = batch_shapes(config, pairs)

    def forward(variables: Any, frames: Any, keypoints: Any) -> Any:
        style = None
        if config.augment.style:
            style = random_style_sources(jax.random.key(0), pairs, config)
        return model.apply(
            variables,
            frames,
            keypoints,
            train=True,
            style=style,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )

    variables = jax.eval_shape(lambda: initial_variables(config, model))
    return _product_flops(
        jax.make_jaxpr(forward)(variables, batch["frames"], batch["keypoints"]).jaxpr
    )


def _product_flops(jaxpr: Any) -> float:
    from jax.extend.core import jaxprs_in_params

    total = 0.0
    for equation in jaxpr.eqns:
        inputs, outputs = ([x.aval for x in xs] for xs in (equation.invars, equation.outvars))
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            summed = math.prod(inputs[0].shape[axis] for axis in contracted)
            total += 2 * summed * math.prod(outputs[0].shape)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = inputs[1].shape
            out_features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2 * math.prod(kernel) // out_features * math.prod(outputs[0].shape)
        times = equation.params.get("length", 1) if equation.primitive.name == "scan" else 1
        total += times * sum(map(_product_flops, jaxprs_in_params(equation.params)))
    return total


def bytes_a_chip(tree: Any) -> int:
    """Returns the bytes on one chip of a tree of arrays with shardings."""
    import jax

    return sum(
        x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in jax.tree.leaves(tree)
    )


def lines(report: dict[str, Any]) -> list[str]:
    """Returns a report as lines of text."""
    mib, seconds, memory = 2**20, report["seconds"], report["memory"]
    total, limit = sum(memory.values()), report["memory_limit"]
    mesh = ", ".join(f"{axis} {size}" for axis, size in report["mesh"].items())
    cycles = "none" if seconds["cycles"] is None else f"{1000 * seconds['cycles']:.1f} ms"
    return [
        f"{report['topology']}: {report['chips']} chips ({mesh}), {report['pairs']} pairs of "
        f"tracklets, {report['frames_per_step']} frames per step; compiled in "
        f"{report['compile_seconds']:.0f} s",
        f"memory per chip: {total / mib:.0f} MiB of {limit / mib:.0f} MiB ("
        + ", ".join(f"{name} {size / mib:.0f}" for name, size in memory.items())
        + ")",
        f"flops per chip: {report['flops']:.3g}, bytes accessed {report['bytes']:.3g}",
        "collectives per step, on one chip:",
        *(
            f"  {one['number']:4} {one['kind']} over {one['group']} chips: "
            f"{one['bytes'] / mib:.1f} MiB, the largest {one['largest'] / mib:.2f} MiB, "
            f"{1000 * one['seconds']:.2f} ms"
            for one in report["collectives"]
        ),
        "estimates, not measurements:",
        f"  roofline: {1000 * seconds['roofline']:.1f} ms per step (compute "
        f"{1000 * seconds['compute']:.1f}, memory {1000 * seconds['memory']:.1f}, collectives "
        f"{1000 * seconds['transfer']:.1f})",
        f"  the compiler's cycles: {cycles} and the collectives; its optimal_seconds: "
        f"{report['compiler_optimal_seconds']}",
        f"  step {1000 * seconds['step']:.1f} ms, {report['frames_per_second']:.0f} frames/s, MFU "
        f"{100 * report['model_flops_utilisation']:.1f} %",
    ]


if __name__ == "__main__":
    command.run(main)
