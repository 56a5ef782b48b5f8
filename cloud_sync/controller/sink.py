"""Takes the uplinks of every gateway into the database, and acknowledges after the commit: to the gateway and to the broker.

Many messages share one commit (group commit): while a commit runs, the next messages collect. A message that cannot be read is
counted, kept in quarantine where it has an owner, and never holds up the others. It pushes nothing to gateways but `dn/ack`.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from cloud_sync.backoff import full_jitter_s
from cloud_sync.controller.database import Database, Origin
from cloud_sync.messages import MAX_BATCHES, PackedBatch, decode_envelope, decode_state, decode_status, encode_ack
from cloud_sync.topics import ALL_REPORTS, ALL_TELEMETRY, ALL_UPLINKS, GatewayTopics, Uplink, parse_uplink
from edge_runtime.errors import DeadlineExceeded, InputError, StoreError, TransportError
from edge_runtime.ports import TransportSession
from edge_runtime.records import Record, decode_batch

_log = logging.getLogger(__name__)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_MAX_KIND = 16
_MAX_WAITING_BYTES = 64 * 1024 * 1024
_MAX_GROUP = 512
_MAX_REFUSED = 8
_RECONNECT_MAX_S = 2.0


class SinkSession(TransportSession, Protocol):
    """A session whose messages can be acknowledged to the broker later."""

    async def subscribe_deferred(
        self, topic_filter: str, handler: Callable[[str, bytes, Callable[[], None]], None], qos: int = 1
    ) -> None: ...


class SinkTransport(Protocol):
    """A way to the broker for the sink."""

    async def connect(self, will_topic: str = "", will_payload: bytes = b"") -> SinkSession: ...


@dataclass(slots=True)
class Message:
    """One message as it came; `acknowledge` tells the broker that it is safe."""

    topic: str
    payload: bytes
    acknowledge: Callable[[], None]


@dataclass(slots=True)
class Committed:
    """What one commit brought: batches to acknowledge by (tenant, gateway, boot), and the counts."""

    batches: dict[Origin, list[int]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[Origin, list[int]] = field(default_factory=lambda: defaultdict(list))
    rows: int = 0
    duplicates: int = 0
    rejected: int = 0


def _ignore(_session: SinkSession) -> None:
    return


class Sink:
    """Runs until cancelled. `on_ready` is called at every (re)connection, once the subscriptions stand."""

    def __init__(
        self,
        transport: SinkTransport,
        db: Database,
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
        self._arrived = asyncio.Event()
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="sink-writer")
        self.messages = 0
        self.rows = 0
        self.duplicates = 0
        self.rejected = 0
        self.shed = 0
        self.commits = 0

    async def run(self) -> None:
        """Connects, serves, reconnects; ends by cancellation. The database stays open: it is the caller's."""
        attempt = 0
        try:
            while True:
                started, commits = time.monotonic(), self.commits
                reason = await self._attempt()
                steady = self.commits > commits or time.monotonic() - started > _RECONNECT_MAX_S
                attempt = 0 if steady else attempt + 1
                if attempt <= 1:
                    _log.warning("sink_link_down reason=%r", reason)
                await asyncio.sleep(full_jitter_s(attempt, 0.2, _RECONNECT_MAX_S, random.random))
        finally:
            self._writer.shutdown(wait=True)

    async def _attempt(self) -> str:
        try:
            session = await self._transport.connect()
        except (TransportError, DeadlineExceeded) as err:
            return str(err)
        reason = "ended"
        try:
            for topic_filter in self._filters:
                await session.subscribe_deferred(topic_filter, self._receive)
            self._on_ready(session)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._write(session), name="sink-write")
                tasks.create_task(_raise_when_closed(session), name="sink-watch")
        except* (TransportError, DeadlineExceeded, StoreError) as group:
            reason = str(group.exceptions[0])
        finally:
            self._waiting.clear()
            self._waiting_bytes = 0
            await session.close()
        return reason

    def _receive(self, topic: str, payload: bytes, acknowledge: Callable[[], None]) -> None:
        if self._waiting_bytes + len(payload) > _MAX_WAITING_BYTES:
            self.shed += 1  # the gateway sends it again
            acknowledge()
            return
        self._waiting.append(Message(topic, payload, acknowledge))
        self._waiting_bytes += len(payload)
        self._arrived.set()

    async def _write(self, session: SinkSession) -> None:
        loop = asyncio.get_running_loop()
        acknowledging: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as tasks:
            while True:
                group = await self._next_group()
                done = await loop.run_in_executor(self._writer, commit, self._db, group, time.time_ns())
                self._count(group, done)
                if acknowledging is not None:
                    await acknowledging
                acknowledging = tasks.create_task(_acknowledge(session, group, done), name="sink-acknowledge")

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


