"""The driver `meter` over real sockets and a real pty: channels, silence, noise, meters that come and go; and the contract."""

from __future__ import annotations

import asyncio
import os
import tty
from collections.abc import AsyncIterator, Callable
from typing import Any, ClassVar

import pytest

from adapters.meters import MeterAdapter, open_adapter
from edge_runtime.clock import Clock, VirtualClock
from edge_runtime.errors import AdapterDisconnected, InputError
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter
from edge_runtime.types import ChannelKind, Quality, Sample
from tests.adapters.meters.telegrams import Meter, dsmr, entry, get_list, household, sml, sml_file, unsigned


@pytest.fixture
async def meter() -> AsyncIterator[tuple[Meter, str]]:
    made = Meter()
    yield made, await made.start()
    await made.stop()


def _adapter(port: str, protocol: str = "sml", **options: Any) -> MeterAdapter:
    return open_adapter("meter", {"port": port, "protocol": protocol, **options}, VirtualClock())


async def _until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(15):
        while not condition():
            await asyncio.sleep(0.002)


async def _opened(adapter: MeterAdapter, speaker: Meter, said: bytes) -> None:
    """Opens while the meter speaks: what it says before the line is open is lost, as on a real one."""
    opening = asyncio.ensure_future(adapter.open())
    await _until(lambda: adapter._port.is_open or opening.done())
    speaker.say(said)
    await opening


async def test_channels_are_what_the_meter_says(meter: tuple[Meter, str]) -> None:
    speaker, port = meter
    adapter = _adapter(port)
    await _opened(adapter, speaker, sml()[40:] + sml())
    assert {info.channel: (info.unit, info.kind) for info in adapter.channels()} == {
        "energy_import_total": ("Wh", ChannelKind.STREAMING),
        "power": ("W", ChannelKind.STREAMING),
    }
    heard: list[Sample] = []
    task = asyncio.ensure_future(adapter.stream(["power"], heard.append))
    await asyncio.sleep(0)
    for power in (10, 20):
        speaker.say(b"\xff\x1b\x1b" + sml(power_w=power))
    await _until(lambda: len(heard) == 2)
    assert [sample.value for sample in heard] == [10.0, 20.0]
    speaker.say(sml()[:-2] + b"\x00\x00" + sml(power_w=30))
    await _until(lambda: len(heard) == 3)
    health = adapter.health()
    assert health.ok
    assert health.counters["bad_checksums"] == 1
    assert health.counters["dropped_bytes"] > 40
    task.cancel()
    await adapter.close()
    assert not adapter.health().ok


async def test_garbage_alone_opens_nothing_and_says_what_came(meter: tuple[Meter, str]) -> None:
    speaker, port = meter
    adapter = _adapter(port, first_s=0.3)
    with pytest.raises(AdapterDisconnected, match=r"10\d\d\d bytes, of them 1 telegrams with a bad checksum"):
        await _opened(adapter, speaker, bytes(range(256)) * 40 + sml()[:-1] + b"\x00")
    with pytest.raises(AdapterDisconnected, match="not open"):
        await adapter.stream(["power"], print)


async def test_a_silent_meter_says_nothing_at_all(meter: tuple[Meter, str]) -> None:
    with pytest.raises(AdapterDisconnected, match="nothing at all; is the request line"):
        await _adapter(meter[1], "dsmr", first_s=0.1).open()


async def test_silence_is_bad_and_ends_with_the_next_telegram(meter: tuple[Meter, str]) -> None:
    speaker, port = meter
    adapter = _adapter(port, silence_s=0.3)
    await _opened(adapter, speaker, sml())
    heard: list[Sample] = []
    task = asyncio.ensure_future(adapter.stream(["power", "energy_import_total"], heard.append))
    await _until(lambda: len(heard) == 2)
    assert {(sample.value, sample.quality) for sample in heard} == {(None, Quality.BAD)}
    assert not adapter.health().ok
    speaker.say(sml(power_w=5))
    await _until(lambda: any(sample.value == 5.0 for sample in heard))
    assert adapter.health().ok
    with pytest.raises(AdapterDisconnected, match="no telegram"):
        await asyncio.wait_for(task, 15)
    await adapter.close()


