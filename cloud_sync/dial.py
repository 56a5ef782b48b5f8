"""Opens TCP and TLS sockets without blocking the event loop. Knows nothing of MQTT."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from pathlib import Path

from edge_runtime.errors import InputError, TransportError

_READ_BYTES = 65536


def tls_context(ca: str, cert: str | None, key: str | None) -> ssl.SSLContext:
    """A client context: TLS >= 1.2, the server's name checked. Reads files. Raises InputError naming the file at fault."""
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=ca)
    except (OSError, ssl.SSLError) as err:
        raise InputError(f"tls.ca: cannot read certificates from {ca}: {err}") from err
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if cert is not None:
        try:
            context.load_cert_chain(cert, key)
        except (OSError, ssl.SSLError) as err:
            raise InputError(f"tls.cert, tls.key: cannot use {cert} with {key or Path(cert)}: {err}") from err
    return context


async def open_socket(host: str, port: int, context: ssl.SSLContext | None) -> socket.socket:
    """A connected non-blocking socket with TCP_NODELAY. Tries every address of `host`; raises TransportError with the last reason."""
    loop = asyncio.get_running_loop()
    try:
        addresses = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as err:
        raise TransportError(f"cannot resolve {host}: {err.strerror or err}") from err
    problem: OSError | None = None
    for family, kind, protocol, _, address in addresses:
        try:
            return await _connect(socket.socket(family, kind, protocol), address, host, context)
        except OSError as err:
            problem = err
    raise TransportError(f"cannot connect to {host}:{port}: {_reason(problem)}") from problem


async def _connect(plain: socket.socket, address: tuple[object, ...], host: str, context: ssl.SSLContext | None) -> socket.socket:
    sock = plain
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await asyncio.get_running_loop().sock_connect(sock, address)
        if context is None:
            return sock
        sock = context.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False)
        await _handshake(sock)
        return sock
    except BaseException:
        sock.close()
        raise


async def _handshake(sock: ssl.SSLSocket) -> None:
    while True:
        try:
            return sock.do_handshake()
        except ssl.SSLWantReadError:
            await _ready(sock, write=False)
        except ssl.SSLWantWriteError:
            await _ready(sock, write=True)


async def _ready(sock: socket.socket, write: bool) -> None:
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()
    fd = sock.fileno()
    (loop.add_writer if write else loop.add_reader)(fd, _settle, ready)
    try:
        await ready
    finally:
        (loop.remove_writer if write else loop.remove_reader)(fd)


def _settle(ready: asyncio.Future[None]) -> None:
    if not ready.done():
        ready.set_result(None)


def _reason(err: OSError | None) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"certificate refused: {err.verify_message}"
    return "no address" if err is None else (err.strerror or str(err))


class BufferedSocket:
    """What paho needs of a socket, read in large pieces: it asks for single bytes, and each would be a system call.

    A read of more than `max_bytes` at once is a packet over the limit: ConnectionError. Bytes read ahead are in `pending`.
    """

    def __init__(self, sock: socket.socket, max_bytes: int) -> None:
        self._sock = sock
        self._max_bytes = max_bytes
        self._ahead = b""
        self._at = 0
        self.alert = ""  # why the other side ended TLS, in its words: `certificate expired`
        self.fileno = sock.fileno
        self.close = sock.close
        self.setblocking = sock.setblocking

    @property
    def pending(self) -> bool:
        """Whether bytes wait here that the selector cannot see."""
        return self._at < len(self._ahead) or (isinstance(self._sock, ssl.SSLSocket) and self._sock.pending() > 0)

    def recv(self, size: int) -> bytes:
        """Up to `size` bytes; empty at the end of the stream. Raises BlockingIOError when there are none now."""
        if size > self._max_bytes:
            raise ConnectionError(f"a packet of {size} bytes is over the limit of {self._max_bytes}")
        if self._at >= len(self._ahead):
            self._ahead, self._at = self._receive(), 0
        start = self._at
        self._at = min(start + size, len(self._ahead))
        return self._ahead[start : self._at]

    def send(self, data: bytes) -> int:
        """Bytes taken. A connection that was ended is asked for the alert that came before the end."""
        try:
            return self._sock.send(data)
        except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except OSError:
            with contextlib.suppress(OSError):
                self._receive()
            raise

    def _receive(self) -> bytes:
        try:
            return self._sock.recv(_READ_BYTES)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as err:
            if "ALERT" in (err.reason or ""):
                self.alert = str(err.reason).rpartition("ALERT_")[2].replace("_", " ").lower()
            raise
