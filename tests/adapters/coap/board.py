"""A view of a gateway that a test writes on, a server over it, and a peer that speaks in bytes."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import pytest

from adapters.coap.message import Code, Message, Option, Type, decode, encode, uint
from adapters.coap.server import CoapServer
from edge_runtime.clock import Clock, SystemClock
from edge_runtime.errors import InputError
from edge_runtime.types import ChannelInfo, ChannelKind, Sample, ServerSettings

CLIENT = shutil.which("coap-client-notls") or shutil.which("coap-client-openssl") or shutil.which("coap-client")
TANK = ChannelInfo("tank", ChannelKind.STREAMING, "cm", minimum=0, maximum=400)
DEADLINE_S = 20.0


class Board:
    """`GatewayView` over dictionaries."""

    def __init__(self) -> None:
        self.readings: dict[str, dict[str, Any]] = {}
        self.actuators: dict[str, dict[str, Any]] = {"valve": {"state": "closed", "cause": "", "decision": "", "outcome": "done"}}
        self.status: dict[str, Any] = {"gateway": "gw-1", "long": [f"line {number}" for number in range(400)]}
        self.decisions: dict[str, Any] = {"count": 0, "last": None}
        self._watchers: list[Callable[[str], None]] = []

    def documents(self) -> Mapping[str, Callable[[Mapping[str, str]], Any]]:
        return {
            "/status": lambda query: self.status,
            "/ledger": lambda query: {"offered": 0},
            "/explain": self._explain,
            "/readings": lambda query: _named(self.readings, query),
            "/decisions": lambda query: self.decisions,
            "/actuators": lambda query: _named(self.actuators, query),
        }

    def watch(self, changed: Callable[[str], None]) -> Callable[[], None]:
        self._watchers.append(changed)
        return lambda: self._watchers.remove(changed)

    @property
    def watched(self) -> int:
        return len(self._watchers)

    def read(self, name: str, value: float | None, unit: str = "degC") -> None:
        self.readings[name] = {"value": value, "unit": unit, "quality": "good" if value is not None else "bad"}
        self.tell(f"/readings/{name}")

    def tell(self, path: str) -> None:
        for changed in self._watchers:
            changed(path)

    def _explain(self, query: Mapping[str, str]) -> Any:
        if "rule" not in query:
            raise InputError("no rule ``")
        return {"rule": query["rule"]}


def _named(documents: Mapping[str, Any], query: Mapping[str, str]) -> Any:
    name = query.get("name")
    if name is not None and name not in documents:
        raise InputError(f"no `{name}`")
    return documents if name is None else documents[name]


@contextlib.asynccontextmanager
async def serving(board: Board, clock: Clock | None = None, **settings: Any) -> AsyncIterator[tuple[CoapServer, list[Sample]]]:
    """A server on a port of the kernel's choice, and what was pushed to it."""
    chosen = {"host": "127.0.0.1", "port": 0, "pushed": (TANK,), "notify_interval_s": 0.02, **settings}
    server, samples = CoapServer("coap_server", ServerSettings(**chosen), clock or SystemClock(), board), []
    await server.open()
    streaming = asyncio.create_task(server.stream(["tank"], samples.append))
    await asyncio.sleep(0)
    try:
        yield server, samples
    finally:
        streaming.cancel()
        await asyncio.wait([streaming])
        await server.close()


async def libcoap(server: CoapServer, path: str, *arguments: str) -> str:
    """What libcoap's client prints."""
    if CLIENT is None:
        pytest.skip("libcoap's client is not installed: apt install libcoap3-bin")
    process = await asyncio.create_subprocess_exec(
        CLIENT, "-B", "10", *arguments, f"coap://127.0.0.1:{server.port}{path}",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(process.communicate(), DEADLINE_S)
    return out.decode().strip()


class Peer(asyncio.DatagramProtocol):
    """One UDP endpoint that sends and takes messages as they are."""

    def __init__(self) -> None:
        self.got: asyncio.Queue[Message] = asyncio.Queue()
        self.transport: Any = None
        self.id = 1000

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.got.put_nowait(decode(data))

    def send(self, message: Message) -> None:
        self.transport.sendto(encode(message))

    async def next(self) -> Message:
        return await asyncio.wait_for(self.got.get(), DEADLINE_S)

    async def ask(
        self, path: str, code: Code = Code.GET, payload: bytes = b"", *options: tuple[int, bytes], token: bytes = b"t"
    ) -> Message:
        self.id += 1
        segments = [(int(Option.URI_PATH), part.encode()) for part in path.split("/")[1:]]
        self.send(Message(Type.CON, code, self.id, token, (*segments, *options), payload))
        while (got := await self.next()).id != self.id:
            pass
        return got

    async def observe(self, path: str, token: bytes = b"o", *options: tuple[int, bytes]) -> Message:
        return await self.ask(path, Code.GET, b"", (Option.OBSERVE, uint(0)), *options, token=token)


@contextlib.asynccontextmanager
async def peer_of(server: CoapServer) -> AsyncIterator[Peer]:
    peer = Peer()
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: peer, remote_addr=("127.0.0.1", server.port))
    try:
        yield peer
    finally:
        transport.close()
