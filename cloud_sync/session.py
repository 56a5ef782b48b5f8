"""The gateway's uplink: carries the outbox to the controller and keeps the link alive, for ever.

A batch leaves the outbox only on the controller's own acknowledgement (dn/ack), sent after its database commit; a PUBACK is no
promise. A fixed number of lanes, each holding one message until it is acknowledged, is the end-to-end window: while all lanes are
busy the outbox collects, and the next message carries more. It decides nothing about the data and never touches the local loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from typing import Any

import msgspec

from cloud_sync.backoff import full_jitter_s, spread_s
from cloud_sync.budget import DailyBudget
from cloud_sync.cancellation import stoppable
from cloud_sync.flights import Flight, Flights, Row, pack
from cloud_sync.messages import decode_ack, encode_state, encode_status
from cloud_sync.topics import GatewayTopics
from edge_runtime.clock import Clock
from edge_runtime.errors import DeadlineExceeded, InputError, MessageTooLarge, StoreError, TransportError
from edge_runtime.ports import MessageHandler, Outbox, PausableOutbox, SyncTransport, TransportSession
from edge_runtime.types import Health, Priority

_log = logging.getLogger(__name__)
_GOODBYE_S = 0.5
_PACKET_SLACK = 256
_STATE_SPREAD = 0.5
_RETRY_CAP_FACTOR = 8


Companion = Callable[[TransportSession], Coroutine[Any, Any, None]]


class UplinkSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of one uplink. `lanes` messages of at most `max_message_bytes` are unacknowledged at a time.

    Acknowledged batches are deleted together every `delete_after_s`: each deletion is a commit, and competes with what comes in.
    """

    lanes: int = 8
    max_message_bytes: int = 256 * 1024
    max_batches: int = 256
    ack_timeout_s: float = 10.0
    state_interval_s: float = 900.0
    reconnect_base_s: float = 1.0
    reconnect_max_s: float = 60.0
    steady_s: float = 30.0
    delete_after_s: float = 0.02
    max_bytes_per_day: int = 0


class UplinkCounters(msgspec.Struct):
    """What the uplink has done since it was built."""

    connects: int = 0
    connect_failures: int = 0
    messages: int = 0
    bytes: int = 0
    records: int = 0
    batches_acknowledged: int = 0
    batches_refused: int = 0
    retransmissions: int = 0
    acks_malformed: int = 0
    acks_unknown: int = 0
    batches_too_large: int = 0
    budget_pauses: int = 0


