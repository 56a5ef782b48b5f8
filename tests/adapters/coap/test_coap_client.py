"""Our CoAP client against a server that is right, and against peers that are not: it ends at once and keeps no more than it may."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from adapters.coap.client import CoapClient
from adapters.coap.device import CoapDevice, ResourceSpec
from adapters.coap.message import Code, Message, Option, Type, decode, encode, uint
from edge_runtime.errors import AdapterDisconnected, AdapterError
from tests.adapters.coap.board import DEADLINE_S, Board, serving

Answer = Callable[[Message], Message | None]


class _Script(asyncio.DatagramProtocol):
    """Answers every message by a function; None is silence."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Message] = []
        self.transport: Any = None
        self.address: tuple[Any, ...] = ()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        self.requests.append(decode(data))
        self.address = addr
        answer = self.answer(self.requests[-1])
        if answer is not None:
            self.transport.sendto(encode(answer), addr)


@contextlib.asynccontextmanager
async def scripted(answer: Answer, timeout_s: float = DEADLINE_S) -> AsyncIterator[tuple[CoapClient, _Script]]:
    script = _Script(answer)
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: script, local_addr=("127.0.0.1", 0))
    client = CoapClient(f"coap://127.0.0.1:{transport.get_extra_info('sockname')[1]}", timeout_s)
    await client.open()
    try:
        yield client, script
    finally:
        await client.close()
        transport.close()


def content(request: Message, payload: bytes, *options: tuple[int, bytes]) -> Message:
    return Message(Type.ACK, Code.CONTENT, request.id, request.token, options, payload)


async def test_a_long_answer_is_fetched_whole() -> None:
    board = Board()
    async with serving(board) as (server, _):
        client = CoapClient(f"coap://127.0.0.1:{server.port}", DEADLINE_S)
        await client.open()
        assert json.loads((await client.get("/status")).payload) == board.status
        assert len((await client.get("/status", blockwise=False)).payload) == 1024
        await client.close()


async def test_an_observation_tells_the_newest_and_leaves_nothing() -> None:
    board = Board()
    board.read("temp", 0.0)
    async with serving(board) as (server, _):
        device = CoapDevice("d", f"coap://127.0.0.1:{server.port}", DEADLINE_S, {"t": ResourceSpec(path="/readings/temp", observe=True)})
        await device.open()
        before, got = asyncio.all_tasks(), asyncio.Queue()  # type: ignore[var-annotated]
        streaming = asyncio.create_task(device.stream(["t"], got.put_nowait))
        for value in (0.0, 1.0, 2.0):
            board.read("temp", value)
            while (await asyncio.wait_for(got.get(), DEADLINE_S)).value != value:
                pass
        streaming.cancel()
        await asyncio.wait([streaming])
        assert asyncio.all_tasks() == before
        async with asyncio.timeout(DEADLINE_S):
            while server.health().counters["observers"]:  # until one has to be acknowledged
                board.read("temp", 3.0)
                await asyncio.sleep(0)
        await device.close()


@pytest.mark.parametrize("moment", range(8))
async def test_a_request_that_is_cancelled_ends_at_once_whenever_that_is(moment: int) -> None:
    async with scripted(lambda request: None) as (client, _):
        before = asyncio.all_tasks()
        task = asyncio.create_task(client.get("/x"))
        for _ in range(moment):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert asyncio.all_tasks() == before


async def test_an_answer_without_end_is_given_up() -> None:
    def endless(request: Message) -> Message:
        number = (request.uint(Option.BLOCK2) or 0) >> 4
        return content(request, bytes(1024), (Option.BLOCK2, uint(number << 4 | 8 | 6)))

    async with scripted(endless) as (client, script):
        with pytest.raises(AdapterError, match="expected an answer of at most 1048576 bytes"):
            await client.get("/x")
        assert len(script.requests) == 1024


@pytest.mark.parametrize(
    "second",
    [
        (Option.BLOCK2, uint(5 << 4 | 6)),  # another block than asked for
        (Option.ETAG, b"other"),  # of another content
    ],
)
async def test_blocks_that_do_not_belong_together_are_refused(second: tuple[int, bytes]) -> None:
    def changing(request: Message) -> Message:
        if not (request.uint(Option.BLOCK2) or 0) >> 4:
            return content(request, bytes(1024), (Option.BLOCK2, uint(8 | 6)), (Option.ETAG, b"one"))
        return content(request, b"rest", *{Option.BLOCK2: uint(1 << 4 | 6), Option.ETAG: b"one", **dict([second])}.items())

    async with scripted(changing) as (client, _):
        with pytest.raises(AdapterError, match="changed, or broke off"):
            await client.get("/x")


async def test_silence_is_a_disconnection_and_the_next_request_goes_out() -> None:
    spoken: list[Message] = []

    def late(request: Message) -> Message | None:
        spoken.append(request)
        return None if b"x" in request.values(Option.URI_PATH) else content(request, b"1")

    async with scripted(late, timeout_s=1.0) as (client, _):
        with pytest.raises(AdapterDisconnected, match=r"did not answer within 1 s"):
            await client.get("/x")
        assert (await client.get("/y")).payload == b"1"
    assert client.counters()["timeouts"] == 1


async def test_an_old_notification_is_passed_over() -> None:
    async with scripted(lambda request: content(request, b"0", (Option.OBSERVE, uint(10)))) as (client, script):
        observed: list[bytes] = []

        async def observe() -> None:
            async for answer in client.observe("/x"):
                observed.append(answer.payload)
                if answer.payload == b"end":
                    return

        task = asyncio.create_task(observe())
        async with asyncio.timeout(DEADLINE_S):
            while not observed:
                await asyncio.sleep(0)
            token = script.requests[0].token
            for id_, (number, payload) in enumerate([(12, b"a"), (11, b"old"), (13, b"end")], 100):
                script.transport.sendto(encode(Message(Type.NON, Code.CONTENT, id_, token, ((6, uint(number)),), payload)), script.address)
            await task
        assert observed == [b"0", b"a", b"end"]
