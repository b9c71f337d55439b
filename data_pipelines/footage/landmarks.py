"""Pose models in TFLite that return landmarks rather than maps, run on whole crops.

- BlazePose (`pose_landmark_lite`, `_full` and `_heavy.tflite` of MediaPipe,
  https://github.com/google-ai-edge/mediapipe) takes RGB in [0, 1] and returns 39 landmarks of x, y,
  z in pixels of its input, visibility and presence as logits, and the probability that there is a
  person. 17 of the landmarks are the joints of COCO; the confidence is the visibility. Below a
  probability of 0.5 there is no skeleton, as in MediaPipe. Outside the crop, its outermost pixels
  are repeated. MediaPipe also detects people and turns them upright, moves landmarks to maxima of a
  heatmap and smooths them over time; that is not done here.
- MoveNet for one person (https://www.tensorflow.org/hub/tutorials/movenet) takes RGB from 0 to 255
  and returns y, x as shares of its input and a score for each of COCO's joints, which is the
  confidence. Outside the crop is black.

Both want the person in the middle of a square with a margin. It is the crop, enlarged as in `pose`.
"""

import dataclasses
import hashlib
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np
import scipy.special
from jaxtyping import Float32, UInt8

from data_pipelines import schema
from data_pipelines.errors import InputError, MissingPackageError
from data_pipelines.io import files

BLAZEPOSE_JOINTS = (0, 2, 5, 7, 8, 11, 12, 13, 14, 15, 16, 23, 24, 25, 26, 27, 28)  # COCO's order
MIN_PROBABILITY = 0.5  # of a person
_BLAZEPOSE_SHAPE = (39, 5)
_DTYPES = (np.float32, np.uint8, np.int32)
_EXPECTED = (
    "expected a square RGB image and BlazePose's outputs of 195 and 1 numbers, or MoveNet's "
    "[1, 1, 17, 3]"
)


@dataclasses.dataclass(frozen=True)
class LandmarkModel:
    """A loaded model; what extraction needs of it is as in `pose.PoseModel`.

    Attributes:
      sha256: of its file.
      input_size: height and width of its input.
      is_blazepose: otherwise it is MoveNet.
      batch_size: images at a time, at most.
    """

    sha256: str
    input_size: tuple[int, int]
    is_blazepose: bool
    batch_size: int
    _interpreter: Any

    udp = False  # coordinates count pixels

    @property
    def border(self) -> int:
        """How OpenCV fills what lies outside the crop."""
        return cv2.BORDER_REPLICATE if self.is_blazepose else cv2.BORDER_CONSTANT

    def predict(
        self, images: Sequence[UInt8[np.ndarray, "H W 3"]]
    ) -> Float32[np.ndarray, "n 17 3"]:
        """Returns the joints of warped crops, as `pose.PoseModel.predict` does."""
        return np.stack([self._predict_one(image) for image in images])

    def _predict_one(self, image: np.ndarray) -> np.ndarray:
        (model_input,) = self._interpreter.get_input_details()
        pixels = image.astype(model_input["dtype"])
        if self.is_blazepose:
            pixels /= 255
        self._interpreter.set_tensor(model_input["index"], pixels[None])
        self._interpreter.invoke()
        outputs = {
            _size(output): self._interpreter.get_tensor(output["index"])
            for output in self._interpreter.get_output_details()
        }
        if self.is_blazepose:
            landmarks = outputs[math.prod(_BLAZEPOSE_SHAPE)].reshape(_BLAZEPOSE_SHAPE)
            return decode_blazepose(landmarks, outputs[1].item())
        return decode_movenet(outputs[3 * schema.NUM_JOINTS][0, 0], self.input_size)


def load_model(path: str | os.PathLike[str], *, batch_size: int = 32) -> LandmarkModel:
    """Loads a model and runs it once, on a black image.

    Args:
      path: of the `.tflite` file.
      batch_size: images at a time; the model runs on one after the other.

    Raises:
      FileNotFoundError: there is no such file.
      InputError: it is not such a model; the message says what was found and what is expected.
      MissingPackageError: ai-edge-litert is not installed.
    """
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise MissingPackageError(
            f'{path}: TFLite models need ai-edge-litert: pip install -e ".[pose-tflite]"'
        ) from error
    content = files.read_file(path)
    files.refuse_stand_in(path, content)
    try:
        interpreter = Interpreter(model_content=content, num_threads=os.cpu_count())
        interpreter.allocate_tensors()
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{path}: LiteRT cannot load it ({error})") from error
    inputs, outputs = interpreter.get_input_details(), interpreter.get_output_details()
    sizes = [_size(output) for output in outputs]
    is_blazepose = {math.prod(_BLAZEPOSE_SHAPE), 1} <= set(sizes)
    is_movenet = [list(output["shape"]) for output in outputs] == [[1, 1, schema.NUM_JOINTS, 3]]
    dtypes = (np.float32,) if is_blazepose else _DTYPES
    if not (
        (is_blazepose or is_movenet)
        and all(output["dtype"] == np.float32 for output in outputs)
        and len(inputs) == 1
        and inputs[0]["dtype"] in dtypes
        and [*inputs[0]["shape"]] == [1, inputs[0]["shape"][1], inputs[0]["shape"][1], 3]
    ):
        found = " and ".join(
            ", ".join(f"{item['dtype'].__name__} {list(map(int, item['shape']))}" for item in items)
            for items in (inputs, outputs)
        )
        raise InputError(f"{path}: its inputs and outputs are {found}; {_EXPECTED}")
    size = int(inputs[0]["shape"][1])
    model = LandmarkModel(
        sha256=hashlib.sha256(content).hexdigest(),
        input_size=(size, size),
        is_blazepose=is_blazepose,
        batch_size=batch_size,
        _interpreter=interpreter,
    )
    model.predict([np.zeros((size, size, 3), np.uint8)])
    return model


def decode_blazepose(
    landmarks: Float32[np.ndarray, "39 5"], probability: float
) -> Float32[np.ndarray, "17 3"]:
    """Returns float32[17, 3], joints in pixels of the input; zeros if there is no person.

    Args:
      landmarks: float32[39, 5]: x, y, z in pixels of the input, visibility, presence.
      probability: that there is a person.
    """
    if probability < MIN_PROBABILITY:
        return np.zeros((schema.NUM_JOINTS, 3), np.float32)
    chosen = landmarks[list(BLAZEPOSE_JOINTS)]
    visibility = scipy.special.expit(chosen[:, 3])
    return np.column_stack([chosen[:, :2], visibility]).astype(np.float32)


def decode_movenet(
    keypoints: Float32[np.ndarray, "17 3"], input_size: tuple[int, int]
) -> Float32[np.ndarray, "17 3"]:
    """Returns float32[17, 3], joints in pixels of the input.

    Args:
      keypoints: float32[17, 3]: y, x as shares of the input, score.
      input_size: H and W.
    """
    y, x, score = keypoints.T
    height, width = input_size
    return np.stack([x * width, y * height, np.maximum(score, 0)], axis=-1).astype(np.float32)


def _size(tensor: Mapping[str, Any]) -> int:
    return math.prod(map(int, tensor["shape"]))