async def test_a_line_that_breaks_is_disconnected_and_opens_again(meter: tuple[Meter, str]) -> None:
    speaker, port = meter
    adapter = _adapter(port)
    for connection in (1, 2):
        await _opened(adapter, speaker, sml())
        assert speaker.connections == connection
        task = asyncio.ensure_future(adapter.stream(["power"], print))
        await asyncio.sleep(0)
        speaker.hang_up()
        with pytest.raises(AdapterDisconnected, match="closed by the other side"):
            await asyncio.wait_for(task, 15)
        await adapter.close()


async def test_a_code_that_appears_later_becomes_a_channel(meter: tuple[Meter, str]) -> None:
    speaker, port = meter
    adapter = _adapter(port, obis={"heat_pump": "1-1:1.8.0"})
    await _opened(adapter, speaker, sml())
    changes = adapter.changes()
    following = asyncio.ensure_future(anext(changes))
    await asyncio.sleep(0)
    speaker.say(sml_file(get_list([entry(bytes([1, 1, 1, 8, 0, 255]), 30, 0, unsigned(77, 2))])))
    assert "heat_pump" in {info.channel for info in await asyncio.wait_for(following, 15)}
    await changes.aclose()
    await adapter.close()


async def test_gas_speaks_when_it_has_something_new(meter: tuple[Meter, str]) -> None:
    speaker, port = meter
    adapter = _adapter(port, "dsmr")
    await _opened(adapter, speaker, household())
    heard: list[Sample] = []
    task = asyncio.ensure_future(adapter.stream(["gas_total", "power_import"], heard.append))
    await asyncio.sleep(0)
    for power, gas, time in ((0.1, 12.5, "231124120000W"), (0.2, 12.5, "231124120000W"), (0.3, 12.5, "231124120500W")):
        speaker.say(household(power, gas, time))
    await _until(lambda: sum(sample.channel == "power_import" for sample in heard) == 3)
    gas_heard = [sample for sample in heard if sample.channel == "gas_total"]
    assert [sample.value for sample in gas_heard] == [12.5, 12.5]
    assert gas_heard[1].wall_ns is not None
    assert gas_heard[0].wall_ns is not None
    assert gas_heard[1].wall_ns - gas_heard[0].wall_ns == 300 * 10**9
    task.cancel()
    await adapter.close()


async def test_a_meter_on_a_tty() -> None:
    other, mine = os.openpty()
    tty.setraw(mine)
    try:
        adapter = _adapter(os.ttyname(mine), "dsmr", frame="7E1", baud=9600)
        opening = asyncio.ensure_future(adapter.open())
        while not opening.done():
            os.write(other, dsmr(["1-0:1.7.0(0001.19*kW)"], crc=False))
            await asyncio.sleep(0.01)
        assert [info.channel for info in adapter.channels()] == ["power_import"]
        await adapter.close()
    finally:
        os.close(other)
        os.close(mine)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"protocol": "morse"}, "protocol"),
        ({"silence_s": 0}, "silence_s"),
        ({"first_s": -1}, "first_s"),
        ({"obis": {"x": "energy"}}, r"obis\.x.*1-0:1\.8\.0"),
        ({"frame": "8X1"}, "frame"),
        ({"bauds": 3}, "did you mean `baud`"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_adapter("meter", {"port": "/dev/ttyUSB0", "protocol": "sml", **options}, VirtualClock())


class TestMeterUnderContract(AdapterContract):
    option = "silence_s"
    absent: ClassVar = {"port": "/dev/no-such-meter"}

    @pytest.fixture
    async def make_adapter(self) -> AsyncIterator[MakeAdapter]:
        speaker = Meter()
        port = await speaker.start()

        async def speak() -> None:
            while True:
                speaker.say(sml())
                await asyncio.sleep(0.01)

        speaking = asyncio.ensure_future(speak())

        def make(options: Any, clock: Clock) -> MeterAdapter:
            return open_adapter("meter", {"port": port, "protocol": "sml", **options}, clock)

        yield make
        speaking.cancel()
        await speaker.stop()
