"""The way from the event loop to the writer thread: one deque in the order of offering, and one wake-up where one is needed.

Order is what makes the persisted ledger contiguous: a drop that was decided on the loop travels in the same deque as the records
around it. Bounds are on queued records and bytes; what is over them is counted, never waited for.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TypeAlias

from edge_runtime.store.journal import Pending
from edge_runtime.types import Timestamp

GROUP_RECORDS = 256
GROUP_S = 0.005


class DroppedRun:
    """Consecutive numbers dropped on the loop; grows while it is the last thing in the deque and the writer has not come to it."""

    __slots__ = ("count", "first", "last", "open", "reason")

    def __init__(self, seq: int, reason: str) -> None:
        self.first = self.last = seq
        self.count = 1
        self.reason = reason
        self.open = True


@dataclass(slots=True, eq=False)
class Ack:
    """Batches that the controller has; `records` and `rows` are filled in by the transaction."""

    boot: str
    first_seqs: tuple[int, ...]
    done: asyncio.Future[int]
    records: int = 0
    rows: list[int] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Put:
    """A new value of a slot; None deletes it. `saved` once it is durable."""

    key: str
    value: bytes | None
    saved: bool = False


@dataclass(slots=True, eq=False)
class Damaged:
    """An outbox row whose content fails its checksum, or with None the whole file."""

    row: int | None
    finding: str = ""


@dataclass(slots=True, eq=False)
class Flush:
    """Resolved when everything before it in the deque is settled."""

    done: asyncio.Future[int]
    stop: bool = False


Offered: TypeAlias = tuple[int, int, bytes, Timestamp]
"""(priority, sequence number, record in its wire form, its time)."""
Entry: TypeAlias = Offered | Pending | DroppedRun | Ack | Put | Damaged | Flush


@dataclass(slots=True)
class Unnumbered:
    """Drops without a number, by reason, since the writer last looked."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, reason: str, count: int) -> None:
        with self.lock:
            self.counts[reason] = self.counts.get(reason, 0) + count

    def take(self) -> dict[str, int]:
        with self.lock:
            taken, self.counts = self.counts, {}
        return taken


class Intake:
    """One producer (the event loop, and the reader for damaged rows), one consumer (the writer thread)."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque()
        self.unnumbered = Unnumbered()
        self.idle = False
        self._hurry = False
        self._wake = threading.Lock()
        self._wake.acquire()
        self._taken_at = 0.0
        self._tail: DroppedRun | None = None
        self._tail_lock = threading.Lock()

    def put(self, entry: Entry, *, hurry: bool = False) -> None:
        """Adds one entry. `hurry`: the group is not kept open for others."""
        self.entries.append(entry)
        if self.idle or hurry:
            self.notify(hurry)

    def notify(self, hurry: bool) -> None:
        """Wakes the writer where it sleeps."""
        self.idle = False
        if hurry:
            self._hurry = True
        try:
            self._wake.release()
        except RuntimeError:
            return  # it is awake already

    def drop(self, seq: int, reason: str) -> None:
        """Adds a dropped number, joined to the run before it where that is still the last."""
        with self._tail_lock:
            tail = self._tail
            if tail is not None and tail.open and tail.reason == reason and tail.last + 1 == seq:
                tail.last = seq
                tail.count += 1
                return
            self._tail = DroppedRun(seq, reason)
            self.entries.append(self._tail)
        if self.idle:
            self.notify(False)

    def close_run(self, run: DroppedRun) -> None:
        """The writer has come to this run: it grows no more."""
        with self._tail_lock:
            run.open = False

    def wait(self, timeout_s: float | None) -> bool:
        """Sleeps until a group is ready: full, urgent or 5 ms old. False when the timeout passed with nothing to do."""
        if not self._wait_first(timeout_s):
            return False
        deadline = self._taken_at + GROUP_S
        while not self._hurry and len(self.entries) < GROUP_RECORDS:
            left = deadline - time.monotonic()
            if left <= 0:
                break
            self._wake.acquire(timeout=left)
        self._hurry = False
        self._taken_at = time.monotonic()
        return True

    def _wait_first(self, timeout_s: float | None) -> bool:
        if self.entries or self.unnumbered.counts:
            return True
        self.idle = True
        while not self.entries and not self.unnumbered.counts:
            if not self._wake.acquire(timeout=-1 if timeout_s is None else timeout_s) and not self.entries:
                self.idle = False
                return bool(self.unnumbered.counts)
        self.idle = False
        self._taken_at = time.monotonic()
        return True
