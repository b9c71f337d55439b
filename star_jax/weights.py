"""Weights from elsewhere: the authors' STAR network and ImageNet ResNets, into Flax variables.

State dicts are mappings from PyTorch names to arrays. Every array is either used or listed as
unused; what is missing, left over or of another shape is an error that names it.
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

SAFETENSORS_DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}

Variables = dict[str, Any]

# An entry: where an array goes in our variables, the arrays it is made of, and how.
Entry = tuple[str, tuple[str, ...], Callable[..., Any]]

NEVER_USED = (
    r"num_batches_tracked$",
    # Each stem carries a whole ResNet of which the first layers run, and the shared trunk one
    # of which the first layers do not.
    r"^(thermal_module\.thermal|visible_module\.visible)\.layer\d",
    r"^base_resnet\.base\.(conv1|bn1)\.",
    r"^bn\.",
    r"^time_guide\.bn_enhanced_(origin|time_guide)\.",
    r"^fc\.(weight|bias)$",  # torchvision's ImageNet classifier
)
# What a network with less guidance leaves out.
SKELETON = (r"^(gat|lstm_edge|fc1|pose_classifier|pose_bottleneck|time_guide|GuidedAggModule)\b",)


def from_authors(state_dict: Mapping[str, Any], config: ml_collections.ConfigDict) -> Variables:
    """The authors' state dict as variables of the network that `config` describes.

    Args:
      state_dict: the entries of their PyTorch network, as arrays.
      config: a `config.model`; `num_identities` is that of the state dict.

    Returns:
      {"params": ..., "batch_stats": ...}, float32.

    Raises:
      ValueError: naming the arrays that are missing, unknown or of another shape.
    """
    model = build_model(config)
    if not isinstance(model.backbone, ResNet):
        raise InputError(f"config.model.backbone is {config.backbone!r}: the authors' is a ResNet")
    entries = list(backbone_entries(model.backbone, AUTHORS_STEMS, "base_resnet.base."))
    entries += head_entries()
    if model.uses_skeletons:
        entries += skeleton_entries(model.backbone.num_channels)
    expected = abstract_variables(model)
    entries = [entry for entry in entries if entry[0] in expected]
    whole = isinstance(model.guidance, FrameGuidance) and isinstance(model.pooling, GuidedPooling)
    return convert(state_dict, entries, expected, NEVER_USED if whole else NEVER_USED + SKELETON)


def from_torchvision_resnet50(
    state_dict: Mapping[str, Any], config: ml_collections.ConfigDict, variables: Variables
) -> Variables:
    """`variables` with the backbone replaced by an ImageNet ResNet in torchvision's naming.

    Both stems start from the same first layers.

    Args:
      state_dict: torchvision's `resnet50` (or the ResNet that `config` describes), as arrays.
      config: a `config.model`.
      variables: of the network that `config` describes, for everything else.

    Raises:
      ValueError: naming the arrays that are missing, unknown or of another shape.
    """
    model = build_model(config)
    if not isinstance(model.backbone, ResNet):
        raise InputError(
            f"config.init.backbone: no import for config.model.backbone {config.backbone!r}"
        )
    entries = list(backbone_entries(model.backbone, {"stem_visible": "", "stem_infrared": ""}, ""))
    expected = {
        path: array
        for path, array in abstract_variables(model).items()
        if path.split("/")[1] == "backbone"
    }
    backbone = convert(state_dict, entries, expected, NEVER_USED)
    return {
        collection: {**variables[collection], "backbone": backbone[collection]["backbone"]}
        for collection in ("params", "batch_stats")
    }


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict from a `.safetensors` or (with PyTorch installed) a `.pth` file.

    The path may be an address, `gs://bucket/file`. Arrays of any floating type become float32.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: for another kind of file, a `.pth` that holds more than arrays, and an array of an
        unknown type or with NaN or infinity in it.
      ImportError: for a `.pth` without PyTorch.
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
        raise InputError(f"{path}: give a .safetensors or a .pth file")
    if name := find_not_finite(arrays):
        raise InputError(f"{path}: {name} holds NaN or infinity; these weights are of no use")
    return arrays


def _read_safetensors(stored: bytes, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        found = safetensors.deserialize(stored)
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error
    arrays = {}
    for name, facts in found:
        dtype = SAFETENSORS_DTYPES.get(facts["dtype"])
        if dtype is None:  # 8 bits and fewer need factors that are kept elsewhere
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
            f"{path}: reading a .pth needs PyTorch; install it, or give a .safetensors file"
        ) from error
    try:
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a file of plain arrays ({error})") from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(map(torch.is_tensor, content.values())):
        raise InputError(f"{path}: holds something else than arrays by name; save a state dict")
    arrays = {}
    for name, tensor in content.items():
        if tensor.dtype is torch.bfloat16:  # NumPy has no such type
            tensor = tensor.float()
        try:
            arrays[name.removeprefix("module.")] = _as_float32(tensor.detach().numpy())
        except TypeError as error:
            raise InputError(
                f"{path}: {name} is of type {tensor.dtype}; convert it to float32"
            ) from error
    return arrays


def _as_float32(array: np.ndarray) -> np.ndarray:
    """An array of float32 if it was of any floating type."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        return array
    with np.errstate(over="ignore"):  # becomes infinity, which is refused
        return array.astype(np.float32, copy=False)


AUTHORS_STEMS = {
    "stem_visible": "visible_module.visible.",
    "stem_infrared": "thermal_module.thermal.",
}


def transpose(array: Any) -> Any:
    """A linear layer's weight, [out, in], as a kernel, [in, out]."""
    return array.T


