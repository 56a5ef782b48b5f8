"""Writes small ONNX graphs, in float32 or in INT8 as plain QuantizeLinear/DequantizeLinear pairs with ranges that the caller knows.

For networks that we train ourselves: their ranges are known by construction, so nothing has to be calibrated. Weights are INT8 per output
channel, symmetric; activations uint8 (x86) or int8 (Arm, microcontrollers). Needs `onnx` (extra `quantize`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from edge_runtime.errors import MissingDependency
from edge_runtime.types import Array, FloatArray

OPSET = 21
IR_VERSION = 10

Target = Literal["x86", "arm", "mcu"]


class Graph:
    """One graph in the making: every method adds a node and returns the name of its output."""

    def __init__(self, name: str, *, int8: bool, target: Target = "x86") -> None:
        self._onnx = _import_onnx()
        self._name = name
        self._int8 = int8
        self._activation: type[np.generic] = np.uint8 if target == "x86" else np.int8
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._inputs: list[Any] = []
        self._outputs: list[Any] = []
        self._scale_of: dict[str, float] = {}

    def input(self, name: str, shape: Sequence[int | str]) -> str:
        """A float32 input; a text in `shape` is a free dimension."""
        self._inputs.append(self._value(name, shape))
        return name

    def output(self, tensor: str, name: str, shape: Sequence[int | str]) -> None:
        """Gives a tensor out under a name."""
        self._nodes.append(self._onnx.helper.make_node("Identity", [tensor], [name]))
        self._outputs.append(self._value(name, shape))

    def constant(self, value: Array | Sequence[float] | float, dtype: Any = np.float32) -> str:
        """An initializer."""
        name = f"k{len(self._constants)}"
        self._constants[name] = np.asarray(value, dtype)
        return name

    def op(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Any operator of the standard set in float32."""
        output = f"t{len(self._nodes)}"
        self._nodes.append(self._onnx.helper.make_node(kind, list(inputs), [output], **attributes))
        return output

    def clip(self, x: str, limit: float) -> str:
        """To -limit..limit."""
        return self.op("Clip", x, self.constant(-limit), self.constant(limit))

    def quantized(self, x: str, low: float, high: float) -> str:
        """`x` as INT8 sees it when its range is low..high; itself in a float graph."""
        if not self._int8:
            return x
        low, high = min(low, 0.0), max(high, 0.0)
        if self._activation is np.uint8:
            scale = max(high - low, 1e-12) / 255
            zero = round(-low / scale)
        else:
            scale, zero = max(-low, high, 1e-12) / 127, 0
        return self._pair(x, scale, zero)

    def conv(self, x: str, weight: FloatArray, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
        """A convolution without bias. `weight` is [out, in, kernel]; ranges are those of its input and output."""
        given = self.quantized(x, *x_range)
        return self.quantized(self.op("Conv", given, self.weight(weight)), *y_range)

    def conv_bias(self, x: str, weight: FloatArray, bias: FloatArray, relu: bool = False, **attributes: Any) -> str:
        """A convolution of an input that is `quantized`. `weight` is [out, in, ...kernel]; `attributes` are those of the operator."""
        y = self.op("Conv", x, self.weight(weight), self._bias(x, weight, bias), **attributes)
        return self.op("Relu", y) if relu else y

    def gemm(self, x: str, weight: FloatArray, bias: FloatArray, relu: bool = False) -> str:
        """x W^T + b of an input that is `quantized`. `weight` is [out, in]; with `relu` negative results become 0."""
        y = self.op("Gemm", x, self.weight(weight), self._bias(x, weight, bias), transB=1)
        return self.op("Relu", y) if relu else y

    def save(self, path: Path) -> None:
        """Checks and writes the model; the same graph gives the same bytes."""
        helper, numpy_helper = self._onnx.helper, self._onnx.numpy_helper
        tensors = [numpy_helper.from_array(np.ascontiguousarray(value), name) for name, value in self._constants.items()]
        graph = helper.make_graph(self._nodes, self._name, self._inputs, self._outputs, tensors)
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION, producer_name="edge-runtime"
        )
        self._onnx.checker.check_model(model, full_check=True)
        path.write_bytes(model.SerializeToString(deterministic=True))

    def weight(self, weight: FloatArray) -> str:
        """A weight tensor [out, ...], stored as INT8 per output channel in an INT8 graph."""
        if not self._int8:
            return self.constant(weight)
        scale = _scales(weight)
        shaped = scale.reshape(-1, *([1] * (weight.ndim - 1)))
        stored = self.constant(np.clip(np.rint(weight / shaped), -127, 127), np.int8)
        zeros = self.constant(np.zeros(len(weight)), np.int8)
        return self.op("DequantizeLinear", stored, self.constant(scale), zeros, axis=0)

    def _bias(self, x: str, weight: FloatArray, bias: FloatArray) -> str:
        """Stored as int32 in the scale of the products, as integer kernels add it."""
        if not self._int8:
            return self.constant(bias)
        scale = _scales(weight) * self._scale_of[x]
        stored = np.clip(np.rint(bias / scale), -(2**31) + 1, 2**31 - 1)
        zeros = self.constant(np.zeros(len(bias)), np.int32)
        return self.op("DequantizeLinear", self.constant(stored, np.int32), self.constant(scale), zeros, axis=0)

    def _pair(self, x: str, scale: float, zero: int) -> str:
        parameters = self.constant(scale), self.constant(zero, self._activation)
        pair = self.op("DequantizeLinear", self.op("QuantizeLinear", x, *parameters), *parameters)
        self._scale_of[pair] = scale
        return pair

    def _value(self, name: str, shape: Sequence[int | str]) -> Any:
        return self._onnx.helper.make_tensor_value_info(name, self._onnx.TensorProto.FLOAT, list(shape))


def _scales(weight: FloatArray) -> FloatArray:
    """Of each output channel, so that its largest weight is 127."""
    largest: FloatArray = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    return np.maximum(largest, np.float32(1e-12)) / np.float32(127)


def _import_onnx() -> Any:
    try:
        import onnx
        import onnx.helper
    except ImportError as err:
        raise MissingDependency("onnx", "quantize") from err
    return onnx
