"""Reads the structure of an .onnx file from its bytes, under limits: nodes, attributes, shapes, small constants. Needs no `onnx`.

Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3). Weights are measured, not read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from models.inspection.report import product
from models.onnx_graph import MAX_DEPTH
from models.protobuf import BYTES, Budget, Malformed, fields, integers, signed, text

SMALL = 64

_DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 4: "uint16", 5: "int16", 6: "int32", 7: "int64", 8: "string", 9: "bool", 10: "float16",
    11: "float64", 12: "uint32", 13: "uint64", 14: "complex64", 15: "complex128", 16: "bfloat16", 17: "float8e4m3fn", 18: "float8e4m3fnuz",
    19: "float8e5m2", 20: "float8e5m2fnuz", 21: "uint4", 22: "int4", 23: "float4e2m1",
}  # fmt: skip
_PACKED = {4: "<f4", 10: "<f8"}
_MAX_RANK = 64


@dataclass(frozen=True, slots=True)
class Value:
    """A graph's input, output or inner value as declared; free dimensions are -1, a shape that is not declared is None."""

    name: str
    dtype: str
    shape: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class Constant:
    """A weight, or another constant. `values` are there for up to `SMALL` numbers of the common types."""

    dtype: str
    shape: tuple[int, ...]
    values: tuple[float, ...] | None = None


@dataclass(slots=True)
class Node:
    """One operator. Attributes are by kind; absent ones have ONNX's own defaults, which the reader of the node knows."""

    operator: str = ""
    domain: str = ""
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    ints: dict[str, tuple[int, ...]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Constant] = field(default_factory=dict)

    def integer(self, name: str, default: int) -> int:
        """An attribute of one integer."""
        found = self.ints.get(name, ())
        return found[0] if found else default


@dataclass(slots=True)
class Graph:
    """A graph with those inside its nodes (`If`, `Loop`) and local functions laid beside its own nodes."""

    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    values: dict[str, Value] = field(default_factory=dict)


@dataclass(slots=True)
class Model:
    """One file."""

    ir_version: int = 0
    producer: str = ""
    opsets: dict[str, int] = field(default_factory=dict)
    graph: Graph = field(default_factory=Graph)


def read(data: memoryview) -> Model:
    """Walks a ModelProto. Raises Malformed when it cannot be one."""
    return _Reader().model(data)


