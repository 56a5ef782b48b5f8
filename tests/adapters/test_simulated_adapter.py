"""The driver `simulated`: a pump that obeys physics, its actuators and its faults, and nothing but the clock it was given."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.simulated import FAULTS, SimulatedAdapter, open_adapter
from adapters.simulated.bearing import DEFECTS, Geometry
from adapters.simulated.plant import PlantSettings, Pump
from edge_runtime.clock import SystemClock, VirtualClock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.types import Array, Quality, Sample

BLOCK_S = 128 / 1600
SETTLE_S = 3.0


class Bench:
    """One open adapter and the clock that drives it."""

    def __init__(self, **options: Any) -> None:
        self.clock = VirtualClock()
        self.adapter = open_adapter("plant", options, self.clock)

    async def __aenter__(self) -> Bench:
        await self.adapter.open()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.adapter.close()

    async def samples(self, count: int, *channels: str) -> list[Sample]:
        """The next `count` streamed samples."""
        taken: list[Sample] = []
        task = asyncio.create_task(self.adapter.stream(channels or ("pump/vibration",), taken.append))
        async with asyncio.timeout(30):
            while len(taken) < count and not task.done():
                self.clock.advance(BLOCK_S)
                await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return taken[:count]

    async def vibration(self, seconds: float, channel: str = "pump/vibration") -> Array:
        blocks = [sample.block for sample in await self.samples(round(seconds / BLOCK_S), channel)]
        return np.concatenate([block for block in blocks if block is not None])

    async def read(self, *quantities: str) -> list[float]:
        samples = await self.adapter.read([f"pump/{quantity}" for quantity in quantities])
        return [sample.value for sample in samples if sample.value is not None]

    async def after(self, seconds: float, *quantities: str) -> list[float]:
        self.clock.advance(seconds)
        return await self.read(*quantities)


def rms(wave: Array) -> float:
    return float(np.std(wave))


def line(wave: Array, rate_hz: float, hz: float) -> float:
    """Amplitude near a frequency."""
    spectrum = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) * 4 / len(wave)
    frequencies = np.fft.rfftfreq(len(wave), 1 / rate_hz)
    return float(spectrum[np.abs(frequencies - hz) < 0.5].max())


def resonance_band(wave: Array, rate_hz: float) -> Array:
    """Analytic signal of the band around the resonance at 0.34 of the rate."""
    spectrum, frequencies = np.fft.fft(wave), np.fft.fftfreq(len(wave), 1 / rate_hz)
    spectrum[(frequencies < 0.25 * rate_hz) | (frequencies > 0.43 * rate_hz)] = 0
    return np.fft.ifft(2 * spectrum)


def strongest_envelope_hz(wave: Array, rate_hz: float) -> float:
    """Where the squared envelope of the resonance band beats most, between 30 and 300 Hz."""
    envelope = np.abs(resonance_band(wave, rate_hz)) ** 2
    spectrum, frequencies = np.abs(np.fft.rfft(envelope - envelope.mean())), np.fft.rfftfreq(len(envelope), 1 / rate_hz)
    within = (frequencies > 30) & (frequencies < 300)
    return float(frequencies[within][spectrum[within].argmax()])


# -- bearing ----------------------------------------------------------------------------------------------------------------


def test_frequencies_of_a_6205_are_those_of_its_data_sheet() -> None:
    geometry = Geometry()
    assert geometry.bpfo == pytest.approx(3.5848, abs=1e-3)
    assert geometry.bpfi == pytest.approx(5.4152, abs=1e-3)
    assert 2 * geometry.bsf == pytest.approx(4.7135, abs=1e-3)
    assert geometry.ftf == pytest.approx(0.39828, abs=1e-3)


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("rate_hz", [1600.0, 12_000.0])
def test_a_defect_strikes_at_its_own_frequency(defect: str, rate_hz: float) -> None:
    pump = Pump(PlantSettings(rate_hz=rate_hz), seed=3)
    pump.faults[defect] = 1.0
    for _ in range(round(SETTLE_S * rate_hz / 128)):
        pump.advance(128)
    wave = np.concatenate([pump.advance(128) for _ in range(round(8 * rate_hz / 128))])
    expected_hz = pump.settings.geometry.passes(defect) * pump.speed_hz
    assert strongest_envelope_hz(wave, rate_hz) == pytest.approx(expected_hz, rel=0.01)


@pytest.mark.parametrize("defect", DEFECTS)
async def test_a_defect_rings_in_the_resonance_the_more_the_worse(defect: str) -> None:
    energies = []
    for severity in (0.0, 0.3, 1.0):
        async with Bench(faults={defect: severity}) as bench:
            await bench.vibration(SETTLE_S)
            energies.append(rms(resonance_band(await bench.vibration(4), 1600)))
    assert energies[1] > 2 * energies[0]
    assert energies[2] > 2 * energies[1]


def test_impulses_of_a_young_defect_stand_out_of_the_noise() -> None:
    """Alone in its band a train of short impulses has a kurtosis far above that of noise, which is 3."""
    pump = Pump(PlantSettings(rate_hz=12_000.0, noise=0.0, line_hz=10.0), seed=3)
    pump.faults["outer_race"] = 1.0
    for _ in range(300):
        pump.advance(128)
    band = resonance_band(np.concatenate([pump.advance(128) for _ in range(600)]), 12_000.0).real
    assert np.mean(band**4) / np.mean(band**2) ** 2 > 5


def test_what_a_defect_does_flows_over_the_edges_of_blocks() -> None:
    """The same plant in blocks of another size: the ringing is not cut at the seams."""
    pump = Pump(PlantSettings(noise=0.0), seed=3)
    pump.faults["outer_race"] = 1.0
    for _ in range(80):
        pump.advance(128)
    wave = np.concatenate([pump.advance(16) for _ in range(400)])
    steps = np.abs(np.diff(wave))
    assert steps[15::16].mean() == pytest.approx(steps.mean(), rel=0.2)


# -- pump and motor -----------------------------------------------------------------------------------------------------------


async def test_the_valve_sets_flow_pressure_and_load() -> None:
    async with Bench() as bench:
        flow, pressure, current, speed = await bench.after(SETTLE_S, "flow", "pressure", "current", "speed")
        assert abs(flow) < 2
        await bench.adapter.actuate("pump/valve", "open")
        [halfway] = await bench.after(0.75, "flow")
        open_flow, open_pressure, open_current, open_speed = await bench.after(SETTLE_S, "flow", "pressure", "current", "speed")
        assert 2 < halfway < open_flow
        assert 50 < open_flow < 200
        assert open_pressure < pressure
        assert open_current > current
        assert open_speed < speed
        await bench.adapter.actuate("pump/valve", "closed")
        [flow] = await bench.after(SETTLE_S, "flow")
        assert abs(flow) < 2


async def test_a_stopped_motor_runs_down_and_cools() -> None:
    async with Bench(ambient_degc=20.0) as bench:
        running = rms(await bench.vibration(SETTLE_S))
        [speed, warm] = await bench.read("speed", "temperature")
        assert 1450 < speed < 1500
        await bench.adapter.actuate("pump/motor", "stopped")
        [coasting] = await bench.after(1.0, "speed")
        speed, current, power, flow, pressure = await bench.after(20.0, "speed", "current", "power", "flow", "pressure")
        assert 200 < coasting < 1200
        assert [speed, current, power, flow, pressure] == pytest.approx([0] * 5, abs=4)
        assert rms(await bench.vibration(SETTLE_S)) < 0.1 * running
        [cold] = await bench.after(3600, "temperature")
        assert cold == pytest.approx(20.0, abs=1)
        assert warm > 40
        await bench.adapter.actuate("pump/motor", "running")
        [speed] = await bench.after(10.0, "speed")
        assert speed > 1450


async def test_shaft_speed_follows_the_line() -> None:
    async with Bench(line_hz=60.0) as bench:
        wave = await bench.vibration(8)
        [speed] = await bench.read("speed")
        assert 1740 < speed < 1800
        assert line(wave, 1600, speed / 60) > 5 * line(wave, 1600, 1.3 * speed / 60)


async def test_unbalance_shakes_once_a_turn() -> None:
    lines = []
    for severity in (0.0, 1.0):
        async with Bench(faults={"unbalance": severity}) as bench:
            await bench.vibration(SETTLE_S)
            wave = await bench.vibration(4)
            [speed] = await bench.read("speed")
            lines.append(line(wave, 1600, speed / 60))
    assert lines[1] == pytest.approx(9 * lines[0], rel=0.2)


async def test_faults_of_the_hydraulics_show_in_flow_and_pressure() -> None:
    figures = {}
    for fault in ("none", "cavitation", "blocked_valve"):
        async with Bench(faults={} if fault == "none" else {fault: 1.0}) as bench:
            await bench.adapter.actuate("pump/valve", "open")
            noise = rms(resonance_band(await bench.vibration(6), 1600))
            figures[fault] = (*await bench.read("flow", "pressure"), noise)
    flow, pressure, noise = figures["none"]
    assert figures["blocked_valve"][0] < 0.5 * flow
    assert figures["blocked_valve"][1] > pressure + 0.2
    assert figures["cavitation"][0] == pytest.approx(0.7 * flow, rel=0.05)
    assert figures["cavitation"][2] > 1.8 * noise


@pytest.mark.parametrize(
    ("fault", "quantity"), [("overheat", "temperature"), ("overheat", "bearing_temperature"), ("ball", "bearing_temperature")]
)
async def test_faults_warm_what_they_should(fault: str, quantity: str) -> None:
    async with Bench() as healthy, Bench(faults={fault: 1.0}) as broken:
        [normal], [hot] = await healthy.after(900, quantity), await broken.after(900, quantity)
    assert normal + 10 < hot < 150


# -- repeatable ---------------------------------------------------------------------------------------------------------------


async def _run(seed: int) -> list[Any]:
    async with Bench(seed=seed, pumps=["pump", "pump2"], faults={"inner_race": 0.5}) as bench:
        wave = await bench.vibration(1.0, "pump2/vibration")
        await bench.adapter.actuate("pump/valve", "open")
        return [*wave.tolist(), *await bench.after(2.0, "flow", "temperature", "speed")]


async def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    first, again, other = [await _run(seed) for seed in (7, 7, 8)]
    assert first == again
    assert first != other


async def test_pumps_differ_from_each_other() -> None:
    async with Bench(pumps=["a", "b"]) as bench:
        samples = await bench.samples(2, "a/vibration", "b/vibration")
    assert [sample.channel for sample in samples] == ["a/vibration", "b/vibration"]
    first, second = (sample.block for sample in samples)
    assert first is not None
    assert second is not None
    assert not np.array_equal(first, second)


async def test_without_time_nothing_moves() -> None:
    async with Bench() as bench:
        await bench.adapter.actuate("pump/valve", "open")
        readings = [(await bench.read("flow"))[0] for _ in range(20)]
        assert max(map(abs, readings)) < 2
        task = asyncio.create_task(bench.adapter.stream(["pump/vibration"], lambda sample: pytest.fail("a block out of no time")))
        for _ in range(50):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_a_block_is_due_when_its_last_sample_was_taken() -> None:
    async with Bench() as bench:
        came: list[float] = []
        task = asyncio.create_task(bench.adapter.stream(["pump/vibration"], lambda sample: came.append(bench.clock.monotonic_ns() / 1e9)))
        for _ in range(20):
            for _ in range(10):
                await asyncio.sleep(0)
            bench.clock.advance(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert came == pytest.approx([0.08, 0.16])


class _StallingClock(SystemClock):
    """The machine's clock with a process that can be asleep for a while."""

    stalled_ns = 0

    def monotonic_ns(self) -> int:
        return super().monotonic_ns() + self.stalled_ns