def squeeze(array: Any) -> Any:
    """An array without its first axis, of length 1."""
    return array.squeeze(0)


def unchanged(array: Any) -> Any:
    """The array itself."""
    return array


def norm_entries(path: str, name: str, *, learned_bias: bool = True) -> Iterator[Entry]:
    """A batch norm."""
    yield f"params/{path}/scale", (f"{name}.weight",), unchanged
    bias_collection = "params" if learned_bias else "batch_stats"
    yield f"{bias_collection}/{path}/bias", (f"{name}.bias",), unchanged
    yield f"batch_stats/{path}/mean", (f"{name}.running_mean",), unchanged
    yield f"batch_stats/{path}/var", (f"{name}.running_var",), unchanged


def linear_entries(path: str, name: str) -> Iterator[Entry]:
    """A linear layer with a bias."""
    yield f"params/{path}/kernel", (f"{name}.weight",), transpose
    yield f"params/{path}/bias", (f"{name}.bias",), unchanged


def convolution_entry(path: str, name: str, *, projection: bool) -> Entry:
    """A convolution's kernel; a 1x1 one is a matrix here."""
    if projection:
        return f"params/{path}/dense/kernel", (f"{name}.weight",), lambda x: x.squeeze((2, 3)).T
    return f"params/{path}/kernel", (f"{name}.weight",), lambda x: x.transpose(2, 3, 1, 0)


def backbone_entries(backbone: ResNet, stems: Mapping[str, str], trunk: str) -> Iterator[Entry]:
    """The stems and the stages, with the PyTorch prefix of each."""
    for stem, prefix in stems.items():
        yield convolution_entry(f"backbone/{stem}/conv", f"{prefix}conv1", projection=False)
        yield from norm_entries(f"backbone/{stem}/bn", f"{prefix}bn1")
    bottleneck = backbone.block == "bottleneck"
    for stage, num_blocks in enumerate(backbone.stage_sizes, start=1):
        for block in range(num_blocks):
            path, name = f"backbone/stage{stage}/block{block}", f"{trunk}layer{stage}.{block}"
            for i in range(1, 4 if bottleneck else 3):
                projection = bottleneck and i != 2
                yield convolution_entry(f"{path}/conv{i}", f"{name}.conv{i}", projection=projection)
                yield from norm_entries(f"{path}/bn{i}", f"{name}.bn{i}")
            if block == 0 and (bottleneck or stage > 1):
                shortcut = f"{name}.downsample"
                yield convolution_entry(f"{path}/downsample_conv", f"{shortcut}.0", projection=True)
                yield from norm_entries(f"{path}/downsample_bn", f"{shortcut}.1")


def head_entries() -> Iterator[Entry]:
    """The global and the frame head."""
    for ours, theirs in (("", "global"), ("frame_", "local")):
        yield from norm_entries(f"{ours}bnneck", f"{theirs}_bottleneck", learned_bias=False)
        yield f"params/{ours}classifier/kernel", (f"{theirs}_classifier.weight",), transpose


def skeleton_entries(channels: int) -> Iterator[Entry]:
    """The skeleton branch, the guidance and the skeleton head."""
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
        yield from attention_entries(f"guidance/{ours}", f"time_guide.{theirs}", channels)
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


def attention_entries(path: str, name: str, channels: int) -> Iterator[Entry]:
    """An attention, whose three input projections PyTorch keeps as one matrix."""
    heads = (NUM_HEADS, channels // NUM_HEADS)
    for i, part in enumerate(("query", "key", "value")):
        kernel = lambda x, i=i: x.reshape(3, channels, channels)[i].T.reshape(-1, *heads)  # noqa: E731
        bias = lambda x, i=i: x.reshape(3, *heads)[i]  # noqa: E731
        yield f"params/{path}/{part}/kernel", (f"{name}.in_proj_weight",), kernel
        yield f"params/{path}/{part}/bias", (f"{name}.in_proj_bias",), bias
    out = f"params/{path}/out"
    yield f"{out}/kernel", (f"{name}.out_proj.weight",), lambda x: x.T.reshape(*heads, channels)
    yield f"{out}/bias", (f"{name}.out_proj.bias",), unchanged


def abstract_variables(model: Star) -> dict[str, jax.ShapeDtypeStruct]:
    """Returns the variables of the network by path, without their values."""
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
    """Applies the entries, strictly."""
    used = {name for _, names, _ in entries for name in names}
    if missing := sorted(used - set(state_dict)):
        raise InputError(f"the state dict lacks {', '.join(missing)}")
    left = sorted(set(state_dict) - used)
    if unknown := [x for x in left if not any(re.search(p, x) for p in may_be_unused)]:
        raise InputError(f"the state dict has arrays that no part of the network takes: {unknown}")
    flat = {}
    for path, names, function in entries:
        try:
            flat[path] = function(*(state_dict[name] for name in names))
        except (IndexError, TypeError, ValueError) as error:
            shapes = [np.shape(state_dict[name]) for name in names]
            raise InputError(f"{', '.join(names)} of {shapes} does not fit {path}") from error
        if flat[path].shape != expected[path].shape:
            raise InputError(
                f"{', '.join(names)} gives {path} the shape {flat[path].shape}; the config wants "
                f"{expected[path].shape}"
            )
        flat[path] = jnp.asarray(flat[path], jnp.float32)
    if absent := sorted(set(expected) - set(flat)):
        raise InputError(f"nothing in the state dict gives {', '.join(absent)}")
    return flax.traverse_util.unflatten_dict(flat, sep="/")
