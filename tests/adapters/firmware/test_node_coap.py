"""The node's CoAP resources: with libcoap's own client, and with datagrams written by hand where that client is too polite."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from adapters.firmware.build import provision_page
from adapters.firmware.emulator import Emulator
from tests.adapters.firmware.conftest import MakeBlob
from tests.adapters.firmware.uart import Uart

pytestmark = pytest.mark.system

CLIENT = shutil.which("coap-client-notls") or shutil.which("coap-client")
GET, POST, PUT = 1, 2, 3
CON, NON, ACK, RST = range(4)
OBSERVE, PATH, BLOCK2, BLOCK1 = 6, 11, 23, 27


Options = list[tuple[int, bytes]] | None


class Message(NamedTuple):
    type: int
    code: str
    id: int
    token: bytes
    options: dict[int, bytes]
    payload: bytes


def encode(type_: int, code: int, id_: int, *, token: bytes = b"", options: Options = None, payload: bytes = b"") -> bytes:
    out = bytearray(struct.pack(">BBH", 0x40 | type_ << 4 | len(token), code, id_) + token)
    last = 0
    for number, value in sorted(options or [], key=lambda option: option[0]):
        delta, last = number - last, number
        assert len(value) < 269
        out.append(min(delta, 13) << 4 | min(len(value), 13))
        out += bytes([delta - 13] if delta >= 13 else []) + bytes([len(value) - 13] if len(value) >= 13 else []) + value
    return bytes(out) + (b"\xff" + payload if payload else b"")


def decode(data: bytes) -> Message:
    first, code, id_ = struct.unpack_from(">BBH", data)
    assert first >> 6 == 1
    at = 4 + (first & 15)
    token, options, number = data[4:at], {}, 0
    while at < len(data) and data[at] != 0xFF:
        delta, length, at = data[at] >> 4, data[at] & 15, at + 1
        if delta == 13:
            delta, at = 13 + data[at], at + 1
        if length == 13:
            length, at = 13 + data[at], at + 1
        number += delta
        options[number] = data[at : at + length]
        at += length
    return Message(first >> 4 & 3, f"{code >> 5}.{code & 31:02}", id_, token, options, data[at + 1 :])


class Peer:
    """One UDP endpoint that talks to a node."""

    def __init__(self, node: Emulator) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.connect(("127.0.0.1", node.coap_port))
        self.id = 100

    def close(self) -> None:
        self._socket.close()

    def send(self, data: bytes) -> None:
        self._socket.send(data)

    def receive(self, timeout: float = 5) -> Message | None:
        self._socket.settimeout(timeout)
        try:
            return decode(self._socket.recv(2048))
        except TimeoutError:
            return None

    def ask(
        self,
        code: int,
        path: str,
        payload: bytes = b"",
        *,
        options: Options = None,
        type_: int = CON,
        id_: int | None = None,
    ) -> Message:
        """A request, repeated as RFC 7252 has it, and its answer; notifications that come between are passed over."""
        self.id += 1
        id_ = self.id if id_ is None else id_
        segments = [(PATH, part.encode()) for part in path.split("/") if part]
        for _ in range(5):
            self.send(encode(type_, code, id_, token=b"tk", options=[*segments, *(options or [])], payload=payload))
            while (got := self.receive(1)) is not None:
                if got.token == b"tk" and (got.type == NON or got.id == id_):
                    return got
        raise AssertionError(f"no answer from {path}")


@pytest.fixture
def peer(node: Emulator) -> Iterator[Peer]:
    one = Peer(node)
    yield one
    one.close()


def libcoap(node: Emulator, *arguments: str, path: str) -> str:
    if CLIENT is None:
        pytest.skip("libcoap's client is not installed: apt install libcoap3-bin")
    done = subprocess.run(
        [CLIENT, "-B", "8", *arguments, f"coap://127.0.0.1:{node.coap_port}/{path}"],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    return (done.stdout + done.stderr).strip()


def test_libcoap_reads_and_writes_the_resources(node: Emulator) -> None:
    node.set_temperature(-3.25)
    assert libcoap(node, path="temp") == "-3.25"
    assert libcoap(node, "-N", path="temp") == "-3.25"
    links = libcoap(node, path=".well-known/core")
    assert "</temp>;obs" in links
    assert "</model>" in links
    assert json.loads(libcoap(node, path="info"))["board"] == "lm3s6965evb"
    assert libcoap(node, "-m", "put", "-e", "1 60000", path="gpio/2") == "1"
    assert node.line(2) == 1
    assert libcoap(node, path="gpio/2") == "1"
    assert libcoap(node, "-m", "put", "-e", "1 0", path="gpio/2") == "0"
    assert node.line(2) == 0
    assert json.loads(libcoap(node, path="stats"))["coap_requests"] == 8
    assert libcoap(node, path="nothing").startswith("4.04")


def test_libcoap_reads_block_by_block(node: Emulator) -> None:
    whole = libcoap(node, path=".well-known/core")
    assert len(whole) > 64
    for size in ("16", "32", "64"):
        assert libcoap(node, "-b", size, path=".well-known/core") == whole


def test_libcoap_observes_the_temperature(node: Emulator, uart: Uart, tmp_path: Path) -> None:
    if CLIENT is None:
        pytest.skip("libcoap's client is not installed: apt install libcoap3-bin")
    node.set_temperature(20)
    with subprocess.Popen(
        [CLIENT, "-s", "20", "-w", f"coap://127.0.0.1:{node.coap_port}/temp"], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as client:
        assert client.stdout is not None
        seen = b""
        for celsius in (20, 21, 22.5, 23):
            node.set_temperature(celsius)
            while f"{celsius:.2f}".encode() not in seen:
                more = os.read(client.stdout.fileno(), 100)
                assert more, f"the client ended; it had said {seen!r}"
                seen += more
        client.terminate()
    assert uart.stats()["coap_retransmissions"] == 0


@pytest.mark.parametrize("block", ["64", "512", "1024"])
def test_libcoap_updates_the_model(node: Emulator, uart: Uart, blob: MakeBlob, tmp_path: Path, block: str) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(blob(2, name="over the air"))
    assert libcoap(node, "-m", "put", "-b", block, "-t", "42", "-f", str(path), path="model") == ""
    uart.ok(0x01)
    uart.events.clear()
    assert libcoap(node, "-m", "post", "-e", "trial 60", path="model") == ""
    assert uart.notice(1)[0] == 1
    state = json.loads(libcoap(node, path="model"))
    assert (state["model"], state["on_trial"], state["version"]) == ("over the air", 1, 2)
    assert libcoap(node, "-m", "post", "-e", "confirm", path="model") == ""
    assert json.loads(libcoap(node, path="model"))["highest_confirmed"] == 2
    assert libcoap(node, "-m", "post", "-e", "rollback", path="model") == ""
    assert json.loads(libcoap(node, path="model"))["source"] == 0


def test_inference_over_coap_is_that_over_the_uart(peer: Peer, uart: Uart) -> None:
    for first in (0, 20, 70):
        given = bytes([first] * 8 + [30] * 8)
        answer = peer.ask(POST, "infer", given)
        assert answer.code == "2.04"
        assert answer.payload[:4] + answer.payload[8:] == (over_uart := uart.ok(0x06, given))[:4] + over_uart[8:]
    assert peer.ask(POST, "infer", bytes(3)).code == "4.00"


def test_every_answer_has_the_code_of_the_protocol(node: Emulator, peer: Peer, blob: MakeBlob) -> None:
    assert peer.ask(GET, "").code == "4.04"
    assert peer.ask(GET, "gpio/4").payload == b"-1 unknown"
    assert peer.ask(GET, "x" * 100).code == "4.04"
    assert peer.ask(4, "temp").code == "4.05"
    assert peer.ask(GET, "infer").code == "4.05"
    assert peer.ask(POST, "gpio/0", b"1 10").code == "4.05"
    assert peer.ask(GET, "temp", options=[(9, b"?")]).code == "4.02"
    for wrong in (b"", b"1", b"2 100", b"1 600001", b"1 -5", b"1 100 ", b"on", b"1 100\0"):
        assert peer.ask(PUT, "gpio/0", wrong).code == "4.00", wrong
    assert node.line(0) == 0
    for wrong in (b"", b"trial", b"trial 0", b"trial 60 seconds", b"trial 3601", b"confirmed", b"c" * 50):
        assert peer.ask(POST, "model", wrong).code == "4.00", wrong
    for early in (b"trial 60", b"confirm", b"rollback"):
        answer = peer.ask(POST, "model", early)
        assert (answer.code, answer.payload) == ("4.09", b"-6 state")
    assert peer.ask(GET, "temp", options=[(BLOCK2, b"\x76")]).code == "4.00"
    assert peer.ask(GET, "temp", options=[(BLOCK2, b"\x07")]).code == "4.02"


def blocks(image: bytes, exponent: int) -> list[tuple[bytes, bytes]]:
    size = 16 << exponent
    starts = range(0, len(image), size)
    return [((n << 4 | (at + size < len(image)) << 3 | exponent).to_bytes(2, "big"), image[at : at + size]) for n, at in enumerate(starts)]


def test_an_upload_belongs_to_its_sender_and_keeps_its_order(node: Emulator, peer: Peer, blob: MakeBlob) -> None:
    parts = blocks(blob(2), 4)
    for option, payload in parts[:2]:
        assert peer.ask(PUT, "model", payload, options=[(BLOCK1, option)]).code == "2.31"
    other = Peer(node)
    assert other.ask(PUT, "model", parts[2][1], options=[(BLOCK1, parts[2][0])]).code == "4.08"
    other.close()
    answer = peer.ask(PUT, "model", parts[3][1], options=[(BLOCK1, parts[3][0])])
    assert (answer.code, answer.options[BLOCK1][-1] >> 4) == ("4.08", 3)
    for option, payload in parts:
        answer = peer.ask(PUT, "model", payload, options=[(BLOCK1, option)])
    assert answer.code == "2.04", "a new block 0 started over"


def test_wrong_models_have_their_codes(peer: Peer, blob: MakeBlob) -> None:
    def put(image: bytes) -> tuple[str, bytes]:
        answer = Message(0, "", 0, b"", {}, b"")
        for option, payload in blocks(image, 5):
            answer = peer.ask(PUT, "model", payload, options=[(BLOCK1, option)])
            if answer.code != "2.31":
                break
        return answer.code, answer.payload

    image = blob(2)
    assert put(blob(1)) == ("4.09", b"-5 downgrade")
    assert put(blob(2, key=bytes(32))) == ("4.01", b"-3 signature")
    assert put(image[:600] + b"\xaa" + image[601:]) == ("4.00", b"-2 corrupt")
    assert put(image[:-100]) == ("4.00", b"-2 corrupt")
    assert put(image + bytes(600)) == ("4.13", b"-4 too_large")
    assert put(image[:12] + struct.pack("<I", 9)[::-1] + image[16:])[0] == "4.00"
    assert put(struct.pack("<I", 1) + image[4:]) == ("4.00", b"-2 corrupt")
    assert put(image[:8] + struct.pack("<I", 99999) + image[12:]) == ("4.13", b"-4 too_large")
    assert put(image) == ("2.04", b"")


def test_a_repeated_message_has_one_effect_and_the_same_answer(peer: Peer, node: Emulator, uart: Uart) -> None:
    first = peer.ask(PUT, "gpio/1", b"1 60000", id_=7)
    before = uart.stats()["coap_requests"]
    again = peer.ask(PUT, "gpio/1", b"0 0", id_=7)
    assert again == first
    assert node.line(1) == 1, "the second was taken for the first"
    assert uart.stats()["coap_requests"] == before
    other = Peer(node)
    assert other.ask(PUT, "gpio/1", b"1 0", id_=7).payload == b"0", "another endpoint's 7 is another message"
    other.close()


def test_observers_are_told_repeatedly_until_they_acknowledge_and_forgotten_when_they_reset(fast_node: Emulator) -> None:
    peer = Peer(fast_node)
    fast_node.set_temperature(20)
    answer = peer.ask(GET, "temp", options=[(OBSERVE, b"")])
    assert OBSERVE in answer.options
    fast_node.set_temperature(30)
    told = peer.receive()
    assert told is not None
    again = peer.receive()
    assert again is not None
    assert (told.type, again.type, again.id, told.token) == (CON, CON, told.id, b"tk")
    while again.payload != b"30.00":
        again = peer.receive()
        assert again is not None
        peer.send(encode(ACK, 0, again.id))
    while (got := peer.receive(1)) is not None:
        peer.send(encode(RST, 0, got.id))
    fast_node.set_temperature(40)
    assert peer.receive(0.5) is None
    peer.close()


def test_a_silent_observer_is_forgotten(fast_node: Emulator) -> None:
    """With the node's time racing, all repetitions come at once: the first and four more."""
    peer = Peer(fast_node)
    fast_node.set_temperature(20)
    peer.ask(GET, "temp", options=[(OBSERVE, b"")])
    fast_node.set_temperature(30)
    ids = []
    while (got := peer.receive(1)) is not None:
        ids.append(got.id)
    assert len(ids) == 5
    assert len(set(ids)) == 1
    assert peer.ask(GET, "temp").payload == b"30.00"
    peer.close()


