"""Keeps a fault of XLA's CPU compiler out of our numbers.

jaxlib from 0.10.2 on hands reductions on CPUs to YNNPACK, and then some small programs under `jit`
return garbage, without an error: `sum((E @ broadcast_to(c, E.shape)) * E, -1)` is off by 1e28.
Versions up to 0.12.0.1 are affected. `star_jax.verify` holds two such programs.
"""

import logging
import os
import pathlib
import sys

log = logging.getLogger(__name__)

FLAG = "--xla_cpu_experimental_ynn_fusion_type"
SAFE = f"{FLAG}=-reduce"


def avoid_wrong_reductions() -> None:
    """Adds the flag that turns the faulty fusion off to `XLA_FLAGS`; imports and starts nothing.

    Whatever is in `XLA_FLAGS` stays, and so does a value of this flag that the user chose. XLA
    reads the variable when JAX starts its first backend; if one is running already, this warns.
    """
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # XLA takes this for the name of a file of flags
        try:
            flags = pathlib.Path(flags).read_text(encoding="utf-8").strip()
        except OSError:
            return  # XLA refuses to start, and says why
    if any(flag.partition("=")[0] == FLAG for flag in flags.split()):
        return
    os.environ["XLA_FLAGS"] = f"{flags} {SAFE}".lstrip()
    if _backend_is_running():
        log.warning(
            "JAX was running before star_jax was imported, so XLA does not see the flag %s, "
            "without which some programs return wrong numbers on CPUs: import star_jax first, or "
            "set it in XLA_FLAGS",
            SAFE,
        )


def _backend_is_running() -> bool:
    # JAX has no public function for this, and `jax.devices` would start a backend.
    bridge = sys.modules.get("jax._src.xla_bridge")
    return bridge is not None and bridge.backends_are_initialized()
