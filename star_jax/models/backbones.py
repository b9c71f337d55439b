"""Backbones by name: networks from frames to frame features.

To add a backbone, add it to `BACKBONES`, or name it in `config.model.backbone` as
`package.module:object`. A backbone is a Flax module class, or a `functools.partial` of one, with
the attributes and the call of `star_jax.models.interfaces.Backbone`. It is created with the values
of `config.model` that it has as attributes, such as `dtype`, and with
`config.model.backbone_options`.
"""

import functools
from collections.abc import Callable, Mapping

from star_jax.models.interfaces import Backbone
from star_jax.models.resnet import ResNet
from star_jax.models.vit import ViT

BACKBONES: Mapping[str, Callable[..., Backbone]] = {
    "resnet18": functools.partial(ResNet, block="basic", stage_sizes=(2, 2, 2, 2)),
    "resnet34": functools.partial(ResNet, block="basic", stage_sizes=(3, 4, 6, 3)),
    "resnet50": functools.partial(ResNet, block="bottleneck", stage_sizes=(3, 4, 6, 3)),
    "resnet101": functools.partial(ResNet, block="bottleneck", stage_sizes=(3, 4, 23, 3)),
    "resnet50_ibn_a": functools.partial(
        ResNet, block="bottleneck", stage_sizes=(3, 4, 6, 3), ibn=True
    ),
    "vit_tiny": functools.partial(ViT, width=192, depth=12, num_heads=3),
    "vit_small": functools.partial(ViT, width=384, depth=12, num_heads=6),
    "vit_base": functools.partial(ViT, width=768, depth=12, num_heads=12),
}
