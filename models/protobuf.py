"""Walks protobuf wire format under hard bounds, without a schema and without copying. It reads; it never builds messages.

Wire format: https://protobuf.dev/programming-guides/encoding/ (groups are refused: proto3 has none).
"""

from __future__ import annotations

from collections.abc import Iterator

MAX_FIELDS = 5_000_000

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


class Malformed(ValueError):
    """The bytes are no protobuf message, or more of one than is reasonable."""


class Budget:
    """Counts fields over a whole walk, so that a hostile file cannot keep the reader busy."""

    __slots__ = ("_left",)

    def __init__(self, fields: int = MAX_FIELDS) -> None:
        self._left = fields

    def spend(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise Malformed("too many fields")


def fields(data: memoryview, budget: Budget) -> Iterator[tuple[int, int, int | memoryview]]:
    """Every field of one message as (number, wire type, value): an int, or the bytes of a length-delimited or fixed field."""
    position, end = 0, len(data)
    while position < end:
        budget.spend()
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Malformed("field number 0")
        if wire == VARINT:
            value, position = _varint(data, position, end)
            yield number, wire, value
            continue
        if wire == BYTES:
            size, position = _varint(data, position, end)
        elif wire in (FIXED64, FIXED32):
            size = 8 if wire == FIXED64 else 4
        else:
            raise Malformed(f"wire type {wire}")
        if size > end - position:
            raise Malformed("a field runs past the end")
        yield number, wire, data[position : position + size]
        position += size


def text(value: int | memoryview) -> str:
    """A string field. Raises Malformed when it is none."""
    if isinstance(value, int):
        raise Malformed("a number where text is due")
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError as err:
        raise Malformed("text that is not UTF-8") from err


def signed(value: int) -> int:
    """An int64 field as the number it stands for: two's complement in 64 bits."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >= 1 << 63 else value


def integers(value: int | memoryview, wire: int, budget: Budget) -> list[int]:
    """One occurrence of a repeated int64 field: a single number, or several packed."""
    if isinstance(value, int):
        return [signed(value)]
    if wire != BYTES:
        raise Malformed("a fixed-size number where a varint is due")
    found, position = [], 0
    while position < len(value):
        budget.spend()
        number, position = _varint(value, position, len(value))
        found.append(signed(number))
    return found


def _varint(data: memoryview, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise Malformed("a number that does not end")
