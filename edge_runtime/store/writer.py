"""The one thread that writes: takes a group, commits it, tells the loop. Also keeps the live ledger's settled side.

It never ends before `stop` by itself: the disk's errors are the session's business, and anything else is reported and survived.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sqlite3
import threading

from edge_runtime.errors import StoreError
from edge_runtime.ledger import Balance, DropReason
from edge_runtime.store import accounts
from edge_runtime.store.flight import Flight
from edge_runtime.store.intake import Intake
from edge_runtime.store.outbox import Outbox
from edge_runtime.store.session import RECOVERY_S, Outcome, Session
from edge_runtime.store.work import Work, take

log = logging.getLogger(__name__)

Reply = tuple["asyncio.Future[int]", int | StoreError]


class Settled:
    """Totals of what the writer has finished with. Read and changed under `lock`."""

    def __init__(self, balance: Balance, batches: list[int]) -> None:
        self.lock = threading.Lock()
        self.balance = balance
        self.batches = batches
        self.records = 0
        self.size_bytes = 0


class Writer:
    """Runs a session in a thread of its own. The loop is woken at most once per commit, and only where somebody waits."""

    def __init__(
        self,
        session: Session,
        intake: Intake,
        settled: Settled,
        flight: Flight,
        outbox: Outbox,
        max_bytes: int,
    ) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._session = session
        self._intake = intake
        self._settled = settled
        self._flight = flight
        self._outbox = outbox
        self._max_bytes = max_bytes
        self._generation = session.generation
        self._thread = threading.Thread(target=self._run, name="edge-store", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)

    def _run(self) -> None:
        stop = False
        while not stop:
            if not self._intake.wait(RECOVERY_S if self._session.troubled else None):
                self._session.recover()
                continue
            work = take(self._intake, self._session.boot_no, self._max_bytes)
            stop = work.stop
            try:
                outcome = self._session.commit(work)
            except Exception as err:  # a defect must not end the thread that every record passes through
                log.exception("store transaction failed")
                outcome = self._session.abandon(work, err)
            if stop:
                self._session.close()
            self._publish(work, outcome)

    def _publish(self, work: Work, outcome: Outcome) -> None:
        rows = [row for ack in work.acks for row in ack.rows] if outcome.failure is None else []
        self._flight.land(rows + work.damaged)
        settled = self._settled
        with settled.lock:
            change = outcome.changes.balance()
            change.offered = 0  # counted on the loop
            settled.balance.add(change)
            settled.records += work.records
            settled.size_bytes += work.size_bytes
            settled.batches = [a + b for a, b in zip(settled.batches, outcome.changes.batches(), strict=True)]
            if self._session.generation != self._generation:
                self._restate(settled)
        replies: list[Reply] = [(ack.done, outcome.failure or ack.records) for ack in work.acks]
        replies += [(flush.done, 0) for flush in work.flushes]
        if self._outbox.update(settled.batches) or replies:
            self._tell(replies)

    def _restate(self, settled: Settled) -> None:
        """The file was replaced: what it no longer holds is dropped."""
        try:
            stored = accounts.load_balance(self._session.db).stored
            settled.batches = accounts.load_batches(self._session.db)
        except sqlite3.Error:
            return  # the disk fails as well: with the next group
        self._generation = self._session.generation
        settled.balance.drop(DropReason.CORRUPT, max(0, settled.balance.stored - stored))
        settled.balance.stored = stored

    def _tell(self, replies: list[Reply]) -> None:
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended: nobody waits
                self.loop.call_soon_threadsafe(self._arrive, replies)

    def _arrive(self, replies: list[Reply]) -> None:
        for done, result in replies:
            if done.done():
                continue
            if isinstance(result, StoreError):
                done.set_exception(result)
            else:
                done.set_result(result)
        self._outbox.wake()
