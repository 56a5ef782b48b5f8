"""What a group of uplink messages becomes in the database: decoded, stored in one transaction, and what to acknowledge for it.

Runs in a writer thread over a `RecordWriter`, which is SQLite or PostgreSQL. A message that cannot be read is counted, kept in
quarantine where it has an owner, and never holds up the others. Nothing here knows MQTT.
"""

from __future__ import annotations

import logging
import os
import signal
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol

from cloud_sync.controller.address import Address
from cloud_sync.messages import PackedBatch, decode_envelope, decode_state, decode_status
from cloud_sync.topics import Uplink, parse_uplink
from edge_runtime.errors import InputError
from edge_runtime.records import Record, decode_batch

MAX_QUARANTINE_BYTES = 256 * 1024 * 1024
CRASH_VARIABLE = "EDGE_RUNTIME_CONTROLLER_CRASH"
"""`before_commit` or `before_ack`: the process kills itself there, for tests of what a power cut leaves."""

_log = logging.getLogger(__name__)
_LOWEST, _HIGHEST = -(2**63), 2**63 - 1
_MAX_KIND = 16
_MAX_REFUSED = 8


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose records they are."""

    tenant: str
    gateway: str
    boot: str


@dataclass(slots=True)
class Span:
    """What one transaction was offered of one boot; `added` of it was new."""

    offered: int = 0
    added: int = 0
    first_seq: int = _HIGHEST
    last_seq: int = 0

    def widen(self, records: Sequence[Record]) -> None:
        seqs = [record.seq for record in records]
        self.offered += len(seqs)
        self.first_seq = min(self.first_seq, min(seqs))
        self.last_seq = max(self.last_seq, max(seqs))


@dataclass(slots=True)
class Message:
    """One message as it came, at `arrived_s` of the loop's clock; `acknowledge` tells the broker that it is safe."""

    topic: str
    payload: bytes
    acknowledge: Callable[[], None]
    arrived_s: float = 0.0


