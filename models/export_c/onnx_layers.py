"""The operators of an ONNX graph as layers. What stands between a dequantize and a quantize waits here until its result has a scale."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_runtime.types import Array
from models.export_c.network import Layer, Operator, Shape, Tensor, Window, refuse
from models.export_c.onnx_values import Constant, Node, View

_PROBABILITY = np.float32(1 / 256)

Function = Callable[[Array], Array]


@dataclass(slots=True)
class Pending:
    """A layer that lacks its output's scale. `low` and `high` are real bounds, those of a ReLU; `function` is that of a table."""

    node: Node
    layer: Layer
    logical: tuple[int, ...]
    unsigned: bool
    bias: Array | None = None
    low: float = -np.inf
    high: float = np.inf
    function: Function | None = None
    fused: list[Node] = field(default_factory=list)

    @classmethod
    def requantized(cls, node: Node, view: View) -> Pending:
        """From one scale to another. onnxruntime drops such a step and takes one scale for both, so its results may differ."""
        found = _table(node, view, lambda x: x)
        return replace(found, layer=replace(found.layer, exact=False))

    @property
    def takes_bias(self) -> bool:
        return self.layer.operator is Operator.CONV and self.bias is None and not self.fused

    def clamped(self, node: Node, bounds: list[Constant]) -> Pending:
        """With a Relu or Clip behind it."""
        limits = [float(bound.real.reshape(-1)[0]) for bound in bounds] + [np.inf]
        low, high = (0.0, np.inf) if node.operator == "Relu" else (limits[0], limits[1])
        return replace(self, low=max(self.low, low), high=min(self.high, high), fused=[*self.fused, node])

    def biased(self, constant: Constant) -> Pending:
        """With a bias added, in float32 or as int32 with its scales."""
        return replace(self, bias=_bias(self.node, self.layer, constant))

    def finished(self, name: str, scale: np.float32, zero: int, unsigned: bool) -> tuple[Layer, View]:
        """The layer, now that it is known how its result is stored."""
        layer = self.layer
        given = layer.inputs[0]
        if layer.operator is Operator.MAX_POOL and (given.scale, given.zero) != (scale, zero):
            raise refuse(self.node.name, self.node.operator, "its result has another scale than its input; expected the same")
        output = Tensor(name, layer.output.shape, scale, zero)
        low, high = _stored(self.low, scale, zero, -128), _stored(self.high, scale, zero, 127)
        table = None if self.function is None else _tabulated(self.function, layer.inputs[0], output)
        bias = self.bias
        if bias is None and layer.weights is not None:
            bias = np.zeros(len(layer.weights), np.int32)
        exact = layer.exact and (not self.fused or (low, high) == (-128, 127))
        done = replace(layer, output=output, bias=bias, low=low, high=high, table=table, exact=exact, offset=128 * unsigned)
        return done, View(output, self.logical, unsigned)

    def at_the_end(self, notes: list[str]) -> tuple[Layer, View]:
        """A softmax or argmax whose result leaves the graph as it is."""
        if self.layer.operator is Operator.ARGMAX:
            return self.finished("output", np.float32(1), 0, False)
        if self.layer.operator is not Operator.SOFTMAX:
            raise refuse(self.node.name, self.node.operator, "its result leaves the graph in float32; quantize the output")
        notes.append(f"the softmax `{self.node.name}` is float32 in the model: its shares are stored in steps of 1/256")
        return self.finished("output", _PROBABILITY, -128, False)


Value = Constant | View | Pending


def _view(node: Node, value: Any) -> View:
    if not isinstance(value, View):
        raise refuse(node.name, node.operator, "expected an input that was quantized")
    return value


def _weights(node: Node, value: Any) -> Constant:
    if not isinstance(value, Constant) or value.scales is None or value.stored.dtype != np.int8:
        raise refuse(node.name, node.operator, "expected INT8 weights behind a DequantizeLinear, symmetric")
    if np.any(value.zeros != 0):
        raise refuse(node.name, node.operator, "expected weights with zero point 0")
    return value


def _bias(node: Node, layer: Layer, constant: Constant) -> Array:
    assert layer.weight_scales is not None
    if constant.scales is not None and constant.stored.dtype == np.int32:
        return _spread(node, constant.stored, len(layer.weight_scales)).astype(np.int32)
    scales = layer.inputs[0].scale * layer.weight_scales
    rounded: Array = np.rint(_spread(node, constant.real, len(scales)) / scales).astype(np.int64).astype(np.int32)
    return rounded


def _spread(node: Node, values: Array, channels: int) -> Array:
    flat = values.reshape(-1)
    if flat.size not in (1, channels):
        raise refuse(node.name, node.operator, f"a bias of {flat.size} values for {channels} channels")
    spread: Array = np.broadcast_to(flat, (channels,)) if flat.size == 1 else flat
    return spread


