"""Conversion of the authors' STAR network and of ImageNet backbones to Flax variables.

State dicts are mappings from PyTorch names to arrays. Every array is either used or listed as
unused; a missing or unknown array, or one of the wrong shape, is an error that names it.
"""

import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import safetensors

from data_pipelines.errors import InputError, MissingPackageError
from data_pipelines.io.remote import locate, naming_failures
from star_jax.finite import find_not_finite
from star_jax.models import Star, build_model
from star_jax.models.guidance import NUM_HEADS, FrameGuidance
from star_jax.models.pooling import POWERS, GuidedPooling
from star_jax.models.resnet import ResNet
from star_jax.models.vit import ViT

SAFETENSORS_DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}

Variables = dict[str, Any]

# An entry: the path of an array in our variables, its source arrays, and how to convert them.
Entry = tuple[str, tuple[str, ...], Callable[..., Any]]

NEVER_USED = (
    r"num_batches_tracked$",
    # Each stem contains a whole ResNet of which only the first layers run; the shared trunk
    # contains one of which only the other layers run.
    r"^(thermal_module\.thermal|visible_module\.visible)\.layer\d",
    r"^base_resnet\.base\.(conv1|bn1)\.",
    r"^bn\.",
    r"^time_guide\.bn_enhanced_(origin|time_guide)\.",
    r"^fc\.(weight|bias)$",  # torchvision's ImageNet classifier
)
VIT_NEVER_USED = (r"^(head|pre_logits)\.",)  # the ImageNet classifier
# Unused by networks without the whole skeleton branch, guidance and pooling.
SKELETON = (r"^(gat|lstm_edge|fc1|pose_classifier|pose_bottleneck|time_guide|GuidedAggModule)\b",)


def from_authors(state_dict: Mapping[str, Any], config: ml_collections.ConfigDict) -> Variables:
    """Converts the authors' state dict to variables of the network that `config` describes.

    Args:
      state_dict: the arrays of their PyTorch network by name.
      config: a `config.model`; `num_identities` is that of the state dict.

    Returns:
      {"params": ..., "batch_stats": ...}, float32.

    Raises:
      InputError: arrays are missing, unknown or of the wrong shape; names them.
    """
    model = build_model(config)
    expected = abstract_variables(model)
    if not isinstance(model.backbone, ResNet):
        raise InputError(
            f"config.model.backbone is {config.backbone!r}: the authors' network has a ResNet"
        )
    entries = [*resnet_entries(expected, AUTHORS_STEMS, "base_resnet.base."), *head_entries()]
    if model.uses_skeletons:
        entries += skeleton_entries(model.backbone.num_channels)
    entries = [entry for entry in entries if entry[0] in expected]
    whole = isinstance(model.guidance, FrameGuidance) and isinstance(model.pooling, GuidedPooling)
    return convert(state_dict, entries, expected, NEVER_USED if whole else NEVER_USED + SKELETON)


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


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict from a `.safetensors` or (with PyTorch installed) a `.pth` file.

    The path may be an address, `gs://bucket/file`. Floating-point arrays become float32.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: the file is of another format, a `.pth` has other content than arrays, or an array
        has an unsupported type or contains NaN or infinity.
      MissingPackageError: the file is a `.pth`, and PyTorch is not installed.
    """
    file = locate(path)
    with naming_failures(file):
        stored = file.read_bytes() if file.is_file() else None
    if stored is None:
        raise FileNotFoundError(f"no weights at {path}")
    if file.suffix == ".safetensors":
        arrays = _read_safetensors(stored, path)
    elif file.suffix in (".pth", ".pt"):
        arrays = _read_torch(stored, path)
    else:
        raise InputError(f"{path}: use a .safetensors or a .pth file")
    if name := find_not_finite(arrays):
        raise InputError(f"{path}: {name} contains NaN or infinity; use other weights")
    return arrays


def _read_safetensors(stored: bytes, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        found = safetensors.deserialize(stored)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error
    arrays = {}
    for name, facts in found:
        dtype = SAFETENSORS_DTYPES.get(facts["dtype"])
        if dtype is None:  # types of 8 bits or fewer need scales that are stored elsewhere
            raise InputError(
                f"{path}: {name} is of type {facts['dtype']}; convert it to float32 (known types: "
                f"{', '.join(SAFETENSORS_DTYPES)})"
            )
        array = np.frombuffer(facts["data"], dtype).reshape(facts["shape"])
        arrays[name] = _as_float32(array)
    return arrays


def _read_torch(stored: bytes, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: reading a .pth needs PyTorch; install it, or use a .safetensors file"
        ) from error
    try:
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a file of plain arrays ({error})") from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise InputError(f"{path}: has other content than arrays by name; save a state dict")
    arrays = {}
    for name, tensor in content.items():
        if tensor.dtype is torch.bfloat16:  # NumPy has no bfloat16
            tensor = tensor.float()
        try:
            arrays[name.removeprefix("module.")] = _as_float32(tensor.detach().numpy())
        except TypeError as error:
            raise InputError(
                f"{path}: {name} is of type {tensor.dtype}; convert it to float32"
            ) from error
    return arrays


def _as_float32(array: np.ndarray) -> np.ndarray:
    """Returns an array of any floating type as float32, and others unchanged."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore"):  # overflow becomes infinity, which is rejected later
        return array.astype(np.float32, copy=False)


