"""The rule language: text to a tree, and a check of the tree against the facts of a deployment.

    condition   := conjunction ("or" conjunction)*
    conjunction := negation ("and" negation)*
    negation    := "not" negation | held
    held        := comparison ["for" NUMBER time-unit]
    comparison  := sum [(">" | ">=" | "<" | "<=" | "==" | "!=") sum]
    sum         := product (("+" | "-") product)*
    product     := factor (("*" | "/") factor)*
    factor      := "-" factor | NUMBER [unit] | STRING | "true" | "false" | name | function "(" sum ("," sum)* ")" | "(" condition ")"

Own lexer and recursive descent, bounded in length, depth and arithmetic; nothing of the text is ever executed. What a condition
means over facts is in `semantics`.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from edge_runtime.errors import InputError, RuleError
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
    Truth,
)
from edge_runtime.units import UNITS, convert, parse_unit

MAX_LENGTH = 2000
MAX_DEPTH = 32
MAX_ARITHMETIC = 100
MAX_HOLD_S = 31_536_000.0

VALUE_FUNCTIONS = {"abs": (1, 1), "min": (2, 16), "max": (2, 16)}
STATE_FUNCTIONS = ("known", "stale")
KEYWORDS = frozenset({"and", "or", "not", "for", "true", "false"})
COMPARISONS = frozenset({">", ">=", "<", "<=", "==", "!="})

_LONGEST_QUOTE = 80
_MISTAKEN = {"&&": "and", "||": "or", "&": "and", "|": "or", "!": "not", "=": "==", "<>": "!=", "=>": ">=", "=<": "<=", "===": "=="}
_SPACE = re.compile(r"[ \t\r\n]*")
_NUMBER = re.compile(r"(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?")
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.(?:[A-Za-z0-9_]+|\"[^\"\n]*\"))*")
_STRING = re.compile(r"\"([^\"\n]*)\"|'([^'\n]*)'")
_SYMBOL = re.compile(r"===|&&|\|\||<>|=>|=<|>=|<=|==|!=|[-+*/()<>,=!&|]")
_UNIT = re.compile(
    "(?:" + "|".join(re.escape(u) for u in sorted(UNITS, key=len, reverse=True) if u not in ("", "1")) + r")(?![A-Za-z0-9_°])"
)
_WORD = re.compile(r"[^\s()<>=!,+*&|\"']+")


@dataclass(frozen=True, slots=True)
class Condition:
    """A parsed condition: its text, the facts it names and its tree."""

    text: str
    facts: frozenset[str] = field(compare=False)
    root: Node = field(repr=False)


def parse(text: str) -> Condition:
    """Text to a condition. Raises RuleError with the 1-based column, what was expected, what came and what is near it."""
    if not isinstance(text, str):
        raise RuleError(f"expected a condition as text, came {type(text).__name__}")
    if len(text) > MAX_LENGTH:
        raise RuleError(f"the condition has {len(text)} characters, at most {MAX_LENGTH} are allowed; split it into rules", MAX_LENGTH + 1)
    parser = _Parser(text)
    root = parser.condition()
    parser.finish()
    return Condition(text, frozenset(parser.facts), root)


def nearest(name: str, known: Iterable[str]) -> str:
    """`; did you mean ...?` for a message, or nothing when no known name is near."""
    names = list(known)
    same = [candidate for candidate in names if candidate.casefold() == name.casefold()]
    near = same or difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"; did you mean `{near[0]}`?" if near else ""


@dataclass(frozen=True, slots=True)
class _Token:
    """`kind` is number, string, name, keyword, symbol or end; `text` is the token as written (strings without quotes)."""

    kind: str
    text: str
    start: int
    end: int
    value: float = 0.0
    unit: str = ""


def _tokens(text: str) -> Iterator[_Token]:
    position = 0
    while True:
        position = _after_space(text, position)
        if position == len(text):
            yield _Token("end", "", position, position)
            return
        token = _token(text, position)
        yield token
        position = token.end


def _token(text: str, start: int) -> _Token:
    if match := _NUMBER.match(text, start):
        return _number(text, start, match.end())
    if match := _NAME.match(text, start):
        word = match.group()
        return _Token("keyword" if word in KEYWORDS else "name", word.replace('"', ""), start, match.end())
    if match := _STRING.match(text, start):
        return _Token("string", match.group(1) if match.group(1) is not None else match.group(2), start, match.end())
    if match := _SYMBOL.match(text, start):
        symbol = match.group()
        if symbol in _MISTAKEN:
            raise _error(text, start, f"`{_MISTAKEN[symbol]}`", f"`{symbol}`")
        return _Token("symbol", symbol, start, match.end())
    if text[start] in "\"'":
        raise _error(text, start, f"a closing `{text[start]}`", "the end of the text")
    raise _error(text, start, "a name, a number or an operator", f"`{text[start]}`")


def _number(text: str, start: int, end: int) -> _Token:
    value = float(text[start:end])
    if not math.isfinite(value):
        raise _error(text, start, "a finite number", f"`{text[start:end]}`")
    after = _after_space(text, end)
    if match := _UNIT.match(text, after):
        return _Token("number", text[start : match.end()], start, match.end(), value, match.group())
    word = _WORD.match(text, after)
    if word and word.group() not in KEYWORDS and word.group()[0] not in "/-.":
        try:
            parse_unit(word.group())
        except InputError as err:
            raise RuleError(f"column {after + 1}: {err} (after the number {text[start:end]})", after + 1) from err
    return _Token("number", text[start:end], start, end, value)


def _after_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    return match.end() if match else position


def _error(text: str, position: int, expected: str, came: str) -> RuleError:
    near = " ".join(text[max(0, position - 12) : position + 12].split())
    came = came if len(came) <= _LONGEST_QUOTE else f"{came[:_LONGEST_QUOTE]}..."
    return RuleError(f"column {position + 1}: expected {expected}, came {came}" + (f" near `{near}`" if near else ""), position + 1)


class _Parser:
    """One pass from left to right with one token of foresight."""

    def __init__(self, text: str) -> None:
        self.facts: set[str] = set()
        self._text = text
        self._tokens = _tokens(text)
        self._token = next(self._tokens)
        self._end = 0
        self._depth = 0
        self._arithmetic = 0

    def finish(self) -> None:
        token = self._token
        if token.kind == "end":
            return
        hint = f" (write `{token.text.lower()}`)" if token.text.lower() in KEYWORDS else ""
        raise self._wrong("`and`, `or`, an operator or the end" + hint)

    def condition(self) -> Node:
        return self._junction("or", lambda: self._junction("and", self._negation))

    def _junction(self, operator: str, operand: Callable[[], Node]) -> Node:
        start = self._token.start
        operands = [operand()]
        while self._take("keyword", operator):
            operands.append(operand())
        if len(operands) == 1:
            return operands[0]
        return Junction(operator, tuple(operands), start=start, end=self._end)

    def _negation(self) -> Node:
        token = self._token
        if not self._take("keyword", "not"):
            return self._held()
        first = self._token.start
        with self._deeper():
            operand = self._negation()
        if isinstance(operand, Held) and operand.start == first:
            expected = "parentheses, as in `(not x) for 5s` or `not (x for 5s)`"
            raise _error(self._text, token.start, expected, "`not` and `for` together, which can be read both ways")
        return Not(operand, start=token.start, end=self._end)

    def _held(self) -> Node:
        start = self._token.start
        operand = self._comparison()
        if not self._take("keyword", "for"):
            return operand
        duration_ns = self._duration()
        if self._token.kind == "keyword" and self._token.text == "for":
            raise self._wrong("one `for` per condition")
        return Held(operand, duration_ns, start=start, end=self._end)

    def _duration(self) -> int:
        token = self._token
        if token.kind != "number" or not token.unit or UNITS[token.unit].quantity != "time":
            raise self._wrong("a duration such as `5s`, `200ms` or `2min`")
        seconds = convert(token.value, token.unit, "s")
        if not 0 < seconds <= MAX_HOLD_S:
            raise self._wrong("a duration above 0 and up to a year")
        self._next()
        return max(1, round(seconds * 1e9))

    def _comparison(self) -> Node:
        start = self._token.start
        left = self._sum()
        operator = self._operator(COMPARISONS)
        if operator is None:
            return left
        right = self._sum()
        if self._token.kind == "symbol" and self._token.text in COMPARISONS:
            raise self._wrong("one comparison at a time, joined by `and`")
        return Comparison(operator, left, right, start=start, end=self._end)

    def _sum(self) -> Node:
        return self._chain({"+", "-"}, lambda: self._chain({"*", "/"}, self._factor))

    def _chain(self, operators: set[str], operand: Callable[[], Node]) -> Node:
        start = self._token.start
        first = operand()
        rest: list[tuple[str, Node]] = []
        while operator := self._operator(operators):
            self._arithmetic += 1
            if self._arithmetic > MAX_ARITHMETIC:
                raise self._wrong(f"at most {MAX_ARITHMETIC} arithmetic operators")
            rest.append((operator, operand()))
        return Arithmetic(first, tuple(rest), start=start, end=self._end) if rest else first

    def _factor(self) -> Node:
        token = self._token
        if self._take("symbol", "-"):
            with self._deeper():
                return Negative(self._factor(), start=token.start, end=self._end)
        if token.kind == "number":
            self._next()
            return Number(token.value, token.unit, start=token.start, end=token.end)
        if token.kind == "string":
            self._next()
            return Text(token.text, start=token.start, end=token.end)
        if token.kind == "keyword" and token.text in ("true", "false"):
            self._next()
            return Truth(token.text == "true", start=token.start, end=token.end)
        if token.kind == "name":
            return self._name()
        if self._take("symbol", "("):
            with self._deeper():
                inner = self.condition()
            self._expect(")")
            return inner
        raise self._wrong("a fact, a number, a quoted label or `(`")

    def _name(self) -> Node:
        token = self._token
        self._next()
        if not self._take("symbol", "("):
            self.facts.add(token.text)
            return Fact(token.text, start=token.start, end=token.end)
        if token.text not in VALUE_FUNCTIONS and token.text not in STATE_FUNCTIONS:
            known = (*VALUE_FUNCTIONS, *STATE_FUNCTIONS)
            expected = f"a function ({', '.join(known)})"
            raise _error(self._text, token.start, expected, f"`{token.text}(`{nearest(token.text, known)}")
        with self._deeper():
            arguments = self._arguments(token)
        return Call(token.text, arguments, start=token.start, end=self._end)

    def _arguments(self, function: _Token) -> tuple[Node, ...]:
        arguments = [self._sum()]
        while self._take("symbol", ","):
            arguments.append(self._sum())
        self._expect(")")
        if function.text in STATE_FUNCTIONS:
            if len(arguments) != 1 or not isinstance(arguments[0], Fact):
                raise _error(self._text, function.start, f"one fact in `{function.text}(...)`", "something else")
            return tuple(arguments)
        least, most = VALUE_FUNCTIONS[function.text]
        if not least <= len(arguments) <= most:
            count = str(least) if least == most else f"{least} to {most}"
            raise _error(
                self._text, function.start, f"{count} value{'s' if most > 1 else ''} in `{function.text}(...)`", str(len(arguments))
            )
        return tuple(arguments)

    @contextmanager
    def _deeper(self) -> Iterator[None]:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise self._wrong(f"at most {MAX_DEPTH} levels of nesting")
        yield
        self._depth -= 1

    def _next(self) -> None:
        self._end = self._token.end
        self._token = next(self._tokens)

    def _take(self, kind: str, text: str) -> bool:
        if self._token.kind == kind and self._token.text == text:
            self._next()
            return True
        return False

    def _operator(self, operators: frozenset[str] | set[str]) -> str | None:
        if self._token.kind != "symbol" or self._token.text not in operators:
            return None
        operator = self._token.text
        self._next()
        return operator

    def _expect(self, symbol: str) -> None:
        if not self._take("symbol", symbol):
            raise self._wrong(f"`{symbol}`")

    def _wrong(self, expected: str) -> RuleError:
        token = self._token
        came = "the end of the text" if token.kind == "end" else f"`{self._text[token.start : token.end]}`"
        return _error(self._text, token.start, expected, came)
