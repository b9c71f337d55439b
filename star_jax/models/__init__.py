"""The STAR network."""

from star_jax.models.interfaces import (
    Backbone,
    FrameFeatures,
    Guidance,
    Pooling,
    Skeletons,
    StyleSources,
)
from star_jax.models.star import Star, StarOutput, build_model

__all__ = [
    "Backbone",
    "FrameFeatures",
    "Guidance",
    "Pooling",
    "Skeletons",
    "Star",
    "StarOutput",
    "StyleSources",
    "build_model",
]
