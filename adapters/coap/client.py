"""A CoAP client for one host: requests, observations and block transfers, through aiocoap. The only module that asks with it."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, NamedTuple

from edge_runtime.errors import AdapterDisconnected, AdapterError, MissingDependency

TIMEOUT_S = 5.0

_BLOCK_SIZE_EXPONENT = 6
BLOCK_BYTES = 1024
_MOST_ANSWER_BYTES = 1 << 20
_MOST_WAITING = 64
_OBSERVE_AGE_S = 128.0


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


class _Exchange:
    """One request on its way: what comes for it, and its end at once, with no task of aiocoap's that outlives it."""

    def __init__(self, pipe: Any, context: Any) -> None:
        self.context = context
        self._events: deque[Any] = deque(maxlen=_MOST_WAITING)
        self._arrived = asyncio.Event()
        self.stop: Callable[[], None] = pipe.on_event(self._take)

    def _take(self, event: Any) -> bool:
        self._events.append(event)
        self._arrived.set()
        return not event.is_last

    async def next(self) -> tuple[Any, bool]:
        """A message, and whether it is the last. Raises aiocoap's error, of which there is one at most and which is the last."""
        while not self._events:
            self._arrived.clear()
            await self._arrived.wait()
        event = self._events.popleft()
        if event.exception is not None:
            raise event.exception
        return event.message, event.is_last


