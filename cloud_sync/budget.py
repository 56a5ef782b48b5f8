"""A byte budget over any 24 hours, kept in hourly steps of the monotonic clock. Pure. It does not survive a restart."""

from __future__ import annotations

from collections import deque

_HOUR_NS = 3600 * 10**9
_DAY_HOURS = 24


class DailyBudget:
    """Counts what was sent and tells whether bulk may go on. `max_bytes` 0 is no limit."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._hours: deque[tuple[int, int]] = deque()

    def spend(self, size_bytes: int, now_ns: int) -> None:
        hour = now_ns // _HOUR_NS
        if self._hours and self._hours[-1][0] == hour:
            hour, spent = self._hours.pop()
            size_bytes += spent
        self._hours.append((hour, size_bytes))

    def spent(self, now_ns: int) -> int:
        """Bytes sent in the last 24 hours."""
        oldest = now_ns // _HOUR_NS - _DAY_HOURS
        while self._hours and self._hours[0][0] <= oldest:
            self._hours.popleft()
        return sum(size for _, size in self._hours)

    def exhausted(self, now_ns: int) -> bool:
        return 0 < self.max_bytes <= self.spent(now_ns)

    def reopens_in_s(self, now_ns: int) -> float:
        """Seconds until enough has left the window; 0 when the budget is open."""
        excess = self.spent(now_ns) - self.max_bytes
        if self.max_bytes == 0 or excess < 0:
            return 0.0
        for hour, size in self._hours:
            excess -= size
            if excess < 0:
                return ((hour + _DAY_HOURS) * _HOUR_NS - now_ns) / 1e9
        return 0.0
