"""People detectors in ONNX: YOLOX, by name or from a file.

The conventions are those of YOLOX (https://github.com/Megvii-BaseDetection/YOLOX) and of its
exports by MMDeploy:

- The frame is scaled to fit the input and lies in its upper left corner; the rest is gray, 114.
  Pixels are BGR from 0 to 255, float.
- An exported model with non-maximum suppression returns boxes [1, n, 5], left, top, right, bottom
  and score in pixels of the input, and may return labels [1, n].
- One without it returns [1, a, 5 + classes] for the a cells of grids of 8, 16 and 32 pixels: the
  center's offset from its cell and the logarithm of width and height, both in cells, then the
  probability that there is an object, and those of the classes. If it was exported with
  `--decode_in_inference`, center, width and height are in pixels of the input instead. Their values
  tell which: pixels, taken for logarithms, would be boxes many times the size of the input.

A person is class 0, as in COCO.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from jaxtyping import Float, Float64, UInt8

from data_pipelines.errors import InputError
from data_pipelines.footage.downloads import Download, find_model
from data_pipelines.footage.onnx_runtime import DTYPES, open_image_model
from data_pipelines.footage.tracking import LOWEST_SCORE, Detections

_ADDRESS = "https://download.openmmlab.com/mmpose/v1/projects/rtmposev1/onnx_sdk"
DETECTORS = {  # trained by OpenMMLab on Human-Art
    name: Download(f"{_ADDRESS}/{file}.zip", "Apache-2.0", None)
    for name, file in {
        "yolox-tiny": "yolox_tiny_8xb8-300e_humanart-6f3252f9",
        "yolox-m": "yolox_m_8xb8-300e_humanart-c2c7a14a",
        "yolox-x": "yolox_x_8xb8-300e_humanart-a39d44ed",
    }.items()
}
_PERSON = 0  # the class
_STRIDES = (8, 16, 32)
_GRAY = 114
_MAX_IOU = 0.45  # of two detections
_MAX_SIZE = 4  # of a box, times the larger side of the input
_MAX_PEOPLE = 300  # in a frame; the best ones, since the tracker compares each two of them
_OPEN_SIZE = 640  # pixels, for models that leave the size of their input open
_EXPECTED = "expected boxes [1, n, 5], or [1, a, 5 + classes] for the a cells of YOLOX"


@dataclasses.dataclass(frozen=True)
class Detector:
    """A loaded model.

    Attributes:
      sha256: of its file.
      input_size: height and width of its input.
    """

    sha256: str
    input_size: tuple[int, int]
    _session: Any

    def detect(self, image: UInt8[np.ndarray, "H W 3"]) -> Detections:
        """Returns the people in a picture, uint8[H, W, 3], RGB.

        Raises:
          InputError: the outputs are not those of such a model, or not finite.
        """
        model_input, scale = letterbox(image, self.input_size)
        first = self._session.get_inputs()[0]
        batch = model_input.transpose(2, 0, 1)[None].astype(DTYPES[first.type])
        outputs = self._session.run(None, {first.name: batch})
        corners, scores = _decode(outputs, self.input_size)
        if not (np.isfinite(corners).all() and np.isfinite(scores).all()):
            raise InputError("the detector returns non-finite numbers")
        return _within(corners / scale, scores, image.shape[:2])


def load_detector(value: str, *, device: str = "cpu", flag: str = "--detector") -> Detector:
    """Loads a detector and runs it once, on a gray picture.

    Args:
      value: one of the names in `DETECTORS`, which is downloaded once, or the path of an `.onnx`
        file, which must hold all weights itself.
      device: "cpu" or "cuda".
      flag: that gave the value, for messages.

    Raises:
      InputError: there is no such name or file, or it is not such a model.
      MissingPackageError: onnxruntime is not installed, or not for this device; or what downloads.
    """
    path = find_model(value, DETECTORS, flag)
    session, sha256 = open_image_model(path, device, "one picture, [1, 3, H, W]")
    shape = session.get_inputs()[0].shape
    height, width = (n if isinstance(n, int) else _OPEN_SIZE for n in shape[2:])
    detector = Detector(sha256, (height, width), session)
    try:
        detector.detect(np.full((height, width, 3), _GRAY, np.uint8))
    except Exception as error:  # onnxruntime's errors have no common base below Exception
        raise InputError(f"{path}: {error}") from error
    return detector


def letterbox(
    image: UInt8[np.ndarray, "h w 3"], size: tuple[int, int]
) -> tuple[UInt8[np.ndarray, "H W 3"], float]:
    """Returns a picture fitted to the upper left of an input, BGR, and the factor of its scale.

    Args:
      image: uint8[h, w, 3], RGB.
      size: height and width of the input.
    """
    scale = min(size[0] / image.shape[0], size[1] / image.shape[1])
    height, width = (max(int(side * scale), 1) for side in image.shape[:2])
    fitted = np.full((*size, 3), _GRAY, np.uint8)
    fitted[:height, :width] = cv2.resize(image, (width, height))[..., ::-1]
    return fitted, scale


def _decode(outputs: Sequence[np.ndarray], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Returns corners and scores, as `decode_grids` does, for either kind of outputs."""
    shapes = [output.shape for output in outputs]
    match shapes:
        case [(1, count, 5)] | [(1, count, 5), (1, _)] if shapes[-1][1] == count:
            found = outputs[0][0].astype(np.float64)
            if len(outputs) == 2:
                found = found[outputs[1][0] == _PERSON]
            return found[:, :4], found[:, 4]
        case [(1, count, channels)] if count == len(_cells(size)) and channels > 5:
            return decode_grids(outputs[0][0].astype(np.float64), size)
    raise InputError(
        f"the detector returns {', '.join(str(list(shape)) for shape in shapes)} for an input of "
        f"{size[0]}x{size[1]}; {_EXPECTED}"
    )


