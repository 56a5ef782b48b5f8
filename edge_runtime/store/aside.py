"""Moves a database that cannot be used out of the way, never deletes it, and saves from a damaged one what is still sound.

Saved are the ledger, the slots, the journal and every outbox row whose checksum fits; what the ledger knew of and no row holds is
counted as dropped for `corrupt`. A file of a newer version is left as it is.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from edge_runtime.store import accounts, schema
from edge_runtime.store.database import Limits, Unusable, open_database

_KEPT_TABLES = ("dropped", "drop_run", "slot", "journal")


def open_or_replace(directory: Path, limits: Limits, notify: Callable[[str, str], None]) -> sqlite3.Connection:
    """The write connection; a database that is damaged or newer is set aside first. Raises StoreError for the disk's sake."""
    try:
        return open_database(directory, limits)
    except Unusable as err:
        return replace(directory, limits, err.state, str(err), notify)


def replace(directory: Path, limits: Limits, state: str, finding: str, notify: Callable[[str, str], None]) -> sqlite3.Connection:
    """Sets the database aside, begins a new one and carries over what is sound. Raises StoreError for the disk's sake."""
    kept = set_aside(directory, state)
    fresh = open_database(directory, limits)
    if state == "newer":
        notify("store_newer", f"{finding}; it is kept as {kept} and a new ledger begins: start the newer version again to deliver it")
        return fresh
    saved, lost = _salvage(fresh, kept)
    notify("store_corrupt", f"{finding}; it is kept as {kept}; {saved} pending records were saved from it, {lost} are lost")
    return fresh


def set_aside(directory: Path, state: str) -> Path:
    """Renames the database and its side files to `store.db.<state>-<stamp>`; returns the new path."""
    path = directory / schema.DATABASE
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    target, n = directory / f"{schema.DATABASE}.{state}-{stamp}", 1
    while target.exists():
        target, n = directory / f"{schema.DATABASE}.{state}-{stamp}-{n}", n + 1
    for suffix in (*schema.SIDE_FILES, ""):  # the log first: a new database must never meet an old log
        with contextlib.suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{target}{suffix}")
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return target


def _salvage(fresh: sqlite3.Connection, kept: Path) -> tuple[int, int]:
    """Copies what is sound from `kept`; returns the records saved, and those known to be lost."""
    try:
        old = _open_damaged(kept)
    except (sqlite3.Error, OSError):
        return 0, 0
    try:
        _copy(old, fresh, "boot")
        for table in _KEPT_TABLES:
            _copy(old, fresh, table)
        _copy_outbox(old, fresh)
    finally:
        old.close()
    fresh.execute("BEGIN IMMEDIATE")
    lost = accounts.settle_damage(fresh, [no for (no,) in fresh.execute("SELECT no FROM boot").fetchall()])
    fresh.execute("COMMIT")
    return accounts.count_rows(fresh), lost


def _open_damaged(kept: Path) -> sqlite3.Connection:
    """Leaves no trace beside a file without a log, and reads a file that is shorter than its header says."""
    unlogged = "" if Path(f"{kept}-wal").exists() else "&immutable=1"
    old = sqlite3.connect(f"{kept.absolute().as_uri()}?mode=ro{unlogged}", uri=True)
    old.execute("PRAGMA writable_schema = ON")
    return old


def _copy(old: sqlite3.Connection, fresh: sqlite3.Connection, table: str) -> None:
    """Row by row until the first that cannot be read or written."""
    with contextlib.suppress(sqlite3.Error):
        for row in old.execute(f"SELECT * FROM {table}"):  # noqa: S608  constant names
            marks = ",".join("?" * len(row))
            fresh.execute(f"INSERT OR IGNORE INTO {table} VALUES({marks})", row)


def _copy_outbox(old: sqlite3.Connection, fresh: sqlite3.Connection) -> None:
    """From both ends towards the damage."""
    for order in ("ASC", "DESC"):
        with contextlib.suppress(sqlite3.Error):
            fresh.execute("BEGIN IMMEDIATE")
            for row in _sound_rows(old, order):
                if fresh.execute("SELECT 1 FROM outbox WHERE id=?", (row[0],)).fetchone():
                    break
                fresh.execute("INSERT INTO outbox VALUES(?,?,?,?,?,?,?)", row)
                fresh.execute(
                    "INSERT OR IGNORE INTO boot(no, boot, opened_wall_ns) VALUES(?,?,?)", (schema.boot_no_of(row[0]), row[1], row[4])
                )
        with contextlib.suppress(sqlite3.Error):
            fresh.execute("COMMIT")


def _sound_rows(old: sqlite3.Connection, order: str) -> Iterator[tuple[int, str, int, int, int, int, bytes]]:
    query = f"SELECT id, boot, last_seq, records, wall_ns, crc, data FROM outbox ORDER BY id {order}"  # noqa: S608  constant text
    for row in old.execute(query):
        if isinstance(row[6], bytes) and zlib.crc32(row[6]) == row[5]:
            yield row
