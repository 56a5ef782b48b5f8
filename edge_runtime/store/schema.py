"""What lies on disk: file names, tables and how an outbox row is numbered. No I/O.

A row's id holds (priority, boot, first record): the table's own order is the order of sending, and an acknowledgement finds its
row without an index. Ids have 2 bits of priority, 23 of boot number (8 million starts) and 38 of sequence.
"""

from __future__ import annotations

from typing import Final

from edge_runtime.types import Priority

DATABASE: Final = "store.db"
LOCK: Final = "store.lock"
RESERVE: Final = "store.reserve"
SIDE_FILES: Final = ("-wal", "-shm")

APPLICATION_ID: Final = 0x65647274  # "edrt"
VERSION: Final = 1
PAGE_BYTES: Final = 4096

_SEQ_BITS: Final = 38
_BOOT_BITS: Final = 23
_CLASS_SHIFT: Final = _SEQ_BITS + _BOOT_BITS
MAX_BOOT_NO: Final = (1 << _BOOT_BITS) - 1
MAX_SEQ: Final = (1 << _SEQ_BITS) - 1
PRIORITIES: Final = tuple(sorted(Priority, reverse=True))
"""In the order of sending."""

SCHEMA: Final = f"""
CREATE TABLE boot(
  no INTEGER PRIMARY KEY,
  boot TEXT NOT NULL UNIQUE,
  opened_wall_ns INTEGER NOT NULL,
  offered INTEGER NOT NULL DEFAULT 0,
  delivered INTEGER NOT NULL DEFAULT 0,
  stored INTEGER NOT NULL DEFAULT 0,
  bulk_batches INTEGER NOT NULL DEFAULT 0,
  result_batches INTEGER NOT NULL DEFAULT 0,
  event_batches INTEGER NOT NULL DEFAULT 0,
  last_seq INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE dropped(
  boot_no INTEGER NOT NULL, reason TEXT NOT NULL, records INTEGER NOT NULL, PRIMARY KEY(boot_no, reason)
) WITHOUT ROWID;
CREATE TABLE drop_run(
  boot_no INTEGER NOT NULL, reason TEXT NOT NULL, first_seq INTEGER NOT NULL, last_seq INTEGER NOT NULL, records INTEGER NOT NULL,
  PRIMARY KEY(boot_no, reason, first_seq)
) WITHOUT ROWID;
CREATE TABLE outbox(
  id INTEGER PRIMARY KEY, boot TEXT NOT NULL, last_seq INTEGER NOT NULL, records INTEGER NOT NULL,
  wall_ns INTEGER NOT NULL, crc INTEGER NOT NULL, data BLOB NOT NULL
);
CREATE TABLE journal(
  id INTEGER PRIMARY KEY, boot TEXT NOT NULL, seq INTEGER NOT NULL, ref TEXT NOT NULL,
  mono_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, wall_err_ns INTEGER NOT NULL, body BLOB NOT NULL
);
CREATE INDEX journal_ref ON journal(ref) WHERE ref != '';
CREATE TABLE slot(key TEXT PRIMARY KEY, value BLOB NOT NULL);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
"""


def row_id(priority: int, boot_no: int, first_seq: int) -> int:
    """Number of the outbox row of a batch."""
    return (Priority.EVENT - priority) << _CLASS_SHIFT | boot_no << _SEQ_BITS | first_seq


def first_seq_of(row: int) -> int:
    """The number of the first record in a row."""
    return row & MAX_SEQ


def boot_no_of(row: int) -> int:
    """The boot number of a row."""
    return row >> _SEQ_BITS & MAX_BOOT_NO


def priority_of(row: int) -> int:
    """The priority of a row."""
    return Priority.EVENT - (row >> _CLASS_SHIFT)


def age_of(row: int) -> int:
    """Orders rows by age over all priorities: the smaller, the older."""
    return row & ((1 << _CLASS_SHIFT) - 1)


def id_range(priority: int) -> tuple[int, int]:
    """First and last possible row id of a priority."""
    base = (Priority.EVENT - priority) << _CLASS_SHIFT
    return base, base + (1 << _CLASS_SHIFT) - 1
