"""What conditions mean: three-valued logic, units, labels, and what is refused before anything runs."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import RuleError
from edge_runtime.reasoning.facts import FactType, Value
from edge_runtime.reasoning.language import parse
from edge_runtime.reasoning.network import Network
from edge_runtime.reasoning.semantics import check, compile_condition
from edge_runtime.units import convert

FACTS = {
    "temp": FactType("number", "degC"),
    "oil": FactType("number", "degF"),
    "flow": FactType("number", "l/min"),
    "pressure": FactType("number", "bar"),
    "load": FactType("number", "%"),
    "x": FactType("number"),
    "y": FactType("number"),
    "maintenance": FactType("flag"),
    "a": FactType("flag"),
    "b": FactType("flag"),
    "bearing": FactType("label", labels=("normal", "outer_race", "inner_race")),
    "any_label": FactType("label"),
    "bearing.score": FactType("number"),
}


def truth(text: str, **values: Value) -> bool | None:
    network = Network(FACTS)
    compiled = compile_condition(parse(text), network)
    for name, value in values.items():
        slot = network.slot(name)
        slot.change(slot.admit(value), False)
    return compiled.truth()


# -- Kleene -------------------------------------------------------------------------------------------------------------------

T, F, U = True, False, None


@pytest.mark.parametrize(
    ("a", "b", "conjunction", "disjunction"),
    [(T, T, T, T), (T, F, F, T), (T, U, U, T), (F, T, F, T), (F, F, F, F), (F, U, F, U), (U, T, U, T), (U, F, F, U), (U, U, U, U)],
)
def test_the_truth_table(a: bool | None, b: bool | None, conjunction: bool | None, disjunction: bool | None) -> None:
    assert truth("a and b", a=a, b=b) is conjunction
    assert truth("a or b", a=a, b=b) is disjunction


@pytest.mark.parametrize(("a", "negation"), [(T, F), (F, T), (U, U)])
def test_not_unknown_is_unknown(a: bool | None, negation: bool | None) -> None:
    assert truth("not a", a=a) is negation


_logic = st.recursive(
    st.sampled_from(["a", "b", "maintenance", "true", "false"]),
    lambda inner: st.one_of(
        inner.map(lambda one: f"not ({one})"),
        st.tuples(inner, st.sampled_from(["and", "or"]), inner).map(lambda parts: f"({parts[0]}) {parts[1]} ({parts[2]})"),
    ),
    max_leaves=6,
)


@given(_logic, st.tuples(*[st.sampled_from([T, F, U])] * 3))
def test_what_is_known_despite_unknown_facts_holds_however_they_turn_out(text: str, values: tuple[bool | None, ...]) -> None:
    names = ("a", "b", "maintenance")
    outcome = truth(text, **dict(zip(names, values, strict=True)))
    possible = {
        truth(text, **dict(zip(names, case, strict=True)))
        for case in itertools.product(*[(T, F) if value is None else (value,) for value in values])
    }
    assert None not in possible
    if outcome is not None:
        assert possible == {outcome}


@pytest.mark.parametrize(
    "text", ["x > 3", "x == 3", "x != 3", "x + y > 3", "abs(x) < 1", "max(x, y) > 1", "bearing == 'normal'", "bearing != 'normal'"]
)
def test_a_comparison_with_an_unknown_value_is_unknown(text: str) -> None:
    assert truth(text, y=1.0) is None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), "text"])
def test_a_value_that_is_no_finite_number_is_unknown(value: Value) -> None:
    assert truth("x > 3", x=value) is None
    assert truth("known(x)", x=value) is False


def test_division_by_zero_is_unknown() -> None:
    assert truth("x / y > 3", x=1.0, y=0.0) is None


def test_arithmetic_that_runs_out_of_numbers_is_unknown() -> None:
    assert truth("x * 1e300 * 1e300 - y * 1e300 * 1e300 > 0", x=1e300, y=1e300) is None


# -- units --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values", "expected"),
    [
        ("oil > 80 degC", {"oil": 176.5}, True),
        ("oil > 80 degC", {"oil": 175.5}, False),
        ("80 degC < oil", {"oil": 176.5}, True),
        ("temp > oil", {"temp": 80.1, "oil": 176.0}, True),
        ("temp > oil", {"temp": 79.9, "oil": 176.0}, False),
        ("temp - oil > 5 K", {"temp": 90.0, "oil": 176.0}, True),
        ("temp - oil > 9 degF", {"temp": 86.0, "oil": 176.0}, True),
        ("temp - oil > 11 degF", {"temp": 86.0, "oil": 176.0}, False),
        ("temp > oil + 5 K", {"temp": 86.0, "oil": 176.0}, True),
        ("temp > oil + 5 K", {"temp": 84.0, "oil": 176.0}, False),
        ("(temp + oil) / 2 > 353 K", {"temp": 80.0, "oil": 176.0}, True),
        ("(temp + oil) / 2 > 354 K", {"temp": 80.0, "oil": 176.0}, False),
        ("abs(temp - 80 degC) > 5 degC", {"temp": 74.0}, True),
        ("abs(temp - 80) > 5", {"temp": 86.0}, True),
        ("abs(temp - 80 degC) > 5 K", {"temp": 74.0}, True),
        ("abs(temp - 80 degC) > 9 degF", {"temp": 76.0}, False),
        ("max(temp, oil) > 85 degC", {"temp": 80.0, "oil": 190.0}, True),
        ("min(temp, oil) > 85 degC", {"temp": 80.0, "oil": 190.0}, False),
        ("flow < 1 m3/h", {"flow": 16.0}, True),
        ("flow < 1 m3/h", {"flow": 17.0}, False),
        ("pressure > 200 kPa", {"pressure": 2.1}, True),
        ("load > 80", {"load": 81.0}, True),
        ("load > 80 %", {"load": 79.0}, False),
        ("load > 0.8 1", {}, RuleError),
        ("bearing.score > 80 %", {"bearing.score": 0.81}, True),
        ("temp > 80", {"temp": 81.0}, True),
        ("flow / pressure > 1", {}, RuleError),
        ("flow * 2 > 1 l/s", {"flow": 31.0}, True),
        ("flow * 50 % > 0.2 l/s", {"flow": 31.0}, True),
        ("flow / 60 l/min > 0.5", {"flow": 31.0}, True),
        ("1.8 * temp + 32 > 176", {"temp": 80.1}, True),
        ("-temp < -80 degC", {}, RuleError),
        ("-x < -3", {"x": 4.0}, True),
        ("2 * 40 > x", {"x": 79.0}, True),
    ],
)
def test_units_are_converted(text: str, values: dict[str, Value], expected: bool | type[RuleError]) -> None:
    if isinstance(expected, bool):
        assert truth(text, **values) is expected
    else:
        with pytest.raises(expected):
            truth(text, **values)


@given(st.floats(-200, 500), st.floats(-200, 500))
def test_a_threshold_in_another_unit_is_the_converted_threshold(value: float, limit: float) -> None:
    if abs(value - convert(limit, "degC", "degF")) > 1e-6:
        assert truth(f"oil > {limit!r} degC" if limit >= 0 else f"oil > -{-limit!r} degC", oil=value) is (
            value > convert(limit, "degC", "degF")
        )


_temperatures = st.recursive(
    st.sampled_from(["t1", "t2", "t3", "10 degC", "40 degF", "5 K", "300 K", "0 degC"]),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from("+-"), inner).map(lambda parts: f"({parts[0]} {parts[1]} {parts[2]})"),
        st.tuples(inner, st.sampled_from(["* 2", "/ 2", "/ 3"])).map(lambda parts: f"({parts[0]} {parts[1]})"),
        st.tuples(st.sampled_from(["min", "max"]), inner, inner).map(lambda parts: f"{parts[0]}({parts[1]}, {parts[2]})"),
        inner.map(lambda one: f"abs({one})"),
        inner.map(lambda one: f"-{one}"),
    ),
    max_leaves=5,
)


@given(_temperatures, _temperatures, st.tuples(*[st.floats(-50, 150)] * 3))
def test_what_is_accepted_does_not_depend_on_the_unit_of_the_sensors(left: str, right: str, celsius: tuple[float, ...]) -> None:
    """80 degC as a temperature, a difference, a mean: each in the units of three fleets, with the same outcome."""
    outcomes = set()
    for units in (("degC",) * 3, ("degF",) * 3, ("K",) * 3, ("degC", "degF", "K")):
        facts = {f"t{n + 1}": FactType("number", unit) for n, unit in enumerate(units)}
        values = {f"t{n + 1}": convert(celsius[n], "degC", unit) for n, unit in enumerate(units)}
        with contextlib.suppress(RuleError):
            tie = f"abs(({left}) - ({right})) < 0.000001 K"
            with contextlib.suppress(RuleError):
                if _evaluate(tie, facts, values):
                    return
            outcomes.add(_evaluate(f"{left} > {right}", facts, values))
    assert len(outcomes) <= 1


def _evaluate(text: str, facts: dict[str, FactType], values: dict[str, float]) -> bool | None:
    network = Network(facts)
    compiled = compile_condition(parse(text), network)
    for name, value in values.items():
        network.slot(name).change(value, False)
    return compiled.truth()


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("temp > 3 bar", 8, "unit `bar` is pressure, expected temperature"),
        ("flow > temp", 8, "is temperature, expected flow"),
        ("flow + temp > 3", 8, "cannot add"),
        ("flow * pressure > 3", 8, "cannot multiply"),
        ("temp + oil > 80 degC", 14, "cannot compare"),
        ("temp - 5 K > 80 degC", 8, "may be a temperature or a difference"),
        ("temp - 80 degC > 5 K", 18, "may be a temperature or a difference"),
        ("abs(temp) > 5 degC", 5, "expected a difference in `abs(...)`"),
        ("x / 0 > 1", 5, "a divisor other than 0"),
        ("tmep > 80", 1, "came `tmep`; did you mean `temp`?"),
        ("nothing_like_it", 1, "known: temp"),
        ("x and a", 1, "expected a condition, came the number `x`"),
        ("bearing", 1, "came the label `bearing`"),
        ("a > 3", 1, "expected `==` or `!=` with the flag `a`, came `>`"),
        ("a == 3", 6, "`true` or `false` beside the flag"),
        ("bearing == outer_race", 12, "a label in quotes"),
        ('bearing == "outer_rac"', 12, "came `outer_rac`; did you mean `outer_race`?"),
        ('bearing < "normal"', 1, "`==` or `!=`"),
        ("bearing + 1 > 2", 1, "expected a number, came the label `bearing`"),
        ("(a and b) > 3", 2, "expected a number, came `a and b`"),
        ("x + 1", 1, "expected a condition, came the value `x + 1`"),
        ("3", 1, "expected a condition"),
        ("'text'", 1, "expected a condition"),
        ("abs(a) > 1", 5, "came the flag `a`"),
        ("stale(nope)", 7, "came `nope`"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_column(text: str, column: int, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        check(parse(text), FACTS)
    assert message in str(caught.value)
    assert caught.value.column == column


@given(
    st.lists(
        st.sampled_from(
            [
                "temp",
                "oil",
                "x",
                "a",
                "bearing",
                "'normal'",
                "5 K",
                "80 degC",
                "3",
                "+",
                "-",
                "*",
                "/",
                ">",
                "==",
                "(",
                ")",
                "and",
                "min(",
                ",",
            ]
        ),
        max_size=20,
    )
)
def test_whatever_parses_is_checked_or_refused(words: list[str]) -> None:
    with contextlib.suppress(RuleError):
        check(parse(" ".join(words)), FACTS)


def test_labels_without_a_list_may_be_any_text() -> None:
    assert truth("any_label == 'whatever'", any_label="whatever") is True


def test_flags_are_compared_with_true_and_false_or_stand_alone() -> None:
    assert truth("a == false", a=False) is True
    assert truth("true != a", a=False) is True
    assert truth("a", a=True) is True


# -- incremental truth --------------------------------------------------------------------------------------------------------

_POOL = [
    "x > 1",
    "x >= 1",
    "x < 1",
    "x <= 1",
    "x == 1",
    "x != 1",
    "x > 2",
    "x <= 2",
    "2 >= x",
    "x + y > 3",
    "known(x)",
    "not (x > y)",
    "x > 1.5",
    "1.5 > y",
]


@given(st.lists(st.tuples(st.sampled_from("xy"), st.sampled_from([None, 0.0, 1.0, 1.5, 2.0, 3.0])), max_size=12))
def test_flipping_only_what_changes_gives_the_same_truth_as_evaluating_afresh(changes: list[tuple[str, float | None]]) -> None:
    network = Network(FACTS)
    compiled = [compile_condition(parse(text), network) for text in _POOL]
    values: dict[str, Value] = {}
    for name, value in changes:
        values[name] = value
        network.slot(name).change(value, False)
        assert [one.truth() for one in compiled] == [truth(text, **values) for text in _POOL]


def test_a_condition_compiled_late_sees_the_values_that_are_there() -> None:
    network = Network(FACTS)
    network.slot("x").change(3.0, False)
    assert compile_condition(parse("x > 2"), network).truth() is True
    network.slot("x").change(1.0, False)
    assert compile_condition(parse("x > 0.5"), network).truth() is True
