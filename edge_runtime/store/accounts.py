"""The persisted ledger: what one transaction changes in it, saved in that transaction; boots, and the runs of dropped numbers.

Nothing here commits. `Changes` are applied to memory only after the commit that carried them.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from dataclasses import dataclass, field

from edge_runtime.errors import StoreError
from edge_runtime.ledger import Balance, DropReason, DropRun, total
from edge_runtime.store import schema
from edge_runtime.types import Priority

KEPT_BOOTS = 64
MAX_RUNS = 256  # by boot and reason; later ones widen the last
EARLIER = 0  # boot number of the sum over folded boots


@dataclass(slots=True)
class BootChange:
    """What changes for one boot: a balance, its highest number seen, and batches stored or deleted by priority."""

    balance: Balance = field(default_factory=Balance)
    last_seq: int = 0
    batches: list[int] = field(default_factory=lambda: [0] * len(Priority))


class Changes:
    """What one transaction does to the ledger."""

    __slots__ = ("boots", "runs")

    def __init__(self) -> None:
        self.boots: dict[int, BootChange] = {}
        self.runs: list[tuple[int, str, int, int, int]] = []

    def __bool__(self) -> bool:
        return bool(self.boots)

    def of(self, boot_no: int) -> BootChange:
        """The change of a boot, empty at first."""
        change = self.boots.get(boot_no)
        if change is None:
            change = self.boots[boot_no] = BootChange()
        return change

    def stored(self, boot_no: int, priority: int, records: int, last_seq: int) -> None:
        """Counts a batch that goes into the outbox."""
        change = self.of(boot_no)
        change.balance.offered += records
        change.balance.stored += records
        change.batches[priority] += 1
        change.last_seq = max(change.last_seq, last_seq)

    def delivered(self, row: int, records: int) -> None:
        """Counts a batch that the controller has."""
        change = self._deleted(row, records)
        change.balance.delivered += records

    def lost(self, row: int, last_seq: int, records: int, reason: str) -> None:
        """Counts a stored batch that is given up."""
        change = self._deleted(row, records)
        change.balance.drop(reason, records)
        self.runs.append((schema.boot_no_of(row), reason, schema.first_seq_of(row), last_seq, records))

    def refused(self, boot_no: int, first_seq: int, last_seq: int, records: int, reason: str) -> None:
        """Counts numbered records that never got into the outbox."""
        change = self.of(boot_no)
        change.balance.offered += records
        change.balance.drop(reason, records)
        change.last_seq = max(change.last_seq, last_seq)
        self.runs.append((boot_no, reason, first_seq, last_seq, records))

    def unnumbered(self, boot_no: int, reason: str, records: int) -> None:
        """Counts records dropped before they got a number."""
        balance = self.of(boot_no).balance
        balance.offered += records
        balance.drop(reason, records)

    def merge(self, other: Changes) -> None:
        """Takes over another set of changes, such as those of a transaction that failed."""
        for boot_no, change in other.boots.items():
            mine = self.of(boot_no)
            mine.balance.add(change.balance)
            mine.last_seq = max(mine.last_seq, change.last_seq)
            mine.batches = [a + b for a, b in zip(mine.batches, change.batches, strict=True)]
        for run in other.runs:
            self._widen(run)

    def balance(self) -> Balance:
        """The sum over all boots."""
        return total(change.balance for change in self.boots.values())

    def batches(self) -> list[int]:
        """Batches added (or taken away) by priority, over all boots."""
        return [sum(change.batches[p] for change in self.boots.values()) for p in Priority]

    def save(self, db: sqlite3.Connection) -> None:
        """Adds the changes to the tables, inside the caller's transaction."""
        for boot_no, change in self.boots.items():
            _save_boot(db, boot_no, change)
        for run in self.runs:
            save_run(db, *run)

    def _deleted(self, row: int, records: int) -> BootChange:
        change = self.of(schema.boot_no_of(row))
        change.balance.stored -= records
        change.batches[schema.priority_of(row)] -= 1
        return change

    def _widen(self, run: tuple[int, str, int, int, int]) -> None:
        boot_no, reason, first, last, records = run
        if self.runs and self.runs[-1][:2] == (boot_no, reason) and (first == self.runs[-1][3] + 1 or len(self.runs) >= MAX_RUNS):
            _, _, first, before, count = self.runs.pop()
            last, records = max(last, before), records + count
        self.runs.append((boot_no, reason, first, last, records))


