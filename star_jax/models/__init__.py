"""The STAR network."""

from star_jax.models.resnet import StyleSources
from star_jax.models.star import Star, StarOutput, build_model

__all__ = ["Star", "StarOutput", "StyleSources", "build_model"]
