"""Durable ingest of the store, beside a bare `executemany` of the same records into one SQLite table, in the same run.

Both commit with WAL and synchronous=FULL in groups of 100. `records_per_core_s` is records by processor seconds of all threads,
`records_per_s` by the wall clock. The latency is from the offer of a record to its flush, 200 groups one after another.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.rows import Row, row
from edge_runtime.clock import SystemClock
from edge_runtime.records import RecordKind
from edge_runtime.store import Store
from edge_runtime.types import Priority, Timestamp

RECORDS = 200_000
GROUP = 100
COMMITS = 200
OFFERS = 20_000


class Scalar(msgspec.Struct, frozen=True, gc=False):
    """A small scalar reading: 72 bytes as MessagePack."""

    source: str
    channel: str
    seq: int
    value: float
    unit: str
    quality: int


def run() -> dict[str, Any]:
    """Measures in a temporary folder on the current disk; takes about 5 s."""
    with tempfile.TemporaryDirectory(dir=Path.cwd(), prefix=".bench-store-") as folder:
        reference = _reference(Path(folder) / "reference.db")
        ours = asyncio.run(_store(Path(folder) / "store"))
    return {"rows": _rows(ours, reference)}


def main() -> None:
    print(json.dumps(run(), indent=2))


def _rows(ours: dict[str, Any], reference: dict[str, Any]) -> list[Row]:
    per_core, per_s = reference["records_per_core_s"], reference["records_per_s"]
    return [
        row("records streamed in groups of 100, per core", ours["streamed"]["records_per_core_s"], "1/s", per_core, ">= 200,000"),
        row("records streamed in groups of 100, by the clock", ours["streamed"]["records_per_s"], "1/s", per_s),
        row("records, each group of 100 awaited, per core", ours["records_per_core_s"], "1/s", per_core),
        row("offer of one record", ours["offer_us"], "us"),
        row("offer -> on disk, p50", ours["commit_ms"]["p50"], "ms"),
        row("offer -> on disk, p99", ours["commit_ms"]["p99"], "ms", None, "<= 5"),
        row("drain of the outbox", ours["drained_records_per_s"], "1/s"),
        row("file per record", ours["file_bytes_per_record"], "byte", reference["file_bytes_per_record"]),
        row("records lost", ours["lost"], "", None, "0"),
    ]


async def _store(directory: Path) -> dict[str, Any]:
    clock = SystemClock()
    store = Store.open(directory, clock=clock)
    bodies, times = _inputs(clock)
    offer_us = _offer_us(store, bodies, times)
    await store.flush()
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, RECORDS, GROUP):
        for i in range(start, start + GROUP):
            store.offer(RecordKind.READING, times[i], bodies[i], Priority.BULK)
        await store.flush()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    streamed = await _stream(store, bodies, times)
    latencies = await _latencies(store, bodies, times)
    drained = await _drain(store)
    size = (directory / "store.db").stat().st_size
    ledger = store.ledger()
    await store.close()
    return {
        **_rates(RECORDS, wall, cpu),
        "streamed": streamed,
        "offer_us": round(offer_us, 2),
        "commit_ms": latencies,
        "drained_records_per_s": drained,
        "file_bytes_per_record": round(size / ledger.offered, 1),
        "lost": ledger.offered - ledger.delivered - ledger.pending,
    }


async def _stream(store: Store, bodies: list[Scalar], times: list[Timestamp]) -> dict[str, float]:
    """As a gateway does it: groups of 100 offered one after another, one flush at the end of every 20,000."""
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, RECORDS, GROUP):
        for i in range(start, start + GROUP):
            store.offer(RecordKind.READING, times[i], bodies[i], Priority.BULK)
        if start % OFFERS == OFFERS - GROUP:
            await store.flush()
    await store.flush()
    return _rates(RECORDS, time.perf_counter() - wall, time.process_time() - cpu)


def _offer_us(store: Store, bodies: list[Scalar], times: list[Timestamp]) -> float:
    began = time.thread_time()
    for i in range(OFFERS):
        store.offer(RecordKind.READING, times[i], bodies[i], Priority.BULK)
    return (time.thread_time() - began) / OFFERS * 1e6


async def _latencies(store: Store, bodies: list[Scalar], times: list[Timestamp]) -> dict[str, float]:
    taken = []
    for i in range(COMMITS):
        began = time.perf_counter()
        store.offer(RecordKind.READING, times[i], bodies[i], Priority.EVENT, urgent=True)
        await store.flush()
        taken.append((time.perf_counter() - began) * 1e3)
    return {"p50": round(statistics.median(taken), 3), "p99": round(statistics.quantiles(taken, n=100)[98], 3)}


async def _drain(store: Store) -> int:
    began, records = time.perf_counter(), 0
    while batches := await store.outbox.peek(32):
        records += await store.outbox.acknowledge(store.boot, [batch.first_seq for _, batch in batches])
    return round(records / (time.perf_counter() - began))


def _reference(path: Path) -> dict[str, Any]:
    clock = SystemClock()
    bodies, times = _inputs(clock)
    encode = msgspec.msgpack.Encoder().encode
    db = sqlite3.connect(path, isolation_level=None)
    db.execute("PRAGMA journal_mode=WAL")
    db.execute("PRAGMA synchronous=FULL")
    db.execute("CREATE TABLE record(seq INTEGER PRIMARY KEY, kind TEXT, mono_ns INTEGER, wall_ns INTEGER, body BLOB)")
    wall, cpu = time.perf_counter(), time.process_time()
    for start in range(0, RECORDS, GROUP):
        db.execute("BEGIN")
        db.executemany(
            "INSERT INTO record VALUES(?,?,?,?,?)",
            [(i + 1, "r", times[i].mono_ns, times[i].wall_ns, encode(bodies[i])) for i in range(start, start + GROUP)],
        )
        db.execute("COMMIT")
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    db.close()
    return {**_rates(RECORDS, wall, cpu), "file_bytes_per_record": round(path.stat().st_size / RECORDS, 1)}


def _rates(records: int, wall_s: float, cpu_s: float) -> dict[str, float]:
    return {
        "records_per_core_s": round(records / cpu_s),
        "records_per_s": round(records / wall_s),
        "cpu_us_per_record": round(cpu_s / records * 1e6, 2),
    }


def _inputs(clock: SystemClock) -> tuple[list[Scalar], list[Timestamp]]:
    bodies = [Scalar("pump", "temperature", i, 20 + i * 0.731 % 7, "degC", 0) for i in range(RECORDS)]
    return bodies, [clock.now() for _ in range(RECORDS)]


if __name__ == "__main__":
    main()
