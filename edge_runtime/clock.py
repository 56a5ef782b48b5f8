"""Time as a value that is injected. `SystemClock` reads the machine, `VirtualClock` is moved by replay and tests.

Monotonic time is CLOCK_BOOTTIME where the kernel has it (it goes on during suspend), so durations survive a wall clock
that jumps to 1970 or 2100. The wall clock carries an error bound taken from the kernel's NTP state (adjtimex(2), maxerror).
"""

from __future__ import annotations

import ctypes
import ctypes.util
import time
from typing import Protocol

from edge_runtime.types import Timestamp

BUILD_WALL_NS = 1_795_000_000 * 10**9  # 2026-11-18: no honest clock is before the build
UNKNOWN_ERROR_NS = -1
_FAR_FUTURE_NS = BUILD_WALL_NS + 30 * 365 * 86_400 * 10**9
_ERROR_REFRESH_NS = 10**9
_STEP_NS = 10**9


class Clock(Protocol):
    """Source of time. Durations and deadlines use `monotonic_ns`; wall time is only ever a label."""

    def monotonic_ns(self) -> int: ...

    def now(self) -> Timestamp: ...


class SystemClock:
    """The machine's clocks. Cost of `now()` is two clock reads; the error bound is refreshed once a second."""

    def __init__(self) -> None:
        self._id = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
        self._error_ns = UNKNOWN_ERROR_NS
        self._error_read_ns = -_ERROR_REFRESH_NS
        self._offset_ns: int | None = None
        self._step_ns = 0

    def monotonic_ns(self) -> int:
        return time.clock_gettime_ns(self._id)

    def now(self) -> Timestamp:
        mono = time.clock_gettime_ns(self._id)
        wall = time.time_ns()
        if mono - self._error_read_ns >= _ERROR_REFRESH_NS:
            self._refresh(mono, wall)
        return Timestamp(mono, wall, self._error_ns)

    def take_step_ns(self) -> int:
        """How far the wall clock jumped against the monotonic one since last asked (0: it did not)."""
        step, self._step_ns = self._step_ns, 0
        return step

    def _refresh(self, mono: int, wall: int) -> None:
        self._error_read_ns = mono
        self._error_ns = wall_error_ns(wall)
        offset = wall - mono
        if self._offset_ns is not None and abs(offset - self._offset_ns) > _STEP_NS:
            self._step_ns += offset - self._offset_ns
        self._offset_ns = offset


class VirtualClock:
    """A clock that stands still until it is moved."""

    def __init__(self, wall_ns: int = BUILD_WALL_NS, mono_ns: int = 0) -> None:
        self._mono_ns = mono_ns
        self._wall_ns = wall_ns

    def monotonic_ns(self) -> int:
        return self._mono_ns

    def now(self) -> Timestamp:
        return Timestamp(self._mono_ns, self._wall_ns, 0)

    def advance(self, seconds: float) -> None:
        """Moves both clocks on by `seconds` (never back)."""
        self.advance_ns(round(seconds * 1e9))

    def advance_ns(self, delta_ns: int) -> None:
        """Moves both clocks on by `delta_ns` >= 0."""
        if delta_ns < 0:
            raise ValueError(f"a virtual clock only moves on: got {delta_ns} ns")
        self._mono_ns += delta_ns
        self._wall_ns += delta_ns

    def set_wall_ns(self, wall_ns: int) -> None:
        """Makes the wall clock jump; the monotonic clock is not touched."""
        self._wall_ns = wall_ns


class _Timex(ctypes.Structure):
    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 200),
    ]


_STA_UNSYNC = 0x0040


def wall_error_ns(wall_ns: int) -> int:
    """Bound on the wall clock's error in ns, or UNKNOWN_ERROR_NS when unsynchronised or plainly wrong."""
    if not BUILD_WALL_NS <= wall_ns <= _FAR_FUTURE_NS:
        return UNKNOWN_ERROR_NS
    try:
        state = _Timex()
        if _libc().adjtimex(ctypes.byref(state)) < 0 or state.status & _STA_UNSYNC:
            return UNKNOWN_ERROR_NS
    except (AttributeError, OSError):
        return UNKNOWN_ERROR_NS
    return int(state.maxerror) * 1000


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
