"""Random INT8 .tflite networks: every operator of the firmware, with strides, paddings, dilations, branches and ranges by chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as tflite

_SAME, _VALID = 0, 1
_BIAS = 2_000
_VERSIONS = {"FULLY_CONNECTED": 4, "CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "RESHAPE": 1}


@dataclass(frozen=True)
class Stored:
    """A tensor while the network is made: its index, shape without batch, scale and zero point."""

    index: int
    shape: tuple[int, ...]
    scale: float
    zero: int


class RandomNetwork:
    """One network from a seed: a picture or a signal in, a vector out; `unsigned`: uint8 in, requantized at once. `softmax`: at its end."""

    def __init__(self, seed: int, *, unsigned: bool = False, softmax: bool = False) -> None:
        self._ends_in_softmax = softmax
        self._rng = np.random.default_rng(seed)
        self._model = tflite.ModelT()
        self._model.version, self._model.operatorCodes, self._model.buffers = 3, [], [tflite.BufferT()]
        self._graph = tflite.SubGraphT()
        self._graph.tensors, self._graph.operators = [], []
        self._model.subgraphs = [self._graph]
        self._kind = np.uint8 if unsigned else np.int8
        height, width = ((7, 9), (1, int(self._rng.integers(20, 40))))[int(self._rng.integers(2))]
        self.shape = (height, width, int(self._rng.integers(1, 5)))
        x = self._input()
        self.output = self._head(self._body(x))
        self._graph.inputs, self._graph.outputs = [0], [self.output.index]

    def save(self, path: Path) -> Path:
        builder = flatbuffers.Builder(1024)
        builder.Finish(self._model.Pack(builder), b"TFL3")
        path.write_bytes(bytes(builder.Output()))
        return path

    def inputs(self, count: int) -> Any:
        limits = np.iinfo(self._kind)
        return self._rng.integers(limits.min, limits.max + 1, (count, *self.shape)).astype(self._kind)

    def _input(self) -> Stored:
        if self._kind == np.int8:
            return self._tensor(self.shape, self._scale(0.05), self._zero())
        x = self._tensor(self.shape, self._scale(0.05), self._zero() + 128, tflite.TensorType.UINT8)
        return self._operator("QUANTIZE", [x.index], self._tensor(self.shape, self._scale(0.06), self._zero()), "QuantizeOptions")

    def _body(self, x: Stored) -> Stored:
        steps = [self._conv, self._conv, self._depthwise, self._max_pool, self._average_pool, self._branch, self._relu, self._moved]
        x = self._conv(x)
        for index in self._rng.integers(0, len(steps), self._rng.integers(1, 5)):
            x = steps[index](x)
        return x

    def _head(self, x: Stored) -> Stored:
        x = self._dense(self._flat(x), int(self._rng.integers(3, 12)))
        if self._ends_in_softmax:
            return self._softmax(x)
        return x if self._rng.integers(3) else self._argmax(x)

    def _conv(self, x: Stored) -> Stored:
        out = int(self._rng.integers(2, 9))
        options = self._slide(tflite.Conv2DOptionsT(), x)
        weights = self._rng.integers(-127, 128, (out, *self._kernel, x.shape[2])).astype(np.int8)
        inputs = self._weighted(x, weights, 0)
        made = self._tensor((*self._slid, out), self._range(x, weights.size // out), self._zero())
        return self._operator("CONV_2D", inputs, made, "Conv2DOptions", options)

    def _depthwise(self, x: Stored) -> Stored:
        options = self._slide(tflite.DepthwiseConv2DOptionsT(), x)
        options.depthMultiplier = int(self._rng.integers(1, 3))
        out = x.shape[2] * options.depthMultiplier
        weights = self._rng.integers(-127, 128, (1, *self._kernel, out)).astype(np.int8)
        inputs = self._weighted(x, weights, 3)
        made = self._tensor((*self._slid, out), self._range(x, weights.size // out), self._zero())
        return self._operator("DEPTHWISE_CONV_2D", inputs, made, "DepthwiseConv2DOptions", options)

    def _dense(self, x: Stored, out: int) -> Stored:
        weights = self._rng.integers(-127, 128, (out, x.shape[0])).astype(np.int8)
        inputs = self._weighted(x, weights, 0, channels=1)
        options = tflite.FullyConnectedOptionsT()
        options.fusedActivationFunction = self._activation()
        return self._operator(
            "FULLY_CONNECTED", inputs, self._tensor((out,), self._range(x, x.shape[0]), self._zero()), "FullyConnectedOptions", options
        )

    def _slide(self, options: Any, x: Stored) -> Any:
        """Draws kernel, stride, dilation and padding; `_kernel` and `_slid` are the kernel and the size of the result."""
        sizes = x.shape[:2]
        self._kernel = tuple(int(min(self._rng.integers(1, 5), size)) for size in sizes)
        wide = int(self._rng.integers(4)) == 0 and all((k - 1) * 2 < size for k, size in zip(self._kernel, sizes, strict=True))
        dilation = 2 if wide else 1
        strides = [1 if wide else int(self._rng.integers(1, 3)) for _ in sizes]
        if type(options) is tflite.DepthwiseConv2DOptionsT:
            strides[1] = strides[0]
        options.padding = int(self._rng.integers(2))
        options.strideH, options.strideW = strides
        options.dilationHFactor = options.dilationWFactor = dilation
        options.fusedActivationFunction = self._activation()
        reach = [(k - 1) * dilation + 1 if options.padding == _VALID else 1 for k in self._kernel]
        self._slid = tuple((size - r) // s + 1 for size, r, s in zip(sizes, reach, strides, strict=True))
        return options

    def _weighted(self, x: Stored, weights: Any, axis: int, channels: int | None = None) -> list[int]:
        out = weights.shape[axis]
        scales = self._rng.uniform(0.002, 0.01, channels or out).astype(np.float32)
        kept = self._constant(weights, scales, axis)
        bias = self._constant(self._rng.integers(-_BIAS, _BIAS, out).astype(np.int32), scales * np.float32(x.scale), 0)
        return [x.index, kept, bias]

    def _max_pool(self, x: Stored) -> Stored:
        return self._pooled(x, "MAX_POOL_2D", int(self._rng.integers(2)))

    def _average_pool(self, x: Stored) -> Stored:
        return self._pooled(x, "AVERAGE_POOL_2D", _VALID)

    def _pooled(self, x: Stored, name: str, padding: int) -> Stored:
        options = tflite.Pool2DOptionsT()
        kernel = [int(min(self._rng.integers(1, 5), size)) for size in x.shape[:2]]
        strides = [int(self._rng.integers(1, 3)) for _ in kernel]
        options.padding, options.fusedActivationFunction = padding, self._activation()
        (options.filterHeight, options.filterWidth), (options.strideH, options.strideW) = kernel, strides
        reach = kernel if padding == _VALID else [1, 1]
        sizes = [(size - r) // s + 1 for size, r, s in zip(x.shape[:2], reach, strides, strict=True)]
        return self._operator(name, [x.index], self._tensor((*sizes, x.shape[2]), x.scale, x.zero), "Pool2DOptions", options)

    def _branch(self, x: Stored) -> Stored:
        """x + relu(x) under another scale, as a residual block adds."""
        options = tflite.AddOptionsT()
        options.fusedActivationFunction = self._activation()
        y = self._moved(x)
        made = self._tensor(x.shape, (x.scale + y.scale) * 0.7, self._zero())
        return self._operator("ADD", [x.index, y.index], made, "AddOptions", options)

    def _relu(self, x: Stored) -> Stored:
        made = self._tensor(x.shape, x.scale * float(self._rng.uniform(0.5, 1.2)), -128)
        return self._operator("RELU", [x.index], made)

    def _moved(self, x: Stored) -> Stored:
        made = self._tensor(x.shape, x.scale * float(self._rng.uniform(0.5, 1.5)), self._zero())
        return self._operator("QUANTIZE", [x.index], made, "QuantizeOptions", tflite.QuantizeOptionsT())

    def _flat(self, x: Stored) -> Stored:
        count = int(np.prod(x.shape))
        shape = self._constant(np.array([1, count], np.int32), [], 0)
        return self._operator("RESHAPE", [x.index, shape], self._tensor((count,), x.scale, x.zero), "ReshapeOptions")

    def _softmax(self, x: Stored) -> Stored:
        options = tflite.SoftmaxOptionsT()
        options.beta = 1.0
        return self._operator("SOFTMAX", [x.index], self._tensor(x.shape, 1 / 256, -128), "SoftmaxOptions", options)

    def _argmax(self, x: Stored) -> Stored:
        options = tflite.ArgMaxOptionsT()
        options.outputType = tflite.TensorType.INT32
        axis = self._constant(np.array(1, np.int32), [], 0)
        made = self._tensor((), 0.0, 0, tflite.TensorType.INT32)
        return self._operator("ARG_MAX", [x.index, axis], made, "ArgMaxOptions", options)

    def _operator(self, name: str, inputs: list[int], made: Stored, options_name: str = "", options: Any = None) -> Stored:
        code = tflite.OperatorCodeT()
        code.builtinCode = getattr(tflite.BuiltinOperator, name)
        code.deprecatedBuiltinCode = min(code.builtinCode, 127)
        code.version = _VERSIONS.get(name, 2)
        self._model.operatorCodes.append(code)
        entry = tflite.OperatorT()
        entry.opcodeIndex, entry.inputs, entry.outputs = len(self._model.operatorCodes) - 1, inputs, [made.index]
        if options_name:
            entry.builtinOptionsType = getattr(tflite.BuiltinOptions, options_name)
            entry.builtinOptions = options or getattr(tflite, f"{options_name}T")()
        self._graph.operators.append(entry)
        return made

    def _tensor(self, shape: tuple[int, ...], scale: float, zero: int, kind: int = tflite.TensorType.INT8) -> Stored:
        return Stored(self._declare((1, *shape), kind, [scale] if scale else [], [zero], 0), shape, scale, zero)

    def _constant(self, values: Any, scales: Any, axis: int) -> int:
        buffer = tflite.BufferT()
        buffer.data = np.frombuffer(values.tobytes(), np.uint8)
        self._model.buffers.append(buffer)
        kind = tflite.TensorType.INT8 if values.dtype == np.int8 else tflite.TensorType.INT32
        index = self._declare(values.shape, kind, scales, [0] * len(scales), axis)
        self._graph.tensors[index].buffer = len(self._model.buffers) - 1
        return index

    def _declare(self, shape: tuple[int, ...], kind: int, scales: Any, zeros: Any, axis: int) -> int:
        tensor = tflite.TensorT()
        tensor.name, tensor.shape, tensor.type, tensor.buffer = f"t{len(self._graph.tensors)}", list(shape), kind, 0
        if len(scales):
            tensor.quantization = tflite.QuantizationParametersT()
            tensor.quantization.scale = np.asarray(scales, np.float32)
            tensor.quantization.zeroPoint = np.asarray(zeros, np.int64)
            tensor.quantization.quantizedDimension = axis
        self._graph.tensors.append(tensor)
        return len(self._graph.tensors) - 1

    def _activation(self) -> int:
        names = ("NONE", "NONE", "RELU", "RELU6", "RELU_N1_TO_1")
        return int(getattr(tflite.ActivationFunctionType, names[int(self._rng.integers(len(names)))]))

    def _range(self, x: Stored, taps: int) -> float:
        """A scale for which results use the range and some saturate."""
        return float(x.scale * 0.006 * 74 * 74 * np.sqrt(taps) * self._rng.uniform(0.5, 1.5) / 127)

    def _scale(self, around: float) -> float:
        return float(np.float32(around * self._rng.uniform(0.5, 2.0)))

    def _zero(self) -> int:
        return int(self._rng.integers(-100, 100))
