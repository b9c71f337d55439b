"""Top-down COCO-17 pose models in ONNX, run on whole crops.

The conventions are MMPose's (https://github.com/open-mmlab/mmpose), which RTMPose, HRNet,
SimpleBaseline and ViTPose follow:

- The box is the whole crop, enlarged by 1.25 about its center (width / 2, height / 2), and then in
  one direction to the aspect ratio of the model's input; what lies outside the crop is black.
- Pixels are RGB, minus the mean and divided by the standard deviation of ImageNet; a model with
  uint8 input gets them unchanged.
- Coordinates count pixels from the middle of the upper left one. The box fills the input, W pixels
  for its width, and a heatmap of width w has one column each W / w of them. Models trained with
  unbiased data processing (UDP, https://arxiv.org/abs/1911.07524; ViTPose is one) count intervals
  instead: W - 1 for the width of the box, w - 1 for the heatmap's.
- SimCC models (RTMPose) return a score for every position along x and along y, several to a pixel.
  The joint is at the two maxima; its confidence is the smaller of the two.
- Heatmap models return a map for each joint. The joint is at the maximum, moved a quarter of a
  pixel toward the higher neighbor in x and in y; its confidence is the maximum.

Every joint gets a position. Its confidence is 0 where the model's score is 0 or less; such a joint
counts as not detected.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float32, Float64, UInt8

from data_pipelines import schema
from data_pipelines.errors import InputError
from data_pipelines.footage.onnx_runtime import DTYPES, inputs_of, open_image_model

PADDING = 1.25
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)  # of ImageNet, RGB, 0 to 255
_STD = np.array([58.395, 57.12, 57.375], np.float32)
_EXPECTED = (
    "expected heatmaps [B, 17, h, w], or SimCC scores [B, 17, s * width] and [B, 17, s * height]"
)


@dataclasses.dataclass(frozen=True)
class PoseModel:
    """A loaded model.

    Attributes:
      sha256: of its file.
      input_size: height and width of its input.
      batch_size: images at a time, at most.
      fixed_batch: whether it needs exactly `batch_size` images.
      udp: whether it counts intervals (see above).
    """

    sha256: str
    input_size: tuple[int, int]
    batch_size: int
    fixed_batch: bool
    udp: bool
    _session: Any

    border = cv2.BORDER_CONSTANT  # black outside the crop

    def predict(
        self, images: Sequence[UInt8[np.ndarray, "H W 3"]]
    ) -> Float32[np.ndarray, "n 17 3"]:
        """Returns the joints of warped crops.

        Args:
          images: up to `batch_size` of uint8[H, W, 3], RGB, of the model's input size.

        Returns:
          float32[n, 17, 3]: x, y in pixels of the input, confidence.
        """
        outputs = self._run(np.stack(images))
        if len(outputs) == 1:
            return decode_heatmaps(outputs[0], self.input_size, udp=self.udp)
        x_scores, y_scores = outputs
        return decode_simcc(x_scores, y_scores, self.input_size)

    def _run(self, images: np.ndarray) -> list[np.ndarray]:
        """Runs the model on uint8[n, H, W, 3]; returns heatmaps, or SimCC scores of x and y."""
        model_input = self._session.get_inputs()[0]
        dtype = DTYPES[model_input.type]
        if dtype != np.uint8:
            images = ((images - _MEAN) / _STD).astype(dtype)
        batch = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
        missing = self.batch_size - len(batch) if self.fixed_batch else 0
        batch = np.pad(batch, ((0, missing), (0, 0), (0, 0), (0, 0)))
        outputs = self._session.run(None, {model_input.name: batch})
        outputs = [output[: len(images)].astype(np.float32) for output in outputs]
        return outputs[::-1] if self._is_y_first(outputs) else outputs

    def _is_y_first(self, outputs: Sequence[np.ndarray]) -> bool:
        """Checks the outputs' shapes; returns whether they are SimCC scores of y and then x."""
        batch = len(outputs[0])
        height, width = self.input_size
        if [o.shape[:2] for o in outputs] == [(batch, schema.NUM_JOINTS)] * len(outputs):
            if len(outputs) == 1 and outputs[0].ndim == 4 and min(outputs[0].shape[2:]) > 1:
                return False
            if len(outputs) == 2 and outputs[0].ndim == outputs[1].ndim == 3:
                first, second = outputs[0].shape[2], outputs[1].shape[2]
                if first * height == second * width > 0:
                    return False
                if first * width == second * height > 0:
                    return True
        shapes = ", ".join(
            f"{description.name} {list(output.shape)}"
            for description, output in zip(self._session.get_outputs(), outputs, strict=True)
        )
        raise InputError(
            f"the pose model returns {shapes} for {batch} images of {height}x{width}; {_EXPECTED}"
        )


