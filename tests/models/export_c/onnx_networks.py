"""Random quantized ONNX networks: every operator of the firmware, with strides, paddings, dilations, branches and ranges by chance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 21
IR_VERSION = 10


@dataclass(frozen=True)
class Stored:
    """A quantized tensor while the network is made: its name, shape without batch, scale and zero point."""

    name: str
    shape: tuple[int, ...]
    scale: np.float32
    zero: int


class RandomNetwork:
    """One network from a seed: a signal or a picture in, a vector out, all in int8 (or uint8 with `unsigned`)."""

    def __init__(self, seed: int, *, unsigned: bool = False) -> None:
        self._rng = np.random.default_rng(seed)
        self._unsigned = unsigned
        self._counted = False
        self._nodes: list[Any] = []
        self._constants: dict[str, Any] = {}
        self._plane = bool(self._rng.integers(2))
        shape = (int(self._rng.integers(1, 5)), *((7, 9) if self._plane else (int(self._rng.integers(20, 40)),)))
        self.input = Stored("x", shape, self._scale(0.05), self._zero())
        last = self._body(self.input)
        self.output = self._head(last)

    def save(self, path: Path) -> Path:
        kind = TensorProto.UINT8 if self._unsigned else TensorProto.INT8
        graph = helper.make_graph(
            self._nodes,
            "random",
            [helper.make_tensor_value_info("x", kind, ["n", *self.input.shape])],
            [helper.make_tensor_value_info(self.output.name, TensorProto.INT64 if self._counted else kind, None)],
            [numpy_helper.from_array(value, name) for name, value in self._constants.items()],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION), path)
        return path

    def inputs(self, count: int) -> Any:
        low, kind = (0, np.uint8) if self._unsigned else (-128, np.int8)
        return self._rng.integers(low, low + 256, (count, *self.input.shape)).astype(kind)

    def _body(self, x: Stored) -> Stored:
        steps = [self._conv, self._conv, self._depthwise, self._max_pool, self._average_pool, self._branch, self._clipped]
        x = self._conv(x)
        for index in self._rng.integers(0, len(steps), self._rng.integers(1, 4)):
            x = steps[index](x)
        return x

    def _head(self, x: Stored) -> Stored:
        if self._rng.integers(2):
            x = self._global(x)
        x = self._flat(x)
        x = self._dense(x, int(self._rng.integers(3, 12)))
        return (self._softmax, self._argmax, lambda x: x)[int(self._rng.integers(3))](x)

    def _conv(self, x: Stored) -> Stored:
        return self._convolved(x, int(self._rng.integers(2, 9)), 1)

    def _depthwise(self, x: Stored) -> Stored:
        if x.shape[0] == 1:
            return self._conv(x)
        return self._convolved(x, x.shape[0] * int(self._rng.integers(1, 3)), x.shape[0])

    def _convolved(self, x: Stored, out: int, group: int) -> Stored:
        kernel = [int(min(self._rng.integers(1, 5), size)) for size in x.shape[1:]]
        stride = [int(self._rng.integers(1, 3)) for _ in kernel]
        dilation = [int(self._rng.integers(1, 3)) if (k - 1) * 2 < size else 1 for k, size in zip(kernel, x.shape[1:], strict=True)]
        pads = [int(self._rng.integers(0, (k - 1) * d + 1)) for k, d in zip(kernel, dilation, strict=True)]
        after = [int(self._rng.integers(0, (k - 1) * d + 1)) for k, d in zip(kernel, dilation, strict=True)]
        weights = self._rng.integers(-64, 64, (out, x.shape[0] // group, *kernel)).astype(np.int8)
        made = self._weighted("Conv", x, weights, pads=[*pads, *after], strides=stride, dilations=dilation, group=group)
        reach = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        sizes = [(n + a + b - r) // s + 1 for n, a, b, r, s in zip(x.shape[1:], pads, after, reach, stride, strict=True)]
        return self._quantized(made, (out, *sizes), self._range(x, weights), relu=bool(self._rng.integers(2)))

    def _dense(self, x: Stored, out: int) -> Stored:
        weights = self._rng.integers(-64, 64, (out, x.shape[0])).astype(np.int8)
        return self._quantized(self._weighted("Gemm", x, weights, transB=1), (out,), self._range(x, weights))

    def _weighted(self, operator: str, x: Stored, weights: Any, **attributes: Any) -> str:
        out = len(weights)
        scales = self._rng.uniform(0.002, 0.01, out).astype(np.float32)
        bias = self._rng.integers(-2000, 2000, out).astype(np.int32)
        products = (scales * x.scale).astype(np.float32)
        w = self._node("DequantizeLinear", self._keep(weights), self._keep(scales), self._keep(np.zeros(out, np.int8)), axis=0)
        b = self._node("DequantizeLinear", self._keep(bias), self._keep(products), self._keep(np.zeros(out, np.int32)), axis=0)
        return self._node(operator, self._real(x), w, b, **attributes)

    def _range(self, x: Stored, weights: Any) -> float:
        """About the largest result, so that outputs use their range and some saturate."""
        return float(x.scale * 0.005 * 64 * 40 * np.sqrt(np.prod(weights.shape[1:])))

    def _max_pool(self, x: Stored) -> Stored:
        kernel = [int(min(2, size)) for size in x.shape[1:]]
        made = self._node("MaxPool", self._real(x), kernel_shape=kernel, strides=kernel)
        return self._same(made, x, (x.shape[0], *(size // k for size, k in zip(x.shape[1:], kernel, strict=True))))

    def _average_pool(self, x: Stored) -> Stored:
        kernel = [int(min(self._rng.integers(2, 4), size)) for size in x.shape[1:]]
        made = self._node("AveragePool", self._real(x), kernel_shape=kernel, strides=kernel)
        shape = (x.shape[0], *(size // k for size, k in zip(x.shape[1:], kernel, strict=True)))
        if self._rng.integers(2):
            return self._same(made, x, shape)
        return self._quantized(made, shape, float(x.scale) * 100)

    def _global(self, x: Stored) -> Stored:
        made = self._node("GlobalAveragePool", self._real(x))
        return self._quantized(made, (x.shape[0], *[1] * (len(x.shape) - 1)), float(x.scale) * 60)

    def _branch(self, x: Stored) -> Stored:
        """x + f(x), as a residual block adds."""
        weights = self._rng.integers(-64, 64, (x.shape[0], x.shape[0], *[3] * (len(x.shape) - 1))).astype(np.int8)
        pads = [1] * (2 * (len(x.shape) - 1))
        y = self._quantized(self._weighted("Conv", x, weights, pads=pads), x.shape, self._range(x, weights))
        total = float(x.scale + y.scale) * 80
        return self._quantized(self._node("Add", self._real(x), self._real(y)), x.shape, total)

    def _clipped(self, x: Stored) -> Stored:
        return self._quantized(self._node("Clip", self._real(x), self._keep(np.float32(-2.0)), self._keep(np.float32(3.0))), x.shape, 3.0)

    def _flat(self, x: Stored) -> Stored:
        return self._same(self._node("Flatten", self._real(x)), x, (int(np.prod(x.shape)),))

    def _softmax(self, x: Stored) -> Stored:
        made = self._node("Softmax", self._real(x), axis=1)
        scale = np.float32(1 / 256) if self._rng.integers(4) else self._scale(1 / 128)
        return self._store(made, x.shape, scale, 0 if self._unsigned else -128)

    def _argmax(self, x: Stored) -> Stored:
        self._counted = True
        return Stored(self._node("ArgMax", self._real(x), axis=1, keepdims=0), (1,), np.float32(1), 0)

    def _quantized(self, real: str, shape: tuple[int, ...], largest: float, *, relu: bool = False) -> Stored:
        """With a scale by chance; a ReLU whose zero point is the least value, as onnxruntime fuses it."""
        scale = np.float32(largest * self._rng.uniform(0.7, 1.3) / 127)
        if not relu:
            return self._store(real, shape, scale, self._zero())
        return self._store(self._node("Relu", real), shape, scale, 0 if self._unsigned else -128)

    def _same(self, real: str, x: Stored, shape: tuple[int, ...]) -> Stored:
        return self._store(real, shape, x.scale, x.zero)

    def _store(self, real: str, shape: tuple[int, ...], scale: np.float32, zero: int) -> Stored:
        name = self._node("QuantizeLinear", real, self._keep(scale), self._keep(self._point(zero)))
        return Stored(name, shape, scale, zero)

    def _real(self, x: Stored) -> str:
        return self._node("DequantizeLinear", x.name, self._keep(x.scale), self._keep(self._point(x.zero)))

    def _point(self, zero: int) -> Any:
        return np.uint8(zero) if self._unsigned else np.int8(zero)

    def _scale(self, around: float) -> np.float32:
        return np.float32(around * self._rng.uniform(0.5, 2.0))

    def _zero(self) -> int:
        return int(self._rng.integers(-100, 100)) + 128 * self._unsigned

    def _keep(self, value: Any) -> str:
        name = f"k{len(self._constants)}"
        self._constants[name] = np.asarray(value)
        return name

    def _node(self, operator: str, *inputs: str, **attributes: Any) -> str:
        name = f"t{len(self._nodes)}"
        self._nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name
