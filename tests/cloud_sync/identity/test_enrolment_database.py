"""Enrolment on SQLite and PostgreSQL: what must happen once happens once, whoever races."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from sqlalchemy import func, select

from cloud_sync.controller import audit, enrolment
from cloud_sync.controller.authority import Issued
from cloud_sync.controller.context import Context
from cloud_sync.controller.engine import open_database
from cloud_sync.controller.enrolment import EnrolmentRefused
from cloud_sync.controller.schema import certificates, gateways
from cloud_sync.controller.settings import Settings
from cloud_sync.controller.setup import open_authority
from cloud_sync.controller.signing import Repository
from cloud_sync.join import request_for
from edge_runtime.errors import InputError


@pytest.fixture
async def context(copy_controller: Callable[[Path], Settings], tmp_path: Path, database_url: str) -> AsyncIterator[Context]:
    settings = copy_controller(tmp_path / "controller")
    database = await open_database(database_url)
    yield Context(settings, database, Repository.open(settings.folder), open_authority(settings), lambda _gateway: None)
    await database.close()


async def outcomes(*joins: object) -> tuple[list[Issued], list[EnrolmentRefused]]:
    done = await asyncio.gather(*joins, return_exceptions=True)  # type: ignore[call-overload]
    assert not [one for one in done if not isinstance(one, Issued | EnrolmentRefused)], done
    return [one for one in done if isinstance(one, Issued)], [one for one in done if isinstance(one, EnrolmentRefused)]


async def test_one_token_raced_by_many_keys(context: Context, tmp_path: Path) -> None:
    token = (await enrolment.create_token(context, "ada")).text
    requests = [request_for(tmp_path / f"{number}.key", f"gw-{number}") for number in range(10)]
    issued, refused = await outcomes(*(enrolment.join(context, token, csr) for csr in requests))
    assert (len(issued), {one.reason.value for one in refused}) == (1, {"token"})


async def test_one_token_asked_at_once_by_one_key(context: Context, tmp_path: Path) -> None:
    token = (await enrolment.create_token(context, "ada")).text
    csr = request_for(tmp_path / "a.key", "gw-1")
    issued, refused = await outcomes(*(enrolment.join(context, token, csr) for _ in range(10)))
    assert refused == []
    assert len({one.serial for one in issued}) == 1


async def test_one_name_raced_by_many_tokens(context: Context, tmp_path: Path) -> None:
    tokens = [(await enrolment.create_token(context, "ada")).text for _ in range(6)]
    requests = [request_for(tmp_path / f"{number}.key", "gw-1") for number in range(6)]
    issued, refused = await outcomes(*(enrolment.join(context, *pair) for pair in zip(tokens, requests, strict=True)))
    assert (len(issued), {one.reason.value for one in refused}) == (1, {"name_taken"})
    async with context.database.engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(certificates)) == 1
        assert await connection.scalar(select(func.count()).select_from(gateways)) == 1
        assert await audit.verify(connection) is None


async def test_renewing_at_once_gives_one_certificate(context: Context, tmp_path: Path) -> None:
    import ssl

    token = (await enrolment.create_token(context, "ada")).text
    first = await enrolment.join(context, token, request_for(tmp_path / "a.key", "gw-1"))
    context.now_ns = lambda: time.time_ns() + 6 * 86_400 * 10**9
    der = ssl.PEM_cert_to_DER_cert(first.pem)
    issued, _ = await outcomes(*(enrolment.renew(context, der) for _ in range(8)))
    assert len({one.serial for one in issued} - {first.serial}) == 1
    assert {one.key_sha256 for one in issued} == {first.key_sha256}


async def test_a_token_may_be_withdrawn(context: Context, tmp_path: Path) -> None:
    made = await enrolment.create_token(context, "ada", "gw-1")
    await enrolment.withdraw_token(context, "ada", made.id)
    with pytest.raises(EnrolmentRefused, match="expired"):
        await enrolment.join(context, made.text, request_for(tmp_path / "a.key", "gw-1"))
    with pytest.raises(InputError, match="no unused join token"):
        await enrolment.withdraw_token(context, "ada", "none")
    assert [row["id"] for row in await enrolment.list_tokens(context)] == [made.id]


@pytest.mark.parametrize(
    ("gateway", "hours"), [("a/b", 1), ("controller", 1), ("gw-1", 0), ("gw-1", -1), ("gw-1", 1e9), ("gw-1", float("nan"))]
)
async def test_tokens_that_make_no_sense(context: Context, gateway: str, hours: float) -> None:
    with pytest.raises(InputError):
        await enrolment.create_token(context, "ada", gateway, hours)


async def test_a_token_for_any_name_takes_over_none(context: Context) -> None:
    with pytest.raises(InputError, match="name it"):
        await enrolment.create_token(context, "ada", rejoin=True)
