"""The node's UART protocol as its document states it, written apart from the product's client: what the firmware is tested with."""

from __future__ import annotations

import binascii
import contextlib
import socket
import struct
import time
from collections.abc import Callable
from typing import NamedTuple

REPLY_S = 1.0
TRIES = 10


class Frame(NamedTuple):
    type: int
    seq: int
    payload: bytes


class Reply(NamedTuple):
    status: int
    payload: bytes


def cobs(body: bytes) -> bytes:
    out = bytearray()
    for block in body.split(b"\0"):
        while len(block) >= 254:
            out += b"\xff" + block[:254]
            block = block[254:]
        out += bytes([len(block) + 1]) + block
    return bytes(out)


def uncobs(data: bytes) -> bytes:
    out, at = bytearray(), 0
    while at < len(data):
        run = data[at]
        assert run > 0
        assert at + run <= len(data)
        out += data[at + 1 : at + run]
        at += run
        if run < 255 and at < len(data):
            out.append(0)
    return bytes(out)


def frame(type_: int, seq: int, payload: bytes = b"") -> bytes:
    body = struct.pack("<BH", type_, seq) + payload
    return cobs(body + struct.pack("<H", binascii.crc_hqx(body, 0xFFFF))) + b"\0"


class Uart:
    """One client on the node's UART. Every frame that comes must be whole and right; `events` keeps those that nobody asked for."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._seq = 0
        self._socket: socket.socket | None = None
        self.connect()

    def connect(self) -> None:
        self.close()
        self.events: list[Frame] = []
        self._rest = b""
        self._joined = False
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=5)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.send(b"\0")

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def send(self, data: bytes) -> None:
        assert self._socket is not None
        self._socket.sendall(data)

    def receive(self, timeout: float) -> Frame | None:
        """The next whole frame. What precedes the first zero of a connection may be the end of one, and is passed over if it is none."""
        assert self._socket is not None
        deadline = time.monotonic() + timeout
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            self._socket.settimeout(left)
            with contextlib.suppress(TimeoutError):
                more = self._socket.recv(65536)
                assert more, "the emulator closed the link"
                self._rest += more
        encoded, self._rest = self._rest.split(b"\0", 1)
        first, self._joined = not self._joined, True
        try:
            body = uncobs(encoded)
            assert 5 <= len(body) <= 1045
            assert binascii.crc_hqx(body[:-2], 0xFFFF) == struct.unpack("<H", body[-2:])[0]
        except AssertionError:
            if not first:
                raise
            return self.receive(deadline - time.monotonic())
        return Frame(body[0], struct.unpack_from("<H", body, 1)[0], body[3:-2])

    def ask(self, type_: int, payload: bytes = b"", *, seq: int | None = None, tries: int = TRIES) -> Reply:
        """A request and its reply, sent again when none comes."""
        self._seq = (self._seq + 1) & 0xFFFF
        seq = self._seq if seq is None else seq
        for _ in range(tries):
            self.send(frame(type_, seq, payload))
            reply = self.wait(lambda got: got.type == type_ | 0x80 and got.seq == seq, REPLY_S)
            if reply is not None:
                return Reply(struct.unpack_from("<b", reply.payload)[0], reply.payload[1:])
        raise AssertionError(f"no reply to request {type_:#x}")

    def ok(self, type_: int, payload: bytes = b"") -> bytes:
        status, answer = self.ask(type_, payload)
        assert status == 0, f"request {type_:#x}: status {status}"
        return answer

    def wait(self, fits: Callable[[Frame], bool], timeout: float) -> Frame | None:
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            got = self.receive(left)
            if got is None:
                return None
            if fits(got):
                return got
            if 0x40 <= got.type < 0x80:
                self.events.append(got)
        return None

    def event(self, type_: int, timeout: float = 20.0) -> Frame:
        """The next event of this type, old ones first."""
        for old in self.events:
            if old.type == type_:
                self.events.remove(old)
                return old
        got = self.wait(lambda found: found.type == type_, timeout)
        assert got is not None, f"no event {type_:#x} in {timeout} s"
        return got

    def notice(self, what: int, timeout: float = 20.0) -> tuple[int, int]:
        """`a` and `b` of the next notice of this kind; others before it are forgotten."""
        while True:
            kind, a, b = struct.unpack("<BBH", self.event(0x43, timeout).payload)
            if kind == what:
                return a, b

    def restart(self, type_: int, payload: bytes = b"") -> tuple[int, int]:
        """A request that resets the node: reset cause and boot count of the boot that follows."""
        self.ok(type_, payload)
        self.events.clear()
        return self.notice(1)

    def stats(self) -> dict[str, int]:
        names = "uptime_s frames_in frames_out bad_frames overruns samples sensor_errors inferences inference_ticks leases_expired"
        names += " events_dropped packets_in packets_out bad_packets coap_requests coap_retransmissions"
        return dict(zip(names.split(), struct.unpack("<16I", self.ok(0x09)), strict=True))
