"""What one transaction carries: entries taken from the intake, with their records packed into outbox rows. No I/O."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field
from typing import Final

import msgspec

from edge_runtime.records import pack_batch
from edge_runtime.store.accounts import Changes
from edge_runtime.store.intake import GROUP_RECORDS, Ack, Damaged, DroppedRun, Flush, Intake, Put
from edge_runtime.store.journal import Pending

ROW_BYTES: Final = 256 * 1024


class Row(msgspec.Struct, frozen=True, gc=False):
    """One outbox row to be: records of one priority, packed."""

    priority: int
    first_seq: int
    last_seq: int
    records: int
    wall_ns: int
    crc: int
    data: bytes


class _Open:
    """A row that still takes records."""

    __slots__ = ("first_seq", "last_seq", "parts", "size", "wall_ns")

    def __init__(self, first_seq: int, wall_ns: int) -> None:
        self.first_seq = self.last_seq = first_seq
        self.wall_ns = wall_ns
        self.parts: list[bytes] = []
        self.size = 0

    def pack(self, priority: int) -> Row:
        data = pack_batch(self.parts)
        return Row(priority, self.first_seq, self.last_seq, len(self.parts), self.wall_ns, zlib.crc32(data), data)


@dataclass(slots=True)
class Work:
    """One group. `noted` are drops that the live ledger counts already; `finding` says why the file itself is damaged."""

    rows: list[Row] = field(default_factory=list)
    journal: list[Pending] = field(default_factory=list)
    acks: list[Ack] = field(default_factory=list)
    puts: dict[str, Put] = field(default_factory=dict)
    damaged: list[int] = field(default_factory=list)
    finding: str = ""
    flushes: list[Flush] = field(default_factory=list)
    noted: Changes = field(default_factory=Changes)
    records: int = 0
    size_bytes: int = 0

    @property
    def stop(self) -> bool:
        return any(flush.stop for flush in self.flushes)


def take(intake: Intake, boot_no: int, max_bytes: int) -> Work:
    """Takes what is queued, up to `max_bytes` of records (at least one)."""
    work = Work()
    open_rows: dict[int, _Open] = {}
    entries = intake.entries
    for reason, count in intake.unnumbered.take().items():
        work.noted.unnumbered(boot_no, reason, count)
    while entries and work.size_bytes < max_bytes:
        entry = entries.popleft()
        if type(entry) is tuple:
            priority, seq, data, at = entry
            row = open_rows.get(priority)
            if row is None:
                row = open_rows[priority] = _Open(seq, at.wall_ns)
            row.parts.append(data)
            row.last_seq = seq
            row.size += len(data)
            work.size_bytes += len(data)
            work.records += 1
            if len(row.parts) >= GROUP_RECORDS or row.size >= ROW_BYTES:
                work.rows.append(open_rows.pop(priority).pack(priority))
        else:
            _sort(entry, work, intake, boot_no)
    work.rows.extend(row.pack(priority) for priority, row in open_rows.items())
    return work


def _sort(entry: object, work: Work, intake: Intake, boot_no: int) -> None:
    match entry:
        case Pending():
            work.journal.append(entry)
        case DroppedRun():
            intake.close_run(entry)
            work.noted.refused(boot_no, entry.first, entry.last, entry.count, entry.reason)
        case Ack():
            work.acks.append(entry)
        case Put():
            work.puts[entry.key] = entry
        case Damaged(row=int(row)):
            work.damaged.append(row)
        case Damaged():
            work.finding = entry.finding
        case Flush():
            work.flushes.append(entry)
