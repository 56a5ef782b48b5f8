"""The gateway's own memory of what it decided, did and saw, for `why`: bounded, and kept after the outbox has delivered.

By kind, the newest entries stay, up to a number of rows and of bytes. Writes happen in the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from edge_runtime.records import RecordKind, decode_body
from edge_runtime.store.database import Limits
from edge_runtime.store.room import Room
from edge_runtime.types import Timestamp

MAX_ROWS: Final[dict[str, int]] = {
    RecordKind.DECISION: 10_000,
    RecordKind.ACTION: 10_000,
    RecordKind.INFERENCE: 2_000,
    RecordKind.NOTICE: 1_000,
}
_KINDS: Final = tuple(MAX_ROWS)
_KIND_SHIFT: Final = 56
_SLACK_ROWS: Final = 64
_SHARE_OF_STORE: Final = 64
_COLUMNS: Final = "id, boot, seq, ref, mono_ns, wall_ns, wall_err_ns, body"


class JournalEntry(msgspec.Struct, frozen=True):
    """One remembered record. `id` is the decision's or action's own, else empty; `body` is its fields as plain values."""

    kind: RecordKind
    boot: str
    seq: int
    id: str
    at: Timestamp
    body: Any


class Pending(msgspec.Struct, frozen=True, gc=False):
    """An entry on its way to the journal, encoded."""

    kind: str
    seq: int
    ref: str
    at: Timestamp
    body: bytes


class Journal:
    """The writing side. `load` after opening and after every rollback."""

    def __init__(self, limits: Limits) -> None:
        self._max_bytes = limits.max_bytes // _SHARE_OF_STORE
        self._first: dict[str, int] = {}
        self._next: dict[str, int] = {}
        self._bytes: dict[str, int] = {}

    def load(self, db: sqlite3.Connection) -> None:
        """Takes stock of what is stored."""
        for kind in _KINDS:
            first, last, size = db.execute(
                "SELECT min(id), max(id), coalesce(sum(length(body)), 0) FROM journal WHERE id BETWEEN ? AND ?", _span(kind)
            ).fetchone()
            base = _span(kind)[0]
            self._first[kind] = base if first is None else first
            self._next[kind] = base if last is None else last + 1
            self._bytes[kind] = size

    def append(self, db: sqlite3.Connection, boot: str, entries: Sequence[Pending], room: Room) -> None:
        """Adds entries and lets the oldest go; where the disk leaves no room, old entries make it."""
        for entry in entries:
            if not self._fits(db, entry, room):
                continue
            row = self._next[entry.kind]
            at = entry.at
            db.execute(
                f"INSERT INTO journal({_COLUMNS}) VALUES(?,?,?,?,?,?,?,?)",
                (row, boot, entry.seq, entry.ref, at.mono_ns, at.wall_ns, at.wall_err_ns, entry.body),
            )
            self._next[entry.kind] = row + 1
            self._bytes[entry.kind] += len(entry.body)
        for kind in {entry.kind for entry in entries}:
            self._trim(db, kind)

    def _fits(self, db: sqlite3.Connection, entry: Pending, room: Room) -> bool:
        if len(entry.body) > self._max_bytes:
            return False
        while not room.spare(db, len(entry.body)):
            if self._next[entry.kind] == self._first[entry.kind]:
                return False
            self._forget(db, entry.kind, max(1, (self._next[entry.kind] - self._first[entry.kind]) // 8))
        return True

    def _trim(self, db: sqlite3.Connection, kind: str) -> None:
        excess = self._next[kind] - self._first[kind] - MAX_ROWS[kind]
        if excess > _SLACK_ROWS:
            self._forget(db, kind, excess)
        while self._bytes[kind] > self._max_bytes and self._first[kind] < self._next[kind]:
            self._forget(db, kind, _SLACK_ROWS)

    def _forget(self, db: sqlite3.Connection, kind: str, rows: int) -> None:
        first = self._first[kind]
        last = min(first + rows, self._next[kind]) - 1
        freed = db.execute("SELECT coalesce(sum(length(body)), 0) FROM journal WHERE id BETWEEN ? AND ?", (first, last)).fetchone()[0]
        db.execute("DELETE FROM journal WHERE id BETWEEN ? AND ?", (first, last))
        self._first[kind] = last + 1
        self._bytes[kind] -= freed


def recent(db: sqlite3.Connection, kind: RecordKind, limit: int) -> list[JournalEntry]:
    """The newest entries of a kind, newest first. Readings are not kept: an empty list."""
    if kind not in MAX_ROWS:
        return []
    query = f"SELECT {_COLUMNS} FROM journal WHERE id BETWEEN ? AND ? ORDER BY id DESC LIMIT ?"  # noqa: S608  constant text
    return _entries(db.execute(query, (*_span(kind), limit)))


def find(db: sqlite3.Connection, ref: str) -> JournalEntry | None:
    """The newest decision or action of that id."""
    query = f"SELECT {_COLUMNS} FROM journal WHERE ref=? AND ref != '' ORDER BY id DESC LIMIT 1"  # noqa: S608  constant text
    return next(iter(_entries(db.execute(query, (ref,)))), None)


def _entries(rows: Iterable[tuple[int, str, int, str, int, int, int, bytes]]) -> list[JournalEntry]:
    return [
        JournalEntry(RecordKind(_KINDS[row >> _KIND_SHIFT]), boot, seq, ref, Timestamp(mono, wall, err), decode_body(msgspec.Raw(body)))
        for row, boot, seq, ref, mono, wall, err, body in rows
    ]


def _span(kind: str) -> tuple[int, int]:
    base = _KINDS.index(kind) << _KIND_SHIFT
    return base, base + (1 << _KIND_SHIFT) - 1
