"""Checks plain values against the msgspec types of a document and reports every misfit, not only the first. Pure."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import inspect

from edge_runtime.config.positions import Document


def check_types(document: Document, kind: type[msgspec.Struct]) -> None:
    """Adds a problem for every key that is unknown, missing, of the wrong type or out of range."""
    _Walker(document).walk(document.value, inspect.type_info(kind), "")


class _Walker:
    def __init__(self, document: Document) -> None:
        self._document = document
        self._checks: dict[type, Callable[[Any, Any, str], None]] = {
            inspect.StructType: self._struct,
            inspect.DictType: self._dict,
            inspect.VarTupleType: self._list,
            inspect.UnionType: self._union,
            inspect.LiteralType: self._literal,
            inspect.IntType: self._number,
            inspect.FloatType: self._number,
            inspect.StrType: self._text,
            inspect.BoolType: self._bool,
            inspect.NoneType: self._none,
        }

    def walk(self, value: Any, kind: inspect.Type, path: str) -> None:
        while isinstance(kind, inspect.Metadata):
            kind = kind.type
        check = self._checks.get(type(kind))
        if check is not None:
            check(value, kind, path)

    def _struct(self, value: Any, kind: inspect.StructType, path: str) -> None:
        if not isinstance(value, dict):
            self._expected("a mapping with the keys " + _names([f.encode_name for f in kind.fields]), value, path)
            return
        fields = {field.encode_name: field for field in kind.fields}
        for key, item in value.items():
            child = f"{path}.{key}" if path else key
            if key in fields:
                self.walk(item, fields[key].type, child)
            else:
                self._unknown(key, list(fields), child)
        for name, field in fields.items():
            if field.required and name not in value:
                self._document.report(
                    f"{path}.{name}" if path else name, f"missing; expected {describe(field.type)}{_EXAMPLES.get(name, '')}"
                )

    def _dict(self, value: Any, kind: inspect.DictType, path: str) -> None:
        if not isinstance(value, dict):
            self._expected("a mapping of names", value, path)
            return
        for key, item in value.items():
            child = f"{path}.{key}" if path else key
            self.walk(key, kind.key_type, child)
            self.walk(item, kind.value_type, child)

    def _list(self, value: Any, kind: inspect.VarTupleType, path: str) -> None:
        if not isinstance(value, list):
            self._expected("a list in [ ]", value, path)
            return
        for index, item in enumerate(value):
            self.walk(item, kind.item_type, f"{path}[{index}]")

    def _union(self, value: Any, kind: inspect.UnionType, path: str) -> None:
        fitting = [choice for choice in kind.types if _fits(value, choice)]
        if fitting:
            self.walk(value, fitting[0], path)
        else:
            self._expected(describe(kind), value, path)

    def _literal(self, value: Any, kind: inspect.LiteralType, path: str) -> None:
        if value in kind.values and not isinstance(value, bool):
            return
        near = difflib.get_close_matches(str(value), [str(v) for v in kind.values], n=1)
        self._expected(describe(kind), value, path, f"; did you mean `{near[0]}`?" if near else "")

    def _number(self, value: Any, kind: inspect.IntType | inspect.FloatType, path: str) -> None:
        whole = isinstance(kind, inspect.IntType)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            self._expected(describe(kind), value, path)
            return
        bounds = (("ge", value >= _or(kind.ge, value)), ("gt", kind.gt is None or value > kind.gt), ("le", value <= _or(kind.le, value)))
        if not all(ok for _, ok in bounds):
            self._expected(describe(kind), value, path)

    def _text(self, value: Any, kind: inspect.StrType, path: str) -> None:
        if not isinstance(value, str):
            hint = ""
            if path in self._document.words:
                word = self._document.words[path]
                hint = f'; YAML reads a bare {word} as {str(value).lower()}: write "{word}" in quotes'
            elif value is not None:
                hint = f'; write it in quotes: "{value}"'
            self._expected("text", value, path, hint)
        elif kind.pattern is not None and not re.search(kind.pattern, value):
            self._expected(_PATTERNS.get(kind.pattern, f"text like {kind.pattern}"), value, path)

    def _bool(self, value: Any, kind: inspect.BoolType, path: str) -> None:
        if not isinstance(value, bool):
            self._expected("true or false", value, path)

    def _none(self, value: Any, kind: inspect.NoneType, path: str) -> None:
        if value is not None:
            self._expected("nothing", value, path)

    def _unknown(self, key: str, known: list[str], path: str) -> None:
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"known here: {', '.join(known)}"
        self._document.report(path, f"unknown key `{key}`; {hint}")

    def _expected(self, expected: str, came: Any, path: str, hint: str = "") -> None:
        self._document.report(path, f"expected {expected}, got {_show(came)}{hint}")


_PATTERNS = {
    r"^[A-Za-z_][A-Za-z0-9_]{0,63}$": "a name of letters, digits and _ that starts with a letter (at most 64)",
    r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$": "a name of letters, digits, _ . - (at most 64; no / + #)",
    r"^sha256:[0-9a-f]{64}$": "a digest `sha256:` and 64 hexadecimal digits",
}
_EXAMPLES = {"schema": ", write `schema: 1`", "gateway": ", such as `gateway: {id: gw-01}`", "size": " (samples per window)"}


def describe(kind: inspect.Type) -> str:
    """A type in words."""
    if isinstance(kind, inspect.Metadata):
        return describe(kind.type)
    if isinstance(kind, inspect.UnionType):
        return " or ".join(dict.fromkeys(describe(choice) for choice in kind.types if not isinstance(choice, inspect.NoneType)))
    if isinstance(kind, inspect.LiteralType):
        return " | ".join(f"`{value}`" for value in kind.values)
    if isinstance(kind, inspect.IntType | inspect.FloatType):
        return ("a whole number" if isinstance(kind, inspect.IntType) else "a number") + _range(kind)
    words = {inspect.StrType: "text", inspect.BoolType: "true or false", inspect.VarTupleType: "a list in [ ]"}
    return words.get(type(kind), "a mapping")


def _range(kind: inspect.IntType | inspect.FloatType) -> str:
    parts = [f"{sign} {limit:g}" for sign, limit in ((">=", kind.ge), (">", kind.gt), ("<=", kind.le)) if limit is not None]
    return " " + " and ".join(parts) if parts else ""


def _fits(value: Any, kind: inspect.Type) -> bool:
    while isinstance(kind, inspect.Metadata):
        kind = kind.type
    shapes: dict[type, Any] = {
        inspect.NoneType: type(None),
        inspect.StrType: str,
        inspect.VarTupleType: list,
        inspect.StructType: dict,
        inspect.DictType: dict,
        inspect.IntType: int,
        inspect.FloatType: int | float,
        inspect.BoolType: bool,
    }
    return isinstance(value, shapes.get(type(kind), object)) and (not isinstance(value, bool) or isinstance(kind, inspect.BoolType))


def _or(limit: Any, value: Any) -> Any:
    return value if limit is None else limit


def _names(names: list[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")


def _show(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"`{text[:60]}`"
