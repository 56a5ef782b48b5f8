"""A disk that refuses to write (here: the process's file size limit): the store lives on, counts, and recovers."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.errors import StoreError
from edge_runtime.records import RecordKind
from edge_runtime.store import Store, read_drops, read_ledger
from edge_runtime.types import Priority, Timestamp

AT = Timestamp(1, 2, 3)


@contextmanager
def failing_disk() -> Iterator[None]:
    """Every write beyond the first 4 KiB of a file fails with EFBIG, which SQLite reports as an I/O error."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def offer(store: Store, count: int) -> None:
    for n in range(count):
        store.offer(RecordKind.READING, AT, {"n": n}, Priority.BULK)


async def test_records_are_counted_while_the_disk_fails_and_stored_after(open_store: Any, tmp_path: Path) -> None:
    notices: list[str] = []
    store = open_store(on_notice=lambda kind, _: notices.append(kind))
    offer(store, 10)
    await store.flush()
    with failing_disk():
        for _ in range(3):
            offer(store, 10)
            await store.flush()
            assert store.ledger().balanced
        store.put("lease", b"held")
        await store.flush()
        assert await store.get("lease") == b"held"
    offer(store, 10)
    await store.flush()
    await store.flush()
    assert notices == ["io_error", "io_error_over"]
    assert store.ledger().as_dict() == {"offered": 50, "delivered": 0, "pending": 20, "dropped": {"io_error": 30}, "balanced": True}
    assert read_ledger(tmp_path / "store") == store.ledger()
    assert [(run.first_seq, run.last_seq) for run in read_drops(tmp_path / "store")] == [(11, 40)]
    assert await store.get("lease") == b"held"


async def test_an_acknowledgement_that_cannot_be_kept_is_refused_and_can_be_repeated(open_store: Any) -> None:
    store = open_store()
    offer(store, 10)
    await store.flush()
    [(row, batch)] = await store.outbox.peek(1)
    with failing_disk(), pytest.raises(StoreError, match="sent again later"):
        await store.outbox.acknowledge(batch.boot, [batch.first_seq])
    store.outbox.release([row])
    await asyncio.wait_for(store.outbox.wait(), 5)
    [(_, again)] = await store.outbox.peek(1)
    assert again == batch
    assert await store.outbox.acknowledge(batch.boot, [batch.first_seq]) == 10
    assert store.ledger().balanced
