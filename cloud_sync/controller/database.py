"""The sink's database: one SQLite file, written by one thread. Deduplicates by primary key; keeps what it cannot read in quarantine.

Small on purpose: `Database` is the interface that a database server can stand behind later.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import InputError, StoreError
from edge_runtime.records import Record

SCHEMA_VERSION = 1
MAX_QUARANTINE_BYTES = 256 * 1024 * 1024
_CACHE_KIB = 8192
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
    tenant TEXT NOT NULL, gateway TEXT NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL,
    kind TEXT NOT NULL, mono_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, wall_err_ns INTEGER NOT NULL,
    body BLOB NOT NULL, received_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (tenant, gateway, boot, seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS gateways (
    tenant TEXT NOT NULL, gateway TEXT NOT NULL,
    boot TEXT NOT NULL DEFAULT '', online INTEGER NOT NULL DEFAULT 0, version TEXT NOT NULL DEFAULT '',
    status_wall_ns INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT '{}', state_boot TEXT NOT NULL DEFAULT '', state_seq INTEGER NOT NULL DEFAULT 0,
    state_wall_ns INTEGER NOT NULL DEFAULT 0, duplicates INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, gateway)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS quarantine (
    tenant TEXT NOT NULL, gateway TEXT NOT NULL, boot TEXT NOT NULL, first_seq INTEGER NOT NULL,
    reason TEXT NOT NULL, payload BLOB NOT NULL, received_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (tenant, gateway, boot, first_seq)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""
_INSERT = "INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COUNT = "INSERT INTO counters VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value"
_DUPLICATES = """INSERT INTO gateways (tenant, gateway, duplicates) VALUES (?, ?, ?)
    ON CONFLICT (tenant, gateway) DO UPDATE SET duplicates = duplicates + excluded.duplicates"""
_BIRTH = """INSERT INTO gateways (tenant, gateway, boot, online, version, status_wall_ns) VALUES (?, ?, ?, 1, ?, ?)
    ON CONFLICT (tenant, gateway) DO UPDATE SET boot = excluded.boot, online = 1, version = excluded.version,
    status_wall_ns = excluded.status_wall_ns"""
_DEATH = """INSERT INTO gateways (tenant, gateway, boot, online, status_wall_ns) VALUES (?, ?, ?, 0, ?)
    ON CONFLICT (tenant, gateway) DO UPDATE SET online = 0, status_wall_ns = excluded.status_wall_ns WHERE boot = excluded.boot"""
_STATE = """INSERT INTO gateways (tenant, gateway, state, state_boot, state_seq, state_wall_ns) VALUES (?, ?, ?, ?, ?, ?)
    ON CONFLICT (tenant, gateway) DO UPDATE SET state = excluded.state, state_boot = excluded.state_boot, state_seq = excluded.state_seq,
    state_wall_ns = excluded.state_wall_ns WHERE state_boot <> excluded.state_boot OR state_seq < excluded.state_seq"""

_BOOTS = """SELECT boot, count(*), min(seq), max(seq) FROM records WHERE tenant = ? AND gateway = ?
    GROUP BY boot ORDER BY min(received_wall_ns)"""


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose records they are."""

    tenant: str
    gateway: str
    boot: str