async def test_blocks_lost_in_a_stall_are_counted_and_not_sent_as_a_burst() -> None:
    clock = _StallingClock()
    adapter = open_adapter("plant", {"block": 8}, clock)
    await adapter.open()
    came = asyncio.Event()
    task = asyncio.create_task(adapter.stream(["pump/vibration"], lambda sample: came.set()))
    async with asyncio.timeout(10):
        await came.wait()
        clock.stalled_ns = 60 * 10**9
        while not adapter.health().counters["blocks_skipped"]:
            came.clear()
            await came.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 11_900 <= adapter.health().counters["blocks_skipped"] <= 14_000
    assert adapter.health().counters["blocks"] < 2_000


# -- faults -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["outer_rac", "pump9.outer_race", "", "pump."])
def test_an_unknown_fault_is_refused_with_the_known_ones(fault: str) -> None:
    adapter = Bench().adapter
    with pytest.raises(InputError, match="unknown fault") as refusal:
        adapter.inject(fault, 1.0)
    assert f"`{fault}`" in str(refusal.value)
    assert all(known in str(refusal.value) for known in FAULTS)
    if fault == "outer_rac":
        assert "did you mean `outer_race`?" in str(refusal.value)


@given(st.sampled_from(FAULTS), st.floats().filter(lambda severity: not 0 <= severity <= 1))
def test_a_severity_that_is_none_is_refused(fault: str, severity: float) -> None:
    with pytest.raises(InputError, match=r"expected a number in 0\.\.1"):
        Bench().adapter.inject(fault, severity)


