"""Conversion of PyTorch state dicts to Flax variables, by tables of entries.

State dicts are mappings from PyTorch names to arrays. Every array is either used or listed as
unused; a missing or unknown array, or one of the wrong shape, is an error that names it.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import InputError
from star_jax.models import Star

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

# PyTorch's names of the parts of paths in our ResNet, where the two differ.
RESNET_NAMES = {
    **{"conv": "conv1", "bn": "bn1"},  # of a stem
    **{"downsample_conv": "downsample.0", "downsample_bn": "downsample.1"},
    **{"instance": "IN", "batch": "BN"},  # IBN-Net's
    **{"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"},
}


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


def unchanged(array: Any) -> Any:
    """Returns the array itself."""
    return array


def transpose(array: Any) -> Any:
    """Returns a linear layer's weight, [out, in], as a kernel, [in, out]."""
    return array.T


def squeeze(array: Any) -> Any:
    """Returns an array without its first axis, of length 1."""
    return array.squeeze(0)


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
