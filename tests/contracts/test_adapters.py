"""The adapter contract over every adapter that ships, and over adapters that break it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar
from unittest import SkipTest

import numpy as np
import pytest

from adapters import coap, linux, meters, microcontroller, modbus, mqtt, raspberry_pi, replay, simulated
from adapters.simulated import Options, SimulatedAdapter
from edge_runtime.clock import SystemClock
from edge_runtime.errors import AdapterError, InputError
from edge_runtime.ports import SampleSink
from edge_runtime.registry import ADAPTERS, load, names
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter
from edge_runtime.testing.machine_tree import MachineTree
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Sample


def from_registry(driver: str, own: Mapping[str, Any]) -> MakeAdapter:
    factory = load(ADAPTERS, driver)
    return lambda options, clock: factory("unit", {**own, **options}, clock)


class TestSimulated(AdapterContract):
    option = "seed"
    absent: ClassVar[Mapping[str, Any]] = {"faults": {"disconnect": 1.0}}
    faults = simulated.FAULTS

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        return from_registry("simulated", {"pumps": ["pump", "pump2"]})


class TestSimulatedWithPanel(TestSimulated):
    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        return from_registry("simulated", {"panel": str(tmp_path / "panel.json")})


class TestSimulatedInRealTime(TestSimulated):
    """Paced by the machine's clock, as a gateway has it."""

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        factory = load(ADAPTERS, "simulated")
        return lambda options, clock: factory("unit", {"block": 8, **options}, SystemClock())


class TestReplayOfRows(AdapterContract):
    option = "speed"
    absent: ClassVar[Mapping[str, Any]] = {"file": "absent.csv"}
    faults = replay.FAULTS

    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        path = tmp_path / "rows.csv"
        path.write_text("time,temp,flow\n100,1,10\n101,2,\n102,3,30\n101,4,40\n")
        return from_registry("replay", {"file": str(path), "loop": True})


class TestReplayOfSegments(TestReplayOfRows):
    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        path = tmp_path / "segments.npz"
        np.savez(path, normal_0=np.arange(64, dtype=np.float32), ball_0=np.arange(96, dtype=np.float32))
        return from_registry("replay", {"file": str(path), "rate_hz": 100, "block": 16, "loop": True, "speed": "max"})


class TestLinuxOfFiles(AdapterContract):
    option = "rescan_s"
    absent: ClassVar[Mapping[str, Any]] = {"root": "/nowhere/at/all"}

    @pytest.fixture
    def make_adapter(self, tmp_path: Path) -> MakeAdapter:
        return from_registry("linux", {"root": str(MachineTree(tmp_path / "machine").root)})


class TestLinuxHere(AdapterContract):
    """The machine that runs the tests; its LEDs, if any, are left alone."""

    option = "include"
    absent: ClassVar[Mapping[str, Any]] = {"include": ["no/such/*"]}

    @pytest.fixture
    def make_adapter(self) -> MakeAdapter:
        return from_registry("linux", {"exclude": ["led/*"]})


UNDER_CONTRACT = {
    "coap": coap.open_adapter,  # test_node_adapters.py
    "linux": linux.open_adapter,
    "meter": meters.open_adapter,  # tests/adapters/meters
    "microcontroller": microcontroller.open_adapter,  # test_node_adapters.py
    "modbus": modbus.open_adapter,  # tests/adapters/modbus
    "mqtt": mqtt.open_adapter,  # tests/adapters/mqtt
    "raspberry_pi": raspberry_pi.open_adapter,
    "replay": replay.open_adapter,
    "simulated": simulated.open_adapter,
}


def test_every_adapter_that_ships_is_under_contract() -> None:
    assert {name: load(ADAPTERS, name) for name in names(ADAPTERS)} == UNDER_CONTRACT


# -- the contract catches ------------------------------------------------------------------------------------------------------


class Leaking(SimulatedAdapter):
    """A task per opening that nobody ends."""

    async def open(self) -> None:
        await super().open()
        self.task = asyncio.get_running_loop().create_task(asyncio.Event().wait(), name="leaked")


class ForeignThread(SimulatedAdapter):
    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        def elsewhere(sample: Sample) -> None:
            asyncio.get_running_loop().run_in_executor(None, sink, sample)

        await super().stream(channels, elsewhere)


class Deaf(SimulatedAdapter):
    """Cannot be cancelled."""

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        with suppress(asyncio.CancelledError):
            await super().stream(channels, sink)
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()


class Overwriting(SimulatedAdapter):
    """Hands over one buffer again and again."""

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        buffer = np.zeros(128, np.float32)

        def fill(sample: Sample) -> None:
            assert sample.block is not None
            buffer[:] = sample.block
            sink(Sample(sample.channel, block=buffer, rate_hz=sample.rate_hz))

        await super().stream(channels, fill)


class Talkative(SimulatedAdapter):
    """Speaks of every channel, whatever was asked."""

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        await super().stream(["pump/vibration", "pump2/vibration"], sink)


class Inventive(SimulatedAdapter):
    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        return [Sample(channel, 20.0) for channel in channels]


class Unordered(SimulatedAdapter):
    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        return sorted(await super().read(channels), key=lambda sample: sample.channel)


class NotANumber(SimulatedAdapter):
    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        return [Sample(sample.channel, float("nan")) for sample in await super().read(channels)]


