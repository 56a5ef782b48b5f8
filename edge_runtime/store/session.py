"""One transaction after another on the write connection, through a full disk, a failing disk and a damaged file.

Owned by the writer thread. Whatever happens, `commit` returns what became of every record; it raises nothing for the disk's sake.
"""

from __future__ import annotations

import contextlib
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.errors import StoreError, StoreFull
from edge_runtime.ledger import DropReason
from edge_runtime.store import accounts, aside, schema
from edge_runtime.store.accounts import Changes
from edge_runtime.store.database import Limits, Reserve, Unusable, is_damage, open_database, primary_code, wrapped
from edge_runtime.store.flight import Flight
from edge_runtime.store.intake import Ack, Put
from edge_runtime.store.journal import Journal
from edge_runtime.store.room import Policy, Room
from edge_runtime.store.work import Row, Work

RETRY_AFTER_S = (0.02, 0.1)
RECOVERY_S = 0.5
_ALMOST_FULL_BYTES = 64 * 1024

Notify = Callable[[str, str], None]


@dataclass(slots=True)
class Outcome:
    """What a group's transaction did to the ledger; `failure` is for acknowledgements that could not be carried out."""

    changes: Changes
    failure: StoreError | None = None


class Session:
    """The write side of one open store."""

    def __init__(self, directory: Path, limits: Limits, policy: Policy, flight: Flight, notify: Notify) -> None:
        self._directory = directory
        self._limits = limits
        self._notify = notify
        self._room = Room(limits, policy, flight)
        self._flight = flight
        self._journal = Journal(limits)
        self._reserve = Reserve(directory, limits.reserve_bytes)
        self._unsaved = Changes()
        self._kept_puts: dict[str, Put] = {}
        self._trouble_since: dict[str, float] = {}
        self._recover_at = 0.0
        self.boot = ""
        self.boot_no = 0
        self.generation = 0  # rises when the file was replaced
        self._closed = False
        self.db: sqlite3.Connection

    @property
    def troubled(self) -> bool:
        """Whether the disk is full or failing: `recover` is worth calling."""
        return "disk_full" in self._trouble_since or "io_error" in self._trouble_since

    def open(self, boot: str, wall_ns: int) -> None:
        """Opens or begins the database and registers this start. Raises StoreError when the disk does not let us."""
        self.boot = boot
        free = self._reserve.free_bytes()
        if free < self._margin() // 2:
            self._stop_growth(free)
        try:
            self.db = aside.open_or_replace(self._directory, self._limits, self._notify)
            self.boot_no = accounts.begin_boot(self.db, boot, wall_ns)
            self._journal.load(self.db)
        except sqlite3.DatabaseError as err:
            raise wrapped(err, self._directory / schema.DATABASE) from err
        if not self.troubled and not self._reserve.make():
            self._stop_growth(self._reserve.free_bytes())

    def commit(self, work: Work) -> Outcome:
        """Makes a group durable, or counts its records as dropped."""
        self._unsaved.merge(work.noted)
        work.puts = self._kept_puts | work.puts
        self._kept_puts = {}
        if work.finding:
            self._begin_afresh(work.finding)
        failing = "io_error" in self._trouble_since
        outcome = self._attempt(work)
        self._flight.settle()
        self._watch_cap(outcome)
        if failing:
            self._recover_at = time.monotonic() + RECOVERY_S
        if self.troubled:
            self.recover(bool(work.acks))
        return outcome

    def recover(self, now: bool = False) -> None:
        """Tries a failing disk, and takes the reserve again when the disk has room; at most every half second unless `now`."""
        if not now and time.monotonic() < self._recover_at:
            return
        self._recover_at = time.monotonic() + RECOVERY_S
        if "io_error" in self._trouble_since:
            puts, self._kept_puts = self._kept_puts, {}
            self._attempt(Work(puts=puts))
        if "disk_full" not in self._trouble_since:
            return
        if self._reserve.make(self._margin()) or (self._compact() and self._reserve.make(self._margin())):
            self._room.may_grow = True
            self._room.forget()
            self._end_trouble("disk_full", "the disk has room again")

    def abandon(self, work: Work, err: Exception) -> Outcome:
        """Counts a group as dropped after an error that is not the disk's."""
        self._roll_back()
        return Outcome(self._refuse_all(work, DropReason.IO_ERROR), StoreError(f"{self._directory}: {err}"))

    def close(self) -> None:
        """Saves what is unsaved, where the disk lets us, and closes the file."""
        with contextlib.suppress(sqlite3.Error):
            if self._unsaved or self._kept_puts:
                self._transact(Work(puts=self._kept_puts))
        self._close()

    def _attempt(self, work: Work) -> Outcome:
        tries = 0
        while True:
            try:
                self._open_again()
                outcome = Outcome(self._transact(work))
            except (sqlite3.Error, StoreError) as err:
                self._roll_back()
                if self._remedy(err, tries):
                    tries += 1
                    continue
                return self._give_up(work, err)
            self._end_trouble("io_error", "the disk takes writes again")
            return outcome

    def _remedy(self, err: Exception, tries: int) -> bool:
        """Does what may let the same transaction pass; whether it is worth another try."""
        if isinstance(err, sqlite3.DatabaseError) and is_damage(err):
            return tries < 1 and self._begin_afresh(str(err))
        if self._is_full(err):
            if not self._room.may_grow:
                return False
            self._stop_growth(self._reserve.free_bytes())
            with contextlib.suppress(sqlite3.Error):
                self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            return True
        if tries >= len(RETRY_AFTER_S) or "io_error" in self._trouble_since:
            return False
        time.sleep(RETRY_AFTER_S[tries])
        self._close()
        return True

    def _give_up(self, work: Work, err: Exception) -> Outcome:
        reason = DropReason.DISK_FULL if self._is_full(err) else DropReason.IO_ERROR
        if reason is DropReason.IO_ERROR:
            self._begin_trouble("io_error", f"{self._directory} cannot be written: {err}; records are dropped and counted")
        changes = self._refuse_all(work, reason)
        rest = Work(acks=work.acks, puts=work.puts, damaged=work.damaged)
        try:
            outcome = Outcome(self._transact(rest))
            outcome.changes.merge(changes)
            return outcome
        except (sqlite3.Error, StoreError) as again:
            self._roll_back()
            self._kept_puts = work.puts
            kind = StoreFull if self._is_full(again) else StoreError
            return Outcome(changes, kind(f"{self._directory}: {again}; the batches are sent again later"))

    def _refuse_all(self, work: Work, reason: str) -> Changes:
        changes = Changes()
        for row in work.rows:
            changes.refused(self.boot_no, row.first_seq, row.last_seq, row.records, reason)
        self._unsaved.merge(changes)
        return changes

    def _transact(self, work: Work) -> Changes:
        db = self.db
        changes = Changes()
        db.execute("BEGIN IMMEDIATE")
        for ack in work.acks:
            self._deliver(ack, changes)
        for row_id in work.damaged:
            self._discard(row_id, changes)
        for row in work.rows:
            self._insert(row, changes)
        for put in work.puts.values():
            self._keep(put)
        if work.journal:
            self._journal.append(db, self.boot, work.journal, self._room)
        if "io_error" in self._trouble_since:
            db.execute("UPDATE boot SET last_seq=last_seq WHERE no=?", (self.boot_no,))  # a commit without a write proves nothing
        changes.save(db)
        self._unsaved.save(db)
        db.execute("COMMIT")
        if self._unsaved:
            self._unsaved = Changes()
        for put in work.puts.values():
            put.saved = True
        return changes

    def _insert(self, row: Row, changes: Changes) -> None:
        refusal = self._room.admit(self.db, row.priority, len(row.data), changes)
        if refusal is not None:
            changes.refused(self.boot_no, row.first_seq, row.last_seq, row.records, refusal)
            return
        self.db.execute(
            "INSERT INTO outbox VALUES(?,?,?,?,?,?,?)",
            (
                schema.row_id(row.priority, self.boot_no, row.first_seq),
                self.boot,
                row.last_seq,
                row.records,
                row.wall_ns,
                row.crc,
                row.data,
            ),
        )
        changes.stored(self.boot_no, row.priority, row.records, row.last_seq)

    def _deliver(self, ack: Ack, changes: Changes) -> None:
        ack.records, ack.rows = 0, []
        found = self.db.execute("SELECT no FROM boot WHERE boot=?", (ack.boot,)).fetchone()
        if found is None:
            return
        for first_seq in ack.first_seqs:
            for priority in schema.PRIORITIES:
                row_id = schema.row_id(priority, found[0], first_seq)
                stored = self.db.execute("SELECT records FROM outbox WHERE id=?", (row_id,)).fetchone()
                if stored is not None:
                    self.db.execute("DELETE FROM outbox WHERE id=?", (row_id,))
                    changes.delivered(row_id, stored[0])
                    ack.records += stored[0]
                    ack.rows.append(row_id)
                    break

    def _keep(self, put: Put) -> None:
        if put.value is None:
            self.db.execute("DELETE FROM slot WHERE key=?", (put.key,))
            return
        self.db.execute("INSERT INTO slot VALUES(?,?) ON CONFLICT DO UPDATE SET value=excluded.value", (put.key, put.value))

    def _discard(self, row_id: int, changes: Changes) -> None:
        stored = self.db.execute("SELECT last_seq, records FROM outbox WHERE id=?", (row_id,)).fetchone()
        if stored is not None:
            self.db.execute("DELETE FROM outbox WHERE id=?", (row_id,))
            changes.lost(row_id, stored[0], stored[1], DropReason.CORRUPT)

    def _roll_back(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            if self.db.in_transaction:
                self.db.execute("ROLLBACK")
        self._room.forget()
        self._flight.settle()
        with contextlib.suppress(sqlite3.Error):
            self._journal.load(self.db)

    def _is_full(self, err: Exception) -> bool:
        if not isinstance(err, sqlite3.Error):
            return False
        code = primary_code(err)
        if code == sqlite3.SQLITE_FULL:
            return True
        return code == sqlite3.SQLITE_IOERR and self._reserve.free_bytes() < _ALMOST_FULL_BYTES

    def _stop_growth(self, free_bytes: int) -> None:
        self._room.may_grow = False
        self._room.forget()
        self._reserve.release()
        self._begin_trouble(
            "disk_full", f"{self._directory}: {free_bytes} bytes left on the disk; the outbox does not grow until there is room again"
        )

    def _margin(self) -> int:
        return 4 * self._limits.transaction_bytes

    def _compact(self) -> bool:
        """Rewrites the database without its free pages, where what is live is small enough for the room there is."""
        try:
            pages = self.db.execute("PRAGMA page_count").fetchone()[0]
            live = pages - self.db.execute("PRAGMA freelist_count").fetchone()[0]
            if pages - live < 2 * self._limits.checkpoint_pages or 2 * live * schema.PAGE_BYTES > self._reserve.free_bytes():
                return False
            self.db.execute("VACUUM")
            self.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        except sqlite3.Error:
            self._room.forget()
            return False
        self._room.forget()
        return True

    def _open_again(self) -> None:
        """After an I/O error. Raises StoreError as long as that lasts."""
        if not self._closed:
            return
        try:
            self.db = open_database(self._directory, self._limits)
            self._closed = False
            self._journal.load(self.db)
        except Unusable as err:
            if not self._begin_afresh(str(err)):
                raise
        except sqlite3.DatabaseError as err:
            raise wrapped(err, self._directory / schema.DATABASE) from err

    def _close(self) -> None:
        self._closed = True
        with contextlib.suppress(sqlite3.Error):
            self.db.close()

    def _begin_afresh(self, finding: str) -> bool:
        self._close()
        try:
            self.db = aside.replace(self._directory, self._limits, "corrupt", finding, self._notify)
            self._closed = False
            accounts.keep_boot(self.db, self.boot_no, self.boot)
        except (sqlite3.Error, StoreError):
            return False
        self._room.forget()
        self._journal.load(self.db)
        self.generation += 1
        return True

    def _watch_cap(self, outcome: Outcome) -> None:
        dropped = outcome.changes.balance().dropped
        if self._room.may_grow and (DropReason.STORE_FULL in dropped or DropReason.EVICTED in dropped):
            self._begin_trouble(
                "store_full", f"{self._directory}: max_bytes {self._limits.max_bytes} is reached; records are dropped by policy"
            )
        elif "store_full" in self._trouble_since:
            with contextlib.suppress(sqlite3.Error):
                if self._room.has_slack(self.db):
                    self._end_trouble("store_full", "the store has room again")

    def _begin_trouble(self, kind: str, message: str) -> None:
        if kind not in self._trouble_since:
            self._trouble_since[kind] = time.monotonic()
            self._notify(kind, message)

    def _end_trouble(self, kind: str, message: str) -> None:
        since = self._trouble_since.pop(kind, None)
        if since is not None:
            self._notify(f"{kind}_over", f"{message}, after {time.monotonic() - since:.1f} s")
