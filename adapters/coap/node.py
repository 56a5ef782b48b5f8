"""A node over CoAP: the verbs of `adapters.node.interface` as requests on its resources (adapters/firmware/PROTOCOL.md)."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import Any

from adapters.coap.client import TIMEOUT_S, Answer, CoapClient
from adapters.node import messages
from adapters.node.interface import NodeEvents, Progress
from adapters.node.messages import (
    PROTOCOL_VERSION,
    Capability,
    Hello,
    LineState,
    MalformedMessage,
    ModelState,
    NodeReading,
    NodeRefused,
    Result,
    Source,
    Status,
)
from edge_runtime.errors import AdapterError

_STATUS_OF_CODE = {
    (4, 0): Status.MALFORMED, (4, 1): Status.SIGNATURE, (4, 3): Status.FORBIDDEN, (4, 4): Status.UNKNOWN, (4, 5): Status.UNKNOWN,
    (4, 8): Status.OFFSET, (4, 9): Status.STATE, (4, 13): Status.TOO_LARGE, (5, 3): Status.HARDWARE,
}  # fmt: skip


class CoapNode:
    """One node behind an address. Readings come by Observe; inferences are asked for every period."""

    def __init__(self, uri: str, timeout_s: float = TIMEOUT_S) -> None:
        self._client = CoapClient(uri, timeout_s)
        self._events: NodeEvents | None = None
        self._speaking: asyncio.Task[None] | None = None
        self._fresh = False
        self._malformed = 0
        self._lines = 0

    async def open(self, events: NodeEvents) -> None:
        await self.close()
        self._events = events
        await self._client.open()

    async def close(self) -> None:
        await self._silence()
        await self._client.close()

    async def hello(self) -> Hello:
        said = await self._json("/info")
        if (protocol := _number(said, "protocol")) != PROTOCOL_VERSION:
            raise MalformedMessage(f"the node speaks version {protocol} of the protocol, this gateway {PROTOCOL_VERSION}")
        self._lines = min(_number(said, "lines"), 255)
        return Hello(
            board=_text(said, "board"), node=_number(said, "node"), build=_text(said, "build"), boots=_number(said, "boots_in_all"),
            capabilities=Capability(_number(said, "capabilities") & 0xFF), lines=self._lines, slot_bytes=_number(said, "slot_bytes"),
            arena_bytes=_number(said, "arena_bytes"), reset_cause=_number(said, "reset_cause"),
            highest_confirmed=_number(said, "highest_confirmed"),
        )  # fmt: skip

    async def model(self) -> ModelState:
        said = await self._json("/model")
        source = _number(said, "source")
        if source not in Source._value2member_map_:
            raise MalformedMessage(f"expected a model in the factory place or slot 1 or 2, got source {source}")
        return ModelState(
            name=_text(said, "model"), version=_number(said, "version"), source=Source(source), on_trial=bool(_number(said, "on_trial")),
            boots_on_trial=_number(said, "boots"), seconds_left=_number(said, "seconds_left"), inputs=_number(said, "inputs"),
            outputs=_number(said, "outputs"), rounding=_text(said, "rounding"),
        )  # fmt: skip

    async def read(self) -> NodeReading:
        return _reading(_accepted("read", await self._client.get("/temp", blockwise=False)))

    async def subscribe(self, period_ms: int, *, readings: bool, results: bool) -> None:
        await self._silence()
        if period_ms and (readings or results):
            self._speaking = asyncio.create_task(self._speak(period_ms / 1000, readings, results), name=f"{self._client.uri}:speaking")

    async def infer(self, stored: bytes = b"") -> Result:
        return messages.result(_accepted("infer", await self._client.post("/infer", stored)).payload)

    async def actuate(self, line: int, level: int, lease_ms: int) -> int:
        return _level(_accepted("actuate", await self._client.put(f"/gpio/{line}", f"{level} {lease_ms}".encode())))

    async def level(self, line: int) -> int:
        return _level(_accepted("line", await self._client.get(f"/gpio/{line}", blockwise=False)))

    async def lines(self) -> tuple[LineState, ...]:
        """Their safe level is 0; how long their leases last is not told over CoAP."""
        if not self._lines:
            await self.hello()
        return tuple([LineState(await self.level(line), 0, 0) for line in range(self._lines)])

    async def stats(self) -> dict[str, int]:
        said = await self._json("/stats")
        return {name: _number(said, name) for name in messages.STATS}

    async def upload(self, blob: bytes, version: int, progress: Progress) -> None:
        del version  # the signed one, in the blob, is what the node goes by
        _accepted("upload", await self._client.upload("/model", blob, progress))

    async def trial(self, confirm_s: int) -> None:
        _accepted("trial", await self._client.post("/model", f"trial {confirm_s}".encode()))

    async def confirm(self) -> None:
        _accepted("confirm", await self._client.post("/model", b"confirm"))

    async def rollback(self) -> None:
        _accepted("rollback", await self._client.post("/model", b"rollback"))

    def counters(self) -> dict[str, int]:
        return {"malformed": self._malformed} | self._client.counters()

    def describe(self) -> str:
        return self._client.uri

    # -- speaking ---------------------------------------------------------------------------------------------------------------

    async def _speak(self, period_s: float, readings: bool, results: bool) -> None:
        try:
            async with asyncio.TaskGroup() as tasks:
                if readings:
                    tasks.create_task(self._observe(), name=f"{self._client.uri}:observe")
                tasks.create_task(self._ask(period_s, readings, results), name=f"{self._client.uri}:ask")
        except* AdapterError as group:
            if self._events is not None:
                self._events.on_lost(str(group.exceptions[0]))

    async def _observe(self) -> None:
        """Readings as they change. A node that forgot this observer (a reset) is asked for the readings by `_ask`."""
        async for answer in self._client.observe("/temp"):
            self._hand_over(answer)

    async def _ask(self, period_s: float, readings: bool, results: bool) -> None:
        while True:
            await asyncio.sleep(period_s)
            if readings and not self._fresh:
                self._hand_over(await self._client.get("/temp", blockwise=False))
            self._fresh = False
            if results and self._events is not None:
                with suppress(NodeRefused, MalformedMessage):
                    self._events.on_result(await self.infer())

    def _hand_over(self, answer: Answer) -> None:
        self._fresh = True
        if self._events is None:
            return
        try:
            self._events.on_reading(_reading(answer) if answer.ok else NodeReading(0, 0, None))
        except MalformedMessage:
            self._malformed += 1

    async def _silence(self) -> None:
        speaking, self._speaking = self._speaking, None
        if speaking is not None:
            speaking.cancel()
            with suppress(asyncio.CancelledError):
                await speaking

    async def _json(self, path: str) -> dict[str, Any]:
        answer = _accepted(path, await self._client.get(path))
        try:
            said = json.loads(answer.payload)
        except (ValueError, RecursionError) as err:
            raise MalformedMessage(f"expected JSON from {path}, got {answer.payload[:40]!r}") from err
        if not isinstance(said, dict):
            raise MalformedMessage(f"expected a JSON object from {path}, got {answer.payload[:40]!r}")
        return said


def _accepted(what: str, answer: Answer) -> Answer:
    """Raises NodeRefused with the status that the node tells in its text, else with the one that its code means."""
    if answer.ok:
        return answer
    first = answer.payload.split(b" ", 1)[0]
    try:
        status = int(first) if len(first) < 5 else 0
    except ValueError:
        status = 0
    raise NodeRefused(what, status or _STATUS_OF_CODE.get(answer.code, Status.STATE), answer.said.encode())


def _reading(answer: Answer) -> NodeReading:
    try:
        return NodeReading(0, 0, float(answer.payload[:32]))
    except ValueError as err:
        raise MalformedMessage(f"expected degrees as text, got {answer.payload[:40]!r}") from err


def _level(answer: Answer) -> int:
    if answer.payload not in (b"0", b"1"):
        raise MalformedMessage(f"expected a level of 0 or 1, got {answer.payload[:40]!r}")
    return int(answer.payload)


def _number(said: dict[str, Any], key: str) -> int:
    value = said.get(key)
    if type(value) is not int or not 0 <= value < 1 << 32:
        raise MalformedMessage(f"expected a whole number as `{key}`, got {value!r}")
    return value


def _text(said: dict[str, Any], key: str) -> str:
    value = said.get(key)
    if not isinstance(value, str):
        raise MalformedMessage(f"expected a text as `{key}`, got {value!r}")
    return value[:64]
