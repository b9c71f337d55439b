"""STAR in JAX: skeleton-guided video visible-infrared person re-identification."""
