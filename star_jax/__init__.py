"""STAR in JAX: skeleton-guided video visible-infrared person re-identification.

What is imported from here is loaded on first use, so that `import star_jax` is quick and starts no
JAX backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

from star_jax.compiler import set_xla_flags

if TYPE_CHECKING:
    from star_jax import losses
    from star_jax.config import default_config
    from star_jax.embedding.embedder import Embedder
    from star_jax.evaluation.retrieval import evaluate_retrieval
    from star_jax.evaluation.streaming import evaluate_embeddings
    from star_jax.models import build_model
    from star_jax.network import Network, load_weights
    from star_jax.state import initial_state
    from star_jax.training.steps import make_train_step

__version__ = "0.1.0"

__all__ = [
    "Embedder",
    "Network",
    "build_model",
    "default_config",
    "evaluate_embeddings",
    "evaluate_retrieval",
    "initial_state",
    "load_weights",
    "losses",
    "make_train_step",
]

_HOMES = {
    "Embedder": "star_jax.embedding.embedder",
    "Network": "star_jax.network",
    "build_model": "star_jax.models",
    "default_config": "star_jax.config",
    "evaluate_embeddings": "star_jax.evaluation.streaming",
    "evaluate_retrieval": "star_jax.evaluation.retrieval",
    "initial_state": "star_jax.state",
    "load_weights": "star_jax.network",
    "make_train_step": "star_jax.training.steps",
}

set_xla_flags()  # before a JAX backend starts, whichever module or command comes first


if not TYPE_CHECKING:  # type checkers would accept any name

    def __getattr__(name: str) -> Any:
        """Imports a name of `__all__` when it is first used."""
        if name == "losses":
            return importlib.import_module("star_jax.losses")
        if name not in _HOMES:
            raise AttributeError(f"module 'star_jax' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    """Returns the names of the module, including those that are not imported yet."""
    return sorted({*globals(), *__all__})
