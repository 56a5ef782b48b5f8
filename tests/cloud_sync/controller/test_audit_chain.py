"""The audit log: every change to what was written is seen, and appenders wait for each other."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import create_async_engine

from cloud_sync.controller import audit
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.schema import audit as table
from edge_runtime.errors import InputError

_ROWS = 6
_COLUMNS = ("wall_ns", "actor", "action", "subject", "detail", "previous", "hash")


async def _written(path: Path) -> None:
    database = await open_database(path)
    async with database.engine.begin() as connection:
        for number in range(_ROWS):
            await audit.append(connection, "ada", "push", f"acme/gw-{number}", {"revision": number}, wall_ns=number)
    await database.close()


async def _broken_at(path: Path) -> int | None:
    engine = create_async_engine(f"sqlite+aiosqlite:///{path}")
    async with engine.connect() as connection:
        broken = await audit.verify(connection)
    await engine.dispose()
    return broken


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("audit") / "controller.db"
    asyncio.run(_written(path))
    return path


def _tampered(log: Path, *statements: tuple[str, tuple[object, ...]]) -> int | None:
    """Where the chain breaks after somebody has written into a copy of the file."""
    copy = log.with_name("tampered.db")
    copy.unlink(missing_ok=True)
    with sqlite3.connect(log) as source, sqlite3.connect(copy) as target:
        source.backup(target)
    source.close()
    for statement, parameters in statements:
        target.execute(statement, parameters)
    target.commit()
    target.close()
    return asyncio.run(_broken_at(copy))


def test_an_untouched_log_is_whole(log: Path) -> None:
    assert _tampered(log) is None


@given(st.integers(1, _ROWS), st.sampled_from(_COLUMNS), st.one_of(st.integers(100, 2**60), st.text(max_size=70), st.binary(max_size=8)))
@settings(max_examples=40, deadline=None)
def test_any_changed_value_is_seen(log: Path, seq: int, column: str, value: object) -> None:
    if column == "wall_ns" and not isinstance(value, int):
        value = 12345
    elif column != "wall_ns":
        value = str(value)
    assert _tampered(log, (f"UPDATE audit SET {column} = ? WHERE seq = ?", (value, seq))) == seq


@given(st.sets(st.integers(1, _ROWS), min_size=1))
@settings(max_examples=25, deadline=None)
def test_any_removed_rows_are_seen(log: Path, gone: set[int]) -> None:
    assert _tampered(log, *(("DELETE FROM audit WHERE seq = ?", (seq,)) for seq in gone)) == min(gone)


@given(st.permutations(range(1, _ROWS + 1)))
@settings(max_examples=25, deadline=None)
def test_another_order_is_seen(log: Path, order: list[int]) -> None:
    moves = [("UPDATE audit SET seq = ? WHERE seq = ?", (100 + new, old)) for old, new in enumerate(order, 1)]
    back = [("UPDATE audit SET seq = seq - 100", ())]
    expected = next((seq for seq, new in enumerate(order, 1) if new != seq), None)
    assert _tampered(log, *moves, *back) == expected


@given(st.integers(-3, _ROWS + 3).filter(lambda seq: not 1 <= seq <= _ROWS))
@settings(max_examples=10, deadline=None)
def test_an_added_row_is_seen(log: Path, seq: int) -> None:
    row = {"seq": seq, "wall_ns": 1, "actor": "eve", "action": "x", "subject": "y", "detail": "{}", "previous": "0" * 64}
    row["hash"] = audit.row_hash(row)
    columns, marks = ", ".join(row), ", ".join("?" * len(row))
    assert _tampered(log, (f"INSERT INTO audit ({columns}) VALUES ({marks})", tuple(row.values()))) is not None


def test_a_log_that_was_emptied_is_seen(log: Path) -> None:
    assert _tampered(log, ("DELETE FROM audit", ())) == 1
    assert _tampered(log, ("UPDATE counters SET value = 2 WHERE name = 'audit_head'", ())) == 3


async def test_appenders_wait_for_each_other_and_what_is_undone_leaves_no_gap(database_url: str) -> None:
    database = await open_database(database_url)

    async def append(number: int) -> None:
        async with database.engine.begin() as connection:
            await audit.append(connection, f"actor-{number}", "push", "acme/gw", {"n": number})
            if number % 5 == 0:
                raise ZeroDivisionError

    await asyncio.gather(*(append(number) for number in range(40)), return_exceptions=True)
    async with database.engine.connect() as connection:
        assert await audit.verify(connection) is None
        assert (await audit.head(connection))[0] == 32
        seqs = (await connection.execute(select(table.c.seq).order_by(table.c.seq))).scalars().all()
    assert seqs == list(range(1, 33))
    await database.close()


async def test_a_long_log_is_verified_page_by_page(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "_PAGE", 7)
    database = await open_database(database_url)
    async with database.engine.begin() as connection:
        for number in range(21):
            await audit.append(connection, "ada", "push", "x", {"n": number})
        assert await audit.verify(connection) is None
    async with database.engine.begin() as connection:
        await connection.execute(table.update().where(table.c.seq == 15).values(actor="eve"))
        assert await audit.verify(connection) == 15
    await database.close()


async def test_whatever_is_said_can_be_written(database_url: str) -> None:
    database = await open_database(database_url)
    async with database.engine.begin() as connection:
        await audit.append(connection, "a" * 500, "b\0c", "\ud800 ä" * 100, {"z": 1, "a": "\0", "n": None})
        row = (await connection.execute(select(table))).one()
        assert (len(row.actor), row.action, len(row.subject)) == (64, "b\N{REPLACEMENT CHARACTER}c", 160)
        assert row.detail == '{"a":"\\u0000","n":null,"z":1}'
        assert await audit.verify(connection) is None
        with pytest.raises(InputError, match="JSON"):
            await audit.append(connection, "a", "b", "c", {"x": object()})
        with pytest.raises(InputError, match="65536"):
            await audit.append(connection, "a", "b", "c", {"x": "y" * 70_000})
    await database.close()


async def test_a_row_that_took_the_number_is_an_error_and_not_overwritten(tmp_path: Path) -> None:
    database = await open_database(tmp_path / "c.db")
    row = {"seq": 1, "wall_ns": 1, "actor": "eve", "action": "x", "subject": "y", "detail": "{}", "previous": "", "hash": ""}
    async with database.engine.begin() as connection:
        await connection.execute(insert(table).values(row))
        with pytest.raises(IntegrityError):
            await audit.append(connection, "ada", "push", "x", {})
    await database.close()
