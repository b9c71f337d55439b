"""Measures time and memory of a training step on random data: no dataset, no loading.

  python -m benchmarks.train_step --config=configs/star_synthetic_demo.py

Prints the seconds of the first call (compilation), the median, fastest and slowest of the timed
steps, frames per second (clean frames of both modalities), and the peak memory of the process and,
on a GPU or TPU, of the first device.
"""

import resource
import time

import jax
import numpy as np
from absl import app, flags
from ml_collections import config_flags

from star_jax.config import with_values
from star_jax.distributed.parallel import batch_shardings, make_mesh, put
from star_jax.models import build_model
from star_jax.state import initial_state, random_batch
from star_jax.training.steps import make_train_step

CONFIG = config_flags.DEFINE_config_file("config", None, "An experiment of configs/.")
STEPS = flags.DEFINE_integer("steps", 20, "Timed steps.", lower_bound=1)
flags.mark_flag_as_required("config")


def main(argv: list[str]) -> None:
    del argv
    identities = CONFIG.value.model.num_identities or 500  # as in HITSZ-VCM
    config = with_values(CONFIG.value, {"model.num_identities": identities})
    data = config.data
    mesh = make_mesh(config)
    model = build_model(config.model)
    pairs = data.identities_per_batch * data.tracklets_per_identity
    batch = random_batch(config, pairs)
    batch = put(batch, batch_shardings(mesh), pairs)
    state = initial_state(config, model, 1, mesh)
    train_step = make_train_step(config, model, 1, mesh)

    def timed() -> float:
        nonlocal state
        start = time.perf_counter()
        state, metrics = train_step(state, batch)
        jax.block_until_ready((state, metrics))
        return time.perf_counter() - start

    print(f"first step {timed():.1f} s, on {jax.device_count()} {jax.devices()[0].device_kind}")
    times = np.array([timed() for _ in range(STEPS.value)])
    frames = 2 * pairs * data.clip_length
    print(
        f"{STEPS.value} steps: median {1000 * np.median(times):.0f} ms "
        f"({1000 * times.min():.0f} to {1000 * times.max():.0f}), "
        f"{frames / np.median(times):.0f} frames/s"
    )
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")
    statistics = jax.devices()[0].memory_stats()
    if statistics:  # a CPU has none
        print(f"peak memory of the device {statistics['peak_bytes_in_use'] / 2**30:.2f} GiB")


if __name__ == "__main__":
    app.run(main)
