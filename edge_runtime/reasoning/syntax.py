"""The tree of a parsed condition. Plain values: equal trees mean the same text up to spacing; columns do not count."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class _Placed:
    """`start` and `end` are 0-based offsets into the text."""

    start: int = field(compare=False, kw_only=True, default=0)
    end: int = field(compare=False, kw_only=True, default=0)


@dataclass(frozen=True, slots=True)
class Number(_Placed):
    """A written number; `unit` is empty when none was written."""

    value: float
    unit: str = ""


@dataclass(frozen=True, slots=True)
class Text(_Placed):
    """A quoted string: a label."""

    value: str


@dataclass(frozen=True, slots=True)
class Truth(_Placed):
    """`true` or `false`."""

    value: bool


@dataclass(frozen=True, slots=True)
class Fact(_Placed):
    """A fact by its full name, such as `bearing.score`."""

    name: str


@dataclass(frozen=True, slots=True)
class Call(_Placed):
    """`abs`, `min`, `max`, `known` or `stale` with its arguments."""

    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Negative(_Placed):
    """Minus before a value."""

    operand: Node


@dataclass(frozen=True, slots=True)
class Arithmetic(_Placed):
    """A run of `+ -` or of `* /`, evaluated from the left: `first`, then each (operator, operand)."""

    first: Node
    rest: tuple[tuple[str, Node], ...]


@dataclass(frozen=True, slots=True)
class Comparison(_Placed):
    """Two values and one of `> >= < <= == !=`."""

    operator: str
    left: Node
    right: Node


@dataclass(frozen=True, slots=True)
class Held(_Placed):
    """A condition that must have been true for a time."""

    operand: Node
    duration_ns: int


@dataclass(frozen=True, slots=True)
class Not(_Placed):
    """The opposite of a condition."""

    operand: Node


@dataclass(frozen=True, slots=True)
class Junction(_Placed):
    """`and` or `or` over two or more conditions."""

    operator: str
    operands: tuple[Node, ...]


Node: TypeAlias = Number | Text | Truth | Fact | Call | Negative | Arithmetic | Comparison | Held | Not | Junction