def test_observers_end_by_request_and_are_four_at_most(node: Emulator, uart: Uart) -> None:
    node.set_temperature(20)
    peers = [Peer(node) for _ in range(5)]
    answers = [one.ask(GET, "temp", options=[(OBSERVE, b"")]) for one in peers]
    assert [OBSERVE in answer.options for answer in answers] == [True] * 4 + [False]
    assert all(answer.code == "2.05" for answer in answers)
    assert OBSERVE not in peers[0].ask(GET, "temp", options=[(OBSERVE, b"\1")]).options
    node.set_temperature(33)
    for one in peers[1:4]:
        got = one.receive()
        assert got is not None
        assert got.payload == b"33.00"
        one.send(encode(ACK, 0, got.id))
    assert peers[0].receive(0.3) is None
    for one in peers:
        one.close()


def test_pings_and_strange_messages_are_reset(peer: Peer, uart: Uart) -> None:
    peer.send(encode(CON, 0, 77))
    assert peer.receive() == (RST, "0.00", 77, b"", {}, b"")
    peer.send(encode(CON, 0x45, 78))
    assert peer.receive() == (RST, "0.00", 78, b"", {}, b"")
    before = uart.stats()["bad_packets"]
    for broken in (
        b"\x49\x01\x00\x01" + bytes(9),
        b"\x40\x01\x00\x01\xff",
        b"\x40\x01\x00\x01\xf0",
        b"\x40\x01\x00\x01\xbd",
        b"\x40\x00\x00\x01x",
    ):
        peer.send(broken)
        got = peer.receive()
        assert got is not None
        assert (got.type, got.id) == (RST, 1)
    for silent in (b"\x80\x01\x00\x01", b"\x40", b"\x50\x01\x00\x01\xff"):
        peer.send(silent)
    assert peer.receive(0.3) is None
    assert uart.stats()["bad_packets"] == before + 8


def test_a_provisioned_node_has_its_own_address_and_may_forbid_writing(firmware: Path, blob: MakeBlob) -> None:
    page = provision_page(node_id=7, key=bytes(32), mac="02:00:00:00:00:07", address="192.168.7.20/24", flags=3)
    with Emulator(firmware, provision=page) as node:
        peer = Peer(node)
        assert json.loads(peer.ask(GET, "info").payload)["node"] == 7
        assert peer.ask(PUT, "gpio/0", b"1 1000").code == "4.03"
        assert peer.ask(PUT, "model", blob(2)[:1000]).code == "4.03"
        assert peer.ask(POST, "model", b"confirm").code == "4.03"
        assert peer.ask(GET, "model").code == "2.05"
        assert node.line(0) == 0
        peer.close()
