"""The driver `mqtt` on a real broker, with devices played as their makers made them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from adapters.mqtt import MqttAdapter, open_adapter
from cloud_sync.controller.broker import BrokerProcess, find_mosquitto, free_port, start_broker
from cloud_sync.mqtt import MqttSession
from edge_runtime.clock import Clock, VirtualClock
from edge_runtime.errors import AdapterDisconnected, InputError
from edge_runtime.testing.adapter_contract import AdapterContract, MakeAdapter
from edge_runtime.types import ChannelKind, Quality, Sample
from tests.adapters.mqtt.players import Plug, client

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrokerProcess]:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt install mosquitto)")
    with start_broker(free_port(), tmp_path_factory.mktemp("broker"), prefer="mosquitto") as process:
        yield process


@pytest.fixture
async def plug(broker: BrokerProcess) -> AsyncIterator[Plug]:
    playing = Plug(broker.port)
    await playing.start()
    yield playing
    await playing.stop()


@pytest.fixture
async def session(broker: BrokerProcess) -> AsyncIterator[MqttSession]:
    opened = await client(broker.port, "tester")
    yield opened
    await opened.close()


@pytest.fixture
async def adapt(broker: BrokerProcess) -> AsyncIterator[Callable[..., Awaitable[MqttAdapter]]]:
    opened: list[MqttAdapter] = []

    async def start(devices: dict[str, Any], **options: Any) -> MqttAdapter:
        adapter = open_adapter("m", {"broker": f"mqtt://127.0.0.1:{broker.port}", "devices": devices, **options}, VirtualClock())
        opened.append(adapter)
        await adapter.open()
        return adapter

    yield start
    for adapter in opened:
        await adapter.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


class Heard:
    """A stream of every sensor channel of an adapter."""

    def __init__(self, adapter: MqttAdapter) -> None:
        self.samples: list[Sample] = []
        channels = [info.channel for info in adapter.channels() if info.kind is ChannelKind.STREAMING]
        self.task = asyncio.ensure_future(adapter.stream(channels, self.samples.append))

    def last(self, channel: str) -> Sample | None:
        return next((sample for sample in reversed(self.samples) if sample.channel == channel), None)

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait((self.task,))


def shelly(plug: Plug) -> dict[str, Any]:
    return {"plug": {"profile": "shelly", "topic": plug.prefix}}


async def test_a_shelly_tells_its_state_when_asked_and_its_changes_by_itself(plug: Plug, adapt: Any) -> None:
    adapter = await adapt(shelly(plug))
    units = {info.channel: info.unit for info in adapter.channels()}
    assert units["plug/switch:0/power"] == "W"
    assert units["plug/switch:0/energy"] == "Wh"
    assert units["plug/switch:0/temperature"] == "degC"
    heard = Heard(adapter)
    await until(lambda: heard.last("plug/switch:0/energy"))
    assert heard.last("plug/switch:0/energy") == Sample("plug/switch:0/energy", 110.046)
    await plug.notify(apower=42.5)
    await until(lambda: heard.last("plug/switch:0/power") == Sample("plug/switch:0/power", 42.5, wall_ns=1_707_326_934_250_000_000))
    await heard.stop()


async def test_opening_waits_for_the_whole_state_though_changes_come_first(plug: Plug, adapt: Any) -> None:
    plug.silent_s = 0.2
    plug.speak()
    adapter = await adapt(shelly(plug))
    assert "plug/switch:0/energy" in {info.channel for info in adapter.channels()}


async def test_two_devices_of_a_kind_are_not_taken_for_each_other(plug: Plug, adapt: Any) -> None:
    other = Plug(plug.port, "shellyplus1pm-ddeeff")
    other.status["switch:0"]["aenergy"]["total"] = 7.5
    await other.start()
    try:
        adapter = await adapt({**shelly(plug), "other": {"profile": "shelly", "topic": other.prefix}})
        heard = Heard(adapter)
        await until(lambda: heard.last("plug/switch:0/energy") and heard.last("other/switch:0/energy"))
        assert {sample.value for sample in heard.samples if sample.channel == "plug/switch:0/energy"} == {110.046}
        assert {sample.value for sample in heard.samples if sample.channel == "other/switch:0/energy"} == {7.5}
        await heard.stop()
    finally:
        await other.stop()


async def test_a_relay_is_switched_and_its_own_word_is_its_state(plug: Plug, adapt: Any) -> None:
    adapter = await adapt(shelly(plug))
    assert await adapter.actuator_state("plug/switch:0") == "off"
    await adapter.actuate("plug/switch:0", "on")
    async with asyncio.timeout(20):
        while await adapter.actuator_state("plug/switch:0") != "on":
            await asyncio.sleep(0.005)
    assert plug.calls[-1]["method"] == "Switch.Set"
    assert plug.calls[-1]["params"] == {"id": 0, "on": True}


async def test_a_device_that_is_gone_is_unknown_until_it_is_back(plug: Plug, adapt: Any, session: MqttSession) -> None:
    adapter = await adapt(shelly(plug))
    heard = Heard(adapter)
    await session.publish(f"{plug.prefix}/online", b"false", retain=True)
    await until(lambda: (last := heard.last("plug/switch:0/voltage")) and last.quality is Quality.BAD)
    assert await adapter.actuator_state("plug/switch:0") is None
    assert "gone: plug/" in adapter.health().detail
    await session.publish(f"{plug.prefix}/online", b"true", retain=True)
    await until(lambda: heard.last("plug/switch:0/voltage").value == 232.8)  # it is asked anew
    assert "gone" not in adapter.health().detail
    await heard.stop()


async def test_what_the_broker_had_kept_is_uncertain(adapt: Any, session: MqttSession) -> None:
    await session.publish("plant/boiler", b'{"temp": 61.5}', retain=True)
    devices = {"boiler": {"profile": "generic", "channels": {"temp": {"topic": "plant/boiler", "pointer": "/temp", "unit": "degC"}}}}
    adapter = await adapt(devices)
    heard = Heard(adapter)
    await until(lambda: (last := heard.last("boiler/temp")) and last.value is not None)
    assert heard.last("boiler/temp") == Sample("boiler/temp", 61.5, quality=Quality.UNCERTAIN)
    await session.publish("plant/boiler", b'{"temp": 62}', retain=True)
    await until(lambda: heard.last("boiler/temp") == Sample("boiler/temp", 62.0))
    await heard.stop()
    await session.publish("plant/boiler", b"", retain=True)


async def test_noise_is_counted_and_never_passed_on(plug: Plug, adapt: Any, session: MqttSession) -> None:
    adapter = await adapt(shelly(plug))
    heard = Heard(adapter)
    before = adapter.health().counters["bad_messages"]
    noise = [
        b"",
        b"{",
        b"[" * 100_000,
        b'{"params": 3, "method": "NotifyStatus"}',
        b'{"a": 1, "a": 2}',
        b'{"x": NaN}',
        b"\xff\xfe",
        b"{}" * 200_000,
    ]
    for payload in noise:
        await session.publish(f"{plug.prefix}/events/rpc", payload)
    await until(lambda: adapter.health().counters["bad_messages"] == before + len(noise))
    await session.publish(
        f"{plug.prefix}/events/rpc", b'{"method": "NotifyStatus", "params": {"switch:0": {"apower": 1e999, "voltage": "x"}}}'
    )
    await plug.notify(apower=7.0)
    await until(lambda: heard.last("plug/switch:0/power").value == 7.0)
    assert all(sample.value is None or abs(sample.value) < 1e9 for sample in heard.samples)
    await heard.stop()


async def test_a_broker_that_dies_ends_the_stream_and_the_next_opening_works(adapt: Any, tmp_path: Path) -> None:
    with start_broker(free_port(), tmp_path, prefer="mosquitto") as own:
        plug = Plug(own.port)
        await plug.start()
        adapter = await adapt(shelly(plug), broker=f"mqtt://127.0.0.1:{own.port}")
        heard = Heard(adapter)
        own.kill()
        with pytest.raises(AdapterDisconnected):
            await asyncio.wait_for(heard.task, 20)
        assert not adapter.health().ok
        with pytest.raises(AdapterDisconnected):
            await adapter.actuate("plug/switch:0", "on")
        with pytest.raises(AdapterDisconnected):
            await adapter.open()
        await plug.stop()
        own.start()
        await plug.start()
        await adapter.open()
        assert adapter.health().ok
        await adapter.close()
        await plug.stop()


async def test_nobody_there_is_told_with_the_topics(adapt: Any) -> None:
    with pytest.raises(AdapterDisconnected, match=r"none of plug has spoken within 0\.2 s \(listening to .*nobody/events/rpc"):
        await adapt({"plug": {"profile": "shelly", "topic": "nobody"}}, first_s=0.2)


async def test_home_assistant_sees_this_gateway_and_moves_its_number(adapt: Any, session: MqttSession) -> None:
    seen: dict[str, bytes] = {}
    await session.subscribe("homeassistant/#", seen.__setitem__)
    await session.subscribe("edge-runtime/plant-1/#", seen.__setitem__)
    adapter = await adapt(
        {},
        identity="plant-1",
        entities={
            "leak": {"component": "binary_sensor", "name": "Leak", "device_class": "moisture"},
            "setpoint": {"component": "number", "unit": "degC", "minimum": 5, "maximum": 80},
        },
    )
    topic = "homeassistant/binary_sensor/plant-1/leak/config"
    await until(lambda: topic in seen and seen.get("edge-runtime/plant-1/online") == b"online")
    announced = json.loads(seen[topic])
    assert announced["state_topic"] == "edge-runtime/plant-1/leak"
    assert announced["availability_topic"] == "edge-runtime/plant-1/online"
    await adapter.actuate("entities/leak", "on")
    await until(lambda: seen.get("edge-runtime/plant-1/leak") == b"on")
    heard = Heard(adapter)
    await session.publish("edge-runtime/plant-1/setpoint/set", b"55.5")
    await until(lambda: (last := heard.last("entities/setpoint")) and last.value == 55.5)
    await until(lambda: seen.get("edge-runtime/plant-1/setpoint") == b"55.5")
    await session.publish("edge-runtime/plant-1/setpoint/set", b"500")
    await until(lambda: adapter.health().counters["bad_messages"] == 1)
    await heard.stop()
    await adapter.close()
    await until(lambda: seen.get("edge-runtime/plant-1/online") == b"offline")


async def test_what_others_announce_to_home_assistant_becomes_channels(adapt: Any, session: MqttSession) -> None:
    sensor = {"~": "esp/1", "stat_t": "~/state", "val_tpl": "{{ value_json.temp | float }}", "unit_of_meas": "°C", "name": "Tank"}
    await session.publish("homeassistant/sensor/esp1/temp/config", json.dumps(sensor).encode(), retain=True)
    adapter = await adapt({"ha": {"profile": "homeassistant", "topic": "homeassistant"}})
    heard_of = [info.channel for info in adapter.channels()]
    assert "ha/esp1/temp" in heard_of
    heard = Heard(adapter)
    valve = {"command_topic": "esp/1/valve/set", "state_topic": "esp/1/valve", "state_open": "open", "state_closed": "closed"}
    await session.publish("homeassistant/valve/esp1/main/config", json.dumps(valve).encode(), retain=True)
    await until(lambda: "ha/esp1/main/set" in {info.channel for info in adapter.channels()})
    told: list[tuple[str, bytes]] = []
    await session.subscribe("esp/1/valve/set", lambda *message: told.append(message))
    await adapter.actuate("ha/esp1/main/set", "open")
    await until(lambda: told == [("esp/1/valve/set", b"OPEN")])

    async def repeated() -> None:  # the subscription to a topic just announced is on its way
        while not (last := heard.last("ha/esp1/temp")) or last.value != 41.5:
            await session.publish("esp/1/state", b'{"temp": 41.5}')
            await asyncio.sleep(0.02)

    await asyncio.wait_for(repeated(), 20)
    await heard.stop()
    for topic in ("sensor/esp1/temp", "valve/esp1/main"):
        await session.publish(f"homeassistant/{topic}/config", b"", retain=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"broker": "http://x", "devices": {}}, "expected mqtt://HOST:PORT"),
        ({"broker": "mqtt://me:secret@x", "devices": {}}, "into `username` and `password_file`"),
        ({"broker": "mqtt://x", "devices": {}}, "at least one device"),
        ({"broker": "mqtts://x", "devices": {"a": {"profile": "tasmota", "topic": "t"}}}, "mqtts:// needs the file of the authority"),
        ({"broker": "mqtt://x", "devices": {"a": {"profile": "tasmota", "topic": "#"}}}, r"without \+ and #"),
        ({"broker": "mqtt://x", "devices": {"a/b": {"profile": "tasmota", "topic": "t"}}}, r"a name without / \+ #"),
        ({"broker": "mqtt://x", "devices": {"a": {"profile": "shelly", "topic": "t", "generation": 7}}}, "expected 1, or 2"),
        (
            {"broker": "mqtt://x", "devices": {"a": {"profile": "generic", "channels": {"c": {"topic": "t", "unit": "furlong"}}}}},
            "not a known unit",
        ),
        (
            {"broker": "mqtt://x", "password_file": "/no/such", "devices": {"a": {"profile": "tasmota", "topic": "t"}}},
            "cannot read /no/such",
        ),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        open_adapter("m", options, VirtualClock())


class TestMqttUnderContract(AdapterContract):
    option = "first_s"
    absent: ClassVar = {"broker": "mqtt://127.0.0.1:1"}

    @pytest.fixture
    async def make_adapter(self, broker: BrokerProcess, plug: Plug) -> MakeAdapter:
        plug.speak()

        def make(options: Any, clock: Clock) -> MqttAdapter:
            return open_adapter("mqtt", {"broker": f"mqtt://127.0.0.1:{broker.port}", "devices": shelly(plug), **options}, clock)

        return make
