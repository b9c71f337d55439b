"""Measures scaling over virtual devices and processes of one machine, and the host's overhead.

    python -m benchmarks.scaling --config=configs/star_synthetic_demo.py

Weak scaling: each device has the same number of pairs of tracklets. On a machine whose cores all
devices share, frames/s should stay as with one device; their ratio to that is printed. Data is
random. Then come the bytes of the training state on each device, with and without
`config.parallel.fsdp`; how long a checkpoint blocks training, and how long it is written in the
background; and what the host does in a step.
"""

import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
from absl import app, flags
from ml_collections import config_flags

CONFIG = config_flags.DEFINE_config_file("config", None, "A file in configs/.", lock_config=True)
PAIRS = flags.DEFINE_integer("pairs", 4, "Pairs of tracklets on each device.", lower_bound=4)
STEPS = flags.DEFINE_integer("steps", 10, "Timed steps.", lower_bound=1)
PART = flags.DEFINE_enum(
    "part", None, ["steps", "bytes", "host"], "What this process measures; prints JSON."
)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    """Measures one part, or starts a process for each part and prints tables."""
    del argv
    if PART.value is not None:
        from star_jax.distributed import processes

        processes.start()
        print(json.dumps({"steps": steps, "bytes": bytes_of_state, "host": host}[PART.value]()))
        return
    print("| devices | processes | pairs | step, ms | frames/s | of one device |")
    print("| --- | --- | --- | --- | --- | --- |")
    alone = None
    for devices, num_processes in ((1, 1), (2, 1), (4, 1), (8, 1), (2, 2)):
        found = measure("steps", devices, num_processes)
        alone = alone or found["frames_per_second"]
        print(
            f"| {devices} | {num_processes} | {found['pairs']} | {found['milliseconds']:.0f} | "
            f"{found['frames_per_second']:.0f} | {found['frames_per_second'] / alone:.2f} |"
        )
    print("\n| fsdp | MB of parameters, statistics and momentum on each of 8 devices |")
    print("| --- | --- |")
    for fsdp in (1, 8):
        found = measure("bytes", 8, 1, f"--config.parallel.fsdp={fsdp}")
        print(f"| {fsdp} | {found['megabytes']:.2f} |")
    print("\n| of the host, on one device | ms |")
    print("| --- | --- |")
    for name, milliseconds in measure("host", 1, 1).items():
        print(f"| {name} | {milliseconds:.2f} |")


def measure(part: str, devices: int, num_processes: int, *extra: str) -> dict[str, Any]:
    """Runs a part in separate processes, which share the devices."""
    local = pathlib.Path(__file__).parents[1] / "launch" / "local_processes.py"
    command = [
        sys.executable,
        str(local),
        f"--num_processes={num_processes}",
        f"--devices={devices // num_processes}",
        "--",
        __file__,
        *sys.argv[1:],
        *extra,
        f"--part={part}",
    ]
    environment = {**os.environ, "NPROC": "16", "PYTHONPATH": str(local.parents[1])}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if printed.returncode:
        raise RuntimeError(printed.stdout + printed.stderr)
    (line,) = [x for x in printed.stdout.splitlines() if x.startswith("[0] {")]
    found: dict[str, Any] = json.loads(line.removeprefix("[0] "))
    return found


def prepare() -> tuple[Any, Any, Any, Any, int]:
    """Returns config, mesh, model, training step and number of pairs for all devices."""
    import jax

    from star_jax.config import with_values
    from star_jax.distributed import parallel
    from star_jax.models import build_model
    from star_jax.training.steps import make_train_step

    pairs = PAIRS.value * jax.device_count()
    changes = {
        "data.tracklets_per_identity": 2,
        "data.identities_per_batch": pairs // 2,
        "model.num_identities": max(pairs // 2, 2),
    }
    config = with_values(CONFIG.value, changes)
    mesh = parallel.make_mesh(config)
    model = build_model(config.model)
    return config, mesh, model, make_train_step(config, model, 100, mesh), pairs


def steps() -> dict[str, Any]:
    """Times training steps."""
    import jax

    from star_jax.distributed import parallel
    from star_jax.state import initial_state, random_batch

    config, mesh, model, train_step, pairs = prepare()
    shardings = parallel.batch_shardings(mesh)
    rows = parallel.local_rows(shardings["labels"], (pairs,))
    batch = {name: array[rows] for name, array in random_batch(config, pairs).items()}
    batch = parallel.put(batch, shardings, pairs)
    state = initial_state(config, model, 100, mesh)
    times = []
    for _ in range(STEPS.value + 2):
        start = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))
        times.append(time.perf_counter() - start)
    median = float(np.median(times[2:]))
    frames = 2 * pairs * config.data.clip_length
    return {"pairs": pairs, "milliseconds": 1000 * median, "frames_per_second": frames / median}


def bytes_of_state() -> dict[str, Any]:
    """Returns how much of the training state the first device holds."""
    import jax

    from star_jax.state import initial_state

    config, mesh, model, _, _ = prepare()
    state = initial_state(config, model, 100, mesh)
    first = [leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(state)]
    return {"megabytes": sum(first) / 1e6}


def host() -> dict[str, float]:
    """Times what the host does in addition to the steps."""
    import jax

    from data_pipelines import sampling, schema
    from star_jax.distributed import parallel
    from star_jax.runs import checkpoint
    from star_jax.runs.metrics import MetricsWriter
    from star_jax.state import initial_state, random_batch

    config, mesh, model, train_step, pairs = prepare()
    shardings = parallel.batch_shardings(mesh)
    batch = random_batch(config, pairs)
    state = initial_state(config, model, 100, mesh)
    state, metrics = train_step(state, parallel.put(batch, shardings, pairs))
    jax.block_until_ready(metrics)
    found = {}

    def timed(name: str, work: Any, times: int = 20) -> None:
        start = time.perf_counter()
        for number in range(times):
            work(number)
        found[name] = 1000 * (time.perf_counter() - start) / times

    timed(
        "putting a batch on the device",
        lambda _: jax.block_until_ready(parallel.put(batch, shardings, pairs)),
    )
    labels = np.repeat(np.arange(500, dtype=np.int32), 20)
    index = schema.Index(
        identities=labels.astype(str),
        labels=labels,
        cameras=labels,
        camera_names=labels.astype(str),
        modalities=np.tile([0, 1], len(labels) // 2).astype(np.int32),
        num_frames=np.full_like(labels, 24),
        rows=labels,
        missing_skeletons=np.zeros_like(labels),
        queries=np.ones(len(labels), bool),
        galleries=np.ones(len(labels), bool),
        conditions=np.full(len(labels), ""),
    )
    timed(
        "choosing the tracklets of a batch among 10,000 (in a loader's thread)",
        lambda step: sampling.sample_batch(
            index, seed=0, step=step, identities_per_batch=8, tracklets_per_identity=2
        ),
    )
    with tempfile.TemporaryDirectory() as folder:
        with MetricsWriter(folder) as writer:
            values = {name: float(value) for name, value in metrics.items()}
            timed("writing a row of metrics", lambda step: writer.write(step, values))
        with checkpoint.open_manager(folder, 1) as manager:
            start = time.perf_counter()
            checkpoint.save(manager, state, config.to_dict(), dataset="")
            found["a checkpoint, until training continues"] = 1000 * (time.perf_counter() - start)
            start = time.perf_counter()
            checkpoint.finish(manager)
            found["the same checkpoint, in the background"] = 1000 * (time.perf_counter() - start)
    return found


if __name__ == "__main__":
    app.run(main)