class CoapClient:
    """One host, `coap://host[:port]`. Every call raises AdapterDisconnected when nothing answers in time."""

    def __init__(self, uri: str, timeout_s: float = TIMEOUT_S) -> None:
        self.uri = uri.rstrip("/")
        self.requests = self.timeouts = self.notifications = 0
        self._timeout_s = timeout_s
        self._aiocoap: Any = None
        self._context: Any = None
        self._opened = False
        self._beginning = asyncio.Lock()
        self._interface: Any = None
        self._remote: Any = None

    async def open(self) -> None:
        """Takes a socket; says nothing yet. Raises MissingDependency without aiocoap."""
        await self.close()
        self._aiocoap = _library()
        self._opened = True
        await self._begin()

    async def close(self) -> None:
        """May be called again."""
        self._opened = False
        await self._abandon(self._context)

    async def get(self, path: str, *, blockwise: bool = True) -> Answer:
        """With `blockwise` the whole of it, at most 1 MiB; without, what one datagram holds. Raises AdapterError when it is more."""
        message = await self._request("GET", path)
        return _answer(message) if not blockwise else await self._whole(path, message)

    async def put(self, path: str, payload: bytes, *, format: int | None = None) -> Answer:
        return _answer(await self._request("PUT", path, payload, content_format=format))

    async def post(self, path: str, payload: bytes, *, format: int | None = None) -> Answer:
        return _answer(await self._request("POST", path, payload, content_format=format))

    async def upload(self, path: str, payload: bytes, progress: Callable[[int, int], None]) -> Answer:
        """PUT in blocks of 1,024 bytes (RFC 7959, Block1), one after the other; the answer to the last one, or to the one refused."""
        answer = Answer((4, 0), b"", None)
        for start in range(0, max(1, len(payload)), BLOCK_BYTES):
            block = payload[start : start + BLOCK_BYTES]
            more = start + len(block) < len(payload)
            answer = _answer(await self._request("PUT", path, block, block1=(start // BLOCK_BYTES, more, _BLOCK_SIZE_EXPONENT)))
            if not answer.ok:
                return answer
            progress(start + len(block), len(payload))
        return answer

    async def observe(self, path: str) -> AsyncIterator[Answer]:
        """The answer now and every notification. Ends when the server ends it; raises AdapterDisconnected when it cannot be reached."""
        exchange = await self._send("GET", path, observe=0)
        try:
            message, last = await self._settled(exchange)
            newest = _Newest(message.opt.observe)
            yield await self._whole(path, message)
            while not last:
                message, last = await exchange.next()
                self.notifications += 1
                if last or newest.takes(message.opt.observe):
                    yield await self._whole(path, message)
        except (self._aiocoap.error.Error, OSError) as err:
            raise AdapterDisconnected(f"{self.uri}{path}: {err or type(err).__name__}") from err
        finally:
            exchange.stop()

    def counters(self) -> dict[str, int]:
        return {"requests": self.requests, "timeouts": self.timeouts, "notifications": self.notifications}

    async def _request(self, method: str, path: str, payload: bytes = b"", **options: Any) -> Any:
        exchange = await self._send(method, path, payload, **options)
        try:
            return (await self._settled(exchange))[0]
        finally:
            exchange.stop()

    async def _whole(self, path: str, first: Any) -> Answer:
        """The answer of which `first` is the first block, the others asked for one by one (RFC 7959, Block2)."""
        parts, block = [first.payload], first.opt.block2
        while block is not None and block.more:
            got = sum(map(len, parts))
            if got >= _MOST_ANSWER_BYTES:
                raise AdapterError(f"{self.uri}{path}: expected an answer of at most {_MOST_ANSWER_BYTES} bytes, got more")
            asked = (got >> block.size_exponent + 4, False, block.size_exponent)
            message = await self._request("GET", path, block2=asked)
            block = message.opt.block2
            if not message.code.is_successful() or block is None or block.start != got or message.opt.etag != first.opt.etag:
                raise AdapterError(f"{self.uri}{path} changed, or broke off, while its blocks were fetched: {_answer(message).said}")
            parts.append(message.payload)
        return _answer(first)._replace(payload=b"".join(parts))

    async def _settled(self, exchange: _Exchange) -> tuple[Any, bool]:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await exchange.next()
        except TimeoutError as err:
            self.timeouts += 1
            await self._abandon(exchange.context)
            raise AdapterDisconnected(f"{self.uri} did not answer within {self._timeout_s:g} s") from err
        except (self._aiocoap.error.Error, OSError) as err:
            self.timeouts += 1
            raise AdapterDisconnected(f"{self.uri}: {err or type(err).__name__}") from err

    async def _send(self, method: str, path: str, payload: bytes = b"", **options: Any) -> _Exchange:
        if not self._opened:
            raise AdapterDisconnected(f"{self.uri}: not open")
        await self._begin()
        message = self._message(method, path, payload, options)
        if self._interface is None:
            await self._resolve(message)
        message.remote = self._remote
        self.requests += 1
        pipe = self._aiocoap.pipe.Pipe(message, self._context.log)
        exchange = _Exchange(pipe, self._context)
        self._interface.request(pipe)
        return exchange

    async def _begin(self) -> None:
        async with self._beginning:
            if self._context is None:
                context = await self._aiocoap.Context.create_client_context()
                if not self._opened:
                    await context.shutdown()
                    raise AdapterDisconnected(f"{self.uri}: closed")
                self._context = context

    async def _abandon(self, context: Any) -> None:
        """Lets a socket go with all that is under way on it: aiocoap holds back what is sent after a request that is not acknowledged."""
        if context is not None and context is self._context:
            self._context = self._interface = None
            await context.shutdown()

    async def _resolve(self, message: Any) -> None:
        """The address is looked up once for as long as the client is open."""
        try:
            async with asyncio.timeout(self._timeout_s):
                self._interface = await self._context.find_remote_and_interface(message)
        except (TimeoutError, self._aiocoap.error.Error, OSError) as err:
            raise AdapterDisconnected(f"{self.uri}: its address was not found: {err or type(err).__name__}") from err
        self._remote = message.remote

    def _message(self, method: str, path: str, payload: bytes, options: dict[str, Any]) -> Any:
        self._aiocoap = self._aiocoap or _library()
        told = {name: value for name, value in options.items() if value is not None}
        try:
            return self._aiocoap.Message(code=getattr(self._aiocoap, method), uri=f"{self.uri}{path}", payload=payload, **told)
        except ValueError as err:
            raise AdapterError(f"{self.uri}{path} is no CoAP address: {err}") from err


class _Newest:
    """Which notifications are newer than those before (RFC 7641, section 3.4). `first` is None when there will be none."""

    def __init__(self, first: int | None) -> None:
        self._number, self._at_s = first or 0, time.monotonic()

    def takes(self, number: int | None) -> bool:
        ahead = ((number or 0) - self._number) % (1 << 24)
        fresh = 0 < ahead < 1 << 23 or time.monotonic() > self._at_s + _OBSERVE_AGE_S
        if fresh:
            self._number, self._at_s = number or 0, time.monotonic()
        return fresh


def _answer(message: Any) -> Answer:
    if len(message.payload) > _MOST_ANSWER_BYTES:
        raise AdapterError(f"expected an answer of at most {_MOST_ANSWER_BYTES} bytes, got {len(message.payload)}")
    code = int(message.code)
    told = message.opt.content_format
    return Answer((code >> 5, code & 31), bytes(message.payload), None if told is None else int(told))


def _library() -> Any:
    try:
        import aiocoap
        import aiocoap.pipe
    except ImportError as err:
        raise MissingDependency("aiocoap", "coap") from err
    return aiocoap
