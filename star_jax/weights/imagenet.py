"""Conversion of ImageNet backbones (torchvision, IBN-Net, timm) to Flax variables."""

from collections.abc import Iterator, Mapping
from typing import Any

import flax
import numpy as np

from data_pipelines.errors import InputError
from star_jax.models import Star
from star_jax.models.resnet import ResNet
from star_jax.models.vit import ViT
from star_jax.weights.entries import (
    NEVER_USED,
    Conversion,
    Entry,
    Variables,
    attention_entries,
    convert,
    kernel,
    layer_norm_entries,
    linear_entries,
    resnet_entries,
    unchanged,
)

VIT_NEVER_USED = (r"^(head|pre_logits)\.",)  # the ImageNet classifier


def from_imagenet(state_dict: Mapping[str, Any], model: Star, variables: Variables) -> Variables:
    """Returns `variables` with the backbone replaced by one trained on ImageNet.

    Args:
      state_dict: the arrays of the model's ResNet or Vision Transformer; see below.
      model: the network.
      variables: the variables of the network.

    Raises:
      InputError: the backbone is of neither family, or the arrays do not fit it.
    """
    if isinstance(model.backbone, ResNet):
        return from_torchvision_resnet(state_dict, variables)
    if isinstance(model.backbone, ViT):
        return from_timm_vit(state_dict, variables)
    raise InputError(
        f"config.init.backbone: no weights can be imported for a {type(model.backbone).__name__}; "
        "leave it empty"
    )


def from_torchvision_resnet(state_dict: Mapping[str, Any], variables: Variables) -> Variables:
    """Returns `variables` with the backbone replaced by an ImageNet ResNet.

    Both stems start from the same first layers.

    Args:
      state_dict: the arrays of torchvision's `resnet18`, `resnet34`, `resnet50` or `resnet101`, or
        of IBN-Net's `resnet50_ibn_a` and so on, by their names.
      variables: the variables of a network with such a ResNet.

    Raises:
      InputError: naming the arrays that are missing, unknown or of another shape.
    """
    stems = {"stem_visible": "", "stem_infrared": ""}
    expected = backbone_of(variables)
    entries = list(resnet_entries(expected, stems, ""))
    return with_backbone(variables, convert(state_dict, entries, expected, NEVER_USED))


def from_timm_vit(state_dict: Mapping[str, Any], variables: Variables) -> Variables:
    """Returns `variables` with the backbone replaced by an ImageNet Vision Transformer.

    Both stems start from the same patch embedding.

    Args:
      state_dict: the arrays of timm's `vit_small_patch16_224` and so on, by their names.
      variables: the variables of a network with such a `ViT`.

    Raises:
      InputError: naming the arrays that are missing, unknown or of another shape.
    """
    expected = backbone_of(variables)
    entries = list(vit_entries(expected))
    return with_backbone(variables, convert(state_dict, entries, expected, VIT_NEVER_USED))


def backbone_of(variables: Variables) -> dict[str, Any]:
    """Returns the variables of the backbone by path."""
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    return {path: array for path, array in flat.items() if path.split("/")[1] == "backbone"}


def with_backbone(variables: Variables, backbone: Variables) -> Variables:
    """Returns `variables` with the variables of another backbone."""
    return {name: {**parts, **backbone.get(name, {})} for name, parts in variables.items()}


def vit_entries(expected: Mapping[str, Any]) -> Iterator[Entry]:
    """Yields the entries of a Vision Transformer."""
    params = "params/backbone"
    for stem in ("stem_visible", "stem_infrared"):
        yield f"{params}/{stem}/kernel", ("patch_embed.proj.weight",), kernel
        yield f"{params}/{stem}/bias", ("patch_embed.proj.bias",), unchanged
    rows, columns, _ = expected[f"{params}/position"].shape
    yield (
        f"{params}/position",
        ("pos_embed",),
        Conversion(lambda x: x.squeeze(0)[1:].reshape(rows, columns, x.shape[-1])),
    )
    yield (
        f"{params}/class_token",
        ("cls_token", "pos_embed"),
        Conversion(
            lambda token, position: np.stack([token, position[:, :1]]).sum(0).squeeze((0, 1))
        ),
    )
    queries = [path for path in expected if path.endswith("/attention/query/kernel")]
    for i in range(len(queries)):
        path, name = f"backbone/block{i}", f"blocks.{i}"
        heads = expected[f"params/{path}/attention/query/kernel"].shape[1:]
        yield from layer_norm_entries(f"{path}/norm1", f"{name}.norm1")
        yield from attention_entries(
            f"{path}/attention", heads, f"{name}.attn.qkv.", f"{name}.attn.proj"
        )
        yield from layer_norm_entries(f"{path}/norm2", f"{name}.norm2")
        yield from linear_entries(f"{path}/mlp1", f"{name}.mlp.fc1")
        yield from linear_entries(f"{path}/mlp2", f"{name}.mlp.fc2")
    yield from layer_norm_entries("backbone/norm", "norm")
