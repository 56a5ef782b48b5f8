"""A broker inside the process, with faults to inject: for demonstrations without a network, and for tests.

Delivers at once, in order, QoS 1 at most; keeps retained messages and wills. It keeps nothing for clients that are away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from cloud_sync.topics import matches
from edge_runtime.errors import MessageTooLarge, TransportError
from edge_runtime.ports import MessageHandler

DeferredHandler = Callable[[str, bytes, Callable[[], None]], None]


@dataclass(slots=True)
class LoopbackFaults:
    """What goes wrong now; change it at any time. `forget` takes messages, confirms them and delivers nothing."""

    refuse: str = ""
    forget: bool = False
    silent: bool = False  # messages are taken and never confirmed
    delay_s: float = 0.0
    duplicates: int = 0  # extra copies of every delivery
    max_inflight: int = 32
    max_packet_bytes: int = 1 << 20


@dataclass(slots=True)
class LoopbackBroker:
    """Holds the sessions, the retained messages and the faults."""

    faults: LoopbackFaults = field(default_factory=LoopbackFaults)
    retained: dict[str, bytes] = field(default_factory=dict)
    published: list[tuple[str, bytes]] = field(default_factory=list)
    sessions: list[LoopbackSession] = field(default_factory=list)

    def cut(self, reason: str = "link cut") -> None:
        """Breaks every connection; wills are sent."""
        for session in list(self.sessions):
            session.drop(reason)

    def deliver(self, topic: str, payload: bytes, retain: bool) -> None:
        if retain:
            self.retained[topic] = payload
        self.published.append((topic, payload))
        if self.faults.forget:
            return
        for session in list(self.sessions):
            for _ in range(1 + self.faults.duplicates):
                session.receive(topic, payload)


class LoopbackTransport:
    """A way to a LoopbackBroker."""

    def __init__(self, broker: LoopbackBroker) -> None:
        self._broker = broker

    async def connect(self, will_topic: str = "", will_payload: bytes = b"") -> LoopbackSession:
        await asyncio.sleep(self._broker.faults.delay_s)
        if self._broker.faults.refuse:
            raise TransportError(f"loopback broker refused the connection: {self._broker.faults.refuse}")
        session = LoopbackSession(self._broker, will_topic, will_payload)
        self._broker.sessions.append(session)
        return session


class LoopbackSession:
    """One connection to a LoopbackBroker."""

    protocol = "loopback"

    def __init__(self, broker: LoopbackBroker, will_topic: str, will_payload: bytes) -> None:
        self._broker = broker
        self._will = (will_topic, will_payload)
        self._handlers: list[tuple[str, DeferredHandler]] = []
        self._ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._slots = asyncio.Semaphore(self.max_inflight)
        self.unacknowledged = 0

    @property
    def max_inflight(self) -> int:
        return self._broker.faults.max_inflight

    @property
    def max_packet_bytes(self) -> int:
        return self._broker.faults.max_packet_bytes

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> None:
        if len(payload) > self.max_packet_bytes:
            raise MessageTooLarge(f"{topic}: {len(payload)} bytes is over the broker's maximum packet size of {self.max_packet_bytes}")
        async with self._slots:
            await asyncio.sleep(self._broker.faults.delay_s)
            self._require_open(topic)
            self._broker.deliver(topic, payload, retain)
            if qos and self._broker.faults.silent:
                raise TransportError(f"{topic}: {await self.closed()}")

    async def subscribe(self, topic_filter: str, handler: MessageHandler, qos: int = 1) -> None:
        def handle(topic: str, payload: bytes, acknowledge: Callable[[], None]) -> None:
            handler(topic, payload)
            acknowledge()

        await self.subscribe_deferred(topic_filter, handle, qos)

    async def subscribe_deferred(self, topic_filter: str, handler: DeferredHandler, qos: int = 1) -> None:
        """As `subscribe`, but the handler says when a message is acknowledged to the broker."""
        await asyncio.sleep(self._broker.faults.delay_s)
        self._require_open(topic_filter)
        self._handlers.append((topic_filter, handler))
        for topic, payload in list(self._broker.retained.items()):
            if matches(topic_filter, topic):
                self._hand_over(handler, topic, payload)

    async def closed(self) -> str:
        return await asyncio.shield(self._ended)

    async def close(self) -> None:
        self._will = ("", b"")
        self.drop("closed by this side")

    def drop(self, reason: str) -> None:
        """Ends the connection; the will is sent unless this side said goodbye."""
        if self._ended.done():
            return
        self._ended.set_result(reason)
        self._broker.sessions.remove(self)
        if self._will[0]:
            self._broker.deliver(*self._will, retain=True)

    def receive(self, topic: str, payload: bytes) -> None:
        for topic_filter, handler in self._handlers:
            if matches(topic_filter, topic):
                self._hand_over(handler, topic, payload)
                return

    def _hand_over(self, handler: DeferredHandler, topic: str, payload: bytes) -> None:
        self.unacknowledged += 1
        handler(topic, payload, self._acknowledged)

    def _acknowledged(self) -> None:
        self.unacknowledged -= 1

    def _require_open(self, topic: str) -> None:
        if self._ended.done():
            raise TransportError(f"{topic}: {self._ended.result()}")