def commit(db: Database, group: Sequence[Message], received_wall_ns: int) -> Committed:
    """Writes a group of messages in one transaction. Runs in the writer thread. Raises StoreError, then nothing was written."""
    done = Committed()
    with db.transaction():
        for message in group:
            try:
                _take(db, parse_uplink(message.topic), message.payload, received_wall_ns, done)
            except InputError as err:
                done.rejected += 1
                _log.warning("message_rejected topic=%r bytes=%d problem=%r", message.topic[:200], len(message.payload), str(err))
        if done.rejected:
            db.count("messages_rejected", done.rejected)
    return done


def read_batch(batch: PackedBatch) -> list[Record]:
    """The records of one batch, safe to store. Raises InputError."""
    records = decode_batch(batch.data)
    if len(records) != batch.count:
        raise InputError(f"expected {batch.count} records, got {len(records)}")
    for record in records:
        if not 0 <= record.seq <= _HIGHEST:
            raise InputError(f"record seq {record.seq} is outside 0..2^63-1")
        if len(record.kind) > _MAX_KIND:
            raise InputError(f"record kind of {len(record.kind)} characters")
        if not all(_LOWEST <= stamp <= _HIGHEST for stamp in (record.mono_ns, record.wall_ns, record.wall_err_ns)):
            raise InputError(f"record {record.seq} has a time outside 64 bits")
    return records


def _take(db: Database, source: Uplink, payload: bytes, now_ns: int, done: Committed) -> None:
    if source.leaf == "tlm":
        envelope = decode_envelope(payload)
        origin = Origin(source.tenant, source.gateway, envelope.boot)
        refused = 0
        for batch in envelope.batches:
            refused += not _take_batch(db, origin, batch, now_ns, done)
            if refused > _MAX_REFUSED:
                raise InputError(f"more than {_MAX_REFUSED} unreadable batches in one message: the rest was not tried")
    elif source.leaf == "status":
        status = decode_status(payload)
        db.set_status(Origin(source.tenant, source.gateway, status.boot), status.online, status.version, now_ns)
    elif source.leaf == "state":
        state = decode_state(payload)
        db.set_state(Origin(source.tenant, source.gateway, state.boot), state.seq, payload, now_ns)


def _take_batch(db: Database, origin: Origin, batch: PackedBatch, now_ns: int, done: Committed) -> bool:
    """Stores or quarantines one batch; whether it could be read."""
    if not batch.intact:  # damaged on the way: unacknowledged, so it is sent again
        done.rejected += 1
        return False
    try:
        records = read_batch(batch)
    except InputError as err:
        done.rejected += 1
        if db.quarantine(origin, batch.first_seq, str(err), batch.data, now_ns):
            done.batches[origin].append(batch.first_seq)
            done.refused[origin].append(batch.first_seq)
        return False
    duplicates = db.insert(origin, records, now_ns)
    done.duplicates += duplicates
    done.rows += len(records) - duplicates
    done.batches[origin].append(batch.first_seq)
    return True


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

    if not share:
        return (of(ALL_UPLINKS),)
    return (*map(of, ALL_REPORTS), f"$share/{share}/{of(ALL_TELEMETRY)}")


async def _raise_when_closed(session: TransportSession) -> None:
    raise TransportError(await session.closed())
