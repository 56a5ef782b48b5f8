"""Reads an INT8 TensorFlow Lite model as a network of the firmware's operators, and refuses by name what is none of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.types import Array
from models.export_c.network import Layer, Network, Operator, Rounding, Shape, Tensor, Window, refuse
from models.export_c.rounding import multipliers, rounded_twice
from models.export_c.tflite_file import File, FileOperator, FileTensor, open_file

_NONE, _RELU, _RELU_N1_TO_1, _RELU6 = 0, 1, 2, 3
_SAME = 0
_MOST_CLASSES = 128


def read(path: Path, rounding: Rounding) -> Network:
    """Raises ModelRefused naming the operator and its output."""
    return _Reader(open_file(path), rounding).network()


class _Reader:
    def __init__(self, file: File, rounding: Rounding) -> None:
        self._file = file
        self._double = rounding is not Rounding.HALF_EVEN
        self.rounding = rounding
        self._tensors: dict[str, Tensor] = {}
        self._unsigned: dict[str, bool] = {}
        self._layers: list[Layer] = []

    def network(self) -> Network:
        if len(self._file.inputs) != 1 or len(self._file.outputs) != 1:
            raise ModelRefused(RefusalReason.WRONG_SHAPE, "expected a model of one input and one output")
        given, made = self._file.inputs[0], self._file.outputs[0]
        if given.dtype in (np.int8, np.uint8):
            self._enter(given)
        for operator in self._file.operators:
            self._take(operator)
        if made.name not in self._tensors or not self._layers:
            raise ModelRefused(RefusalReason.WRONG_SHAPE, "the model's output is not computed from its input in INT8")
        first = self._layers[0].inputs[0].name
        entry = next(tensor for tensor in self._tensors.values() if tensor.name == first)
        notes = [
            f"`{layer.node}` is not computed in this way where the rounding comes from: results may differ by a step"
            for layer in self._layers
            if not layer.exact
        ]
        last = self._tensors[made.name]
        return Network(
            self._layers, entry, last, input_unsigned=self._unsigned[first], output_unsigned=self._unsigned[made.name], notes=notes
        )

    def _take(self, operator: FileOperator) -> None:
        make = _LAYERS.get(operator.name)
        if operator.name in _RESHAPES:
            self._alias(operator)
        elif operator.name in ("QUANTIZE", "DEQUANTIZE"):
            self._convert(operator)
        elif make is None:
            raise refuse(operator.label, operator.name, f"the node's firmware has {', '.join(sorted([*_LAYERS, *_RESHAPES]))}")
        else:
            self._layers.append(make(self, operator))

    def _enter(self, file: FileTensor) -> Tensor:
        """A tensor of activations, in int8."""
        if file.dtype not in (np.int8, np.uint8) or len(file.scales) != 1 or not file.scales[0] > 0:
            raise refuse(file.name, "tensor", "expected int8 or uint8 with one scale")
        unsigned = file.dtype == np.uint8
        zero = int(file.zeros[0]) - 128 * unsigned
        if not -128 <= zero <= 127:
            raise refuse(file.name, "tensor", f"its zero point {int(file.zeros[0])} is out of range")
        found = Tensor(file.name, _shape(file), np.float32(file.scales[0]), zero)
        self._tensors[file.name], self._unsigned[file.name] = found, unsigned
        return found

    def given(self, operator: FileOperator, index: int = 0) -> Tensor:
        """An input that is computed."""
        file = operator.inputs[index] if index < len(operator.inputs) else None
        found = None if file is None else self._tensors.get(file.name)
        if found is None:
            raise refuse(operator.label, operator.name, f"its input {index} is a constant, or is not INT8")
        return found

    def layer(self, operator: FileOperator, kind: Operator, *inputs: Tensor, activation: int = _NONE, exact: bool = True) -> Layer:
        """A layer without weights, clamped as its fused activation says."""
        made = self._enter(operator.outputs[0])
        low, high = _bounds(operator, activation, made)
        return Layer(kind, operator.label, inputs, made, low=low, high=high, exact=exact)

    def counted(self, file: FileTensor) -> Tensor:
        """An index, which an argmax makes: a small whole number."""
        made = Tensor(file.name, Shape(1, 1, 1), np.float32(1), 0)
        self._tensors[file.name], self._unsigned[file.name] = made, False
        return made

    @property
    def double(self) -> bool:
        return self._double

    def _alias(self, operator: FileOperator) -> None:
        """The same bytes under another shape."""
        given, file = self.given(operator), operator.outputs[0]
        shape = _shape(file)
        if shape.count != given.shape.count:
            raise refuse(operator.label, operator.name, f"from {given.shape.count} to {shape.count} values")
        self._tensors[file.name] = replace(given, shape=shape)
        self._unsigned[file.name] = self._unsigned[given.name]

    def _convert(self, operator: FileOperator) -> None:
        """Float32 at the very beginning or end stays outside; from one scale to another is a table."""
        file, made = operator.inputs[0], operator.outputs[0]
        if file is None:
            raise refuse(operator.label, operator.name, "no input")
        if file.dtype == np.float32 and file.name == self._file.inputs[0].name:
            self._enter(made)
        elif made.dtype == np.float32 and made.name == self._file.outputs[0].name:
            given = self.given(operator)
            self._tensors[made.name], self._unsigned[made.name] = given, self._unsigned[given.name]
        else:
            self._requantize(operator)

    def _requantize(self, operator: FileOperator) -> None:
        given = self.given(operator)
        made = self._enter(operator.outputs[0])
        if (given.scale, given.zero) == (made.scale, made.zero):
            self._tensors[made.name] = given
            return
        self._layers.append(_table(operator, given, made, self._double))


def _shape(file: FileTensor) -> Shape:
    """[1, h, w, c], [1, w, c], [1, c] or [c]."""
    sizes = file.shape[1:] if len(file.shape) > 1 else file.shape
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1 or (len(file.shape) > 1 and file.shape[0] != 1):
        raise refuse(file.name, "tensor", f"expected a batch of 1 and one to three dimensions, got {list(file.shape)}")
    full = (1,) * (3 - len(sizes)) + tuple(sizes)
    return Shape(full[0], full[1], full[2])


def _bounds(operator: FileOperator, activation: int, made: Tensor) -> tuple[int, int]:
    """The clamp of a fused activation, in int8."""

    def stored(value: float) -> int:
        return int(np.clip(made.zero + math.floor(value / float(made.scale) + 0.5), -128, 127))

    if activation == _NONE:
        return -128, 127
    if activation == _RELU:
        return stored(0.0), 127
    if activation == _RELU6:
        return stored(0.0), stored(6.0)
    if activation == _RELU_N1_TO_1:
        return stored(-1.0), stored(1.0)
    raise refuse(operator.label, operator.name, f"fused activation {activation}")


def _weights(operator: FileOperator, axis: int) -> tuple[Array, Array]:
    """(int8 weights, scales per channel along `axis`)."""
    file = operator.inputs[1] if len(operator.inputs) > 1 else None
    if file is None or file.constant is None or file.dtype != np.int8 or np.any(file.zeros != 0) or not len(file.scales):
        raise refuse(operator.label, operator.name, "expected constant INT8 weights with zero point 0")
    channels = file.shape[axis]
    if len(file.scales) not in (1, channels) or (len(file.scales) > 1 and file.axis != axis % len(file.shape)):
        raise refuse(operator.label, operator.name, f"expected one scale, or one for each of {channels} channels")
    return file.constant, np.broadcast_to(file.scales, (channels,)).astype(np.float32)


def _bias(operator: FileOperator, channels: int) -> Array:
    file = operator.inputs[2] if len(operator.inputs) > 2 else None
    if file is None:
        return np.zeros(channels, np.int32)
    if file.constant is None or file.dtype != np.int32 or file.constant.size != channels:
        raise refuse(operator.label, operator.name, f"expected a constant int32 bias of {channels} values")
    return file.constant.reshape(-1)


def _window(operator: FileOperator, given: Shape, made: Shape, kernel: tuple[int, int], dilation: tuple[int, int]) -> Window:
    stride = (operator.integer(2, 1), operator.integer(1, 1))
    same = operator.integer(0, _SAME, "<b") == _SAME
    pad = []
    for axis, (size, out) in enumerate(((given.h, made.h), (given.w, made.w))):
        reach = (kernel[axis] - 1) * dilation[axis] + 1
        pad.append(max((out - 1) * stride[axis] + reach - size, 0) // 2 if same else 0)
    if min(*stride, *dilation, *kernel) < 1 or max(*stride, *dilation) > 255:
        raise refuse(operator.label, operator.name, f"stride {stride}, dilation {dilation}, kernel {kernel}")
    return Window(kernel, stride, dilation, (pad[0], pad[1]))


def _conv(reader: _Reader, operator: FileOperator) -> Layer:
    given = reader.given(operator)
    weights, scales = _weights(operator, 0)
    if weights.ndim != 4 or weights.shape[3] != given.shape.c:
        raise refuse(operator.label, operator.name, f"weights {list(weights.shape)} for {given.shape.c} channels; groups are not supported")
    layer = reader.layer(operator, Operator.CONV, given, activation=operator.integer(3, _NONE, "<b"))
    dilation = (operator.integer(5, 1), operator.integer(4, 1))
    window = _window(operator, given.shape, layer.output.shape, (weights.shape[1], weights.shape[2]), dilation)
    return replace(layer, window=window, weights=weights, weight_scales=scales, bias=_bias(operator, len(weights)))


def _depthwise(reader: _Reader, operator: FileOperator) -> Layer:
    given = reader.given(operator)
    weights, scales = _weights(operator, 3)
    if weights.ndim != 4 or weights.shape[3] % given.shape.c:
        raise refuse(operator.label, operator.name, f"weights {list(weights.shape)} for {given.shape.c} channels")
    layer = reader.layer(operator, Operator.DEPTHWISE, given, activation=operator.integer(4, _NONE, "<b"))
    dilation = (operator.integer(6, 1), operator.integer(5, 1))
    window = _window(operator, given.shape, layer.output.shape, (weights.shape[1], weights.shape[2]), dilation)
    laid = np.ascontiguousarray(weights[0].transpose(2, 0, 1))
    return replace(layer, window=window, weights=laid, weight_scales=scales, bias=_bias(operator, len(laid)))


def _fully_connected(reader: _Reader, operator: FileOperator) -> Layer:
    """With one scale, TensorFlow Lite rounds the product of scales to float32 first; with several it does not, nor does LiteRT 2."""
    given = reader.given(operator)
    weights, scales = _weights(operator, 0)
    if weights.ndim != 2 or weights.shape[1] != given.shape.count:
        raise refuse(operator.label, operator.name, f"weights {list(weights.shape)} for {given.shape.count} values")
    flat = replace(given, shape=Shape(1, 1, given.shape.count))
    layer = reader.layer(operator, Operator.CONV, flat, activation=operator.integer(0, _NONE, "<b"))
    made = replace(layer.output, shape=Shape(1, 1, layer.output.shape.count))
    fixed = None
    file = operator.inputs[1]
    once = reader.rounding is Rounding.LITERT
    if file is not None and len(file.scales) == 1 and not once:
        fixed = np.array([float(np.float32(given.scale * scale)) / float(made.scale) for scale in scales])
    laid = weights.reshape(len(weights), 1, 1, -1)
    bias = _bias(operator, len(weights))
    return replace(layer, output=made, weights=laid, weight_scales=scales, bias=bias, fixed_scales=fixed, variant=int(once))


def _pool(reader: _Reader, operator: FileOperator) -> Layer:
    given = reader.given(operator)
    average = operator.name == "AVERAGE_POOL_2D"
    kind = Operator.AVERAGE_POOL if average else Operator.MAX_POOL
    layer = reader.layer(operator, kind, given, activation=operator.integer(5, _NONE, "<b"))
    kernel = (operator.integer(4, 1), operator.integer(3, 1))
    window = _window(operator, given.shape, layer.output.shape, kernel, (1, 1))
    made = layer.output
    if (given.scale, given.zero) != (made.scale, made.zero):
        raise refuse(operator.label, operator.name, "its result has another scale than its input; expected the same")
    if average and not _inside(window, given.shape, made.shape):
        raise refuse(operator.label, operator.name, "padded; expected padding VALID")
    return replace(layer, window=window, variant=1 if average and reader.double else 0)


def _inside(window: Window, given: Shape, made: Shape) -> bool:
    sizes = ((made.h, given.h), (made.w, given.w))
    reaches = ((out - 1) * window.stride[axis] + window.kernel[axis] <= size for axis, (out, size) in enumerate(sizes))
    return window.pad == (0, 0) and all(reaches)


def _add(reader: _Reader, operator: FileOperator) -> Layer:
    first, second = reader.given(operator, 0), reader.given(operator, 1)
    if first.shape != second.shape:
        raise refuse(operator.label, operator.name, "expected two inputs of one shape")
    activation = operator.integer(0, _NONE, "<b")
    layer = reader.layer(operator, Operator.ADD, first, second, activation=activation, exact=reader.double)
    return replace(layer, variant=1 if reader.double else 0)


def _softmax(reader: _Reader, operator: FileOperator) -> Layer:
    if operator.real(0, 1.0) != 1.0:
        raise refuse(operator.label, operator.name, f"beta {operator.real(0, 1.0)}; expected 1")
    return replace(reader.layer(operator, Operator.SOFTMAX, reader.given(operator), exact=not reader.double), variant=1)


def _argmax(reader: _Reader, operator: FileOperator) -> Layer:
    given, axis = reader.given(operator), operator.inputs[1] if len(operator.inputs) > 1 else None
    vector = given.shape.count == given.shape.c <= _MOST_CLASSES
    if not vector or axis is None or axis.constant is None or axis.constant.size != 1:
        raise refuse(operator.label, operator.name, f"expected a vector of at most {_MOST_CLASSES} classes and a constant axis")
    if int(axis.constant.reshape(-1)[0]) % 2 != 1:
        raise refuse(operator.label, operator.name, "expected the axis of the classes")
    return Layer(Operator.ARGMAX, operator.label, (given,), reader.counted(operator.outputs[0]))


def _relu(reader: _Reader, operator: FileOperator) -> Layer:
    activation = _RELU if operator.name == "RELU" else _RELU6
    made = reader.layer(operator, Operator.TABLE, reader.given(operator), activation=activation)
    table = _table(operator, made.inputs[0], made.output, double=True)
    assert table.table is not None
    return replace(table, table=np.clip(table.table, made.low, made.high).astype(np.int8), exact=reader.double)


def _table(operator: FileOperator, given: Tensor, made: Tensor, double: bool) -> Layer:
    mult, shift = multipliers([float(given.scale) / float(made.scale)])
    values = [rounded_twice(stored - given.zero, int(mult[0]), int(shift[0])) + made.zero for stored in range(-128, 128)]
    table = np.clip(values, -128, 127).astype(np.int8)
    return Layer(Operator.TABLE, operator.label, (given,), made, table=table, exact=double)


_RESHAPES = frozenset({"RESHAPE", "SQUEEZE", "EXPAND_DIMS"})
_LAYERS: dict[str, Callable[[_Reader, FileOperator], Layer]] = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "MAX_POOL_2D": _pool,
    "AVERAGE_POOL_2D": _pool,
    "ADD": _add,
    "SOFTMAX": _softmax,
    "ARG_MAX": _argmax,
    "RELU": _relu,
    "RELU6": _relu,
}
