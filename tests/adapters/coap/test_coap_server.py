"""The gateway's own CoAP resources, asked by libcoap's client and by peers that are less polite."""

from __future__ import annotations

import asyncio
import json
import random
import socket

import pytest

from adapters.coap.message import Code, Message, Option, Type, encode, uint
from adapters.coap.server import CoapServer
from edge_runtime.clock import SystemClock, VirtualClock
from edge_runtime.errors import AdapterDisconnected
from edge_runtime.types import Quality, ServerSettings
from tests.adapters.coap.board import DEADLINE_S, TANK, Board, Peer, libcoap, peer_of, serving

REQUESTS = [
    b"\x40\x01\x00\x01\xb6status",
    b"\x41\x01\x00\x02k\x60\x58readings\x04temp",
    b"\x42\x03\x00\x03tk\xb6ingest\x04tank\xff12.5",
    b"\x40\x01\x00\x04\xbb.well-known\x04core",
    b"\x50\x01\x00\x05\xb6status\xc1\x1a",
    b"\x40\x00\x00\x06",
    b"\x70\x00\x00\x07",
]


@pytest.fixture
def board() -> Board:
    made = Board()
    made.read("temp", 21.5)
    return made


async def until(condition: object, *arguments: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(DEADLINE_S):
        while not condition(*arguments):
            await asyncio.sleep(0)


# -- libcoap ------------------------------------------------------------------------------------------------------------------------


async def test_libcoap_reads_the_resources(board: Board) -> None:
    async with serving(board) as (server, _):
        links = await libcoap(server, "/.well-known/core")
        assert '</readings/temp>;rt="edge.reading";ct=0;obs' in links.split(",")
        assert '</ingest/tank>;rt="edge.ingest"' in links.split(",")
        assert await libcoap(server, "/.well-known/core?rt=edge.ingest") == '</ingest/tank>;rt="edge.ingest"'
        assert await libcoap(server, "/readings/temp") == "21.5 degC"
        assert json.loads(await libcoap(server, "/readings/temp", "-A", "50"))["quality"] == "good"
        assert json.loads(await libcoap(server, "/readings")) == board.readings
        assert await libcoap(server, "/actuators/valve") == "closed"
        assert json.loads(await libcoap(server, "/explain?rule=r1")) == {"rule": "r1"}
        assert await libcoap(server, "/readings/temp", "-N") == "21.5 degC"


@pytest.mark.parametrize("block", ["16", "64", "1024"])
async def test_libcoap_fetches_a_long_document_in_blocks(board: Board, block: str) -> None:
    async with serving(board) as (server, _):
        assert json.loads(await libcoap(server, "/status", "-b", block)) == board.status
        assert server.health().counters["requests"] >= len(json.dumps(board.status)) // (2 * int(block))


@pytest.mark.parametrize(
    ("path", "arguments", "answer"),
    [
        ("/nothing", (), "4.04 no /nothing"),
        ("/readings/pressure", (), "4.04 no `pressure`"),
        ("/ingest/other", ("-m", "put", "-e", "1"), "4.04 no reading is taken for /ingest/other (known: tank)"),
        ("/status", ("-m", "put", "-e", "1"), "4.05"),
        ("/actuators/valve", ("-m", "put", "-e", "open"), "4.05 expected GET"),
        ("/ingest/tank", (), "4.05 expected POST or PUT"),
        ("/status", ("-A", "41"), "4.06 expected Accept to be one of 50, got 41"),
        ("/explain", (), "4.00 no rule"),
        ("/ingest/tank", ("-m", "put", "-e", "401"), "4.00 tank: expected 0 to 400 cm, got 401"),
        ("/ingest/tank", ("-m", "put", "-e", "nan"), "4.00 expected a number"),
        ("/ingest/tank", ("-m", "put", "-e", "full"), "4.00 expected a number as text, got 'full'"),
        ("/ingest/tank?quality=fine", ("-m", "put", "-e", "1"), "4.00 quality: expected good, uncertain, bad, got `fine`"),
        ("/ingest/tank", ("-m", "put", "-t", "42", "-e", "1"), "4.15 content format 42 is not known"),
    ],
)
async def test_libcoap_is_refused_with_the_reason(board: Board, path: str, arguments: tuple[str, ...], answer: str) -> None:
    async with serving(board) as (server, samples):
        assert (await libcoap(server, path, *arguments)).startswith(answer)
        assert server.health().counters["refused"] == 1
        assert samples == []


async def test_libcoap_pushes_readings(board: Board) -> None:
    async with serving(board) as (server, samples):
        assert await libcoap(server, "/ingest/tank", "-m", "put", "-e", "120.5") == ""
        assert await libcoap(server, "/ingest/tank?quality=uncertain", "-m", "post", "-t", "50", "-e", '{"value": 7}') == ""
        assert await libcoap(server, "/ingest/tank", "-m", "put", "-t", "110", "-e", '[{"n": "tank", "v": 8}]') == ""
        assert [(sample.value, sample.quality) for sample in samples] == [
            (120.5, Quality.GOOD),
            (7.0, Quality.UNCERTAIN),
            (8.0, Quality.GOOD),
        ]


async def test_what_is_too_large_is_refused_at_its_first_block(board: Board) -> None:
    async with serving(board) as (server, samples):
        assert (await libcoap(server, "/ingest/tank", "-m", "put", "-e", "1" * 1100)).startswith("4.13 expected one number")
        assert (await libcoap(server, "/ingest/tank", "-m", "put", "-b", "64", "-e", "1" * 200)).startswith("4.13")
        assert samples == []


async def test_libcoap_observes(board: Board) -> None:
    async with serving(board) as (server, _):
        observing = asyncio.create_task(libcoap(server, "/readings/temp", "-s", "3"))
        await until(lambda: server.health().counters["observers"] == 1)
        for value in (22.5, 23.5):
            notified = server.health().counters["notifications"]
            board.read("temp", value)
            await until(lambda notified=notified: server.health().counters["notifications"] > notified)
        assert (await observing).replace("\n", "") == "21.5 degC22.5 degC23.5 degC"
        await until(lambda: server.health().counters["observers"] == 0)


# -- messages -----------------------------------------------------------------------------------------------------------------------


async def test_a_message_that_comes_twice_counts_once(board: Board) -> None:
    async with serving(board) as (server, samples), peer_of(server) as peer:
        path = ((Option.URI_PATH, b"ingest"), (Option.URI_PATH, b"tank"))
        for type_ in (Type.CON, Type.NON):
            samples.clear()
            message = Message(type_, Code.PUT, 7 + type_, b"x", path, b"5")
            peer.send(message)
            peer.send(message)
            assert await peer.next() == await peer.next()
            assert [sample.value for sample in samples] == [5.0]
        assert server.health().counters["duplicates"] == 2


async def test_blocks_of_one_transfer_are_of_one_content(board: Board) -> None:
    async with serving(board) as (server, _), peer_of(server) as peer:
        first = await peer.ask("/status", Code.GET, b"", (Option.BLOCK2, uint(0 << 4 | 6)))
        board.status = {"other": "x" * 5000}
        second = await peer.ask("/status", Code.GET, b"", (Option.BLOCK2, uint(1 << 4 | 6)))
        assert first.values(Option.ETAG) == second.values(Option.ETAG)
        again = await peer.ask("/status", Code.GET, b"", (Option.BLOCK2, uint(0 << 4 | 6)))
        assert again.values(Option.ETAG) != first.values(Option.ETAG)
        beyond = await peer.ask("/status", Code.GET, b"", (Option.BLOCK2, uint(99 << 4 | 6)))
        assert beyond.code == Code.BAD_REQUEST
        reserved = await peer.ask("/status", Code.GET, b"", (Option.BLOCK2, uint(7)))
        assert reserved.code == Code.BAD_REQUEST


@pytest.mark.parametrize(
    ("option", "code"),
    [
        ((Option.PROXY_URI, b"coap://elsewhere/"), Code.NO_PROXY),
        ((9, b"?"), Code.BAD_OPTION),
        ((Option.BLOCK2, bytes(5)), Code.BAD_OPTION),
        ((Option.OBSERVE, bytes(5)), Code.BAD_OPTION),
        ((Option.ACCEPT, bytes(5)), Code.BAD_OPTION),
        ((Option.URI_QUERY, b"\xff"), Code.BAD_REQUEST),
        ((Option.URI_PATH, b"\xff"), Code.BAD_REQUEST),
        ((258, b"elective"), Code.CONTENT),
    ],
)
async def test_options_are_judged(board: Board, option: tuple[int, bytes], code: Code) -> None:
    async with serving(board) as (server, _), peer_of(server) as peer:
        answer = await peer.ask("/readings/temp", Code.GET, b"", option)
        assert answer.code == code, answer
        assert answer.type is Type.ACK


async def test_an_observer_that_resets_is_forgotten(board: Board) -> None:
    async with serving(board) as (server, _), peer_of(server) as peer:
        assert (await peer.observe("/readings/temp")).uint(Option.OBSERVE) is not None
        board.read("temp", 22.0)
        told = await peer.next()
        assert (told.type, told.token, told.payload) == (Type.NON, b"o", b"22 degC")
        peer.send(Message(Type.RST, Code.EMPTY, told.id))
        await until(lambda: server.health().counters["observers"] == 0)


async def test_an_observer_may_leave(board: Board) -> None:
    async with serving(board) as (server, _), peer_of(server) as peer:
        await peer.observe("/decisions")
        assert server.health().counters["observers"] == 1
        answer = await peer.ask("/decisions", Code.GET, b"", (Option.OBSERVE, uint(1)), token=b"o")
        assert answer.uint(Option.OBSERVE) is None
        assert server.health().counters["observers"] == 0


async def test_a_busy_resource_is_told_at_its_interval_and_at_its_newest(board: Board) -> None:
    async with serving(board, notify_interval_s=0.3) as (server, _), peer_of(server) as peer:
        await peer.observe("/readings/temp")
        for value in range(200):
            board.read("temp", float(value))
        await asyncio.sleep(0)
        first, numbers = await peer.next(), []
        numbers.append(first.uint(Option.OBSERVE))
        for value in range(200, 400):
            board.read("temp", float(value))
        second = await peer.next()
        numbers.append(second.uint(Option.OBSERVE))
        assert (first.payload, second.payload) == (b"199 degC", b"399 degC")
        assert numbers == sorted(numbers)
        assert server.health().counters["notifications"] == 2


async def test_every_sixteenth_notification_is_confirmed_and_nothing_newer_is_sent_before(board: Board) -> None:
    async with serving(board, notify_interval_s=0.0001) as (server, _), peer_of(server) as peer:
        await peer.observe("/readings/temp")
        for value in range(15):
            board.read("temp", float(value))
            assert (await peer.next()).type is Type.NON
        board.read("temp", 15.0)
        confirmable = await peer.next()
        assert confirmable.type is Type.CON
        board.read("temp", 16.0)
        assert await peer.ask("/readings/temp")
        assert peer.got.empty()
        peer.send(Message(Type.ACK, Code.EMPTY, confirmable.id))
        assert (await peer.next()).payload == b"16 degC"


async def test_observers_are_limited_and_the_next_is_answered_once(board: Board) -> None:
    async with serving(board, max_observers=2) as (server, _), peer_of(server) as peer:
        tokens = [bytes([number]) for number in range(4)]
        answers = [await peer.observe("/readings/temp", token) for token in tokens]
        assert [answer.uint(Option.OBSERVE) is not None for answer in answers] == [True, True, False, False]
        assert all(answer.payload == b"21.5 degC" for answer in answers)
        assert (await peer.observe("/readings/temp", tokens[1])).uint(Option.OBSERVE) is not None
        assert server.health().counters["observers_refused"] == 2


async def test_the_end_of_a_resource_is_the_last_that_is_told(board: Board) -> None:
    async with serving(board) as (server, _), peer_of(server) as peer:
        await peer.observe("/readings/temp")
        del board.readings["temp"]
        board.tell("/readings/temp")
        assert (await peer.next()).code == Code.NOT_FOUND
        assert server.health().counters["observers"] == 0


async def test_a_flood_of_requests_takes_a_bounded_share_of_time(board: Board) -> None:
    class Slow(VirtualClock):
        """Every look at it takes 10 ms."""

        def monotonic_ns(self) -> int:
            self.advance(0.01)
            return super().monotonic_ns()

    async with serving(board, clock=Slow()) as (server, _), peer_of(server) as peer:
        for number in range(1000):
            peer.send(Message(Type.CON, Code.GET, number, b"", ((Option.URI_PATH, b"ledger"),)))
            if number % 50 == 49:
                await until(lambda number=number: server.health().counters["datagrams"] == number + 1)
        counters = server.health().counters
        assert counters["requests"] + counters["overload_dropped"] == 1000
        assert 100 < counters["requests"] < 700


# -- garbage ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_garbage_is_counted_and_answering_goes_on(board: Board, seed: int) -> None:
    choice = random.Random(seed)
    async with serving(board, clock=VirtualClock()) as (server, _):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
            link.connect(("127.0.0.1", server.port))
            for number in range(3000):
                data = bytearray(choice.choice(REQUESTS) if number % 3 else choice.randbytes(choice.randrange(200)))
                for _ in range(choice.randrange(4)):
                    if data:
                        data[choice.randrange(len(data))] = choice.randrange(256)
                link.send(data[: choice.randrange(len(data) + 1)] if number % 5 == 0 else data)
                if number % 50 == 49:
                    await until(lambda number=number: server.health().counters["datagrams"] == number + 1)
        counters = server.health().counters
        assert counters["malformed"] > 1000
        assert counters["requests"] + counters["duplicates"] > 500
        assert counters["failed"] == 0
        async with peer_of(server) as peer:
            assert (await peer.ask("/readings/temp")).payload == b"21.5 degC"


async def test_confirmable_garbage_is_reset_and_a_ping_is_a_ping(board: Board) -> None:
    async with serving(board) as (server, _), peer_of(server) as peer:
        for data in (b"\x40\x00\x12\x34", b"\x40\x45\x12\x34", b"\x40\x20\x12\x34", b"\x40\x01\x12\x34\xf0"):
            peer.transport.sendto(data)
            assert await peer.next() == Message(Type.RST, Code.EMPTY, 0x1234)
        assert server.health().counters["malformed"] == 3


async def test_a_failure_within_is_told_and_the_next_request_answered(board: Board, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(board) as (server, _), peer_of(server) as peer:
        board.status = {"cannot": object()}
        assert (await peer.ask("/status")).code == Code.INTERNAL_ERROR
        assert "a CoAP request failed" in caplog.text
        assert (await peer.ask("/readings/temp")).code == Code.CONTENT
        assert server.health().counters["failed"] == 1


# -- as an adapter ------------------------------------------------------------------------------------------------------------------


async def test_a_taken_port_is_told_with_who_to_ask(board: Board) -> None:
    async with serving(board) as (server, _):
        other = CoapServer("coap_server", ServerSettings(host="127.0.0.1", port=server.port), SystemClock(), board)
        with pytest.raises(AdapterDisconnected, match=f"cannot listen on 127.0.0.1:{server.port}: another process has it; .*ss -ulpn"):
            await other.open()
        assert not other.health().ok
        absent = CoapServer("coap_server", ServerSettings(host="192.0.2.1", port=5683), SystemClock(), board)
        with pytest.raises(AdapterDisconnected, match="this machine has no such address"):
            await absent.open()


async def test_a_closed_server_leaves_nothing_and_opens_again(board: Board) -> None:
    before = asyncio.all_tasks()
    async with serving(board, port=0) as (server, _), peer_of(server) as peer:
        await peer.observe("/readings/temp")
        board.read("temp", 1.0)
        await server.close()
        await server.close()
        assert board.watched == 0
        assert not server.health().ok
        await server.open()
        async with peer_of(server) as other:
            assert (await other.ask("/readings/temp")).payload == b"1 degC"
    assert asyncio.all_tasks() == before


async def test_a_push_that_nothing_listens_to_is_told(board: Board) -> None:
    server = CoapServer("coap_server", ServerSettings(host="127.0.0.1", port=0, pushed=(TANK,)), SystemClock(), board)
    await server.open()
    try:
        async with peer_of(server) as peer:
            assert (await peer.ask("/ingest/tank", Code.PUT, b"5")).code == Code.UNAVAILABLE
    finally:
        await server.close()


async def test_ipv6_is_served_where_there_is_any(board: Board) -> None:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    async with serving(board, host="::1") as (server, _):
        peer = Peer()
        transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(lambda: peer, remote_addr=("::1", server.port))
        assert (await peer.ask("/readings/temp")).payload == b"21.5 degC"
        transport.close()


def test_the_requests_that_garbage_is_made_of_are_whole() -> None:
    message = Message(Type.CON, Code.GET, 1, b"", ((Option.URI_PATH, b"status"),))
    assert encode(message) == REQUESTS[0]
