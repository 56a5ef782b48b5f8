"""Recorded data: CSV and npz files as arrays. Reads; interprets nothing.

Duplicate and out-of-order times are kept in file order, counted and reported. A missing cell is NaN. A row that cannot be read is
left out and counted, with a message, or refused when reading strictly.
"""

from __future__ import annotations

import csv
import io
import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edge_runtime.errors import InputError

KNOWN_LABELS = ("anomaly", "changepoint")
MAX_BYTES = 1024**3

_MISSING = frozenset({"", "nan", "null", "none", "na", "n/a"})
_DELIMITERS = ",;\t"
_SHOWN_PROBLEMS = 5
_GAP = 1.5

Column = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Report:
    """What was found. `gaps` are steps of more than 1.5 times the median step; `problems` are the first few, as file:line:column."""

    rows: int
    duplicates: int = 0
    out_of_order: int = 0
    missing: int = 0
    gaps: int = 0
    malformed: int = 0
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Recording:
    """Columns over rows, in file order. `t_ns` is wall time since the epoch, or None for evenly spaced samples without times."""

    path: Path
    name: str
    t_ns: Times | None
    columns: dict[str, Column]
    report: Report


def canonical(name: str) -> str:
    """A name without case and punctuation: `Volume Flow RateRMS` -> `volumeflowraterms`."""
    return "".join(character for character in name.casefold() if character.isalnum())


def open_recordings(path: Path, *, strict: bool = False) -> list[Recording]:
    """The recordings of one file: a CSV or an npz with `t` is one; an npz without `t` is one for each array.

    Raises InputError saying what was expected; with `strict` also for the first malformed row.
    """
    try:
        if path.suffix.lower() == ".npz":
            return _open_npz(path)
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: expected at most {MAX_BYTES} bytes, got {path.stat().st_size}; split the recording")
        return [_open_csv(path, strict)]
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err.strerror or err}") from err


# -- CSV ------------------------------------------------------------------------------------------------------------------


def _open_csv(path: Path, strict: bool) -> Recording:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise InputError(f"{path}: expected UTF-8 text, got byte 0x{err.object[err.start]:02x} at offset {err.start}") from err
    header_line, _, _ = text.partition("\n")
    delimiter = max(_DELIMITERS, key=header_line.count)
    rows = _rows(path, text, delimiter)
    _, header = next(rows, (1, []))
    names = [name.strip() for name in header]
    if len(names) < 2:
        raise InputError(
            f"{path}:1: expected a header with a time column and at least one channel, separated by , ; or tab; got `{header_line[:60]}`"
        )
    if len(set(names)) != len(names) or "" in names[1:]:
        raise InputError(f"{path}:1: expected different, non-empty column names, got {', '.join(names)}")
    table = _Table(path, names, delimiter == ";", strict)
    for line, cells in rows:
        table.add(line, cells)
    return table.recording()


def _rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        for cells in reader:
            if cells:
                yield reader.line_num, cells
    except csv.Error as err:
        raise InputError(f"{path}:{reader.line_num}: not valid CSV: {err}") from err


class _Table:
    """Collects the rows of one CSV file."""

    def __init__(self, path: Path, names: list[str], decimal_comma: bool, strict: bool) -> None:
        self._path = path
        self._names = names
        self._decimal_comma = decimal_comma
        self._strict = strict
        self._times: list[int] = []
        self._values: list[list[float]] = []
        self._problems: list[str] = []
        self._malformed = 0

    def add(self, line: int, cells: list[str]) -> None:
        if len(cells) != len(self._names):
            self._reject(f"{self._path}:{line}: expected {len(self._names)} cells, got {len(cells)}")
            return
        try:
            time_ns = parse_time(cells[0])
        except ValueError:
            self._reject(f"{self._path}:{line}:{self._names[0]}: expected a time (ISO 8601 or epoch seconds), got `{cells[0][:40]}`")
            return
        values = []
        for name, cell in zip(self._names[1:], cells[1:], strict=True):
            value = self._number(cell)
            if value is None:
                self._reject(f"{self._path}:{line}:{name}: expected a number, got `{cell[:40]}`")
                return
            values.append(value)
        self._times.append(time_ns)
        self._values.append(values)

    def recording(self) -> Recording:
        times = np.array(self._times, np.int64)
        table = np.array(self._values, np.float64).reshape(len(times), len(self._names) - 1)
        columns = {name: np.ascontiguousarray(table[:, index]) for index, name in enumerate(self._names[1:])}
        report = _report(times, columns, self._malformed, tuple(self._problems))
        return Recording(self._path, self._path.stem, times, columns, report)

    def _number(self, cell: str) -> float | None:
        """NaN for a missing or infinite cell, None for one that is no number."""
        try:
            value = float(cell)
        except ValueError:
            text = cell.strip()
            if text.casefold() in _MISSING:
                return math.nan
            try:
                value = float(text.replace(",", ".")) if self._decimal_comma and text.count(",") == 1 else math.inf
            except ValueError:
                return None
            if math.isinf(value):
                return None
        return value if math.isfinite(value) else math.nan

    def _reject(self, problem: str) -> None:
        if self._strict:
            raise InputError(problem)
        self._malformed += 1
        if len(self._problems) < _SHOWN_PROBLEMS:
            self._problems.append(problem)


