"""The accounting behind "nothing is lost silently": offered = delivered + pending + dropped(reason). Values only, no I/O.

`offered` counts what was handed to the store, `delivered` what the controller acknowledged, `pending` what is in the outbox or on
its way there, `dropped` what was given up, by reason. Each is counted where it happens, so that a wrong one shows as a ledger
that does not balance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec


class DropReason(StrEnum):
    """Why a record was given up. Callers of `count_drop` may add reasons of their own."""

    STORE_FULL = "store_full"  # refused: the store's cap is reached and its policy favours what is there
    DISK_FULL = "disk_full"  # refused: the disk is full and the policy favours what is there
    EVICTED = "evicted"  # deleted before delivery, to make room for newer or higher records
    TOO_LARGE = "too_large"  # encodes to more than one record may take
    BACKLOG = "backlog"  # offered faster than the disk takes it, until the memory bound
    IO_ERROR = "io_error"  # the disk failed, also when tried again
    CORRUPT = "corrupt"  # was stored, but the file was damaged
    CLOSED = "closed"  # offered after the store was closed


class Ledger(msgspec.Struct, frozen=True):
    """One balance, over all boots that the store knows."""

    offered: int
    delivered: int
    pending: int
    dropped: dict[str, int]

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())

    @property
    def balanced(self) -> bool:
        """Whether offered = delivered + pending + dropped."""
        return self.offered == self.delivered + self.pending + self.dropped_total

    def as_dict(self) -> dict[str, Any]:
        """The document of `edge-runtime ledger --json`."""
        return {
            "offered": self.offered,
            "delivered": self.delivered,
            "pending": self.pending,
            "dropped": dict(sorted(self.dropped.items())),
            "balanced": self.balanced,
        }


class DropRun(msgspec.Struct, frozen=True):
    """`count` records of one boot with numbers in `first_seq..last_seq` were dropped for `reason`: explains a hole to a sink.

    Where `count` is less than the span, other records in it were kept.
    """

    boot: str
    first_seq: int
    last_seq: int
    count: int
    reason: str


class Balance:
    """Running totals that a writer adds to, and from which a `Ledger` is read."""

    __slots__ = ("delivered", "dropped", "offered", "stored")

    def __init__(self, offered: int = 0, delivered: int = 0, stored: int = 0, dropped: Mapping[str, int] | None = None) -> None:
        self.offered = offered
        self.delivered = delivered
        self.stored = stored
        self.dropped = dict(dropped or {})

    def drop(self, reason: str, count: int) -> None:
        """Counts records as given up."""
        if count:
            self.dropped[reason] = self.dropped.get(reason, 0) + count

    def add(self, other: Balance) -> None:
        """Adds another balance to this one."""
        self.offered += other.offered
        self.delivered += other.delivered
        self.stored += other.stored
        for reason, count in other.dropped.items():
            self.drop(reason, count)

    def ledger(self, extra_offered: int = 0, extra_pending: int = 0) -> Ledger:
        """The balance as a value; the extras are records that are not yet in any total."""
        return Ledger(self.offered + extra_offered, self.delivered, self.stored + extra_pending, dict(self.dropped))


def total(balances: Iterable[Balance]) -> Balance:
    """The sum of many balances."""
    result = Balance()
    for balance in balances:
        result.add(balance)
    return result
