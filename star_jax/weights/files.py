"""Reads and writes weights: `.safetensors` files; reads `.pth` with PyTorch 2.6 or newer."""

import io
import json
import os
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from data_pipelines.errors import InputError, MissingPackageError
from data_pipelines.io.files import read_file, refuse_stand_in, write_file
from data_pipelines.io.remote import locate
from star_jax.trees import find_unusable

SAFETENSORS_DTYPES: dict[str, Any] = {
    **{"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": jnp.bfloat16},
    **{"I64": np.int64, "I32": np.int32, "I16": np.int16, "I8": np.int8},
    **{"U64": np.uint64, "U32": np.uint32, "U16": np.uint16, "U8": np.uint8, "BOOL": np.bool_},
}


# What programs of training put before the names of a network's arrays: DataParallel, torch.compile,
# and modules that hold the network.
PREFIXES = ("module.", "_orig_mod.", "backbone.", "model.", "encoder.")


def load_arrays(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a state dict from a `.safetensors` or (with PyTorch 2.6 or newer) a `.pth` file.

    The path may be a URL, `gs://bucket/file`. Floating-point arrays become float32. Those of
    `PREFIXES` that all names begin with are removed.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: the file is of another format or a web page, a `.pth` holds something other than
        arrays, or an array has an unsupported type or contains NaN, infinity or a negative running
        variance.
      MissingPackageError: the file is a `.pth`, and PyTorch is missing or too old.
    """
    suffix = locate(path).suffix
    if suffix == ".safetensors":
        stored = read_weights(path)
        arrays = {name: _as_float32(x) for name, x in parse_safetensors(stored, path).items()}
    elif suffix in (".pth", ".pt"):
        arrays = _read_torch(read_weights(path), path)
    else:
        raise InputError(f"{path}: use a .safetensors or a .pth file")
    arrays = _without_prefix(arrays)
    if found := find_unusable(arrays):
        raise InputError(f"{path}: {found}; use other weights")
    return arrays


def _without_prefix(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the arrays without the `PREFIXES` that all of their names begin with."""
    arrays = dict(arrays)
    while arrays:
        common = [prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in arrays)]
        if not common:
            break
        arrays = {name.removeprefix(common[0]): array for name, array in arrays.items()}
    return arrays


def read_weights(path: str | os.PathLike[str]) -> bytes:
    """Returns the content of a file of weights, which may be at a URL.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is not a regular file, or is a placeholder for one.
    """
    try:
        stored = read_file(path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no weights at {path}") from error
    refuse_stand_in(path, stored)
    return stored


def parse_safetensors(stored: bytes, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Returns the arrays in the content of a `.safetensors` file, in their own types.

    Raises:
      InputError: the content is of another format, or an array has an unsupported type; `path`
        names the file.
    """
    try:
        found = safetensors.deserialize(stored)
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path}: not a whole safetensors file ({error}); if it is still being written, wait, "
            "else copy or download it again"
        ) from error
    arrays = {}
    for name, facts in found:
        dtype = SAFETENSORS_DTYPES.get(facts["dtype"])
        if dtype is None:  # types of 8 bits or fewer need scales that are stored elsewhere
            raise InputError(
                f"{path}: {name} is of type {facts['dtype']}; convert it to float32 (known types: "
                f"{', '.join(SAFETENSORS_DTYPES)})"
            )
        arrays[name] = np.frombuffer(facts["data"], dtype).reshape(facts["shape"])
    return arrays


def parse_metadata(stored: bytes) -> dict[str, str]:
    """Returns the metadata in the content of a `.safetensors` file that has been parsed."""
    length = int.from_bytes(stored[:8], "little")
    header: dict[str, Any] = json.loads(stored[8 : 8 + length])
    metadata: dict[str, str] = header.get("__metadata__", {})
    return metadata


def save_arrays(
    path: str | os.PathLike[str], arrays: Mapping[str, Any], metadata: dict[str, str]
) -> None:
    """Writes arrays, JAX's or NumPy's, to a `.safetensors` file, all of it or nothing.

    The folder is created, and a file of that name is replaced. The path may be a URL.

    Raises:
      OSError: it cannot be written.
    """
    contiguous = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_file(path, safetensors.numpy.save(contiguous, metadata))


def _read_torch(stored: bytes, path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    try:
        import torch
    except ImportError as error:
        raise MissingPackageError(
            f"{path}: reading a .pth needs PyTorch; install it, or use a .safetensors file"
        ) from error
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 6):
        raise MissingPackageError(
            f"{path}: a .pth can run code in PyTorch {torch.__version__} (CVE-2025-32434); install "
            "2.6 or newer, or use a .safetensors file"
        )
    try:
        content = torch.load(io.BytesIO(stored), map_location="cpu", weights_only=True)
    except Exception as error:
        reason = " ".join(str(error).split()).partition(". ")[0][:200]  # the rest is bad advice
        raise InputError(
            f"{path}: not a file of plain arrays, or not a whole one ({reason})"
        ) from error
    if isinstance(content, dict):
        content = content.get("state_dict", content)
    if not isinstance(content, dict) or not all(
        isinstance(name, str) and torch.is_tensor(value) for name, value in content.items()
    ):
        raise InputError(f"{path}: holds something other than arrays by name; save a state dict")
    arrays = {}
    for name, tensor in content.items():
        if tensor.dtype is torch.bfloat16:  # NumPy has no bfloat16
            tensor = tensor.float()
        try:
            arrays[name] = _as_float32(tensor.detach().numpy())
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