async def test_a_fault_builds_up_and_ends_again() -> None:
    async with Bench() as bench:
        healthy = rms(await bench.vibration(SETTLE_S))
        bench.adapter.inject("outer_race", 1.0)
        first = rms((await bench.samples(1))[0].block)  # type: ignore[arg-type]
        await bench.vibration(SETTLE_S)
        grown = rms(await bench.vibration(1))
        bench.adapter.inject("outer_race", 0.0)
        await bench.vibration(SETTLE_S)
        assert first < 0.7 * grown
        assert grown > 4 * healthy
        assert rms(await bench.vibration(1)) == pytest.approx(healthy, rel=0.2)


async def test_a_fault_may_be_of_one_pump() -> None:
    async with Bench(pumps=["pump", "pump2"]) as bench:
        bench.adapter.inject("pump2.outer_race", 1.0)
        await bench.vibration(SETTLE_S)
        assert rms(await bench.vibration(1, "pump2/vibration")) > 4 * rms(await bench.vibration(1))


async def test_a_lost_sensor_says_so_and_comes_back() -> None:
    async with Bench() as bench:
        bench.adapter.inject("sensor_dropout", 1.0)
        assert await bench.adapter.read(["pump/flow"]) == [Sample("pump/flow", quality=Quality.BAD)]
        assert bench.adapter.health().detail == "sensor_dropout"
        bench.adapter.inject("sensor_dropout", 0.0)
        assert (await bench.adapter.read(["pump/flow"]))[0].quality is Quality.GOOD
        assert bench.adapter.health().ok


