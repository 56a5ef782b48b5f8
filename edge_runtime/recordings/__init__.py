"""Recorded data: CSV and npz files as arrays. Reads; interprets nothing.

Adapters may import it, as they may `edge_runtime.records` and `edge_runtime.options`: it is a format, not a part of the gateway.
Duplicate and out-of-order times are kept in file order, counted and reported. A missing cell is NaN. A row that cannot be read is
left out and counted by reason, with a message, or refused when reading strictly.
"""

from __future__ import annotations

from pathlib import Path

from edge_runtime.errors import InputError
from edge_runtime.recordings.csv_table import read_csv
from edge_runtime.recordings.npz_arrays import read_npz
from edge_runtime.recordings.recording import KNOWN_LABELS, Column, Recording, Report, Times, canonical
from edge_runtime.recordings.times import parse_time

__all__ = ["KNOWN_LABELS", "MAX_BYTES", "Column", "Recording", "Report", "Times", "canonical", "open_recordings", "parse_time"]

MAX_BYTES = 1024**3


def open_recordings(path: Path, *, strict: bool = False, max_bytes: int = MAX_BYTES) -> list[Recording]:
    """The recordings of one file: a CSV or an npz with `t` is one; an npz without `t` is one for each array.

    Raises InputError saying what was expected, also for a file that holds or unpacks to more than `max_bytes`; with `strict` also
    for the first malformed row.
    """
    try:
        if path.suffix.lower() == ".npz":
            return read_npz(path, max_bytes)
        if path.stat().st_size > max_bytes:
            raise InputError(f"{path}: expected at most {max_bytes} bytes, got {path.stat().st_size}; split the recording")
        return [read_csv(path, strict)]
    except OSError as err:
        raise InputError(f"{path}: cannot be read: {err.strerror or err}") from err
