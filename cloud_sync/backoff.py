"""Full-jitter back-off (exponential ceiling, uniform draw): a fleet that lost its broker does not come back all at once. Pure."""

from __future__ import annotations

from collections.abc import Callable


def full_jitter_s(attempt: int, base_s: float, cap_s: float, draw: Callable[[], float]) -> float:
    """Seconds to wait before retry number `attempt` (from 0): uniform in [0, min(cap, base * 2^attempt)).

    `draw` returns a number in [0, 1), as `random.random` does.
    """
    ceiling = cap_s if attempt > 60 else min(cap_s, base_s * 2.0 ** max(0, attempt))
    return ceiling * draw()


def spread_s(period_s: float, fraction: float, draw: Callable[[], float]) -> float:
    """A period with +- `fraction` of spread, so that reports of a fleet do not align."""
    return period_s * (1.0 + fraction * (2.0 * draw() - 1.0))
