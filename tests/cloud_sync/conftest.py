"""Parts that the uplink's tests share: an outbox in memory, waiting for conditions, brokers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from cloud_sync.controller.broker import BrokerProcess, find_mosquitto, start_broker
from edge_runtime.records import Record, RecordKind, encode_batch, encode_body
from edge_runtime.testing.postgres import PostgresServer, find_postgres, postgres_server
from edge_runtime.types import Priority


@dataclass(frozen=True)
class MemoryBatch:
    boot: str
    first_seq: int
    count: int
    data: bytes
    priority: Priority = Priority.BULK


def batch_of(boot: str, first_seq: int, count: int = 10, priority: Priority = Priority.BULK) -> MemoryBatch:
    records = [Record(seq, RecordKind.READING, seq * 1000, seq, -1, encode_body([seq])) for seq in range(first_seq, first_seq + count)]
    return MemoryBatch(boot, first_seq, count, encode_batch(records), priority)


@dataclass
class MemoryOutbox:
    """An Outbox and PausableOutbox in memory, for tests of the link alone."""

    rows: dict[int, MemoryBatch] = field(default_factory=dict)
    in_flight: set[int] = field(default_factory=set)
    released: list[int] = field(default_factory=list)
    delivered: int = 0
    lowest: Priority = Priority.BULK
    _wake: asyncio.Event = field(default_factory=asyncio.Event)

    def add(self, *batches: MemoryBatch) -> None:
        for batch in batches:
            self.rows[len(self.rows) + self.delivered + 1000 * (2 - batch.priority)] = batch
        self._wake.set()

    async def peek(self, max_batches: int, after: int = 0) -> Sequence[tuple[int, MemoryBatch]]:
        await asyncio.sleep(0)
        taken = self._ready()[:max_batches]
        self.in_flight.update(row_id for row_id, _ in taken)
        return taken

    async def acknowledge(self, boot: str, first_seqs: Sequence[int]) -> int:
        await asyncio.sleep(0)
        gone = [row_id for row_id, batch in self.rows.items() if batch.boot == boot and batch.first_seq in first_seqs]
        records = sum(self.rows.pop(row_id).count for row_id in gone)
        self.in_flight.difference_update(gone)
        self.delivered += len(gone)
        return records

    def release(self, row_ids: Sequence[int]) -> None:
        self.released.extend(row_ids)
        self.in_flight.difference_update(row_ids)
        self._wake.set()

    def hold_below(self, priority: Priority) -> None:
        self.lowest = priority
        self._wake.set()

    async def wait(self) -> None:
        while not self._ready():
            self._wake.clear()
            await self._wake.wait()

    def _ready(self) -> list[tuple[int, MemoryBatch]]:
        return sorted(
            ((row_id, batch) for row_id, batch in self.rows.items() if row_id not in self.in_flight and batch.priority >= self.lowest),
            key=lambda row: row[0],
        )


@pytest.fixture
def until() -> Callable[[Callable[[], object]], object]:
    """`await until(condition)`: waits for it to hold, at most `limit_s`."""

    async def wait(condition: Callable[[], object], limit_s: float = 45.0) -> None:
        async with asyncio.timeout(limit_s):
            while not condition():
                await asyncio.sleep(0.005)

    return wait


@pytest.fixture
def memory_outbox() -> MemoryOutbox:
    return MemoryOutbox()


@pytest.fixture
def make_batch() -> Callable[..., MemoryBatch]:
    return batch_of


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[BrokerProcess]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    with start_broker(0, tmp_path / "broker") as broker:
        yield broker


@pytest.fixture(params=["mosquitto", "amqtt"])
def any_broker(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BrokerProcess]:
    if request.param == "mosquitto" and find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    if request.param == "amqtt":
        pytest.importorskip("amqtt")
    with start_broker(0, tmp_path / "broker", prefer=request.param) as broker:
        yield broker


@pytest.fixture(scope="session")
def shared_postgres() -> Iterator[PostgresServer]:
    """One server for the whole session: do not stop it."""
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with postgres_server() as server:
        yield server


@pytest.fixture
def postgres_url(shared_postgres: PostgresServer) -> str:
    """URL of an empty database; `shared_postgres.database()` makes further ones."""
    return shared_postgres.emptied()


@pytest.fixture
def own_postgres() -> Iterator[PostgresServer]:
    """A server that the test may stop, kill and start."""
    if find_postgres() is None:
        pytest.skip("PostgreSQL is not installed (apt install postgresql)")
    with postgres_server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new database of each kind."""
    if request.param == "sqlite":
        return str(tmp_path / "controller.db")
    return str(request.getfixturevalue("postgres_url"))


@pytest.fixture
async def background() -> AsyncIterator[Callable[..., asyncio.Task[None]]]:
    """Starts coroutines that are cancelled, and whose failures are raised, at the end of the test."""
    tasks: list[asyncio.Task[None]] = []

    def start(job: object) -> asyncio.Task[None]:
        task = asyncio.ensure_future(job)  # type: ignore[call-overload]
        tasks.append(task)
        return task

    yield start
    for task in tasks:
        task.cancel()
    for outcome in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(outcome, Exception):
            raise outcome
