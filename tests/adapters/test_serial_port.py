"""The serial line over real ptys, real sockets and a real RFC 2217 server of pyserial's."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import tty
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from serial import rfc2217, serial_for_url

from adapters.serial_port import Line, SerialPort
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError


class Ear:
    """What came over a line, and how it ended."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.lost: list[AdapterDisconnected] = []

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.002)


@pytest.fixture
def pty() -> Iterator[tuple[int, str]]:
    other, mine = os.openpty()
    tty.setraw(mine)
    yield other, os.ttyname(mine)
    for fd in (other, mine):
        try:
            os.close(fd)
        except OSError:
            continue


async def test_bytes_go_both_ways_over_a_tty(pty: tuple[int, str]) -> None:
    other, path = pty
    port, ear = SerialPort("meter", Line(port=path)), Ear()
    await port.open(ear.data.extend, ear.lost.append)
    assert port.is_open
    os.write(other, b"\x00\xff\x11\x13\r\n")
    await ear.until(lambda: len(ear.data) == 6)
    assert ear.data == b"\x00\xff\x11\x13\r\n"
    await port.write(b"hello")
    assert os.read(other, 5) == b"hello"
    port.close()
    port.close()
    assert not port.is_open
    with pytest.raises(AdapterDisconnected, match="not open"):
        await port.write(b"x")


async def test_more_than_the_kernel_takes_is_written_whole(pty: tuple[int, str]) -> None:
    other, path = pty
    port, ear = SerialPort("meter", Line(port=path)), Ear()
    await port.open(ear.data.extend, ear.lost.append)
    data, taken = os.urandom(200_000), bytearray()

    def take() -> None:
        while len(taken) < len(data):
            taken.extend(os.read(other, 4096))

    thread = threading.Thread(target=take)
    thread.start()
    await asyncio.gather(port.write(data[:100_000]), port.write(data[100_000:]))
    await asyncio.to_thread(thread.join)
    assert bytes(taken) == data
    port.close()


async def test_a_write_that_is_stuck_ends_when_the_line_is_closed(pty: tuple[int, str]) -> None:
    port, ear = SerialPort("meter", Line(port=pty[1])), Ear()
    await port.open(ear.data.extend, ear.lost.append)
    writing = asyncio.ensure_future(port.write(bytes(1_000_000)))
    await asyncio.sleep(0.01)
    assert not writing.done()
    port.close()
    with pytest.raises(AdapterDisconnected, match="closed meanwhile"):
        await writing


async def test_a_tty_that_hangs_up_is_told_once(pty: tuple[int, str]) -> None:
    other, path = pty
    port, ear = SerialPort("meter", Line(port=path)), Ear()
    await port.open(ear.data.extend, ear.lost.append)
    os.close(other)
    await ear.until(lambda: bool(ear.lost))
    port.close()
    assert len(ear.lost) == 1
    assert "meter" in str(ear.lost[0])


async def test_a_line_has_one_reader(pty: tuple[int, str]) -> None:
    first, second = (SerialPort("meter", Line(port=pty[1])) for _ in range(2))
    ear = Ear()
    await first.open(ear.data.extend, ear.lost.append)
    with pytest.raises(AdapterError):
        await second.open(ear.data.extend, ear.lost.append)
    first.close()
    await second.open(ear.data.extend, ear.lost.append)
    second.close()


async def test_a_line_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(AdapterDisconnected, match="is it plugged in"):
        await SerialPort("meter", Line(port=str(tmp_path / "ttyUSB9"))).open(print, print)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(AdapterDisconnected, match="does not open"):
            await SerialPort("meter", Line(port=f"socket://127.0.0.1:{taken.getsockname()[1]}")).open(print, print)
    (tmp_path / "file").write_text("no tty")
    with pytest.raises(AdapterError):
        await SerialPort("meter", Line(port=str(tmp_path / "file"))).open(print, print)


async def test_socket_lines_carry_and_end() -> None:
    served: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    server = await asyncio.start_server(lambda r, w: served.put_nowait((r, w)), "127.0.0.1", 0)
    host, number = server.sockets[0].getsockname()
    port, ear = SerialPort("meter", Line(port=f"socket://{host}:{number}")), Ear()
    await port.open(ear.data.extend, ear.lost.append)
    reader, writer = await served.get()
    writer.write(b"frame")
    await ear.until(lambda: ear.data == b"frame")
    await port.write(b"answer")
    assert await reader.readexactly(6) == b"answer"
    writer.close()
    await ear.until(lambda: bool(ear.lost))
    port.close()
    server.close()
    await server.wait_closed()


def _serve_rfc2217(listener: socket.socket, seen: bytearray) -> None:
    """One client: what it writes is kept and comes back."""
    connection, _ = listener.accept()
    device = serial_for_url("loop://", timeout=0.05)

    class Wire:
        def write(self, data: bytes) -> None:
            connection.sendall(data)

    manager = rfc2217.PortManager(device, Wire())
    connection.settimeout(0.05)
    while True:
        try:
            data = connection.recv(1024)
        except TimeoutError:
            data = None
        if data == b"":
            break
        for byte in manager.filter(data or b""):
            seen += byte
            connection.sendall(b"".join(manager.escape(byte)))
    connection.close()
    device.close()


@pytest.mark.filterwarnings("ignore:set(Daemon|Name):DeprecationWarning")  # in pyserial 3.5
async def test_rfc2217_lines_carry_and_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        seen = bytearray()
        thread = threading.Thread(target=_serve_rfc2217, args=(listener, seen))
        thread.start()
        port, ear = SerialPort("meter", Line(port=f"rfc2217://127.0.0.1:{listener.getsockname()[1]}")), Ear()
        await port.open(ear.data.extend, ear.lost.append)
        await port.write(b"ping")
        await ear.until(lambda: ear.data == b"ping")
        assert seen == b"ping"
        port.close()
        await asyncio.to_thread(thread.join)
        await ear.until(lambda: not any(thread.name == "serial-meter" for thread in threading.enumerate()))
    assert not ear.lost


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (Line(port=""), "port"),
        (Line(port="loop://"), "rfc2217"),
        (Line(port="/dev/ttyUSB0", baud=1), "baud"),
        (Line(port="/dev/ttyUSB0", frame="9X3"), "8N1"),
    ],
)
def test_lines_that_cannot_be_are_refused(line: Line, said: str) -> None:
    with pytest.raises(InputError, match=said):
        line.check("meter")
