"""Walks a FlatBuffer under hard bounds, without a schema and without copying. It reads; it never builds objects.

Format: https://flatbuffers.dev/internals/ (little endian; tables point to a vtable of 16-bit field offsets).
"""

from __future__ import annotations

import struct
from typing import Any

from models.protobuf import Malformed

MAX_VISITS = 1_000_000
MAX_TEXT = 4096


class Buffer:
    """The bytes of one file, with a budget of look-ups so that a hostile file cannot keep the reader busy."""

    def __init__(self, data: memoryview) -> None:
        self.data = data
        self._left = MAX_VISITS

    def root(self) -> Table:
        """The table that the file starts with."""
        return Table(self, self.number("<I", 0))

    def visit(self, count: int = 1) -> None:
        """Spends look-ups. Raises Malformed when there are none left."""
        self._left -= count
        if self._left < 0:
            raise Malformed("more structure than a model has")

    def number(self, code: str, at: int) -> Any:
        """One number. Raises Malformed outside the file."""
        self.visit()
        try:
            if at < 0:
                raise Malformed("an offset before the start")
            return struct.unpack_from(code, self.data, at)[0]
        except struct.error as err:
            raise Malformed("an offset past the end") from err

    def follow(self, at: int) -> int:
        """Where the offset stored at `at` leads."""
        target: int = at + self.number("<I", at)
        return target

    def vector(self, at: int, item_size: int) -> tuple[int, int]:
        """The start and the length of the vector stored at `at`, which lies wholly inside the file."""
        length = self.number("<I", at)
        if at + 4 + length * item_size > len(self.data):
            raise Malformed("a vector runs past the end")
        return at + 4, length

    def text(self, at: int) -> str:
        start, length = self.vector(at, 1)
        if length > MAX_TEXT:
            raise Malformed(f"a text of {length} bytes where at most {MAX_TEXT} are due")
        try:
            return str(self.data[start : start + length], "utf-8")
        except UnicodeDecodeError as err:
            raise Malformed("text that is not UTF-8") from err


class Table:
    """One table. Fields are named by their number in the schema; an absent field has its default."""

    __slots__ = ("_at", "_buffer", "_vtable", "_vtable_size")

    def __init__(self, buffer: Buffer, at: int) -> None:
        self._buffer, self._at = buffer, at
        self._vtable = at - buffer.number("<i", at)
        self._vtable_size = buffer.number("<H", self._vtable)

    def integer(self, field: int, code: str, default: int = 0) -> int:
        """A scalar field."""
        at = self._field(field)
        return default if at is None else int(self._buffer.number(code, at))

    def text(self, field: int) -> str:
        at = self._field(field)
        return "" if at is None else self._buffer.text(self._buffer.follow(at))

    def table(self, field: int) -> Table | None:
        at = self._field(field)
        return None if at is None else Table(self._buffer, self._buffer.follow(at))

    def tables(self, field: int) -> list[Table]:
        """A vector of tables."""
        at = self._field(field)
        if at is None:
            return []
        start, length = self._buffer.vector(self._buffer.follow(at), 4)
        return [Table(self._buffer, self._buffer.follow(start + 4 * index)) for index in range(length)]

    def numbers(self, field: int, code: str, most: int = 65_536) -> tuple[Any, ...]:
        """A vector of numbers. Raises Malformed when it is longer than `most`."""
        at = self._field(field)
        if at is None:
            return ()
        start, length = self._buffer.vector(self._buffer.follow(at), struct.calcsize("<" + code))
        if length > most:
            raise Malformed(f"a list of {length} numbers where at most {most} are due")
        self._buffer.visit(length)
        return struct.unpack_from(f"<{length}{code}", self._buffer.data, start)

    def size_of(self, field: int) -> int:
        """The length of a vector of bytes; nothing is read."""
        at = self._field(field)
        return 0 if at is None else self._buffer.vector(self._buffer.follow(at), 1)[1]

    def bytes_of(self, field: int, most: int) -> bytes:
        """The first `most` of a vector of bytes."""
        at = self._field(field)
        if at is None:
            return b""
        start, length = self._buffer.vector(self._buffer.follow(at), 1)
        return bytes(self._buffer.data[start : start + min(length, most)])

    def _field(self, number: int) -> int | None:
        slot = 4 + 2 * number
        if slot + 2 > self._vtable_size:
            return None
        offset = self._buffer.number("<H", self._vtable + slot)
        return self._at + offset if offset else None
