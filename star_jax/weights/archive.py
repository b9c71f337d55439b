"""A self-contained, versioned archive: a `.safetensors` file with weights and config.

The file depends on no version of JAX, Flax or Orbax. Its arrays are the network's variables, named
by their paths ("params/backbone/stem_visible/conv/kernel"). Its metadata, all of it text:

- `format`: `FORMAT`;
- `config`: the experiment, as JSON;
- `step`: the steps of training;
- `weights`: `ema` if they are a moving average of the weights, else there is no such entry;
- `versions`: the packages that wrote the file, as JSON;
- `sha256`: of all the above and the arrays, by which a damaged file is detected.

Files stay readable. A new key of the config gets a row of `config.ADDED_KEYS`, which says what
networks without it did; a key that is removed or changes its meaning, or another name or layout of
an array, needs a new `FORMAT`, and a conversion of the old one in `load_archive`.
"""

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import flax
import numpy as np

from data_pipelines.errors import InputError
from star_jax.config import Config, as_config
from star_jax.config.values import INT32_MAX, shown
from star_jax.distributed.parallel import to_numpy
from star_jax.stored import read_config
from star_jax.trees import find_unusable
from star_jax.weights.files import parse_metadata, parse_safetensors, read_weights, save_arrays

KIND = "star_jax network"
FORMAT = f"{KIND} 1"
PACKAGES = ("star_jax", "jax", "flax", "numpy", "safetensors")


class Archive(NamedTuple):
    """The content of an archive.

    Attributes:
      config: the experiment that trained the network; tuples have become lists.
      variables: {"params": ..., "batch_stats": ...}, nested dictionaries of NumPy arrays.
      step: the steps of training.
    """

    config: Config
    variables: dict[str, Any]
    step: int


def save_archive(
    path: str | os.PathLike[str],
    *,
    config: Config,
    variables: Mapping[str, Any],
    step: int,
    weights: str = "trained",
) -> None:
    """Writes a network to a `.safetensors` file, all of it or nothing, and creates its folder.

    Args:
      path: of the file, which is replaced if it exists; may be a URL.
      config: the experiment that trained the network.
      variables: {"params": ..., "batch_stats": ...}, nested dictionaries of arrays, JAX's or
        NumPy's.
      step: the steps of training.
      weights: what the file says that they are, "trained" or "ema".

    Raises:
      InputError: the config has an invalid value, or an array contains NaN or infinity; nothing is
        written.
      OSError: the file cannot be written.
    """
    config = as_config(config)
    if found := find_unusable(variables):
        raise InputError(f"{path}: {found}, so that it is not written")
    flat = flax.traverse_util.flatten_dict(variables, sep="/")
    arrays = {name: np.asarray(array) for name, array in flat.items()}
    metadata = {
        "format": FORMAT,
        "config": json.dumps(config.to_dict()),
        "step": str(step),
        **({} if weights == "trained" else {"weights": weights}),
        "versions": json.dumps({package: _version(package) for package in PACKAGES}),
    }
    metadata["sha256"] = _sha256(metadata, arrays)
    save_arrays(path, arrays, metadata)


def load_archive(path: str | os.PathLike[str], *, trusted: Collection[str] = ()) -> Archive:
    """Reads a network that `save_archive` wrote; runs none of its code.

    Args:
      path: of the file; may be a URL.
      trusted: packages whose components the config may name; see `star_jax.load_weights`.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: the file is not an archive, is of another version of the format or damaged, has a
        config that this version of star_jax does not know or that names a component of a package
        that is not trusted, or an array contains NaN, infinity or a negative variance.
    """
    stored = read_weights(path)
    arrays, metadata = parse_safetensors(stored, path), parse_metadata(stored)
    found = metadata.get("format", "")
    if found.rpartition(" ")[0] != KIND:
        raise InputError(
            f"{path}: not a network of star_jax; write one with launch/export.py, or import the "
            "arrays with star_jax.weights.load_arrays"
        )
    if found != FORMAT:
        raise InputError(
            f"{path}: has the format {found!r}, and this version of star_jax reads {FORMAT!r}; "
            "install the version that wrote the file, or write it again with launch/export.py"
        )
    expected = metadata.pop("sha256", "")
    if _sha256(metadata, arrays) != expected:
        raise InputError(f"{path}: damaged (its checksum does not match); use another copy")
    try:
        stored, step = json.loads(metadata["config"]), int(metadata["step"])
        version = shown(json.loads(metadata["versions"])["star_jax"])
        # In order, since an array "a" would replace "a/b" that came before it.
        variables = flax.traverse_util.unflatten_dict(dict(sorted(arrays.items())), sep="/")
        if not 0 <= step <= INT32_MAX:
            raise ValueError(f"step {step}")
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path}: does not have the content of its format ({type(error).__name__}: {error}); "
            "export the network again"
        ) from error
    config = read_config(stored, f"{path} (of star_jax {version})", trusted)
    if wrong := find_unusable(variables):
        raise InputError(f"{path}: {wrong}; use other weights")
    return Archive(config, variables, step)


def checksum(variables: Mapping[str, Any]) -> str:
    """Returns the SHA-256 of a network's weights, 64 hexadecimal digits.

    It covers names, dtypes, shapes and values, whatever the devices and the sharding: a checkpoint
    and the archive that is exported from it have the same. Takes a second for 500 MB. In a run of
    several processes, all must call this.

    Args:
      variables: {"params": ..., "batch_stats": ...}, nested dictionaries of arrays, JAX's or
        NumPy's.
    """
    digest = hashlib.sha256()
    _add_arrays(digest, flax.traverse_util.flatten_dict(variables, sep="/"))
    return digest.hexdigest()


def check_variables(
    path: str | os.PathLike[str], variables: Mapping[str, Any], expected: Mapping[str, Any]
) -> None:
    """Checks the variables of an archive against those of the network of its config.

    Args:
      path: of the file, for the message.
      variables: of the archive.
      expected: shapes and dtypes, as `star_jax.state.abstract_variables` returns them.

    Raises:
      InputError: naming the first array that is missing, unexpected, or of another shape or dtype.
    """
    found, needed = (
        {
            name: f"{np.dtype(array.dtype)}{list(array.shape)}"
            for name, array in flax.traverse_util.flatten_dict(tree, sep="/").items()
        }
        for tree in (variables, expected)
    )
    for name in sorted(found.keys() | needed):
        if found.get(name) != needed.get(name):
            raise InputError(
                f"{path}: {name} is {found.get(name, 'missing')}, and the network of its config "
                f"has {needed.get(name, 'no such array')}; export the network again"
            )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # run from its folder, without installing it
        return "unknown"


def _sha256(metadata: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(json.dumps(metadata, sort_keys=True).encode())
    _add_arrays(digest, arrays)
    return digest.hexdigest()


def _add_arrays(digest: Any, arrays: Mapping[str, Any]) -> None:
    """Adds names, dtypes, shapes and bytes of arrays to a digest, in the order of the names."""
    for name in sorted(arrays):
        array = to_numpy(arrays[name])  # one at a time, since all of them may be large
        digest.update(f"{name} {array.dtype}{list(array.shape)}".encode())
        digest.update(array.tobytes())
