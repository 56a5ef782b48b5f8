"""CSV with a header: time first, then one column a channel. Whole columns at a time where a chunk is clean, cell by cell where not."""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.recordings.recording import Column, Recording, Times, describe
from edge_runtime.recordings.times import parse_time, parse_times, time_format

_MISSING = frozenset({"", "nan", "null", "none", "na", "n/a"})
_WORDS = {"true": 1.0, "false": 0.0}
_DELIMITERS = ",;\t"
_CHUNK = 1024**2
_SAMPLE = 1000
_SHOWN_PROBLEMS = 5
_SHOWN_CELL = 40


class _Malformed(ValueError):
    """One row that cannot be read: where in the row (a column's name, or nothing), why, and in which words."""

    def __init__(self, column: str, reason: str, message: str) -> None:
        super().__init__(message)
        self.column = column
        self.reason = reason


def read_csv(path: Path, strict: bool) -> Recording:
    """One recording. Raises InputError for what is no such CSV, and for the first malformed row when `strict`."""
    try:
        with path.open(encoding="utf-8-sig", newline=None) as file:
            first_line = file.readline()
            chunks = _chunks(file)
            lines = next(chunks, [])
            delimiter = _delimiter(first_line, next((line for line in lines if line.strip()), ""))
            table = _Table(path, _header(path, first_line, delimiter), delimiter, strict)
            while lines:
                table.add(lines)
                lines = next(chunks, [])
            return table.recording()
    except UnicodeDecodeError as err:
        raise InputError(_not_text(path)) from err


def _chunks(file: TextIO) -> Iterator[list[str]]:
    while text := file.read(_CHUNK):
        text += file.readline()
        lines = text.split("\n")
        if not lines[-1]:
            lines.pop()
        yield lines


def _cells(line: str, delimiter: str) -> list[str]:
    """The cells of one line; an open quote ends with the line, so that it cannot swallow the rows after it."""
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error as err:
        raise _Malformed("", "not CSV", f"not valid CSV: {err}") from err


def _delimiter(header: str, row: str) -> str:
    """The delimiter under which the header and the first row have most cells in common and the row begins with a time."""

    def fit(delimiter: str) -> tuple[bool, int]:
        try:
            names, cells = _cells(header, delimiter), _cells(row, delimiter)
        except _Malformed:
            return False, 0
        agree = bool(cells) and len(names) == len(cells) > 1 and any(time_format(cells[:1])[1:])
        return agree, len(names)

    return max(_DELIMITERS, key=fit)


def _header(path: Path, line: str, delimiter: str) -> list[str]:
    try:
        names = [name.strip() for name in _cells(line.rstrip("\n"), delimiter)]
    except _Malformed as err:
        raise InputError(f"{path}:1: {err}") from err
    if len(names) < 2:
        raise InputError(
            f"{path}:1: expected a header with a time column and at least one channel, separated by , ; or tab; got `{line.strip()[:60]}`"
        )
    twice = [name for name, count in Counter(names).items() if count > 1 or (not name and names[0])]
    if twice:
        raise InputError(f"{path}:1: expected different, non-empty column names, got {', '.join(f'`{name}`' for name in twice)}")
    if all(_number(name) is not None for name in names[1:]):
        raise InputError(f"{path}:1: expected a header with column names, got numbers; put a line such as `time,temperature` first")
    return names