class Uplink:
    """Runs until cancelled. `state` supplies {"ledger": {...}, "status": {...}}; `on_link` hears of every change of the link.

    `companions` run on every session and end with it; jobs in `beside` run whether there is a link or not.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: SyncTransport,
        topics: GatewayTopics,
        boot: str,
        clock: Clock,
        *,
        version: str = "",
        state: Callable[[], Mapping[str, Any]] = dict,
        on_link: Callable[[bool, str], None] = lambda up, detail: None,
        on_failure: Callable[[str], None] = lambda reason: None,
        on_command: MessageHandler | None = None,
        companions: Sequence[Companion] = (),
        beside: Sequence[Callable[[], Coroutine[Any, Any, None]]] = (),
        settings: UplinkSettings | None = None,
        draw: Callable[[], float] = random.random,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.settings = settings or UplinkSettings()
        self._pausable = outbox if isinstance(outbox, PausableOutbox) else None
        if self.settings.max_bytes_per_day and self._pausable is None:
            raise InputError("max_bytes_per_day: this outbox cannot hold bulk back (it has no `hold_below`); set it to 0")
        self._outbox = outbox
        self._transport = transport
        self._topics = topics
        self._boot = boot
        self._clock = clock
        self._version = version
        self._state = state
        self._on_link = on_link
        self._on_failure = on_failure
        self._on_command = on_command
        self._companions = companions
        self._beside = beside
        self._draw = draw
        self._sleep = sleep
        self._counters = UplinkCounters()
        self._budget = DailyBudget(self.settings.max_bytes_per_day)
        self._holding = False
        self._flights = Flights()
        self._packed: deque[Flight] = deque()
        self._outbox_turn = asyncio.Lock()
        self._acknowledged: dict[str, list[int]] = {}
        self._acknowledgement = asyncio.Event()
        self._report_due = asyncio.Event()
        self._state_seq = 0
        self._row_bytes = 1024.0
        self._up: bool | None = None
        self._changed_ns = clock.monotonic_ns()
        self._detail = "not connected yet"
        self._progress = False

    @property
    def up(self) -> bool:
        return self._up is True

    def counters(self) -> dict[str, int]:
        """A copy of the counters."""
        counts: dict[str, int] = msgspec.structs.asdict(self._counters)
        return counts | {"in_flight": len(self._flights)}

    def health(self) -> Health:
        return Health(self.up, self._detail, self.counters())

    def report(self) -> None:
        """Sends up/state soon instead of at its next turn."""
        self._report_due.set()

    async def run(self) -> None:
        """Connects, serves, reconnects. Ends only by cancellation, after it said goodbye to the broker."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._delete_acknowledged(), name="uplink-acknowledged")
            tasks.create_task(self._keep_connected(), name="uplink-connection")
            for job in self._beside:
                tasks.create_task(job(), name="uplink-beside")

    # -- the link ---------------------------------------------------------------------------------------------------------

    async def _keep_connected(self) -> None:
        attempt = 0
        will = encode_status(self._boot, online=False)
        while True:
            self._progress = False
            try:
                session = await self._transport.connect(self._topics.status, will)
                self._counters.connects += 1
                started_ns = self._clock.monotonic_ns()
                reason = await stoppable(self._serve(session))
                if self._progress or self._clock.monotonic_ns() - started_ns > self.settings.steady_s * 1e9:
                    attempt = 0
            except (TransportError, DeadlineExceeded) as err:
                self._counters.connect_failures += 1
                reason = str(err)
            self._link(False, reason)
            self._on_failure(reason)
            await self._sleep(full_jitter_s(attempt, self.settings.reconnect_base_s, self.settings.reconnect_max_s, self._draw))
            attempt += 1

    async def _serve(self, session: TransportSession) -> str:
        """One session from birth to its end; returns why it ended."""
        reason = "ended"
        try:
            await self._begin(session)
            async with asyncio.TaskGroup() as tasks:
                for lane in range(max(1, min(self.settings.lanes, session.max_inflight))):
                    tasks.create_task(self._lane(session), name=f"uplink-lane-{lane}")
                tasks.create_task(self._report_state(session), name="uplink-state")
                for companion in self._companions:
                    tasks.create_task(companion(session), name="uplink-companion")
                tasks.create_task(_raise_when_closed(session), name="uplink-watch")
        except* (TransportError, DeadlineExceeded, StoreError) as group:
            reason = str(group.exceptions[0])
        finally:
            self._release()
            await self._say_goodbye(session)
        return reason

    async def _begin(self, session: TransportSession) -> None:
        await session.subscribe(self._topics.ack, self._on_ack)
        if self._on_command is not None:
            await session.subscribe(self._topics.command, self._on_command)
        await session.publish(self._topics.status, encode_status(self._boot, online=True, version=self._version), retain=True)
        self._link(True, f"connected, window of {session.max_inflight}")

    async def _say_goodbye(self, session: TransportSession) -> None:
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await session.publish(self._topics.status, encode_status(self._boot, online=False, version=self._version), retain=True)
        except (TransportError, DeadlineExceeded, TimeoutError):
            pass
        await session.close()

    def _link(self, up: bool, detail: str) -> None:
        self._detail = detail
        if up == self._up:
            return
        now_ns = self._clock.monotonic_ns()
        seconds = (now_ns - self._changed_ns) / 1e9
        self._up, self._changed_ns = up, now_ns
        if up:
            _log.info("link_up after_s=%.1f detail=%r", seconds, detail)
        else:
            _log.warning("link_down after_s=%.1f reason=%r", seconds, detail)
        self._on_link(up, detail)

    # -- sending ----------------------------------------------------------------------------------------------------------

    async def _lane(self, session: TransportSession) -> None:
        while True:
            flight = await self._next_flight(session)
            await self._deliver(session, flight)

    async def _next_flight(self, session: TransportSession) -> Flight:
        async with self._outbox_turn:
            while not self._packed:
                self._apply_budget()
                rows = await self._peek()
                if not rows:
                    await self._wait()
                    continue
                limit = min(self.settings.max_message_bytes, session.max_packet_bytes - _PACKET_SLACK)
                self._packed.extend(pack(rows, limit))
                for flight in self._packed:
                    self._flights.start(flight)
            return self._packed.popleft()

    async def _peek(self) -> list[Row]:
        """Rows for about one message. A cancelled peek hands back what it had already taken."""
        wanted = int(self.settings.max_message_bytes / self._row_bytes)
        peeking = asyncio.ensure_future(self._outbox.peek(min(self.settings.max_batches, max(1, wanted)), len(self._flights)))
        try:
            rows = list(await asyncio.shield(peeking))
        except asyncio.CancelledError:
            self._outbox.release([row_id for row_id, _ in await peeking])
            raise
        if rows:
            mean = sum(len(batch.data) for _, batch in rows) / len(rows)
            self._row_bytes += 0.2 * (max(1.0, mean) - self._row_bytes)
        return rows

    async def _wait(self) -> None:
        if not self._holding:
            await self._outbox.wait()
            return
        try:
            async with asyncio.timeout(self._budget.reopens_in_s(self._clock.monotonic_ns())):
                await self._outbox.wait()
        except TimeoutError:
            pass

    async def _deliver(self, session: TransportSession, flight: Flight) -> None:
        """Publishes until the controller has acknowledged all; waits longer each time, so a forgetful broker is not flooded."""
        self._counters.records += flight.records
        attempt = 0
        while not flight.landed.is_set():
            payload = flight.payload()
            try:
                await session.publish(self._topics.telemetry, payload)
            except MessageTooLarge as err:
                self._keep_back(flight, str(err))
                return
            self._counters.messages += 1
            self._counters.bytes += len(payload)
            self._budget.spend(len(payload), self._clock.monotonic_ns())
            patience_s = self.settings.ack_timeout_s * min(_RETRY_CAP_FACTOR, 2**attempt)
            if not await _happens(flight.landed, spread_s(patience_s, 0.2 if attempt else 0.0, self._draw)):
                attempt += 1
                self._counters.retransmissions += 1

    def _keep_back(self, flight: Flight, problem: str) -> None:
        """A message that the broker will never take stays in the outbox, out of the way until the next session."""
        _log.error("batch_too_large boot=%s first_seq=%s problem=%r", flight.boot, list(flight.rows), problem)
        self._counters.batches_too_large += len(flight.rows)

    def _apply_budget(self) -> None:
        if self._pausable is None or not self._budget.max_bytes:
            return
        exhausted = self._budget.exhausted(self._clock.monotonic_ns())
        if exhausted == self._holding:
            return
        self._holding = exhausted
        self._pausable.hold_below(Priority.RESULT if exhausted else Priority.BULK)
        if exhausted:
            self._counters.budget_pauses += 1
            _log.warning("bulk_paused spent_bytes=%d limit_bytes=%d", self._counters.bytes, self._budget.max_bytes)
        else:
            _log.info("bulk_resumed")

    def _release(self) -> None:
        self._packed.clear()
        rows = self._flights.abandon()
        if rows:
            self._outbox.release(rows)

    # -- acknowledgements ---------------------------------------------------------------------------------------------------

    def _on_ack(self, _topic: str, payload: bytes) -> None:
        try:
            ack = decode_ack(payload)
        except InputError:
            self._counters.acks_malformed += 1
            return
        known = self._flights.settle(ack.boot, ack.batches)
        self._counters.acks_unknown += len(ack.batches) - len(known)
        if not known:
            return
        self._progress = True
        self._counters.batches_acknowledged += len(known)
        self._counters.batches_refused += len(set(known) & set(ack.refused))
        self._acknowledged.setdefault(ack.boot, []).extend(known)
        self._acknowledgement.set()

    async def _delete_acknowledged(self) -> None:
        """Deletes what the controller has, however the link is; what could not be deleted is tried again."""
        attempt = 0
        while True:
            await self._acknowledgement.wait()
            await self._sleep(self.settings.delete_after_s)
            self._acknowledgement.clear()
            taken, self._acknowledged = self._acknowledged, {}
            for boot, first_seqs in taken.items():
                try:
                    await self._outbox.acknowledge(boot, first_seqs)
                    attempt = 0
                except StoreError as err:
                    if attempt == 0:
                        _log.error("acknowledged_not_deleted boot=%s batches=%d problem=%r", boot, len(first_seqs), str(err))
                    self._acknowledged.setdefault(boot, []).extend(first_seqs)
                    self._acknowledgement.set()
                    await self._sleep(full_jitter_s(attempt, 1.0, 60.0, self._draw))
                    attempt += 1

    # -- state --------------------------------------------------------------------------------------------------------------

    async def _report_state(self, session: TransportSession) -> None:
        while True:
            self._report_due.clear()
            self._state_seq += 1
            facts = self._state()
            status = {**facts.get("status", {}), "uplink": self.counters()}
            wall_ns = self._clock.now().wall_ns
            await session.publish(self._topics.state, encode_state(self._boot, self._state_seq, wall_ns, facts.get("ledger", {}), status))
            await _happens(self._report_due, spread_s(self.settings.state_interval_s, _STATE_SPREAD, self._draw))


async def _raise_when_closed(session: TransportSession) -> None:
    raise TransportError(await session.closed())


async def _happens(event: asyncio.Event, limit_s: float) -> bool:
    """Whether the event is set within the limit."""
    try:
        async with asyncio.timeout(limit_s):
            await event.wait()
    except TimeoutError:
        return False
    return True