async def test_a_stuck_sensor_repeats_itself_until_repaired_and_sticks_elsewhere_next_time() -> None:
    async with Bench() as bench:
        stuck = []
        for _ in range(2):
            bench.adapter.inject("sensor_stuck", 1.0)
            wave = await bench.vibration(1)
            assert len(set(wave.tolist())) == 1
            temperatures = {(await bench.after(1.0, "temperature"))[0] for _ in range(5)}
            assert len(temperatures) == 1
            stuck.append((float(wave[0]), temperatures.pop()))
            bench.adapter.inject("sensor_stuck", 0.0)
            assert rms(await bench.vibration(1)) > 0.1
            await bench.after(1.0, "temperature")
        assert stuck[0][0] != stuck[1][0]
        assert stuck[0][1] != stuck[1][1]


async def test_a_sensor_that_says_nan_while_stuck_leaves_no_nan_behind() -> None:
    async with Bench() as bench:
        bench.adapter.inject("sensor_stuck", 1.0)
        before = await bench.vibration(1)
        bench.adapter.inject("sensor_nan", 1.0)
        assert np.isnan(await bench.vibration(1)).sum() == round(1 / BLOCK_S)
        [sample] = await bench.adapter.read(["pump/flow"])
        assert sample.value is not None
        assert isnan(sample.value)
        bench.adapter.inject("sensor_nan", 0.0)
        np.testing.assert_array_equal(await bench.vibration(1), before)


async def test_a_babbling_sensor_repeats_every_block() -> None:
    async with Bench(faults={"babble": 1.0}) as bench:
        samples = await bench.samples(80)
    assert len({id(sample.block) for sample in samples}) == 2


async def test_a_pulled_cable_ends_everything_until_it_is_back() -> None:
    async with Bench() as bench:
        task = asyncio.create_task(bench.adapter.stream(["pump/vibration"], lambda sample: None))
        await asyncio.sleep(0)
        bench.adapter.inject("disconnect", 1.0)
        bench.clock.advance(1.0)
        async with asyncio.timeout(10):
            for call in (task, bench.adapter.read(["pump/flow"]), bench.adapter.actuate("pump/valve", "open"), bench.adapter.open()):
                with pytest.raises(AdapterDisconnected, match="the simulated cable is out"):
                    await call
        assert not bench.adapter.health().ok
        bench.adapter.inject("disconnect", 0.0)
        await bench.adapter.open()
        assert len(await bench.samples(3)) == 3


# -- panel --------------------------------------------------------------------------------------------------------------------


