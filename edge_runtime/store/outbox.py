"""The durable queue as a transport sees it: committed batches, best class first, then oldest. Implements `ports.Outbox`.

Reads go through a connection and thread of their own, so a slow commit does not hold them up and they never block the loop.
"""

from __future__ import annotations

import asyncio
import sqlite3
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future

import msgspec

from edge_runtime.errors import StoreError
from edge_runtime.store import schema
from edge_runtime.store.database import is_damage
from edge_runtime.store.flight import Flight
from edge_runtime.store.intake import Ack, Damaged, Intake
from edge_runtime.types import Priority


class Batch(msgspec.Struct, frozen=True, gc=False):
    """One outbox row; satisfies `ports.OutboxBatch`."""

    boot: str
    first_seq: int
    last_seq: int
    count: int
    priority: int
    wall_ns: int
    data: bytes


class Outbox:
    """See `ports.Outbox` and `ports.PausableOutbox`."""

    def __init__(
        self,
        flight: Flight,
        intake: Intake,
        reader: Executor,
        connect: Callable[[], sqlite3.Connection],
        adopt: Callable[[asyncio.AbstractEventLoop], None],
    ) -> None:
        self._adopt = adopt
        self._flight = flight
        self._intake = intake
        self._reader = reader
        self._connect = connect
        self._batches = [0] * len(Priority)
        self._lowest = Priority.BULK
        self._waiters: set[asyncio.Future[None]] = set()

    async def peek(self, max_batches: int, after: int = 0) -> Sequence[tuple[int, Batch]]:
        """The next batches to send, as (row id, batch); they are in flight from now on.

        Raises StoreError when the disk cannot be read; an empty answer while `wait` returns means that damage is being removed.
        """
        del after
        job = self._reader.submit(self._read, max_batches, self._lowest)
        try:
            return await asyncio.wrap_future(job)
        except asyncio.CancelledError:
            job.add_done_callback(self._land)
            raise

    async def acknowledge(self, boot: str, first_seqs: Sequence[int]) -> int:
        """Deletes batches for good; returns how many records that were once that is durable.

        Raises StoreFull or StoreError when the disk cannot keep that: the batches stay in flight until released.
        """
        loop = asyncio.get_running_loop()
        self._adopt(loop)
        done = loop.create_future()
        self._intake.put(Ack(boot, tuple(first_seqs), done))
        return int(await done)

    def release(self, row_ids: Sequence[int]) -> None:
        """Hands batches in flight back."""
        self._flight.land(row_ids)
        self.wake()

    def hold_below(self, priority: Priority) -> None:
        """Passes over lower classes from now on."""
        self._lowest = priority
        self.wake()

    async def wait(self) -> None:
        """Returns when there is something to peek."""
        loop = asyncio.get_running_loop()
        self._adopt(loop)
        while not self._ready():
            waiter = loop.create_future()
            self._waiters.add(waiter)
            try:
                if not self._ready():  # a commit between the first look and the registration
                    await waiter
            finally:
                self._waiters.discard(waiter)

    def update(self, batches: list[int]) -> bool:
        """New number of stored batches by priority, from the writer's thread; whether somebody waits to hear of it."""
        self._batches = batches
        return bool(self._waiters)

    def wake(self) -> None:
        """Looks again whether waiters may go on; on the loop."""
        if self._waiters and self._ready():
            for waiter in self._waiters:
                if not waiter.done():
                    waiter.set_result(None)

    def _ready(self) -> bool:
        return sum(self._batches[self._lowest :]) > self._flight.count_from(self._lowest)

    def _land(self, job: Future[list[tuple[int, Batch]]]) -> None:
        if not job.cancelled() and job.exception() is None:
            self._flight.land([row for row, _ in job.result()])

    def _read(self, limit: int, lowest: Priority) -> list[tuple[int, Batch]]:
        try:
            return self._read_rows(self._connect(), limit, lowest)
        except sqlite3.DatabaseError as err:
            if not is_damage(err):
                raise StoreError(f"the outbox cannot be read: {err}; trying again may help") from err
            self._intake.put(Damaged(None, str(err)))
            return []

    def _read_rows(self, db: sqlite3.Connection, limit: int, lowest: Priority) -> list[tuple[int, Batch]]:
        last = schema.id_range(lowest)[1]
        query = "SELECT id FROM outbox WHERE id <= ? ORDER BY id LIMIT ?"
        rows = [row for (row,) in db.execute(query, (last, limit + self._flight.size()))]
        return [found for row in self._flight.take_off(rows, limit) if (found := self._load(db, row)) is not None]

    def _load(self, db: sqlite3.Connection, row: int) -> tuple[int, Batch] | None:
        found = db.execute("SELECT boot, last_seq, records, wall_ns, crc, data FROM outbox WHERE id=?", (row,)).fetchone()
        if found is None:
            self._flight.land((row,))
            return None
        boot, last_seq, records, wall_ns, crc, data = found
        if zlib.crc32(data) != crc:
            self._intake.put(Damaged(row))
            return None
        return row, Batch(boot, schema.first_seq_of(row), last_seq, records, schema.priority_of(row), wall_ns, data)
