"""What a condition means over typed facts: type and unit checks, shared atoms, three-valued logic, timers. No text, no I/O.

Truth is True, False or None (unknown), after Kleene: an atom over an unknown value is unknown; `and` is false when any part is
false, else unknown when any is unknown; `or` is true when any part is true, else unknown when any is; `not` unknown is unknown.
"""

from __future__ import annotations

import operator as operators
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from edge_runtime.errors import RuleError
from edge_runtime.reasoning.facts import FactType, Value
from edge_runtime.reasoning.language import STATE_FUNCTIONS, Condition, nearest
from edge_runtime.reasoning.network import Atom, Network, Slot, Truth
from edge_runtime.reasoning.quantities import Quantity, absolute, aligned, extreme, measured, negated, product, total, written
from edge_runtime.reasoning.syntax import (
    Arithmetic,
    Call,
    Comparison,
    Fact,
    Held,
    Junction,
    Negative,
    Node,
    Not,
    Number,
    Text,
)
from edge_runtime.reasoning.syntax import Truth as WrittenTruth
from edge_runtime.reasoning.timers import Timer

_COMPARE: dict[str, Callable[[float, float], bool]] = {
    ">": operators.gt,
    ">=": operators.ge,
    "<": operators.lt,
    "<=": operators.le,
    "==": operators.eq,
    "!=": operators.ne,
}
_MIRRORED = {">": "<", ">=": "<=", "<": ">", "<=": ">=", "==": "==", "!=": "!="}


@dataclass(frozen=True, slots=True)
class Leaf:
    """A part of a condition that a proof names: an atom, a timer over it, or a timer over several."""

    text: str
    atom: Atom | None
    timer: Timer | None = None


@dataclass(frozen=True, slots=True)
class Compiled:
    """A condition bound to a network. Update `timers` in their order, then ask `truth`."""

    condition: Condition
    truth: Truth
    leaves: tuple[Leaf, ...]
    timers: tuple[Timer, ...]

    def atoms(self) -> Iterator[Atom]:
        """Each atom once."""
        return iter(dict.fromkeys(leaf.atom for leaf in self.leaves if leaf.atom is not None))


def check(condition: Condition, facts: Mapping[str, FactType]) -> None:
    """Raises RuleError when the condition names unknown facts or labels, or compares what cannot be compared."""
    compile_condition(condition, Network(dict(facts)))


def check_present(condition: Condition, facts: Mapping[str, FactType]) -> None:
    """As `check`, for a condition whose present truth is asked for: `for` is refused too."""
    refuse_timers(compile_condition(condition, Network(dict(facts))))


def refuse_timers(compiled: Compiled) -> None:
    """Raises RuleError when the condition waits for something."""
    if compiled.timers:
        raise RuleError("expected a condition without `for`, which only rules can wait for")


def compile_condition(condition: Condition, network: Network) -> Compiled:
    """Binds a condition to the facts of a network. Raises RuleError like `check`."""
    compiler = _Compiler(condition.text, network)
    truth = compiler.truth(condition.root)
    leaves = {(leaf.text, leaf.atom): leaf for leaf in compiler.leaves}
    return Compiled(condition, truth, tuple(leaves.values()), tuple(compiler.timers))


