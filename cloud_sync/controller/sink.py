"""Takes the uplinks of every gateway into the database, and acknowledges after the commit: to the gateway and to the broker.

Many messages share one commit (group commit): while a commit runs, the next messages collect. While the database is away or full
nothing is acknowledged and no more is kept than the limit: the gateways have it. It pushes nothing to gateways but `dn/ack`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from cloud_sync.backoff import full_jitter_s
from cloud_sync.cancellation import stoppable
from cloud_sync.controller.ingest import Committed, Message, Origin, RecordWriter, commit, crash_point
from cloud_sync.messages import MAX_BATCHES, encode_ack
from cloud_sync.topics import ALL_REPORTS, ALL_TELEMETRY, ALL_UPLINKS, GatewayTopics
from edge_runtime.errors import DeadlineExceeded, StoreError, TransportError
from edge_runtime.ports import TransportSession

_log = logging.getLogger(__name__)
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_MAX_GROUP = 512
_RECONNECT_MAX_S = 2.0
_RETRY_MAX_S = 2.0
_TAKEN = ("/tlm", "/status", "/state")


class SinkSession(TransportSession, Protocol):
    """A session whose messages can be acknowledged to the broker later."""

    async def subscribe_deferred(
        self, topic_filter: str, handler: Callable[[str, bytes, Callable[[], None]], None], qos: int = 1
    ) -> None: ...


class SinkTransport(Protocol):
    """A way to the broker for the sink."""

    async def connect(self, will_topic: str = "", will_payload: bytes = b"") -> SinkSession: ...


def _ignore(_session: SinkSession) -> None:
    return


class Sink:
    """Runs until cancelled. `on_ready` is called at every (re)connection, once the subscriptions stand."""

    def __init__(
        self,
        transport: SinkTransport,
        db: RecordWriter,
        *,
        share: str = "",
        tenant: str = "+",
        on_ready: Callable[[SinkSession], None] = _ignore,
    ) -> None:
        self._transport = transport
        self._db = db
        self._filters = _filters(share, tenant)
        self._on_ready = on_ready
        self._waiting: list[Message] = []
        self._waiting_bytes = 0
        self._reports_shed = False
        self._committing_since_s = 0.0
        self._arrived = asyncio.Event()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sink-writer")
        self.messages = 0
        self.rows = 0
        self.duplicates = 0
        self.rejected = 0
        self.shed = 0
        self.commits = 0
        self.commit_s = 0.0
        self.connected = False
        self.store_up = True
        self.store_failures = 0

    async def run(self) -> None:
        """Connects, serves, reconnects; ends by cancellation. The writer stays open: it is the caller's to close."""
        attempt = 0
        try:
            while True:
                started, commits = time.monotonic(), self.commits
                reason = await stoppable(self._attempt())
                steady = self.commits > commits or time.monotonic() - started > _RECONNECT_MAX_S
                attempt = 0 if steady else attempt + 1
                if attempt <= 1:
                    _log.warning("sink_link_down reason=%r", reason)
                await asyncio.sleep(full_jitter_s(attempt, 0.2, _RECONNECT_MAX_S, random.random))
        finally:
            self._writer.shutdown(wait=True)

    @property
    def waiting_bytes(self) -> int:
        """Payload that waits for its commit."""
        return self._waiting_bytes

    @property
    def lag_s(self) -> float:
        """How long the oldest message that is not committed yet has been here; 0 when there is none."""
        since = self._committing_since_s or (self._waiting[0].arrived_s if self._waiting else 0.0)
        return time.monotonic() - since if since else 0.0

    async def _attempt(self) -> str:
        try:
            session = await self._transport.connect()
        except (TransportError, DeadlineExceeded) as err:
            return str(err)
        reason = "ended"
        try:
            for topic_filter in self._filters:
                await session.subscribe_deferred(topic_filter, self._receive)
            self.connected = True
            self._on_ready(session)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(session), name="sink-write")
                tasks.create_task(_raise_when_closed(session), name="sink-watch")
        except* (TransportError, DeadlineExceeded, StoreError) as group:
            reason = str(group.exceptions[0])
        finally:
            self.connected = False
            self._waiting.clear()
            self._waiting_bytes, self._committing_since_s = 0, 0.0
            await session.close()
        return reason

    def _receive(self, topic: str, payload: bytes, acknowledge: Callable[[], None]) -> None:
        if not topic.endswith(_TAKEN):
            acknowledge()  # somebody else's, such as a request for a blob
            return
        if self._waiting_bytes + len(payload) > _MAX_WAITING_BYTES:
            self.shed += 1  # the gateway sends telemetry again; reports are retained, so a new session hears them again
            self._reports_shed = self._reports_shed or not topic.endswith("/tlm")
            acknowledge()
            return
        self._waiting.append(Message(topic, payload, acknowledge, time.monotonic()))
        self._waiting_bytes += len(payload)
        self._arrived.set()

    async def _write(self, session: SinkSession) -> None:
        acknowledging: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as tasks:
            while True:
                group = await self._next_group()
                self._committing_since_s = group[0].arrived_s
                done = await self._store(group)
                self._committing_since_s = 0.0
                self._count(group, done)
                if done.batches:
                    crash_point("before_ack")
                if acknowledging is not None:
                    await acknowledging
                acknowledging = tasks.create_task(_acknowledge(session, group, done), name="sink-acknowledge")
                if self._reports_shed:
                    await acknowledging
                    self._reports_shed = False
                    raise TransportError("reports were thrown away for want of room: asking the broker for the retained ones again")

    async def _store(self, group: Sequence[Message]) -> Committed:
        """Commits a group, however long the database is away."""
        loop, attempt, since = asyncio.get_running_loop(), 0, 0.0
        while True:
            begun = loop.time()
            try:
                done = await loop.run_in_executor(self._writer, commit, self._db, group, time.time_ns())
                break
            except StoreError as err:
                if attempt == 0:
                    since = loop.time()
                    _log.error("store_down problem=%r", str(err))
                attempt, self.store_up = attempt + 1, False
                self.store_failures += 1
                await asyncio.sleep(full_jitter_s(attempt, 0.1, _RETRY_MAX_S, random.random))
        self.store_up = True
        self.commit_s += loop.time() - begun
        if attempt:
            _log.warning("store_up down_s=%.1f", loop.time() - since)
        return done

    async def _next_group(self) -> list[Message]:
        while not self._waiting:
            self._arrived.clear()
            await self._arrived.wait()
        group, self._waiting = self._waiting[:_MAX_GROUP], self._waiting[_MAX_GROUP:]
        self._waiting_bytes -= sum(len(message.payload) for message in group)
        return group

    def _count(self, group: Sequence[Message], done: Committed) -> None:
        self.messages += len(group)
        self.rows += done.rows
        self.duplicates += done.duplicates
        self.rejected += done.rejected
        self.commits += 1


