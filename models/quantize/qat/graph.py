"""A QDQ graph as plain values: nodes, constants, and which constants stand for which float weights. Knows no torch."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_runtime.errors import InputError
from edge_runtime.types import Array

_STORED = "_quantized"
_SCALE = "_scale"


@dataclass(frozen=True, slots=True)
class Node:
    """One operator. Absent optional inputs are empty names."""

    name: str
    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Weight:
    """A stored constant and the float tensor that it stands for. `axis` is that of its scales, None for a single one or a bias."""

    tensor: str
    axis: int | None
    is_bias: bool


@dataclass(frozen=True, slots=True)
class Activation:
    """A quantized activation: real = scale * (stored - zero_point), stored as int8 when `signed`, else as uint8."""

    tensor: str
    scale: float
    zero_point: int
    signed: bool


@dataclass(frozen=True, slots=True)
class QdqGraph:
    """`weights` by the stored constant's name, `activations` by their scale's name, `constants` all others."""

    nodes: tuple[Node, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    constants: dict[str, Array]
    weights: dict[str, Weight]
    activations: dict[str, Activation]


def read(path: Path) -> QdqGraph:
    """An INT8 graph as `models.quantize.ptq` writes it."""
    import onnx

    graph = onnx.load(str(path)).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = []
    for node in graph.node:
        attributes = {entry.name: _value(onnx, entry) for entry in node.attribute}
        if node.op_type == "Constant":
            constants[node.output[0]] = attributes["value"]
        else:
            nodes.append(Node(node.name, node.op_type, tuple(node.input), tuple(node.output), attributes))
    return QdqGraph(
        tuple(nodes),
        tuple(value.name for value in graph.input if value.name not in constants),
        tuple(value.name for value in graph.output),
        constants,
        _weights(nodes, constants),
        _activations(nodes, constants),
    )


def read_constants(path: Path) -> dict[str, Array]:
    """The float constants of a graph by name."""
    import onnx

    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in onnx.load(str(path)).graph.initializer}
    return {name: array for name, array in tensors.items() if array.dtype.kind == "f"}


def write_constants(source: Path, target: Path, values: dict[str, Array]) -> None:
    """A copy of the graph with other values in the named constants."""
    import onnx

    model = onnx.load(str(source))
    for tensor in model.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name], tensor.name))
    onnx.save(model, str(target))


def _weights(nodes: list[Node], constants: dict[str, Array]) -> dict[str, Weight]:
    found = {}
    for node in nodes:
        if node.operator == "DequantizeLinear" and node.inputs[0] in constants:
            stored, scale = constants[node.inputs[0]], constants[node.inputs[1]]
            is_bias = stored.dtype.itemsize == 4
            axis = int(node.attributes.get("axis", 1)) if scale.ndim and not is_bias else None
            found[node.inputs[0]] = Weight(node.inputs[0].removesuffix(_STORED), axis, is_bias)
    return found


def _activations(nodes: list[Node], constants: dict[str, Array]) -> dict[str, Activation]:
    found = {}
    for node in nodes:
        if node.operator == "QuantizeLinear":
            scale, zero_point = constants[node.inputs[1]], constants[node.inputs[2]]
            if scale.size != 1:
                raise InputError(f"`{node.name}` has {scale.size} scales for an activation; expected one")
            tensor = node.inputs[1].removesuffix(_SCALE)
            found[node.inputs[1]] = Activation(tensor, float(scale), int(zero_point), zero_point.dtype.kind == "i")
    return found


def _value(onnx: Any, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, bytes):
        return value.decode()
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else value
