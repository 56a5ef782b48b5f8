"""The local status API: HTTP/1.1 over a Unix socket, for the same machine's users (`curl --unix-socket`). Read-only but for flags.

    GET  /status            slots, adapters, link, queues, latest readings
    GET  /ledger            the accounting
    GET  /readings          the latest of every sensor, or of one: /readings?name=N
    GET  /decisions         how many rules changed since the start, and the last one
    GET  /actuators         their states and causes, or those of one: /actuators?name=N
    GET  /explain?rule=R    why a rule holds or does not, now
    POST /flag?name=N&value=true|false   sets a deployment flag such as `maintenance`

The socket's folder and mode decide who may ask (0660). Requests are bounded in size and time; no keep-alive.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Mapping
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import msgspec

from edge_runtime.errors import EdgeRuntimeError, InputError
from edge_runtime.paths import socket_address

SOCKET_NAME = "edge-runtime.sock"
_MAX_HEAD_BYTES = 8192
_TIMEOUT_S = 5.0

Route = Callable[[Mapping[str, str]], Awaitable[Any]]
"""Takes the query; returns what is sent as JSON. Raises InputError for 400."""


class LocalApi:
    """Serves routes by (method, path) on a Unix socket."""

    def __init__(self, path: Path, routes: Mapping[tuple[str, str], Route]) -> None:
        self._path = path
        self._routes = routes
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Binds the socket, replacing one left by a killed process (the store's lock already excludes a living one)."""
        self._path.unlink(missing_ok=True)
        with socket_address(self._path) as address:
            self._server = await asyncio.start_unix_server(self._serve, address, limit=_MAX_HEAD_BYTES)
        self._path.chmod(0o660)

    async def stop(self) -> None:
        """Closes the socket and removes it."""
        if self._server is not None:
            self._server.close()
        self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = await self._answer(head)
                writer.write(_response(status, body))
                await writer.drain()
        except (TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
            pass  # a client that is slow, oversized or gone gets no answer
        finally:
            writer.close()

    async def _answer(self, head: bytes) -> tuple[HTTPStatus, Any]:
        try:
            method, target, _version = head.split(b"\r\n", 1)[0].decode("ascii").split(" ")
        except ValueError:
            return HTTPStatus.BAD_REQUEST, {"error": "not an HTTP request line"}
        url = urlsplit(target)
        route = self._routes.get((method, url.path))
        if route is None:
            known = sorted(f"{m} {p}" for m, p in self._routes)
            return HTTPStatus.NOT_FOUND, {"error": f"no {method} {url.path}", "known": known}
        try:
            return HTTPStatus.OK, await route(dict(parse_qsl(url.query)))
        except InputError as err:
            return HTTPStatus.BAD_REQUEST, {"error": str(err)}
        except EdgeRuntimeError as err:
            return HTTPStatus.SERVICE_UNAVAILABLE, {"error": str(err)}


def ask(state_dir: Path, target: str, method: str = "GET", timeout_s: float = _TIMEOUT_S) -> Any:
    """One request to the gateway running on `state_dir`. Raises ConnectionError when none runs, InputError when it refused."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(timeout_s)
        try:
            with socket_address(state_dir / SOCKET_NAME) as address:
                connection.connect(address)
        except OSError as err:
            raise ConnectionError(f"no gateway is running on {state_dir} ({err.strerror}); start one: edge-runtime run") from err
        connection.sendall(f"{method} {target} HTTP/1.1\r\nHost: local\r\n\r\n".encode())
        answer = bytearray()
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(65536):
                answer += chunk
    head, _, body = bytes(answer).partition(b"\r\n\r\n")
    document = msgspec.json.decode(body) if body else {"error": "the gateway gave no answer"}
    if b" 200 " not in head.split(b"\r\n", 1)[0]:
        raise InputError(str(document.get("error", document)))
    return document


def _response(status: HTTPStatus, body: Any) -> bytes:
    payload = msgspec.json.encode(body)
    head = f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n"
    return (head + "Connection: close\r\n\r\n").encode() + payload
