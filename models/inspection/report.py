"""What an inspection found, as values. Knows no format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from edge_runtime.types import TensorInfo
from models.protobuf import Malformed

MAX_VALUES = 1 << 48

Arithmetic = Literal["int8", "float", "convert", "other"]
"""`int8`: on quantized values; `convert`: between quantized and float; `other`: on shapes, indices and the like, where neither applies."""


class OperatorCount(msgspec.Struct, frozen=True):
    """One kind of operator: how many there are, and how many of them compute in what."""

    name: str
    count: int
    int8: int = 0
    float: int = 0
    convert: int = 0
    other: int = 0


class Inspection(msgspec.Struct, frozen=True, kw_only=True):
    """One model file.

    `parameters` are the values of its weights and biases (quantization constants, shapes and indices left out). `macs` are the
    multiply-accumulates of one run with free dimensions taken as 1, of convolutions and matrix products alone; `macs_unknown` counts
    the operators of these kinds whose shapes could not be told.
    """

    file: str
    format: Literal["onnx", "tflite"]
    version: str
    producer: str
    size_bytes: int
    sha256: str
    precision: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    operators: tuple[OperatorCount, ...]
    parameters: int
    macs: int
    macs_unknown: int = 0
    bundle: dict[str, Any] | None = None

    @property
    def nodes(self) -> int:
        """Operators in all."""
        return sum(operator.count for operator in self.operators)


def count_operators(found: Iterable[tuple[str, Arithmetic]]) -> tuple[OperatorCount, ...]:
    """Operators by kind, the most frequent first."""
    kinds: dict[str, Counter[str]] = {}
    for name, arithmetic in found:
        kinds.setdefault(name, Counter())[arithmetic] += 1
    counts = [OperatorCount(name, split.total(), **split) for name, split in kinds.items()]
    return tuple(sorted(counts, key=lambda operator: (-operator.count, operator.name)))


def product(shape: Sequence[int]) -> int:
    """Values in a tensor, free dimensions taken as 1. Raises Malformed when no tensor can be that large."""
    values = 1
    for size in shape:
        values *= size if size >= 0 else 1
        if values > MAX_VALUES:
            raise Malformed(f"a tensor of more than {MAX_VALUES} values")
    return values


def total(parts: Iterable[int]) -> int:
    """A sum that stays a number of 64 bits. Raises Malformed when it does not."""
    found = sum(parts)
    if found >= 1 << 63:
        raise Malformed("more arithmetic than any machine could do")
    return found
