"""Conversion between PyTorch state dicts and Flax variables, by tables of entries.

State dicts are mappings from PyTorch names to arrays. Every array is either used or listed as
unused; a missing or unknown array, or one of the wrong shape, is an error that names it.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import flax
import jax
import jax.numpy as jnp
import numpy as np

from data_pipelines.errors import InputError
from star_jax.models import Star

Variables = dict[str, Any]


class Conversion(NamedTuple):
    """How an array is converted, in both directions.

    Attributes:
      to_flax: returns the array, given those of its names.
      to_torch: returns a list of arrays, one for each name, given the array; None where no state
        dict is written.
    """

    to_flax: Callable[..., Any]
    to_torch: Callable[[Any], list[Any]] | None = None


# An entry: the path of an array in our variables, its arrays by PyTorch's names, the conversion.
Entry = tuple[str, tuple[str, ...], Conversion]

unchanged = Conversion(lambda x: x, lambda x: [x])
# A linear layer's weight, [out, in], as a kernel, [in, out].
transpose = Conversion(lambda x: x.T, lambda x: [x.T])
# An array with a first axis of length 1, as one without it.
squeeze = Conversion(lambda x: x.squeeze(0), lambda x: [x[None]])
# A 1x1 convolution's weight, [out, in, 1, 1], as a kernel, [in, out].
matrix = Conversion(lambda x: x.squeeze((2, 3)).T, lambda x: [x.T[..., None, None]])
# A convolution's weight, [out, in, height, width], as [height, width, in, out].
kernel = Conversion(lambda x: x.transpose(2, 3, 1, 0), lambda x: [x.transpose(3, 2, 0, 1)])

NEVER_USED = (
    r"num_batches_tracked$",
    # Each stem contains a whole ResNet, but runs only its first layers; the shared trunk contains
    # another one, and runs only its other layers.
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
    variables = jax.eval_shape(init, frames, keypoints)
    flat: dict[str, jax.ShapeDtypeStruct] = flax.traverse_util.flatten_dict(variables, sep="/")
    return flat


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
    missing, left = sorted(used - set(state_dict)), sorted(set(state_dict) - used)
    unknown = [x for x in left if not any(re.search(p, x) for p in may_be_unused)]
    trouble = [f"lacks {_some(missing)} of {len(used)} arrays"] * bool(missing)
    trouble += [f"has {_some(unknown)} that no part of the network uses"] * bool(unknown)
    if trouble:
        advice = _without_prefix(missing, unknown)
        raise InputError(f"the state dict {' and '.join(trouble)}{advice}")
    flat = {}
    for path, names, conversion in entries:
        try:
            flat[path] = conversion.to_flax(*(state_dict[name] for name in names))
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
        raise InputError(f"nothing in the state dict gives {_some(absent)}")
    variables: Variables = flax.traverse_util.unflatten_dict(flat, sep="/")
    return variables


def _some(names: list[str]) -> str:
    """Returns the number of names and the first of them, for messages."""
    first = ", ".join(name if len(name) <= 60 else f"{name[:57]}..." for name in names[:3])
    return f"{len(names)} ({first}{', ...' * (len(names) > 3)})"


def _without_prefix(missing: list[str], unknown: list[str]) -> str:
    """Returns what to do if the missing names are there with a prefix, else ""."""
    for name in unknown if missing else ():
        prefix = name.removesuffix(missing[0])
        if prefix != name and {prefix + other for other in missing} <= set(unknown):
            return f"; save {len(missing)} of these alone, without {prefix!r} before their names"
    return ""


def state_dict_of(variables: Mapping[str, Any], entries: Iterable[Entry]) -> dict[str, Any]:
    """Returns the state dict that the entries make of variables, the inverse of `convert`.

    Where several entries share a name, their arrays are joined along the first axis.
    """
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    parts: dict[str, list[Any]] = {}
    for path, names, conversion in entries:
        assert conversion.to_torch is not None, path
        for name, array in zip(names, conversion.to_torch(flat[path]), strict=True):
            parts.setdefault(name, []).append(array)
    return {
        name: arrays[0] if len(arrays) == 1 else jnp.concatenate(arrays)
        for name, arrays in parts.items()
    }


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
        weight = Conversion(
            lambda x, i=i: x.reshape(3, *heads, x.shape[-1])[i].transpose(2, 0, 1),
            lambda x: [x.reshape(len(x), -1).T],
        )
        bias = Conversion(lambda x, i=i: x.reshape(3, *heads)[i], lambda x: [x.reshape(-1)])
        yield f"params/{path}/{part}/kernel", (f"{projections}weight",), weight
        yield f"params/{path}/{part}/bias", (f"{projections}bias",), bias
    joined = Conversion(
        lambda x: x.T.reshape(*heads, len(x)), lambda x: [x.reshape(-1, x.shape[-1]).T]
    )
    yield f"params/{path}/out/kernel", (f"{out}.weight",), joined
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
        conversion = unchanged
        if parts[-1] == "kernel":
            conversion = matrix if "dense" in parts else kernel
        parts = [part.removeprefix("block") for part in parts if part != "dense"]
        yield path, (prefix + ".".join(RESNET_NAMES.get(x, x) for x in parts),), conversion
