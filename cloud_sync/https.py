"""One HTTPS request over the event loop with the standard library: bounded in size and time, and ended at once by cancellation.

For a gateway's rare words with its controller's API. It follows no redirects, keeps no connection, and knows no cookies.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec

from edge_runtime.errors import DeadlineExceeded, InputError, TransportError

MAX_ANSWER_BYTES = 1024 * 1024
_HEAD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Place:
    """Host and port of an API. `parse_url` makes it."""

    host: str
    port: int

    @property
    def url(self) -> str:
        return f"https://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"


def parse_url(text: str, default_port: int = 8443) -> Place:
    """`https://host:port`, or the same without scheme or port. Raises InputError."""
    try:
        parts = urlsplit(text if "://" in text else f"https://{text}")
        host, port = parts.hostname, parts.port
    except ValueError as err:
        raise InputError(f"expected a URL such as https://controller:{default_port}, got {text[:200]!r}: {err}") from err
    if parts.scheme != "https" or not host or parts.path.strip("/") or parts.query or parts.username:
        raise InputError(f"expected a URL such as https://controller:{default_port}, got {text[:200]!r}")
    return Place(host, port or default_port)


async def ask(
    place: Place, method: str, path: str, context: ssl.SSLContext, body: Mapping[str, Any] | None = None, *, timeout_s: float = 20.0
) -> tuple[int, Any]:
    """Status and JSON of the answer. Raises TransportError, DeadlineExceeded; an answer that is too long or no JSON is a TransportError."""
    try:
        async with asyncio.timeout(timeout_s):
            answer = await _exchange(place, _request(place, method, path, body), context)
    except TimeoutError as err:
        raise DeadlineExceeded(f"{place.url} did not answer within {timeout_s:g} s") from err
    except ssl.SSLCertVerificationError as err:
        raise TransportError(f"{place.url}: certificate refused: {err.verify_message}") from err
    except OSError as err:
        raise TransportError(f"cannot reach {place.url}: {err.strerror or err}") from err
    return _parse(place, answer, method)


def error_text(answer: Any) -> str:
    """What an API's answer with an error says."""
    return str(answer.get("error", answer) if isinstance(answer, dict) else answer)[:1000]


def _request(place: Place, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
    content = b"" if body is None else msgspec.json.encode(body)
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: {place.url.removeprefix('https://')}\r\nConnection: close\r\n"
        f"Accept: application/json\r\nContent-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode("ascii") + content


async def _exchange(place: Place, request: bytes, context: ssl.SSLContext) -> bytes:
    reader, writer = await asyncio.open_connection(place.host, place.port, ssl=context)
    try:
        writer.write(request)
        await writer.drain()
        answer = bytearray()
        while piece := await reader.read(65536):
            answer += piece
            if len(answer) > MAX_ANSWER_BYTES + _HEAD_BYTES:
                raise TransportError(f"{place.url} sent more than {MAX_ANSWER_BYTES} bytes")
        return bytes(answer)
    finally:
        writer.transport.abort()


class _Received:
    """A whole answer, where http.client expects a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _parse(place: Place, answer: bytes, method: str) -> tuple[int, Any]:
    response = http.client.HTTPResponse(_Received(answer), method=method)  # type: ignore[arg-type]  # it only calls makefile
    try:
        response.begin()
        content = response.read()
    except (http.client.HTTPException, ValueError) as err:
        raise TransportError(f"{place.url} did not answer as an HTTP server does: {type(err).__name__}") from err
    try:
        return response.status, msgspec.json.decode(content) if content else None
    except (msgspec.MsgspecError, RecursionError) as err:
        raise TransportError(f"{place.url} answered {response.status} with something that is not JSON; is it a controller?") from err
