"""Which outbox rows are on their way and which are being evicted: the one fact that the loop, the reader and the writer share."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Sequence

from edge_runtime.store.schema import priority_of
from edge_runtime.types import Priority


class Flight:
    """A row is either in flight or coming down or neither, never both. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._up: set[int] = set()
        self._down: set[int] = set()

    def size(self) -> int:
        """How many rows are in flight."""
        return len(self._up)

    def count_from(self, lowest: Priority) -> int:
        """How many rows of that class and higher are in flight."""
        with self._lock:
            return sum(priority_of(row) >= lowest for row in self._up)

    def take_off(self, rows: Sequence[int], limit: int) -> list[int]:
        """Puts up to `limit` of `rows` in flight and returns them."""
        with self._lock:
            chosen = [row for row in rows if row not in self._up and row not in self._down][:limit]
            self._up.update(chosen)
        return chosen

    def land(self, rows: Iterable[int]) -> None:
        """Ends the flight of rows: delivered, released, or found gone."""
        with self._lock:
            self._up.difference_update(rows)

    def take_down(self, rows: Sequence[int], limit: int) -> list[int]:
        """Marks up to `limit` rows that are not in flight as going to be deleted, and returns them."""
        with self._lock:
            chosen = [row for row in rows if row not in self._up][:limit]
            self._down.update(chosen)
        return chosen

    def settle(self) -> None:
        """The deletions were committed, or rolled back."""
        with self._lock:
            self._down.clear()
