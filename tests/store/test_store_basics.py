"""Offer, flush, deliver, remember: the store in fair weather."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.clock import SystemClock
from edge_runtime.errors import InputError, StoreError
from edge_runtime.ports import Outbox, PausableOutbox
from edge_runtime.records import RecordKind, decode_batch, decode_body
from edge_runtime.store import Store, read_drops, read_journal, read_ledger
from edge_runtime.types import Action, ActionOutcome, Decision, DecisionKind, Priority, Timestamp

AT = Timestamp(1, 2, 3)


def offer(store: Store, count: int, priority: Priority = Priority.BULK, size: int = 0) -> list[int]:
    return [store.offer(RecordKind.READING, AT, {"n": n, "pad": "x" * size}, priority) for n in range(count)]


def decision(id: str) -> Decision:
    return Decision(id, DecisionKind.FIRED, "overheat", AT, "7")


async def drain(store: Store) -> list[tuple[str, int]]:
    """Everything pending, acknowledged: (boot, seq) of each record."""
    seen: list[tuple[str, int]] = []
    while batches := await store.outbox.peek(8):
        for _, batch in batches:
            seen += [(batch.boot, record.seq) for record in decode_batch(batch.data)]
            await store.outbox.acknowledge(batch.boot, [batch.first_seq])
    return seen


async def test_records_come_back_as_offered_and_in_order(open_store: Any) -> None:
    store = open_store()
    assert offer(store, 600) == list(range(1, 601))
    await store.flush()
    batches = [batch for _, batch in await store.outbox.peek(100)]
    records = [record for batch in batches for record in decode_batch(batch.data)]
    assert [record.seq for record in records] == list(range(1, 601))
    assert [decode_body(record.body)["n"] for record in records] == list(range(600))
    assert {(record.kind, record.mono_ns, record.wall_ns, record.wall_err_ns) for record in records} == {("r", 1, 2, 3)}
    assert all(batch.boot == store.boot and batch.count == batch.last_seq - batch.first_seq + 1 for batch in batches)


async def test_higher_priorities_are_sent_first(open_store: Any) -> None:
    store = open_store()
    for priority in (Priority.BULK, Priority.EVENT, Priority.RESULT, Priority.BULK):
        offer(store, 1, priority)
        await store.flush()
    assert [batch.priority for _, batch in await store.outbox.peek(10)] == [2, 1, 0, 0]


async def test_a_batch_in_flight_is_not_peeked_again_until_released(open_store: Any) -> None:
    store = open_store()
    offer(store, 10)
    await store.flush()
    [(row, batch)] = await store.outbox.peek(5)
    assert await store.outbox.peek(5) == []
    store.outbox.release([row])
    await asyncio.wait_for(store.outbox.wait(), 5)
    assert (await store.outbox.peek(5))[0][1] == batch


async def test_acknowledging_twice_or_the_unknown_counts_nothing(open_store: Any) -> None:
    store = open_store()
    offer(store, 10)
    await store.flush()
    [(_, batch)] = await store.outbox.peek(5)
    assert await store.outbox.acknowledge("0123456789abcdef", [batch.first_seq]) == 0
    assert await store.outbox.acknowledge(store.boot, [batch.first_seq, batch.first_seq, 99]) == 10
    assert await store.outbox.acknowledge(store.boot, [batch.first_seq]) == 0
    assert store.ledger().as_dict() == {"offered": 10, "delivered": 10, "pending": 0, "dropped": {}, "balanced": True}


async def test_waiting_ends_when_a_record_becomes_durable(open_store: Any) -> None:
    store = open_store()
    waiting = asyncio.create_task(store.outbox.wait())
    await asyncio.sleep(0)
    assert not waiting.done()
    offer(store, 1)
    await asyncio.wait_for(waiting, 5)
    assert len(await store.outbox.peek(1)) == 1


async def test_low_classes_can_be_held_back(open_store: Any) -> None:
    store = open_store()
    offer(store, 5, Priority.BULK)
    await store.flush()
    store.outbox.hold_below(Priority.EVENT)
    assert await store.outbox.peek(5) == []
    waiting = asyncio.create_task(store.outbox.wait())
    await store.flush()
    assert not waiting.done()
    store.outbox.hold_below(Priority.BULK)
    await asyncio.wait_for(waiting, 5)
    assert len(await store.outbox.peek(5)) == 1


async def test_a_cancelled_peek_leaves_nothing_in_flight(open_store: Any) -> None:
    store = open_store()
    offer(store, 5)
    await store.flush()
    peek = asyncio.create_task(store.outbox.peek(5))
    await asyncio.sleep(0)
    peek.cancel()
    with pytest.raises(asyncio.CancelledError):
        await peek
    await store.get("reader is done")
    assert len(await store.outbox.peek(5)) == 1


async def test_implements_the_ports(open_store: Any) -> None:
    store = open_store()
    outbox: Outbox = store.outbox
    assert isinstance(outbox, PausableOutbox)


async def test_the_ledger_balances_at_every_stage_and_survives_reopening(open_store: Any, tmp_path: Path) -> None:
    store = open_store()
    offer(store, 700)
    store.count_drop("rate_limit", 4)
    assert store.ledger().balanced
    assert store.ledger().pending == 700
    await store.flush()
    assert store.ledger() == read_ledger(tmp_path / "store")
    [(_, batch)] = await store.outbox.peek(1)
    delivered = await store.outbox.acknowledge(batch.boot, [batch.first_seq])
    await store.close()
    again = open_store()
    assert again.boot != store.boot
    assert again.ledger() == read_ledger(tmp_path / "store")
    assert again.ledger().as_dict() == {
        "offered": 704,
        "delivered": delivered,
        "pending": 700 - delivered,
        "dropped": {"rate_limit": 4},
        "balanced": True,
    }


async def test_batches_of_an_earlier_boot_are_delivered(open_store: Any) -> None:
    first = open_store()
    offer(first, 300)
    await first.close()
    second = open_store()
    offer(second, 300)
    await second.flush()
    await asyncio.wait_for(second.outbox.wait(), 5)
    seen = await drain(second)
    assert seen == [(first.boot, n) for n in range(1, 301)] + [(second.boot, n) for n in range(1, 301)]
    assert second.ledger().delivered == 600


async def test_many_boots_are_folded_and_still_balance(open_store: Any, tmp_path: Path) -> None:
    for _ in range(70):
        store = open_store()
        offer(store, 1)
        store.count_drop("invalid")
        await store.flush()
        await drain(store)
        await store.close()
    ledger = read_ledger(tmp_path / "store")
    assert (ledger.offered, ledger.delivered, ledger.dropped) == (140, 70, {"invalid": 70})


async def test_a_record_too_large_is_dropped_and_its_number_explained(open_store: Any, tmp_path: Path) -> None:
    store = open_store()
    offer(store, 1)
    offer(store, 2, size=300_000)
    offer(store, 1)
    await store.close()
    assert store.ledger().dropped == {"too_large": 2}
    assert [(run.first_seq, run.last_seq, run.count, run.reason) for run in read_drops(tmp_path / "store")] == [(2, 3, 2, "too_large")]
    assert read_ledger(tmp_path / "store") == store.ledger()


async def test_a_flood_is_bounded_in_memory_and_accounted_for(open_store: Any, tmp_path: Path) -> None:
    store = open_store()
    body = {"pad": "x" * 10_000}
    for _ in range(4_000):  # 40 MB without giving the loop a turn
        store.offer(RecordKind.READING, AT, body, Priority.BULK)
    assert store.ledger().balanced
    await store.flush()
    ledger = store.ledger()
    assert ledger.balanced
    assert ledger.offered == 4_000
    assert ledger == read_ledger(tmp_path / "store")
    holes = sum(run.count for run in read_drops(tmp_path / "store"))
    assert holes == ledger.dropped.get("backlog", 0) == 4_000 - ledger.pending


async def test_a_body_that_cannot_be_encoded_is_refused_and_not_counted(open_store: Any) -> None:
    store = open_store()
    with pytest.raises(InputError, match="READING record cannot be encoded"):
        store.offer(RecordKind.READING, AT, {"x": object()}, Priority.BULK)
    assert store.ledger().offered == 0
    assert offer(store, 1) == [1]


async def test_after_close_offers_are_dropped_and_nothing_raises(open_store: Any) -> None:
    store = open_store()
    offer(store, 1)
    await store.close()
    await store.close()
    offer(store, 2)
    assert store.ledger().dropped == {"closed": 2}
    assert store.ledger().balanced


async def test_slots_are_durable_and_read_their_own_writes(open_store: Any) -> None:
    store = open_store()
    assert await store.get("rules") is None
    store.put("rules", b"1")
    store.put("rules", b"2")
    assert await store.get("rules") == b"2"
    await store.close()
    again = open_store()
    assert await again.get("rules") == b"2"
    again.delete("rules")
    assert await again.get("rules") is None
    await again.flush()
    assert await again.get("rules") is None
    with pytest.raises(InputError, match="at most"):
        again.put("rules", b"x" * 2_000_000)


async def test_the_journal_outlives_delivery_and_is_found_by_id(open_store: Any, tmp_path: Path) -> None:
    store = open_store()
    for n in range(5):
        store.offer(RecordKind.DECISION, AT, decision(f"b-{n}"), Priority.EVENT, urgent=True)
    store.offer(RecordKind.ACTION, AT, Action("a-1", "valve1", "closed", AT, ActionOutcome.DONE, "b-1"), Priority.EVENT)
    await store.flush()
    await drain(store)
    assert [entry.id for entry in await store.recent(RecordKind.DECISION, 3)] == ["b-4", "b-3", "b-2"]
    found = await store.find("a-1")
    assert found is not None
    assert (found.kind, found.at, found.body["actuator"], found.boot) == (RecordKind.ACTION, AT, "valve1", store.boot)
    assert await store.find("nothing") is None
    assert await store.recent(RecordKind.READING, 3) == []
    assert [entry.id for entry in read_journal(tmp_path / "store", RecordKind.DECISION, 2)] == ["b-4", "b-3"]
    assert [entry.id for entry in read_journal(tmp_path / "store", id="b-0")] == ["b-0"]


async def test_the_journal_is_bounded(open_store: Any) -> None:
    store = open_store(max_bytes=1024 * 1024)
    for n in range(300):
        store.offer(RecordKind.NOTICE, AT, {"kind": "test", "n": n, "pad": "x" * 500}, Priority.EVENT)
        if n % 20 == 0:
            await store.flush()
    await store.flush()
    kept = await store.recent(RecordKind.NOTICE, 1_000)
    assert 0 < len(kept) < 40  # 16 KiB
    assert kept[0].body["n"] == 299


async def test_a_second_process_is_told_who_holds_the_store(open_store: Any, tmp_path: Path) -> None:
    import os
    import subprocess
    import sys

    open_store()
    code = (
        "import sys; from pathlib import Path; from edge_runtime.clock import SystemClock; from edge_runtime.store import Store\n"
        "try: Store.open(Path(sys.argv[1]), clock=SystemClock())\n"
        "except OSError as err: print(err)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "store")], capture_output=True, text=True, check=True, timeout=30)
    assert f"in use by process {os.getpid()}" in done.stdout


async def test_the_ledger_is_read_while_the_store_is_open_and_when_absent(open_store: Any, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no gateway has run"):
        read_ledger(tmp_path / "store")
    store = open_store()
    for _ in range(20):
        offer(store, 50)
        assert read_ledger(tmp_path / "store").balanced
    await store.flush()


async def test_files_belong_to_this_user_alone(open_store: Any, tmp_path: Path) -> None:
    open_store()
    directory = tmp_path / "store"
    assert directory.stat().st_mode & 0o777 == 0o700
    assert all(path.stat().st_mode & 0o077 == 0 for path in directory.iterdir())


def test_a_directory_that_cannot_be_made_is_a_clean_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="choose another --state"):
        Store.open(tmp_path / "file" / "store", clock=SystemClock())


def test_too_small_a_cap_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="at least 1048576"):
        Store.open(tmp_path, clock=SystemClock(), max_bytes=1000)
