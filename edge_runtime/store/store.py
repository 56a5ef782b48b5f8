"""The durable store of one gateway: takes records on the event loop, makes them durable in groups, and keeps account of each.

A record counts as durable once a `flush` that began after its `offer` has returned. What was in memory when the process was killed
was never durable, and the persisted ledger does not know of it. Delivery is the transport's, through `outbox`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_runtime.clock import Clock
from edge_runtime.errors import InputError
from edge_runtime.ledger import DropReason, Ledger
from edge_runtime.records import RecordKind, encode_record
from edge_runtime.store import accounts, journal, schema
from edge_runtime.store.database import DirectoryLock, Limits, make_directory, open_reader, wrapped
from edge_runtime.store.flight import Flight
from edge_runtime.store.inspect import read_drops, read_journal, read_ledger
from edge_runtime.store.intake import GROUP_RECORDS, Flush, Intake, Put
from edge_runtime.store.journal import JournalEntry, Pending
from edge_runtime.store.outbox import Outbox
from edge_runtime.store.room import Policy
from edge_runtime.store.session import Session
from edge_runtime.store.writer import Settled, Writer
from edge_runtime.types import Priority, Timestamp

MAX_RECORD_BYTES = 256 * 1024
MAX_SLOT_BYTES = 1024 * 1024
BACKLOG_RECORDS = 65_536
BACKLOG_BYTES = 16 * 1024 * 1024
DEFAULT_MAX_BYTES = 256 * 1024 * 1024
DEFAULT_RESERVE_BYTES = 1024 * 1024

__all__ = ["Store", "read_drops", "read_journal", "read_ledger"]

log = logging.getLogger(__name__)
Notice = Callable[[str, str], None]
T = TypeVar("T")


class Store:
    """One open store. Every method belongs to the event loop's thread; `open` may run before there is a loop."""

    def __init__(self, session: Session, lock: DirectoryLock, flight: Flight, path: Path, limits: Limits, bell: _Bell) -> None:
        self.boot = session.boot
        self._lock = lock
        self._path = path
        self._bell = bell
        self._session = session
        self._intake = Intake()
        self._entries = self._intake.entries
        self._seq = 0
        self._accepted = 0
        self._bytes_in = 0
        self._max_queued = BACKLOG_RECORDS
        self._dropped: dict[str, int] = {}
        self._uncounted = 0
        self._puts: dict[str, Put] = {}
        self._settled = Settled(accounts.load_balance(session.db), accounts.load_batches(session.db))
        self._offered_before = self._settled.balance.offered
        self._reader = ThreadPoolExecutor(1, "edge-store-read")
        self._read_db: tuple[int, sqlite3.Connection] | None = None
        self.outbox = Outbox(flight, self._intake, self._reader, self._connect, self._adopt)
        self.outbox.update(self._settled.batches)
        self._writer = Writer(session, self._intake, self._settled, flight, self.outbox, limits.transaction_bytes)
        self._writer.start()
        with contextlib.suppress(RuntimeError):
            self._adopt(asyncio.get_running_loop())

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        clock: Clock,
        max_bytes: int = DEFAULT_MAX_BYTES,
        when_full: Policy = "by_priority",
        reserve_bytes: int = DEFAULT_RESERVE_BYTES,
        on_notice: Notice | None = None,
    ) -> Store:
        """Opens or begins the store in `directory` for this process alone.

        A damaged or newer database is set aside, never deleted, with a notice. `on_notice(kind, message)` is called on the event
        loop, or within `open`. Raises StoreError when the directory cannot be used or another process holds it.
        """
        limits = Limits.share(max_bytes, reserve_bytes)
        make_directory(directory)
        lock = DirectoryLock(directory)
        flight, bell = Flight(), _Bell(on_notice)
        session = Session(directory, limits, when_full, flight, bell.ring)
        try:
            session.open(os.urandom(8).hex(), clock.now().wall_ns)
            return cls(session, lock, flight, directory / schema.DATABASE, limits, bell)
        except sqlite3.DatabaseError as err:
            lock.release()
            raise wrapped(err, directory / schema.DATABASE) from err
        except BaseException:
            lock.release()
            raise

    def offer(self, kind: RecordKind, at: Timestamp, body: object, priority: Priority, *, urgent: bool = False) -> int:
        """Takes one record and returns its number in this boot. Encodes, appends, returns; a full store counts a drop.

        `urgent` has the group committed at once instead of within 5 ms. Raises InputError when the body cannot be encoded.
        """
        seq = self._seq + 1
        try:
            data = encode_record(seq, kind._value_, at.mono_ns, at.wall_ns, at.wall_err_ns, body)
        except (TypeError, ValueError, OverflowError) as err:
            raise InputError(f"body of a {kind.name} record cannot be encoded: {err}") from err
        self._seq = seq
        size = len(data)
        queued = len(self._entries)
        if size > MAX_RECORD_BYTES or queued >= self._max_queued or self._bytes_in - self._settled.size_bytes > BACKLOG_BYTES:
            return self._refuse(seq, size)
        self._accepted += 1
        self._bytes_in += size
        self._entries.append((priority, seq, data, at))
        if kind is not RecordKind.READING:
            self._entries.append(_pending(kind, seq, at, body))
        if urgent or queued == GROUP_RECORDS:
            self._intake.notify(True)
        elif self._intake.idle:
            self._intake.notify(False)
        return seq

    def count_drop(self, reason: str, n: int = 1) -> None:
        """Counts `n` records as offered and dropped before they got a number, such as for `rate_limit` or `invalid`."""
        self._uncounted += n
        self._dropped[reason] = self._dropped.get(reason, 0) + n
        if self._max_queued:
            self._intake.unnumbered.add(reason, n)
            if self._intake.idle:
                self._intake.notify(False)

    async def flush(self) -> None:
        """Returns when everything offered so far is durable, or counted as dropped."""
        await self._flush(stop=False)

    def ledger(self) -> Ledger:
        """The balance over all boots as of now, with what is still in memory."""
        settled = self._settled
        with settled.lock:
            past = settled.balance
            dropped = dict(past.dropped)
            for reason, count in self._dropped.items():
                dropped[reason] = dropped.get(reason, 0) + count
            pending = past.stored + self._accepted - settled.records
            return Ledger(self._offered_before + self._seq + self._uncounted, past.delivered, pending, dropped)

    def put(self, key: str, value: bytes) -> None:
        """Keeps a small value (at most 1 MiB) under a key, durable with the group it falls into."""
        if len(value) > MAX_SLOT_BYTES:
            raise InputError(f"value of {key!r} has {len(value)} bytes, at most {MAX_SLOT_BYTES} are kept")
        self._enqueue(Put(key, value))

    def delete(self, key: str) -> None:
        """Forgets a key."""
        self._enqueue(Put(key, None))

    async def get(self, key: str) -> bytes | None:
        """The newest value of a key, also one that is not durable yet; None when there is none."""
        latest = self._puts.get(key)
        if latest is not None and not latest.saved:
            return latest.value
        return await self._read(lambda db: _slot(db, key))

    async def recent(self, kind: RecordKind, limit: int) -> list[JournalEntry]:
        """The newest durable decisions, actions, inferences or notices, newest first. Raises StoreError."""
        return await self._read(lambda db: journal.recent(db, kind, limit))

    async def find(self, id: str) -> JournalEntry | None:
        """The decision or action of that id, as long as the journal remembers it. Raises StoreError."""
        return await self._read(lambda db: journal.find(db, id))

    async def close(self, deadline_s: float = 1.5) -> None:
        """Commits the last group and lets go of the directory. Safe to call twice. What is offered later is dropped as `closed`."""
        if self._max_queued == 0:
            return
        self._max_queued = 0
        await asyncio.get_running_loop().run_in_executor(self._reader, self._disconnect)
        self._reader.shutdown(wait=False)
        try:
            await asyncio.wait_for(self._flush(stop=True), deadline_s)
        except TimeoutError:
            log.error("store did not finish its last commit within the deadline deadline_s=%s", deadline_s)
            return
        self._writer.join(deadline_s)
        self._lock.release()

    def _enqueue(self, put: Put) -> None:
        self._puts = {key: other for key, other in self._puts.items() if not other.saved}
        self._puts[put.key] = put
        self._intake.put(put)

    async def _flush(self, *, stop: bool) -> None:
        if not self._writer.alive():
            return
        loop = asyncio.get_running_loop()
        self._adopt(loop)
        done = loop.create_future()
        self._intake.put(Flush(done, stop), hurry=True)
        await done

    def _adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        self._writer.loop = loop
        self._bell.adopt(loop)

    def _refuse(self, seq: int, size: int) -> int:
        if self._max_queued == 0:
            reason = DropReason.CLOSED
        else:
            reason = DropReason.TOO_LARGE if size > MAX_RECORD_BYTES else DropReason.BACKLOG
            self._intake.drop(seq, reason)
        self._dropped[reason] = self._dropped.get(reason, 0) + 1
        return seq

    async def _read(self, query: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._reader, lambda: query(self._connect()))
        except sqlite3.DatabaseError as err:
            raise wrapped(err, self._path) from err

    def _connect(self) -> sqlite3.Connection:
        generation = self._session.generation
        if self._read_db is None or self._read_db[0] != generation:
            self._disconnect()
            self._read_db = (generation, open_reader(self._path))
        return self._read_db[1]

    def _disconnect(self) -> None:
        if self._read_db is not None:
            self._read_db[1].close()
            self._read_db = None


class _Bell:
    """Brings notices from whichever thread to the loop; those from before there is a loop are told within `open`."""

    def __init__(self, on_notice: Notice | None) -> None:
        self._on_notice = on_notice
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opener = threading.get_ident()
        self._kept: list[tuple[str, str]] = []

    def adopt(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        while self._kept:
            self.ring(*self._kept.pop(0))

    def ring(self, kind: str, message: str) -> None:
        if self._on_notice is None:
            log.warning("%s %s", kind, message)
            return
        if self._loop is None:
            if threading.get_ident() == self._opener:
                self._on_notice(kind, message)
            else:
                self._kept.append((kind, message))
            return
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._on_notice, kind, message)


def _pending(kind: RecordKind, seq: int, at: Timestamp, body: object) -> Pending:
    ref = body.get("id", "") if isinstance(body, dict) else getattr(body, "id", "")
    return Pending(kind.value, seq, str(ref), at, _encode(body))


def _slot(db: sqlite3.Connection, key: str) -> bytes | None:
    row: tuple[Any] | None = db.execute("SELECT value FROM slot WHERE key=?", (key,)).fetchone()
    return None if row is None else bytes(row[0])


_encode = msgspec.msgpack.Encoder().encode