async def _acknowledge(session: SinkSession, group: Sequence[Message], done: Committed) -> None:
    for message in group:
        message.acknowledge()
    async with asyncio.TaskGroup() as tasks:
        for origin, first_seqs in done.batches.items():
            tasks.create_task(_acknowledge_gateway(session, origin, first_seqs, done.refused.get(origin, [])))


async def _acknowledge_gateway(session: SinkSession, origin: Origin, first_seqs: Sequence[int], refused: Sequence[int]) -> None:
    topic = GatewayTopics(origin.tenant, origin.gateway).ack
    first_seqs = list(dict.fromkeys(first_seqs))
    for start in range(0, len(first_seqs), MAX_BATCHES):
        part = first_seqs[start : start + MAX_BATCHES]
        await session.publish(topic, encode_ack(origin.boot, part, [seq for seq in refused if seq in part]))


def _filters(share: str, tenant: str) -> tuple[str, ...]:
    def of(topic_filter: str) -> str:
        return topic_filter.replace("/+/g/", f"/{tenant}/g/")

    if not share:  # one round trip: a link that breaks every few hundred milliseconds has no time for three
        return (of(ALL_UPLINKS),)
    return (*map(of, ALL_REPORTS), f"$share/{share}/{of(ALL_TELEMETRY)}")


async def _raise_when_closed(session: TransportSession) -> None:
    raise TransportError(await session.closed())