@dataclass(slots=True)
class Committed:
    """What one commit brought: batches to acknowledge by (tenant, gateway, boot), and the counts."""

    batches: dict[Origin, list[int]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[Origin, list[int]] = field(default_factory=lambda: defaultdict(list))
    offered: int = 0
    rows: int = 0
    duplicates: int = 0
    rejected: int = 0

    def add(self, other: Committed) -> None:
        for mine, theirs in ((self.batches, other.batches), (self.refused, other.refused)):
            for origin, first_seqs in theirs.items():
                mine[origin] += first_seqs
        self.offered += other.offered
        self.rows += other.rows
        self.duplicates += other.duplicates
        self.rejected += other.rejected


class RecordWriter(Protocol):
    """A database for telemetry. All methods from one thread, changes only inside `transaction`, durable when that ends without an error.

    Any method raises StoreError while the database is away or full, and InputError for values that it can never hold.
    """

    def transaction(self) -> AbstractContextManager[None]:
        """Everything inside is committed together, or not at all."""
        ...

    def insert(self, origin: Origin, records: Sequence[Record], received_wall_ns: int) -> None:
        """Adds those records that are not there yet; may wait for `settle`."""
        ...

    def settle(self) -> int:
        """Writes whatever waits; how many records of this transaction were there already. They are counted for their gateways."""
        ...

    def quarantine(self, origin: Origin, first_seq: int, reason: str, payload: bytes, received_wall_ns: int) -> bool:
        """Keeps a batch that cannot be read. False when the quarantine is full."""
        ...

    def count(self, name: str, amount: int) -> None:
        """Adds to a counter."""
        ...

    def set_status(self, origin: Origin, online: bool, version: str, wall_ns: int) -> None:
        """A birth replaces what was known; a will only ends the boot it belongs to."""
        ...

    def set_state(self, origin: Origin, seq: int, state: str, wall_ns: int) -> None:
        """Keeps the newest report; an older one of the same boot changes nothing."""
        ...

    def close(self) -> None: ...


def open_writer(address: Address) -> RecordWriter:
    """A writer for a database whose tables exist. Connects when it is first used. Raises MissingDependency."""
    if address.path is not None:
        from cloud_sync.controller.sqlite import SqliteWriter

        return SqliteWriter(address.path)
    from cloud_sync.controller.postgres import PostgresWriter

    return PostgresWriter(address)


def commit(db: RecordWriter, group: Sequence[Message], received_wall_ns: int) -> Committed:
    """Writes a group of messages in one transaction. Raises StoreError, then nothing was written.

    When the database refuses a value for ever, the messages are written one by one, so that only the one that holds it is left out.
    """
    try:
        return _commit(db, group, received_wall_ns)
    except InputError as err:
        if len(group) == 1:
            return _reject(db, group[0], err)
    done = Committed()
    for message in group:
        done.add(commit(db, [message], received_wall_ns))
    return done


def read_batch(batch: PackedBatch) -> list[Record]:
    """The records of one batch, safe to store. Raises InputError."""
    records = decode_batch(batch.data)
    if len(records) != batch.count:
        raise InputError(f"expected {batch.count} records, got {len(records)}")
    for record in records:
        if not 0 <= record.seq <= _HIGHEST:
            raise InputError(f"record seq {record.seq} is outside 0..2^63-1")
        if len(record.kind) > _MAX_KIND or "\0" in record.kind:
            raise InputError(f"record kind of {len(record.kind)} characters, or with a NUL")
        lowest, highest = min(record.mono_ns, record.wall_ns, record.wall_err_ns), max(record.mono_ns, record.wall_ns, record.wall_err_ns)
        if lowest < _LOWEST or highest > _HIGHEST:
            raise InputError(f"record {record.seq} has a time outside 64 bits")
    return records


def crash_point(name: str) -> None:
    """Kills this process with SIGKILL when the environment says so."""
    if os.environ.get(CRASH_VARIABLE) == name:
        os.kill(os.getpid(), signal.SIGKILL)


def _commit(db: RecordWriter, group: Sequence[Message], received_wall_ns: int) -> Committed:
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
        done.duplicates = db.settle()
        done.rows = done.offered - done.duplicates
        if done.batches:
            crash_point("before_commit")
    return done


def _reject(db: RecordWriter, message: Message, problem: InputError) -> Committed:
    _log.warning("message_rejected topic=%r bytes=%d problem=%r", message.topic[:200], len(message.payload), str(problem))
    with db.transaction():
        db.count("messages_rejected", 1)
    return Committed(rejected=1)


def _take(db: RecordWriter, source: Uplink, payload: bytes, now_ns: int, done: Committed) -> None:
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
        db.set_status(Origin(source.tenant, source.gateway, status.boot), status.online, _plain(status.version), now_ns)
    elif source.leaf == "state":
        state = decode_state(payload)
        db.set_state(Origin(source.tenant, source.gateway, state.boot), state.seq, _text(payload), now_ns)


def _take_batch(db: RecordWriter, origin: Origin, batch: PackedBatch, now_ns: int, done: Committed) -> bool:
    """Stores or quarantines one batch; whether it could be read."""
    if not batch.intact:  # damaged on the way: unacknowledged, so it is sent again
        done.rejected += 1
        return False
    try:
        records = read_batch(batch)
    except InputError as err:
        done.rejected += 1
        if db.quarantine(origin, batch.first_seq, _plain(str(err)), batch.data, now_ns):
            done.batches[origin].append(batch.first_seq)
            done.refused[origin].append(batch.first_seq)
        return False
    db.insert(origin, records, now_ns)
    done.offered += len(records)
    done.batches[origin].append(batch.first_seq)
    return True


def _text(payload: bytes) -> str:
    try:
        return payload.decode()
    except UnicodeDecodeError as err:
        raise InputError(f"state of {len(payload)} bytes is not UTF-8: {err.reason} at byte {err.start}") from err


def _plain(text: str) -> str:
    """Without what PostgreSQL cannot hold in a text."""
    return text.replace("\0", "").encode(errors="replace").decode()
