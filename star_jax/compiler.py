"""Works around two bugs of XLA, by flags that must be set before JAX starts.

Only releases of jaxlib that are known to need them get the flags, which apply to every program of
the process. `star_jax.verify` shows whether a newer release computes correctly without them.

Wrong results on CPUs: jaxlib from 0.10.2 on delegates reductions to YNNPACK, and then some small
programs under `jit` silently return garbage: `sum((E @ broadcast_to(c, E.shape)) * E, -1)` is off
by 1e28. Versions up to 0.12.0.1 are affected. `star_jax.verify` runs two such programs.

Crashes on GPUs: the fusion of matrix products by Triton ends the process with "Check failed:
subdim_size_accumulator == dim_size" (openxla/xla issue 47381) when it compiles the training pass of
`star_jax.verify` for an H100 with jaxlib 0.11.2. Without it, cuBLAS multiplies: a training step of
`configs/star_hitsz_vcm.py` is as fast and compiles two to ten times faster (docs/benchmarks.md).
"""

import importlib.metadata
import logging
import os
import pathlib
import re
import sys

log = logging.getLogger(__name__)

FLAGS = {
    "--xla_cpu_experimental_ynn_fusion_type": "-reduce",
    "--xla_gpu_enable_triton_gemm": "false",
}
NEEDED_FROM, NEEDED_BELOW = (0, 10, 2), (0, 13)  # releases of jaxlib


def set_xla_flags() -> None:
    """Adds `FLAGS` to `XLA_FLAGS` if jaxlib needs them, without importing or starting JAX.

    Keeps what is already set, whether other flags or other values of these. XLA reads the variable
    when JAX starts its first backend; warns if one is already running.
    """
    if not NEEDED_FROM <= _jaxlib() < NEEDED_BELOW:
        return
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # XLA reads this as the path of a flags file
        try:
            flags = pathlib.Path(flags).read_text(encoding="utf-8").strip()
        except OSError:
            return  # XLA refuses to start and reports the reason
    present = {flag.partition("=")[0] for flag in flags.split()}
    missing = " ".join(f"{name}={value}" for name, value in FLAGS.items() if name not in present)
    if not missing:
        return
    os.environ["XLA_FLAGS"] = f"{flags} {missing}".lstrip()
    if _backend_is_running():
        log.warning(
            "JAX was running before star_jax was imported, so XLA ignores the flags %s, without "
            "which some programs return wrong results on CPUs or do not compile for GPUs: import "
            "star_jax first, or set them in XLA_FLAGS",
            missing,
        )


def _jaxlib() -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", importlib.metadata.version("jaxlib"))[:3])


def _backend_is_running() -> bool:
    # JAX has no public function for this, and `jax.devices` would start a backend.
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()