async def test_the_panel_breaks_and_repairs_while_running(tmp_path: Path) -> None:
    panel = tmp_path / "panel.json"
    async with Bench(panel=str(panel)) as bench:
        healthy = rms(await bench.vibration(SETTLE_S))
        panel.write_text('{"faults": {"pump.outer_race": 1, "no_such": 1, "ball": "much"}}')
        await bench.vibration(SETTLE_S)
        assert rms(await bench.vibration(1)) > 4 * healthy
        assert bench.adapter.health().counters["panel_errors"] == 2
        panel.write_text('{"faults": {}}  ')
        await bench.vibration(SETTLE_S)
        assert rms(await bench.vibration(1)) == pytest.approx(healthy, rel=0.2)


async def test_a_valve_stays_where_it_was_when_the_process_dies(tmp_path: Path) -> None:
    panel = tmp_path / "panel.json"
    panel.write_text('{"faults": {"unbalance": 0.5}}')
    async with Bench(panel=str(panel)) as bench:
        await bench.adapter.actuate("pump/valve", "open")
    assert json.loads(panel.read_text()) == {"faults": {"unbalance": 0.5}, "actuators": {"pump/motor": "running", "pump/valve": "open"}}
    async with Bench(panel=str(panel)) as bench:
        assert await bench.adapter.actuator_state("pump/valve") == "open"
        [flow] = await bench.read("flow")
        assert flow > 50


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"faults": [], "actuators": 3}', '{"actuators": {"pump/valve": "ajar", "x": 1}}'])
async def test_a_panel_of_nonsense_changes_nothing(tmp_path: Path, text: str) -> None:
    panel = tmp_path / "panel.json"
    panel.write_text(text)
    async with Bench(panel=str(panel)) as bench:
        assert await bench.adapter.actuator_state("pump/valve") == "closed"
        assert bench.adapter.health().ok
        assert len(await bench.samples(2)) == 2


# -- what cannot be -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sed": 1}, r"plant\.options\.sed: unknown option; did you mean `seed`"),
        ({"pumps": []}, "expected one or more names"),
        ({"pumps": ["a/b"]}, "names without `/`"),
        ({"pumps": ["a", "a"]}, "expected every name once"),
        ({"rate_hz": 1}, r"rate_hz in 100\.\.100000"),
        ({"block": 0}, r"block in 1\.\.65536"),
        ({"seed": -1}, r"plant\.options\.seed"),
        ({"line_hz": 0}, r"plant\.options\.line_hz"),
        ({"noise": float("nan")}, r"plant\.options\.noise"),
        ({"ambient_degc": 1e9}, r"plant\.options\.ambient_degc"),
        ({"faults": {"outer": 1}}, "did you mean `outer_race`"),
        ({"faults": {"outer_race": 2}}, r"expected a number in 0\.\.1"),
    ],
)
def test_options_are_checked(options: Mapping[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter("plant", options, VirtualClock())


async def test_wrong_channels_and_states_are_named_with_the_right_ones() -> None:
    async with Bench() as bench:
        adapter: SimulatedAdapter = bench.adapter
        with pytest.raises(InputError, match="did you mean `pump/flow`"):
            await adapter.read(["pump/flo"])
        with pytest.raises(InputError, match="no such channel `pump/flow`"):
            await adapter.stream(["pump/flow"], lambda sample: None)
        with pytest.raises(AdapterError, match="has the states open, closed; got `ajar`"):
            await adapter.actuate("pump/valve", "ajar")


@settings(max_examples=30, deadline=None)
@given(st.lists(st.sampled_from(["open", "closed", "running", "stopped", "wait"]), max_size=12), st.sets(st.sampled_from(FAULTS)))
def test_nothing_that_is_done_to_the_plant_leads_out_of_physics(commands: list[str], faults: set[str]) -> None:
    pump = Pump(PlantSettings(), seed=5)
    pump.faults.update({fault: 1.0 for fault in faults if fault in pump.faults})
    for command in commands:
        if command != "wait":
            pump.command("valve" if command in ("open", "closed") else "motor", command)
        wave = pump.advance(1600)
        assert np.isfinite(wave).all()
        assert 0 <= pump.valve_position <= 1
        assert 0 <= pump.speed_rpm <= 1500
        assert 0 <= pump.flow_lpm < 200
        assert -0.1 <= pump.pressure_bar < 5
        assert 0 <= pump.current_a < 30
        assert 20 < pump.winding_degc < 200
