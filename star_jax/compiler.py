"""Works around a bug of XLA's CPU compiler that gives wrong results.

jaxlib from 0.10.2 on delegates reductions on CPUs to YNNPACK, and then some small programs under
`jit` silently return garbage: `sum((E @ broadcast_to(c, E.shape)) * E, -1)` is off by 1e28.
Versions up to 0.12.0.1 are affected. `star_jax.verify` runs two such programs.
"""

import logging
import os
import pathlib
import sys

log = logging.getLogger(__name__)

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
SAFE = f"{FLAG}=-reduce"


def avoid_wrong_reductions() -> None:
    """Disables the faulty fusion in `XLA_FLAGS`, without importing or starting JAX.

    Keeps the other flags in `XLA_FLAGS`, and this flag if the user has set it. XLA reads the
    variable when JAX starts its first backend; warns if one is already running.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # XLA reads this as the path of a flags file
        try:
            flags = pathlib.Path(flags).read_text(encoding="utf-8").strip()
        except OSError:
            return  # XLA refuses to start and reports the reason
    if any(flag.partition("=")[0] == FLAG for flag in flags.split()):
        return
    os.environ["XLA_FLAGS"] = f"{flags} {SAFE}".lstrip()
    if _backend_is_running():
        log.warning(
            "JAX was running before star_jax was imported, so XLA ignores the flag %s, without "
            "which some programs return wrong results on CPUs: import star_jax first, or set it in "
            "XLA_FLAGS",
            SAFE,
        )


def _backend_is_running() -> bool:
    # JAX has no public function for this, and `jax.devices` would start a backend.
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()