def begin_boot(db: sqlite3.Connection, boot: str, wall_ns: int) -> int:
    """Registers this start and returns its number. Old boots with nothing pending are folded into one sum."""
    newest: int = db.execute("SELECT coalesce(max(no), 0) FROM boot").fetchone()[0]
    if newest >= schema.MAX_BOOT_NO:
        raise StoreError(f"the store counted {newest} starts, its most: move its directory away to begin a new one")
    db.execute("BEGIN IMMEDIATE")
    _fold(db, newest - KEPT_BOOTS)
    db.execute("INSERT INTO boot(no, boot, opened_wall_ns) VALUES(?,?,?)", (newest + 1, boot, wall_ns))
    db.execute("COMMIT")
    return newest + 1


def keep_boot(db: sqlite3.Connection, boot_no: int, boot: str) -> None:
    """Makes sure that a running boot is in a database that was begun afresh."""
    db.execute("INSERT OR IGNORE INTO boot(no, boot, opened_wall_ns) VALUES(?,?,0)", (boot_no, boot))


def load_balance(db: sqlite3.Connection) -> Balance:
    """The persisted totals over all boots."""
    offered, delivered, stored = db.execute(
        "SELECT coalesce(sum(offered),0), coalesce(sum(delivered),0), coalesce(sum(stored),0) FROM boot"
    ).fetchone()
    dropped = db.execute("SELECT reason, sum(records) FROM dropped GROUP BY reason").fetchall()
    return Balance(offered, delivered, stored, dict(dropped))


def load_batches(db: sqlite3.Connection) -> list[int]:
    """Persisted number of batches in the outbox, by priority."""
    sums = "coalesce(sum(bulk_batches),0), coalesce(sum(result_batches),0), coalesce(sum(event_batches),0)"
    return list(db.execute(f"SELECT {sums} FROM boot").fetchone())  # noqa: S608  constant text


def load_boots(db: sqlite3.Connection) -> dict[str, int]:
    """Boot id to boot number."""
    return dict(db.execute("SELECT boot, no FROM boot"))


def load_runs(db: sqlite3.Connection) -> list[DropRun]:
    """Every remembered run of dropped numbers, in order."""
    rows = db.execute(
        "SELECT boot, first_seq, drop_run.last_seq, records, reason FROM drop_run JOIN boot ON no = boot_no ORDER BY boot_no, first_seq"
    )
    return [DropRun(*row) for row in rows]


def count_rows(db: sqlite3.Connection) -> int:
    """Records really in the outbox, counted row by row."""
    return int(db.execute("SELECT coalesce(sum(records), 0) FROM outbox").fetchone()[0])


def save_run(db: sqlite3.Connection, boot_no: int, reason: str, first: int, last: int, records: int) -> None:
    """Remembers dropped numbers: joined to the last run where they touch, or where there are too many runs."""
    newest = db.execute(
        "SELECT first_seq, last_seq FROM drop_run WHERE boot_no=? AND reason=? ORDER BY first_seq DESC LIMIT 1", (boot_no, reason)
    ).fetchone()
    if newest is not None and newest[0] <= first and (first <= newest[1] + 1 or _runs(db, boot_no, reason) >= MAX_RUNS):
        db.execute(
            "UPDATE drop_run SET last_seq=max(last_seq,?), records=records+? WHERE boot_no=? AND reason=? AND first_seq=?",
            (last, records, boot_no, reason, newest[0]),
        )
        return
    db.execute(
        "INSERT INTO drop_run VALUES(?,?,?,?,?) ON CONFLICT DO UPDATE "
        "SET last_seq=max(last_seq,excluded.last_seq), records=records+excluded.records",
        (boot_no, reason, first, last, records),
    )


