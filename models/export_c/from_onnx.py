"""Reads a quantized ONNX graph (QuantizeLinear/DequantizeLinear pairs) as a network of the firmware's operators.

Operators that stand between a dequantize and a quantize become layers; what computes in float32 anywhere else is refused by name,
but for a softmax at the very end. Weights may be shared, activations int8 or uint8, one scale each. Needs `onnx` (extra `quantize`).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import MissingDependency, ModelRefused, RefusalReason
from edge_runtime.types import Array
from models.export_c.network import Network, Tensor, refuse
from models.export_c.onnx_layers import LAYERS, Pending
from models.export_c.onnx_values import Constant, Node, View, shape_of

_PASSED_ON = frozenset({"Identity", "Dropout"})
_RESHAPED = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
_FUSED = frozenset({"Relu", "Clip"})

Value = Constant | View | Pending


def read(path: Path) -> Network:
    """Raises ModelRefused naming the operator and its node, MissingDependency without `onnx`."""
    model = _load(path)
    return _Reader(model).network()


def _load(path: Path) -> Any:
    try:
        import onnx
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    except ImportError as err:
        raise MissingDependency("onnx", "quantize") from err
    try:
        model = onnx.load(path, load_external_data=False)
        return onnx.shape_inference.infer_shapes(model, strict_mode=False)
    except (DecodeError, onnx.shape_inference.InferenceError, ValueError) as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name} is not a whole ONNX model ({err})") from err


class _Reader:
    def __init__(self, model: Any) -> None:
        from onnx import numpy_helper

        self._graph = model.graph
        self._array: Callable[[Any], Array] = numpy_helper.to_array
        self._values: dict[str, Value] = {}
        self._network: Network | None = None
        self._layers: list[Any] = []
        self._notes: list[str] = []
        self._inputs: dict[str, tuple[int, ...]] = {}
        self._ports: list[tuple[Tensor, View]] = []

    def network(self) -> Network:
        for initializer in self._graph.initializer:
            self._values[initializer.name] = Constant(self._array(initializer))
        for value in self._graph.input:
            if value.name not in self._values:
                self._inputs[value.name] = shape_of(value)
        for index, proto in enumerate(self._graph.node):
            self._take(Node.of(proto, index, self._array))
        return self._finish()

    def _take(self, node: Node) -> None:
        if node.domain not in ("", "ai.onnx"):
            raise refuse(node.name, f"{node.domain}.{node.operator}", "expected a plain QDQ graph, as `model quantize` writes it")
        if node.operator == "Constant" and "value" in node.attributes:
            self._values[node.outputs[0]] = Constant(node.attributes["value"])
        elif node.operator == "QuantizeLinear":
            self._values[node.outputs[0]] = self._quantize(node)
        elif node.operator == "DequantizeLinear":
            self._values[node.outputs[0]] = self._dequantize(node)
        elif node.operator in _PASSED_ON:
            self._values[node.outputs[0]] = self._value(node, 0)
        else:
            self._values[node.outputs[0]] = self._compute(node)

    def _compute(self, node: Node) -> Value:
        given = self._value(node, 0)
        if node.operator in _FUSED and isinstance(given, Pending):
            return given.clamped(node, [self._constant(node, index) for index in range(1, len(node.inputs))])
        if isinstance(given, Pending) or isinstance(self._maybe(node, 1), Pending):
            return self._biased(node)
        if node.operator in _RESHAPED:
            return self._reshaped(node, given)
        make = LAYERS.get(node.operator)
        if make is None:
            raise refuse(node.name, node.operator, f"the node's firmware has {', '.join(sorted([*LAYERS, *_RESHAPED, *_FUSED]))}")
        return make(node, [self._maybe(node, index) for index in range(len(node.inputs))])

    def _biased(self, node: Node) -> Value:
        """A matrix product and the addition of its bias, in two nodes."""
        values = [self._maybe(node, index) for index in range(len(node.inputs))]
        pending = next(value for value in values if isinstance(value, Pending))
        other = next((value for value in values if isinstance(value, Constant)), None)
        if node.operator != "Add" or other is None or not pending.takes_bias:
            raise refuse(node.name, node.operator, f"it computes on the float32 result of `{pending.node.name}`; quantize in between")
        return pending.biased(other)

    def _reshaped(self, node: Node, given: Value) -> Value:
        if isinstance(given, Constant):
            return Constant(given.real.reshape(-1) if node.operator == "Flatten" else given.real)
        if not isinstance(given, View):
            raise refuse(node.name, node.operator, "quantize before it")
        return given.reshaped(node, self._declared(node))

    def _declared(self, node: Node) -> tuple[int, ...] | None:
        """The shape of a node's output, where the graph or its inference says it."""
        for value in (*self._graph.value_info, *self._graph.output):
            if value.name == node.outputs[0]:
                return shape_of(value)
        return None

    def _quantize(self, node: Node) -> Value:
        scale, zero, unsigned = self._scale(node)
        if node.inputs[0] in self._inputs:
            return self._entry(node, scale, zero, unsigned)
        given = self._value(node, 0)
        if isinstance(given, Constant):
            return Constant(np.clip(np.rint(given.real / scale) + zero, -128, 127).astype(np.int8), np.array([scale]), np.array([zero]))
        if isinstance(given, View):
            if given.tensor.scale == scale and given.tensor.zero == zero:
                return given
            given = Pending.requantized(node, given)
        layer, view = given.finished(f"{node.outputs[0]}", scale, zero, unsigned)
        self._layers.append(layer)
        return view

    def _entry(self, node: Node, scale: np.float32, zero: int, unsigned: bool) -> View:
        if self._ports:
            raise refuse(node.name, node.operator, "a second input; the node's firmware takes one")
        view = View.of(node.inputs[0], self._inputs[node.inputs[0]], scale, zero, unsigned, node)
        self._ports.append((view.tensor, view))
        return view

    def _dequantize(self, node: Node) -> Value:
        name = node.inputs[0]
        if name in self._inputs and name not in self._values:
            return self._entry(node, *self._scale(node))
        given = self._value(node, 0)
        if isinstance(given, Constant):
            zeros = self._constant(node, 2).real if len(node.inputs) > 2 else np.zeros(1)
            return Constant(given.stored, self._constant(node, 1).real, zeros, node.integer("axis", 1))
        return given

    def _scale(self, node: Node) -> tuple[np.float32, int, bool]:
        """(scale, zero point in int8, whether it was uint8) of a tensor of activations."""
        scale = self._constant(node, 1).real
        zero = self._constant(node, 2).stored if len(node.inputs) > 2 and node.inputs[2] else np.zeros(1, np.uint8)
        if scale.size != 1 or zero.size != 1 or zero.dtype not in (np.int8, np.uint8) or not scale.reshape(-1)[0] > 0:
            raise refuse(node.name, node.operator, f"expected one scale above 0 and an int8 or uint8 zero point, got {zero.dtype}")
        unsigned = zero.dtype == np.uint8
        return np.float32(scale.reshape(-1)[0]), int(zero.reshape(-1)[0]) - 128 * unsigned, unsigned

    def _value(self, node: Node, index: int) -> Value:
        found = self._maybe(node, index)
        if found is None:
            name = node.inputs[index] if index < len(node.inputs) else "nothing"
            if name in self._inputs:
                raise refuse(node.name, node.operator, f"it computes in float32 on the input `{name}`; export the part that is INT8")
            raise refuse(node.name, node.operator, f"its input `{name}` is not known")
        return found

    def _maybe(self, node: Node, index: int) -> Value | None:
        return self._values.get(node.inputs[index]) if index < len(node.inputs) else None

    def _constant(self, node: Node, index: int) -> Constant:
        found = self._maybe(node, index)
        if not isinstance(found, Constant):
            raise refuse(node.name, node.operator, f"its input {index} has to be a constant")
        return found

    def _finish(self) -> Network:
        if len(self._graph.output) != 1 or not self._ports:
            raise ModelRefused(RefusalReason.WRONG_SHAPE, "expected a graph of one quantized input and one output")
        last = self._values.get(self._graph.output[0].name)
        if isinstance(last, Pending):
            layer, last = last.at_the_end(self._notes)
            self._layers.append(layer)
        if not isinstance(last, View) or not self._layers:
            raise ModelRefused(RefusalReason.WRONG_SHAPE, "the graph's output is not computed from its input in INT8")
        self._notes += [
            f"onnxruntime does not compute `{layer.node}` in integers as it stands: results may differ by a step"
            for layer in self._layers
            if not layer.exact
        ]
        tensor, entry = self._ports[0]
        return Network(
            self._layers, tensor, last.tensor, entry.channel_first, last.channel_first, entry.unsigned, last.unsigned, self._notes
        )
