"""Importing and exporting weights."""

from star_jax.weights.archive import (
    Archive,
    check_variables,
    checksum,
    load_archive,
    save_archive,
)
from star_jax.weights.authors import from_authors, to_authors
from star_jax.weights.entries import abstract_variables
from star_jax.weights.files import load_arrays, save_arrays
from star_jax.weights.imagenet import from_imagenet, from_timm_vit, from_torchvision_resnet
from star_jax.weights.stablehlo import to_stablehlo

__all__ = [
    "Archive",
    "abstract_variables",
    "check_variables",
    "checksum",
    "from_authors",
    "from_imagenet",
    "from_timm_vit",
    "from_torchvision_resnet",
    "load_archive",
    "load_arrays",
    "save_archive",
    "save_arrays",
    "to_authors",
    "to_stablehlo",
]
