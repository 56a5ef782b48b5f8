"""Any order of offers, deliveries, releases, full stores and restarts keeps the ledger balanced and every record accounted for."""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_runtime.clock import SystemClock
from edge_runtime.records import RecordKind, decode_batch
from edge_runtime.store import Batch, Store, read_drops, read_ledger
from edge_runtime.types import Priority, Timestamp

AT = Timestamp(1, 2, 3)


class StoreMachine(RuleBasedStateMachine):
    """The model: which (boot, seq) were offered, and which were delivered; the rest is pending or explained."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="store-machine-"))
        self.loop = asyncio.new_event_loop()
        self.offered: set[tuple[str, int]] = set()
        self.delivered: set[tuple[str, int]] = set()
        self.unnumbered = 0
        self.flight: list[tuple[int, Batch]] = []

    @initialize(policy=st.sampled_from(["keep_newest", "keep_oldest", "by_priority"]))
    def begin(self, policy: str) -> None:
        self.policy: Any = policy
        self.open()

    @rule(count=st.integers(1, 400), priority=st.sampled_from(Priority), size=st.sampled_from([1, 50, 3_000]), urgent=st.booleans())
    def offer(self, count: int, priority: Priority, size: int, urgent: bool) -> None:
        noise = os.urandom(size)
        for _ in range(count):
            seq = self.store.offer(RecordKind.READING, AT, {"noise": noise}, priority, urgent=urgent)
            self.offered.add((self.store.boot, seq))

    @rule(priority=st.sampled_from(Priority))
    def overfill(self, priority: Priority) -> None:
        for _ in range(500):
            seq = self.store.offer(RecordKind.READING, AT, {"noise": os.urandom(2_000)}, priority)
            self.offered.add((self.store.boot, seq))
        self.wait(self.store.flush())

    @rule(reason=st.sampled_from(["rate_limit", "invalid"]), count=st.integers(1, 5))
    def drop(self, reason: str, count: int) -> None:
        self.store.count_drop(reason, count)
        self.unnumbered += count

    @rule()
    def offer_too_large(self) -> None:
        seq = self.store.offer(RecordKind.READING, AT, {"pad": "x" * 300_000}, Priority.EVENT)
        self.offered.add((self.store.boot, seq))

    @rule()
    def flush(self) -> None:
        self.wait(self.store.flush())

    @rule(limit=st.integers(1, 20))
    def peek(self, limit: int) -> None:
        self.flight += self.wait(self.store.outbox.peek(limit))
        rows = [row for row, _ in self.flight]
        assert len(rows) == len(set(rows))

    @precondition(lambda self: self.flight)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        _, batch = self.flight.pop(data.draw(st.integers(0, len(self.flight) - 1)))
        records = {(batch.boot, record.seq) for record in decode_batch(batch.data)}
        assert not records & self.delivered
        assert records <= self.offered
        assert self.wait(self.store.outbox.acknowledge(batch.boot, [batch.first_seq])) == len(records)
        self.delivered |= records

    @rule()
    def release(self) -> None:
        self.store.outbox.release([row for row, _ in self.flight])
        self.flight.clear()

    @rule()
    def reopen(self) -> None:
        self.close()
        assert read_ledger(self.directory) == self.store.ledger()
        self.open()

    @invariant()
    def balances(self) -> None:
        ledger = self.store.ledger()
        assert ledger.balanced, ledger
        assert ledger.offered == len(self.offered) + self.unnumbered
        assert ledger.delivered == len(self.delivered)
        assert read_ledger(self.directory).balanced

    def teardown(self) -> None:
        try:
            self.account_for_all()
        finally:
            self.close()
            self.loop.close()
            shutil.rmtree(self.directory)

    def account_for_all(self) -> None:
        """Every number that was ever offered is delivered once, or lies in a run of drops that is not longer than it says."""
        self.release()
        while batches := self.wait(self.store.outbox.peek(100)):
            self.flight = list(batches)
            for _, batch in batches:
                self.delivered |= (records := {(batch.boot, record.seq) for record in decode_batch(batch.data)})
                assert self.wait(self.store.outbox.acknowledge(batch.boot, [batch.first_seq])) == len(records)
        self.wait(self.store.flush())
        lost = Counter(boot for boot, _ in self.offered - self.delivered)
        explained: Counter[str] = Counter()
        for run in read_drops(self.directory):
            explained[run.boot] += run.count
        assert lost == explained
        assert self.store.ledger().pending == 0

    def open(self) -> None:
        self.flight.clear()
        self.store = self.wait(self.opened())

    async def opened(self) -> Store:
        return Store.open(self.directory, clock=SystemClock(), max_bytes=1024 * 1024, when_full=self.policy)

    def close(self) -> None:
        self.wait(self.store.close(20))

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return self.loop.run_until_complete(coroutine)


StoreMachine.TestCase.settings = settings(max_examples=15, stateful_step_count=20, deadline=None)


@pytest.mark.slow
class TestStoreMachine(StoreMachine.TestCase):  # type: ignore[misc]
    """Runs the machine."""