def parse_time(text: str) -> int:
    """ISO 8601 (without a zone: UTC) or an epoch in s, ms, us or ns, told by its magnitude, as ns. Raises ValueError."""
    text = text.strip()
    try:
        number = float(text)
    except ValueError:
        moment = datetime.fromisoformat(text)
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        delta = moment - datetime(1970, 1, 1, tzinfo=UTC)
        return (delta.days * 86_400 + delta.seconds) * 10**9 + delta.microseconds * 1000
    if not math.isfinite(number) or abs(number) > 9e18:
        raise ValueError(f"not a time: {text}")
    for limit, scale in ((1e11, 10**9), (1e14, 10**6), (1e17, 10**3)):
        if abs(number) < limit:
            return _exact(text, number, scale)
    return int(number)


def _exact(text: str, number: float, scale: int) -> int:
    """Whole numbers are scaled as such, so that large ones lose no digit."""
    digits = text.lstrip("+-")
    return int(text) * scale if digits.isdigit() else round(number * scale)


# -- npz ------------------------------------------------------------------------------------------------------------------


def _open_npz(path: Path) -> list[Recording]:
    arrays = _arrays(path)
    times = arrays.pop("t", None)
    if not arrays:
        raise InputError(f"{path}: expected at least one array besides `t`")
    if times is None:
        return [Recording(path, name, None, {name: values}, _plain_report(values)) for name, values in arrays.items()]
    for name, values in arrays.items():
        if len(values) != len(times):
            raise InputError(f"{path}:{name}: expected {len(times)} values like `t`, got {len(values)}")
    if not np.isfinite(times).all():
        raise InputError(f"{path}:t: expected finite times, got NaN or infinity")
    t_ns = _epoch_ns(times)
    return [Recording(path, path.stem, t_ns, arrays, _report(t_ns, arrays, 0, ()))]


def _arrays(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
        if size > MAX_BYTES:
            raise InputError(f"{path}: unpacks to {size} bytes, more than {MAX_BYTES}; split the recording")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (zipfile.BadZipFile, ValueError, EOFError, KeyError) as err:
        if isinstance(err, InputError):
            raise
        raise InputError(f"{path}: not a readable npz of plain arrays: {err}") from err
    for name, values in arrays.items():
        if values.ndim != 1 or values.dtype.kind not in "fiub":
            raise InputError(f"{path}:{name}: expected a 1-D array of numbers, got {values.dtype} of shape {values.shape}")
    return {name: values if name == "t" else _finite(values.astype(np.float64)) for name, values in arrays.items()}


def _finite(values: Column) -> Column:
    values[~np.isfinite(values)] = np.nan
    return values


def _epoch_ns(times: npt.NDArray[Any]) -> Times:
    largest = float(np.abs(times).max(initial=0))
    scale = next((scale for limit, scale in ((1e11, 10**9), (1e14, 10**6), (1e17, 10**3)) if largest < limit), 1)
    scaled = times.astype(np.int64) * scale if times.dtype.kind in "iu" else np.rint(times * scale)
    return scaled.astype(np.int64)


# -- reports --------------------------------------------------------------------------------------------------------------


def _report(times: Times, columns: dict[str, Column], malformed: int, problems: tuple[str, ...]) -> Report:
    steps = np.diff(times)
    highest = np.maximum.accumulate(times) if len(times) else times
    typical = float(np.median(steps[steps > 0])) if (steps > 0).any() else 0.0
    return Report(
        rows=len(times),
        duplicates=int((steps == 0).sum()),
        out_of_order=int((times[1:] < highest[:-1]).sum()),
        missing=int(sum(np.isnan(values).sum() for values in columns.values())),
        gaps=int((steps > _GAP * typical).sum()) if typical else 0,
        malformed=malformed,
        problems=problems,
    )


def _plain_report(values: Column) -> Report:
    return Report(rows=len(values), missing=int(np.isnan(values).sum()))