class Database:
    """All methods from one thread. Nothing is durable before `transaction` has ended without an error."""

    def __init__(self, path: Path | str) -> None:
        """Opens or creates. Raises StoreError when the file is no database of ours."""
        self.path = Path(path)
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, check_same_thread=False)
            self._prepare()
        except sqlite3.Error as err:
            raise StoreError(f"{path}: expected a sink database: {err}. Move it away to start a new one") from err

    def _prepare(self) -> None:
        db = self._db
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        db.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
        db.execute("PRAGMA busy_timeout=5000")
        found = db.execute("PRAGMA user_version").fetchone()[0]
        if found not in (0, SCHEMA_VERSION):
            raise StoreError(f"{self.path}: schema version {found}, this program knows {SCHEMA_VERSION}: update it or use another file")
        db.executescript(_SCHEMA)
        db.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    def close(self) -> None:
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything inside is committed to disk together, or not at all (StoreError)."""
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.Error as err:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise StoreError(f"{self.path}: {err}") from err

    def insert(self, origin: Origin, records: Sequence[Record], received_wall_ns: int) -> int:
        """Adds records; returns how many were already there. Raises InputError for a value that the database cannot hold."""
        who = (origin.tenant, origin.gateway, origin.boot)
        rows = [(*who, r.seq, r.kind, r.mono_ns, r.wall_ns, r.wall_err_ns, bytes(r.body), received_wall_ns) for r in records]
        before = self._db.total_changes
        try:
            self._db.executemany(_INSERT, rows)
        except (ValueError, OverflowError, sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError) as err:
            raise InputError(f"records of {origin.gateway} boot {origin.boot} cannot be stored: {err}") from err
        duplicates = len(rows) - (self._db.total_changes - before)
        if duplicates:
            self._db.execute(_DUPLICATES, (origin.tenant, origin.gateway, duplicates))
        return duplicates

    def quarantine(self, origin: Origin, first_seq: int, reason: str, payload: bytes, received_wall_ns: int) -> bool:
        """Keeps a batch that cannot be read. False when the quarantine is full: then it is only counted."""
        row = (origin.tenant, origin.gateway, origin.boot, first_seq, reason, payload, received_wall_ns)
        kept = self._db.execute("SELECT coalesce(sum(length(payload)), 0) FROM quarantine").fetchone()[0]
        if kept + len(payload) > MAX_QUARANTINE_BYTES:
            return False
        self._db.execute("INSERT OR IGNORE INTO quarantine VALUES (?, ?, ?, ?, ?, ?, ?)", row)
        return True

    def count(self, name: str, amount: int) -> None:
        self._db.execute(_COUNT, (name, amount))

    def set_status(self, origin: Origin, online: bool, version: str, wall_ns: int) -> None:
        """A birth replaces what was known; a will only ends the boot it belongs to."""
        who = (origin.tenant, origin.gateway, origin.boot)
        self._db.execute(_BIRTH if online else _DEATH, (*who, version, wall_ns) if online else (*who, wall_ns))

    def set_state(self, origin: Origin, seq: int, state: bytes, wall_ns: int) -> None:
        """Keeps the newest report; an older one of the same boot changes nothing."""
        self._db.execute(_STATE, (origin.tenant, origin.gateway, state.decode(), origin.boot, seq, wall_ns))

    def counters(self) -> dict[str, int]:
        return dict(self._db.execute("SELECT name, value FROM counters").fetchall())

    def totals(self) -> dict[str, int]:
        """Rows, duplicates refused and batches in quarantine, over all gateways."""
        rows = self._one("SELECT count(*) FROM records")
        duplicates = self._one("SELECT coalesce(sum(duplicates), 0) FROM gateways")
        return {"rows": rows, "duplicates": duplicates, "quarantined": self._one("SELECT count(*) FROM quarantine")}

    def gateways(self) -> list[dict[str, Any]]:
        """Every gateway heard of, with its last status and state."""
        cursor = self._db.execute("SELECT * FROM gateways ORDER BY tenant, gateway")
        names = [column[0] for column in cursor.description]
        return [_with_state(dict(zip(names, row, strict=True))) for row in cursor]

    def boots(self, tenant: str, gateway: str) -> Iterable[tuple[str, int, int, int]]:
        """(boot, rows, lowest seq, highest seq) of one gateway, oldest boot first."""
        return self._db.execute(_BOOTS, (tenant, gateway)).fetchall()

    def quarantined(self, tenant: str, gateway: str) -> list[tuple[str, int, str]]:
        """(boot, first_seq, reason) of one gateway's batches in quarantine."""
        query = "SELECT boot, first_seq, reason FROM quarantine WHERE tenant = ? AND gateway = ?"
        return self._db.execute(query, (tenant, gateway)).fetchall()

    def _one(self, query: str) -> int:
        return int(self._db.execute(query).fetchone()[0])


def audit(db: Database, gateway: str, tenant: str = "default") -> dict[str, Any]:
    """What the sink holds of one gateway: rows, duplicates refused, per boot rows, highest seq and holes; what it reported as dropped.

    `holes` counts the numbers missing between the lowest and the highest seq of a boot.
    """
    boots = {
        boot: {"rows": rows, "min_seq": low, "max_seq": high, "holes": high - low + 1 - rows}
        for boot, rows, low, high in db.boots(tenant, gateway)
    }
    known = next((entry for entry in db.gateways() if (entry["tenant"], entry["gateway"]) == (tenant, gateway)), None)
    return {
        "tenant": tenant,
        "gateway": gateway,
        "rows": sum(boot["rows"] for boot in boots.values()),
        "duplicates": known["duplicates"] if known else 0,
        "boots": boots,
        "holes": sum(boot["holes"] for boot in boots.values()),
        "quarantined": len(db.quarantined(tenant, gateway)),
        "dropped": known["state"].get("ledger", {}).get("dropped") if known else None,
    }


def _with_state(row: dict[str, Any]) -> dict[str, Any]:
    try:
        state = msgspec.json.decode(row["state"])
    except (msgspec.MsgspecError, RecursionError):
        state = {}
    return row | {"state": state, "online": bool(row["online"])}
