"""Opening the controller's database: both kinds, several controllers at once, older and newer schemas."""

from __future__ import annotations

import asyncio
import sqlite3
import sys
from pathlib import Path

import pytest
from sqlalchemy import func, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncConnection

from cloud_sync.controller.address import parse_address
from cloud_sync.controller.engine import Database, open_database
from cloud_sync.controller.schema import counters, metadata, records
from edge_runtime.errors import InputError, StoreError
from edge_runtime.testing.postgres import PostgresServer

_OLD_SINK = """
CREATE TABLE records (
    tenant TEXT NOT NULL, gateway TEXT NOT NULL, boot TEXT NOT NULL, seq INTEGER NOT NULL,
    kind TEXT NOT NULL, mono_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, wall_err_ns INTEGER NOT NULL,
    body BLOB NOT NULL, received_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (tenant, gateway, boot, seq)
) WITHOUT ROWID;
CREATE TABLE gateways (
    tenant TEXT NOT NULL, gateway TEXT NOT NULL,
    boot TEXT NOT NULL DEFAULT '', online INTEGER NOT NULL DEFAULT 0, version TEXT NOT NULL DEFAULT '',
    status_wall_ns INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT '{}', state_boot TEXT NOT NULL DEFAULT '', state_seq INTEGER NOT NULL DEFAULT 0,
    state_wall_ns INTEGER NOT NULL DEFAULT 0, duplicates INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant, gateway)
) WITHOUT ROWID;
CREATE TABLE quarantine (
    tenant TEXT NOT NULL, gateway TEXT NOT NULL, boot TEXT NOT NULL, first_seq INTEGER NOT NULL,
    reason TEXT NOT NULL, payload BLOB NOT NULL, received_wall_ns INTEGER NOT NULL,
    PRIMARY KEY (tenant, gateway, boot, first_seq)
) WITHOUT ROWID;
CREATE TABLE counters (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version=1;
"""
_OPEN = """
import asyncio, sys
from cloud_sync.controller.engine import open_database
asyncio.run(asyncio.run(open_database(sys.argv[1])).close())
"""


async def drift(database: Database) -> list[object]:
    """What the migrations made differently from `schema`."""
    from alembic.autogenerate import compare_metadata
    from alembic.migration import MigrationContext

    def compare(connection: object) -> list[object]:
        return compare_metadata(MigrationContext.configure(connection), metadata)  # type: ignore[arg-type]

    async with database.engine.connect() as connection:
        return await connection.run_sync(compare)


async def test_the_migrations_make_what_the_schema_says(database_url: str) -> None:
    database = await open_database(database_url)
    try:
        assert await drift(database) == []
    finally:
        await database.close()


async def test_a_database_is_opened_again(database_url: str) -> None:
    for value in (1, 2):
        database = await open_database(database_url)
        async with database.engine.begin() as connection:
            await connection.execute(insert(counters).values(name=f"n{value}", value=value))
        async with database.engine.connect() as connection:
            assert await connection.scalar(select(func.count()).select_from(counters)) == value
        await database.close()


async def test_what_fails_inside_begin_leaves_nothing(database_url: str) -> None:
    database = await open_database(database_url)

    async def fail() -> None:
        async with database.engine.begin() as connection:
            await connection.execute(insert(counters).values(name="n", value=1))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with database.engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(counters)) == 0
    await database.close()


async def test_reading_and_then_writing_does_not_fail_half_way(database_url: str) -> None:
    database = await open_database(database_url)
    async with database.engine.begin() as connection:
        await connection.execute(insert(counters).values(name="n", value=0))

    async def add(connection: AsyncConnection) -> None:
        value = await connection.scalar(select(counters.c.value).where(counters.c.name == "n").with_for_update())
        await asyncio.sleep(0)
        await connection.execute(counters.update().where(counters.c.name == "n").values(value=value + 1))

    async def once() -> None:
        async with database.engine.begin() as connection:
            await add(connection)

    await asyncio.gather(*(once() for _ in range(20)))
    async with database.engine.connect() as connection:
        assert await connection.scalar(select(counters.c.value).where(counters.c.name == "n")) == 20
    await database.close()


async def test_several_controllers_may_start_at_once(database_url: str) -> None:
    async def start() -> tuple[int | None, bytes]:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", _OPEN, database_url, stderr=asyncio.subprocess.PIPE)
        _, words = await process.communicate()
        return process.returncode, words

    outcomes = await asyncio.gather(*(start() for _ in range(4)), open_database(database_url), open_database(database_url))
    for outcome in outcomes:
        if isinstance(outcome, Database):
            await outcome.close()
        else:
            assert outcome == (0, b"")


async def test_a_schema_of_a_newer_program_is_refused(database_url: str) -> None:
    database = await open_database(database_url)
    async with database.engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await database.close()
    with pytest.raises(StoreError, match=r"schema 9999, this program knows up to 0.*: update it"):
        await open_database(database_url)


async def test_tables_of_somebody_else_are_refused_and_left_alone(database_url: str) -> None:
    database = await open_database(database_url)
    async with database.engine.begin() as connection:
        await connection.run_sync(metadata.drop_all)
        await connection.execute(text("DROP TABLE alembic_version"))
        await connection.execute(text("CREATE TABLE quarantine (mine INTEGER)"))
    with pytest.raises(StoreError, match="quarantine"):
        await open_database(database_url)
    async with database.engine.connect() as connection:
        assert await connection.run_sync(lambda sync: inspect(sync).get_table_names()) == ["quarantine"]
    await database.close()


