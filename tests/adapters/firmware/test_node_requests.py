"""Every request of the node's protocol, on the real firmware under QEMU."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest

from adapters.firmware.emulator import Emulator
from tests.adapters.firmware.uart import Frame, Uart, frame

pytestmark = pytest.mark.system

UNKNOWN, STATE, MALFORMED = -1, -6, -8


def test_ping_returns_what_it_brought_and_refuses_more(uart: Uart) -> None:
    for size in (0, 1, 63, 64):
        assert uart.ok(0x01, bytes(range(size))) == bytes(range(size))
    assert uart.ask(0x01, bytes(65)) == (MALFORMED, b"")


def test_hello_says_what_the_node_is(uart: Uart) -> None:
    hello = struct.unpack("<B3s16sIIIHBBIIBBHI16sI", uart.ok(0x02))
    protocol, _, board, node, boots, capabilities, payload, sensors, lines = hello[:9]
    slot, arena, cause, link, window, clock, label, confirmed = hello[9:]
    assert (protocol, board.rstrip(b"\0"), node, boots) == (1, b"lm3s6965evb", 0, 1)
    assert capabilities == 1 | 2 | 4 | 8 | 16 | 32 | 64 | 128
    assert (payload, sensors, lines, slot) == (1040, 1, 4, 12288)
    assert arena > 1024
    assert (cause, link, window, clock) == (0, 1, 64, 50_000_000)
    assert (label.rstrip(b"\0"), confirmed) == (b"dev", 1)


def test_model_tells_the_factory_one(uart: Uart) -> None:
    answer = struct.unpack("<4BI16s6HfifiIIHBB", uart.ok(0x03))
    assert answer[:3] == (0, 0, 0)
    assert (answer[4], answer[5].rstrip(b"\0")) == (1, b"temperature")
    assert answer[6:12] == (1, 16, 1, 1, 1, 3)
    assert answer[12:14] == (1.0, 0)
    assert answer[14:16] == (1 / 256, -128)
    assert answer[18:] == (0, 0, 0)


def test_the_sensor_reads_what_is_set_outside_in_steps_of_a_sixteenth(node: Emulator, uart: Uart) -> None:
    last = 0
    for celsius in (25.5, -12.345, 0.0, 127.9375, -55.0):
        node.set_temperature(celsius)
        number, _, milli, status, zero = struct.unpack("<IIib3s", uart.ok(0x04))
        assert number > last
        assert abs(milli - celsius * 1000) < 63
        assert (status, zero) == (0, b"\0\0\0")
        last = number


def test_a_stream_comes_without_gaps_until_it_is_ended(fast_node: Emulator, fast_uart: Uart) -> None:
    fast_node.set_temperature(40)
    fast_uart.ok(0x05, struct.pack("<HB", 20, 1))
    readings = [fast_uart.event(0x40) for _ in range(50)]
    assert [(b.seq - a.seq) & 0xFFFF for a, b in pairwise(readings)] == [1] * 49
    samples = [struct.unpack("<IIi", got.payload[:12]) for got in readings]
    assert {milli for _, _, milli in samples[-20:]} == {40000}
    assert {b[1] - a[1] for a, b in pairwise(samples)} == {20}
    fast_uart.ok(0x05, struct.pack("<HB", 0, 0))
    fast_uart.events.clear()
    fast_uart.ok(0x01)
    assert fast_uart.events == []


def test_inferences_are_streamed_when_the_window_is_full(fast_node: Emulator, fast_uart: Uart) -> None:
    fast_node.set_temperature(80)
    fast_uart.ok(0x05, struct.pack("<HB", 1000, 3))
    last = Frame(0, 0, b"")
    for _ in range(30):
        last = fast_uart.event(0x41)
    number, source, top, count, ticks = struct.unpack_from("<IBBHI", last.payload)
    assert number > 16
    assert (source, top, count) == (0, 2, 3), "80 degrees all along: hot"
    assert ticks > 0
    assert len(last.payload) == 12 + count


def test_subscriptions_out_of_range_are_refused(uart: Uart) -> None:
    for payload in (b"", b"\1\0", struct.pack("<HB", 60001, 1), struct.pack("<HB", 10, 0), struct.pack("<HB", 10, 4)):
        assert uart.ask(0x05, payload).status == MALFORMED


def test_infer_takes_an_input_or_the_nodes_own_window(node: Emulator, uart: Uart) -> None:
    assert uart.ask(0x06).status == STATE, "the window is not full so soon"
    source, top, count, ticks, *out = struct.unpack("<BBHI3b", uart.ok(0x06, bytes([20] * 12 + [70] * 4)))
    assert (source, top, count) == (0, out.index(max(out)), 3)
    assert top in (1, 2)
    assert ticks > 0
    assert uart.ok(0x06, bytes([20] * 16))[1] == 0
    for wrong in (1, 15, 17, 1040):
        assert uart.ask(0x06, bytes(wrong)).status == MALFORMED


def test_lines_leave_their_safe_level_on_a_lease_only(node: Emulator, uart: Uart) -> None:
    for line in range(4):
        assert uart.ok(0x07, struct.pack("<BBI", line, 1, 60000)) == b"\1"
        assert [node.line(n) for n in range(4)] == [int(n <= line) for n in range(4)]
    states = list(struct.iter_unpack("<BBI", uart.ok(0x08)))
    assert [state[:2] for state in states] == [(1, 0)] * 4
    assert all(0 < left <= 60000 for _, _, left in states)
    assert uart.ok(0x07, struct.pack("<BBI", 2, 0, 60000)) == b"\0"
    assert uart.ok(0x07, struct.pack("<BBI", 1, 1, 0)) == b"\0", "given back"
    assert [node.line(n) for n in range(4)] == [1, 0, 0, 1]
    assert uart.ask(0x07, struct.pack("<BBI", 4, 1, 100)).status == UNKNOWN
    assert uart.ask(0x07, struct.pack("<BBI", 0, 2, 100)).status == MALFORMED
    assert uart.ask(0x07, struct.pack("<BBI", 0, 1, 600_001)).status == MALFORMED


def test_a_lease_that_runs_out_takes_its_line_back_and_says_so(node: Emulator, uart: Uart) -> None:
    uart.ok(0x07, struct.pack("<BBI", 1, 1, 60000))
    uart.ok(0x07, struct.pack("<BBI", 0, 1, 150))
    assert uart.notice(2) == (0, 0)
    assert [node.line(n) for n in range(4)] == [0, 1, 0, 0]
    assert uart.stats()["leases_expired"] == 1


def test_a_renewed_lease_counts_from_its_renewal(fast_node: Emulator, fast_uart: Uart) -> None:
    """The node's own clock is read between the two and at the end: it sleeps through 600 s at once."""
    fast_uart.ok(0x07, struct.pack("<BBI", 0, 1, 600_000))
    between = struct.unpack_from("<I", fast_uart.ok(0x04), 4)[0]
    fast_uart.ok(0x07, struct.pack("<BBI", 0, 1, 600_000))
    fast_uart.notice(2)
    expired = struct.unpack_from("<I", fast_uart.ok(0x04), 4)[0]
    assert expired - between >= 600_000 or fast_uart.stats()["leases_expired"] == 2


