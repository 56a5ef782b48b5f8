"""What a probe is: one source of channels below /proc or /sys. A new source is one more class in `adapter.PROBES`.

Probes block, and run in the adapter's thread only.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress
from typing import NamedTuple, Protocol

from edge_runtime.types import ChannelInfo, ChannelKind, Quality

SHORTEST_RATE_NS = 40_000_000

_SYSFS_BYTES = 4096
_PROC_BYTES = 65_536


class Count(NamedTuple):
    """A total that only rises; what is wanted is its rise per second, at most `most`."""

    total: float
    most: float = math.inf


class Share(NamedTuple):
    """Two totals that only rise; what is wanted is the rise of `part` in that of `whole`, in %."""

    part: float
    whole: float


Values = dict[str, float | Count | Share]


class Probe(Protocol):
    """One source of channels below one root."""

    def discover(self) -> list[ChannelInfo]:
        """The channels that exist and could be read just now. Never raises for what is missing."""
        ...

    def read(self, channels: Collection[str]) -> Values:
        """The values of those of its channels, in their units; one that cannot be read now is left out.

        Opens no file that none of `channels` needs, and each file once.
        """
        ...


class Rates:
    """Totals to rates: between two readings of a channel at least 40 ms apart (sooner, the last rate is given again)."""

    def __init__(self) -> None:
        self._before: dict[str, tuple[int, Count | Share]] = {}
        self._rates: dict[str, float] = {}

    def rate(self, channel: str, now: Count | Share, at_ns: int) -> tuple[float | None, Quality]:
        """None and UNCERTAIN at the first reading and after a total that began afresh."""
        then_ns, before = self._before.get(channel, (at_ns, None))
        if before is not None and at_ns - then_ns < SHORTEST_RATE_NS:
            last = self._rates.get(channel)
            return last, Quality.UNCERTAIN if last is None else Quality.GOOD
        self._before[channel] = (at_ns, now)
        rate = None if before is None else _rise(before, now, at_ns - then_ns)
        if rate is None:
            self._rates.pop(channel, None)
            return None, Quality.UNCERTAIN
        self._rates[channel] = rate
        return rate, Quality.GOOD

    def forget(self, channel: str) -> None:
        """The next reading of the channel is a first one again."""
        self._before.pop(channel, None)
        self._rates.pop(channel, None)

    def clear(self) -> None:
        """Forgets every channel."""
        self._before.clear()
        self._rates.clear()


def _rise(before: Count | Share, now: Count | Share, elapsed_ns: int) -> float | None:
    if isinstance(now, Share) and isinstance(before, Share):
        whole = now.whole - before.whole
        return min(100.0, max(0.0, 100 * (now.part - before.part) / whole)) if whole > 0 else None
    if isinstance(now, Count) and isinstance(before, Count) and now.total >= before.total:
        return min(now.most, (now.total - before.total) / elapsed_ns * 1e9)
    return None


def sampled(name: str, unit: str, description: str) -> ChannelInfo:
    """A channel to be read; one in `%` is from 0 to 100."""
    bounds = (0.0, 100.0) if unit == "%" else (None, None)
    return ChannelInfo(name, ChannelKind.SAMPLED, unit, minimum=bounds[0], maximum=bounds[1], description=description)


def read_attribute(path: str) -> str:
    """A sysfs attribute: one read of at most a page, without blanks at its ends. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(descriptor, _SYSFS_BYTES).decode(errors="replace").strip()
    finally:
        os.close(descriptor)


def read_proc(path: str) -> str:
    """A whole file of /proc, however many reads it takes. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return b"".join(iter(lambda: os.read(descriptor, _PROC_BYTES), b"")).decode(errors="replace")
    finally:
        os.close(descriptor)


def read_number(path: str) -> float | None:
    """A sysfs attribute as a finite number; None when it is missing, gives an error or holds something else."""
    with suppress(OSError, ValueError):
        value = float(read_attribute(path))
        return value if math.isfinite(value) else None
    return None


def folders(path: str) -> Iterator[tuple[str, str]]:
    """`(name, path)` of what is below a folder of sysfs, in a stable order (2 before 10); nothing when it is missing."""
    names: list[str] = []
    with suppress(OSError):
        names = os.listdir(path)  # noqa: PTH208 - plain strings are what makes a read cheap
    for name in sorted(names, key=lambda name: [(part.isdigit(), part.zfill(12)) for part in re.split(r"(\d+)", name)]):
        yield name, f"{path}/{name}"


def spelled(text: str) -> str:
    """Letters that fit a channel's name: `Core 0` -> `Core_0`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "_", text).strip("_")
