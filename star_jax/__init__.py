"""STAR in JAX: skeleton-guided video visible-infrared person re-identification."""

from star_jax.compiler import set_xla_flags

set_xla_flags()  # before a JAX backend starts, whichever module or command comes first
