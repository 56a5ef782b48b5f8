"""A serial line on the event loop: a tty, a pty, `socket://host:port` or `rfc2217://host:port`. The only module that knows pyserial.

It carries bytes and tells when the line is gone; it knows no protocol and does not open again by itself.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import msgspec

from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError, MissingDependency

Received = Callable[[bytes], None]
"""Takes what came, at least one byte. Called on the event loop; never raises."""

Lost = Callable[[AdapterDisconnected], None]
"""Told once when the line is gone. Called on the event loop; never raises."""

SCHEMES = ("socket", "rfc2217")
FRAMES = ("8N1", "8E1", "8O1", "8N2", "8E2", "8O2", "7E1", "7O1", "7N2", "7E2", "7O2")

_CHUNK_BYTES = 65_536
_WAIT_S = 0.2
"""How long a line without a descriptor is listened to at a time, and so how long closing it may take."""


class Line(msgspec.Struct, frozen=True, kw_only=True):
    """Where the line is and how its bytes look: data bits, parity and stop bits as in `8N1`."""

    port: str
    baud: int = 115_200
    frame: str = "8N1"

    def check(self, name: str) -> None:
        """Raises InputError for a line that cannot be; `name` is the adapter's."""
        scheme, found, _ = self.port.partition("://")
        if not self.port or (found and scheme not in SCHEMES):
            raise InputError(
                f"{name}.options.port: expected a device such as /dev/ttyUSB0, socket://host:port or rfc2217://host:port, got `{self.port}`"
            )
        if not 50 <= self.baud <= 12_000_000:
            raise InputError(f"{name}.options.baud: expected a number in 50..12000000, got {self.baud}")
        if self.frame not in FRAMES:
            raise InputError(f"{name}.options.frame: expected one of {', '.join(FRAMES)}, got `{self.frame}`")


