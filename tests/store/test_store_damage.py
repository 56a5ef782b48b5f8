"""Files that are damaged, cut, foreign or of a newer version: kept aside, never deleted, told, and what is sound is saved."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.records import RecordKind, decode_batch
from edge_runtime.store import Store, read_ledger
from edge_runtime.types import Priority, Timestamp

AT = Timestamp(1, 2, 3)
RECORDS = 2_000


async def fill_and_close(store: Store) -> None:
    for n in range(RECORDS):
        store.offer(RecordKind.READING, AT, {"n": n, "noise": os.urandom(60)}, Priority(n % 3))
        if n % 100 == 99:
            await store.flush()
    store.put("lease", b"held")
    await store.close()


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def randomised(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 + 100)


def cut_to_nothing(path: Path) -> None:
    os.truncate(path, 50)


def zeroed_header(path: Path) -> None:
    overwrite(path, 0, bytes(100))


def zeroed_first_page(path: Path) -> None:
    overwrite(path, 0, bytes(4096))


def flipped(path: Path) -> None:
    chance = random.Random(11)
    size = path.stat().st_size
    data = bytearray(path.read_bytes())
    for _ in range(200):
        data[chance.randrange(100, size)] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def foreign(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE somebody_elses(x)")
    db.close()


def newer(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


async def drain(store: Store) -> int:
    """Delivers what there is; every batch that is handed out can be decoded."""
    records = 0
    async with asyncio.timeout(20):
        while store.ledger().pending:
            for _, batch in await store.outbox.peek(50):
                assert len(decode_batch(batch.data)) == batch.count
                records += await store.outbox.acknowledge(batch.boot, [batch.first_seq])
            await store.flush()
    return records


@pytest.mark.parametrize("damage", [randomised, cut, cut_to_nothing, zeroed_header, zeroed_first_page, foreign])
async def test_a_damaged_database_is_set_aside_and_work_goes_on(open_store: Any, tmp_path: Path, damage: Callable[[Path], None]) -> None:
    directory = tmp_path / "store"
    await fill_and_close(open_store())
    damage(directory / "store.db")
    content = (directory / "store.db").read_bytes()
    notices: list[tuple[str, str]] = []
    store = open_store(on_notice=lambda *notice: notices.append(notice))
    [kept] = directory.glob("store.db.corrupt-*Z")
    assert kept.read_bytes() == content
    [(kind, message)] = notices
    assert kind == "store_corrupt"
    assert str(kept) in message
    assert store.ledger().balanced
    for _ in range(100):
        store.offer(RecordKind.READING, AT, {"n": 1}, Priority.BULK)
    await store.flush()
    before = store.ledger()
    assert await drain(store) == before.pending >= 100
    assert read_ledger(directory) == store.ledger()
    assert store.ledger().balanced


async def test_a_file_cut_in_half_gives_back_the_half_that_is_there(open_store: Any, tmp_path: Path) -> None:
    await fill_and_close(open_store())
    cut(tmp_path / "store" / "store.db")
    store = open_store()
    assert store.ledger().offered == RECORDS
    assert 0 < store.ledger().pending < RECORDS
    assert store.ledger().dropped["corrupt"] == RECORDS - store.ledger().pending


async def test_a_newer_database_is_kept_untouched(open_store: Any, tmp_path: Path) -> None:
    directory = tmp_path / "store"
    await fill_and_close(open_store())
    newer(directory / "store.db")
    content = (directory / "store.db").read_bytes()
    notices: list[str] = []
    store = open_store(on_notice=lambda kind, _: notices.append(kind))
    [kept] = directory.glob("store.db.newer-*Z")
    assert kept.read_bytes() == content
    assert notices == ["store_newer"]
    assert store.ledger().offered == 0


async def test_flipped_bits_lose_no_more_than_they_touch_and_are_counted(open_store: Any, tmp_path: Path) -> None:
    directory = tmp_path / "store"
    await fill_and_close(open_store())
    flipped(directory / "store.db")
    store = open_store()
    assert store.ledger().balanced
    delivered = await drain(store)
    ledger = store.ledger()
    assert ledger.balanced
    assert ledger.delivered == delivered
    assert read_ledger(directory) == ledger


async def test_one_damaged_batch_is_dropped_and_counted_the_others_arrive(open_store: Any, tmp_path: Path) -> None:
    directory = tmp_path / "store"
    await fill_and_close(open_store())
    with sqlite3.connect(directory / "store.db") as db:
        row, records = db.execute("SELECT id, records FROM outbox LIMIT 1").fetchone()
        db.execute("UPDATE outbox SET data = zeroblob(length(data)) WHERE id = ?", (row,))
    db.close()
    store = open_store()
    assert await drain(store) == RECORDS - records
    assert store.ledger().dropped == {"corrupt": records}
    assert read_ledger(directory) == store.ledger()


async def test_damage_while_running_is_found_set_aside_and_survived(open_store: Any, tmp_path: Path) -> None:
    directory = tmp_path / "store"
    notices: list[str] = []
    await fill_and_close(open_store())
    store = open_store(on_notice=lambda kind, _: notices.append(kind))
    size = (directory / "store.db").stat().st_size
    overwrite(directory / "store.db", 8192, os.urandom(size - 8192))
    await drain(store)
    for _ in range(100):
        store.offer(RecordKind.READING, AT, {"n": 1}, Priority.BULK)
    await store.flush()
    await drain(store)
    assert store.ledger().balanced
    assert store.ledger().offered == RECORDS + 100
    assert "store_corrupt" in notices
    assert list(directory.glob("store.db.corrupt-*"))


async def test_what_is_sound_in_a_damaged_file_is_saved(open_store: Any, tmp_path: Path) -> None:
    directory = tmp_path / "store"
    await fill_and_close(open_store())
    size = (directory / "store.db").stat().st_size
    overwrite(directory / "store.db", size // 4096 // 2 * 4096, os.urandom(4096))
    store = open_store()
    ledger = store.ledger()
    assert ledger.balanced
    assert ledger.offered == RECORDS
    assert await store.get("lease") == b"held"
    assert await drain(store) > RECORDS // 2