@pytest.mark.parametrize("way", ["command", "pin", "power"])
def test_every_way_down_ends_with_lines_safe_and_the_cause_told(node: Emulator, uart: Uart, way: str) -> None:
    uart.ok(0x07, struct.pack("<BBI", 0, 1, 600_000))
    assert node.line(0) == 1
    uart.events.clear()
    if way == "command":
        assert uart.restart(0x0A, b"\0") == (1, 2)
    elif way == "pin":
        node.reset()
        assert uart.notice(1) == (1, 2)
    else:
        node.power_cycle()
        uart.connect()
    assert node.line(0) == 0
    hello = uart.ok(0x02)
    boots, cause = struct.unpack_from("<I", hello, 24)[0], hello[44]
    assert (boots, cause) == {"command": (2, 1), "pin": (2, 1), "power": (1, 0)}[way]
    assert [left for _, _, left in struct.iter_unpack("<BBI", uart.ok(0x08))] == [0] * 4


def test_a_node_that_hangs_is_reset_by_its_watchdog(fast_node: Emulator, fast_uart: Uart) -> None:
    fast_uart.ok(0x07, struct.pack("<BBI", 3, 1, 600_000))
    assert fast_uart.restart(0x0A, b"\1") == (2, 2)
    assert fast_node.line(3) == 0
    assert fast_uart.ok(0x02)[44] == 2


def test_requests_that_are_none_are_answered_or_dropped_as_the_protocol_says(uart: Uart) -> None:
    for type_ in (0x0B, 0x0F, 0x16, 0x3F):
        assert uart.ask(type_, b"abc") == (UNKNOWN, b"")
    assert uart.ask(0x02, b"x").status == MALFORMED
    assert uart.ask(0x0A, b"\2").status == MALFORMED
    before = uart.stats()
    uart.send(frame(0x00, 1) + frame(0x40, 1) + frame(0x81, 1) + b"\x05garb\0" + b"\0\0\0" + frame(0x01, 9)[:-2] + b"\0")
    after = uart.stats()
    assert after["bad_frames"] - before["bad_frames"] == 5
    assert after["frames_in"] - before["frames_in"] == 1


def test_the_longest_frames_pass_both_ways(uart: Uart) -> None:
    assert uart.ask(0x06, bytes(range(1, 256)) * 4 + bytes(20)).status == MALFORMED, "taken whole: 1,040 bytes"
    before = uart.stats()["bad_frames"]
    uart.send(frame(0x06, 7, bytes(1041)) + frame(0x06, 7, b"\1" * 5000))
    assert uart.stats()["bad_frames"] == before + 2


def test_a_repeated_rollback_is_one_rollback(uart: Uart) -> None:
    assert uart.ask(0x15, seq=900).status == STATE
    assert uart.ask(0x15, seq=900).status == STATE


def test_a_flood_of_requests_holds_up_no_lease(node: Emulator, uart: Uart) -> None:
    uart.ok(0x07, struct.pack("<BBI", 0, 1, 500))
    for seq in range(3000):
        uart.send(frame(0x01, seq, bytes([7] * 64)))
    while node.line(0):
        pass
    uart.connect()
    assert uart.stats()["leases_expired"] == 1
