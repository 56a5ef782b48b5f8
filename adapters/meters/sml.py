"""Smart Message Language (BSI TR-03109-1, annex SML), transport version 1: bytes into meter readings.

It reads what meters push (GetList responses); it asks nothing, and verifies checksums but no signatures.
"""

from __future__ import annotations

import re
from binascii import crc_hqx
from collections.abc import Iterable, Iterator

from adapters.meters.framing import Counts, Framer, Shape
from adapters.meters.readings import MeterReading, Obis

MAX_FILE_BYTES = 16_384
MAX_DEPTH = 12
MAX_ITEMS = 4_096

START = b"\x1b\x1b\x1b\x1b\x01\x01\x01\x01"
_MARK = re.compile(rb"\x1b{4}(?:(?P<literal>\x1b{4})|(?P<end>\x1a[\s\S]{3}))|(?P<start>\x1b{4}\x01{4})")
_ESCAPED = b"\x1b" * 8
_GET_LIST = 0x0701
_END_OF_MESSAGE = b"\x00"
_UNITS = {
    3: "d", 4: "h", 5: "min", 6: "s", 7: "s", 8: "deg", 9: "degC", 11: "m", 12: "m/s", 13: "m3", 14: "m3", 15: "m3/h", 16: "m3/h",
    19: "l", 20: "kg", 21: "N", 22: "Nm", 23: "Pa", 24: "bar", 25: "J", 27: "W", 28: "VA", 29: "var", 30: "Wh", 31: "VAh", 32: "varh",
    33: "A", 35: "V", 38: "Ohm", 44: "Hz", 52: "K", 56: "%",
}  # fmt: skip
_BITS_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))

Item = bytes | bool | int | None | list["Item"]


class SmlError(ValueError):
    """A message that is no SML; the rest of its file may still be good."""


def crc16_x25(data: bytes, initial: int = 0xFFFF, final: int = 0xFFFF) -> int:
    """CRC-16/X-25; with 0 and 0 it is CRC-16/KERMIT."""
    return _reflected(crc_hqx(data.translate(_BITS_REVERSED), initial)) ^ final


def crc_fits(data: bytes, given: bytes) -> bool:
    """Either of the two checksums that meters put here: X-25 as the standard says, or Kermit, in either byte order."""
    sums = (crc16_x25(data), crc16_x25(data, 0, 0))
    return int.from_bytes(given, "little") in sums or int.from_bytes(given, "big") in sums


class SmlStream:
    """Bytes of one meter's line, in any pieces, into readings; counts what it could not use."""

    def __init__(self) -> None:
        self._framer = Framer(SHAPE)
        self.bad_messages = 0

    @property
    def counts(self) -> Counts:
        return self._framer.counts

    def feed(self, data: bytes) -> Iterator[list[MeterReading]]:
        """The readings of each file that `data` completes. Never raises."""
        for frame in self._framer.feed(data):
            readings: list[MeterReading] = []
            for message in messages(frame[len(START) : -8].replace(_ESCAPED, _ESCAPED[:4]), frame[-3]):
                if isinstance(message, SmlError):
                    self.bad_messages += 1
                else:
                    readings += get_list_readings(message)
            yield readings


def messages(payload: bytes, fill_bytes: int) -> Iterator[list[Item] | SmlError]:
    """Each message of a file whose own checksum is right; an SmlError for the first that is not, and then no more."""
    reader = _Reader(payload[: len(payload) - fill_bytes] if fill_bytes <= 3 else payload)
    while not reader.at_end():
        try:
            yield reader.message()
        except SmlError as err:
            yield err
            return


def get_list_readings(message: list[Item]) -> list[MeterReading]:
    """The values of a GetList response; none of any other message."""
    body = message[3]
    if not isinstance(body, list) or len(body) != 2 or body[0] != _GET_LIST or not isinstance(body[1], list) or len(body[1]) < 5:
        return []
    entries = body[1][4]
    found = (_entry(entry) for entry in entries) if isinstance(entries, list) else ()
    return [reading for reading in found if reading is not None]