class SerialPort:
    """One line. `open`, then `received` and `lost` are called on the event loop until `close`; after `lost` only `close` helps."""

    def __init__(self, name: str, line: Line) -> None:
        """`name` is said in errors. Does nothing yet."""
        self.name = name
        self.line = line
        self._serial: Any = None
        self._fd: int | None = None
        self._thread: threading.Thread | None = None
        self._writing = asyncio.Lock()
        self._room = asyncio.Event()
        self._received: Received = _ignore
        self._lost: Lost = _ignore

    @property
    def is_open(self) -> bool:
        return self._serial is not None

    async def open(self, received: Received, lost: Lost) -> None:
        """Opens the line for itself alone. Raises AdapterDisconnected when it is not there (yet), AdapterError when it may not be used."""
        if self._serial is not None:
            raise AdapterError(f"{self.name}: {self.line.port} is already open")
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            self._serial = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_unwanted)
            raise
        self._received, self._lost = received, lost
        self._listen()

    def close(self) -> None:
        """Lets go of the line. Safe to call twice."""
        serial, self._serial = self._serial, None
        if serial is None:
            return
        self._stop()
        if self._thread is None:
            _close_quietly(serial)
        self._thread = None

    async def write(self, data: bytes) -> None:
        """Returns when the kernel has taken all of it. Writes do not mix. Raises AdapterDisconnected."""
        async with self._writing:
            serial = self._serial
            if serial is None:
                raise AdapterDisconnected(f"{self.name}: {self.line.port} is not open")
            try:
                if self._fd is None:
                    await asyncio.to_thread(serial.write, data)
                else:
                    await self._write_all(self._fd, memoryview(data))
            except OSError as err:
                raise self._gone(err) from err

    def _open(self) -> Any:
        serial = _library()
        line = self.line
        size, parity, stop = int(line.frame[0]), line.frame[1], int(line.frame[2])
        is_device = "://" not in line.port
        try:
            return serial.serial_for_url(
                line.port,
                line.baud,
                bytesize=size,
                parity=parity,
                stopbits=stop,
                timeout=_WAIT_S,
                **({"exclusive": True} if is_device else {}),
            )
        except (OSError, ValueError) as err:
            raise self._not_opened(err) from err

    def _not_opened(self, err: Exception) -> AdapterError:
        port = self.line.port
        number = getattr(err, "errno", None)
        if number in (errno.EACCES, errno.EPERM):
            return AdapterError(f"{self.name}: {port} may not be opened; add this user to the group that owns it (often `dialout`)")
        if number == errno.ENOENT:
            return AdapterDisconnected(f"{self.name}: {port} is not there; is it plugged in?")
        if isinstance(err, ValueError):
            return AdapterError(f"{self.name}: {port} cannot be a serial line: {err}")
        return AdapterDisconnected(f"{self.name}: {port} does not open: {err}")

    # -- listening -----------------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        link = getattr(self._serial, "_socket", None)
        if isinstance(link, socket.socket):
            link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self._fd = self._serial.fileno()
        except (AttributeError, io.UnsupportedOperation):
            self._fd = None
        loop = asyncio.get_running_loop()
        if self._fd is not None:
            os.set_blocking(self._fd, False)
            loop.add_reader(self._fd, self._read_ready)
            return
        self._thread = threading.Thread(target=self._read_on, args=(self._serial, loop), name=f"serial-{self.name}", daemon=True)
        self._thread.start()

    def _stop(self) -> None:
        if self._fd is not None:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            self._fd = None
            self._room.set()

    def _read_ready(self) -> None:
        assert self._fd is not None
        try:
            data = os.read(self._fd, _CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError as err:
            self._fail(self._gone(err))
            return
        if data:
            self._received(data)
        else:
            self._fail(AdapterDisconnected(f"{self.name}: {self.line.port} was closed by the other side"))

    def _read_on(self, serial: Any, loop: asyncio.AbstractEventLoop) -> None:
        """In a thread, for lines that give no descriptor to wait on. Closes the line at its end."""
        try:
            while self._serial is serial:
                data = serial.read(max(1, min(serial.in_waiting, _CHUNK_BYTES)))
                if data:
                    loop.call_soon_threadsafe(self._deliver, serial, data)
        except (OSError, TypeError, AttributeError) as err:  # pyserial's own surprise at a line that is closed meanwhile
            gone = self._gone(err)
            loop.call_soon_threadsafe(lambda: self._fail(gone) if self._serial is serial else None)
        finally:
            _close_quietly(serial)

    def _deliver(self, serial: Any, data: bytes) -> None:
        if self._serial is serial:
            self._received(data)

    def _fail(self, err: AdapterDisconnected) -> None:
        self._stop()
        self._lost(err)

    def _gone(self, err: Exception) -> AdapterDisconnected:
        return AdapterDisconnected(f"{self.name}: {self.line.port} is gone: {getattr(err, 'strerror', None) or err}")

    async def _write_all(self, fd: int, rest: memoryview) -> None:
        loop = asyncio.get_running_loop()
        while rest:
            try:
                rest = rest[os.write(fd, rest) :]
            except BlockingIOError:
                self._room.clear()
                loop.add_writer(fd, self._room.set)
                try:
                    await self._room.wait()
                finally:
                    if self._fd == fd:
                        loop.remove_writer(fd)
                if self._fd != fd:
                    raise AdapterDisconnected(f"{self.name}: {self.line.port} was closed meanwhile") from None


def _library() -> Any:
    try:
        import serial
    except ImportError as err:
        raise MissingDependency("pyserial", "serial") from err
    return serial


def _close_unwanted(opening: asyncio.Future[Any]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        _close_quietly(opening.result())


def _close_quietly(serial: Any) -> None:
    """A line that is gone may complain when it is closed; there is nothing left to lose."""
    link = getattr(serial, "_socket", None)
    if isinstance(link, socket.socket) and serial.portstr.startswith("socket://"):
        link.close()  # pyserial would sleep on the event loop, and leave it open when the other end has gone first
        serial.is_open = False
    try:
        serial.close()
    except OSError:
        return


def _ignore(_: object) -> None:
    return
