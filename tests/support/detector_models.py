"""Builds tiny ONNX detectors for tests, with the outputs of YOLOX models."""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

TOLERANCE = 60  # of a channel
MIN_PIXELS = 30
SCORE = 0.9


def write_color_model(path: pathlib.Path, colors, size) -> pathlib.Path:
    """Writes a model that returns the box of the pixels of each color, [1, colors, 5].

    Args:
      path: of the model.
      colors: RGB, which differ by more than TOLERANCE in a channel.
      size: height and width of its input.
    """
    bgr = np.asarray(colors, np.float32)[:, ::-1]
    nodes = [
        helper.make_node("Sub", ["image", "colors"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["absolute"]),
        helper.make_node("ReduceMax", ["absolute"], ["largest"], axes=[1], keepdims=0),
        helper.make_node("Less", ["largest", "tolerance"], ["mask"]),
    ]
    return _write_boxes(path, nodes, {"colors": bgr[:, :, None, None]}, size)


def write_foreground_model(path: pathlib.Path, background: int, size) -> pathlib.Path:
    """Writes a model that returns the box of all pixels unlike a gray background, [1, 1, 5]."""
    nodes = [
        helper.make_node("Sub", ["image", "background"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["absolute"]),
        helper.make_node("ReduceMax", ["absolute"], ["largest"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["largest", "tolerance"], ["mask"]),
    ]
    return _write_boxes(path, nodes, {"background": np.float32(background)}, size)


def write_constant_model(path: pathlib.Path, outputs, size) -> pathlib.Path:
    """Writes a model that returns the same arrays whatever the image."""
    names = [f"output{number}" for number in range(len(outputs))]
    nodes = [helper.make_node("Identity", [f"{name}_value"], [name]) for name in names]
    values = {f"{name}_value": output for name, output in zip(names, outputs, strict=True)}
    return _save(path, nodes, values, size, names)


def _write_boxes(path, nodes, constants, size) -> pathlib.Path:
    """Adds what computes boxes of `mask`, bool[n, H, W]."""
    nodes = [*nodes, helper.make_node("Cast", ["mask"], ["ones"], to=TensorProto.FLOAT)]
    constants = {**constants, "tolerance": np.float32(TOLERANCE)}
    for first, last, axis, length in (("top", "bottom", 2, size[0]), ("left", "right", 1, size[1])):
        nodes += [
            helper.make_node("ReduceMax", ["ones"], [f"{first}_any"], axes=[axis], keepdims=0),
            helper.make_node("Mul", [f"{first}_any", f"{first}_up"], [f"{last}_at"]),
            helper.make_node("ReduceMax", [f"{last}_at"], [last], axes=[1]),
            helper.make_node("Mul", [f"{first}_any", f"{first}_down"], [f"{first}_at"]),
            helper.make_node("ReduceMax", [f"{first}_at"], [f"{first}_from_end"], axes=[1]),
            helper.make_node("Sub", [f"{first}_length", f"{first}_from_end"], [first]),
        ]
        constants[f"{first}_up"] = np.arange(1, length + 1, dtype=np.float32)
        constants[f"{first}_down"] = np.arange(length, 0, -1, dtype=np.float32)
        constants[f"{first}_length"] = np.float32(length)
    constants |= {"axes": np.array([1, 2]), "few": np.float32(MIN_PIXELS - 0.5)}
    constants |= {"score_value": np.float32(SCORE), "first_axis": np.array([0])}
    nodes += [
        helper.make_node("ReduceSum", ["ones", "axes"], ["count"], keepdims=0),
        helper.make_node("Greater", ["count", "few"], ["enough"]),
        helper.make_node("Cast", ["enough"], ["found"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["found", "score_value"], ["flat_score"]),
        helper.make_node("Unsqueeze", ["flat_score", "second_axis"], ["score"]),
        helper.make_node("Concat", ["left", "top", "right", "bottom", "score"], ["rows"], axis=1),
        helper.make_node("Unsqueeze", ["rows", "first_axis"], ["dets"]),
    ]
    constants["second_axis"] = np.array([1])
    return _save(path, nodes, constants, size, ["dets"])


def _save(path, nodes, constants, size, outputs) -> pathlib.Path:
    graph = helper.make_graph(
        nodes,
        "detector",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, *size])],
        [helper.make_tensor_value_info(name, TensorProto.UNDEFINED, None) for name in outputs],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    path.write_bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())
    return path
