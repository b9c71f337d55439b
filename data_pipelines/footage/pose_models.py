"""Pose models that launch/footage/extract_skeletons.py knows by name."""

from typing import NamedTuple

from data_pipelines.errors import InputError
from data_pipelines.footage import extraction, landmarks, pose
from data_pipelines.footage.downloads import Download, find_model

_RTMPOSE = "https://download.openmmlab.com/mmpose/v1/projects/rtmposev1/onnx_sdk"
_VITPOSE = "https://huggingface.co/onnx-community/vitpose-base-simple"
_MEDIAPIPE = "https://storage.googleapis.com/mediapipe-assets"


class Published(NamedTuple):
    """A published model.

    Attributes:
      download: its file.
      input_size: height and width that it was trained with; None if the file says so.
      udp: whether it was trained with unbiased data processing.
    """

    download: Download
    input_size: tuple[int, int] | None = None
    udp: bool = False


MODELS = {
    # MMPose's, trained on seven datasets: https://github.com/open-mmlab/mmpose, projects/rtmpose.
    "rtmpose-m": Published(
        Download(
            f"{_RTMPOSE}/rtmpose-m_simcc-body7_pt-body7_420e-256x192-e48f03d0_20230504.zip",
            "Apache-2.0",
            None,
        ),
        (256, 192),
    ),
    "rtmpose-l": Published(
        Download(
            f"{_RTMPOSE}/rtmpose-l_simcc-body7_pt-body7_420e-384x288-3f5a1437_20230504.zip",
            "Apache-2.0",
            None,
        ),
        (384, 288),
    ),
    "rtmpose-x": Published(
        Download(
            f"{_RTMPOSE}/rtmpose-x_simcc-body7_pt-body7_700e-384x288-71d7b7e9_20230629.zip",
            "Apache-2.0",
            None,
        ),
        (384, 288),
    ),
    # The authors publish no ONNX. This is a conversion, by the authors of Transformers.js, of
    # usyd-community/vitpose-base-simple; the URL names one revision.
    "vitpose-b": Published(
        Download(
            f"{_VITPOSE}/resolve/bbebbddd612af2728539103dd5b903a4f5a2da4c/onnx/model.onnx",
            "Apache-2.0",
            None,
        ),
        (256, 192),
        udp=True,
    ),
    # The checksum is that of third_party/external_files.bzl in MediaPipe.
    "blazepose": Published(
        Download(
            f"{_MEDIAPIPE}/pose_landmark_full.tflite?generation=1661875894245786",
            "Apache-2.0",
            "e9a5c5cb17f736fafd4c2ec1da3b3d331d6edbe8a0d32395855aeb2cdfd64b9f",
        )
    ),
}


def load_model(
    value: str,
    *,
    batch_size: int = 32,
    input_size: tuple[int, int] | None = None,
    udp: bool | None = None,
    device: str = "cpu",
) -> extraction.Model:
    """Loads a model by name or from a file, `.onnx` or `.tflite`.

    Args:
      value: one of the names of `MODELS`, which is downloaded once, or a path.
      batch_size: images at a time, for a model with a dynamic batch size.
      input_size: height and width, for an `.onnx` file with a dynamic input size.
      udp: whether the model of an `.onnx` file was trained with unbiased data processing.
      device: "cpu" or "cuda".

    Raises:
      InputError: there is no such model or file, the download fails, or it is not such a model.
      MissingPackageError: the package that runs or downloads it is not installed.
    """
    settled = value in MODELS or value.endswith(".tflite")
    if settled and (input_size is not None or udp is not None):
        raise InputError(
            f"--model={value}: leave out --input_size and --udp, which are known for it"
        )
    downloads = {name: published.download for name, published in MODELS.items()}
    path = find_model(value, downloads, "--model")
    if path.suffix == ".tflite":
        if device != "cpu":
            raise InputError(f"--model={value}: TFLite models run on the CPU; leave out --device")
        return landmarks.load_model(path, batch_size=batch_size)
    if value in MODELS:
        input_size, udp = MODELS[value].input_size, MODELS[value].udp
    return pose.load_model(
        path, batch_size=batch_size, input_size=input_size, udp=bool(udp), device=device
    )