AUTHORS_STEMS = {
    "stem_visible": "visible_module.visible.",
    "stem_infrared": "thermal_module.thermal.",
}

# PyTorch's names of the parts of paths in our ResNet, where the two differ.
RESNET_NAMES = {
    **{"conv": "conv1", "bn": "bn1"},  # of a stem
    **{"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"},
    **{"instance": "IN", "batch": "BN"},  # IBN-Net's
    **{"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"},
}


def transpose(array: Any) -> Any:
    """Returns a linear layer's weight, [out, in], as a kernel, [in, out]."""
    return array.T


def squeeze(array: Any) -> Any:
    """Returns an array without its first axis, of length 1."""
    return array.squeeze(0)


def unchanged(array: Any) -> Any:
    """Returns the array itself."""
    return array


def matrix(array: Any) -> Any:
    """Returns a 1x1 convolution's weight, [out, in, 1, 1], as a kernel, [in, out]."""
    return array.squeeze((2, 3)).T


def kernel(array: Any) -> Any:
    """Returns a convolution's weight, [out, in, height, width], as [height, width, in, out]."""
    return array.transpose(2, 3, 1, 0)


def norm_entries(path: str, name: str, *, learned_bias: bool = True) -> Iterator[Entry]:
    """Yields the entries of a batch norm."""
    yield f"params/{path}/scale", (f"{name}.weight",), unchanged
    bias_collection = "params" if learned_bias else "batch_stats"
    yield f"{bias_collection}/{path}/bias", (f"{name}.bias",), unchanged
    yield f"batch_stats/{path}/mean", (f"{name}.running_mean",), unchanged
    yield f"batch_stats/{path}/var", (f"{name}.running_var",), unchanged


def layer_norm_entries(path: str, name: str) -> Iterator[Entry]:
    """Yields the entries of a layer norm."""
    yield f"params/{path}/scale", (f"{name}.weight",), unchanged
    yield f"params/{path}/bias", (f"{name}.bias",), unchanged


def linear_entries(path: str, name: str) -> Iterator[Entry]:
    """Yields the entries of a linear layer with a bias."""
    yield f"params/{path}/kernel", (f"{name}.weight",), transpose
    yield f"params/{path}/bias", (f"{name}.bias",), unchanged