def _cells(size: tuple[int, int]) -> Float64[np.ndarray, "a 3"]:
    """Returns float64[a, 3], column, row and pixels of each cell of YOLOX's grids."""
    grids = []
    for stride in _STRIDES:
        rows, columns = np.mgrid[: size[0] // stride, : size[1] // stride]
        grids.append(np.stack([columns, rows, np.full_like(rows, stride)], axis=-1).reshape(-1, 3))
    return np.concatenate(grids).astype(np.float64)


def decode_grids(
    outputs: Float64[np.ndarray, "a channels"], size: tuple[int, int]
) -> tuple[Float64[np.ndarray, "n 4"], Float64[np.ndarray, " n"]]:
    """Returns the people in YOLOX's outputs, after non-maximum suppression.

    Args:
      outputs: float64[a, 5 + classes], for the cells of the grids.
      size: height and width of the input.

    Returns:
      float64[n, 4], left, top, right, bottom in pixels of the input, and scores, float64[n].

    Raises:
      InputError: boxes are far larger than the input, or far outside of it.
    """
    cells = _cells(size)
    fits = ~(outputs[:, 2:4].max(axis=1) > np.log(_MAX_SIZE * max(size) / cells[:, 2]))
    fits &= ~(np.abs(outputs[:, :2]).max(axis=1) > max(size) / cells[:, 2])
    is_decoded = fits.mean() < 0.5
    scores = outputs[:, 4] * outputs[:, 5 + _PERSON]
    chosen = scores >= LOWEST_SCORE
    outputs, cells, scores = outputs[chosen], cells[chosen], scores[chosen]
    if is_decoded:
        centers, sizes = outputs[:, :2], outputs[:, 2:4]
    elif fits[chosen].all():
        centers = (outputs[:, :2] + cells[:, :2]) * cells[:, 2:]
        sizes = np.exp(outputs[:, 2:4]) * cells[:, 2:]
    else:
        raise InputError(
            "the detector returns boxes that are neither those of cells nor in pixels; export it "
            "without --decode_in_inference"
        )
    boxes = np.concatenate([centers - sizes / 2, sizes], axis=1)
    kept = np.array(cv2.dnn.NMSBoxes(boxes.tolist(), scores.tolist(), 0.0, _MAX_IOU), int)
    boxes, scores = boxes[kept], scores[kept]
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1), scores


def _within(
    corners: Float[np.ndarray, "n 4"], scores: Float[np.ndarray, " n"], size: tuple[int, int]
) -> Detections:
    """Returns the best detections that have pixels, clipped to a frame of this size."""
    limits = [size[1], size[0]] * 2
    corners = corners.clip(0, limits)
    boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
    kept = np.flatnonzero((scores >= LOWEST_SCORE) & (boxes[:, 2:] >= 1).all(axis=1))
    kept = np.sort(kept[np.argsort(-scores[kept], kind="stable")[:_MAX_PEOPLE]])
    return Detections(boxes[kept], scores[kept])
