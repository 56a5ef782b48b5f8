"""What a gateway remembers of signatures between deployments: the newest revision taken and the newest signed time. Files only.

The machine's clock is never written here: one that once stood at 2100 leaves no trace.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

_NAME = "record.json"
_MAX_BYTES = 64 * 1024


class Record(msgspec.Struct, frozen=True):
    """`digest` is over the signed part of the message of `revision`. `signed_wall_ns` holds while a key of `time_keys` is trusted."""

    revision: int = 0
    digest: str = ""
    signed_wall_ns: int = 0
    time_keys: tuple[str, ...] = ()

    def with_time(self, signed_wall_ns: int, time_keys: frozenset[str]) -> Record:
        """After a timestamp of `signed_wall_ns` that these keys may sign. Time only rises, until none of the old keys is trusted."""
        seen = self.time_floor_ns(time_keys)
        return msgspec.structs.replace(self, signed_wall_ns=max(seen, signed_wall_ns), time_keys=tuple(sorted(time_keys)))

    def time_floor_ns(self, time_keys: frozenset[str] | None = None) -> int:
        """The newest signed time, or 0 when every key that could have signed it has been rotated out."""
        rotated_out = time_keys is not None and time_keys.isdisjoint(self.time_keys)
        return 0 if rotated_out else self.signed_wall_ns


def load(folder: Path) -> Record:
    """The record in a trust folder; an empty one where there is none or the disk damaged it."""
    try:
        with (folder / _NAME).open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=Record)
    except (FileNotFoundError, msgspec.MsgspecError, RecursionError, ValueError):
        return Record()


def save(folder: Path, record: Record) -> None:
    """Replaces the record; returns when it is on the disk."""
    part = folder / f"{_NAME}.part"
    with part.open("wb") as file:
        file.write(msgspec.json.encode(record))
        file.flush()
        os.fsync(file.fileno())
    part.replace(folder / _NAME)
    sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
