"""Durations come from the monotonic clock; the wall clock is a label with an error bound."""

from __future__ import annotations

import pytest

from edge_runtime.clock import BUILD_WALL_NS, UNKNOWN_ERROR_NS, SystemClock, VirtualClock, wall_error_ns


def test_the_system_clock_never_goes_back_and_bounds_its_error() -> None:
    clock = SystemClock()
    first, second = clock.now(), clock.now()
    assert second.mono_ns >= first.mono_ns
    assert first.wall_err_ns == UNKNOWN_ERROR_NS or first.wall_err_ns >= 0


@pytest.mark.parametrize("wall_ns", [0, BUILD_WALL_NS - 1, 4_102_444_800 * 10**9 * 2])
def test_a_wall_clock_at_1970_or_far_ahead_has_no_error_bound(wall_ns: int) -> None:
    assert wall_error_ns(wall_ns) == UNKNOWN_ERROR_NS


def test_a_virtual_clock_moves_only_when_moved_and_only_on() -> None:
    clock = VirtualClock()
    clock.advance(1.5)
    assert clock.monotonic_ns() == 1_500_000_000
    assert clock.now().wall_ns == BUILD_WALL_NS + 1_500_000_000
    clock.set_wall_ns(0)
    assert clock.monotonic_ns() == 1_500_000_000
    with pytest.raises(ValueError, match="only moves on"):
        clock.advance_ns(-1)