def _spatial(node: Node, kernel: tuple[int, ...], size: tuple[int, ...]) -> tuple[Window, tuple[int, int]]:
    """Window and padding behind the last row and column, over one axis or two."""
    rank = len(kernel)
    if node.text("auto_pad", "NOTSET") != "NOTSET" or node.integer("ceil_mode", 0):
        raise refuse(node.name, node.operator, "expected explicit pads and no ceil_mode")
    pads = node.integers("pads", (0,) * (2 * rank))
    stride, dilation = node.integers("strides", (1,) * rank), node.integers("dilations", (1,) * rank)
    window = Window(_two(kernel, 1), _two(stride, 1), _two(dilation, 1), _two(pads[:rank], 0))
    return window, _two(pads[rank:], 0)


def _two(values: Sequence[int], missing: int) -> tuple[int, int]:
    return (values[0], values[1]) if len(values) == 2 else (missing, values[0])


def _slid(shape: Shape, window: Window, after: tuple[int, int], channels: int) -> Shape:
    """The output of a window that slides over `shape`."""
    sizes = []
    for axis, size in enumerate((shape.h, shape.w)):
        reach = (window.kernel[axis] - 1) * window.dilation[axis] + 1
        sizes.append((size + window.pad[axis] + after[axis] - reach) // window.stride[axis] + 1)
    return Shape(sizes[0], sizes[1], channels)


def _logical(shape: Shape, like: tuple[int, ...]) -> tuple[int, ...]:
    return (shape.c, shape.h, shape.w) if len(like) == 3 else (shape.c, shape.w)


def _pending(node: Node, operator: Operator, view: View, shape: Shape, logical: tuple[int, ...], **more: Any) -> Pending:
    output = Tensor("", shape, view.tensor.scale, view.tensor.zero)
    return Pending(node, Layer(operator, node.name, (view.tensor,), output, **more), logical, view.unsigned)


def _conv(node: Node, values: Sequence[Value | None]) -> Value:
    view, constant = _view(node, values[0]), _weights(node, values[1])
    if len(view.logical) < 2:
        raise refuse(node.name, node.operator, "expected channels and one or two axes")
    weights, group = constant.stored, node.integer("group", 1)
    channels = view.tensor.shape.c
    window, after = _spatial(node, weights.shape[2:], view.logical[1:])
    shape = _slid(view.tensor.shape, window, after, len(weights))
    depthwise = group == channels and weights.shape[1] == 1 and group > 1
    if not depthwise and (group != 1 or weights.shape[1] != channels):
        raise refuse(node.name, node.operator, f"group {group} of {channels} channels; expected 1 or as many as channels")
    if min(shape.h, shape.w) < 1:
        raise refuse(node.name, node.operator, "the kernel is larger than its input")
    laid = _laid(weights, depthwise)
    operator = Operator.DEPTHWISE if depthwise else Operator.CONV
    scales = np.broadcast_to(_flat_scales(node, constant, 0), (len(weights),)).astype(np.float32)
    found = _pending(node, operator, view, shape, _logical(shape, view.logical), window=window, weights=laid, weight_scales=scales)
    return _with_bias(found, values, 2)


def _laid(weights: Array, depthwise: bool) -> Array:
    """[out, in, (kh,) kw] as [out][kh][kw][in], or [out][kh][kw] for a depthwise one."""
    two = weights.reshape(*weights.shape[:2], 1, weights.shape[2]) if weights.ndim == 3 else weights
    return np.ascontiguousarray(two[:, 0] if depthwise else two.transpose(0, 2, 3, 1))


def _flat_scales(node: Node, constant: Constant, axis: int) -> Array:
    assert constant.scales is not None
    given = constant.axis % constant.stored.ndim
    if constant.scales.size > 1 and given != axis:
        raise refuse(node.name, node.operator, f"weights with a scale along axis {given}; expected one per output channel")
    return constant.scales.reshape(-1)


def _with_bias(pending: Pending, values: Sequence[Value | None], index: int) -> Pending:
    constant = values[index] if index < len(values) else None
    if constant is None:
        return pending
    if not isinstance(constant, Constant):
        raise refuse(pending.node.name, pending.node.operator, "expected a constant bias")
    return pending.biased(constant)


def _product(node: Node, values: Sequence[Value | None]) -> Value:
    """Gemm and MatMul."""
    view, constant = _view(node, values[0]), _weights(node, values[1])
    if float(node.attributes.get("alpha", 1.0)) != 1.0 or float(node.attributes.get("beta", 1.0)) != 1.0 or node.integer("transA", 0):
        raise refuse(node.name, node.operator, "expected alpha 1, beta 1 and transA 0")
    transposed = bool(node.integer("transB", 0))
    if len(view.logical) != 1 or constant.stored.ndim != 2:
        raise refuse(node.name, node.operator, f"expected a vector and a matrix, got {list(view.logical)}")
    weights = constant.stored if transposed else constant.stored.T
    if weights.shape[1] != view.logical[0]:
        raise refuse(node.name, node.operator, f"{weights.shape[1]} weights for {view.logical[0]} values")
    scales = np.broadcast_to(_flat_scales(node, constant, 0 if transposed else 1), (len(weights),)).astype(np.float32)
    laid = _in_order(weights, view).reshape(len(weights), 1, 1, -1)
    flat = replace(view.tensor, shape=Shape(1, 1, weights.shape[1]))
    whole = View(flat, view.logical, view.unsigned)
    found = _pending(node, Operator.CONV, whole, Shape(1, 1, len(weights)), (len(weights),), weights=laid, weight_scales=scales)
    return _with_bias(found, values, 2)


def _in_order(weights: Array, view: View) -> Array:
    """Columns in the order of the stored bytes, where a flattened tensor lies with its channel last."""
    if not view.scrambled:
        return np.ascontiguousarray(weights)
    shape = view.tensor.shape
    moved = weights.reshape(-1, shape.c, shape.h, shape.w).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(moved.reshape(len(weights), -1))


def _pool(node: Node, values: Sequence[Value | None]) -> Value:
    """An average over all of its input is a global one, which onnxruntime computes in integers."""
    view = _view(node, values[0])
    window, after = _spatial(node, node.integers("kernel_shape", ()), view.logical[1:])
    average = node.operator == "AveragePool"
    if average and (max(*window.pad, *after) > 0 or window.dilation != (1, 1)):
        raise refuse(node.name, node.operator, "padded or dilated; expected neither")
    shape = _slid(view.tensor.shape, window, after, view.tensor.shape.c)
    operator = Operator.AVERAGE_POOL if average else Operator.MAX_POOL
    variant = 2 if average and window.kernel != (view.tensor.shape.h, view.tensor.shape.w) else 0
    return _pending(node, operator, view, shape, _logical(shape, view.logical), window=window, variant=variant)


def _global_pool(node: Node, values: Sequence[Value | None]) -> Value:
    view = _view(node, values[0])
    size = view.tensor.shape
    window, shape = Window((size.h, size.w), (1, 1)), Shape(1, 1, size.c)
    operator = Operator.AVERAGE_POOL if node.operator == "GlobalAveragePool" else Operator.MAX_POOL
    return _pending(node, operator, view, shape, _logical(shape, view.logical), window=window)


def _add(node: Node, values: Sequence[Value | None]) -> Value:
    first, second = _view(node, values[0]), _view(node, values[1])
    if first.tensor.shape != second.tensor.shape or first.logical != second.logical:
        raise refuse(node.name, node.operator, "expected two inputs of one shape")
    found = _pending(node, Operator.ADD, first, first.tensor.shape, first.logical)
    return replace(found, layer=replace(found.layer, inputs=(first.tensor, second.tensor)))


def _softmax(node: Node, values: Sequence[Value | None]) -> Value:
    view = _view(node, values[0])
    if len(view.logical) != 1 or view.scrambled or node.integer("axis", -1) not in (-1, 1):
        raise refuse(node.name, node.operator, "expected a vector of classes, axis 1")
    return _pending(node, Operator.SOFTMAX, view, view.tensor.shape, view.logical)


def _argmax(node: Node, values: Sequence[Value | None]) -> Value:
    view = _view(node, values[0])
    if len(view.logical) != 1 or view.scrambled or node.integer("axis", 0) not in (-1, 1) or view.logical[0] > 128:
        raise refuse(node.name, node.operator, "expected a vector of at most 128 classes, axis 1")
    return _pending(node, Operator.ARGMAX, view, Shape(1, 1, 1), (1,))


def _table(node: Node, view: View, function: Function) -> Pending:
    found = _pending(node, Operator.TABLE, view, view.tensor.shape, view.logical)
    return replace(found, function=function)


def _relu(node: Node, values: Sequence[Value | None]) -> Value:
    return _table(node, _view(node, values[0]), lambda x: np.maximum(x, np.float32(0)))


def _clip(node: Node, values: Sequence[Value | None]) -> Value:
    bounds = [float(value.real.reshape(-1)[0]) for value in values[1:] if isinstance(value, Constant)]
    if len(bounds) != 2:
        raise refuse(node.name, node.operator, "expected two constant bounds")
    return _table(node, _view(node, values[0]), lambda x: np.clip(x, np.float32(bounds[0]), np.float32(bounds[1])))


def _stored(bound: float, scale: np.float32, zero: int, otherwise: int) -> int:
    if not np.isfinite(bound):
        return otherwise
    return int(np.clip(np.rint(np.float32(bound) / scale) + zero, -128, 127))


def _tabulated(function: Function, given: Tensor, made: Tensor) -> Array:
    """The result for every stored value, computed in float32 as between a dequantize and a quantize."""
    real = (np.arange(-128, 128) - given.zero).astype(np.float32) * given.scale
    stored = np.rint(function(real).astype(np.float32) / made.scale) + made.zero
    table: Array = np.clip(stored, -128, 127).astype(np.int8)
    return table


LAYERS: dict[str, Callable[[Node, Sequence[Value | None]], Value]] = {
    "Conv": _conv,
    "Gemm": _product,
    "MatMul": _product,
    "MaxPool": _pool,
    "AveragePool": _pool,
    "GlobalAveragePool": _global_pool,
    "GlobalMaxPool": _global_pool,
    "Add": _add,
    "Softmax": _softmax,
    "ArgMax": _argmax,
    "Relu": _relu,
    "Clip": _clip,
}
