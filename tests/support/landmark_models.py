"""Builds tiny TFLite models for tests: every joint is the only bright pixel of the image.

A fully connected layer multiplies each pixel with its column and its row, so that the sum over an
image with one pixel of value 1 is where that pixel is.
"""

import pathlib

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema

SIZE = 16


def write_blazepose(path: pathlib.Path, *, size: int = SIZE) -> pathlib.Path:
    """Writes a model of 195 numbers and a flag, which is the brightness of the pixel.

    Landmark k is k / 64 to the right of the pixel; its visibility is the logit k / 10.
    """
    weights, bias = np.zeros((195, size, size, 3)), np.zeros(195)
    columns, rows = np.arange(size)[None, :, None] / 3, np.arange(size)[:, None, None] / 3
    for landmark in range(39):
        weights[5 * landmark], weights[5 * landmark + 1] = columns, rows
        bias[5 * landmark], bias[5 * landmark + 3] = landmark / 64, landmark / 10
    flag = np.full((1, size, size, 3), 1 / 3)
    return _write(path, size, [(weights, bias, [1, 195]), (flag, np.zeros(1), [1, 1])])


def write_movenet(path: pathlib.Path, *, size: int = SIZE, outputs: int = 1) -> pathlib.Path:
    """Writes a model of y, x as shares of the image and a score of joint / 10 - 0.1."""
    weights, bias = np.zeros((51, size, size, 3)), np.zeros(51)
    for joint in range(17):
        weights[3 * joint] = np.arange(size)[:, None, None] / size / 255 / 3
        weights[3 * joint + 1] = np.arange(size)[None, :, None] / size / 255 / 3
        bias[3 * joint + 2] = joint / 10 - 0.1
    return _write(path, size, [(weights, bias, [1, 1, 17, 3])] * outputs)


def _write(path: pathlib.Path, size: int, layers) -> pathlib.Path:
    """Writes a model with one fully connected layer, reshaped, for each output."""
    model, graph = schema.ModelT(), schema.SubGraphT()
    model.version, model.subgraphs, model.buffers = 3, [graph], [schema.BufferT()]
    model.operatorCodes = [
        _code(schema.BuiltinOperator.FULLY_CONNECTED),
        _code(schema.BuiltinOperator.RESHAPE),
    ]
    graph.tensors, graph.operators, graph.outputs = [], [], []

    def tensor(name, shape, values=None, kind=schema.TensorType.FLOAT32):
        new = schema.TensorT()
        new.name, new.shape, new.type, new.buffer = name, list(shape), kind, 0
        if values is not None:
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(values.tobytes(), np.uint8)
            model.buffers.append(buffer)
            new.buffer = len(model.buffers) - 1
        graph.tensors.append(new)
        return len(graph.tensors) - 1

    def operator(code, inputs, outputs, kind, options):
        new = schema.OperatorT()
        new.opcodeIndex, new.inputs, new.outputs = code, inputs, outputs
        new.builtinOptionsType, new.builtinOptions = kind, options
        graph.operators.append(new)

    image = tensor("image", [1, size, size, 3])
    graph.inputs = [image]
    for number, (weights, bias, shape) in enumerate(layers):
        flat = weights.reshape(len(bias), -1).astype(np.float32)
        weight_tensor = tensor(f"weights{number}", flat.shape, flat)
        bias_tensor = tensor(f"bias{number}", bias.shape, bias.astype(np.float32))
        sums = tensor(f"sums{number}", [1, len(bias)])
        operator(
            *(0, [image, weight_tensor, bias_tensor], [sums]),
            *(schema.BuiltinOptions.FullyConnectedOptions, schema.FullyConnectedOptionsT()),
        )
        dims = np.array(shape, np.int32)
        dims_tensor = tensor(f"shape{number}", dims.shape, dims, schema.TensorType.INT32)
        reshaped = tensor(f"output{number}", shape)
        options = schema.ReshapeOptionsT()
        options.newShape = shape
        operator(1, [sums, dims_tensor], [reshaped], schema.BuiltinOptions.ReshapeOptions, options)
        graph.outputs.append(reshaped)
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    return path


def _code(operator: int):
    code = schema.OperatorCodeT()
    code.builtinCode = code.deprecatedBuiltinCode = operator
    code.version = 1
    return code
