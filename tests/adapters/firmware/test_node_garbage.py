"""Garbage on every port of the node: counted where the protocol counts it, and nothing else happens."""

from __future__ import annotations

import binascii
import contextlib
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.firmware.emulator import Emulator
from tests.adapters.firmware.uart import Uart, frame, uncobs

pytestmark = pytest.mark.system

MOST_DATAGRAMS = 20_000
HARMLESS = (0x01, 0x02, 0x03, 0x04, 0x08, 0x09)
MAC = bytes.fromhex("525400123456")
OWN_MAC = bytes.fromhex("020000000001")
ADDRESS, OWN_ADDRESS = bytes((10, 0, 2, 15)), bytes((10, 0, 2, 2))


def burst(choice: random.Random) -> bytes:
    """Noise, a frame with something wrong, or a whole one."""
    kind = choice.randrange(6)
    if kind == 0:
        return choice.randbytes(choice.randrange(1, 300))
    good = frame(choice.choice(HARMLESS), choice.randrange(65536), choice.randbytes(choice.randrange(40)))
    if kind == 1:
        return good
    if kind == 2:
        return good[: choice.randrange(len(good))]
    if kind == 3:
        return bytes([choice.randrange(1, 256)]) * choice.randrange(1, 2500) + b"\0"
    damaged = bytearray(good)
    for _ in range(choice.randrange(1, 4)):
        damaged[choice.randrange(len(damaged))] = choice.randrange(256)
    return bytes(damaged)


def is_request(encoded: bytes) -> bool:
    try:
        body = uncobs(encoded) if len(encoded) <= 1050 else b""
    except AssertionError:
        return False
    if not 5 <= len(body) <= 1045 or binascii.crc_hqx(body[:-2], 0xFFFF) != struct.unpack("<H", body[-2:])[0]:
        return False
    return 1 <= body[0] < 0x40


@pytest.mark.parametrize("seed", range(2))
def test_serial_noise_is_counted_frame_by_frame(uart: Uart, seed: int) -> None:
    choice = random.Random(seed)
    before = uart.stats()
    noise = b"".join(burst(choice) for _ in range(600)) + b"\0"
    parts = [part for part in noise.split(b"\0") if part]
    requests = sum(map(is_request, parts))
    for at in range(0, len(noise), 700):
        uart.send(noise[at : at + 700])
        while uart.receive(0) is not None:
            pass
    after = uart.stats()
    assert after["bad_frames"] - before["bad_frames"] == len(parts) - requests
    assert after["frames_in"] - before["frames_in"] == requests + 1
    assert after["overruns"] == 0
    assert requests > 50


def enough(stats: dict[str, int]) -> bool:
    """Of what was sent, not of what arrived, a count would say nothing: on a busy machine QEMU drops frames."""
    return stats["packets_in"] > 1500 and stats["bad_packets"] > 500 and stats["coap_requests"] > 150


def test_datagrams_of_noise_leave_the_node_alive(node: Emulator, uart: Uart) -> None:
    choice = random.Random(5)
    requests = [
        b"\x40\x01\x00\x01\xb4temp",
        b"\x51\x03\x00\x02t\xb4gpio\x010\xff1 20",
        b"\x42\x02\x00\x03tk\xb5infer\xff" + bytes(16),
        b"\x40\x03\x00\x04\xb5model\xd1\x03\x0e\xff" + bytes(1024),
        b"\x40\x01\x00\x05\x60\x54temp\xc1\x02",
    ]
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.connect(("127.0.0.1", node.coap_port))
        for number in range(MOST_DATAGRAMS):
            data = bytearray(choice.choice(requests) if number % 3 else choice.randbytes(choice.randrange(1, 200)))
            for _ in range(choice.randrange(3)):
                data[choice.randrange(len(data))] = choice.randrange(256)
            link.send(data[: choice.randrange(len(data) + 1)] if number % 5 == 0 else data)
            if number % 20 == 19 and enough(uart.stats()):
                break
    assert enough(uart.stats()), f"{MOST_DATAGRAMS} datagrams were not enough: {uart.stats()}"
    assert uart.ok(0x03)[0] == 0
    assert struct.unpack_from("<I", uart.ok(0x02), 24) == (1,), "it never was reset"


class _Wire(Emulator):
    """A node whose Ethernet is a pair of UDP sockets: every byte of a frame can be wrong."""

    def _command(self, control: Path) -> list[str]:
        command = super()._command(control)
        at = command.index("-nic")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            self.wire_port = probe.getsockname()[1]
        command[at + 1] = f"socket,model=stellaris,udp=127.0.0.1:{self.peer_port},localaddr=127.0.0.1:{self.wire_port}"
        return command

    def _forwarded_port(self) -> int:
        return self.wire_port

    peer_port = wire_port = 0


