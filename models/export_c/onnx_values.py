"""What flows through an ONNX graph while it is read: constants, and int8 tensors seen through their logical shape."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from edge_runtime.types import Array
from models.export_c.network import Shape, Tensor, refuse


@dataclass(frozen=True, slots=True)
class Node:
    """One node; a nameless one is called after its place."""

    name: str
    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, proto: Any, index: int, array: Callable[[Any], Array]) -> Node:
        from onnx import helper

        attributes = {}
        for attribute in proto.attribute:
            value = helper.get_attribute_value(attribute)
            attributes[attribute.name] = array(value) if attribute.name == "value" and hasattr(value, "raw_data") else value
        name = proto.name or (proto.output[0] if proto.output else f"#{index}")
        return cls(name, proto.op_type, proto.domain, tuple(proto.input), tuple(proto.output), attributes)

    def integer(self, name: str, default: int) -> int:
        return int(self.attributes.get(name, default))

    def integers(self, name: str, default: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(value) for value in self.attributes.get(name, default))

    def text(self, name: str, default: str) -> str:
        value = self.attributes.get(name, default)
        return value.decode() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, slots=True)
class Constant:
    """A constant as stored, and what it stands for when it has scales (per `axis` where there are several)."""

    stored: Array
    scales: Array | None = None
    zeros: Array = field(default_factory=lambda: np.zeros(1))
    axis: int = 0

    @property
    def real(self) -> Array:
        """Its values."""
        if self.scales is None:
            return self.stored
        shape = [1] * self.stored.ndim
        if self.scales.size > 1:
            shape[self.axis] = -1
        real: Array = (self.stored.astype(np.float32) - self.zeros.reshape(shape if self.zeros.size > 1 else [1])) * self.scales.reshape(
            shape if self.scales.size > 1 else [1]
        )
        return real


@dataclass(frozen=True, slots=True)
class View:
    """An int8 tensor under the shape that the graph gives it now, without its batch.

    `logical` is (c, h, w), (c, w) or (n,). The tensor lies with its channel last: a view of one axis over a tensor of several channels
    and pixels is in another order than its bytes.
    """

    tensor: Tensor
    logical: tuple[int, ...]
    unsigned: bool

    @classmethod
    def of(cls, name: str, shape: tuple[int, ...], scale: np.float32, zero: int, unsigned: bool, node: Node) -> View:
        """A new tensor of a graph's shape with its batch."""
        logical = shape[1:]
        if not 1 <= len(logical) <= 3 or min(logical) < 1 or shape[0] not in (-1, 1):
            raise refuse(node.name, node.operator, f"expected a batch of 1 and one to three fixed dimensions, got {list(shape)}")
        return cls(Tensor(name, physical(logical), scale, zero), logical, unsigned)

    @property
    def channel_first(self) -> bool:
        """True when outside order and stored order differ."""
        return self.tensor.shape.mixed

    @property
    def scrambled(self) -> bool:
        """True for a flat view of a tensor that lies in another order."""
        return len(self.logical) == 1 and self.tensor.shape.mixed

    def reshaped(self, node: Node, declared: tuple[int, ...] | None) -> View:
        """The same bytes under another shape."""
        wanted = (math.prod(self.logical),) if node.operator == "Flatten" else _filled(declared, math.prod(self.logical))
        if node.operator == "Flatten" and node.integer("axis", 1) != 1:
            raise refuse(node.name, node.operator, "expected axis 1")
        if wanted is None or not 1 <= len(wanted) <= 3 or math.prod(wanted) != math.prod(self.logical):
            raise refuse(node.name, node.operator, f"expected a batch and a fixed shape, got {declared}")
        if len(wanted) == 1:
            tensor = self.tensor if self.tensor.shape.mixed else replace(self.tensor, shape=physical(wanted))
            return replace(self, tensor=tensor, logical=wanted)
        if physical(wanted) == self.tensor.shape:
            return replace(self, logical=wanted)
        if self.tensor.shape.mixed or physical(wanted).mixed:
            raise refuse(node.name, node.operator, f"from {list(self.logical)} to {list(wanted)} moves values; export without it")
        return replace(self, tensor=replace(self.tensor, shape=physical(wanted)), logical=wanted)


def physical(logical: tuple[int, ...]) -> Shape:
    """Where (c, h, w), (c, w) or (n,) lie."""
    if len(logical) == 3:
        return Shape(logical[1], logical[2], logical[0])
    return Shape(1, logical[1], logical[0]) if len(logical) == 2 else Shape(1, 1, logical[0])


def shape_of(value: Any) -> tuple[int, ...]:
    """The declared shape, free dimensions as -1."""
    return tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in value.type.tensor_type.shape.dim)


def _filled(declared: tuple[int, ...] | None, count: int) -> tuple[int, ...] | None:
    """A declared shape without its batch, with one free dimension found from the number of values."""
    if not declared or declared[0] not in (-1, 1):
        return None
    rest = list(declared[1:])
    if rest.count(-1) == 1:
        known = -math.prod(rest)
        rest[rest.index(-1)] = count // known if known else 0
    return tuple(rest) if rest and min(rest) > 0 else None
