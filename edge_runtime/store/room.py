"""Makes room: which batches go when the cap or the disk is reached, and which are refused. Deletes in the caller's transaction.

`keep_oldest` refuses what comes; `keep_newest` evicts the oldest; `by_priority` evicts the lowest class first, the oldest of it
first, and refuses what is lower than everything stored. A batch that a transport is sending is never evicted.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator
from typing import Literal

from edge_runtime.ledger import DropReason
from edge_runtime.store import schema
from edge_runtime.store.accounts import Changes
from edge_runtime.store.database import Limits
from edge_runtime.store.flight import Flight
from edge_runtime.types import Priority

Policy = Literal["keep_newest", "keep_oldest", "by_priority"]
_CHUNK = 1


class Room:
    """Free pages of the database file under its cap, counted cautiously between two measurements."""

    def __init__(self, limits: Limits, policy: Policy, flight: Flight) -> None:
        self._limits = limits
        self._policy = policy
        self._flight = flight
        self._pages = 0
        self.may_grow = True

    def forget(self) -> None:
        """Measures again before the next row: after a rollback, or when the disk filled up."""
        self._pages = 0

    def admit(self, db: sqlite3.Connection, priority: int, size_bytes: int, changes: Changes) -> str | None:
        """Makes room for one row, evicting as the policy says. Returns None, or the reason to refuse it."""
        need = size_bytes // schema.PAGE_BYTES + 2
        if self._pages < need:
            self._pages = self._measure(db)
            if self._pages < need:
                self._evict(db, priority, need, changes)
        if self._pages < need:
            return DropReason.STORE_FULL if self.may_grow else DropReason.DISK_FULL
        self._pages -= need
        return None

    def spare(self, db: sqlite3.Connection, size_bytes: int) -> bool:
        """Whether something beside the outbox (a journal entry) fits without evicting anything."""
        need = size_bytes // schema.PAGE_BYTES + 1
        if self._pages < need:
            self._pages = self._measure(db)
        if self._pages < need:
            return False
        self._pages -= need
        return True

    def has_slack(self, db: sqlite3.Connection) -> bool:
        """Whether a tenth of the cap is free."""
        return self._measure(db) * 10 > self._limits.database_pages

    def _measure(self, db: sqlite3.Connection) -> int:
        used = db.execute("PRAGMA page_count").fetchone()[0]
        free = db.execute("PRAGMA freelist_count").fetchone()[0]
        growth = max(0, self._limits.database_pages - used) if self.may_grow else 0
        return int(growth + free - self._headroom())

    def _headroom(self) -> int:
        return self._limits.headroom_pages if self.may_grow else 8

    def _evict(self, db: sqlite3.Connection, priority: int, need: int, changes: Changes) -> None:
        chunk = _CHUNK
        while self._pages < need:
            victims = self._victims(db, priority, chunk)
            if not victims:
                return
            for row in victims:
                last_seq, records = db.execute("SELECT last_seq, records FROM outbox WHERE id=?", (row,)).fetchone()
                db.execute("DELETE FROM outbox WHERE id=?", (row,))
                changes.lost(row, last_seq, records, DropReason.EVICTED)
            self._pages = self._measure(db)
            chunk = min(chunk * 2, 1024)

    def _victims(self, db: sqlite3.Connection, priority: int, limit: int) -> list[int]:
        if self._policy == "keep_oldest":
            return []
        if self._policy == "keep_newest":
            return self._flight.take_down(sorted(self._oldest(db, Priority, limit), key=schema.age_of), limit)
        for low in range(priority + 1):
            victims = self._flight.take_down(list(self._oldest(db, (low,), limit)), limit)
            if victims:
                return victims
        return []

    def _oldest(self, db: sqlite3.Connection, priorities: Iterable[int], limit: int) -> Iterator[int]:
        for priority in priorities:
            span = (*schema.id_range(priority), limit + self._flight.size())
            yield from (row for (row,) in db.execute("SELECT id FROM outbox WHERE id BETWEEN ? AND ? ORDER BY id LIMIT ?", span).fetchall())
