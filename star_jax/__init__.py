"""STAR in JAX: skeleton-guided video visible-infrared person re-identification."""

from star_jax.compiler import avoid_wrong_reductions

__version__ = "0.1.0"

avoid_wrong_reductions()  # before a JAX backend starts, whichever module or command comes first
