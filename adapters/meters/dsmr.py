"""Telegrams of the P1 port (DSMR 2.2 to 5, eMUCs of Belgium and Luxembourg, Sweden, and other IEC 62056-21 pushes) into readings.

It asks nothing and decrypts nothing: encrypted telegrams are frames that it never finds.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta

from adapters.meters.framing import Counts, Framer, Shape
from adapters.meters.readings import MeterReading, Obis, parse_obis

MAX_TELEGRAM_BYTES = 16_384
MAX_VALUES = 1_024

_MARK = re.compile(rb"(?P<end>![0-9A-Fa-f]{0,4}\r?\n)")
_LINE = re.compile(r"(\d{1,3}-\d{1,3}:\d{1,3}\.\d{1,3}\.\d{1,3}(?:\*\d{1,3})?)((?:\([^()\r\n]*\))+)")
_GROUP = re.compile(r"\(([^()]*)\)")
_NUMBER = re.compile(r"(-?\d{1,15}(?:\.\d{1,9})?)(?:\*([A-Za-z0-9%]{1,8}))?")
_TIME = re.compile(r"\d{12}[SW]?")
_UNITS = {unit.casefold(): unit for unit in (
    "kWh", "Wh", "MWh", "kW", "W", "V", "A", "kvarh", "varh", "kvar", "var", "kVA", "VA", "kVAh", "m3", "GJ", "MJ", "Hz", "s",
)}  # fmt: skip
_DEVICES = {3: "gas_total", 4: "heat_total", 6: "hot_water_total", 7: "water_total", 8: "water_total", 10: "cold_total", 12: "heat_total"}
_COUNTS = {"0-0:96.14.0", "0-0:96.7.21", "0-0:96.7.9", "0-0:96.3.10"}
_SAGS = (32, 36)
_M_BUS_VALUES = (1, 2, 3)


def crc16_arc(data: bytes) -> int:
    """CRC-16/ARC: polynomial 0x8005 reflected, initial 0."""
    crc = 0
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc


def _table() -> list[int]:
    table = []
    for byte in range(256):
        for _ in range(8):
            byte = byte >> 1 ^ (0xA001 if byte & 1 else 0)
        table.append(byte)
    return table


_TABLE = _table()


class DsmrStream:
    """Bytes of one P1 port, in any pieces, into readings; counts what it could not use.

    Telegrams without a checksum (before DSMR 4) are taken until one with a checksum was seen: then they are broken ones.
    """

    def __init__(self) -> None:
        self._checksums = False
        self._framer = Framer(Shape(b"/", _MARK, 7, MAX_TELEGRAM_BYTES, self._whole))
        self.bad_messages = 0

    @property
    def counts(self) -> Counts:
        return self._framer.counts

    def feed(self, data: bytes) -> Iterator[list[MeterReading]]:
        """The readings of each telegram that `data` completes. Never raises."""
        for frame in self._framer.feed(data):
            yield telegram_readings(frame.decode("latin-1"))

    def _whole(self, frame: bytes) -> bool:
        body, _, crc = frame.rpartition(b"!")
        crc = crc.strip()
        if len(crc) == 4:
            fits = crc16_arc(body + b"!") == int(crc, 16)
            self._checksums |= fits
            return fits
        return not crc and not self._checksums and _plausible(body)


def telegram_readings(text: str) -> list[MeterReading]:
    """The values of one telegram: numbers with their units, counters, and texts of the lines that name one value."""
    lines = _LINE.findall(text.replace(")\r\n(", ")(").replace(")\n(", ")("))[:MAX_VALUES]
    entries = [(obis, _GROUP.findall(groups)) for code, groups in lines if (obis := parse_obis(code)) is not None]
    devices = _devices(entries)
    found = (_reading(obis, groups, devices) for obis, groups in entries)
    return [reading for reading in found if reading is not None]


def _plausible(body: bytes) -> bool:
    """Without a checksum: a header, and then nothing but lines of values."""
    lines = body.decode("latin-1").splitlines()
    if not re.fullmatch(r"/[A-Za-z]{3}[ -~]{0,80}", lines[0]):
        return False
    values = [line for line in lines[1:] if line]
    return bool(values) and all(_LINE.fullmatch(line) or re.fullmatch(r"(\([^()]*\))+", line) for line in values)


def _reading(obis: Obis, groups: list[str], devices: dict[int, str]) -> MeterReading | None:
    if obis.medium == 0 and obis.quantity == 24:
        return _m_bus(obis, groups, devices) if obis.processing in _M_BUS_VALUES else None
    wall_ns = wall_time_ns(groups[0]) if len(groups) == 2 else None
    if len(groups) > 2 or (len(groups) == 2 and wall_ns is None):
        return None
    number = _NUMBER.fullmatch(groups[-1])
    if number is None or not (number[2] or _is_counter(obis)):
        return MeterReading(obis, groups[-1][:1024], wall_ns=wall_ns)
    return MeterReading(obis, float(number[1]), _unit(number[2]), wall_ns=wall_ns)


def _m_bus(obis: Obis, groups: list[str], devices: dict[int, str]) -> MeterReading | None:
    """A device behind the meter: `(time)(value*unit)`, or the older `(time)(..)(..)(..)(code)(unit)(value)`."""
    if len(groups) < 2 or (obis.processing == 1 and len(groups) == 1):
        return None
    number = _NUMBER.fullmatch(groups[-1])
    if number is None:
        return None
    unit = _unit(number[2] or (groups[-2] if len(groups) > 2 else ""))
    return MeterReading(obis, float(number[1]), unit, wall_ns=wall_time_ns(groups[0]), name=devices.get(obis.channel))


def _devices(entries: list[tuple[Obis, list[str]]]) -> dict[int, str]:
    """Name by M-Bus channel; the second of a kind has its channel's number in its name."""
    names: dict[int, str] = {}
    for obis, groups in entries:
        if (obis.medium, obis.quantity, obis.processing, obis.tariff) == (0, 24, 1, 0) and groups[0].isdecimal():
            name = _DEVICES.get(int(groups[0][:4]))
            if name is not None:
                names[obis.channel] = f"{name}/{obis.channel}" if name in names.values() else name
    return names


def _is_counter(obis: Obis) -> bool:
    return str(obis) in _COUNTS or (obis.medium == 1 and obis.processing in _SAGS)


def _unit(text: str | None) -> str:
    return _UNITS.get((text or "").casefold(), "")


def wall_time_ns(text: str) -> int | None:
    """`YYMMDDhhmmss` with S (summer, UTC+2) or W (winter, UTC+1); None for anything else, and without S or W (whose zone is unknown)."""
    if not _TIME.fullmatch(text) or len(text) != 13:
        return None
    try:
        local = datetime.strptime(text[:12], "%y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return None
    return int((local - timedelta(hours=2 if text[12] == "S" else 1)).timestamp()) * 10**9


def parse_dsmr(pieces: Iterable[bytes]) -> list[MeterReading]:
    """All readings of a recording, in order."""
    stream = DsmrStream()
    return [reading for piece in pieces for readings in stream.feed(piece) for reading in readings]
