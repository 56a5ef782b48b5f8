"""The rule language: what it reads, and how it says no."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import RuleError
from edge_runtime.reasoning.language import MAX_DEPTH, MAX_LENGTH, parse
from edge_runtime.reasoning.syntax import Arithmetic, Call, Comparison, Fact, Held, Junction, Negative, Node, Not, Number, Text, Truth


def test_for_binds_to_the_comparison_before_it() -> None:
    root = parse("temp > 80 degC for 5s and not maintenance").root
    held = Held(Comparison(">", Fact("temp"), Number(80, "degC")), 5_000_000_000)
    assert root == Junction("and", (held, Not(Fact("maintenance"))))


def test_for_binds_to_the_parenthesis_before_it() -> None:
    both = Junction("and", (Fact("a"), Fact("b")))
    assert parse("(a and b) for 2min").root == Held(both, 120_000_000_000)
    assert parse("a and b for 2min").root == Junction("and", (Fact("a"), Held(Fact("b"), 120_000_000_000)))


def test_and_binds_tighter_than_or() -> None:
    assert parse("a or b and c").root == Junction("or", (Fact("a"), Junction("and", (Fact("b"), Fact("c")))))
    assert parse("(a or b) and not c").root == Junction("and", (Junction("or", (Fact("a"), Fact("b"))), Not(Fact("c"))))


def test_arithmetic_binds_tighter_than_comparison_and_runs_from_the_left() -> None:
    root = parse("a - b * 2 - -c >= 1.5e1").root
    product = Arithmetic(Fact("b"), (("*", Number(2)),))
    assert root == Comparison(">=", Arithmetic(Fact("a"), (("-", product), ("-", Negative(Fact("c"))))), Number(15))


def test_labels_are_quoted_either_way_and_may_be_part_of_a_fact_name() -> None:
    assert parse('bearing == "outer race" and bearing.score > .8').facts == {"bearing", "bearing.score"}
    assert parse("bearing == 'outer race'").root == Comparison("==", Fact("bearing"), Text("outer race"))
    assert parse('bearing."outer race" > 0.5').facts == {"bearing.outer race"}
    assert parse("digit.7 > 0.5").facts == {"digit.7"}


@pytest.mark.parametrize(
    ("text", "value", "unit"),
    [
        ("80degC", 80, "degC"),
        ("0.5 m/s2", 0.5, "m/s2"),
        ("9 m/s^2", 9, "m/s^2"),
        ("6 1/min", 6, "1/min"),
        ("80 %", 80, "%"),
        ("40 %RH", 40, "%RH"),
    ],
)
def test_units_follow_numbers(text: str, value: float, unit: str) -> None:
    assert parse(f"x > {text}").root == Comparison(">", Fact("x"), Number(value, unit))


def test_a_number_before_a_keyword_has_no_unit() -> None:
    assert parse("x > 3 and y").root == Junction("and", (Comparison(">", Fact("x"), Number(3)), Fact("y")))


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("200ms", 0.2), ("2 min", 120), ("1.5 h", 5400), ("1 d", 86400)])
def test_durations(text: str, seconds: float) -> None:
    assert parse(f"x for {text}").root == Held(Fact("x"), round(seconds * 1e9))


@pytest.mark.parametrize(
    ("text", "column", "message"),
    [
        ("", 1, "expected a fact, a number, a quoted label or `(`, came the end of the text"),
        ("temp >", 7, "came the end of the text"),
        ("temp > and x", 8, "came `and` near `temp > and x`"),
        ("temp > 80 degc", 11, "unknown unit `degc`; did you mean `degC`?"),
        ("temp = 80", 6, "expected `==`, came `=`"),
        ("a && b", 3, "expected `and`, came `&&`"),
        ("a || b", 3, "expected `or`, came `||`"),
        ("!a", 1, "expected `not`, came `!`"),
        ("a AND b", 3, "write `and`"),
        ("a b", 3, "expected `and`, `or`, an operator or the end"),
        ("1 < x < 3", 7, "one comparison at a time"),
        ("(a or b", 8, "expected `)`"),
        ("a for 5", 7, "expected a duration such as `5s`"),
        ("a for 5 degC", 7, "expected a duration"),
        ("a for 0s", 7, "above 0"),
        ("a for 2000d", 7, "up to a year"),
        ("a for 5s for 6s", 10, "one `for` per condition"),
        ("not a for 5s", 1, "`not (x for 5s)`"),
        ("not (a or b) for 5s", 1, "`not (x for 5s)`"),
        ("mxa(1, 2) > 3", 1, "did you mean `max`?"),
        ("abs(1, 2) > 3", 1, "expected 1 value in `abs(...)`, came 2"),
        ("known(1)", 1, "one fact in `known(...)`"),
        ("x == 'abc", 6, "a closing `'`"),
        ("x > 1e999", 5, "a finite number"),
        ("x > 3 § 4", 7, "unknown unit `§`"),
        ("x @ 4", 3, "came `@`"),
    ],
)
def test_a_mistake_is_told_with_its_column_what_was_expected_and_what_came(text: str, column: int, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        parse(text)
    assert caught.value.column == column
    assert message in str(caught.value)
    assert f"column {column}:" in str(caught.value)


def test_not_and_for_are_clear_with_parentheses() -> None:
    assert parse("not (a for 5s)").root == Not(Held(Fact("a"), 5_000_000_000))
    assert parse("(not a) for 5s").root == Held(Not(Fact("a")), 5_000_000_000)


def test_size_is_bounded_in_length_depth_and_arithmetic() -> None:
    with pytest.raises(RuleError, match="characters"):
        parse("a" * (MAX_LENGTH + 1))
    with pytest.raises(RuleError, match="levels of nesting"):
        parse("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1))
    with pytest.raises(RuleError, match="levels of nesting"):
        parse("not " * (MAX_DEPTH + 1) + "a")
    with pytest.raises(RuleError, match="arithmetic operators"):
        parse("+".join("a" * 200) + " > 1")
    assert parse("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH).root == Fact("a")


@given(st.text(max_size=300))
def test_any_text_is_read_or_refused_with_a_column_in_it(text: str) -> None:
    _read_or_refuse(text)


_WORDS = [
    "temp",
    "for",
    "and",
    "or",
    "not",
    "(",
    ")",
    "5s",
    "80 degC",
    ">",
    "==",
    "-",
    "*",
    "/",
    '"x"',
    "abs(",
    "known(",
    ",",
    "true",
    ".",
    "1e",
    "min",
]


@given(st.lists(st.sampled_from(_WORDS), max_size=60), st.sampled_from(["", " "]))
def test_any_run_of_words_is_read_or_refused(words: list[str], joint: str) -> None:
    _read_or_refuse(joint.join(words))


def _read_or_refuse(text: str) -> None:
    column = 1
    try:
        parse(text)
    except RuleError as err:
        column = err.column
    assert 1 <= column <= len(text) + 1


# -- round trip: a tree written out and read again is the same tree -----------------------------------------------------------

_names = st.text(string.ascii_lowercase, min_size=1, max_size=3).map(lambda name: f"f_{name}")
_numbers = st.builds(Number, st.floats(0, 1e6, allow_subnormal=False), st.sampled_from(["", "degC", "m/s2", "%", "1/min"]))
_leaf_values = st.one_of(st.builds(Fact, _names), _numbers)


def _deeper_values(values: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    def run(operators: str) -> st.SearchStrategy[Node]:
        rest = st.lists(st.tuples(st.sampled_from(operators), values), min_size=1, max_size=3).map(tuple)
        return st.builds(Arithmetic, values, rest)

    return st.one_of(run("+-"), run("*/"), st.builds(Negative, values), st.builds(lambda a: Call("abs", (a,)), values))


_values = st.recursive(_leaf_values, _deeper_values, max_leaves=4)
_compared = st.builds(Comparison, st.sampled_from([">", ">=", "<", "<=", "==", "!="]), _values, _values)
_states = st.builds(lambda name: Call("stale", (Fact(name),)), _names)
_labels = st.builds(lambda name, label: Comparison("==", Fact(name), Text(label)), _names, st.text(string.ascii_letters + " -", max_size=8))
_atoms = st.one_of(_compared, _states, _labels, st.builds(Fact, _names), st.builds(Truth, st.booleans()))


def _deeper_conditions(conditions: st.SearchStrategy[Node]) -> st.SearchStrategy[Node]:
    several = st.lists(conditions, min_size=2, max_size=3).map(tuple)
    return st.one_of(
        st.builds(Junction, st.sampled_from(["and", "or"]), several),
        st.builds(Not, conditions),
        st.builds(Held, conditions, st.integers(1, 10**6).map(lambda ms: ms * 1_000_000)),
    )


_conditions = st.recursive(_atoms, _deeper_conditions, max_leaves=5)


@given(_conditions)
def test_a_condition_written_out_reads_back_as_itself(root: Node) -> None:
    text = _write(root)
    condition = parse(text)
    assert condition.root == root
    assert condition.facts == _facts(root)


def _write(node: Node) -> str:
    match node:
        case Number():
            return f"{node.value!r} {node.unit}".strip()
        case Text():
            return f'"{node.value}"'
        case Truth():
            return "true" if node.value else "false"
        case Fact():
            return node.name
        case Call():
            return f"{node.function}({', '.join(map(_write, node.arguments))})"
        case Negative():
            return f"-{_inside(node.operand)}"
        case Arithmetic():
            return _inside(node.first) + "".join(f" {sign} {_inside(operand)}" for sign, operand in node.rest)
        case Comparison():
            return f"{_inside(node.left)} {node.operator} {_inside(node.right)}"
        case Held():
            return f"{_inside(node.operand)} for {node.duration_ns // 1_000_000}ms"
        case Not():
            return f"not {_inside(node.operand)}"
        case Junction():
            return f" {node.operator} ".join(map(_inside, node.operands))


def _inside(node: Node) -> str:
    return _write(node) if isinstance(node, (Number, Text, Truth, Fact, Call)) else f"({_write(node)})"


def _facts(node: Node) -> set[str]:
    match node:
        case Fact():
            return {node.name}
        case Call():
            return set().union(*map(_facts, node.arguments))
        case Negative() | Held() | Not():
            return _facts(node.operand)
        case Arithmetic():
            return _facts(node.first).union(*(_facts(operand) for _, operand in node.rest))
        case Comparison():
            return _facts(node.left) | _facts(node.right)
        case Junction():
            return set().union(*map(_facts, node.operands))
        case _:
            return set()
