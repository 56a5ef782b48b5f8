"""CSV as a table of numbers: with or without a header, with or without a time column. Says what the columns are; chooses none."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.recordings import canonical, parse_time
from edge_runtime.types import Array
from edge_runtime.units import conversion

TIME_COLUMNS = frozenset({"t", "time", "timestamp", "datetime", "date"})

_WITH_UNIT = re.compile(r"(.*\S)\s*[\[(]([^\[\]()]*)[\])]")
_MISSING = frozenset({"", "nan", "null", "none", "na", "n/a"})


@dataclass(frozen=True, slots=True)
class Table:
    """`values` are float32 [rows, columns]; a missing cell is NaN. `names` is empty without a header.

    `time` is the name of a time column left out of the values; `rate_hz` its rows a second, by the median step, 0 where it tells none.
    """

    path: Path
    names: tuple[str, ...]
    values: Array
    time: str = ""
    rate_hz: float = 0.0

    def select(self, wanted: Sequence[str], units: Sequence[str]) -> tuple[Array, list[str]]:
        """The wanted columns in that order, [rows, wanted], in the wanted units, and a word on each that was converted.

        Names are compared without case and punctuation; a header such as `temp [degF]` tells a unit. Raises InputError naming what
        is missing, or a unit of another quantity.
        """
        known = {canonical(name): at for at, name in reversed(list(enumerate(self.names)))}
        plain = {canonical(_split(name)[0]): at for at, name in reversed(list(enumerate(self.names)))}
        places = [known.get(canonical(name), plain.get(canonical(name))) for name in wanted]
        missing = [f"`{name}`" for name, at in zip(wanted, places, strict=True) if at is None]
        if missing:
            have = ", ".join(self.names) or f"{self.values.shape[1]} without a header"
            raise InputError(
                f"{self.path}: expected the model's columns {', '.join(wanted)}; missing: {', '.join(missing)} (there are: {have})"
            )
        chosen = [at for at in places if at is not None]
        values, notes = self.values[:, chosen], []
        for column, (at, unit) in enumerate(zip(chosen, units, strict=True)):
            factor, offset = self._conversion(self.names[at], unit)
            if (factor, offset) != (1.0, 0.0):
                values[:, column] = values[:, column] * np.float32(factor) + np.float32(offset)
                notes.append(f"{self.names[at]} converted to {unit}")
        return values, notes

    def _conversion(self, name: str, unit: str) -> tuple[float, float]:
        stated = _split(name)[1]
        if not stated or not unit:
            return 1.0, 0.0
        try:
            return conversion(stated, unit)
        except InputError as err:
            raise InputError(f"{self.path}: column `{name}`: {err}; the model takes {unit}") from err


def read_table(path: Path, *, missing: bool = False) -> Table:
    """The numbers of a CSV separated by `,`, `;`, tab or space. With `missing`, an empty cell is NaN.

    Raises InputError with file and line.
    """
    with path.open(newline="", encoding="utf-8-sig") as file:
        head = file.readline()
        file.seek(0)
        delimiter = max(",;\t ", key=head.count)
        rows = [row for row in csv.reader(file, delimiter=delimiter, skipinitialspace=True) if row]
    if not rows:
        raise InputError(f"{path}: is empty")
    header = rows[0] if _is_header(*rows[:2]) else []
    body = rows[1:] if header else rows
    first = 1 if body and _starts_with_time(header, body[0]) else 0
    values = [_numbers(path, line, row[first:], missing) for line, row in enumerate(body, 2 if header else 1)]
    if len({len(row) for row in values}) > 1:
        raise InputError(f"{path}: rows have different numbers of columns")
    names = tuple(name.strip() for name in header[first:])
    width = len(values[0]) if values else len(names)
    table = np.asarray(values, np.float32).reshape(len(values), width)
    if not first:
        return Table(path, names, table)
    return Table(path, names, table, header[0] if header else "1", _rate_hz([row[0] for row in body]))


def _rate_hz(times: Sequence[str]) -> float:
    """Rows a second by the median step; 0 for fewer than three times or when they are none."""
    try:
        stamps = np.array([parse_time(text) for text in times], np.int64)
    except ValueError:
        return 0.0
    steps = np.diff(stamps)
    steps = steps[steps > 0]
    return 1e9 / float(np.median(steps)) if len(steps) > 1 else 0.0


def _split(name: str) -> tuple[str, str]:
    """`temp [degC]` as name and unit."""
    match = _WITH_UNIT.fullmatch(name.strip())
    return (match[1], match[2].strip()) if match else (name, "")


def _is_header(row: Sequence[str], following: Sequence[str] = ()) -> bool:
    """A row of names alone, or one that begins with a name and is made otherwise than the row after it."""
    numeric = [_is_number(cell) for cell in row]
    return not any(numeric) or (not numeric[0] and bool(following) and numeric != [_is_number(cell) for cell in following])


def _starts_with_time(header: Sequence[str], row: Sequence[str]) -> bool:
    named = bool(header) and header[0].strip().lower() in TIME_COLUMNS
    return len(row) > 1 and (named or not _is_number(row[0]))


def _numbers(path: Path, line: int, row: Sequence[str], missing: bool) -> list[float]:
    try:
        return [math.nan if missing and cell.strip().lower() in _MISSING else float(cell) for cell in row]
    except ValueError as err:
        raise InputError(f"{path}:{line}: {err}") from err


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
