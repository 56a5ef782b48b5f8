"""A store at its cap, and a disk that is really full (a small tmpfs): what is refused or evicted is counted, and it drains."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.records import RecordKind, decode_batch
from edge_runtime.store import Store, read_drops, read_ledger
from edge_runtime.types import Priority, Timestamp

AT = Timestamp(1, 2, 3)
POLICIES = ("keep_newest", "keep_oldest", "by_priority")
DEADLINE_S = 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(mount)], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {done.stderr.decode().strip()}")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


async def fill(store: Store, priority: Priority = Priority.BULK, rounds: int = 400) -> list[int]:
    """Offers incompressible records, until the store has dropped some (or `rounds` groups were offered)."""
    before = store.ledger().dropped_total
    offered: list[int] = []
    for _ in range(rounds):
        offered += [store.offer(RecordKind.READING, AT, {"noise": os.urandom(1500)}, priority) for _ in range(20)]
        await store.flush()
        assert store.ledger().balanced
        if store.ledger().dropped_total > before:
            return offered
    raise AssertionError("the store never became full")


async def drain(store: Store) -> list[int]:
    """Delivers everything; the sequence numbers in the order of sending."""
    seen: list[int] = []
    while batches := await store.outbox.peek(4):
        for _, batch in batches:
            seen += [record.seq for record in decode_batch(batch.data)]
        assert await store.outbox.acknowledge(store.boot, [batch.first_seq for _, batch in batches]) > 0
    return seen


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_cap_holds_and_the_policy_decides(open_store: Any, tmp_path: Path, policy: str) -> None:
    store = open_store(max_bytes=1024 * 1024, when_full=policy)
    offered = await fill(store)
    await fill(store)
    used = sum(path.stat().st_size for path in (tmp_path / "store").iterdir() if not path.name.endswith("-shm"))
    assert used <= 1024 * 1024
    ledger = store.ledger()
    assert set(ledger.dropped) == ({"store_full"} if policy == "keep_oldest" else {"evicted"})
    assert ledger == read_ledger(tmp_path / "store")
    seen = await drain(store)
    assert len(seen) == len(set(seen)) == ledger.pending
    assert (offered[0] in seen) == (policy == "keep_oldest")
    assert store.ledger().pending == 0
    assert read_ledger(tmp_path / "store") == store.ledger()


async def test_holes_are_explained_exactly(open_store: Any, tmp_path: Path) -> None:
    store = open_store(max_bytes=1024 * 1024, when_full="keep_newest")
    await fill(store)
    seen = set(await drain(store))
    explained = {seq for run in read_drops(tmp_path / "store") for seq in range(run.first_seq, run.last_seq + 1)}
    assert seen | explained == set(range(1, store.ledger().offered + 1))
    assert not seen & explained


async def test_lower_classes_make_room_for_higher_and_are_refused_where_only_higher_are_stored(open_store: Any) -> None:
    store = open_store(max_bytes=1024 * 1024, when_full="by_priority")
    bulk = await fill(store, Priority.BULK)
    events: list[int] = []
    for _ in range(60):  # more than the store holds: first every bulk record goes, then the oldest events
        events += [store.offer(RecordKind.READING, AT, {"noise": os.urandom(1500)}, Priority.EVENT) for _ in range(20)]
        await store.flush()
    late = [store.offer(RecordKind.READING, AT, {"noise": os.urandom(1500)}, Priority.BULK) for _ in range(40)]
    await store.flush()
    assert store.ledger().dropped["store_full"] == 40
    seen = set(await drain(store))
    assert not seen & {*bulk, *late}
    assert events[-1] in seen
    assert store.ledger().balanced


async def test_what_is_being_sent_is_not_evicted(open_store: Any) -> None:
    store = open_store(max_bytes=1024 * 1024, when_full="keep_newest")
    store.offer(RecordKind.READING, AT, {"noise": os.urandom(1500)}, Priority.BULK)
    await store.flush()
    [(_, sending)] = await store.outbox.peek(1)
    for _ in range(3):
        await fill(store)
    assert await store.outbox.acknowledge(store.boot, [sending.first_seq]) == 1
    assert store.ledger().delivered == 1


async def test_fullness_is_told_once_at_its_beginning_and_once_at_its_end(open_store: Any) -> None:
    notices: list[str] = []
    store = open_store(max_bytes=1024 * 1024, on_notice=lambda kind, message: notices.append(kind))
    for _ in range(3):
        await fill(store)
    await drain(store)
    await store.flush()
    assert notices == ["store_full", "store_full_over"]


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_full_disk_is_drained_and_takes_writes_again(open_store: Any, small_disk: Path, policy: str) -> None:
    notices: list[str] = []
    store = open_store(small_disk / "store", when_full=policy, reserve_bytes=256 * 1024, on_notice=lambda kind, _: notices.append(kind))
    (small_disk / "other").write_bytes(b"x" * 400_000)
    for _ in range(3):
        await fill(store)
        assert "disk_full" in notices
    ledger = store.ledger()
    assert set(ledger.dropped) <= {"disk_full", "evicted"}
    assert ledger == read_ledger(small_disk / "store")
    seen = await drain(store)
    assert len(seen) == len(set(seen)) == ledger.pending > 0
    assert store.ledger().pending == 0
    dropped = store.ledger().dropped_total
    again = [store.offer(RecordKind.READING, AT, {"noise": os.urandom(1500)}, Priority.BULK) for _ in range(50)]
    await store.flush()
    assert store.ledger().dropped_total == dropped
    assert await drain(store) == again
    assert read_ledger(small_disk / "store") == store.ledger()


@pytest.mark.parametrize("policy", POLICIES)
async def test_a_disk_filled_to_the_last_byte_by_others_is_survived(open_store: Any, small_disk: Path, policy: str) -> None:
    notices: list[str] = []
    store = open_store(small_disk / "store", when_full=policy, reserve_bytes=256 * 1024, on_notice=lambda kind, _: notices.append(kind))
    kept = [store.offer(RecordKind.READING, AT, {"noise": os.urandom(1500)}, Priority.BULK) for _ in range(200)]
    await store.flush()
    fill_up(small_disk / "other")
    await fill(store)
    assert store.ledger().pending > 0
    store.put("lease", b"held")
    await store.flush()
    assert await store.get("lease") == b"held"
    seen = await drain(store)
    assert store.ledger().pending == 0
    assert policy != "keep_oldest" or set(kept) <= set(seen)
    (small_disk / "other").unlink()
    await until_told(store, notices, "disk_full_over")
    assert (small_disk / "store" / "store.reserve").stat().st_blocks * 512 >= 256 * 1024
    store.offer(RecordKind.READING, AT, {"noise": os.urandom(1500)}, Priority.BULK)
    await store.flush()
    assert store.ledger().pending == 1
    assert store.ledger().balanced


async def test_a_store_opens_and_drains_on_a_disk_that_is_full(open_store: Any, small_disk: Path) -> None:
    store = open_store(small_disk / "store", reserve_bytes=256 * 1024)
    offered = [store.offer(RecordKind.READING, AT, {"noise": os.urandom(1500)}, Priority.BULK) for _ in range(200)]
    await store.close()
    fill_up(small_disk / "other")
    again = open_store(small_disk / "store", reserve_bytes=256 * 1024)
    seen: list[int] = []
    while batches := await again.outbox.peek(4):
        seen += [record.seq for _, batch in batches for record in decode_batch(batch.data)]
        await again.outbox.acknowledge(store.boot, [batch.first_seq for _, batch in batches])
    assert seen == offered
    assert again.ledger().as_dict()["pending"] == 0
    assert again.ledger().balanced


def fill_up(path: Path) -> None:
    """Takes every byte that is left on the disk."""
    with path.open("wb", buffering=0) as file:
        for size in (65_536, 4096, 1):
            try:
                while True:
                    file.write(b"x" * size)
            except OSError:
                continue


async def until_told(store: Store, notices: list[str], kind: str) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while kind not in notices:
            await store.flush()
            await asyncio.sleep(0.01)