class FalseUnit(SimulatedAdapter):
    def channels(self) -> Sequence[ChannelInfo]:
        return [*super().channels(), ChannelInfo("pump/oil", ChannelKind.SAMPLED, "celsius")]


class Twofold(SimulatedAdapter):
    def channels(self) -> Sequence[ChannelInfo]:
        return [*super().channels(), *super().channels()]


class Wavering(SimulatedAdapter):
    def channels(self) -> Sequence[ChannelInfo]:
        return super().channels()[: len(super().channels()) - self.health().counters["blocks"]]


class Helpful(SimulatedAdapter):
    """Closes the valve on closing: the runtime's decision, not its own."""

    async def close(self) -> None:
        self._pumps["pump"].command("valve", "closed")
        await super().close()


class Agreeable(SimulatedAdapter):
    """Takes any state."""

    async def actuate(self, channel: str, state: str) -> None:
        with suppress(AdapterError):
            await super().actuate(channel, state)


class Forgetful(SimulatedAdapter):
    async def actuator_state(self, channel: str) -> str | None:
        return await super().actuator_state(channel) and "closed"


class Toggling(SimulatedAdapter):
    """The same command twice is no command."""

    async def actuate(self, channel: str, state: str) -> None:
        other = {"open": "closed", "closed": "open", "running": "stopped", "stopped": "running"}
        again = state in other and await self.actuator_state(channel) == state
        await super().actuate(channel, other[state] if again else state)


class Ailing(SimulatedAdapter):
    def health(self) -> Health:
        if not self._open:
            raise AdapterError("not open")
        return super().health()


class CloseOnce(SimulatedAdapter):
    async def close(self) -> None:
        if not self._open:
            raise AdapterError("closed already")
        await super().close()


class Silent(SimulatedAdapter):
    def inject(self, fault: str, severity: float) -> None:
        with suppress(InputError):
            super().inject(fault, severity)


class Incurable(SimulatedAdapter):
    def inject(self, fault: str, severity: float) -> None:
        super().inject(fault, severity or 1.0)


class Mute(SimulatedAdapter):
    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        await super().stream(channels, lambda sample: None)


BREACHES: list[tuple[type[SimulatedAdapter], str, str]] = [
    (Leaking, "opens_again_and_again_without_leaving_anything", "task leaked"),
    (ForeignThread, "stream_feeds_the_sink_until_cancelled", "another thread"),
    (Deaf, "stream_feeds_the_sink_until_cancelled", "did not end within"),
    (Mute, "stream_feeds_the_sink_until_cancelled", "0 samples within"),
    (Talkative, "stream_feeds_the_sink_until_cancelled", "was not asked for"),
    (Talkative, "stream_refuses_an_unknown_channel", "took longer"),
    (Overwriting, "streamed_blocks_are_never_written_again", "was written again"),
    (Inventive, "read_invents_no_channel", "invented a value"),
    (Inventive, "refuses_work_unless_open", "read after close: expected AdapterError"),
    (Unordered, "read_gives_one_sample_per_channel_in_order", "asked .*got"),
    (NotANumber, "read_gives_one_sample_per_channel_in_order", "nan is no reading"),
    (Twofold, "channels_are_named_once_in_known_units", "named twice"),
    (Wavering, "channels_stay_the_same", "changed without HotPlug"),
    (Helpful, "close_leaves_actuators_as_they_are", "was brought to `open` and reports `closed`"),
    (Agreeable, "actuators_refuse_an_undeclared_state", "expected InputError or AdapterError"),
    (Forgetful, "actuators_take_every_declared_state", "was brought to `open` and reports `closed`"),
    (Toggling, "actuators_take_every_declared_state", "was brought to `open` and reports `closed`"),
    (Silent, "unknown_faults_are_refused_with_the_known_ones", "expected InputError"),
    (Incurable, "faults_come_and_go", "not well after"),
]
RAISED: list[tuple[type[SimulatedAdapter], str, type[Exception]]] = [
    (FalseUnit, "channels_are_named_once_in_known_units", InputError),
    (Ailing, "health_never_raises", AdapterError),
    (CloseOnce, "close_is_safe_at_any_time", AdapterError),
]


class Hasty(AdapterContract):
    deadline_s = 0.5
    option = "seed"
    faults = ("sensor_dropout",)


def of_class(kind: type[SimulatedAdapter]) -> MakeAdapter:
    return lambda options, clock: kind("unit", Options(pumps=("pump", "pump2")), clock)


@pytest.mark.parametrize(("kind", "name", "message"), BREACHES)
async def test_a_breach_is_told(kind: type[SimulatedAdapter], name: str, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        await getattr(Hasty(), f"test_{name}")(of_class(kind))


@pytest.mark.parametrize(("kind", "name", "error"), RAISED)
async def test_an_error_in_the_wrong_place_is_not_swallowed(kind: type[SimulatedAdapter], name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        await getattr(Hasty(), f"test_{name}")(of_class(kind))


async def test_a_factory_that_takes_anything_is_told() -> None:
    with pytest.raises(AssertionError, match="the unknown option `seedx`: expected InputError"):
        await Hasty().test_unknown_options_are_refused_by_name(of_class(SimulatedAdapter))


async def test_a_missing_capability_is_a_skip() -> None:
    with pytest.raises(SkipTest, match="SimulatedAdapter has no HotPlug"):
        await Hasty().test_changes_can_be_watched_and_left(of_class(SimulatedAdapter))