async def test_the_file_of_an_older_sink_is_migrated_in_place(tmp_path: Path) -> None:
    path = tmp_path / "sink.db"
    rows = [("acme", "gw", "b7", seq, "r", seq, seq, -1, b"\x90", 5) for seq in (*range(100), 2**63 - 1)]
    with sqlite3.connect(path) as old:
        old.executescript(_OLD_SINK)
        old.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        old.execute("INSERT INTO gateways (tenant, gateway, boot, online, duplicates) VALUES ('acme', 'gw', 'b7', 1, 3)")
        old.execute("INSERT INTO quarantine VALUES ('acme', 'gw', 'b7', 4, 'why', x'00', 5)")
        old.execute("INSERT INTO counters VALUES ('messages_rejected', 2)")
    old.close()
    for _ in range(2):
        database = await open_database(path)
        async with database.engine.connect() as connection:
            found = (await connection.execute(select(records).order_by(records.c.seq))).all()
            assert [tuple(row) for row in found] == rows
            [gateway] = (await connection.execute(text("SELECT duplicates, online, site, labels, joined_wall_ns FROM gateways"))).all()
            assert tuple(gateway) == (3, 1, "", "{}", 0)
            assert (await connection.execute(select(counters))).all() == [("messages_rejected", 2)]
            assert await connection.scalar(text("SELECT count(*) FROM quarantine")) == 1
        await database.close()


async def test_a_migration_that_fails_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "sink.db"
    with sqlite3.connect(path) as old:
        old.executescript(_OLD_SINK)
        old.execute("CREATE TABLE audit (mine INTEGER)")
    old.close()
    before = _schema(path)
    with pytest.raises(StoreError, match="audit"):
        await open_database(path)
    assert _schema(path) == before


async def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    junk = tmp_path / "junk.db"
    junk.write_bytes(b"this is not a database" * 100)
    with pytest.raises(StoreError, match=r"junk\.db"):
        await open_database(junk)
    newer = tmp_path / "newer.db"
    with sqlite3.connect(newer) as other:
        other.execute("PRAGMA user_version=99")
    other.close()
    with pytest.raises(StoreError, match="schema version 99"):
        await open_database(newer)
    with pytest.raises(StoreError, match="unable to open"):
        await open_database(tmp_path / "no such folder" / "x.db")


async def test_sqlite_waits_for_the_disk_and_keeps_references(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "x?#%41.db")
    async with database.engine.connect() as connection:
        for pragma, expected in (("synchronous", 2), ("journal_mode", "wal"), ("foreign_keys", 1), ("busy_timeout", 10_000)):
            assert await connection.scalar(text(f"PRAGMA {pragma}")) == expected
    await database.close()
    assert [path.name for path in tmp_path.iterdir()] == ["x?#%41.db"]


async def test_postgres_by_password_over_tcp_and_nobody_sees_it(shared_postgres: PostgresServer, postgres_url: str) -> None:
    name = postgres_url.partition("@/")[2].partition("?")[0]
    secret = shared_postgres.password.replace(" ", "%20")
    url = f"postgres://tester:{secret}@127.0.0.1:{shared_postgres.port}/{name}"
    database = await open_database(url)
    assert shared_postgres.password not in repr(database)
    assert secret not in repr(database)
    await database.close()
    with pytest.raises(StoreError) as refused:
        await open_database(url.replace("secret", "wrong"))
    assert "wrong" not in str(refused.value)
    assert "password authentication failed" in str(refused.value)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql://u@127.0.0.1:1/x", StoreError),
        ("postgresql://u:p@host:notaport/x", InputError),
        ("mysql://host/x", InputError),
        ("sqlite://", InputError),
        (":memory:", InputError),
        ("", InputError),
        ("sqlite://host/x", InputError),
    ],
)
async def test_a_url_that_leads_nowhere_is_refused(url: str, expected: type[Exception]) -> None:
    with pytest.raises(expected):
        await open_database(url)


@pytest.mark.parametrize(
    ("text", "path", "shown"),
    [
        ("sink.db", "sink.db", "sink.db"),
        ("/var/lib/c.db", "/var/lib/c.db", "/var/lib/c.db"),
        ("sqlite:///c.db", "c.db", "c.db"),
        ("sqlite:////var/c%20d.db", "/var/c d.db", "/var/c d.db"),
        ("sqlite+aiosqlite:///c.db", "c.db", "c.db"),
        ("postgresql+asyncpg://u:p%40:q@h:1/n?sslmode=require", None, "postgresql://u:***@h:1/n?sslmode=require"),
        ("postgres://h/n?user=u&password=p", None, "postgresql://h/n?user=u&password=***"),
    ],
)
def test_addresses(text: str, path: str | None, shown: str) -> None:
    address = parse_address(text)
    assert (address.path, address.shown) == (Path(path) if path else None, shown)
    assert "p%40" not in repr(address)


def _schema(path: Path) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(path)
    try:
        return [*connection.execute("SELECT * FROM sqlite_master ORDER BY name"), *connection.execute("PRAGMA user_version")]
    finally:
        connection.close()
