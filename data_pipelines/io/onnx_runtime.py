"""Opens ONNX models of other people."""

import os
import tempfile
from typing import Any

from data_pipelines.errors import InputError, MissingPackageError

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(path: str | os.PathLike[str], content: bytes, device: str) -> Any:
    """Returns an `onnxruntime.InferenceSession` of a model that reads no other files.

    Args:
      path: of the model, for messages.
      content: of the file, which must hold all weights itself.
      device: "cpu" or "cuda".

    Raises:
      InputError: onnxruntime cannot load it.
      MissingPackageError: onnxruntime is not installed, or not for this device.
    """
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
