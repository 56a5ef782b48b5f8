"""Units of measurement: which are known, which can be compared, and the factor between them.

Enough of UCUM and everyday spelling for industrial sensors; no unit algebra. A unit belongs to exactly one quantity and is
affine to that quantity's base unit: base = factor * value + offset.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from edge_runtime.errors import InputError


@dataclass(frozen=True, slots=True)
class Unit:
    """One spelling of one unit."""

    name: str
    quantity: str
    factor: float
    offset: float = 0.0


_TABLE: dict[str, dict[str, tuple[float, float]]] = {
    "dimensionless": {"": (1, 0), "1": (1, 0), "%": (0.01, 0), "count": (1, 0), "bool": (1, 0), "state": (1, 0), "ppm": (1e-6, 0)},
    "temperature": {"K": (1, 0), "degC": (1, 273.15), "°C": (1, 273.15), "degF": (5 / 9, 459.67 * 5 / 9), "°F": (5 / 9, 459.67 * 5 / 9)},
    "acceleration": {"m/s2": (1, 0), "m/s^2": (1, 0), "g": (9.80665, 0), "mg": (9.80665e-3, 0)},
    "velocity": {"m/s": (1, 0), "mm/s": (1e-3, 0), "km/h": (1 / 3.6, 0)},
    "length": {"m": (1, 0), "mm": (1e-3, 0), "um": (1e-6, 0), "cm": (1e-2, 0), "km": (1e3, 0)},
    "angular_velocity": {
        "rad/s": (0.15915494309189535, 0),
        "deg/s": (1 / 360, 0),
        "rpm": (1 / 60, 0),
        "1/min": (1 / 60, 0),
        "rev/s": (1, 0),
    },
    "frequency": {"Hz": (1, 0), "kHz": (1e3, 0), "MHz": (1e6, 0), "1/s": (1, 0)},
    "time": {"s": (1, 0), "ms": (1e-3, 0), "us": (1e-6, 0), "ns": (1e-9, 0), "min": (60, 0), "h": (3600, 0), "d": (86400, 0)},
    "pressure": {
        "Pa": (1, 0),
        "kPa": (1e3, 0),
        "MPa": (1e6, 0),
        "hPa": (1e2, 0),
        "mbar": (1e2, 0),
        "bar": (1e5, 0),
        "psi": (6894.757293168, 0),
    },
    "current": {"A": (1, 0), "mA": (1e-3, 0), "uA": (1e-6, 0)},
    "voltage": {"V": (1, 0), "mV": (1e-3, 0), "kV": (1e3, 0)},
    "power": {"W": (1, 0), "kW": (1e3, 0), "mW": (1e-3, 0), "MW": (1e6, 0)},
    "apparent_power": {"VA": (1, 0), "kVA": (1e3, 0)},
    "reactive_power": {"var": (1, 0), "kvar": (1e3, 0)},
    "energy": {
        "J": (1, 0),
        "kJ": (1e3, 0),
        "MJ": (1e6, 0),
        "GJ": (1e9, 0),
        "Wh": (3600, 0),
        "kWh": (3.6e6, 0),
        "MWh": (3.6e9, 0),
    },
    "apparent_energy": {"VAh": (1, 0), "kVAh": (1e3, 0)},
    "reactive_energy": {"varh": (1, 0), "kvarh": (1e3, 0)},
    "resistance": {"Ohm": (1, 0), "kOhm": (1e3, 0)},
    "flow": {"m3/s": (1, 0), "m3/h": (1 / 3600, 0), "l/s": (1e-3, 0), "l/min": (1e-3 / 60, 0), "L/min": (1e-3 / 60, 0)},
    "volume": {"m3": (1, 0), "l": (1e-3, 0), "L": (1e-3, 0), "ml": (1e-6, 0)},
    "force": {"N": (1, 0), "kN": (1e3, 0)},
    "torque": {"Nm": (1, 0)},
    "mass": {"kg": (1, 0), "t": (1e3, 0), "mgram": (1e-6, 0)},
    "data": {
        "B": (1, 0),
        "byte": (1, 0),
        "kB": (1e3, 0),
        "MB": (1e6, 0),
        "GB": (1e9, 0),
        "KiB": (1024, 0),
        "MiB": (1024**2, 0),
        "GiB": (1024**3, 0),
    },
    "data_rate": {"B/s": (1, 0), "kB/s": (1e3, 0), "MB/s": (1e6, 0), "KiB/s": (1024, 0), "MiB/s": (1024**2, 0)},
    "illuminance": {"lx": (1, 0)},
    "sound": {"dB": (1, 0), "dBA": (1, 0)},
    "angle": {"rad": (57.29577951308232, 0), "deg": (1, 0)},
    "humidity": {"%RH": (1, 0)},
}

UNITS = {name: Unit(name, quantity, *pair) for quantity, units in _TABLE.items() for name, pair in units.items()}


def parse_unit(name: str) -> Unit:
    """The unit of that spelling. Raises InputError naming the nearest known spelling."""
    unit = UNITS.get(name)
    if unit is None:
        same = [known for known in UNITS if known.casefold() == name.casefold()]
        near = same or difflib.get_close_matches(name, [known for known in UNITS if known], n=1, cutoff=0.5)
        hint = f"; did you mean `{near[0]}`?" if near else ""
        raise InputError(f"unknown unit `{name}`{hint}")
    return unit


def conversion(source: str, target: str) -> tuple[float, float]:
    """`(factor, offset)` with target = factor * source + offset. Raises InputError when the quantities differ."""
    a, b = parse_unit(source), parse_unit(target)
    if a.quantity != b.quantity:
        came = f"unit `{source}` is {a.quantity}" if source else "this has no unit"
        raise InputError(f"{came}, expected {f'{b.quantity} such as `{target}`' if target else 'a number without a unit'}")
    return a.factor / b.factor, (a.offset - b.offset) / b.factor


def convert(value: float, source: str, target: str) -> float:
    """One value from unit to unit. Raises InputError when the quantities differ."""
    factor, offset = conversion(source, target)
    return value * factor + offset