class _Compiler:
    def __init__(self, text: str, network: Network) -> None:
        self.leaves: list[Leaf] = []
        self.timers: list[Timer] = []
        self._text = text
        self._network = network

    def truth(self, node: Node) -> Truth:
        if isinstance(node, Junction):
            parts = [self.truth(operand) for operand in node.operands]
            return _all(parts) if node.operator == "and" else _any(parts)
        if isinstance(node, Not):
            return _not(self.truth(node.operand))
        if isinstance(node, Held):
            return self._held(node)
        if isinstance(node, WrittenTruth):
            value = node.value
            return lambda: value
        atom = self._atom(node)
        self.leaves.append(Leaf(self._written(node), atom))
        return lambda: atom.truth

    def _held(self, node: Held) -> Truth:
        before = len(self.leaves)
        timer = Timer(self.truth(node.operand), node.duration_ns)
        self.timers.append(timer)
        if len(self.leaves) == before + 1 and isinstance(node.operand, (Comparison, Fact, Call)):
            self.leaves[before] = Leaf(self._written(node), self.leaves[before].atom, timer)
        else:
            self.leaves.append(Leaf(self._written(node), None, timer))
        return lambda: timer.truth

    def _atom(self, node: Node) -> Atom:
        known = self._network.known_atom(node)
        if known is not None:
            return known
        if isinstance(node, Comparison):
            return self._comparison(node)
        if isinstance(node, Fact):
            return self._flag(node, self._slot(node))
        if isinstance(node, Call) and node.function in STATE_FUNCTIONS:
            return self._state(node)
        raise self._wrong(node, "a condition", f"the value `{self._written(node)}`; compare it, as in `{self._written(node)} > 0`")

    def _flag(self, node: Node, slot: Slot) -> Atom:
        if slot.kind.kind != "flag":
            example = '== "..."' if slot.kind.kind == "label" else "> 0"
            raise self._wrong(node, "a condition", f"the {slot.kind.kind} `{slot.name}`; compare it, as in `{slot.name} {example}`")
        return self._against(node, slot, "==", True)

    def _state(self, node: Call) -> Atom:
        fact = node.arguments[0]
        assert isinstance(fact, Fact)
        slot = self._slot(fact)
        evaluate: Truth = (lambda: slot.value is not None) if node.function == "known" else (lambda: slot.stale)
        return self._network.add_atom(node, evaluate, lambda: slot.value, (slot,))

    def _comparison(self, node: Comparison) -> Atom:
        for fact, other, operator in ((node.left, node.right, node.operator), (node.right, node.left, _MIRRORED[node.operator])):
            if isinstance(fact, Fact) and (slot := self._slot(fact)).kind.kind != "number":
                return self._with_constant(node, slot, operator, other)
        return self._numbers(node)

    def _with_constant(self, node: Comparison, slot: Slot, operator: str, other: Node) -> Atom:
        """A label against a quoted text, a flag against true or false."""
        if operator not in ("==", "!="):
            raise self._wrong(node, f"`==` or `!=` with the {slot.kind.kind} `{slot.name}`", f"`{node.operator}`")
        if slot.kind.kind == "label":
            if not isinstance(other, Text):
                example = slot.kind.labels[0] if slot.kind.labels else "..."
                raise self._wrong(other, f'a label in quotes, such as `{slot.name} == "{example}"`,', f"`{self._written(other)}`")
            self._check_label(other, slot)
            return self._against(node, slot, operator, other.value)
        if not isinstance(other, WrittenTruth):
            raise self._wrong(other, f"`true` or `false` beside the flag `{slot.name}`", f"`{self._written(other)}`")
        return self._against(node, slot, operator, other.value)

    def _check_label(self, label: Text, slot: Slot) -> None:
        labels = slot.kind.labels
        if labels and label.value not in labels:
            known = ", ".join(labels[:12]) + (", ..." if len(labels) > 12 else "")
            hint = nearest(label.value, labels)
            raise self._wrong(label, f"a label of `{slot.name}` ({known})", f"`{label.value}`{hint}")

    def _against(self, node: Node, slot: Slot, operator: str, constant: Value) -> Atom:
        """An atom comparing a slot's own value with a constant of its type and unit."""
        if operator == "==":
            return self._network.add_atom(
                node, lambda: None if slot.value is None else slot.value == constant, *_on(slot, operator, constant)
            )
        if operator == "!=":
            return self._network.add_atom(
                node, lambda: None if slot.value is None else slot.value != constant, *_on(slot, operator, constant)
            )
        compare = _COMPARE[operator]
        return self._network.add_atom(
            node,
            lambda: None if slot.value is None else compare(slot.value, constant),  # type: ignore[arg-type] # both are floats here
            *_on(slot, operator, constant),
        )

    def _numbers(self, node: Comparison) -> Atom:
        left, right = aligned(self._value(node.left), self._value(node.right), "compare")
        for fact, constant, operator in ((left, right, node.operator), (right, left, _MIRRORED[node.operator])):
            if fact.fact is not None and constant.constant is not None:
                return self._against(node, self._network.slot(fact.fact), operator, constant.constant)
        compare, read_left, read_right = _COMPARE[node.operator], left.read, right.read

        def evaluate() -> bool | None:
            a, b = read_left(), read_right()
            if a is None or b is None or a != a or b != b:
                return None
            return compare(a, b)

        shown = right if left.constant is not None else left
        return self._network.add_atom(node, evaluate, shown.read, tuple(self._slots_of(node)))

    def _slots_of(self, node: Node) -> Iterator[Slot]:
        names: dict[str, None] = {}
        pending: list[Node] = [node]
        while pending:
            part = pending.pop(0)
            if isinstance(part, Fact):
                names[part.name] = None
            pending += _parts(part)
        return (self._network.slot(name) for name in names)

    def _value(self, node: Node) -> Quantity:
        column = node.start + 1
        if isinstance(node, Number):
            return written(node.value, node.unit or None, column)
        if isinstance(node, Fact):
            return self._number_fact(node)
        if isinstance(node, Negative):
            return negated(self._value(node.operand))
        if isinstance(node, Arithmetic):
            operands = [("", self._value(node.first)), *((sign, self._value(operand)) for sign, operand in node.rest)]
            return total(operands) if node.rest[0][0] in "+-" else product(operands)
        if isinstance(node, Call) and node.function not in STATE_FUNCTIONS:
            arguments = [self._value(argument) for argument in node.arguments]
            if node.function == "abs":
                return absolute(arguments[0])
            return extreme(min if node.function == "min" else max, arguments)
        raise self._wrong(node, "a number", f"`{self._written(node)}`")

    def _number_fact(self, node: Fact) -> Quantity:
        slot = self._slot(node)
        if slot.kind.kind != "number":
            raise self._wrong(node, "a number", f"the {slot.kind.kind} `{node.name}`")

        def read() -> float | None:
            return slot.value  # type: ignore[return-value] # a number slot admits floats only

        return measured(read, slot.kind.unit, node.name, node.start + 1)

    def _slot(self, node: Fact) -> Slot:
        try:
            return self._network.slot(node.name)
        except KeyError:
            names = list(self._network.types)
            hint = nearest(node.name, names) or (f"; known: {', '.join(names[:12])}" + (", ..." if len(names) > 12 else ""))
            raise self._wrong(node, "a fact of the deployment", f"`{node.name}`{hint}") from None

    def _written(self, node: Node) -> str:
        return " ".join(self._text[node.start : node.end].split())

    def _wrong(self, node: Node, expected: str, came: str) -> RuleError:
        return RuleError(f"column {node.start + 1}: expected {expected}, came {came}", node.start + 1)


def _on(slot: Slot, operator: str, constant: Value) -> tuple[Callable[[], Value], tuple[Slot, ...], str, Value]:
    return (lambda: slot.value), (slot,), operator, constant


def _parts(node: Node) -> Sequence[Node]:
    if isinstance(node, Comparison):
        return (node.left, node.right)
    if isinstance(node, Arithmetic):
        return (node.first, *(operand for _, operand in node.rest))
    if isinstance(node, Negative):
        return (node.operand,)
    return node.arguments if isinstance(node, Call) else ()


def _all(parts: Sequence[Truth]) -> Truth:
    def truth() -> bool | None:
        result: bool | None = True
        for part in parts:
            one = part()
            if one is False:
                return False
            if one is None:
                result = None
        return result

    return truth


def _any(parts: Sequence[Truth]) -> Truth:
    def truth() -> bool | None:
        result: bool | None = False
        for part in parts:
            one = part()
            if one is True:
                return True
            if one is None:
                result = None
        return result

    return truth


def _not(part: Truth) -> Truth:
    def truth() -> bool | None:
        one = part()
        return None if one is None else not one

    return truth