@pytest.fixture
def wire(firmware: Path) -> Iterator[tuple[_Wire, socket.socket]]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as link:
        link.bind(("127.0.0.1", 0))
        _Wire.peer_port = link.getsockname()[1]
        with _Wire(firmware) as node:
            link.connect(("127.0.0.1", node.coap_port))
            link.settimeout(5)
            yield node, link


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ip_packet(protocol: int, payload: bytes) -> bytes:
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(payload), 7, 0, 64, protocol, 0) + OWN_ADDRESS + ADDRESS
    header = header[:10] + struct.pack(">H", checksum(header)) + header[12:]
    return MAC + OWN_MAC + b"\x08\x00" + header + payload


def udp_packet(payload: bytes) -> bytes:
    udp = struct.pack(">HHHH", 4000, 5683, 8 + len(payload), 0) + payload
    pseudo = OWN_ADDRESS + ADDRESS + struct.pack(">BBH", 0, 17, len(udp))
    return ip_packet(17, udp[:6] + struct.pack(">H", checksum(pseudo + udp)) + udp[8:])


def echo_request(payload: bytes) -> bytes:
    icmp = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + payload
    return ip_packet(1, icmp[:2] + struct.pack(">H", checksum(icmp)) + icmp[4:])


def answer(link: socket.socket, data: bytes) -> bytes:
    """The frame that answers this one; the node may still be starting."""
    link.settimeout(0.5)
    for _ in range(20):
        link.send(data)
        try:
            return link.recv(2048)
        except TimeoutError:
            continue
    raise AssertionError("no answer")


def drain(link: socket.socket) -> None:
    link.settimeout(0)
    with contextlib.suppress(BlockingIOError):
        while link.recv(2048):
            pass


ARP = b"\xff" * 6 + OWN_MAC + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 1)
ARP += OWN_MAC + OWN_ADDRESS + bytes(6) + ADDRESS


def test_arp_echo_and_udp_are_answered_as_the_rfcs_have_it(wire: tuple[_Wire, socket.socket]) -> None:
    _, link = wire
    reply = answer(link, ARP)
    assert reply[:42] == OWN_MAC + MAC + b"\x08\x06" + struct.pack(">HHBBH", 1, 0x0800, 6, 4, 2) + MAC + ADDRESS + OWN_MAC + OWN_ADDRESS
    for size in (0, 1, 57, 1000):
        payload = bytes(i & 255 for i in range(size))
        echo = answer(link, echo_request(payload))
        assert echo[34] == 0
        assert echo[42 : 42 + size] == payload
        assert checksum(echo[14:34]) == 0
        assert checksum(echo[34 : 42 + size]) == 0
    reply = answer(link, udp_packet(b"\x40\x00\x12\x34"))
    assert reply[42:46] == b"\x70\x00\x12\x34"
    length = struct.unpack_from(">H", reply, 38)[0]
    assert checksum(ADDRESS + OWN_ADDRESS + struct.pack(">BBH", 0, 17, length) + reply[34 : 34 + length]) == 0


def test_frames_of_noise_leave_the_node_alive(wire: tuple[_Wire, socket.socket]) -> None:
    node, link = wire
    choice = random.Random(9)
    ping = udp_packet(b"\x40\x00\x12\x34")
    good = [ARP, echo_request(bytes(40)), ping, udp_packet(b"\x40\x01\x00\x05\xb4temp"), udp_packet(bytes(1400))]
    answer(link, ping)
    client = Uart(node.serial_port)
    for number in range(MOST_DATAGRAMS):
        data = bytearray(choice.choice(good) if number % 4 else choice.randbytes(choice.randrange(14, 1500)))
        for _ in range(choice.randrange(6)):
            data[choice.randrange(12, len(data))] = choice.randrange(256)
        link.send(data[: choice.randrange(14, len(data) + 1)] if number % 3 == 0 else data)
        if number % 16 == 15:
            stats = client.stats()
            if stats["packets_in"] > 400 and stats["bad_packets"] > 150:
                break
            drain(link)
    drain(link)
    answer(link, ping)
    stats = client.stats()
    assert stats["packets_in"] > 400, stats
    assert stats["bad_packets"] > 150, stats
    assert struct.unpack_from("<I", client.ok(0x02), 24) == (1,)
    client.close()
