"""A real gateway process speaks to its service manager: ready, alive, reloading, stopping."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Site

WAIT_S = 30.0


@pytest.fixture
def manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The manager's end of NOTIFY_SOCKET, which asks to be told every second at least."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as heard:
        heard.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        monkeypatch.setenv("WATCHDOG_USEC", "1000000")
        yield heard


async def told(manager: socket.socket, wanted: str) -> list[str]:
    """All messages up to the first that has this line."""
    messages: list[str] = []
    async with asyncio.timeout(WAIT_S):
        while not messages or wanted not in messages[-1].split("\n"):
            messages.append((await asyncio.get_running_loop().sock_recv(manager, 4096)).decode())
    return messages


async def test_ready_alive_reloading_and_stopping(site: Site, manager: socket.socket) -> None:
    await site.start_gateway()
    assert "READY=1" not in "\n".join((await told(manager, "READY=1"))[:-1])
    for _ in range(3):
        await told(manager, "WATCHDOG=1")
    assert any(message.startswith("STATUS=") for message in await told(manager, "WATCHDOG=1"))

    os.kill(site.processes["gateway"].pid, signal.SIGHUP)
    assert "MONOTONIC_USEC=" in (await told(manager, "RELOADING=1"))[-1]
    await told(manager, "READY=1")

    stopping = asyncio.ensure_future(site.stop("gateway"))
    await told(manager, "STOPPING=1")
    await stopping