def _entry(entry: Item) -> MeterReading | None:
    if not isinstance(entry, list) or len(entry) < 6:
        return None
    code, status, _, unit, scaler, value = entry[:6]
    if not isinstance(code, bytes) or len(code) != 6:
        return None
    status = status if isinstance(status, int) and not isinstance(status, bool) else None
    if isinstance(value, bytes):
        return MeterReading(Obis(*code), _text(value), status=status)
    if not isinstance(value, (int, bool)):
        return None
    power = scaler if isinstance(scaler, int) and -30 <= scaler <= 30 else 0
    scaled = float(value * 10**power) if power >= 0 else value / 10**-power
    return MeterReading(Obis(*code), scaled, _UNITS.get(unit, "") if isinstance(unit, int) else "", status)


def _text(value: bytes) -> str:
    return value.decode("ascii") if value and all(0x20 <= byte < 0x7F for byte in value) else value.hex()


def _reflected(word: int) -> int:
    return _BITS_REVERSED[word & 0xFF] << 8 | _BITS_REVERSED[word >> 8]


def _whole(frame: bytes) -> bool:
    return crc_fits(frame[:-2], frame[-2:])


SHAPE = Shape(START, _MARK, 8, MAX_FILE_BYTES, _whole)


class _Reader:
    """One pass over the type-length-value bytes of a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0
        self._items = 0

    def at_end(self) -> bool:
        """Some meters fill up within the file, with zeros."""
        return not self._data[self._at :].strip(b"\x00")

    def message(self) -> list[Item]:
        """Six fields, of which the fifth is the checksum of those before and the sixth the end."""
        while self._data[self._at : self._at + 1] == _END_OF_MESSAGE:
            self._at += 1
        start = self._at
        kind, length = self._head()
        if kind != 7 or length != 6:
            raise SmlError(f"expected a message, a list of 6, got type {kind} of length {length} at byte {start}")
        fields = [self._item(1) for _ in range(4)]
        end = self._at
        crc = self._item(1)
        if not isinstance(crc, int):
            raise SmlError(f"expected a checksum at byte {end}")
        if not crc_fits(self._data[start:end], (crc & 0xFFFF).to_bytes(2, "big")) or self._take(1) != _END_OF_MESSAGE:
            raise SmlError(f"bad checksum of the message at byte {start}")
        return [*fields, crc, None]

    def _item(self, depth: int) -> Item:
        self._items += 1
        if depth > MAX_DEPTH or self._items > MAX_ITEMS:
            raise SmlError(f"nested deeper than {MAX_DEPTH} or more than {MAX_ITEMS} items")
        kind, length = self._head()
        if kind == 7:
            return [self._item(depth + 1) for _ in range(length)]
        data = self._take(length)
        if kind == 0:
            return data or None
        if kind == 4 and length == 1:
            return data != b"\x00"
        if kind in (5, 6) and 1 <= length <= 8:
            return int.from_bytes(data, "big", signed=kind == 5)
        raise SmlError(f"unknown type {kind} of length {length} before byte {self._at}")

    def _head(self) -> tuple[int, int]:
        """Type, and the length of what follows (items of a list, else bytes)."""
        byte = self._take(1)[0]
        kind, length, size = byte >> 4 & 7, byte & 15, 1
        while byte & 0x80:
            byte = self._take(1)[0]
            length, size = length << 4 | byte & 15, size + 1
            if size > 4:
                raise SmlError(f"a length of more than 4 bytes before byte {self._at}")
        return (kind, length) if kind == 7 else (kind, max(0, length - size))

    def _take(self, count: int) -> bytes:
        data = self._data[self._at : self._at + count]
        if len(data) < count:
            raise SmlError(f"cut off at byte {len(self._data)}")
        self._at += count
        return data


def parse_sml(pieces: Iterable[bytes]) -> list[MeterReading]:
    """All readings of a recording, in order."""
    stream = SmlStream()
    return [reading for piece in pieces for readings in stream.feed(piece) for reading in readings]