class _Reader:
    def __init__(self) -> None:
        self._budget = Budget()

    def model(self, data: memoryview) -> Model:
        model = Model()
        for number, _, value in fields(data, self._budget):
            if number == 1 and isinstance(value, int):
                model.ir_version = value
            elif number in (2, 3):
                model.producer = f"{model.producer} {text(value)}".strip()
            elif number == 8 and isinstance(value, memoryview):
                domain, version = self._opset(value)
                model.opsets[domain] = version
            elif number == 7 and isinstance(value, memoryview):
                self._graph(value, model.graph, 1)
            elif number == 25 and isinstance(value, memoryview):
                self._function(value, model.graph)
        return model

    def _opset(self, data: memoryview) -> tuple[str, int]:
        domain, version = "", 0
        for number, _, value in fields(data, self._budget):
            if number == 1:
                domain = text(value)
            elif number == 2 and isinstance(value, int):
                version = signed(value)
        return domain, version

    def _graph(self, data: memoryview, graph: Graph, depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Malformed(f"graphs nested deeper than {MAX_DEPTH}")
        for number, value in self._messages(data):
            if number == 1:
                graph.nodes.append(self._node(value, graph, depth))
            elif number == 5:
                name, constant = self._tensor(value)
                graph.constants[name] = constant
            elif number in (11, 12, 13):
                self._declared(self._value(value), number, graph, depth)

    def _declared(self, value: Value, number: int, graph: Graph, depth: int) -> None:
        graph.values[value.name] = value
        if depth == 1 and number == 11:
            graph.inputs.append(value)
        elif depth == 1 and number == 12:
            graph.outputs.append(value)

    def _function(self, data: memoryview, graph: Graph) -> None:
        for number, value in self._messages(data):
            if number == 7:
                graph.nodes.append(self._node(value, graph, 1))

    def _node(self, data: memoryview, graph: Graph, depth: int) -> Node:
        node = Node()
        for number, _, value in fields(data, self._budget):
            if number == 1:
                node.inputs.append(text(value))
            elif number == 2:
                node.outputs.append(text(value))
            elif number == 4:
                node.operator = text(value)
            elif number == 7:
                node.domain = text(value)
            elif number == 5 and isinstance(value, memoryview):
                self._attribute(value, node, graph, depth)
        if node.operator == "Constant" and not node.domain and node.outputs and "value" in node.tensors:
            graph.constants[node.outputs[0]] = node.tensors["value"]
        return node

    def _attribute(self, data: memoryview, node: Node, graph: Graph, depth: int) -> None:
        name, numbers = "", []
        for number, wire, value in fields(data, self._budget):
            if number == 1:
                name = text(value)
            elif number in (3, 8):
                numbers += integers(value, wire, self._budget)
            elif number == 4 and isinstance(value, memoryview) and len(value) <= SMALL:
                node.texts[name] = str(value, "utf-8", "replace")
            elif number == 5 and isinstance(value, memoryview):
                node.tensors[name] = self._tensor(value)[1]
            elif number in (6, 11) and isinstance(value, memoryview):
                self._graph(value, graph, depth + 1)
        if numbers:
            node.ints[name] = tuple(numbers)

    def _tensor(self, data: memoryview) -> tuple[str, Constant]:
        name, dtype, shape = "", "", []
        content: list[tuple[int, int, int | memoryview]] = []
        for number, wire, value in fields(data, self._budget):
            if number == 1:
                shape += integers(value, wire, self._budget)
            elif number == 2 and isinstance(value, int):
                dtype = _DTYPES.get(value, f"type {value}")
            elif number == 8:
                name = text(value)
            elif number in (4, 5, 7, 9, 10, 11):
                content.append((number, wire, value))
        if len(shape) > _MAX_RANK or min(shape, default=0) < 0:
            raise Malformed(f"tensor `{name}` of an impossible shape")
        small = product(shape) <= SMALL
        return name, Constant(dtype, tuple(shape), self._values(content, dtype) if small else None)

    def _values(self, content: list[tuple[int, int, int | memoryview]], dtype: str) -> tuple[float, ...] | None:
        found: list[float] = []
        for number, wire, value in content:
            if number in (5, 7, 11):
                found += integers(value, wire, self._budget)
                continue
            packed = _PACKED.get(number, _RAW.get(dtype))
            if packed is None or not isinstance(value, memoryview) or len(value) % np.dtype(packed).itemsize:
                return None
            found += np.frombuffer(value, packed).tolist()
        return tuple(found)

    def _value(self, data: memoryview) -> Value:
        name, dtype, shape = "", "", None
        for number, wire, value in fields(data, self._budget):
            if number == 1:
                name = text(value)
            elif number == 2 and wire == BYTES and isinstance(value, memoryview):
                dtype, shape = self._type(value)
        return Value(name, dtype, shape)

    def _type(self, data: memoryview) -> tuple[str, tuple[int, ...] | None]:
        dtype, shape = "", None
        for number, tensor in self._messages(data):
            if number != 1:
                continue
            for inner, _, value in fields(tensor, self._budget):
                if inner == 1 and isinstance(value, int):
                    dtype = _DTYPES.get(value, f"type {value}")
                elif inner == 2 and isinstance(value, memoryview):
                    shape = tuple(self._dimension(part) for number, part in self._messages(value) if number == 1)
        return dtype, shape

    def _dimension(self, data: memoryview) -> int:
        size = -1
        for number, _, value in fields(data, self._budget):
            if number == 1 and isinstance(value, int):
                size = max(-1, signed(value))
        return size

    def _messages(self, data: memoryview) -> Iterator[tuple[int, memoryview]]:
        for number, wire, value in fields(data, self._budget):
            if wire == BYTES and isinstance(value, memoryview):
                yield number, value


_RAW = {"float32": "<f4", "float64": "<f8", "int64": "<i8", "int32": "<i4", "uint8": "u1", "int8": "i1", "int16": "<i2", "uint16": "<u2"}
