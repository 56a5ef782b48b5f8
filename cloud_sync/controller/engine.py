"""Opens the controller's database, SQLite or PostgreSQL, and brings its tables to this program's schema.

Write inside `engine.begin()`: on SQLite it takes the one write lock at once, so that reading and then writing cannot fail half-way.
`engine.connect()` is for reading. Telemetry does not go through here, but through the writer that `Database.writer` opens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloud_sync.controller.address import Address, parse_address
from edge_runtime.errors import MissingDependency

try:
    from sqlalchemy import Connection, event
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
except ImportError as err:
    raise MissingDependency("sqlalchemy", "controller") from err

if TYPE_CHECKING:
    from cloud_sync.controller.ingest import RecordWriter

BUSY_S = 10.0
_WRITES = {"edge_runtime_writes": True}


@dataclass(frozen=True, slots=True)
class Database:
    """An open database. `address.shown` names it without its password."""

    engine: AsyncEngine
    address: Address

    def writer(self) -> RecordWriter:
        """A connection of its own for telemetry, to be given to a `Sink` and closed after it."""
        from cloud_sync.controller.ingest import open_writer

        return open_writer(self.address)

    async def close(self) -> None:
        await self.engine.dispose()


async def open_database(url: str | Path) -> Database:
    """Opens, creates or migrates. Raises InputError for a URL of another kind, MissingDependency, or StoreError: not reachable,
    no database of ours, or made by a newer program."""
    from cloud_sync.controller.migrations import migrate

    address = parse_address(url)
    await asyncio.to_thread(migrate, address)
    return Database(create_engine(address), address)


def create_engine(address: Address) -> AsyncEngine:
    """An engine for a database whose tables exist. Connects when it is first used."""
    return _sqlite_engine(address.path) if address.path else _postgres_engine(address)


def _sqlite_engine(path: Path) -> AsyncEngine:
    options = {"isolation_level": None, "timeout": BUSY_S}
    made = create_async_engine(f"sqlite+aiosqlite:///{_quoted(path)}", connect_args=options)
    event.listen(made.sync_engine, "connect", prepare_sqlite)
    event.listen(made.sync_engine, "begin", _begin_sqlite)
    return _LockingEngine(made.sync_engine)


def _postgres_engine(address: Address) -> AsyncEngine:
    from cloud_sync.controller.postgres import connect

    return create_async_engine(
        "postgresql+asyncpg://", async_creator=lambda: connect(address, command_timeout_s=60), pool_pre_ping=True, pool_size=8
    )


class _LockingEngine(AsyncEngine):
    """Starts what is opened by `begin` as a writing transaction."""

    @asynccontextmanager
    async def begin(self) -> AsyncIterator[AsyncConnection]:
        async with self.connect() as connection:
            await connection.execution_options(**_WRITES)
            async with connection.begin():
                yield connection


def prepare_sqlite(connection: Any, _record: Any = None) -> None:
    """Settings that SQLite keeps per connection, and the write-ahead log, which is kept in the file."""
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE" if connection.get_execution_options().get("edge_runtime_writes") else "BEGIN")


def _quoted(path: Path) -> str:
    return str(path).replace("%", "%25").replace("?", "%3F").replace("#", "%23")