class _Table:
    """Collects the rows of one file."""

    def __init__(self, path: Path, names: list[str], delimiter: str, strict: bool) -> None:
        self._path = path
        self._names = names
        self._delimiter = delimiter
        self._decimal_comma = delimiter == ";"
        self._strict = strict
        self._line = 1
        self._scale, self._time_format = 0, ""
        self._times: list[Times] = []
        self._values: list[list[Column]] = []
        self._reasons: Counter[str] = Counter()
        self._problems: list[str] = []

    def add(self, lines: Sequence[str]) -> None:
        """Takes the next lines of the file, without their ends."""
        if not self._time_format:
            self._scale, self._time_format = time_format(islice(self._first_cells(lines), _SAMPLE))
        clean = not any("_" in line for line in lines)  # float() takes 1_000 for a number, other programs do not
        times, columns = (self._columns(lines) if clean else None) or self._rows(lines)
        self._line += len(lines)
        if len(times):
            self._times.append(times)
            self._values.append(columns)

    def recording(self) -> Recording:
        """What was collected. Raises InputError when there were rows and none could be read."""
        rows = sum(map(len, self._times))
        if self._reasons and not rows:
            raise InputError(f"{self._problems[0]} (and none of the other {self._reasons.total() - 1} rows can be read)")
        times = np.concatenate(self._times) if rows else np.empty(0, np.int64)
        parts = list(zip(*self._values, strict=True)) or [()] * (len(self._names) - 1)
        columns = {name: np.concatenate(part) if rows else np.empty(0) for name, part in zip(self._names[1:], parts, strict=True)}
        report = describe(times, columns, reasons=self._reasons, problems=tuple(self._problems), time_format=self._time_format)
        return Recording(self._path, self._path.stem, times, columns, report)

    def _first_cells(self, lines: Sequence[str]) -> Iterator[str]:
        for line in lines:
            try:
                yield from _cells(line, self._delimiter)[:1]
            except _Malformed:
                continue

    def _columns(self, lines: Sequence[str]) -> tuple[Times, list[Column]] | None:
        """All cells at once, or None when some line needs to be looked at."""
        width = len(self._names)
        if not all(line.count(self._delimiter) == width - 1 for line in lines):
            return None
        cells = self._delimiter.join(lines).split(self._delimiter)
        try:
            return parse_times(cells[::width], self._scale), [self._column(cells[at::width]) for at in range(1, width)]
        except ValueError:
            return None

    def _column(self, cells: Sequence[str]) -> Column:
        try:
            values = np.fromiter(map(float, cells), np.float64, len(cells))
        except ValueError:
            values = np.fromiter((_value(cell, self._decimal_comma) for cell in cells), np.float64, len(cells))
        values[np.isinf(values)] = np.nan
        return values

    def _rows(self, lines: Sequence[str]) -> tuple[Times, list[Column]]:
        """Row by row; those that cannot be read are counted."""
        times, values = [], []
        for number, line in enumerate(lines, self._line + 1):
            if not line.strip():
                continue
            try:
                time_ns, row = self._row(_cells(line, self._delimiter))
            except _Malformed as err:
                self._reject(number, err)
                continue
            times.append(time_ns)
            values.append(row)
        table = np.array(values, np.float64).reshape(len(times), len(self._names) - 1)
        table[np.isinf(table)] = np.nan
        return np.array(times, np.int64), list(np.ascontiguousarray(table.T))

    def _row(self, cells: list[str]) -> tuple[int, list[float]]:
        expected = len(self._names)
        if len(cells) != expected:
            hint = "; has the header a name too few, as for row numbers?" if len(cells) == expected + 1 else ""
            reason = "too few cells" if len(cells) < expected else "too many cells"
            raise _Malformed("", reason, f"expected {expected} cells, got {len(cells)}{hint}")
        try:
            time_ns = parse_time(cells[0], self._scale)
        except ValueError as err:
            message = f"expected a time (ISO 8601 or epoch seconds), got `{cells[0][:_SHOWN_CELL]}`"
            raise _Malformed(self._names[0], "not a time", message) from err
        row = []
        for name, cell in zip(self._names[1:], cells[1:], strict=True):
            value = _number(cell, self._decimal_comma)
            if value is None:
                raise _Malformed(name, "not a number", f"expected a number, got `{cell[:_SHOWN_CELL]}`")
            row.append(value)
        return time_ns, row

    def _reject(self, line: int, err: _Malformed) -> None:
        problem = ":".join(part for part in (str(self._path), str(line), err.column) if part) + f": {err}"
        if self._strict:
            raise InputError(problem) from err
        self._reasons[err.reason] += 1
        if len(self._problems) < _SHOWN_PROBLEMS:
            self._problems.append(problem)


def _number(cell: str, decimal_comma: bool = False) -> float | None:
    """NaN for a missing cell, None for one that is no number."""
    text = cell.strip()
    if decimal_comma and text.count(",") == 1 and "." not in text:
        text = text.replace(",", ".")
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        word = text.casefold()
        return math.nan if word in _MISSING else _WORDS.get(word)


def _value(cell: str, decimal_comma: bool) -> float:
    value = _number(cell, decimal_comma)
    if value is None:
        raise ValueError(cell)
    return value


def _not_text(path: Path) -> str:
    with path.open("rb") as file:
        head = file.read(2)
        if head in (b"\xff\xfe", b"\xfe\xff"):
            return f"{path}: expected UTF-8 text, got UTF-16; convert it, such as with: iconv -f UTF-16 -t UTF-8"
        file.seek(0)
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as err:
                byte = line[err.start]
                return (
                    f"{path}:{number}: expected UTF-8 text, got byte 0x{byte:02x} as character {err.start + 1}; "
                    "convert it, such as with: iconv -f LATIN1 -t UTF-8"
                )
    return f"{path}: expected UTF-8 text"
