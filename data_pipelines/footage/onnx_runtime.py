"""Opens untrusted ONNX models."""

import hashlib
import os
import tempfile
from typing import Any

import numpy as np

from data_pipelines.errors import InputError, MissingPackageError
from data_pipelines.io.files import read_file, refuse_stand_in

DTYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_image_model(path: str | os.PathLike[str], device: str, expected: str) -> tuple[Any, str]:
    """Returns the `onnxruntime.InferenceSession` of a model of images, and its file's SHA-256.

    Args:
      path: of the `.onnx` file, which must hold all weights itself.
      device: "cpu" or "cuda".
      expected: what its only input should be, for messages.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: onnxruntime cannot load it, or its input is not one array of four axes of DTYPES.
      MissingPackageError: onnxruntime is not installed, or not for this device.
    """
    content = read_file(path)
    refuse_stand_in(path, content)
    session = _open_session(path, content, device)
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type not in DTYPES or len(inputs[0].shape) != 4:
        raise InputError(f"{path}: its input is {inputs_of(session)}; expected {expected}")
    return session, hashlib.sha256(content).hexdigest()


def inputs_of(session: Any) -> str:
    """Returns names, types and shapes of the inputs of a model, for messages."""
    return ", ".join(f"{item.name} {item.type} {item.shape}" for item in session.get_inputs())


def _open_session(path: str | os.PathLike[str], content: bytes, device: str) -> Any:
    """Opens a model that can read no other files."""
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingPackageError(
            'ONNX models need onnxruntime: pip install -e ".[pose]", or onnxruntime-gpu for cuda'
        ) from error
    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise MissingPackageError(
            f"this onnxruntime has no {provider}; install onnxruntime-gpu in place of onnxruntime"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # errors are raised instead
    with tempfile.TemporaryDirectory() as nothing:
        # A model may name any files as its weights; in an empty folder it finds none.
        options.add_session_config_entry(
            "session.model_external_initializers_file_folder_path", nothing
        )
        try:
            session = onnxruntime.InferenceSession(content, options, providers=[provider])
        except Exception as error:  # onnxruntime's errors have no common base below Exception
            raise InputError(
                f"{path}: onnxruntime cannot load it ({error}); weights in other files must be "
                "put into this one: onnx.save(onnx.load(path), other_path)"
            ) from error
    if session.get_providers()[0] != provider:
        raise MissingPackageError(
            f"onnxruntime cannot start {provider}; see its log for what is missing"
        )
    return session
