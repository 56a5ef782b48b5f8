"""PostgreSQL: connections, and telemetry into it by COPY. The only module that imports asyncpg.

COPY goes into a temporary table, from where one INSERT .. ON CONFLICT DO NOTHING takes over what is new: measured at about 1.5 times
the rate of one INSERT over arrays. The writer has an event loop of its own in the writer thread, so that it holds up nobody.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from cloud_sync.controller.address import Address
from cloud_sync.controller.ingest import MAX_QUARANTINE_BYTES, Origin, Span
from edge_runtime.errors import InputError, MissingDependency, StoreError
from edge_runtime.records import Record

if TYPE_CHECKING:
    from asyncpg import Connection

_Answer = TypeVar("_Answer")

_CONNECT_S = 10.0
_COMMAND_S = 30.0
_CLOSE_S = 2.0
_MAX_ROWS = 20_000
_MAX_BYTES = 16 * 1024 * 1024
_DURABLE = "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'"
_INCOMING = "CREATE TEMPORARY TABLE incoming (LIKE records) ON COMMIT DELETE ROWS"
_TAKE_OVER = """WITH added AS (
        INSERT INTO records SELECT * FROM incoming ORDER BY tenant, gateway, boot, seq ON CONFLICT DO NOTHING
        RETURNING tenant, gateway, boot
    ) SELECT tenant, gateway, boot, count(*) FROM added GROUP BY tenant, gateway, boot"""
_QUARANTINE = "INSERT INTO quarantine VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING"
_COUNT = "INSERT INTO counters VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = counters.value + excluded.value"
_DUPLICATES = """INSERT INTO gateways AS g (tenant, gateway, duplicates) VALUES ($1, $2, $3)
    ON CONFLICT (tenant, gateway) DO UPDATE SET duplicates = g.duplicates + excluded.duplicates"""
_BOOT = """INSERT INTO boots AS b VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (tenant, gateway, boot) DO UPDATE SET
    rows = b.rows + excluded.rows, first_seq = least(b.first_seq, excluded.first_seq), last_seq = greatest(b.last_seq, excluded.last_seq)"""
_BIRTH = """INSERT INTO gateways (tenant, gateway, boot, online, version, status_wall_ns) VALUES ($1, $2, $3, true, $4, $5)
    ON CONFLICT (tenant, gateway) DO UPDATE SET boot = excluded.boot, online = true, version = excluded.version,
    status_wall_ns = excluded.status_wall_ns"""
_DEATH = """INSERT INTO gateways AS g (tenant, gateway, boot, online, status_wall_ns) VALUES ($1, $2, $3, false, $4)
    ON CONFLICT (tenant, gateway) DO UPDATE SET online = false, status_wall_ns = excluded.status_wall_ns WHERE g.boot = excluded.boot"""
_STATE = """INSERT INTO gateways AS g (tenant, gateway, state, state_boot, state_seq, state_wall_ns) VALUES ($1, $2, $3, $4, $5, $6)
    ON CONFLICT (tenant, gateway) DO UPDATE SET state = excluded.state, state_boot = excluded.state_boot, state_seq = excluded.state_seq,
    state_wall_ns = excluded.state_wall_ns WHERE g.state_boot <> excluded.state_boot OR g.state_seq < excluded.state_seq"""


async def connect(address: Address, command_timeout_s: float | None = None) -> Connection:
    """One connection whose commits wait for the disk, also where the server's default is not to.

    Raises StoreError when the server cannot be reached or refuses; the password is not in the message.
    """
    asyncpg = _library()
    settings = {"application_name": "edge-runtime controller"}
    try:
        made = await asyncpg.connect(address.dsn, timeout=_CONNECT_S, command_timeout=command_timeout_s, server_settings=settings)
        await made.execute(_DURABLE)
        return made
    except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as err:
        raise StoreError(f"{address.shown}: cannot connect: {err or type(err).__name__}") from err
    except ValueError as err:
        raise InputError(f"{address.shown}: {type(err).__name__}: expected postgresql://USER@HOST:PORT/NAME") from err


class PostgresWriter:
    """A RecordWriter over PostgreSQL. Connects when it is used, and again after the server was away."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._asyncpg = _library()
        self._loop = asyncio.new_event_loop()
        self._connection: Connection | None = None
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self._copied = False  # in this transaction
        self._spans: dict[Origin, Span] = defaultdict(Span)
        self._received_wall_ns = 0
        self._gateways: list[tuple[tuple[str, str], str, tuple[Any, ...]]] = []

    @contextmanager
    def transaction(self) -> Iterator[None]:
        self._forget()
        transaction = self._run(self._begin())
        try:
            yield
            self._run(_end(transaction.commit))
        except BaseException:
            self._undo(transaction)
            raise

    def insert(self, origin: Origin, records: Sequence[Record], received_wall_ns: int) -> None:
        who = (origin.tenant, origin.gateway, origin.boot)
        self._rows += [(*who, r.seq, r.kind, r.mono_ns, r.wall_ns, r.wall_err_ns, bytes(r.body), received_wall_ns) for r in records]
        self._bytes += sum(len(r.body) for r in records)
        self._spans[origin].widen(records)
        self._received_wall_ns = received_wall_ns
        if len(self._rows) > _MAX_ROWS or self._bytes > _MAX_BYTES:
            self._run(self._copy())

    def settle(self) -> int:
        if self._rows:
            self._run(self._copy())
        again = Counter[tuple[str, str]]()
        for origin, span in self._spans.items():
            who = (origin.tenant, origin.gateway)
            if span.added:
                values = (*who, origin.boot, span.added, span.first_seq, span.last_seq, self._received_wall_ns)
                self._gateways.append((who, _BOOT, values))
            again[who] += span.offered - span.added
        self._gateways += [(who, _DUPLICATES, (*who, count)) for who, count in again.items() if count]
        self._spans.clear()
        if self._gateways:
            self._run(self._update_gateways())
        return again.total()

    def quarantine(self, origin: Origin, first_seq: int, reason: str, payload: bytes, received_wall_ns: int) -> bool:
        return self._run(self._quarantine(origin.tenant, origin.gateway, origin.boot, first_seq, reason, payload, received_wall_ns))

    def count(self, name: str, amount: int) -> None:
        self._run(self._open().execute(_COUNT, name, amount))

    def set_status(self, origin: Origin, online: bool, version: str, wall_ns: int) -> None:
        who = (origin.tenant, origin.gateway, origin.boot)
        values = (*who, version, wall_ns) if online else (*who, wall_ns)
        self._gateways.append((who[:2], _BIRTH if online else _DEATH, values))

    def set_state(self, origin: Origin, seq: int, state: str, wall_ns: int) -> None:
        who = (origin.tenant, origin.gateway)
        self._gateways.append((who, _STATE, (*who, state, origin.boot, seq, wall_ns)))

    def close(self) -> None:
        """From any thread that is not in the middle of a transaction, also from one that runs an event loop."""
        with ThreadPoolExecutor(1) as outside:
            outside.submit(self._close).result()

    def _close(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(OSError, TimeoutError, self._asyncpg.PostgresError, self._asyncpg.InterfaceError):
                self._loop.run_until_complete(self._connection.close(timeout=_CLOSE_S))
        self._connection = None
        self._loop.close()

    async def _begin(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            self._connection = await connect(self._address, _COMMAND_S)
            await self._connection.execute(_INCOMING)
        transaction = self._connection.transaction()
        await transaction.start()
        return transaction

    async def _copy(self) -> None:
        db, rows = self._open(), self._rows
        self._rows, self._bytes = [], 0
        if self._copied:
            await db.execute("DELETE FROM incoming")
        self._copied = True
        await db.copy_records_to_table("incoming", records=rows)
        for tenant, gateway, boot, added in await db.fetch(_TAKE_OVER):
            self._spans[Origin(tenant, gateway, boot)].added += added

    async def _update_gateways(self) -> None:
        """By name, so that two controllers never wait for each other's rows crosswise; in order for each gateway."""
        updates, self._gateways = sorted(self._gateways, key=lambda update: update[0]), []
        for _, statement, values in updates:
            await self._open().execute(statement, *values)

    async def _quarantine(self, *row: Any) -> bool:
        db = self._open()
        kept = await db.fetchval("SELECT coalesce(sum(octet_length(payload)), 0) FROM quarantine")
        if kept + len(row[5]) > MAX_QUARANTINE_BYTES:
            return False
        await db.execute(_QUARANTINE, *row)
        return True

    def _open(self) -> Connection:
        if self._connection is None:
            raise StoreError(f"{self._address.shown}: not connected")
        return self._connection

    def _run(self, job: Coroutine[Any, Any, _Answer]) -> _Answer:
        try:
            return self._loop.run_until_complete(job)
        except (self._asyncpg.DataError, ValueError, OverflowError) as err:
            raise InputError(f"{self._address.shown}: {err}") from err
        except (OSError, TimeoutError, self._asyncpg.PostgresError, self._asyncpg.InterfaceError, self._asyncpg.InternalClientError) as err:
            raise StoreError(f"{self._address.shown}: {err or type(err).__name__}") from err

    def _undo(self, transaction: Any) -> None:
        """Rolls back; a connection on which even that fails is given up."""
        self._forget()
        try:
            self._run(_end(transaction.rollback))
        except (StoreError, InputError):
            connection, self._connection = self._connection, None
            if connection is not None:
                connection.terminate()

    def _forget(self) -> None:
        self._rows, self._bytes, self._copied, self._gateways = [], 0, False, []
        self._spans.clear()


async def _end(how: Callable[[], Awaitable[None]]) -> None:
    """Commits or rolls back. On a connection that is gone asyncpg raises when it is asked, not when it is awaited."""
    await how()


def _library() -> Any:
    try:
        import asyncpg
    except ImportError as err:
        raise MissingDependency("asyncpg", "postgres") from err
    return asyncpg
