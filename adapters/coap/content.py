"""A number out of a CoAP payload: text, JSON, CBOR or SenML, by its content format. Pure, bounded, and never surprised.

Only what sensors send: of CBOR (RFC 8949) no tags, and no values that JSON does not have but byte strings; of SenML (RFC 8428) the
values, with base values added.
"""

from __future__ import annotations

import json
import struct
from math import isfinite
from typing import Any, Literal

from edge_runtime.errors import AdapterError

Form = Literal["auto", "text", "json", "cbor"]

_FORMS: dict[int | None, Form] = {None: "text", 0: "text", 50: "json", 60: "cbor", 110: "json", 112: "cbor"}
_MOST_DEPTH = 16
_MOST_ITEMS = 10_000
_SENML_NAMES = {-2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs", 0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut"}


class Unreadable(AdapterError):
    """A payload that is not what it should be."""


def number(payload: bytes, told: int | None, form: Form = "auto", field: str = "") -> float:
    """The finite number at `field` (`a.b.0`; of SenML the record's name). Booleans are 0 and 1. Raises Unreadable."""
    chosen = _FORMS.get(told) if form == "auto" else form
    if chosen is None:
        raise Unreadable(f"content format {told} is not known: expected text (0), JSON (50), CBOR (60) or SenML (110, 112); set `format`")
    value = _decoded(payload, chosen)
    value = _senml(value, field) if _is_senml(value) else _at(value, field)
    if isinstance(value, str):
        value = _float(value)
    if not isinstance(value, (bool, int, float)) or not isfinite(value):
        raise Unreadable(f"expected a number{f' at `{field}`' if field else ''}, got {str(value)[:40]!r}")
    return float(value)


def _decoded(payload: bytes, form: Form) -> Any:
    try:
        if form == "text":
            return payload[:64].decode("utf-8")
        if form == "json":
            return json.loads(payload)
        return cbor(payload)
    except (ValueError, RecursionError) as err:
        raise Unreadable(f"expected {form}, got {payload[:40]!r}: {err}") from err


def _float(text: str) -> float:
    try:
        return float(text.split()[0])
    except (ValueError, IndexError) as err:
        raise Unreadable(f"expected a number as text, got {text[:40]!r}") from err


def _at(value: Any, field: str) -> Any:
    for key in field.split(".") if field else ():
        if isinstance(value, list) and key.isdecimal() and int(key) < len(value):
            value = value[int(key)]
        elif isinstance(value, dict) and key in value:
            value = value[key]
        elif isinstance(value, dict) and key.lstrip("-").isdecimal() and int(key) in value:
            value = value[int(key)]
        else:
            raise Unreadable(f"there is no `{key}` of `{field}` in what came")
    return value


def _is_senml(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict) and bool({"v", "vb", "bv", 2, 4, -5} & value[0].keys())


def _senml(records: list[Any], field: str) -> Any:
    """The last record of that name; without a name, the last that has a value."""
    base_name, base_value, found = "", 0.0, None
    for raw in records[:_MOST_ITEMS]:
        if not isinstance(raw, dict):
            raise Unreadable("expected SenML records to be maps")
        record = {_SENML_NAMES.get(key, key): entry for key, entry in raw.items()}
        base_name, base_value = record.get("bn", base_name), record.get("bv", base_value)
        if not isinstance(base_value, (int, float)) or not isinstance(base_name, str):
            raise Unreadable("expected a SenML base value that is a number and a base name that is a text")
        if field and field not in (f"{base_name}{record.get('n', '')}", record.get("n")):
            continue
        value = record.get("v", record.get("vb"))
        if isinstance(value, (int, float)):
            found = value if isinstance(value, bool) else value + base_value
    if found is None:
        raise Unreadable(f"there is no SenML record{f' `{field}`' if field else ''} with a number")
    return found


def cbor(data: bytes) -> Any:
    """One CBOR item and nothing after it. Raises ValueError."""
    value, end = _item(data, 0, 0)
    if end != len(data):
        raise ValueError(f"{len(data) - end} bytes after the end")
    return value


def _item(data: bytes, at: int, depth: int) -> tuple[Any, int]:
    if depth > _MOST_DEPTH:
        raise ValueError(f"nested deeper than {_MOST_DEPTH}")
    if at >= len(data):
        raise ValueError("cut off")
    major, info = data[at] >> 5, data[at] & 31
    if major == 7:
        return _simple(data, at, info)
    argument, at = _argument(data, at + 1, info)
    if major == 0:
        return argument, at
    if major == 1:
        return -1 - argument, at
    if major in (2, 3):
        if at + argument > len(data):
            raise ValueError("cut off")
        content = data[at : at + argument]
        return (content if major == 2 else content.decode()), at + argument
    if major in (4, 5) and argument <= min(_MOST_ITEMS, len(data) - at):
        return _items(data, at, depth, argument, pairs=major == 5)
    raise ValueError("a tag, or more items than there are bytes")


def _items(data: bytes, at: int, depth: int, count: int, *, pairs: bool) -> tuple[Any, int]:
    values = []
    for _ in range(count * (2 if pairs else 1)):
        value, at = _item(data, at, depth + 1)
        values.append(value)
    if not pairs:
        return values, at
    if not all(isinstance(key, (str, int)) for key in values[::2]):
        raise ValueError("a key that is neither text nor number")
    return dict(zip(values[::2], values[1::2], strict=True)), at


def _argument(data: bytes, at: int, info: int) -> tuple[int, int]:
    if info < 24:
        return info, at
    size = {24: 1, 25: 2, 26: 4, 27: 8}.get(info, 0)
    if not size or at + size > len(data):
        raise ValueError("cut off, or of a length that is not told")
    return int.from_bytes(data[at : at + size], "big"), at + size


def _simple(data: bytes, at: int, info: int) -> tuple[Any, int]:
    if info in (20, 21, 22):
        return {20: False, 21: True, 22: None}[info], at + 1
    form = {25: ">e", 26: ">f", 27: ">d"}.get(info)
    if form is None or at + 1 + struct.calcsize(form) > len(data):
        raise ValueError("cut off, or a simple value that is not known")
    return struct.unpack_from(form, data, at + 1)[0], at + 1 + struct.calcsize(form)
