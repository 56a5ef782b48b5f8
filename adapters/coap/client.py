"""A CoAP client for one host: requests, observations and block transfers, through aiocoap. The only module that asks with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any, NamedTuple

from edge_runtime.errors import AdapterDisconnected, AdapterError, MissingDependency

TIMEOUT_S = 5.0

_BLOCK_SIZE_EXPONENT = 6
BLOCK_BYTES = 1024
_MOST_ANSWER_BYTES = 1 << 20


class Answer(NamedTuple):
    """A response: its code as `class, detail` (2.05 is 2, 5), its payload and its content format (None: none told)."""

    code: tuple[int, int]
    payload: bytes
    format: int | None

    @property
    def ok(self) -> bool:
        return self.code[0] == 2

    @property
    def said(self) -> str:
        """The code and, of an error, its text."""
        text = self.payload[:100].decode("utf-8", "replace")
        text = "".join(letter if letter.isprintable() else "?" for letter in text)
        return f"{self.code[0]}.{self.code[1]:02d}{f' ({text})' if text and not self.ok else ''}"


class CoapClient:
    """One host, `coap://host[:port]`. Every call raises AdapterDisconnected when nothing answers in time."""

    def __init__(self, uri: str, timeout_s: float = TIMEOUT_S) -> None:
        self.uri = uri.rstrip("/")
        self.requests = self.timeouts = self.notifications = 0
        self._timeout_s = timeout_s
        self._aiocoap: Any = None
        self._context: Any = None

    async def open(self) -> None:
        """Takes a socket; says nothing yet. Raises MissingDependency without aiocoap."""
        await self.close()
        self._aiocoap = _library()
        self._context = await self._aiocoap.Context.create_client_context()

    async def close(self) -> None:
        """May be called again."""
        context, self._context = self._context, None
        if context is not None:
            await context.shutdown()

    async def get(self, path: str, *, blockwise: bool = True) -> Answer:
        return await self._request("GET", path, blockwise=blockwise)

    async def put(self, path: str, payload: bytes, *, format: int | None = None) -> Answer:
        return await self._request("PUT", path, payload, format)

    async def post(self, path: str, payload: bytes, *, format: int | None = None) -> Answer:
        return await self._request("POST", path, payload, format)

    async def upload(self, path: str, payload: bytes, progress: Callable[[int, int], None]) -> Answer:
        """PUT in blocks of 1,024 bytes (RFC 7959, Block1), one after the other; the answer to the last one, or to the one refused."""
        answer = Answer((4, 0), b"", None)
        for start in range(0, max(1, len(payload)), BLOCK_BYTES):
            block = payload[start : start + BLOCK_BYTES]
            more = start + len(block) < len(payload)
            answer = await self._request("PUT", path, block, block1=(start // BLOCK_BYTES, more, _BLOCK_SIZE_EXPONENT))
            if not answer.ok:
                return answer
            progress(start + len(block), len(payload))
        return answer

    async def observe(self, path: str) -> AsyncIterator[Answer]:
        """The answer now and every notification. Ends when the server ends it; raises AdapterDisconnected when it cannot be reached."""
        request = self._send(self._message("GET", path, observe=0), blockwise=True)
        try:
            yield await self._settled(request.response)
            if request.observation is None or request.observation.cancelled:
                return
            with suppress(self._aiocoap.error.NotObservable, self._aiocoap.error.ObservationCancelled):
                async for message in request.observation:
                    self.notifications += 1
                    yield _answer(message)
        except self._aiocoap.error.Error as err:
            raise AdapterDisconnected(f"{self.uri}{path}: {err}") from err
        finally:
            if request.observation is not None and not request.observation.cancelled:
                request.observation.cancel()

    def counters(self) -> dict[str, int]:
        return {"requests": self.requests, "timeouts": self.timeouts, "notifications": self.notifications}

    async def _request(
        self,
        method: str,
        path: str,
        payload: bytes = b"",
        format: int | None = None,
        *,
        blockwise: bool = False,
        block1: tuple[int, bool, int] | None = None,
    ) -> Answer:
        options = {} if block1 is None else {"block1": block1}
        if format is not None:
            options["content_format"] = format  # type: ignore[assignment]  # options are of many types
        message = self._message(method, path, payload=payload, **options)
        return await self._settled(self._send(message, blockwise=blockwise).response)

    async def _settled(self, response: asyncio.Future[Any]) -> Answer:
        try:
            async with asyncio.timeout(self._timeout_s):
                return _answer(await response)
        except TimeoutError as err:
            self.timeouts += 1
            raise AdapterDisconnected(f"{self.uri} did not answer within {self._timeout_s:g} s") from err
        except (self._aiocoap.error.Error, OSError) as err:
            self.timeouts += 1
            raise AdapterDisconnected(f"{self.uri}: {err or type(err).__name__}") from err

    def _message(self, method: str, path: str, **fields: Any) -> Any:
        self._aiocoap = self._aiocoap or _library()
        try:
            return self._aiocoap.Message(code=getattr(self._aiocoap, method), uri=f"{self.uri}{path}", **fields)
        except ValueError as err:
            raise AdapterError(f"{self.uri}{path} is no CoAP address: {err}") from err

    def _send(self, message: Any, *, blockwise: bool) -> Any:
        if self._context is None:
            raise AdapterDisconnected(f"{self.uri}: not open")
        self.requests += 1
        return self._context.request(message, handle_blockwise=blockwise)


def _answer(message: Any) -> Answer:
    if len(message.payload) > _MOST_ANSWER_BYTES:
        raise AdapterError(f"expected an answer of at most {_MOST_ANSWER_BYTES} bytes, got {len(message.payload)}")
    code = int(message.code)
    told = message.opt.content_format
    return Answer((code >> 5, code & 31), bytes(message.payload), None if told is None else int(told))


def _library() -> Any:
    try:
        import aiocoap
    except ImportError as err:
        raise MissingDependency("aiocoap", "coap") from err
    return aiocoap