def add_dropped(db: sqlite3.Connection, boot_no: int, reason: str, records: int) -> None:
    """Adds to the persisted count of a reason."""
    db.execute("INSERT INTO dropped VALUES(?,?,?) ON CONFLICT DO UPDATE SET records=records+excluded.records", (boot_no, reason, records))


def settle_damage(db: sqlite3.Connection, boot_numbers: Iterable[int]) -> int:
    """Brings boots in line with the rows that are there: what is missing becomes dropped as `corrupt`. Returns how many that are."""
    lost = 0
    for boot_no in boot_numbers:
        kept, *batches = _count_boot(db, boot_no)
        offered, delivered = db.execute("SELECT offered, delivered FROM boot WHERE no=?", (boot_no,)).fetchone()
        dropped = db.execute("SELECT coalesce(sum(records),0) FROM dropped WHERE boot_no=?", (boot_no,)).fetchone()[0]
        missing = offered - delivered - dropped - kept
        if missing > 0:
            add_dropped(db, boot_no, DropReason.CORRUPT, missing)
            lost += missing
        db.execute(
            "UPDATE boot SET stored=?, bulk_batches=?, result_batches=?, event_batches=?, offered=offered+? WHERE no=?",
            (kept, *batches, max(0, -missing), boot_no),
        )
    return lost


def _count_boot(db: sqlite3.Connection, boot_no: int) -> list[int]:
    records, batches = 0, []
    for priority in Priority:
        span = (schema.row_id(priority, boot_no, 0), schema.row_id(priority, boot_no, schema.MAX_SEQ))
        rows = db.execute("SELECT count(*), coalesce(sum(records),0) FROM outbox WHERE id BETWEEN ? AND ?", span).fetchone()
        batches.append(rows[0])
        records += rows[1]
    return [records, *batches]


def _runs(db: sqlite3.Connection, boot_no: int, reason: str) -> int:
    return int(db.execute("SELECT count(*) FROM drop_run WHERE boot_no=? AND reason=?", (boot_no, reason)).fetchone()[0])


def _save_boot(db: sqlite3.Connection, boot_no: int, change: BootChange) -> None:
    balance = change.balance
    db.execute(
        "UPDATE boot SET offered=offered+?, delivered=delivered+?, stored=stored+?, bulk_batches=bulk_batches+?, "
        "result_batches=result_batches+?, event_batches=event_batches+?, last_seq=max(last_seq,?) WHERE no=?",
        (balance.offered, balance.delivered, balance.stored, *change.batches, change.last_seq, boot_no),
    )
    for reason, records in balance.dropped.items():
        add_dropped(db, boot_no, reason, records)


def _fold(db: sqlite3.Connection, up_to: int) -> None:
    old = [no for (no,) in db.execute("SELECT no FROM boot WHERE no BETWEEN 1 AND ? AND stored = 0", (up_to,))]
    if not old:
        return
    db.execute("INSERT OR IGNORE INTO boot(no, boot, opened_wall_ns) VALUES(?, 'earlier', 0)", (EARLIER,))
    for no in old:
        db.execute(
            "UPDATE boot SET offered=offered+(SELECT offered FROM boot WHERE no=?1), "
            "delivered=delivered+(SELECT delivered FROM boot WHERE no=?1) WHERE no=?2",
            (no, EARLIER),
        )
        for reason, records in db.execute("SELECT reason, records FROM dropped WHERE boot_no=?", (no,)).fetchall():
            add_dropped(db, EARLIER, reason, records)
        for table, key in (("dropped", "boot_no"), ("drop_run", "boot_no"), ("boot", "no")):
            db.execute(f"DELETE FROM {table} WHERE {key}=?", (no,))  # noqa: S608  constant names