def resnet_entries(
    expected: Mapping[str, Any], stems: Mapping[str, str], trunk: str
) -> Iterator[Entry]:
    """Yields the entries of a ResNet, given the PyTorch prefixes of its stems and trunk."""
    for path in expected:
        _, module, first, *parts = path.split("/")
        if module != "backbone":
            continue
        prefix = stems[first] if first in stems else f"{trunk}{first.replace('stage', 'layer')}."
        function = unchanged
        if parts[-1] == "kernel":
            function = matrix if "dense" in parts else kernel
        parts = [part.removeprefix("block") for part in parts if part != "dense"]
        yield path, (prefix + ".".join(RESNET_NAMES.get(x, x) for x in parts),), function


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
        lambda x: x.squeeze(0)[1:].reshape(rows, columns, x.shape[-1]),
    )
    yield (
        f"{params}/class_token",
        ("cls_token", "pos_embed"),
        lambda token, position: np.stack([token, position[:, :1]]).sum(0).squeeze((0, 1)),
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


def head_entries() -> Iterator[Entry]:
    """Yields the entries of the global and the frame head."""
    for ours, theirs in (("", "global"), ("frame_", "local")):
        yield from norm_entries(f"{ours}bnneck", f"{theirs}_bottleneck", learned_bias=False)
        yield f"params/{ours}classifier/kernel", (f"{theirs}_classifier.weight",), transpose


def skeleton_entries(channels: int) -> Iterator[Entry]:
    """Yields the entries of the skeleton branch, the skeleton head, guidance and pooling."""
    yield from linear_entries("edge_sequence/embed", "fc1")
    lstm = "params/edge_sequence/lstm"
    for ours, theirs in (("input", "ih"), ("recurrent", "hh")):
        weight = f"lstm_edge.weight_{theirs}_l0"
        both_ways = lambda forward, backward: jnp.stack([forward.T, backward.T])  # noqa: E731
        yield f"{lstm}/{ours}_kernel", (weight, f"{weight}_reverse"), both_ways
    biases = ("lstm_edge.bias_ih_l0", "lstm_edge.bias_hh_l0")
    yield (
        f"{lstm}/bias",
        (*biases, *(f"{name}_reverse" for name in biases)),
        lambda a, b, c, d: jnp.stack([a + b, c + d]),
    )

    for i in (1, 2):
        path, name = f"params/keypoint_graph/gat{i}", f"gat.conv{i}"
        yield f"{path}/projection/kernel", (f"{name}.lin.weight",), transpose
        yield f"{path}/sender", (f"{name}.att_src",), squeeze
        yield f"{path}/receiver", (f"{name}.att_dst",), squeeze
        yield f"{path}/bias", (f"{name}.bias",), unchanged
    yield from norm_entries("skeleton_bnneck", "pose_bottleneck")
    yield from linear_entries("skeleton_classifier", "pose_classifier")

    for ours, theirs in (
        ("edges_to_features", "cross_attn"),
        ("features_to_edges", "reverse_cross_attn"),
    ):
        name = f"time_guide.{theirs}"
        heads = (NUM_HEADS, channels // NUM_HEADS)
        yield from attention_entries(
            f"guidance/{ours}", heads, f"{name}.in_proj_", f"{name}.out_proj"
        )
    yield from linear_entries("guidance/ffn1", "time_guide.ffn.0")
    yield from linear_entries("guidance/ffn2", "time_guide.ffn.2")
    layers = [f"GuidedAggModule.fc_layers.{i}" for i in range(len(POWERS))]
    path = "params/pooling/weigh"
    yield (
        f"{path}/kernel",
        tuple(f"{layer}.weight" for layer in layers),
        lambda *weights: jnp.stack([weight.T for weight in weights], axis=1),
    )
    yield (
        f"{path}/bias",
        tuple(f"{layer}.bias" for layer in layers),
        lambda *biases: jnp.stack(biases),
    )


def attention_entries(
    path: str, heads: tuple[int, ...], projections: str, out: str
) -> Iterator[Entry]:
    """Yields the entries of an attention, whose input projections PyTorch stores as one matrix.

    Args:
      path: path of the attention in our variables.
      heads: the number of heads and the channels per head.
      projections: prefix of the names of the input projections' weight and bias.
      out: the name of the output projection.
    """
    for i, part in enumerate(("query", "key", "value")):
        weight = lambda x, i=i: x.reshape(3, *heads, x.shape[-1])[i].transpose(2, 0, 1)  # noqa: E731
        bias = lambda x, i=i: x.reshape(3, *heads)[i]  # noqa: E731
        yield f"params/{path}/{part}/kernel", (f"{projections}weight",), weight
        yield f"params/{path}/{part}/bias", (f"{projections}bias",), bias
    yield f"params/{path}/out/kernel", (f"{out}.weight",), lambda x: x.T.reshape(*heads, len(x))
    yield f"params/{path}/out/bias", (f"{out}.bias",), unchanged


def abstract_variables(model: Star) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the shapes and dtypes of the network's variables by path."""
    frames = jax.ShapeDtypeStruct((1, 2, 2, 64, 32, 3), jnp.float32)
    keypoints = jax.ShapeDtypeStruct((1, 2, 2, 17, 3), jnp.float32)
    init = lambda *inputs: model.init(jax.random.key(0), *inputs)  # noqa: E731
    return flax.traverse_util.flatten_dict(jax.eval_shape(init, frames, keypoints), sep="/")


def convert(
    state_dict: Mapping[str, Any],
    entries: list[Entry],
    expected: Mapping[str, jax.ShapeDtypeStruct],
    may_be_unused: tuple[str, ...],
) -> Variables:
    """Returns the variables that the entries make of a state dict, strictly.

    Raises:
      InputError: arrays are missing, unknown or of the wrong shape; names them.
    """
    used = {name for _, names, _ in entries for name in names}
    if missing := sorted(used - set(state_dict)):
        raise InputError(f"the state dict lacks {', '.join(missing)}")
    left = sorted(set(state_dict) - used)
    if unknown := [x for x in left if not any(re.search(p, x) for p in may_be_unused)]:
        raise InputError(f"the state dict has arrays that no part of the network uses: {unknown}")
    flat = {}
    for path, names, function in entries:
        try:
            flat[path] = function(*(state_dict[name] for name in names))
        except (IndexError, TypeError, ValueError) as error:
            shapes = [np.shape(state_dict[name]) for name in names]
            raise InputError(f"{', '.join(names)} of {shapes} does not fit {path}") from error
        if flat[path].shape != expected[path].shape:
            raise InputError(
                f"{', '.join(names)} gives {path} the shape {flat[path].shape}; the config expects "
                f"{expected[path].shape}"
            )
        flat[path] = jnp.asarray(flat[path], jnp.float32)
    if absent := sorted(set(expected) - set(flat)):
        raise InputError(f"nothing in the state dict gives {', '.join(absent)}")
    return flax.traverse_util.unflatten_dict(flat, sep="/")
