"""Makes the small models next to it: `python tests/assets/models/make.py`. Needs onnx and ai-edge-litert; the tests need neither of them.

Three compute y = x W + b on four numbers: `dense.onnx` in float32 with a free batch, `dense_int8.tflite` in INT8 with a free batch,
`dense_float.tflite` in float32 with a free batch.
`per_axis_int8.tflite` hands out its input with a scale of its own per column. `endless.tflite` loops forever when run;
`recursive.tflite` calls itself without end, so its runtime runs out of stack and dies; `hog.tflite` and `hog.onnx` want 1 GiB when run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import onnx
from ai_edge_litert import schema_py_generated as tflite
from onnx import TensorProto, helper, numpy_helper

HERE = Path(__file__).parent
WEIGHTS = np.array([[1.0, 0.0, 0.0, 0.0], [0.0, 0.5, 0.0, -0.5], [0.25, 0.25, 0.25, 0.25]], np.float32)
BIAS = np.array([0.0, 1.0, -1.0], np.float32)


def dense_onnx() -> None:
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=1)],
        "dense",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(WEIGHTS, "w"), numpy_helper.from_array(BIAS, "b")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.checker.check_model(model)
    (HERE / "dense.onnx").write_bytes(model.SerializeToString())


class TfliteModel:
    """Collects tensors, buffers and operators of one .tflite file."""

    def __init__(self) -> None:
        self.model = tflite.ModelT()
        self.model.version = 3
        self.model.buffers = [tflite.BufferT()]
        self.model.operatorCodes = []
        self.model.subgraphs = []

    def graph(self) -> Any:
        graph = tflite.SubGraphT()
        graph.tensors, graph.operators, graph.inputs, graph.outputs = [], [], [], []
        self.model.subgraphs.append(graph)
        return graph

    def tensor(
        self, graph: Any, name: str, shape: list[int], kind: int, data: Any = None, scales: Any = (), zeros: Any = (), **more: Any
    ) -> int:
        tensor = tflite.TensorT()
        tensor.name, tensor.shape, tensor.type = name, shape, kind
        tensor.buffer = 0
        if data is not None:
            buffer = tflite.BufferT()
            buffer.data = np.frombuffer(data.tobytes(), np.uint8)
            self.model.buffers.append(buffer)
            tensor.buffer = len(self.model.buffers) - 1
        if len(scales):
            tensor.quantization = tflite.QuantizationParametersT()
            tensor.quantization.scale = np.asarray(scales, np.float32)
            tensor.quantization.zeroPoint = np.asarray(zeros, np.int64)
            tensor.quantization.quantizedDimension = more.get("axis", 0)
        if "signature" in more:
            tensor.shapeSignature = more["signature"]
        graph.tensors.append(tensor)
        return len(graph.tensors) - 1

    def operator(self, graph: Any, code: int, inputs: list[int], outputs: list[int], options_type: int = 0, options: Any = None) -> None:
        entry = tflite.OperatorCodeT()
        entry.builtinCode = code
        entry.deprecatedBuiltinCode = min(code, 127)
        entry.version = 4 if code == tflite.BuiltinOperator.FULLY_CONNECTED else 1
        self.model.operatorCodes.append(entry)
        operator = tflite.OperatorT()
        operator.opcodeIndex = len(self.model.operatorCodes) - 1
        operator.inputs, operator.outputs = inputs, outputs
        operator.builtinOptionsType, operator.builtinOptions = options_type, options
        graph.operators.append(operator)

    def save(self, name: str) -> None:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self.model.Pack(builder), b"TFL3")
        (HERE / name).write_bytes(bytes(builder.Output()))


def dense_tflite() -> None:
    made = TfliteModel()
    graph = made.graph()
    scale_x, scale_w, scale_y = 0.0625, 1 / 128, 0.0625
    weights = np.clip(np.rint(WEIGHTS / scale_w), -127, 127).astype(np.int8)
    bias = np.rint(BIAS / (scale_x * scale_w)).astype(np.int32)
    x = made.tensor(graph, "x", [1, 4], tflite.TensorType.INT8, scales=[scale_x], zeros=[0], signature=[-1, 4])
    w = made.tensor(graph, "w", [3, 4], tflite.TensorType.INT8, weights, [scale_w], [0])
    b = made.tensor(graph, "b", [3], tflite.TensorType.INT32, bias, [scale_x * scale_w], [0])
    y = made.tensor(graph, "y", [1, 3], tflite.TensorType.INT8, scales=[scale_y], zeros=[-10], signature=[-1, 3])
    options = tflite.FullyConnectedOptionsT()
    made.operator(graph, tflite.BuiltinOperator.FULLY_CONNECTED, [x, w, b], [y], tflite.BuiltinOptions.FullyConnectedOptions, options)
    graph.inputs, graph.outputs = [x], [y]
    made.save("dense_int8.tflite")


def dense_float_tflite() -> None:
    made = TfliteModel()
    graph = made.graph()
    x = made.tensor(graph, "x", [1, 4], tflite.TensorType.FLOAT32, signature=[-1, 4])
    w = made.tensor(graph, "w", [3, 4], tflite.TensorType.FLOAT32, WEIGHTS)
    b = made.tensor(graph, "b", [3], tflite.TensorType.FLOAT32, BIAS)
    y = made.tensor(graph, "y", [1, 3], tflite.TensorType.FLOAT32, signature=[-1, 3])
    options = tflite.FullyConnectedOptionsT()
    made.operator(graph, tflite.BuiltinOperator.FULLY_CONNECTED, [x, w, b], [y], tflite.BuiltinOptions.FullyConnectedOptions, options)
    graph.inputs, graph.outputs = [x], [y]
    made.save("dense_float.tflite")


def per_axis_tflite() -> None:
    made = TfliteModel()
    graph = made.graph()
    scales, zeros = [0.5, 0.25, 2.0], [0, 0, 0]
    x = made.tensor(graph, "x", [1, 3], tflite.TensorType.INT8, scales=scales, zeros=zeros, axis=1)
    y = made.tensor(graph, "y", [1, 3], tflite.TensorType.INT8, scales=scales, zeros=zeros, axis=1)
    shape = made.tensor(graph, "shape", [2], tflite.TensorType.INT32, np.array([1, 3], np.int32))
    made.operator(graph, tflite.BuiltinOperator.RESHAPE, [x, shape], [y], tflite.BuiltinOptions.ReshapeOptions, tflite.ReshapeOptionsT())
    graph.inputs, graph.outputs = [x], [y]
    made.save("per_axis_int8.tflite")


def endless_tflite() -> None:
    made = TfliteModel()
    main, condition, body = made.graph(), made.graph(), made.graph()
    x = made.tensor(main, "x", [1], tflite.TensorType.FLOAT32)
    y = made.tensor(main, "y", [1], tflite.TensorType.FLOAT32)
    options = tflite.WhileOptionsT()
    options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
    made.operator(main, tflite.BuiltinOperator.WHILE, [x], [y], tflite.BuiltinOptions.WhileOptions, options)
    main.inputs, main.outputs = [x], [y]
    value = made.tensor(condition, "value", [1], tflite.TensorType.FLOAT32)
    true = made.tensor(condition, "true", [1], tflite.TensorType.BOOL)
    made.operator(
        condition, tflite.BuiltinOperator.EQUAL, [value, value], [true], tflite.BuiltinOptions.EqualOptions, tflite.EqualOptionsT()
    )
    condition.inputs, condition.outputs = [value], [true]
    before = made.tensor(body, "before", [1], tflite.TensorType.FLOAT32)
    after = made.tensor(body, "after", [1], tflite.TensorType.FLOAT32)
    made.operator(body, tflite.BuiltinOperator.ABS, [before], [after], tflite.BuiltinOptions.AbsOptions, tflite.AbsOptionsT())
    body.inputs, body.outputs = [before], [after]
    made.save("endless.tflite")


def recursive_tflite() -> None:
    made = TfliteModel()
    main, condition, body = made.graph(), made.graph(), made.graph()
    for graph in (main, body):
        x = made.tensor(graph, "x", [1], tflite.TensorType.FLOAT32)
        y = made.tensor(graph, "y", [1], tflite.TensorType.FLOAT32)
        options = tflite.WhileOptionsT()
        options.condSubgraphIndex, options.bodySubgraphIndex = 1, 2
        made.operator(graph, tflite.BuiltinOperator.WHILE, [x], [y], tflite.BuiltinOptions.WhileOptions, options)
        graph.inputs, graph.outputs = [x], [y]
    value = made.tensor(condition, "value", [1], tflite.TensorType.FLOAT32)
    true = made.tensor(condition, "true", [1], tflite.TensorType.BOOL)
    made.operator(
        condition, tflite.BuiltinOperator.EQUAL, [value, value], [true], tflite.BuiltinOptions.EqualOptions, tflite.EqualOptionsT()
    )
    condition.inputs, condition.outputs = [value], [true]
    made.save("recursive.tflite")


def hog_tflite() -> None:
    made = TfliteModel()
    graph = made.graph()
    x = made.tensor(graph, "x", [1], tflite.TensorType.FLOAT32)
    shape = made.tensor(graph, "shape", [2], tflite.TensorType.INT32, np.array([2**16, 2**12], np.int32))
    y = made.tensor(graph, "y", [2**16, 2**12], tflite.TensorType.FLOAT32)
    scalar = made.tensor(graph, "scalar", [], tflite.TensorType.FLOAT32)
    empty = made.tensor(graph, "empty", [0], tflite.TensorType.INT32, np.zeros(0, np.int32))
    made.operator(
        graph, tflite.BuiltinOperator.RESHAPE, [x, empty], [scalar], tflite.BuiltinOptions.ReshapeOptions, tflite.ReshapeOptionsT()
    )
    made.operator(graph, tflite.BuiltinOperator.FILL, [shape, scalar], [y], tflite.BuiltinOptions.FillOptions, tflite.FillOptionsT())
    graph.inputs, graph.outputs = [x], [y]
    made.save("hog.tflite")


def hog_onnx() -> None:
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "hog",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])],
        [numpy_helper.from_array(np.array([2**28], np.int64), "size")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (HERE / "hog.onnx").write_bytes(model.SerializeToString())


if __name__ == "__main__":
    dense_onnx()
    dense_tflite()
    dense_float_tflite()
    per_axis_tflite()
    endless_tflite()
    recursive_tflite()
    hog_tflite()
    hog_onnx()
