"""Reads a store from outside, whether its gateway runs, was killed or is stopped. Writes nothing and needs no lock."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from edge_runtime.errors import StoreError
from edge_runtime.ledger import DropRun, Ledger
from edge_runtime.records import RecordKind
from edge_runtime.store import accounts, journal, schema
from edge_runtime.store.database import open_reader, wrapped
from edge_runtime.store.journal import JournalEntry

T = TypeVar("T")


def read_ledger(directory: Path) -> Ledger:
    """The persisted balance, with `pending` counted row by row in the outbox. Raises StoreError."""

    def query(db: sqlite3.Connection) -> Ledger:
        balance = accounts.load_balance(db)
        return Ledger(balance.offered, balance.delivered, accounts.count_rows(db), balance.dropped)

    return _ask(directory, query)


def read_drops(directory: Path) -> list[DropRun]:
    """The runs of dropped numbers, by boot: what explains the holes that a sink sees. Raises StoreError."""
    return _ask(directory, accounts.load_runs)


def read_boots(directory: Path) -> dict[str, int]:
    """The last number that each start committed, by boot: a sink must hold 1 to that, but for drops and what is pending."""
    return _ask(directory, lambda db: dict(db.execute("SELECT boot, last_seq FROM boot")))


def read_journal(directory: Path, kind: RecordKind = RecordKind.DECISION, limit: int = 100, *, id: str | None = None) -> list[JournalEntry]:
    """The newest entries of a kind, newest first; with `id`, that decision or action alone. Raises StoreError."""
    if id is None:
        return _ask(directory, lambda db: journal.recent(db, kind, limit))
    found = _ask(directory, lambda db: journal.find(db, id))
    return [] if found is None else [found]


def _ask(directory: Path, query: Callable[[sqlite3.Connection], T]) -> T:
    path = directory / schema.DATABASE
    if not path.exists():
        raise StoreError(f"{path} does not exist: no gateway has run with this --state yet")
    db = open_reader(path)
    try:
        with db:
            db.execute("BEGIN")
            return query(db)
    except sqlite3.DatabaseError as err:
        raise wrapped(err, path) from err
    finally:
        db.close()
