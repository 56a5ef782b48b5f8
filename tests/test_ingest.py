"""Every sample becomes a reading or a counted drop; nothing that is not a number gets past ingest."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bus import Bus
from edge_runtime.clock import VirtualClock
from edge_runtime.config.deployment import SensorSpec
from edge_runtime.config.gateway import SensorBinding
from edge_runtime.errors import InputError
from edge_runtime.ingest import MAX_BLOCK_SAMPLES, Ingest
from edge_runtime.types import Notice, Quality, Reading, Sample


class Bench:
    """An ingest on a virtual clock, with everything it says collected."""

    def __init__(self, binding: SensorBinding | None = None, **spec: object) -> None:
        self.clock, bus = VirtualClock(), Bus()
        self.readings: list[Reading] = []
        self.notices: list[Notice] = []
        self.drops: dict[str, int] = {}
        bus.subscribe(Reading, self.readings.append)
        bus.subscribe(Notice, self.notices.append)
        self.ingest = Ingest(bus, self.clock, self._drop)
        sensor = SensorSpec(**{"unit": "degC", "rate_hz": 10.0, **spec})  # type: ignore[arg-type]
        self.ingest.configure({"temp": sensor}, {"temp": binding or SensorBinding(adapter="a", channel="t")}, {("a", "t"): "degC"})
        self.sink = self.ingest.sink("a")

    def _drop(self, reason: str, n: int) -> None:
        self.drops[reason] = self.drops.get(reason, 0) + n


def test_a_sample_is_scaled_then_converted_to_the_deployments_unit() -> None:
    bench = Bench(SensorBinding(adapter="a", channel="t", unit="degF", scale=0.1, offset=2.0))
    bench.sink(Sample("t", 2100.0))
    reading = bench.readings[0]
    assert reading.value == pytest.approx(100.0)
    assert (reading.channel, reading.unit, reading.seq, reading.source) == ("temp", "degC", 1, "a")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, None])
def test_what_is_not_a_number_becomes_an_unknown_reading(value: float | None) -> None:
    bench = Bench()
    bench.sink(Sample("t", value))
    assert bench.readings[0].value is None
    assert bench.readings[0].quality is Quality.BAD


def test_a_block_with_one_nan_is_unknown_as_a_whole() -> None:
    bench = Bench()
    bench.sink(Sample("t", block=np.array([1, math.nan], np.float32), rate_hz=10))
    assert bench.readings[0].block is None
    assert bench.readings[0].quality is Quality.BAD


def test_a_value_outside_its_range_is_kept_and_marked() -> None:
    bench = Bench(maximum=90.0)
    bench.sink(Sample("t", 91.0))
    assert bench.readings[0].quality is Quality.UNCERTAIN


def test_a_silent_channel_is_declared_stale_once_and_fresh_again() -> None:
    bench = Bench()
    bench.sink(Sample("t", 20.0))
    assert bench.ingest.next_deadline_ns() == 1_000_000_000
    bench.clock.advance(1.0)
    bench.ingest.tick(bench.clock.now())
    bench.ingest.tick(bench.clock.now())
    assert [(r.value, r.quality) for r in bench.readings[1:]] == [(None, Quality.STALE)]
    bench.sink(Sample("t", 21.0))
    assert [n.kind for n in bench.notices] == ["channel_stale", "channel_fresh"]


def test_on_stale_hold_keeps_the_last_value_but_says_that_it_is_stale() -> None:
    bench = Bench(on_stale="hold")
    bench.sink(Sample("t", 20.0))
    bench.clock.advance(5.0)
    bench.ingest.tick(bench.clock.now())
    assert (bench.readings[-1].value, bench.readings[-1].quality) == (20.0, Quality.STALE)


def test_a_babbling_sensor_is_cut_to_its_margin_and_every_drop_is_counted() -> None:
    bench = Bench()
    for _ in range(1000):
        bench.sink(Sample("t", 1.0))
    assert len(bench.readings) + bench.drops["rate_limit"] == 1000
    assert len(bench.readings) < 100
    assert [n.kind for n in bench.notices] == ["channel_babbling"]
    bench.clock.advance(10.0)
    bench.sink(Sample("t", 1.0))
    assert bench.notices[-1].kind == "channel_calm"


def test_a_block_beyond_all_bounds_is_dropped_with_its_reason() -> None:
    bench = Bench()
    bench.sink(Sample("t", block=np.zeros(MAX_BLOCK_SAMPLES + 1, np.float32), rate_hz=10))
    assert bench.drops == {"too_large": 1}


def test_a_wall_clock_that_jumps_leaves_order_and_staleness_alone() -> None:
    bench = Bench()
    for wall_ns in (0, 4_102_444_800 * 10**9, 10**18):
        bench.clock.set_wall_ns(wall_ns)
        bench.clock.advance(0.1)
        bench.sink(Sample("t", 1.0))
    bench.ingest.tick(bench.clock.now())
    assert [r.seq for r in bench.readings] == [1, 2, 3]
    assert not bench.notices


def test_a_unit_that_cannot_be_converted_is_refused_at_configuration() -> None:
    with pytest.raises(InputError, match="pressure, expected temperature"):
        Bench(SensorBinding(adapter="a", channel="t", unit="bar"))


@given(st.lists(st.tuples(st.floats(allow_nan=True, allow_infinity=True) | st.none(), st.integers(0, 300)), max_size=60))
def test_readings_and_drops_add_up_to_the_samples(samples: list[tuple[float | None, int]]) -> None:
    bench = Bench()
    for value, wait_ms in samples:
        bench.clock.advance(wait_ms / 1000)
        bench.sink(Sample("t", value))
    assert len(bench.readings) + sum(bench.drops.values()) == len(samples)
    assert [r.seq for r in bench.readings] == list(range(1, len(bench.readings) + 1))
    assert all(r.value is None or math.isfinite(r.value) for r in bench.readings)
