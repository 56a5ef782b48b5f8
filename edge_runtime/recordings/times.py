"""Times as recordings write them: ISO 8601, or an epoch in s, ms, us or ns that is told by its magnitude. All become ns."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from statistics import median_low

import numpy as np
import numpy.typing as npt

from edge_runtime.recordings.recording import Times

_MAGNITUDES = ((1e11, 10**9, "epoch s"), (1e14, 10**6, "epoch ms"), (1e17, 10**3, "epoch us"), (math.inf, 1, "epoch ns"))
_FRACTION = re.compile(r"(.*\d)[.,](\d+)(.*)")
_DECIMAL = re.compile(r"([+-]?)([0-9]+)\.?([0-9]*)")
_LAYOUT = b"0000-00-00T00:00:00"
_ZONE = re.compile(r"(Z|[+-]00:?00)?$")
_MOST_NS = 2**63 - 1
_BEYOND = 1e20
_MOST_S = _MOST_NS // 10**9


def epoch_scale(largest: float) -> tuple[int, str]:
    """ns in one unit of an epoch of that magnitude, and its name: seconds until the year 5138, ms from 1973 on, and so on."""
    return next((scale, name) for limit, scale, name in _MAGNITUDES if abs(largest) < limit)


def time_format(cells: Iterable[str]) -> tuple[int, str]:
    """How these cells write time, as `(scale, words)`; the scale is 0 for ISO 8601 and for nothing readable."""
    numbers, zone = [], ""
    for cell in cells:
        number = _number(cell)
        if number is not None:
            numbers.append(abs(number))
        elif not zone and (moment := _moment(cell)) is not None:
            zone = "ISO 8601" if moment.tzinfo else "ISO 8601 without zone, taken as UTC"
    if zone or not numbers:
        return 0, zone
    return epoch_scale(median_low(numbers))


def parse_time(text: str, scale: int = 0) -> int:
    """One time as ns. `scale` is ns per unit of an epoch (0: told by its magnitude). ISO 8601 without a zone is UTC.

    Raises ValueError for anything else, also for times that 64-bit ns cannot hold (before 1678 or after 2261).
    """
    text = text.strip()
    number = _number(text)
    time_ns = _iso_ns(text) if number is None else _epoch_ns(text, number, scale or epoch_scale(number)[0])
    if abs(time_ns) > _MOST_NS:
        raise ValueError(f"not a time that ns can hold: {text}")
    return time_ns


def parse_times(cells: Sequence[str], scale: int) -> Times:
    """A column of times, the same values as `parse_time` gives one by one but fast when all cells are written alike."""
    if not scale:
        aligned = _aligned_iso(cells)
        if aligned is not None:
            return aligned
    return np.fromiter((parse_time(cell, scale) for cell in cells), np.int64, len(cells))


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) and "_" not in text else None


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text.strip())
    except ValueError:
        return None


def _epoch_ns(text: str, number: float, scale: int) -> int:
    """Decimal digits are scaled as such, so that large times lose none."""
    match = _DECIMAL.fullmatch(text)
    if match is None or abs(number) > _MOST_NS:
        return round(min(max(number, -_BEYOND), _BEYOND) * scale)
    sign, whole, fraction = match.groups()
    places = len(str(scale)) - 1
    value = int(whole) * scale + (int((fraction + "0" * places)[:places]) if places and fraction else 0)
    return -value if sign == "-" else value


def _iso_ns(text: str) -> int:
    """Like datetime.fromisoformat, but with all nine digits of a fraction."""
    fraction_ns = 0
    match = _FRACTION.fullmatch(text)
    if match is not None:
        text, fraction_ns = match[1] + match[3], int((match[2] + "0" * 9)[:9])
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return (delta.days * 86_400 + delta.seconds) * 10**9 + fraction_ns


def _aligned_iso(cells: Sequence[str]) -> Times | None:
    """`YYYY-MM-DD hh:mm:ss[.f]` in UTC with the same number of digits in every cell; None when one differs."""
    zone = _ZONE.search(cells[0])
    stem = len(cells[0]) - (len(zone[0]) if zone else 0)
    if set(map(len, cells)) != {len(cells[0])} or not len(_LAYOUT) <= stem <= len(_LAYOUT) + 10 or stem == len(_LAYOUT) + 1:
        return None
    if zone and zone[0] and not all(cell.endswith(zone[0]) for cell in cells):
        return None
    try:
        table = np.array(cells, f"S{len(cells[0])}").view(np.uint8).reshape(len(cells), -1)[:, :stem].astype(np.int64)
    except UnicodeEncodeError:
        return None
    seconds, fraction = table[:, :19], table[:, 20:]
    if not _fits(seconds) or (stem > 19 and not (np.isin(table[:, 19], (46, 44)).all() and _digits(fraction).all())):
        return None
    whole = _seconds(seconds - 48)
    if whole is None or np.abs(whole).max() >= _MOST_S:
        return None
    powers = 10 ** np.arange(8, 8 - fraction.shape[1], -1, dtype=np.int64)
    times: Times = whole * 10**9 + (fraction - 48) @ powers
    return times


def _fits(table: npt.NDArray[np.int64]) -> bool:
    """Whether every row is laid out like `0000-00-00T00:00:00`, with T or a space."""
    layout = np.frombuffer(_LAYOUT, np.uint8)
    digit, between = layout == 48, layout == 84
    fixed = ~digit & ~between
    return bool(_digits(table[:, digit]).all() and (table[:, fixed] == layout[fixed]).all() and np.isin(table[:, between], (84, 32)).all())


def _seconds(digits: npt.NDArray[np.int64]) -> Times | None:
    """Seconds since 1970 of rows of digits in that layout; None when one is no real time.

    numpy's own parser (1.26) ends the process when a cast from bytes to datetime64 meets a day that does not exist.
    """
    year = digits[:, :4] @ np.array([1000, 100, 10, 1])
    month, day, hour, minute, second = (10 * digits[:, at] + digits[:, at + 1] for at in (5, 8, 11, 14, 17))
    months = 12 * (year - 1970) + month - 1
    first, after = ((months + more).astype("datetime64[M]").astype("datetime64[D]").astype(np.int64) for more in (0, 1))
    real = (month >= 1) & (month <= 12) & (day >= 1) & (day <= after - first) & (hour < 24) & (minute < 60) & (second < 60)
    times: Times = (first + day - 1) * 86_400 + hour * 3600 + minute * 60 + second
    return times if real.all() else None


def _digits(table: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    digits: npt.NDArray[np.bool_] = (table >= 48) & (table <= 57)
    return digits
