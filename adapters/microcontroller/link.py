"""Requests and events over one UART: one request at a time, repeated when it stays without an answer, events in order.

What a payload means is the business of `adapters.node.messages`.
"""

from __future__ import annotations

import asyncio
import statistics
from collections import deque
from collections.abc import Callable
from time import perf_counter

from adapters.microcontroller.frames import Decoder, Frame, Sequence, encode, wire_time_s
from adapters.node.messages import Event, NodeRefused, NoticeKind, Request
from adapters.serial_port import Line, SerialPort
from edge_runtime.errors import AdapterDisconnected

ANSWER_TIMEOUT_S = 0.5
TRIES = 3

_REPLY = 0x80
_REMEMBERED_TRIPS = 64

EventSink = Callable[[int, bytes], None]
"""`(type, payload)` of an event, in order and once each."""


class SerialLink:
    """One node's UART. `on_event` and `on_lost(reason)` are called on the loop."""

    def __init__(self, line: Line, on_event: EventSink, on_lost: Callable[[str], None]) -> None:
        self.requests = self.repeats = self.stray_replies = self.events = 0
        self._baud = line.baud
        self._decoder = Decoder()
        self._sequence = Sequence()
        self._on_event = on_event
        self._on_lost = on_lost
        self._port = SerialPort("node", line)
        self._turn = asyncio.Lock()
        self._pending: tuple[int, int, asyncio.Future[Frame]] | None = None
        self._seq = 0
        self._lost = "it is not open"
        self._trips: deque[tuple[float, float]] = deque(maxlen=_REMEMBERED_TRIPS)

    async def open(self) -> None:
        """Raises AdapterDisconnected when nobody is there."""
        await self._port.open(self._receive, self._lose)
        self._lost = ""
        await self._port.write(b"\0")

    async def close(self) -> None:
        self._lost = self._lost or "it was closed"
        self._port.close()

    @property
    def counters(self) -> dict[str, int]:
        """What went over the link and what was wrong with it, since it was made."""
        return {
            "requests": self.requests,
            "repeats": self.repeats,
            "stray_replies": self.stray_replies,
            "events": self.events,
            "events_missed": self._sequence.gaps,
            "events_repeated": self._sequence.duplicates,
            "bad_frames": self._decoder.bad_frames,
            "garbage_bytes": self._decoder.garbage_bytes,
        }

    def trip_ms(self) -> tuple[float, float] | None:
        """Median round trip of the last requests, and what their bytes alone take on a wire of this speed."""
        if not self._trips:
            return None
        measured, wire = zip(*self._trips, strict=True)
        return statistics.median(measured) * 1e3, statistics.median(wire) * 1e3

    async def request(self, kind: Request, payload: bytes = b"", *, timeout_s: float = ANSWER_TIMEOUT_S, tries: int = TRIES) -> bytes:
        """What follows the status of the reply. Raises NodeRefused for another status than ok, AdapterDisconnected without an answer."""
        async with self._turn:
            self._seq = (self._seq + 1) & 0xFFFF
            frame = encode(Frame(kind, self._seq, payload))
            self.requests += 1
            for attempt in range(tries):
                self.repeats += attempt > 0
                reply = await self._exchange(kind, frame, timeout_s + wire_time_s(len(frame), self._baud))
                if reply is not None:
                    return _checked(kind, reply.payload)
        raise AdapterDisconnected(f"the node did not answer `{kind.name.lower()}`, asked {tries} times")

    async def _exchange(self, kind: Request, frame: bytes, timeout_s: float) -> Frame | None:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[Frame] = loop.create_future()
        self._pending = (kind + _REPLY, self._seq, answer)
        started = perf_counter()
        timer = loop.call_later(timeout_s, _give_up, answer)
        try:
            if self._lost:
                raise AdapterDisconnected(self._lost)
            await self._port.write(frame)
            reply = await answer
            self._trips.append((perf_counter() - started, wire_time_s(len(frame) + len(reply.payload) + 7, self._baud)))
            return reply
        except TimeoutError:
            return None
        finally:
            timer.cancel()
            self._pending = None

    def _receive(self, data: bytes) -> None:
        for frame in self._decoder.feed(data):
            if frame.type >= _REPLY:
                self._answer(frame)
            else:
                self._event(frame)

    def _answer(self, frame: Frame) -> None:
        if self._pending is None or self._pending[:2] != (frame.type, frame.seq) or self._pending[2].done():
            self.stray_replies += 1
        else:
            self._pending[2].set_result(frame)

    def _event(self, frame: Frame) -> None:
        if frame.type == Event.NOTICE and frame.payload[:1] == bytes((NoticeKind.BOOTED,)):
            self._sequence.restart()
        if self._sequence.accept(frame.type, frame.seq):
            self.events += 1
            self._on_event(frame.type, frame.payload)

    def _lose(self, err: AdapterDisconnected) -> None:
        self._lost = reason = str(err)
        if self._pending is not None and not self._pending[2].done():
            self._pending[2].set_exception(AdapterDisconnected(reason))
        self._on_lost(reason)


def _give_up(answer: asyncio.Future[Frame]) -> None:
    if not answer.done():
        answer.set_exception(TimeoutError())


def _checked(kind: Request, payload: bytes) -> bytes:
    status = int.from_bytes(payload[:1], "little", signed=True) if payload else 0
    if not payload or status:
        raise NodeRefused(kind.name.lower(), status if payload else -8, payload[1:])
    return payload[1:]
