"""A node on a UART: the verbs of `adapters.node.interface` as requests on a `SerialLink`."""

from __future__ import annotations

from zlib import crc32

from adapters.microcontroller.link import SerialLink
from adapters.node import messages
from adapters.node.interface import NodeEvents, Progress
from adapters.node.messages import (
    Event,
    Hello,
    LineState,
    MalformedMessage,
    ModelState,
    NodeReading,
    NodeRefused,
    Request,
    Result,
    Status,
    What,
)
from adapters.node.upload import Upload, after_data, next_chunk
from adapters.serial_port import Line
from edge_runtime.errors import AdapterDisconnected

_INFER_TIMEOUT_S = 5.0


class SerialNode:
    """One node behind a serial port."""

    def __init__(self, port: str, baud: int = 115_200) -> None:
        self._line = Line(port=port, baud=baud)
        self._link: SerialLink | None = None
        self._events: NodeEvents | None = None
        self._malformed = 0

    async def open(self, events: NodeEvents) -> None:
        await self.close()
        self._events = events
        self._link = SerialLink(self._line, self._on_event, events.on_lost)
        await self._link.open()

    async def close(self) -> None:
        link, self._link = self._link, None
        if link is not None:
            await link.close()

    async def ping(self, payload: bytes = b"") -> bytes:
        """The same bytes, 0 to 64 of them."""
        return await self._ask(Request.PING, payload)

    async def hello(self) -> Hello:
        return messages.hello(await self._ask(Request.HELLO))

    async def model(self) -> ModelState:
        return messages.model(await self._ask(Request.MODEL))

    async def read(self) -> NodeReading:
        return messages.reading(await self._ask(Request.READ))

    async def subscribe(self, period_ms: int, *, readings: bool, results: bool) -> None:
        what = What((What.READINGS if readings else 0) | (What.INFERENCES if results else 0) or What.READINGS)
        await self._ask(Request.SUBSCRIBE, messages.subscribe(period_ms, what))

    async def infer(self, stored: bytes = b"") -> Result:
        return messages.result(await self._ask(Request.INFER, stored, timeout_s=_INFER_TIMEOUT_S))

    async def actuate(self, line: int, level: int, lease_ms: int) -> int:
        answer = await self._ask(Request.ACTUATE, messages.actuate(line, level, lease_ms))
        return answer[0] if answer else level

    async def level(self, line: int) -> int:
        return (await self.lines())[line].level

    async def lines(self) -> tuple[LineState, ...]:
        return messages.lines(await self._ask(Request.LINES))

    async def stats(self) -> dict[str, int]:
        return messages.stats(await self._ask(Request.STATS))

    async def upload(self, blob: bytes, version: int, progress: Progress) -> None:
        largest = messages.u16(await self._ask(Request.OTA_BEGIN, messages.ota_begin(len(blob), crc32(blob), version)))
        upload = Upload(len(blob), min(largest, messages.MOST_CHUNK_BYTES))
        while (chunk := next_chunk(upload)) is not None:
            upload = await self._send_chunk(upload, blob, *chunk)
            progress(upload.offset, upload.size)
        await self._ask(Request.OTA_COMMIT, timeout_s=_INFER_TIMEOUT_S)

    async def trial(self, confirm_s: int) -> None:
        await self._ask(Request.OTA_TRIAL, messages.ota_trial(confirm_s))

    async def confirm(self) -> None:
        await self._ask(Request.OTA_CONFIRM)

    async def rollback(self) -> None:
        await self._ask(Request.OTA_ROLLBACK)

    def counters(self) -> dict[str, int]:
        return {"malformed": self._malformed} | (self._link.counters if self._link else {})

    def describe(self) -> str:
        trip = self._link.trip_ms() if self._link else None
        if trip is None:
            return self._line.port
        wire = f"its bytes alone take {trip[1]:.2f} ms on a wire at {self._line.baud} baud"
        return f"{self._line.port}: round trip {trip[0]:.2f} ms measured; {wire}"

    async def _send_chunk(self, upload: Upload, blob: bytes, start: int, end: int) -> Upload:
        try:
            there = messages.u32(await self._ask(Request.OTA_DATA, messages.ota_data(start, blob[start:end])))
        except NodeRefused as err:
            if err.status is not Status.OFFSET:
                raise
            there = messages.u32(err.detail)
        return after_data(upload, there)

    async def _ask(self, kind: Request, payload: bytes = b"", *, timeout_s: float | None = None) -> bytes:
        if self._link is None:
            raise AdapterDisconnected(f"{self._line.port}: not open")
        if timeout_s is None:
            return await self._link.request(kind, payload)
        return await self._link.request(kind, payload, timeout_s=timeout_s)

    def _on_event(self, kind: int, payload: bytes) -> None:
        if self._events is None:
            return
        try:
            if kind == Event.READING:
                self._events.on_reading(messages.reading(payload))
            elif kind == Event.INFERENCE:
                self._events.on_result(messages.inference(payload)[1])
            elif kind == Event.NOTICE:
                self._events.on_notice(messages.notice(payload))
        except MalformedMessage:
            self._malformed += 1
