"""A QDQ graph as a torch network that trains: values are rounded as onnxruntime rounds them, gradients pass straight through.

Bhalgat et al., LSQ+ (2020): the scale learns through the rounding. Weights are scaled by their largest value per channel, as
`models.quantize.ptq` does it when it writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edge_runtime.errors import InputError
from edge_runtime.types import Array
from models.quantize.calibration import Ranges
from models.quantize.qat.graph import Activation, Node, QdqGraph, Weight
from models.quantize.qat.operators import OPERATORS

_LEAST = 1e-6


class Tuned:
    """A float tensor that learns: multiples of fixed units, times what is learnt per channel in logarithms.

    Units let one learning rate suit small values and large ones; gains let a channel change its scale by orders of magnitude, which is
    what a network whose channels share the scale of an activation needs most.
    """

    def __init__(self, values: Array, unit: Array, gains: Sequence[Tensor] = ()) -> None:
        self._unit = torch.from_numpy(np.ascontiguousarray(unit, np.float32))
        self._gains = gains
        self.parameter = (torch.from_numpy(np.array(values, np.float32)) / self._unit).requires_grad_()

    def value(self) -> Tensor:
        value = self.parameter * self._unit
        for gain in self._gains:
            value = value * torch.exp(gain)
        return value


class Range:
    """low..high of an activation, both learnt as factors of what calibration found; an end at 0 stays there."""

    def __init__(self, activation: Activation) -> None:
        self._signed, self._symmetric = activation.signed, activation.signed and activation.zero_point == 0
        lowest, highest = (-128, 127) if activation.signed else (0, 255)
        self._limits = lowest, highest
        self._low = (lowest - activation.zero_point) * activation.scale
        self._high = (highest - activation.zero_point) * activation.scale
        self.parameter = torch.zeros(2, requires_grad=True)

    def quantized(self, x: Tensor) -> Tensor:
        """`x` on the grid of the range as it is now."""
        lowest, highest = self._limits
        low, high = self._ends()
        if self._symmetric:
            scale, zero_point = high / highest, torch.zeros(())
        else:
            scale = (high - low) / (highest - lowest)
            zero_point = rounded(lowest - low / scale)
        return (torch.clamp(rounded(x / scale) + zero_point, lowest, highest) - zero_point) * scale

    def found(self) -> tuple[float, float]:
        """Low and high, with the zero point on the grid."""
        with torch.no_grad():
            low, high = (float(end) for end in self._ends())
        if self._symmetric:
            return -high, high
        scale = (high - low) / 255
        zero_point = round(-low / scale)
        return -zero_point * scale, (255 - zero_point) * scale

    def _ends(self) -> tuple[Tensor, Tensor]:
        factors = torch.exp(self.parameter)
        return self._low * factors[0], self._high * factors[1]


class Network:
    """Runs the graph in torch. Raises InputError for an operator or a shared tensor that cannot be trained."""

    def __init__(self, graph: QdqGraph, floats: dict[str, Array]) -> None:
        self.outputs = graph.outputs
        self._graph = graph
        self._floats = floats
        unknown = sorted({node.operator for node in graph.nodes} - set(OPERATORS) - {"QuantizeLinear", "DequantizeLinear"})
        if unknown:
            raise InputError(f"operators {', '.join(unknown)} cannot be trained in INT8; use --method ptq or leave them out of the model")
        self._constants: dict[str, Any] = {name: torch.from_numpy(np.array(value)) for name, value in graph.constants.items()}
        self.ranges = {name: Range(activation) for name, activation in graph.activations.items()}
        self.tuned: dict[str, Tuned] = {}
        self._gains: list[Tensor] = []
        self._stored = {
            node.outputs[0]: graph.weights[node.inputs[0]]
            for node in graph.nodes
            if node.operator == "DequantizeLinear" and node.inputs[0] in graph.weights
        }
        for node in graph.nodes:
            if node.operator in ("Conv", "Gemm", "MatMul"):
                self._collect(node)
        for weight in self._stored.values():
            self._add(weight, _unit(self._float(weight), weight), ())

    def run(self, inputs: Sequence[Tensor], wanted: Sequence[str]) -> list[Tensor]:
        """The named tensors for a batch."""
        values: dict[str, Any] = dict(zip(self._graph.inputs, inputs, strict=True))
        for node in self._graph.nodes:
            results = self._step(node, values)
            values.update(zip(node.outputs, results if isinstance(results, tuple) else (results,), strict=False))
        return [values[name] for name in wanted]

    def parameters(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of weights, and of all that is learnt in logarithms: channels and ranges."""
        return [tensor.parameter for tensor in self.tuned.values()], [*self._gains, *(entry.parameter for entry in self.ranges.values())]

    def learnt(self) -> dict[str, Array]:
        """The float tensors as they are now."""
        with torch.no_grad():
            return {name: tensor.value().numpy().copy() for name, tensor in self.tuned.items()}

    def learnt_ranges(self) -> Ranges:
        """By tensor, those that were in training."""
        return {self._graph.activations[name].tensor: entry.found() for name, entry in self.ranges.items()}

    def _step(self, node: Node, values: dict[str, Any]) -> Any:
        if node.operator == "QuantizeLinear":
            return self.ranges[node.inputs[1]].quantized(values[node.inputs[0]])
        if node.operator == "DequantizeLinear":
            weight = self._graph.weights.get(node.inputs[0])
            return values[node.inputs[0]] if weight is None else self._weight(weight)
        inputs = [self._value(name, values) for name in node.inputs]
        return OPERATORS[node.operator](inputs, node.attributes)

    def _value(self, name: str, values: dict[str, Any]) -> Any:
        if not name:
            return None
        if name in values:
            return values[name]
        return self.tuned[name].value() if name in self.tuned else self._constants[name]

    def _weight(self, weight: Weight) -> Tensor:
        value = self.tuned[weight.tensor].value()
        if weight.is_bias:
            return value
        axes = [axis for axis in range(value.dim()) if axis != weight.axis]
        with torch.no_grad():
            scale = torch.clamp(value.abs().amax(axes, keepdim=True), min=1e-12) / 127
        return torch.clamp(rounded(value / scale), -127, 127) * scale

    def _collect(self, node: Node) -> None:
        """The weight and the bias of a layer into `tuned`, with a gain for each channel that goes in or out."""
        weight = self._weight_of(node.inputs[1])
        if weight is None or weight.tensor in self.tuned:
            return
        values = self._float(weight)
        out, into = _channels(node, values)
        made = self._gain(values.shape, out)
        gains = [made] if into == out or values.shape[into] < 2 else [made, self._gain(values.shape, into)]
        unit = _unit(values, weight)
        self._add(weight, unit, gains)
        bias = self._weight_of(node.inputs[2]) if len(node.inputs) > 2 and node.inputs[2] else None
        if bias is not None and self._float(bias).shape == (values.shape[out],):
            axes = tuple(axis for axis in range(values.ndim) if axis != out)
            self._add(bias, np.maximum(np.abs(values).max(axes), np.abs(self._float(bias)) + _LEAST), [made.reshape(-1)])

    def _weight_of(self, name: str) -> Weight | None:
        """What the input of a layer stands for, quantized or left in float."""
        if name in self._stored:
            return self._stored[name]
        return Weight(name, None, is_bias=self._floats[name].ndim == 1) if name in self._floats else None

    def _float(self, weight: Weight) -> Array:
        if weight.tensor not in self._floats:
            raise InputError(f"`{weight.tensor}` is shared by layers in a way that cannot be trained; give each layer its own")
        return self._floats[weight.tensor]

    def _add(self, weight: Weight, unit: Array, gains: Sequence[Tensor]) -> None:
        self.tuned.setdefault(weight.tensor, Tuned(self._float(weight), unit, gains))

    def _gain(self, shape: Sequence[int], axis: int) -> Tensor:
        gain = torch.zeros([size if index == axis else 1 for index, size in enumerate(shape)], requires_grad=True)
        self._gains.append(gain)
        return gain


def rounded(x: Tensor) -> Tensor:
    """Half to even; the gradient passes as if it were not there."""
    return x + (torch.round(x) - x).detach()


def _channels(node: Node, values: Array) -> tuple[int, int]:
    """The axes of a layer's weight for what comes out and what goes in."""
    if values.ndim < 2:
        return 0, 0
    if node.operator == "Conv" or (node.operator == "Gemm" and node.attributes.get("transB")):
        return 0, 1
    return values.ndim - 1, values.ndim - 2


def _unit(values: Array, weight: Weight) -> Array:
    """The largest magnitude per channel (of all for a bias)."""
    magnitudes = np.abs(values)
    axes = tuple(axis for axis in range(values.ndim) if axis != weight.axis)
    unit: Array = magnitudes.max(axis=None if weight.is_bias else axes, keepdims=True)
    return np.where(unit > 0, unit, max(float(magnitudes.max()), 1e-3)).astype(np.float32)
