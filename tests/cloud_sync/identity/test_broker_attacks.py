"""Attacks on the broker that `controller init` configures. What counts is what is delivered: mosquitto grants what it never delivers."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from cloud_sync.controller.authority import Authority
from cloud_sync.controller.settings import CONTROLLER
from cloud_sync.mqtt import MqttSession
from edge_runtime.errors import DeadlineExceeded, TransportError

ROOT = "fl/v1/acme/g"
Until = Callable[[Callable[[], object]], Any]


@asynccontextmanager
async def connected(broker: Any, *names: str) -> AsyncIterator[list[MqttSession]]:
    sessions = [await broker.connect(name) for name in names]
    try:
        yield sessions
    finally:
        for session in sessions:
            await session.close()


async def heard_by(session: MqttSession, topic_filter: str, only: bytes = b"") -> list[str]:
    """Topics of what comes, `only` with this payload."""
    heard: list[str] = []

    def hear(topic: str, payload: bytes) -> None:
        if payload == only or not only:
            heard.append(topic)

    with contextlib.suppress(TransportError):
        await session.subscribe(topic_filter, hear)
    return heard


@pytest.mark.parametrize(
    "topic_filter", [f"{ROOT}/gwB/#", f"{ROOT}/+/dn/#", "#", "+/+/+/+/+/+/+", "$share/x/#", f"$share/x/{ROOT}/gwB/dn/#", "$SYS/#"]
)
async def test_a_gateway_hears_nothing_of_others_whatever_it_subscribes(broker: Any, topic_filter: str, until: Until) -> None:
    async with connected(broker, CONTROLLER, "gwA", "gwB") as (controller, rogue, victim):
        await controller.publish(f"{ROOT}/gwB/dn/desired", b"kept", retain=True)
        heard = await heard_by(rogue, topic_filter)
        own = await heard_by(rogue, f"{ROOT}/gwA/dn/#")
        theirs = await heard_by(victim, f"{ROOT}/gwB/dn/#")
        await controller.publish(f"{ROOT}/gwB/dn/ack", b"secret")
        await victim.publish(f"{ROOT}/gwB/up/tlm", b"secret")
        await controller.publish(f"{ROOT}/gwA/dn/end", b"")
        await until(lambda: f"{ROOT}/gwA/dn/end" in own + heard)
        await until(lambda: len(theirs) == 2)
        assert [topic for topic in heard + own if "gwB" in topic or topic.startswith("$SYS")] == []


@pytest.mark.parametrize(
    "topic",
    [
        f"{ROOT}/gwB/up/tlm",
        f"{ROOT}/gwB/dn/desired",
        f"{ROOT}/gwA/dn/desired",
        "fl/v1/other/g/gwA/up/tlm",
        "$SYS/broker/x",
        "anything",
        f"{ROOT}/gwB/up/rsp/controller",  # where a command may ask a gateway to answer: a deputy that is confused reaches nobody
        "fl/v1/acme/c/controller/rsp",
    ],
)
@pytest.mark.parametrize("qos", [0, 1])
async def test_what_a_gateway_publishes_to_others_is_not_delivered(broker: Any, topic: str, qos: int, until: Until) -> None:
    async with connected(broker, CONTROLLER, "gwA", "gwB") as (controller, rogue, victim):
        all_of_them = await heard_by(controller, "fl/v1/acme/#")
        forged = [await heard_by(session, "#", b"forged") for session in (victim, rogue)]
        with contextlib.suppress(TransportError):
            await rogue.publish(topic, b"forged", qos=qos, retain=True)
        await rogue.publish(f"{ROOT}/gwA/up/end", b"")
        await until(lambda: f"{ROOT}/gwA/up/end" in all_of_them)
        late = await broker.connect("gwB", client_id="late")
        forged.append(await heard_by(late, "#", b"forged"))
        await controller.publish(f"{ROOT}/gwB/dn/end", b"forged")
        await until(lambda: f"{ROOT}/gwB/dn/end" in forged[-1])
        await late.close()
        assert topic not in [heard for session in forged for heard in session]


async def test_another_gateways_client_id_takes_over_nothing(broker: Any, until: Until) -> None:
    async with connected(broker, CONTROLLER, "gwB") as (controller, victim):
        theirs = await heard_by(victim, f"{ROOT}/gwB/dn/#")
        async with contextlib.AsyncExitStack() as stack:
            rogue = await broker.connect("gwA", client_id="gwB")
            stack.push_async_callback(rogue.close)
            heard = await heard_by(rogue, "#")
            await controller.publish(f"{ROOT}/gwB/dn/cmd", b"for B")
            await controller.publish(f"{ROOT}/gwA/dn/end", b"")
            await until(lambda: f"{ROOT}/gwA/dn/end" in heard and f"{ROOT}/gwB/dn/cmd" in theirs)
        assert f"{ROOT}/gwB/dn/cmd" not in heard


async def test_a_takeover_loop_leaves_the_victim_connected(broker: Any, until: Until) -> None:
    async with connected(broker, CONTROLLER, "gwB") as (controller, victim):
        theirs = await heard_by(victim, f"{ROOT}/gwB/dn/#")
        for client_id in ["gwB", CONTROLLER] * 5:
            rogue = await broker.connect("gwA", client_id=client_id)
            await rogue.close()
        await controller.publish(f"{ROOT}/gwB/dn/cmd", b"still")
        await until(lambda: theirs.count(f"{ROOT}/gwB/dn/cmd") == 1)


async def test_nobody_connects_without_a_certificate(broker: Any) -> None:
    with pytest.raises((TransportError, DeadlineExceeded)):
        await broker.connect("gwA", cert=None, key=None)


async def test_nobody_connects_without_tls(broker: Any) -> None:
    with pytest.raises((TransportError, DeadlineExceeded)):
        await broker.connect("gwA", ca=None, cert=None, key=None, connect_timeout_s=3.0)


async def test_a_certificate_of_another_authority_is_refused(broker: Any, other_authority: Authority) -> None:
    broker.certificate("foreign", other_authority)
    with pytest.raises(TransportError):
        await broker.connect("foreign")


async def test_an_expired_certificate_is_refused(broker: Any) -> None:
    broker.certificate("late", days=-0.5)
    said: list[str] = []
    while not any("certificate expired" in text for text in said):  # a reset may outrun the broker's word
        assert len(said) < 20, said
        with pytest.raises(TransportError) as refused:
            await broker.connect("late")
        said.append(str(refused.value))


def test_a_gateways_certificate_does_not_pass_as_the_brokers(broker: Any) -> None:
    cert, key = broker.certificate("gwA")
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    trusting = ssl.create_default_context(cafile=broker.settings.ca)
    trusting.check_hostname = False
    here, there = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = serving.wrap_bio(here, there, server_side=True)
    client = trusting.wrap_bio(there, here)
    with contextlib.suppress(ssl.SSLWantReadError):
        client.do_handshake()
    with contextlib.suppress(ssl.SSLWantReadError):
        server.do_handshake()
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        client.do_handshake()


@pytest.mark.parametrize("name", ["#", "+", "gw/../gwB", "$SYS"])
async def test_wildcards_as_a_common_name_open_nothing(broker: Any, name: str, until: Until) -> None:
    """The authority gives no such name; this is what would happen if it did."""
    issued = broker.certificate("odd" + name.encode().hex())
    secret = _key_of(issued[1])
    issued[0].write_text(_signed_as(broker.authority, name, secret))
    async with connected(broker, CONTROLLER) as (controller,):
        try:
            rogue = await broker.connect("odd" + name.encode().hex(), client_id="x")
        except (TransportError, DeadlineExceeded):
            return
        heard = await heard_by(rogue, "#")
        await controller.publish(f"{ROOT}/gwB/dn/cmd", b"secret")
        mine = await heard_by(controller, f"{ROOT}/#")
        for topic in (f"{ROOT}/gwB/up/tlm", f"{ROOT}/{name.strip('#+$')}/up/tlm"):
            with contextlib.suppress(TransportError):
                await rogue.publish(topic, b"forged")
        await controller.publish(f"{ROOT}/gwB/dn/end", b"")
        await until(lambda: f"{ROOT}/gwB/dn/end" in mine)
        assert heard == []
        assert f"{ROOT}/gwB/up/tlm" not in mine
        await rogue.close()


def test_a_packet_of_10_mib_ends_its_connection_and_nobody_elses(broker: Any) -> None:
    with broker.tls("gwB") as victim, broker.tls("gwA") as rogue:
        _connect_packet(victim, "gwB")
        _connect_packet(rogue, "gwA")
        size = 10 * 1024 * 1024
        header = b"\x30" + bytes([size & 0x7F | 0x80, size >> 7 & 0x7F | 0x80, size >> 14 & 0x7F | 0x80, size >> 21])
        with contextlib.suppress(OSError):
            rogue.sendall(header + bytes(size))
        rogue.settimeout(20)
        with contextlib.suppress(OSError):
            assert rogue.recv(1) == b""
        victim.sendall(b"\xc0\x00")
        assert victim.recv(2) == b"\xd0\x00"


async def test_half_a_connect_keeps_nobody_out(broker: Any) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            stack.enter_context(broker.tls("gwA")).sendall(b"\x10")
        for _ in range(200):
            plain = stack.enter_context(socket.create_connection(("127.0.0.1", broker.settings.broker.port), timeout=10))
            plain.sendall(b"\x16")
        async with connected(broker, CONTROLLER, "gwB"):
            await asyncio.sleep(0)


def _connect_packet(tls: ssl.SSLSocket, client_id: str) -> None:
    body = b"\0\4MQTT\4\2\0\x3c" + len(client_id).to_bytes(2, "big") + client_id.encode()
    tls.sendall(bytes([0x10, len(body)]) + body)
    assert tls.recv(4) == b"\x20\x02\x00\x00"


def _key_of(path: Any) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    return load_pem_private_key(path.read_bytes(), None)


def _signed_as(authority: Authority, name: str, key: Any) -> str:
    from datetime import UTC, datetime

    return authority.issue(name, key.public_key(), datetime.now(UTC), 7.0).pem
