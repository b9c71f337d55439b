"""Strict settings for all tests: eight virtual devices, no implicit promotion, checked shapes."""

import atexit
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
)
os.environ.setdefault("NPROC", "16")  # JAX 0.10 deadlocks with fewer threads than twice the devices
# Several tests, and the commands they start, compile the same programs.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="star_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jaxtyping

# Before anything imports them: each call checks its arrays against the annotations.
jaxtyping.install_import_hook(["star_jax", "data_pipelines"], "array_checks.checked")

jax.config.update("jax_numpy_rank_promotion", "raise")
