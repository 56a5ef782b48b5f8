"""What has been sent and not yet acknowledged by the controller: matches acknowledgements to messages. Pure, no I/O, no time."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from cloud_sync.messages import ENVELOPE_OVERHEAD_BYTES, MAX_BATCHES, encode_envelope, packed_size
from edge_runtime.ports import OutboxBatch

Row = tuple[int, OutboxBatch]


@dataclass(slots=True, eq=False)
class Flight:
    """One telemetry message on its way: batches of one boot. `landed` is set when the controller has acknowledged them all."""

    boot: str
    rows: dict[int, Row]
    landed: asyncio.Event = field(default_factory=asyncio.Event)

    def payload(self) -> bytes:
        """The envelope of what is not yet acknowledged."""
        return encode_envelope(self.boot, [batch for _, batch in self.rows.values()])

    @property
    def records(self) -> int:
        return sum(batch.count for _, batch in self.rows.values())


class Flights:
    """Every flight of this session, found by (boot, first_seq)."""

    def __init__(self) -> None:
        self._by_batch: dict[tuple[str, int], Flight] = {}

    def __len__(self) -> int:
        """Batches in flight."""
        return len(self._by_batch)

    def start(self, flight: Flight) -> None:
        for first_seq in flight.rows:
            self._by_batch[flight.boot, first_seq] = flight

    def settle(self, boot: str, first_seqs: Iterable[int]) -> list[int]:
        """Marks batches as acknowledged; returns those that were in flight. The others are duplicates or were never sent."""
        known = []
        for first_seq in first_seqs:
            flight = self._by_batch.pop((boot, first_seq), None)
            if flight is None:
                continue
            known.append(first_seq)
            del flight.rows[first_seq]
            if not flight.rows:
                flight.landed.set()
        return known

    def abandon(self) -> list[int]:
        """Forgets everything in flight; returns the row ids to hand back to the outbox."""
        flights = dict.fromkeys(self._by_batch.values())
        self._by_batch.clear()
        return [row_id for flight in flights for row_id, _ in flight.rows.values()]


def pack(rows: Sequence[Row], max_bytes: int) -> Iterator[Flight]:
    """Rows to messages, in order: one boot each, at most `max_bytes` unless a single batch is larger by itself."""
    group: list[Row] = []
    size = 0
    for row in rows:
        added = packed_size(row[1])
        full = size + added > max_bytes or len(group) >= MAX_BATCHES
        if group and (full or row[1].boot != group[0][1].boot):
            yield _flight(group)
            group, size = [], 0
        size += added + (0 if group else ENVELOPE_OVERHEAD_BYTES)
        group.append(row)
    if group:
        yield _flight(group)


def _flight(group: Sequence[Row]) -> Flight:
    return Flight(group[0][1].boot, {row[1].first_seq: row for row in group})
