"""The MQTT session against brokers that behave (mosquitto, amqtt) and against one that does not (bytes from a script)."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cloud_sync.controller.broker import BrokerProcess, find_mosquitto, free_port, start_broker
from cloud_sync.mqtt import MqttOptions, MqttSession, open_transport
from edge_runtime.errors import DeadlineExceeded, InputError, MessageTooLarge, TransportError

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def options(port: int, client_id: str = "gw", **more: object) -> MqttOptions:
    return MqttOptions(host="127.0.0.1", port=port, client_id=client_id, **more)  # type: ignore[arg-type]


@contextlib.asynccontextmanager
async def fake_broker(script: Script) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def read_packet(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    kind = (await reader.readexactly(1))[0]
    length = shift = 0
    while True:
        byte = (await reader.readexactly(1))[0]
        length |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return kind, await reader.readexactly(length)


async def reach(broker: BrokerProcess, **more: object) -> MqttSession:
    """In MQTT 5 where the broker speaks it (amqtt is silent to it, which costs 2 s)."""
    return await connected(broker.port, **{"protocol": "auto" if broker.kind == "mosquitto" else "3.1.1", **more})


async def connected(port: int, **more: object) -> MqttSession:
    return await open_transport(options(port, **more)).connect("will", b"gone")


# -- real brokers ---------------------------------------------------------------------------------------------------------


async def test_messages_come_through_in_order_and_the_protocol_is_agreed(any_broker: BrokerProcess, until) -> None:
    sender, receiver = await connected(any_broker.port, client_id="a"), await reach(any_broker, client_id="b")
    assert sender.protocol == ("5" if any_broker.kind == "mosquitto" else "3.1.1")
    got: list[bytes] = []
    await receiver.subscribe("t/+/x", lambda topic, payload: got.append(payload))
    await asyncio.gather(*(sender.publish("t/1/x", b"%d" % n) for n in range(500)))
    await sender.publish("t/1/x", b"last", qos=0, expiry_s=30)
    await until(lambda: len(got) == 501)
    assert got == [b"%d" % n for n in range(500)] + [b"last"]
    await sender.close()
    await receiver.close()
    assert await sender.closed()


async def test_a_large_message_survives_small_writes(any_broker: BrokerProcess, until) -> None:
    session = await reach(any_broker)
    payload, got = random.Random(1).randbytes(3_000_000), []
    await session.subscribe("big", lambda topic, body: got.append(body))
    await session.publish("big", payload)
    await until(lambda: got)
    assert got == [payload]
    await session.close()


async def test_the_will_is_sent_for_the_dead_and_not_for_those_who_said_goodbye(any_broker: BrokerProcess, until) -> None:
    watcher = await reach(any_broker, client_id="watcher")
    heard: list[tuple[str, bytes]] = []
    await watcher.subscribe("status/#", lambda topic, payload: heard.append((topic, payload)))
    version = {"protocol": "5" if any_broker.kind == "mosquitto" else "3.1.1", "will_delay_s": 0}
    polite = await open_transport(options(any_broker.port, "polite", **version)).connect("status/polite", b"gone")
    abrupt = await open_transport(options(any_broker.port, "abrupt", **version)).connect("status/abrupt", b"gone")
    await polite.close()
    abrupt._sock.close()
    abrupt._end("test")
    await until(lambda: heard)
    assert heard == [("status/abrupt", b"gone")]
    await watcher.close()


async def test_a_message_is_acknowledged_only_when_its_handler_says_so(mosquitto: BrokerProcess, until) -> None:
    """With a Receive Maximum of 3 the broker holds the fourth back (mosquitto 2.0.11 then sends three for one acknowledgement)."""
    receiver = await connected(mosquitto.port, client_id="r", receive_maximum=3)
    sender = await connected(mosquitto.port, client_id="s")
    held: list[Callable[[], None]] = []
    await receiver.subscribe_deferred("t", lambda topic, payload, acknowledge: held.append(acknowledge))
    for n in range(10):
        await sender.publish("t", b"%d" % n)
    await sender.subscribe("echo", lambda *_: None)
    assert len(held) == 3
    for acknowledge in held:
        acknowledge()
    await until(lambda: len(held) == 10)
    await sender.close()
    await receiver.close()


async def test_a_broken_handler_does_not_stop_the_others(any_broker: BrokerProcess, until, caplog: pytest.LogCaptureFixture) -> None:
    session, got = await reach(any_broker), []

    def broken(topic: str, payload: bytes) -> None:
        raise ZeroDivisionError

    await session.subscribe("broken", broken)
    await session.subscribe("sound", lambda topic, payload: got.append(payload))
    await session.publish("broken", b"1")
    await session.publish("sound", b"2")
    await until(lambda: got)
    assert "mqtt_handler_failed" in caplog.text
    await session.close()


@pytest.mark.parametrize("limit", [1, 4])
async def test_the_brokers_receive_maximum_is_honoured(tmp_path: Path, limit: int) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    with start_broker(0, tmp_path, extra={"max_inflight_messages": str(limit)}) as broker:
        session = await connected(broker.port)
        assert session.max_inflight == limit
        await asyncio.gather(*(session.publish("t", b"x") for _ in range(200)))
        await session.close()


async def test_a_message_over_the_brokers_packet_limit_is_refused_by_name(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    with start_broker(0, tmp_path, extra={"max_packet_size": "2000"}) as broker:
        session = await connected(broker.port)
        assert session.max_packet_bytes == 2000
        with pytest.raises(MessageTooLarge, match="maximum packet size of 2000"):
            await session.publish("t", bytes(2000))
        await session.publish("t", bytes(1900))
        await session.close()


async def test_a_killed_broker_ends_the_session_and_what_waits_on_it(any_broker: BrokerProcess) -> None:
    session = await reach(any_broker)
    await asyncio.to_thread(any_broker.kill)
    assert await asyncio.wait_for(session.closed(), 10)
    with pytest.raises(TransportError):
        await session.publish("t", b"x")
    with pytest.raises(TransportError, match="cannot connect"):
        await reach(any_broker)
    await session.close()


async def test_wrong_credentials_are_refused_by_name(tmp_path: Path) -> None:
    if find_mosquitto() is None or shutil.which("mosquitto_passwd") is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    passwords = tmp_path / "passwords"
    passwords.touch(mode=0o600)
    subprocess.run(["mosquitto_passwd", "-b", passwords, "gw", "secret"], check=True)
    with start_broker(0, tmp_path, extra={"allow_anonymous": "false", "password_file": str(passwords)}) as broker:
        with pytest.raises(TransportError, match=r"[Nn]ot authorized"):
            await connected(broker.port)
        with pytest.raises(TransportError, match=r"[Nn]ot authorized"):
            await connected(broker.port, username="gw", password="wrong")
        session = await connected(broker.port, username="gw", password="secret")
        await session.publish("t", b"x")
        await session.close()
    assert "secret" not in repr(options(1, password="secret"))


# -- TLS -------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A throwaway authority `ca` with a certificate for the broker (127.0.0.1) and one for the gateway `gw`; and another authority."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    home = tmp_path_factory.mktemp("ca")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=home, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-subj", f"/CN={name}", "-days", "2")
    for name in ("broker", "gw"):
        openssl("req", *key, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (home / "ext").write_text("subjectAltName=IP:127.0.0.1\n")
        signer = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem", "-days", "2", "-extfile", "ext")
    return home


async def test_mutual_tls(authority: Path, tmp_path: Path, until) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    own = {"ca": str(authority / "ca.pem"), "cert": str(authority / "gw.pem"), "key": str(authority / "gw.key")}
    server = {
        "cafile": own["ca"],
        "certfile": str(authority / "broker.pem"),
        "keyfile": str(authority / "broker.key"),
        "require_certificate": "true",
    }
    with start_broker(0, tmp_path, extra=server) as broker:
        session, got = await connected(broker.port, **own), []
        await session.subscribe("big", lambda topic, payload: got.append(payload))
        payload = random.Random(2).randbytes(500_000)
        await asyncio.gather(*(session.publish("big", payload) for _ in range(5)))
        await until(lambda: len(got) == 5)
        assert got == [payload] * 5
        await session.close()
        with pytest.raises(TransportError, match="certificate refused"):
            await connected(broker.port, **own | {"ca": str(authority / "other.pem")})
        with pytest.raises(TransportError):
            await connected(broker.port, ca=own["ca"])
        with pytest.raises(TransportError):
            await connected(broker.port)


async def test_tls_files_at_fault_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"tls\.ca.*nowhere\.pem"):
        await connected(free_port_that_accepts_nothing(), ca=str(tmp_path / "nowhere.pem"))
    with pytest.raises(InputError, match=r"needs tls\.ca"):
        open_transport(options(1883, cert="gw.pem"))


def free_port_that_accepts_nothing() -> int:
    return free_port()


async def test_an_old_tls_version_is_refused(authority: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "broker.pem", authority / "broker.key")
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    server = await asyncio.start_server(lambda r, w: w.close(), "127.0.0.1", 0, ssl=context)
    async with server:
        with pytest.raises(TransportError):
            await connected(server.sockets[0].getsockname()[1], ca=str(authority / "ca.pem"))


# -- brokers that do not behave --------------------------------------------------------------------------------------------

V5_REFUSALS = {0x80: "Unspecified error", 0x85: "Client identifier not valid", 0x86: "Bad user name or password", 0x87: "Not authorized",
               0x88: "Server unavailable", 0x89: "Server busy", 0x8A: "Banned", 0x95: "Packet too large", 0x97: "Quota exceeded",
               0x9C: "Use another server", 0x9F: "Connection rate exceeded"}  # fmt: skip


@pytest.mark.parametrize(("code", "name"), V5_REFUSALS.items())
async def test_each_refusal_of_mqtt_5_is_named(code: int, name: str) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(bytes([0x20, 3, 0, code, 0]))

    async with fake_broker(refuse) as port:
        with pytest.raises(TransportError, match=f"refused the connection: {name}"):
            await connected(port)


@pytest.mark.parametrize("code", [1, 2, 3, 4, 5])
async def test_each_refusal_of_mqtt_311_is_named(code: int) -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(bytes([0x20, 2, 0, code]))

    async with fake_broker(refuse) as port:
        with pytest.raises(TransportError, match=r"refused (the connection: .{5,}|MQTT 3\.1\.1)"):
            await connected(port, protocol="3.1.1")


def speaker(versions: set[int], seen: list[int], *, silent: bool = False) -> Script:
    """A broker that answers CONNECT of some protocol levels only; the others it refuses, or leaves waiting."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        _, connect = await read_packet(reader)
        level = connect[6]
        seen.append(level)
        if level in versions:
            writer.write(bytes([0x20, 2, 0, 0]) if level == 4 else bytes([0x20, 3, 0, 0, 0]))
        elif not silent:
            writer.write(bytes([0x20, 2, 0, 1]))
            return
        await reader.read()

    return speak


