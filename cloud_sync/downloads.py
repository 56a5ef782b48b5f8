"""Models over HTTPS by range from the controller's API, with the gateway's certificate: faster than in pieces over the broker.

What came is kept as `partial` keeps it, so a download may begin here and end over MQTT. The signed size bounds what is read, whatever
the server declares or sends; a source below the least rate is given up. Follows no redirects. Falls back to nothing by itself.
"""

from __future__ import annotations

import asyncio
import http.client
import io
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from cloud_sync.dial import tls_context
from cloud_sync.https import Place, parse_url
from cloud_sync.partial import MIN_RATE, PIECE_BYTES, SLACK_S, PartialFile, count_pieces, piece_length
from cloud_sync.trust import Artifact
from edge_runtime.errors import DeadlineExceeded, TransportError
from edge_runtime.types import LinkSettings

_HEAD_BYTES = 16 * 1024
_CONNECT_S = 10.0
_PATIENCE_S = 15.0
_ATTEMPTS = 3
_HOLD_OFF_S = 600.0


class Downloads:
    """Fetches files of one controller. `max_bytes_per_s` 0: no limit."""

    def __init__(
        self,
        place: Place,
        ca: Path,
        cert: Path,
        key: Path,
        *,
        max_bytes_per_s: int = 0,
        patience_s: float = _PATIENCE_S,
        slack_s: float = SLACK_S,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._place = place
        self._files = (str(ca), str(cert), str(key))
        self._rate = max_bytes_per_s
        self._patience_s = patience_s
        self._slack_s = slack_s
        self._sleep = sleep
        self._held_until_s = 0.0
        self.received = 0

    @property
    def open(self) -> bool:
        """False for ten minutes after it failed: a port that a firewall drops is not tried for every file."""
        return time.monotonic() >= self._held_until_s

    async def fetch(self, artifact: Artifact, folder: Path) -> Path:
        """A signed file into `folder`, going on where an earlier attempt ended, here or over MQTT; checked by block and as a whole.

        Raises TransportError, DeadlineExceeded, InputError (certificate files), DeploymentRefused(MODEL_UNAVAILABLE | NO_SPACE), with what
        was fetched kept for the next time.
        """
        try:
            with PartialFile(artifact, folder) as part:
                await self._complete(artifact, part)
                return await part.finish()
        except (TransportError, DeadlineExceeded):
            self._held_until_s = time.monotonic() + _HOLD_OFF_S
            raise

    async def _complete(self, artifact: Artifact, part: PartialFile) -> None:
        context = await asyncio.to_thread(tls_context, *self._files)
        failures, begun = 0, time.monotonic()
        deadline_s = begun + self._slack_s + artifact.size_bytes / MIN_RATE
        while missing := part.missing():
            before = len(missing)
            first = min(missing)
            end = next(number for number in range(first, count_pieces(artifact.size_bytes) + 1) if number not in missing)
            try:
                await self._range(artifact, first, end, part, context, deadline_s)
            except TransportError:
                failures = failures + 1 if len(part.missing()) == before else 1
                if failures >= _ATTEMPTS:
                    raise
            part.check()

    async def _range(self, artifact: Artifact, first: int, end: int, part: PartialFile, context: ssl.SSLContext, deadline_s: float) -> None:
        """The pieces from `first` to before `end` in one request."""
        start, stop = first * PIECE_BYTES, min(end * PIECE_BYTES, artifact.size_bytes)
        async with self._connected(context) as (reader, writer):
            writer.write(self._request(artifact.name, start, stop))
            head = await self._soon(reader.readuntil(b"\r\n\r\n"))
            self._check(_parse(self._place, head), artifact, start, stop)
            for number in range(first, end):
                size = piece_length(number, artifact.size_bytes)
                data = await self._soon(reader.readexactly(size))
                self.received += size
                await part.take(number, data)
                if time.monotonic() > deadline_s:
                    raise DeadlineExceeded(f"{self._place.url} sends {artifact.name} slower than {MIN_RATE} bytes a second")
                if self._rate:
                    await self._sleep(size / self._rate)

    @asynccontextmanager
    async def _connected(self, context: ssl.SSLContext) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        opening = asyncio.open_connection(self._place.host, self._place.port, ssl=context, limit=2 * PIECE_BYTES)
        try:
            async with asyncio.timeout(_CONNECT_S):
                reader, writer = await opening
        except TimeoutError as err:
            raise DeadlineExceeded(f"{self._place.url} did not answer within {_CONNECT_S:g} s") from err
        except ssl.SSLCertVerificationError as err:
            raise TransportError(f"{self._place.url}: certificate refused: {err.verify_message}") from err
        except OSError as err:
            raise TransportError(f"cannot reach {self._place.url}: {err.strerror or err}") from err
        try:
            yield reader, writer
        finally:
            writer.transport.abort()

    async def _soon(self, reading: Awaitable[bytes]) -> bytes:
        try:
            async with asyncio.timeout(self._patience_s):
                return await reading
        except TimeoutError as err:
            raise DeadlineExceeded(f"{self._place.url}: nothing came for {self._patience_s:g} s") from err
        except asyncio.LimitOverrunError as err:
            raise TransportError(f"{self._place.url} does not answer as an HTTP server does") from err
        except (asyncio.IncompleteReadError, OSError) as err:
            raise TransportError(f"{self._place.url} ended the connection before the file did") from err

    def _request(self, name: str, start: int, stop: int) -> bytes:
        host = self._place.url.removeprefix("https://")
        text = f"GET /v1/artifacts/{name} HTTP/1.1\r\nHost: {host}\r\nRange: bytes={start}-{stop - 1}\r\nConnection: close\r\n\r\n"
        return text.encode("ascii")

    def _check(self, response: http.client.HTTPResponse, artifact: Artifact, start: int, stop: int) -> None:
        wanted = f"bytes {start}-{stop - 1}/{artifact.size_bytes}"
        if response.status != http.client.PARTIAL_CONTENT:
            raise TransportError(f"{self._place.url} answered {response.status} to a request for a range of {artifact.name}")
        given = response.getheader("Content-Range")
        if given != wanted or response.getheader("Content-Length") != str(stop - start) or response.getheader("Transfer-Encoding"):
            raise TransportError(f"{self._place.url}: expected `{wanted}` of {artifact.name}, got {given!r}")


class _Head:
    """An answer's head, where http.client expects a socket."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, _mode: str) -> io.BytesIO:
        return io.BytesIO(self._data)


def _parse(place: Place, head: bytes) -> http.client.HTTPResponse:
    if len(head) > _HEAD_BYTES:
        raise TransportError(f"{place.url} answered with a head of {len(head)} bytes, at most {_HEAD_BYTES} are read")
    response = http.client.HTTPResponse(_Head(head), method="GET")  # type: ignore[arg-type]  # it only calls makefile
    try:
        response.begin()
    except (http.client.HTTPException, ValueError) as err:
        raise TransportError(f"{place.url} did not answer as an HTTP server does: {type(err).__name__}") from err
    return response


def open_downloads(settings: LinkSettings) -> Downloads | None:
    """For a gateway that has joined a controller and knows its URL; None for any other."""
    url, ca = settings.controller_url, settings.controller_ca or settings.ca
    if url is None or ca is None or settings.cert is None or settings.key is None:
        return None
    return Downloads(parse_url(url), Path(ca), Path(settings.cert), Path(settings.key))
