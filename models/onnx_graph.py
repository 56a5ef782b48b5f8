"""What an ONNX file is made of, read from its bytes before any runtime sees them. It executes and resolves nothing.

Field numbers are those of onnx.proto3 (https://github.com/onnx/onnx/blob/main/onnx/onnx.proto3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from models.protobuf import BYTES, Budget, Malformed, fields, text

MAX_DEPTH = 32

_QUANTIZED_OPERATORS = (
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantize", "QLinear", "ConvInteger", "MatMulInteger", "QAttention", "QGemm",
)  # fmt: skip
_FLOAT16 = 10
_EXTERNAL = 1


@dataclass(slots=True)
class GraphFacts:
    """What the walk found. `operators` are (domain, type) pairs; `local` are the domains of functions the file itself defines."""

    has_graph: bool = False
    operators: set[tuple[str, str]] = field(default_factory=set)
    local: set[str] = field(default_factory=set)
    external: list[str] = field(default_factory=list)
    has_float16: bool = False

    @property
    def precision(self) -> str:
        """`int8` when the graph holds quantized operators, else `float16` or `float32`, by its weights."""
        if any(operator.startswith(_QUANTIZED_OPERATORS) for _, operator in self.operators):
            return "int8"
        return "float16" if self.has_float16 else "float32"


def read(data: memoryview) -> GraphFacts:
    """Walks a ModelProto. Raises Malformed when it cannot be one."""
    facts = GraphFacts()
    _Walk(facts).model(data)
    return facts


class _Walk:
    def __init__(self, facts: GraphFacts) -> None:
        self._facts = facts
        self._budget = Budget()

    def model(self, data: memoryview) -> None:
        for number, wire, value in fields(data, self._budget):
            if number == 7 and wire == BYTES and isinstance(value, memoryview):
                self._facts.has_graph = True
                self._graph(value, 1)
            elif number == 25 and isinstance(value, memoryview):
                self._function(value, 1)
            elif number == 20 and isinstance(value, memoryview):
                self._training(value)

    def _training(self, data: memoryview) -> None:
        for number, _, value in fields(data, self._budget):
            if number in (1, 2) and isinstance(value, memoryview):
                self._graph(value, 1)

    def _graph(self, data: memoryview, depth: int) -> None:
        self._each(data, {1: self._node, 5: self._tensor, 15: self._sparse_tensor}, depth)

    def _function(self, data: memoryview, depth: int) -> None:
        for number, _, value in fields(data, self._budget):
            if number == 7 and isinstance(value, memoryview):
                self._node(value, depth + 1)
            elif number == 11 and isinstance(value, memoryview):
                self._attribute(value, depth + 1)
            elif number == 10:
                self._facts.local.add(text(value))

    def _node(self, data: memoryview, depth: int) -> None:
        operator = domain = ""
        for number, _, value in fields(data, self._budget):
            if number == 4:
                operator = text(value)
            elif number == 7:
                domain = text(value)
            elif number == 5 and isinstance(value, memoryview):
                self._attribute(value, depth)
        self._facts.operators.add((domain, operator))

    def _attribute(self, data: memoryview, depth: int) -> None:
        deeper = {5: self._tensor, 6: self._graph, 10: self._tensor, 11: self._graph, 22: self._sparse_tensor, 23: self._sparse_tensor}
        self._each(data, deeper, depth)

    def _sparse_tensor(self, data: memoryview, depth: int) -> None:
        self._each(data, {1: self._tensor, 2: self._tensor}, depth)

    def _tensor(self, data: memoryview, depth: int) -> None:
        name, outside = "", False
        for number, _, value in fields(data, self._budget):
            if number == 8:
                name = text(value)
            elif number == 13 or (number == 14 and value == _EXTERNAL):
                outside = True
            elif number == 2 and value == _FLOAT16:
                self._facts.has_float16 = True
        if outside:
            self._facts.external.append(name)

    def _each(self, data: memoryview, visitors: Mapping[int, Callable[[memoryview, int], None]], depth: int) -> None:
        if depth > MAX_DEPTH:
            raise Malformed(f"graphs nested deeper than {MAX_DEPTH}")
        for number, wire, value in fields(data, self._budget):
            visit = visitors.get(number)
            if visit is not None and wire == BYTES and isinstance(value, memoryview):
                visit(value, depth + 1)
