"""Strict settings for all tests, checked shapes, and what makes tests compile quickly."""

import atexit
import collections
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Eight virtual devices; on a busy machine they may wait long for each other.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_cpu_collective_call_terminate_timeout_seconds=600"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Half of the time to compile is that of newer code generation; later versions lack the flag.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("NPROC", "16")  # JAX 0.10 deadlocks with fewer threads than twice the devices
# Nearly all of the time is XLA's, and the tested programs are small: commands that tests start
# inherit this as well. See the fixture `optimized`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true")
# Several tests, workers of pytest-xdist and commands compile the same programs.
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="star_jax_compiled_")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

import jax
import jaxtyping
import pytest
from jax._src import compiler  # the flags of a process that runs have no public interface

# Before anything imports them: each call checks its arrays against the annotations.
jaxtyping.install_import_hook(["star_jax", "data_pipelines"], "array_checks.checked")

jax.config.update("jax_numpy_rank_promotion", "raise")

QUICK = "--xla_cpu_use_fusion_emitters=false"


@pytest.fixture
def optimized(monkeypatch):
    """Compiles as users do: where the numbers or the programs of the compiler are the subject."""
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "false")
    overrides = [("xla_cpu_use_fusion_emitters", True)] if QUICK in os.environ["XLA_FLAGS"] else []
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"].replace(QUICK, ""))
    options_of = compiler.get_compile_options

    def options_of_users(*args, **kwargs):
        options = options_of(*args, **kwargs)
        options.env_option_overrides += overrides
        return options

    monkeypatch.setattr(compiler, "get_compile_options", options_of_users)
    jax.config.update("jax_disable_most_optimizations", False)
    jax.clear_caches()
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()


def pytest_collection_modifyitems(items):
    """Moves files with many slow tests to the front, so that no worker is left with one of them."""
    slow = collections.Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])
