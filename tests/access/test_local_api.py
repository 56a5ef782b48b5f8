"""The local status API answers on a real Unix socket and shrugs off what is malformed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from edge_runtime.access.local import SOCKET_NAME, LocalApi, ask
from edge_runtime.errors import InputError


@contextlib.asynccontextmanager
async def serving(state: Path) -> AsyncIterator[None]:
    async def status(query: Mapping[str, str]) -> dict[str, object]:
        return {"ok": True, "query": dict(query)}

    async def refuse(query: Mapping[str, str]) -> None:
        raise InputError("expected `rule`")

    api = LocalApi(state / SOCKET_NAME, {("GET", "/status"): status, ("POST", "/refuse"): refuse})
    await api.start()
    try:
        yield
    finally:
        await api.stop()


async def test_a_question_is_answered(tmp_path: Path) -> None:
    async with serving(tmp_path):
        answer = await asyncio.to_thread(ask, tmp_path, "/status?a=1%20x")
    assert answer == {"ok": True, "query": {"a": "1 x"}}


async def test_a_refusal_and_an_unknown_path_are_told_apart_from_silence(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(InputError, match="expected `rule`"):
            await asyncio.to_thread(ask, tmp_path, "/refuse", "POST")
        with pytest.raises(InputError, match="no GET /nothing"):
            await asyncio.to_thread(ask, tmp_path, "/nothing")
    with pytest.raises(ConnectionError, match="no gateway is running"):
        ask(tmp_path, "/status")


@pytest.mark.parametrize("request_bytes", [b"\r\n\r\n", b"GET\r\n\r\n", b"\xff\xfe GET / HTTP\r\n\r\n", b"x" * 20_000, b""])
async def test_garbage_never_takes_the_server_down(tmp_path: Path, request_bytes: bytes) -> None:
    async with serving(tmp_path):
        reader, writer = await asyncio.open_unix_connection(tmp_path / SOCKET_NAME)
        writer.write(request_bytes)
        writer.write_eof()
        with contextlib.suppress(ConnectionError):
            await reader.read()
        writer.close()
        assert (await asyncio.to_thread(ask, tmp_path, "/status"))["ok"]


async def test_a_socket_left_by_a_killed_process_is_replaced(tmp_path: Path) -> None:
    (tmp_path / SOCKET_NAME).touch()
    async with serving(tmp_path):
        assert (await asyncio.to_thread(ask, tmp_path, "/status"))["ok"]
