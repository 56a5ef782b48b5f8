"""Telemetry into SQLite: one connection, one thread, `executemany`. Deduplicates by primary key."""

from __future__ import annotations

import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cloud_sync.controller.ingest import MAX_QUARANTINE_BYTES, Origin, Span
from edge_runtime.errors import InputError, StoreError
from edge_runtime.records import Record

_BUSY_S = 10.0
_CACHE_KIB = 8192
_INSERT = "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_QUARANTINE = "INSERT OR IGNORE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?)"
_COUNT = "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
_DUPLICATES = """INSERT INTO gateways (tenant, gateway, duplicates) VALUES (?, ?, ?)
    ON CONFLICT (tenant, gateway) DO UPDATE SET duplicates = duplicates + excluded.duplicates"""
_BOOT = """INSERT INTO boots VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (tenant, gateway, boot) DO UPDATE SET
    rows = rows + excluded.rows, first_seq = min(first_seq, excluded.first_seq), last_seq = max(last_seq, excluded.last_seq)"""
_BIRTH = """INSERT INTO gateways (tenant, gateway, boot, online, version, status_wall_ns) VALUES (?, ?, ?, 1, ?, ?)
    ON CONFLICT (tenant, gateway) DO UPDATE SET boot = excluded.boot, online = 1, version = excluded.version,
    status_wall_ns = excluded.status_wall_ns"""
_DEATH = """INSERT INTO gateways (tenant, gateway, boot, online, status_wall_ns) VALUES (?, ?, ?, 0, ?)
    ON CONFLICT (tenant, gateway) DO UPDATE SET online = 0, status_wall_ns = excluded.status_wall_ns WHERE boot = excluded.boot"""
_STATE = """INSERT INTO gateways (tenant, gateway, state, state_boot, state_seq, state_wall_ns) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, gateway) DO UPDATE SET state = excluded.state, state_boot = excluded.state_boot, state_seq = excluded.state_seq,
    state_wall_ns = excluded.state_wall_ns WHERE state_boot <> excluded.state_boot OR state_seq < excluded.state_seq"""


class SqliteWriter:
    """A RecordWriter over a SQLite file whose tables exist."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._db: sqlite3.Connection | None = None
        self._spans: dict[Origin, Span] = defaultdict(Span)
        self._received_wall_ns = 0

    @contextmanager
    def transaction(self) -> Iterator[None]:
        db = self._connect()
        self._spans.clear()
        try:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        except sqlite3.Error as err:
            self.close()  # which rolls back; the next transaction opens the file anew
            raise StoreError(f"{self._path}: {err}") from err
        except BaseException:
            db.execute("ROLLBACK")
            raise

    def insert(self, origin: Origin, records: Sequence[Record], received_wall_ns: int) -> None:
        db = self._connect()
        who = (origin.tenant, origin.gateway, origin.boot)
        rows = [(*who, r.seq, r.kind, r.mono_ns, r.wall_ns, r.wall_err_ns, bytes(r.body), received_wall_ns) for r in records]
        before = db.total_changes
        try:
            db.executemany(_INSERT, rows)
        except (ValueError, OverflowError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as err:
            raise InputError(f"records of {origin.gateway} boot {origin.boot} cannot be stored: {err}") from err
        span = self._spans[origin]
        span.widen(records)
        span.added += db.total_changes - before
        self._received_wall_ns = received_wall_ns

    def settle(self) -> int:
        db, again = self._connect(), Counter[tuple[str, str]]()
        for origin, span in self._spans.items():
            who = (origin.tenant, origin.gateway, origin.boot)
            if span.added:
                db.execute(_BOOT, (*who, span.added, span.first_seq, span.last_seq, self._received_wall_ns))
            again[who[:2]] += span.offered - span.added
        db.executemany(_DUPLICATES, [(*who, count) for who, count in again.items() if count])
        self._spans.clear()
        return again.total()

    def quarantine(self, origin: Origin, first_seq: int, reason: str, payload: bytes, received_wall_ns: int) -> bool:
        db = self._connect()
        kept = db.execute("SELECT coalesce(sum(length(payload)), 0) FROM quarantine").fetchone()[0]
        if kept + len(payload) > MAX_QUARANTINE_BYTES:
            return False
        db.execute(_QUARANTINE, (origin.tenant, origin.gateway, origin.boot, first_seq, reason, payload, received_wall_ns))
        return True

    def count(self, name: str, amount: int) -> None:
        self._connect().execute(_COUNT, (name, amount))

    def set_status(self, origin: Origin, online: bool, version: str, wall_ns: int) -> None:
        who = (origin.tenant, origin.gateway, origin.boot)
        self._connect().execute(_BIRTH if online else _DEATH, (*who, version, wall_ns) if online else (*who, wall_ns))

    def set_state(self, origin: Origin, seq: int, state: str, wall_ns: int) -> None:
        self._connect().execute(_STATE, (origin.tenant, origin.gateway, state, origin.boot, seq, wall_ns))

    def close(self) -> None:
        if self._db is not None:
            self._db.close()
        self._db = None

    def _connect(self) -> sqlite3.Connection:
        if self._db is None:
            try:
                self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False, timeout=_BUSY_S)
                for pragma in ("journal_mode=WAL", "synchronous=FULL", f"cache_size=-{_CACHE_KIB}"):
                    self._db.execute(f"PRAGMA {pragma}")
            except sqlite3.Error as err:
                self.close()
                raise StoreError(f"{self._path}: {err}") from err
        return self._db
