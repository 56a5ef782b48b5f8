"""A TCP proxy that misbehaves on purpose: resets, delays, truncates, swallows. For tests of anything that keeps a connection."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field

_CHUNK = 16384


@dataclass(slots=True)
class ChaosFaults:
    """What goes wrong now; change it at any time. All times in seconds, drawn uniformly from (low, high)."""

    reset_after_s: tuple[float, float] | None = None  # each connection is reset when that time is over
    delay_s: tuple[float, float] = (0.0, 0.0)  # before each chunk is passed on
    truncate: bool = False  # a reset passes half of the chunk in hand first
    refuse: bool = False  # new connections are reset at once
    swallow: bool = False  # bytes are taken and go nowhere


@dataclass(slots=True)
class ChaosProxy:
    """Listens on the loopback and passes bytes to `target_port`. An async context manager."""

    target_port: int
    faults: ChaosFaults = field(default_factory=ChaosFaults)
    seed: int = 0
    port: int = 0
    connections: int = 0
    resets: int = 0
    _server: asyncio.Server | None = None
    _links: set[asyncio.Task[None]] = field(default_factory=set)
    _draw: random.Random = field(default_factory=random.Random)

    async def __aenter__(self) -> ChaosProxy:
        self._draw.seed(self.seed)
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._server is not None
        self._server.close()
        self.cut()
        await asyncio.gather(*self._links, return_exceptions=True)
        await self._server.wait_closed()

    def cut(self) -> None:
        """Resets every connection now."""
        for link in self._links:
            link.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        try:
            await self._link(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass  # a cut, or one end went away by itself
        finally:
            self._links.discard(link)

    async def _link(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        ends = [writer]
        try:
            if self.faults.refuse:
                return
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.target_port)
            ends.append(far_writer)
            async with asyncio.timeout(self._lifetime_s()):
                ways = [self._pass(reader, far_writer), self._pass(far_reader, writer)]
                await _first_to_end(ways)
        except TimeoutError:
            self.resets += 1
        finally:
            for end in ends:
                _reset(end)

    def _lifetime_s(self) -> float | None:
        return None if self.faults.reset_after_s is None else self._draw.uniform(*self.faults.reset_after_s)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while chunk := await reader.read(_CHUNK):
            if self.faults.swallow:
                continue
            try:
                await asyncio.sleep(self._draw.uniform(*self.faults.delay_s))
            except asyncio.CancelledError:
                if self.faults.truncate:
                    writer.write(chunk[: len(chunk) // 2])
                raise
            writer.write(chunk)
            await writer.drain()


async def _first_to_end(ways: Sequence[Coroutine[None, None, None]]) -> None:
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _reset(writer: asyncio.StreamWriter) -> None:
    """RST instead of FIN."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