async def test_a_broker_without_mqtt_5_is_spoken_to_in_311_and_remembered() -> None:
    seen: list[int] = []
    async with fake_broker(speaker({4}, seen)) as port:
        transport = open_transport(options(port))
        for _ in range(3):
            session = await transport.connect("will", b"gone")
            assert session.protocol == "3.1.1"
            await session.close()
        with pytest.raises(TransportError):
            await connected(port, protocol="5")
    assert seen.count(4) == 3


async def test_a_broker_that_is_silent_to_mqtt_5_costs_two_seconds_once() -> None:
    seen: list[int] = []
    async with fake_broker(speaker({4}, seen, silent=True)) as port:
        transport = open_transport(options(port, connect_timeout_s=0.3))
        for _ in range(2):
            session = await transport.connect("will", b"gone")
            await session.close()
    assert seen == [5, 4, 4]


async def test_a_broker_that_never_answers_to_connect_is_given_up() -> None:
    async with fake_broker(speaker(set(), [], silent=True)) as port:
        for protocol in ("auto", "5", "3.1.1"):
            with pytest.raises(TransportError, match="did not answer to CONNECT"):
                await connected(port, protocol=protocol, connect_timeout_s=0.1)


async def test_a_broker_that_accepts_and_forgets_costs_the_session() -> None:
    async def forget(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(bytes([0x20, 3, 0, 0, 0]))
        await reader.read()

    async with fake_broker(forget) as port:
        session = await connected(port, publish_timeout_s=0.1)
        with pytest.raises(DeadlineExceeded, match=r"t: no acknowledgement of the broker within 0\.1 s"):
            await session.publish("t", b"x")
        assert "no acknowledgement" in await session.closed()
        with pytest.raises(TransportError, match="not sent"):
            await session.publish("t", b"x")
        session = await connected(port, publish_timeout_s=0.1)
        with pytest.raises(DeadlineExceeded, match="subscription"):
            await session.subscribe("t", lambda *_: None)


async def test_a_cancelled_publish_keeps_its_place_until_the_broker_answers() -> None:
    release = asyncio.Event()

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(bytes([0x20, 6, 0, 0, 3, 0x21, 0, 1]))
        while True:
            _, packet = await read_packet(reader)
            await release.wait()
            writer.write(bytes([0x40, 2]) + packet[3:5])

    async with fake_broker(slow) as port:
        session = await connected(port)
        assert session.max_inflight == 1
        first = asyncio.ensure_future(session.publish("t", b"1"))
        second = asyncio.ensure_future(session.publish("t", b"2"))
        third = asyncio.ensure_future(session.publish("t", b"3"))
        await asyncio.sleep(0)
        first.cancel()
        second.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert not third.done()
        release.set()
        await asyncio.wait_for(third, 5)
        await session.close()


async def test_a_refused_publish_is_named_and_the_session_goes_on() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(bytes([0x20, 3, 0, 0, 0]))
        for code in (0x87, 0x10):
            _, packet = await read_packet(reader)
            writer.write(bytes([0x40, 4]) + packet[3:5] + bytes([code, 0]))
        await reader.read()

    async with fake_broker(refuse) as port:
        session = await connected(port)
        with pytest.raises(TransportError, match="t: the broker refused the message: Not authorized"):
            await session.publish("t", b"x")
        await session.publish("t", b"x")
        await session.close()


@pytest.mark.parametrize("seed", range(40))
async def test_garbage_from_the_broker_ends_the_session_with_a_reason(seed: int) -> None:
    draw = random.Random(seed)

    async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        if seed % 2:
            writer.write(bytes([0x20, 3, 0, 0, 0]))
        writer.write(bytes([draw.choice((0x20, 0x30, 0x32, 0x40, 0x90, 0xE0, 0xD0))]) + draw.randbytes(draw.randint(1, 400)))

    async with fake_broker(babble) as port:
        with contextlib.suppress(TransportError, DeadlineExceeded):
            session = await connected(port, connect_timeout_s=0.5, publish_timeout_s=0.5)
            assert await asyncio.wait_for(session.closed(), 5)


async def test_a_packet_that_announces_256_megabytes_is_not_waited_for() -> None:
    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(bytes([0x20, 3, 0, 0, 0]) + b"\x30\xff\xff\xff\x7f" + bytes(1000))
        await reader.read()

    async with fake_broker(flood) as port:
        session = await connected(port, max_packet_bytes=1 << 20)
        assert await asyncio.wait_for(session.closed(), 5)


async def test_a_dead_link_is_noticed_by_the_keepalive() -> None:
    async def sleep(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_packet(reader)
        writer.write(bytes([0x20, 3, 0, 0, 0]))
        await reader.read()

    async with fake_broker(sleep) as port:
        session = await connected(port, keepalive_s=1)
        assert await asyncio.wait_for(session.closed(), 10)
