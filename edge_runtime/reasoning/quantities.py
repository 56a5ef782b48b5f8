"""Arithmetic on numbers with units: conversions are decided when a condition is compiled, a misfit is a RuleError.

Temperatures need care, for 80 degC is 176 degF as a temperature but 144 degF as a difference. A quantity carries its `weights`:
how many times the zero of its unit is in it. A sensor has weight 1, a difference of two sensors 0, the sum of two 2 (and their
mean 1 again); a written `5 K` may be meant as either, {0, 1}. Where both readings would give different numbers, the text is refused.
No unit algebra: volts times amperes is refused, not guessed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from edge_runtime.errors import InputError, RuleError
from edge_runtime.units import UNITS, conversion

Read = Callable[[], float | None]

_PLAIN = frozenset({0.0})
_EITHER = frozenset({0.0, 1.0})
_VALUE = frozenset({1.0})


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number in `unit` (None: written without one, it takes the unit that it meets); `constant` when it never changes."""

    unit: str | None
    read: Read
    column: int
    weights: frozenset[float] = _PLAIN
    constant: float | None = None
    fact: str | None = None


def written(value: float, unit: str | None, column: int) -> Quantity:
    """A number in the text."""
    return Quantity(unit, lambda: value, column, _EITHER if unit and has_zero(unit) else _PLAIN, value)


def measured(read: Read, unit: str, fact: str, column: int) -> Quantity:
    """A number fact."""
    return Quantity(unit, read, column, _VALUE if has_zero(unit) else _PLAIN, fact=fact)


def has_zero(unit: str) -> bool:
    """Whether units of this quantity differ in where zero is."""
    quantity = UNITS[unit].quantity if unit in UNITS else ""
    return any(known.offset for known in UNITS.values() if known.quantity == quantity)


def aligned(left: Quantity, right: Quantity, purpose: str) -> tuple[Quantity, Quantity]:
    """Both in one unit, to be compared: the unit of a fact rather than that of a written number."""
    if right.constant is None and left.constant is not None:
        right, left = aligned(right, left, purpose)
        return left, right
    if left.unit is None or right.unit is None:
        return left, right
    factor, offset = _conversion(right, left.unit, purpose)
    pairs = left.weights & right.weights
    if not pairs:
        raise RuleError(
            f"column {right.column}: cannot {purpose} {_kind(left)} and {_kind(right)}; "
            "write a difference as `a - b` and a mean as `(a + b) / 2`",
            right.column,
        )
    if len(pairs) > 1 and left.constant is not None:
        pairs = _VALUE
    return replace(left, weights=pairs), _converted(right, left.unit, factor, offset, pairs)


def total(operands: Sequence[tuple[str, Quantity]]) -> Quantity:
    """`+ -` over two or more; in the unit of the first that is not a written number, if any."""
    lead = next((q for _, q in operands if q.constant is None), None) or next(
        (q for _, q in operands if q.unit is not None), operands[0][1]
    )
    result = _in_unit_of(operands[0][1], lead)
    for operator, operand in operands[1:]:
        result = _add(result, operand, -1.0 if operator == "-" else 1.0)
    return result


def product(operands: Sequence[tuple[str, Quantity]]) -> Quantity:
    """`* /` over two or more: at most one operand has a unit, or two of one kind are divided."""
    result = operands[0][1]
    for operator, operand in operands[1:]:
        result = _multiply(result, operand) if operator == "*" else _divide(result, operand)
    return result


def negated(operand: Quantity) -> Quantity:
    """The same with the opposite sign."""
    weights = operand.weights if operand.constant is not None else frozenset(-w for w in operand.weights)
    return _derived(operand, lambda x: -x, weights)


def absolute(operand: Quantity) -> Quantity:
    """Without its sign: of a temperature only as a difference, for its sign hangs on the zero of its unit."""
    weights = operand.weights if operand.constant is not None else operand.weights & _PLAIN
    if not weights:
        raise RuleError(
            f"column {operand.column}: expected a difference in `abs(...)`, such as `abs(a - b)`, came {_kind(operand)}", operand.column
        )
    return _derived(operand, abs, weights)


def extreme(choose: Callable[[Sequence[float]], float], operands: Sequence[Quantity]) -> Quantity:
    """`min` or `max` of two or more of one kind; unknown when any of them is."""
    lead = next((q for q in operands if q.constant is None), operands[0])
    same = [aligned(lead, q, "compare")[1] if q is not lead else q for q in operands]
    reads = [q.read for q in same]

    def read() -> float | None:
        values = [value for value in (r() for r in reads) if value is not None]
        return choose(values) if len(values) == len(reads) else None

    constant = read() if all(q.constant is not None for q in same) else None
    weights = frozenset.intersection(*(q.weights for q in same)) or lead.weights
    return Quantity(lead.unit, read, lead.column, weights, constant)


def _add(left: Quantity, right: Quantity, sign: float) -> Quantity:
    if left.unit is None or right.unit is None:
        unit = left.unit or right.unit
        loose = frozenset(a + sign * b for a in _loose(left, unit) for b in _loose(right, unit))
        return _sum(left, right, sign, replace(left, unit=unit, weights=_sensible(loose)))
    factor, offset = _conversion(right, left.unit, "add" if sign > 0 else "subtract")
    sums = {b: {a + sign * b for a in left.weights} for b in right.weights}
    weights = _sensible(frozenset().union(*sums.values()))
    chosen = frozenset(b for b, results in sums.items() if results & weights)
    converted = _converted(right, left.unit, factor, offset, chosen)
    return _sum(left, converted, sign, replace(left, weights=weights))