def load_model(
    path: str | os.PathLike[str],
    *,
    batch_size: int = 32,
    input_size: tuple[int, int] | None = None,
    udp: bool = False,
    device: str = "cpu",
) -> PoseModel:
    """Loads a model and runs it once, on black images.

    Args:
      path: of the `.onnx` file, which must hold all weights itself.
      batch_size: images at a time, for a model with a dynamic batch size.
      input_size: height and width, for a model with a dynamic input size.
      udp: whether the model was trained with unbiased data processing, as ViTPose was.
      device: "cpu" or "cuda".

    Raises:
      FileNotFoundError: there is no such file.
      ImportError: onnxruntime is not installed, or not for this device.
      ValueError: it is not such a model; the message says what was found and what is expected.
    """
    session, sha256 = open_image_model(path, device, "one image batch [B, 3, H, W]")
    found = inputs_of(session)
    batch, channels, *size = session.get_inputs()[0].shape  # names or None where it is left open
    if channels != 3 and isinstance(channels, int):
        raise InputError(f"{path}: its input is {found}; expected RGB first, [B, 3, H, W]")
    for fixed, given in zip(size, input_size or size, strict=True):
        if not isinstance(given, int):
            raise InputError(
                f"{path}: its input is {found}, height and width are dynamic; pass the input "
                "size that it was trained with, such as 256x192"
            )
        if isinstance(fixed, int) and fixed != given:
            raise InputError(f"{path}: its input is {found}, and not of the size that was given")
    fixed_batch = isinstance(batch, int)
    model = PoseModel(
        sha256=sha256,
        input_size=tuple(input_size or size),
        batch_size=batch if fixed_batch else batch_size,
        fixed_batch=fixed_batch,
        udp=udp,
        _session=session,
    )
    try:
        model.predict([np.zeros((*model.input_size, 3), np.uint8)] * model.batch_size)
    except Exception as error:  # onnxruntime's errors have no common base below Exception
        raise InputError(f"{path}: {error}") from error
    return model


def input_matrix(
    crop_size: tuple[int, int], input_size: tuple[int, int], *, udp: bool = False
) -> Float64[np.ndarray, "2 3"]:
    """Returns float64[2, 3], which maps x, y in a crop to x, y in the model's input.

    Args:
      crop_size: height and width of the crop.
      input_size: height and width of the input.
      udp: whether the model counts intervals.
    """
    crop = np.array(crop_size[::-1], np.float64)  # x, y from here on
    target = np.array(input_size[::-1], np.float64)
    box = target * (crop / target).max() * PADDING
    extent = target - udp
    scale = extent / box
    return np.column_stack([np.diag(scale), extent / 2 - scale * crop / 2])


def warp(
    image: UInt8[np.ndarray, "h w 3"],
    matrix: Float64[np.ndarray, "2 3"],
    input_size: tuple[int, int],
    border: int = cv2.BORDER_CONSTANT,
) -> UInt8[np.ndarray, "H W 3"]:
    """Returns uint8[H, W, 3], the model's view of a crop uint8[h, w, 3].

    Args:
      image: the crop.
      matrix: that of `input_matrix`.
      input_size: H and W.
      border: how OpenCV fills what lies outside the crop; black by default.
    """
    size = input_size[::-1]
    return cv2.warpAffine(image, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border)


def to_crop(
    keypoints: Float[np.ndarray, "J 3"], matrix: Float64[np.ndarray, "2 3"]
) -> Float[np.ndarray, "J 3"]:
    """Maps float32[17, 3] from pixels of the input to pixels of the crop: inverts `matrix`."""
    xy = (keypoints[:, :2] - matrix[:, 2]) / np.diag(matrix)
    return np.column_stack([xy, keypoints[:, 2]]).astype(np.float32)


def decode_simcc(
    x_scores: Float32[np.ndarray, "B 17 X"],
    y_scores: Float32[np.ndarray, "B 17 Y"],
    input_size: tuple[int, int],
) -> Float32[np.ndarray, "B 17 3"]:
    """Returns float32[B, 17, 3], joints in pixels of the input.

    Args:
      x_scores: float32[B, 17, s * W].
      y_scores: float32[B, 17, s * H].
      input_size: H and W.
    """
    height, width = input_size
    x = x_scores.argmax(axis=-1) * (width / x_scores.shape[-1])
    y = y_scores.argmax(axis=-1) * (height / y_scores.shape[-1])
    confidence = np.minimum(x_scores.max(axis=-1), y_scores.max(axis=-1))
    return _joints(x, y, confidence)


def decode_heatmaps(
    heatmaps: Float32[np.ndarray, "B 17 h w"], input_size: tuple[int, int], *, udp: bool = False
) -> Float32[np.ndarray, "B 17 3"]:
    """Returns float32[B, 17, 3], joints in pixels of the input.

    A maximum at the border, which has one neighbor, or between equal ones is not moved.

    Args:
      heatmaps: float32[B, 17, h, w].
      input_size: H and W.
      udp: whether the model counts intervals.
    """
    batch, joints, height, width = heatmaps.shape
    flat = heatmaps.reshape(batch, joints, -1)
    y, x = np.divmod(flat.argmax(axis=-1), width)
    b, j = np.ogrid[:batch, :joints]

    def shift(position: np.ndarray, size: int, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        inside = (position > 0) & (position < size - 1)
        return np.where(inside, 0.25 * np.sign(after - before), 0)

    left, right = np.maximum(x - 1, 0), np.minimum(x + 1, width - 1)
    above, below = np.maximum(y - 1, 0), np.minimum(y + 1, height - 1)
    moved_x = x + shift(x, width, heatmaps[b, j, y, left], heatmaps[b, j, y, right])
    moved_y = y + shift(y, height, heatmaps[b, j, above, x], heatmaps[b, j, below, x])
    scale_x = (input_size[1] - udp) / (width - udp)
    scale_y = (input_size[0] - udp) / (height - udp)
    return _joints(moved_x * scale_x, moved_y * scale_y, flat.max(axis=-1))


def _joints(x: np.ndarray, y: np.ndarray, confidence: np.ndarray) -> np.ndarray:
    return np.stack([x, y, np.maximum(confidence, 0)], axis=-1).astype(np.float32)
