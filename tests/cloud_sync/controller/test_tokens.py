"""API tokens: roles, life, and that a wrong one of any kind is nobody's."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud_sync.controller.engine import Database, open_database
from cloud_sync.controller.tokens import Role, authenticate, create_token, list_tokens, revoke_token
from edge_runtime.errors import InputError

DAY_NS = 86_400 * 10**9


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = await open_database(tmp_path / "tokens.sqlite")
    yield made
    await made.close()


async def test_a_token_says_who_asks(database: Database) -> None:
    async with database.engine.begin() as connection:
        token = await create_token(connection, "anna", Role.OPERATOR)
        found = await authenticate(connection, token, time.time_ns())
    assert found is not None
    assert (found.name, found.role) == ("anna", Role.OPERATOR)


async def test_only_a_hash_is_kept(database: Database, tmp_path: Path) -> None:
    async with database.engine.begin() as connection:
        token = await create_token(connection, "anna", Role.VIEWER)
    await database.close()
    secret = token.rsplit(".", 1)[1].encode()
    assert not any(secret in path.read_bytes() for path in tmp_path.iterdir())


@pytest.mark.parametrize(
    "spoil", [lambda t: t[:-1], lambda t: t + "x", lambda t: "erx1" + t[4:], lambda t: "", lambda t: "..", lambda t: "a" * 9999]
)
async def test_a_spoiled_token_is_nobodys(database: Database, spoil) -> None:  # type: ignore[no-untyped-def]
    async with database.engine.begin() as connection:
        token = await create_token(connection, "anna", Role.APPROVER)
        assert await authenticate(connection, spoil(token), time.time_ns()) is None


async def test_a_token_ends_by_time_and_by_hand(database: Database) -> None:
    async with database.engine.begin() as connection:
        token = await create_token(connection, "anna", Role.VIEWER, days=1)
        assert await authenticate(connection, token, time.time_ns() + 2 * DAY_NS) is None
        await revoke_token(connection, (await list_tokens(connection))[0].id, time.time_ns())
        assert await authenticate(connection, token, time.time_ns()) is None
        with pytest.raises(InputError, match="no token has the id"):
            await revoke_token(connection, "nobody", time.time_ns())


@pytest.mark.parametrize(("name", "days"), [("", 1), ("a" * 65, 1), ("a\nb", 1), ("a", 0), ("a", 99999)])
async def test_a_token_needs_a_name_that_can_be_shown_and_a_life(database: Database, name: str, days: float) -> None:
    async with database.engine.begin() as connection:
        with pytest.raises(InputError):
            await create_token(connection, name, Role.VIEWER, days)


def test_each_role_includes_those_before_it() -> None:
    assert [[a.includes(b) for b in Role] for a in Role] == [[True, False, False], [True, True, False], [True, True, True]]
