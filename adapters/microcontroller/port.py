"""A serial port on the event loop: `/dev/tty*`, `socket://host:port` or `rfc2217://host:port`, through pyserial.

Bytes in, bytes out, and the loss of the link; it knows nothing of frames. Where the port has a file descriptor the loop watches it;
where it has none (rfc2217) a thread reads.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from edge_runtime.errors import AdapterDisconnected, AdapterError, MissingDependency

SCHEMES = ("socket://", "rfc2217://", "/dev/")

_READ_BYTES = 65_536
_MOST_UNSENT_BYTES = 1 << 20
_POLL_S = 0.1


class Port:
    """One open port. `on_data` and `on_lost` are called on the loop; `on_lost` once at most, and not after `close`."""

    def __init__(self, url: str, baud: int, on_data: Callable[[bytes], None], on_lost: Callable[[str], None]) -> None:
        self._url = url
        self._baud = baud
        self._on_data = on_data
        self._on_lost = on_lost
        self._serial: Any = None
        self._fd = -1
        self._unsent = bytearray()
        self._reader: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._gone = False

    async def open(self) -> None:
        """Raises AdapterDisconnected when nobody is there, MissingDependency without pyserial."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            self._serial = await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_discard)
            raise
        self._loop, self._gone = asyncio.get_running_loop(), False
        try:
            self._fd = self._serial.fileno()
        except (AttributeError, OSError):
            self._reader = threading.Thread(target=self._read_in_thread, args=(self._serial,), name=f"port {self._url}", daemon=True)
            self._reader.start()
        else:
            _hurry(self._serial)
            os.set_blocking(self._fd, False)
            self._loop.add_reader(self._fd, self._readable)

    async def close(self) -> None:
        """Lets go of the port; may be called again."""
        port, self._serial = self._serial, None
        self._forget()
        if port is not None:
            reader, self._reader = self._reader, None
            await asyncio.to_thread(_end, port, reader)

    def write(self, data: bytes) -> None:
        """Queues bytes; returns at once. Raises AdapterDisconnected when the link is gone or takes nothing any more."""
        if self._serial is None or self._gone:
            raise AdapterDisconnected(f"{self._url}: the link is closed")
        if len(self._unsent) > _MOST_UNSENT_BYTES:
            raise AdapterDisconnected(f"{self._url}: takes no more bytes ({len(self._unsent)} wait)")
        if self._fd < 0:
            self._write_through(data)
            return
        if not self._unsent:
            data = data[self._send(data) :]
        if data and self._fd >= 0 and self._loop is not None:
            self._unsent += data
            self._loop.add_writer(self._fd, self._writable)

    # -- on the loop --------------------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        try:
            data = os.read(self._fd, _READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as err:
            self._lose(str(err))
            return
        if data:
            self._on_data(data)
        else:
            self._lose("the other end closed it")

    def _send(self, data: bytes | bytearray) -> int:
        try:
            return os.write(self._fd, data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError as err:
            self._lose(str(err))
            return 0

    def _writable(self) -> None:
        del self._unsent[: self._send(self._unsent)]
        if not self._unsent and self._loop is not None and self._fd >= 0:
            self._loop.remove_writer(self._fd)

    def _write_through(self, data: bytes) -> None:
        try:
            self._serial.write(data)
        except (OSError, ValueError) as err:
            self._lose(str(err))
            raise AdapterDisconnected(f"{self._url}: {err}") from err

    def _lose(self, reason: str) -> None:
        if not self._gone and self._loop is not None:
            self._forget()
            self._on_lost(f"{self._url}: {reason}")

    def _forget(self) -> None:
        self._gone = True
        if self._fd >= 0 and self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop.remove_writer(self._fd)
        self._fd = -1
        self._unsent.clear()

    # -- in threads -----------------------------------------------------------------------------------------------------------

    def _open(self) -> Any:
        try:
            import serial
        except ImportError as err:
            raise MissingDependency("pyserial", "serial") from err
        try:
            port = serial.serial_for_url(self._url, do_not_open=True, baudrate=self._baud, timeout=_POLL_S, write_timeout=2.0)
            if self._url.startswith("/dev/"):
                port.exclusive = True
            port.open()
        except ValueError as err:
            raise AdapterError(f"{self._url}: {err}") from err
        except OSError as err:
            raise AdapterDisconnected(
                f"cannot open {self._url}: {err}. Is it plugged in, and may this user open it (group dialout)?"
            ) from err
        return port

    def _read_in_thread(self, port: Any) -> None:
        assert self._loop is not None
        reason = "the other end closed it"
        while self._serial is port:
            try:
                data = port.read(max(1, port.in_waiting))
            except (OSError, TypeError, AttributeError) as err:  # pyserial's own, of a port that is closed under it
                reason = str(err)
                break
            if data:
                self._call(self._on_data, bytes(data))
        if self._serial is port:
            self._call(self._lose, reason)

    def _call(self, what: Callable[[Any], None], argument: object) -> None:
        with suppress(RuntimeError):  # the loop is closed
            assert self._loop is not None
            self._loop.call_soon_threadsafe(what, argument)


def _discard(opening: asyncio.Future[Any]) -> None:
    """Closes a port that was opened for nobody."""
    if not opening.cancelled() and opening.exception() is None:
        threading.Thread(target=_end, args=(opening.result(), None), daemon=True).start()


def _hurry(port: Any) -> None:
    """A socket sends small frames at once."""
    link = getattr(port, "_socket", None)
    if isinstance(link, socket.socket):
        link.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _end(port: Any, reader: threading.Thread | None) -> None:
    link = getattr(port, "_socket", None)
    if isinstance(link, socket.socket):  # pyserial would sleep here, and leave it open when the other end has gone first
        link.close()
        port.is_open = False
    with suppress(OSError):
        port.close()
    if reader is not None:
        reader.join(2.0)
