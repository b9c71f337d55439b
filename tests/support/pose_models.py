"""Builds tiny ONNX pose models for tests: every joint is the brightest spot of the image.

Joint j of the heatmaps is the image's brightness plus OFFSET, smoothed by a fixed kernel, times
(j + 1) / 17. With the offset even black is positive after normalization, so that borders stay dark.
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HEIGHT, WIDTH = 64, 48
GAINS = np.arange(1, 18, dtype=np.float32) / 17
OFFSET = np.float32(2.5)
_PEAK = np.array([1, 2, 3, 2, 1], np.float32)
KERNEL = np.outer(_PEAK, _PEAK) / _PEAK.sum() ** 2


def _save(path: pathlib.Path, nodes, shape, outputs, constants, dtype=TensorProto.FLOAT) -> None:
    graph = helper.make_graph(
        nodes,
        "pose",
        [helper.make_tensor_value_info("image", dtype, shape)],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.write_bytes(model.SerializeToString())


def _brightness(stride: int) -> tuple[list, dict]:
    """Returns nodes that compute `maps`, [B, 17, H / stride, W / stride]."""
    weights = GAINS[:, None, None, None] * KERNEL[None, None] / 3
    weights = np.repeat(weights, 3, axis=1).astype(np.float32)
    convolution = helper.make_node(
        "Conv", ["pixels", "weights"], ["maps"], pads=[2] * 4, strides=[stride] * 2
    )
    cast = helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT)
    add = helper.make_node("Add", ["floats", "offset"], ["pixels"])
    return [cast, add, convolution], {"weights": weights, "offset": OFFSET}


def write_heatmap_model(
    path, *, batch="batch", size=(HEIGHT, WIDTH), stride=4, dtype=TensorProto.FLOAT, channels=3
) -> pathlib.Path:
    """Writes a model whose output is [B, 17, H / stride, W / stride]."""
    nodes, constants = _brightness(stride)
    _save(path, nodes, [batch, channels, *size], ["maps"], constants, dtype)
    return path


def write_simcc_model(path, *, batch="batch", outputs=("x", "y")) -> pathlib.Path:
    """Writes a model of split ratio 2; the score of x = i / 2 is the maximum of column i // 2."""
    nodes, constants = _brightness(1)
    for name, axis, size in (("x", 2, WIDTH), ("y", 3, HEIGHT)):
        nodes += [
            helper.make_node("ReduceMax", ["maps"], [f"{name}_max"], axes=[axis], keepdims=0),
            helper.make_node("Gather", [f"{name}_max", f"{name}_at"], [name], axis=2),
        ]
        constants[f"{name}_at"] = np.arange(2 * size) // 2
    _save(path, nodes, [batch, 3, HEIGHT, WIDTH], outputs, constants)
    return path


def write_nan_model(path) -> pathlib.Path:
    """Writes a heatmap model that divides by zero."""
    nodes, constants = _brightness(4)
    nodes.append(helper.make_node("Sqrt", ["negative"], ["root"]))
    nodes.append(helper.make_node("Mul", ["maps", "root"], ["broken"]))
    constants["negative"] = np.float32([-1])
    _save(path, nodes, ["batch", 3, HEIGHT, WIDTH], ["broken"], constants)
    return path


def write_identity_model(path, shape) -> pathlib.Path:
    """Writes a model that returns its input."""
    nodes = [helper.make_node("Identity", ["image"], ["same"])]
    _save(path, nodes, shape, ["same"], {})
    return path


def with_weights_elsewhere(path: pathlib.Path) -> pathlib.Path:
    """Moves a model's weights to `weights.bin` beside it."""
    model = onnx.load(path)
    onnx.save_model(
        model, path, save_as_external_data=True, location="weights.bin", size_threshold=0
    )
    return path
