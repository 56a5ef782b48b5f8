"""From an adapter's samples to numbered, timed readings under logical names. No hardware, no disk.

Every sample is accounted for: it becomes exactly one reading per logical name bound to its channel, or a drop with a reason
(`rate_limit`, `too_large`), or it is `unbound` and only counted. A value that is NaN or infinite becomes an unknown reading.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from edge_runtime.bus import Bus
from edge_runtime.clock import Clock
from edge_runtime.config.deployment import SensorSpec
from edge_runtime.config.gateway import SensorBinding
from edge_runtime.ports import SampleSink
from edge_runtime.types import FloatArray, Notice, Quality, Reading, Sample, Timestamp
from edge_runtime.units import conversion

MAX_BLOCK_SAMPLES = 65_536
_RATE_MARGIN = 4.0  # how many times its declared rate a channel may speak
_BURST_S = 2.0


@dataclass(slots=True)
class _Channel:
    """One logical channel bound to one physical channel."""

    source: str
    name: str
    spec: SensorSpec
    factor: float
    offset: float
    stale_after_ns: int
    tokens: float = 0.0
    tokens_ns: int = 0
    last_ns: int = 0
    stale: bool = False
    babbling: bool = False

    @property
    def burst(self) -> float:
        return max(16.0, self.spec.rate_hz * _RATE_MARGIN * _BURST_S)


@dataclass
class IngestCounters:
    """What happened to the samples offered so far."""

    samples: int = 0
    readings: int = 0
    unbound: int = 0
    non_finite: int = 0
    dropped: dict[str, int] = field(default_factory=dict)


class Ingest:
    """Turns samples into readings and publishes them on the bus, in the caller's own call."""

    def __init__(self, bus: Bus, clock: Clock, on_drop: Callable[[str, int], None]) -> None:
        self._bus = bus
        self._clock = clock
        self._on_drop = on_drop
        self._bound: dict[tuple[str, str], list[_Channel]] = {}
        self._seq = 0
        self.counters = IngestCounters()
        self.latest: dict[str, Reading] = {}

    def configure(
        self, sensors: Mapping[str, SensorSpec], bindings: Mapping[str, SensorBinding], units: Mapping[tuple[str, str], str]
    ) -> None:
        """Binds logical to physical channels; `units` are the drivers' own, by (adapter, channel).

        Channels that stay keep their state. Raises InputError when a unit cannot be converted.
        """
        old = {channel.name: channel for channels in self._bound.values() for channel in channels}
        now = self._clock.monotonic_ns()
        bound: dict[tuple[str, str], list[_Channel]] = {}
        for name, spec in sensors.items():
            binding = bindings.get(name)
            if binding is None:
                continue
            key = (binding.adapter, binding.channel)
            channel = _bind(name, spec, binding, units.get(key, ""), now)
            if name in old:
                channel.last_ns, channel.stale = old[name].last_ns, old[name].stale
            bound.setdefault(key, []).append(channel)
        self._bound = bound
        self.latest = {name: reading for name, reading in self.latest.items() if name in sensors}

    def sink(self, source: str) -> SampleSink:
        """Where the adapter of that name hands its samples to."""

        def accept(sample: Sample) -> None:
            self.counters.samples += 1
            channels = self._bound.get((source, sample.channel))
            if channels is None:
                self.counters.unbound += 1
                return
            at = self._clock.now()
            for channel in channels:
                self._accept(channel, sample, at)

        return accept

    def tick(self, now: Timestamp) -> None:
        """Declares channels stale that have been silent too long: one unknown reading and one notice each."""
        for channels in self._bound.values():
            for channel in channels:
                if not channel.stale and now.mono_ns - channel.last_ns >= channel.stale_after_ns:
                    channel.stale = True
                    hold = channel.spec.on_stale == "hold"
                    value = self.latest[channel.name].value if hold and channel.name in self.latest else None
                    self._publish(channel, now, value, None, 0.0, Quality.STALE, None)
                    silent_s = (now.mono_ns - channel.last_ns) / 1e9
                    self._bus.publish(Notice("channel_stale", now, channel.name, f"no sample for {silent_s:.1f} s"))

    def next_deadline_ns(self) -> int | None:
        """When the next channel would become stale."""
        return min((c.last_ns + c.stale_after_ns for cs in self._bound.values() for c in cs if not c.stale), default=None)

    def _accept(self, channel: _Channel, sample: Sample, at: Timestamp) -> None:
        if not self._admit(channel, sample, at):
            return
        channel.last_ns = at.mono_ns
        if channel.stale:
            channel.stale = False
            self._bus.publish(Notice("channel_fresh", at, channel.name))
        value, block, quality = sample.value, sample.block, sample.quality
        if block is not None:
            block, quality = self._convert_block(channel, block, quality)
        elif value is None or not math.isfinite(value):
            self.counters.non_finite += value is not None
            value, quality = None, Quality.BAD
        else:
            value = value * channel.factor + channel.offset
            if quality is Quality.GOOD and _outside(value, channel.spec):
                quality = Quality.UNCERTAIN
        self._publish(channel, at, value, block, sample.rate_hz, quality, sample.wall_ns)

    def _convert_block(self, channel: _Channel, block: FloatArray, quality: Quality) -> tuple[FloatArray | None, Quality]:
        if not np.isfinite(block).all():
            self.counters.non_finite += 1
            return None, Quality.BAD
        if channel.factor != 1.0 or channel.offset != 0.0:
            block = block * np.float32(channel.factor) + np.float32(channel.offset)
        return block, quality

    def _publish(
        self,
        channel: _Channel,
        at: Timestamp,
        value: float | None,
        block: FloatArray | None,
        rate_hz: float,
        quality: Quality,
        source_wall_ns: int | None,
    ) -> None:
        self._seq += 1
        self.counters.readings += 1
        reading = Reading(channel.source, channel.name, self._seq, at, value, channel.spec.unit, quality, block, rate_hz, source_wall_ns)
        self.latest[channel.name] = reading
        self._bus.publish(reading)

    def _admit(self, channel: _Channel, sample: Sample, at: Timestamp) -> bool:
        """Token bucket against a sensor that babbles; counts in samples, so blocks and scalars are alike."""
        size = 1 if sample.block is None else len(sample.block)
        if size > MAX_BLOCK_SAMPLES:
            self._drop("too_large")
            return False
        refill = (at.mono_ns - channel.tokens_ns) * 1e-9 * channel.spec.rate_hz * _RATE_MARGIN
        channel.tokens = min(channel.burst + size, channel.tokens + refill)
        channel.tokens_ns = at.mono_ns
        if channel.tokens < size:
            self._drop("rate_limit")
            if not channel.babbling:
                channel.babbling = True
                self._bus.publish(Notice("channel_babbling", at, channel.name, f"speaks faster than {_RATE_MARGIN:g} times its rate_hz"))
            return False
        channel.tokens -= size
        if channel.babbling and channel.tokens > channel.burst / 2:
            channel.babbling = False
            self._bus.publish(Notice("channel_calm", at, channel.name))
        return True

    def _drop(self, reason: str) -> None:
        self.counters.dropped[reason] = self.counters.dropped.get(reason, 0) + 1
        self._on_drop(reason, 1)


def stale_after_s(spec: SensorSpec) -> float:
    """How long a channel may be silent: as said, else ten periods and at least 1 s."""
    return spec.stale_after_s if spec.stale_after_s is not None else max(1.0, 10.0 / spec.rate_hz)


def _bind(name: str, spec: SensorSpec, binding: SensorBinding, driver_unit: str, now_ns: int) -> _Channel:
    unit = binding.unit if binding.unit is not None else driver_unit
    factor, offset = conversion(unit, spec.unit) if unit and spec.unit else (1.0, 0.0)
    channel = _Channel(
        source=binding.adapter,
        name=name,
        spec=spec,
        factor=binding.scale * factor,
        offset=binding.offset * factor + offset,
        stale_after_ns=int(stale_after_s(spec) * 1e9),
        last_ns=now_ns,
        tokens_ns=now_ns,
    )
    channel.tokens = channel.burst
    return channel


def _outside(value: float, spec: SensorSpec) -> bool:
    return (spec.minimum is not None and value < spec.minimum) or (spec.maximum is not None and value > spec.maximum)