def _sum(left: Quantity, right: Quantity, sign: float, like: Quantity) -> Quantity:
    a, b = left.read, right.read

    def read() -> float | None:
        x, y = a(), b()
        return None if x is None or y is None else x + sign * y

    constant = read() if left.constant is not None and right.constant is not None else None
    return Quantity(like.unit, read, left.column, like.weights, constant)


def _multiply(left: Quantity, right: Quantity) -> Quantity:
    if not _is_plain(left) and not _is_plain(right):
        problem = f"cannot multiply {_kind(left)} by {_kind(right)}; units are not combined, one side must be a plain number"
        raise RuleError(f"column {right.column}: {problem}", right.column)
    scaled, by = (left, right) if _is_plain(right) else (right, left)
    return _scaled(scaled, by, lambda x, y: x * y, left.column)


def _divide(left: Quantity, right: Quantity) -> Quantity:
    if right.constant == 0:
        raise RuleError(f"column {right.column}: expected a divisor other than 0", right.column)
    if _is_plain(right):
        return _scaled(left, right, lambda x, y: x / y if y else None, left.column)
    if left.unit is None or right.unit is None or _weighted(left) or _weighted(right):
        raise RuleError(
            f"column {right.column}: cannot divide {_kind(left)} by {_kind(right)}; divide by a plain number, or two of one kind",
            right.column,
        )
    factor, offset = _conversion(right, left.unit, "divide")
    same = replace(_converted(right, left.unit, factor, offset, right.weights), unit=None)
    return replace(_scaled(left, same, lambda x, y: x / y if y else None, left.column), unit="", weights=_PLAIN)


def _scaled(quantity: Quantity, by: Quantity, combine: Callable[[float, float], float | None], column: int) -> Quantity:
    """`quantity` times or over a plain number: a temperature only by a written one, for its zero is scaled too."""
    if _weighted(quantity) and quantity.constant is None and by.constant is None:
        raise RuleError(f"column {by.column}: expected a written number to scale a temperature by, came a fact", by.column)
    if by.unit:
        by = _converted(by, "", *_conversion(by, "", "scale"), by.weights)
    a, b, times = quantity.read, by.read, by.constant

    def read() -> float | None:
        x, y = a(), b()
        return None if x is None or y is None else combine(x, y)

    weights = quantity.weights
    if times is not None and quantity.constant is None:
        weights = frozenset(_tidy(combine(w, times) or 0.0) for w in weights)
    if quantity.unit is None and by.unit is not None:
        quantity = replace(quantity, unit=by.unit)
    constant = read() if quantity.constant is not None and times is not None else None
    return Quantity(quantity.unit, read, column, weights, constant)


def _derived(operand: Quantity, function: Callable[[float], float], weights: frozenset[float]) -> Quantity:
    inner = operand.read

    def read() -> float | None:
        value = inner()
        return None if value is None else function(value)

    constant = None if operand.constant is None else function(operand.constant)
    return Quantity(operand.unit, read, operand.column, weights, constant)


def _in_unit_of(operand: Quantity, lead: Quantity) -> Quantity:
    if operand.unit is None or lead.unit is None or operand.unit == lead.unit:
        return operand
    factor, offset = _conversion(operand, lead.unit, "add")
    return _converted(operand, lead.unit, factor, offset, operand.weights)


def _conversion(quantity: Quantity, unit: str, purpose: str) -> tuple[float, float]:
    try:
        return conversion(quantity.unit or "", unit)
    except InputError as err:
        bare = "" if unit and quantity.unit else "; a sensor's unit stands in the deployment: sensors.NAME.unit"
        raise RuleError(f"column {quantity.column}: cannot {purpose}: {err}{bare}", quantity.column) from err


def _converted(quantity: Quantity, unit: str, factor: float, offset: float, weights: frozenset[float]) -> Quantity:
    """In `unit`. Raises RuleError when it depends on how the text is read which number comes out."""
    if offset and len(weights) > 1:
        raise RuleError(
            f"column {quantity.column}: `{quantity.unit}` here may be a temperature or a difference; "
            f"write it in `{unit}`, or move it to the other side of the comparison",
            quantity.column,
        )
    shift = offset * next(iter(weights), 0.0)
    if factor == 1.0 and shift == 0.0:
        return replace(quantity, unit=unit, weights=weights)
    moved = _derived(quantity, lambda x: x * factor + shift, weights)
    return replace(moved, unit=unit)


def _is_plain(quantity: Quantity) -> bool:
    return not quantity.unit or (quantity.unit in UNITS and UNITS[quantity.unit].quantity == "dimensionless")


def _weighted(quantity: Quantity) -> bool:
    return quantity.weights != _PLAIN


def _loose(quantity: Quantity, unit: str | None) -> frozenset[float]:
    """Weights of a number written without unit beside `unit`."""
    return _EITHER if quantity.unit is None and unit is not None and has_zero(unit) else quantity.weights


def _sensible(weights: frozenset[float]) -> frozenset[float]:
    return weights & _EITHER or weights


def _tidy(weight: float) -> float:
    return round(weight, 9)


def _kind(quantity: Quantity) -> str:
    if quantity.unit is None:
        return "a number without unit"
    if not _weighted(quantity) or quantity.weights == _VALUE or quantity.constant is not None:
        return f"`{quantity.unit}`"
    if quantity.weights == _PLAIN or quantity.weights == frozenset({0.0}):
        return f"a difference in `{quantity.unit}`"
    return f"a sum in `{quantity.unit}`"
