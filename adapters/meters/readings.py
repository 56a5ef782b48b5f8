"""What a meter says: OBIS codes, their values and units, and the channel names that they get. Knows no wire format."""

from __future__ import annotations

import re

import msgspec

_OBIS = re.compile(r"(\d{1,3})-(\d{1,3}):(\d{1,3})\.(\d{1,3})\.(\d{1,3})(?:\*(\d{1,3}))?")


class Obis(msgspec.Struct, frozen=True, order=True):
    """A code of IEC 62056-61: medium, channel, quantity, processing, tariff, billing period (255: now)."""

    medium: int
    channel: int
    quantity: int
    processing: int
    tariff: int
    period: int = 255

    def __str__(self) -> str:
        text = f"{self.medium}-{self.channel}:{self.quantity}.{self.processing}.{self.tariff}"
        return text if self.period == 255 else f"{text}*{self.period}"


class MeterReading(msgspec.Struct, frozen=True):
    """One value of one telegram. `value` is in `unit`; a text (serial numbers, makers) is kept as it came.

    `status` is the meter's own status word, `wall_ns` the meter's own time of the value; None where it says none.
    """

    obis: Obis
    value: float | str
    unit: str = ""
    status: int | None = None
    wall_ns: int | None = None
    name: str | None = None
    """A name that the telegram gives beyond the code, such as the kind of the device on an M-Bus channel."""


def parse_obis(text: str) -> Obis | None:
    """`1-0:1.8.0*255` or `1-0:1.8.0`; None for what is no code."""
    found = _OBIS.fullmatch(text)
    if found is None:
        return None
    numbers = [int(part) for part in found.groups(default="255")]
    return Obis(*numbers) if max(numbers) <= 255 else None


_FLOWS = {
    1: ("energy_import", "power_import"),
    2: ("energy_export", "power_export"),
    3: ("reactive_energy_import", "reactive_power_import"),
    4: ("reactive_energy_export", "reactive_power_export"),
    5: ("reactive_energy_q1", "reactive_power_q1"),
    6: ("reactive_energy_q2", "reactive_power_q2"),
    7: ("reactive_energy_q3", "reactive_power_q3"),
    8: ("reactive_energy_q4", "reactive_power_q4"),
    9: ("apparent_energy_import", "apparent_power_import"),
    10: ("apparent_energy_export", "apparent_power_export"),
    15: ("energy_absolute", "power_absolute"),
    16: ("energy_net", "power"),
}
_INSTANT = {11: "current", 12: "voltage", 13: "power_factor", 14: "frequency"}
_PERIODS = {96: "last_day", 97: "last_week", 98: "last_month", 99: "last_year", 100: "since_reset"}
_ANGLES = {1: "u2_u1", 2: "u3_u1", 4: "i1_u1", 5: "i2_u1", 6: "i3_u1", 15: "i2_u2", 26: "i3_u3"}
_COUNTERS = {32: "voltage_sags", 36: "voltage_swells"}
_GENERAL = {
    (96, 14, 0): "tariff",
    (96, 7, 21): "power_failures",
    (96, 7, 9): "long_power_failures",
    (17, 0, 0): "power_limit",
    (96, 3, 10): "breaker",
}


def channel_name(obis: Obis) -> str:
    """A readable name that depends on the code alone; `obis/CODE` for one that has none."""
    name = _electric(obis) if obis.medium == 1 else None
    if obis.medium == 0 and obis.period == 255:
        name = _GENERAL.get((obis.quantity, obis.processing, obis.tariff))
    if name is None:
        return f"obis/{obis}"
    return f"{name}/{obis.channel}" if obis.channel else name


def _electric(obis: Obis) -> str | None:
    if obis.quantity == 81 and obis.processing == 7:
        angle = _ANGLES.get(obis.tariff)
        return f"phase_angle_{angle}" if angle else None
    phase, quantity = divmod(obis.quantity, 20)
    if obis.quantity > 80 or (phase and not quantity):
        return None
    suffix = f"_l{phase}" if phase else ""
    name = _by_processing(obis, quantity)
    return None if name is None else _dated(name, suffix, obis)


def _by_processing(obis: Obis, quantity: int) -> str | None:
    kind, tariff = obis.processing, obis.tariff
    flow = _FLOWS.get(quantity)
    if kind == 8 and flow and tariff < 100:
        return f"{flow[0]}_tariff{tariff}" if tariff else f"{flow[0]}_total"
    if kind in (4, 6) and flow and not tariff:
        return f"{flow[1]}_{'average' if kind == 4 else 'peak'}"
    if kind == 7 and not tariff:
        return flow[1] if flow else _INSTANT.get(quantity)
    if kind == 4 and quantity == 11 and not tariff:
        return "current_limit"
    return _COUNTERS.get(kind) if quantity == 12 and not tariff else None


def _dated(name: str, suffix: str, obis: Obis) -> str | None:
    """Of a billing period before, or now."""
    if obis.period == 255:
        return name + suffix
    period = _PERIODS.get(obis.period)
    return f"{name}{suffix}_{period}" if period else None
