"""What the makers' messages say: recordings of real devices, the documented shapes of others, and damage of every kind."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.mqtt.generic import ChannelSpec, Generic
from adapters.mqtt.homeassistant import Discovery, OwnEntities, template_path
from adapters.mqtt.points import BadPayload, Point, Presence, Profile, Said, parse_json
from adapters.mqtt.shelly import ShellyGen1, ShellyGen2
from adapters.mqtt.tasmota import Tasmota
from adapters.mqtt.zigbee2mqtt import Zigbee2Mqtt
from edge_runtime.errors import InputError
from edge_runtime.units import parse_unit

DATA = Path(__file__).resolve().parents[3] / "../shared/data/shelly"
RECORDED = sorted(DATA.glob("*.json")) if DATA.is_dir() else []

EXPECTED: dict[str, dict[str, tuple[float | None, str]]] = {
    "Shelly Air": {
        "relay:0/power": (0.0, "W"),
        "temperature:0": (23.06, "degC"),
        "input:0": (0.0, "bool"),
    },
    "Shelly Gas": {"sensor/concentration": (0.0, "ppm"), "sensor/gas": (0.0, "state")},
    "Shelly BLU Gateway": {"sys/uptime": (913057.0, "s"), "sys/ram_free": (117288.0, "B")},
    "Shelly Plus 1PM": {
        "switch:0/voltage": (232.8, "V"),
        "switch:0/energy": (110.046, "Wh"),
        "switch:0/temperature": (30.3, "degC"),
        "switch:0/output": (0.0, "bool"),
        "input:0/state": (0.0, "bool"),
    },
    "Shelly Plus Plug IT": {"switch:0/power": (0.8, "W"), "switch:0/output": (1.0, "bool")},
    "Shelly Pro 3EM": {
        "em:0/a_power": (375.5, "W"),
        "em:0/b_voltage": (229.0, "V"),
        "em:0/c_current": (0.428, "A"),
        "em:0/total_power": (558.965, "W"),
        "em:0/total_apparent_power": (882.413, "VA"),
    },
}


def heard(profile: Profile, topic: str, message: Any) -> dict[str, Said]:
    payload = message if isinstance(message, bytes) else json.dumps(message).encode()
    return {item.point.name: item for item in profile.hear(topic, payload) if isinstance(item, Said)}


def values(said: Mapping[str, Said]) -> dict[str, tuple[float | None, str]]:
    return {name: (item.value, item.point.unit) for name, item in said.items() if not item.point.states and not item.point.writable}


@pytest.mark.skipif(not RECORDED, reason="needs the shared recordings beside the checkout")
@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.name.split("_")[1])
def test_recorded_devices_give_readings_with_units(path: Path) -> None:
    recorded = json.loads(path.read_text())
    if path.name.startswith("gen1"):
        said = heard(ShellyGen1("x"), "shellies/x/info", recorded["status"])
    else:
        said = heard(ShellyGen2("x", "me"), "me/rpc", {"id": 1, "result": recorded["status"]})
    for item in said.values():
        parse_unit(item.point.unit)
    found = values(said)
    expected = EXPECTED[path.name.split("_")[1]]
    assert {name: found.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("topic", "payload", "expected"),
    [
        ("relay/0/power", b"61.3", ("relay:0/power", 61.3, "W")),
        ("relay/0/energy", b"600", ("relay:0/energy", 10.0, "Wh")),
        ("relay/0", b"on", ("relay:0/output", 1.0, "bool")),
        ("emeter/2/reactive_power", b"-4.5", ("emeter:2/reactive_power", -4.5, "var")),
        ("roller/0/pos", b"80", ("roller:0/position", 80.0, "%")),
        ("sensor/flood", b"true", ("sensor/flood", 1.0, "bool")),
        ("sensor/temperature", b"none", ("sensor/temperature", None, "degC")),
    ],
)
def test_values_of_the_first_shellies_that_come_one_by_one(topic: str, payload: bytes, expected: tuple[str, float | None, str]) -> None:
    name, value, unit = expected
    assert values(heard(ShellyGen1("x"), f"shellies/x/{topic}", payload))[name] == (value, unit)


def test_a_cover_says_what_it_does_and_takes_commands() -> None:
    shelly = ShellyGen2("x", "me")
    said = heard(shelly, "x/status/cover:0", {"id": 0, "state": "opening", "current_pos": 40, "apower": 90.1})
    assert values(said) == {"cover:0/position": (40.0, "%"), "cover:0/power": (90.1, "W"), "cover:0/state": (2.0, "state")}
    assert said["cover:0"].state == "open"
    sent = json.loads(shelly.command(said["cover:0"].point, "stop").payload)
    assert (sent["method"], sent["params"]) == ("Cover.Stop", {"id": 0})


def test_tasmota_tells_sensors_energy_and_relays() -> None:
    tasmota = Tasmota("boiler")
    sensors = {
        "Time": "2024-02-07T18:29:00",
        "ENERGY": {"Total": 12.345, "Power": 45, "Voltage": [231, 230, 229], "Factor": 0.91, "Serial": "x"},
        "DS18B20": {"Id": "012", "Temperature": 71.2},
        "BME280": {"Humidity": 40.1, "Pressure": 14.7},
        "TempUnit": "F",
        "PressureUnit": "psi",
    }
    assert values(heard(tasmota, "tele/boiler/SENSOR", sensors)) == {
        "energy/Total": (12.345, "kWh"),
        "energy/Power": (45.0, "W"),
        "energy/Voltage/1": (231.0, "V"),
        "energy/Voltage/2": (230.0, "V"),
        "energy/Voltage/3": (229.0, "V"),
        "energy/Factor": (0.91, ""),
        "ds18b20/Temperature": (71.2, "degF"),
        "bme280/Humidity": (40.1, "%"),
        "bme280/Pressure": (14.7, "psi"),
    }
    assert heard(tasmota, "stat/boiler/STATUS10", {"StatusSNS": sensors}).keys() == heard(tasmota, "tele/boiler/SENSOR", sensors).keys()
    state = heard(tasmota, "tele/boiler/STATE", {"UptimeSec": 5, "POWER1": "ON", "POWER2": "OFF"})
    assert (state["power1"].state, state["power2"].state) == ("on", "off")
    assert tasmota.command(state["power2"].point, "on").topic == "cmnd/boiler/POWER2"
    assert heard(tasmota, "stat/boiler/POWER1", b"OFF")["power1"].state == "off"
    assert tasmota.hear("tele/boiler/LWT", b"Offline") == (Presence("", False),)


DEVICES = [
    {"friendly_name": "Coordinator", "type": "Coordinator", "definition": None},
    {
        "friendly_name": "hall/valve",
        "definition": {
            "exposes": [
                {"type": "numeric", "property": "local_temperature", "unit": "°C", "access": 5, "name": "local_temperature"},
                {"type": "numeric", "property": "setpoint", "unit": "°C", "access": 7, "value_min": 5, "value_max": 35},
                {"type": "binary", "property": "window", "access": 1, "value_on": "OPEN", "value_off": "CLOSE"},
                {"type": "enum", "property": "mode", "access": 7, "values": ["off", "heat", "auto"]},
                {
                    "type": "switch",
                    "features": [{"type": "binary", "property": "state", "access": 7, "value_on": "ON", "value_off": "OFF"}],
                },
                {"type": "numeric", "property": "illuminance", "unit": "lx", "access": 1},
                {"type": "composite", "property": "schedule", "features": [{"type": "numeric", "property": "deep", "access": 1}]},
            ]
        },
    },
]


def test_zigbee_devices_say_themselves_what_they_can() -> None:
    bridge = Zigbee2Mqtt("zigbee2mqtt")
    known = heard(bridge, "zigbee2mqtt/bridge/devices", DEVICES)
    assert set(known) == {
        f"hall/valve/{name}"
        for name in ("local_temperature", "setpoint", "setpoint/set", "window", "mode", "mode/set", "state", "state/set", "illuminance")
    }
    said = heard(
        bridge,
        "zigbee2mqtt/hall/valve",
        {"local_temperature": 21.4, "window": "OPEN", "mode": "heat", "state": "OFF", "setpoint": 20, "new": 3},
    )
    assert values(said) == {
        "hall/valve/local_temperature": (21.4, "degC"),
        "hall/valve/window": (1.0, "bool"),
        "hall/valve/mode": (1.0, "state"),
        "hall/valve/state": (0.0, "bool"),
        "hall/valve/setpoint": (20.0, "degC"),
    }
    assert (said["hall/valve/mode/set"].state, said["hall/valve/state/set"].state, said["hall/valve/setpoint/set"].state) == (
        "heat",
        "off",
        "20",
    )
    setpoint = bridge.command(said["hall/valve/setpoint/set"].point, "22.5")
    assert (setpoint.topic, json.loads(setpoint.payload)) == ("zigbee2mqtt/hall/valve/set", {"setpoint": 22.5})
    assert json.loads(bridge.command(said["hall/valve/state/set"].point, "on").payload) == {"state": "ON"}
    with pytest.raises(InputError, match="between 5 and 35, got `99`"):
        bridge.command(said["hall/valve/setpoint/set"].point, "99")
    assert bridge.hear("zigbee2mqtt/hall/valve/availability", b'{"state": "offline"}') == (Presence("hall/valve/", False),)


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("{{ value }}", None),
        ("{{value_json.a}}", ("a",)),
        ("{{ value_json.a.b[0]['c d'] | float(0) | round(2) }}", ("a", "b", 0, "c d")),
        ("{{ value_json['ENERGY'][\"Power\"] }}", ("ENERGY", "Power")),
    ],
)
def test_templates_that_pick_a_value_are_read(template: str, path: tuple[str | int, ...] | None) -> None:
    assert template_path(template) == path


@pytest.mark.parametrize(
    "template",
    [
        "{{ value_json.a * 2 }}",
        "{% if value %}1{% endif %}",
        "{{ ''.__class__.__mro__ }}",
        "{{ value_json.a | int + 1 }}",
        "{{ value }}{{ value }}",
        "{{ value.x }}",
        "",
        3,
        "{{ value_json." + "a." * 500 + "a }}",
    ],
)
def test_templates_that_do_more_are_refused(template: object) -> None:
    with pytest.raises(BadPayload, match="more than pick a value"):
        template_path(template)


def test_a_generic_device_turns_words_into_numbers_and_states_into_payloads() -> None:
    channels = {
        "flow": ChannelSpec(topic="p/1", pointer="/sensors/1/v~1s", unit="l/min"),
        "pump": ChannelSpec(topic="p/2", command_topic="p/2/set", states={"on": "RUN", "off": "HALT"}, values={"RUN": 1, "HALT": 0}),
    }
    device = Generic("d", channels)
    assert values(heard(device, "p/1", {"sensors": [0, {"v/s": 12.5}]})) == {"flow": (12.5, "l/min")}
    said = heard(device, "p/2", b"RUN")
    assert (said["pump"].value, said["pump/set"].state) == (1.0, "on")
    assert device.command(said["pump/set"].point, "off").payload == b"HALT"
    with pytest.raises(InputError, match="expected `topic`, or `command_topic` with `states`"):
        Generic("d", {"x": ChannelSpec(command_topic="t")})


PROFILES: list[tuple[Profile, list[str]]] = [
    (ShellyGen2("x", "me"), ["x/online", "x/events/rpc", "x/status/switch:0", "x/status/em:0", "me/rpc"]),
    (ShellyGen1("x"), ["shellies/x/info", "shellies/x/relay/0", "shellies/x/sensor/gas", "shellies/x/online"]),
    (Tasmota("x"), ["tele/x/SENSOR", "tele/x/STATE", "stat/x/RESULT", "stat/x/POWER", "tele/x/LWT"]),
    (Zigbee2Mqtt("z"), ["z/bridge/devices", "z/hall/valve", "z/bridge/state", "z/hall/valve/availability"]),
    (Discovery("h"), ["h/sensor/a/config", "h/switch/n/a/config", "h/cover/a/config"]),
    (OwnEntities("h", "g", {}), ["edge-runtime/g/x/set"]),
    (Generic("g", {"a": ChannelSpec(topic="t", pointer="/a/0")}), ["t"]),
]
SEEDS: list[Any] = [
    {"method": "NotifyStatus", "params": {"ts": 1e9, "switch:0": {"apower": 1, "output": True, "temperature": {"tC": 3}}, "em:0": {}}},
    {"result": {"cover:0": {"state": "open"}}},
    {"relays": [{"ison": True}], "meters": [{"power": 1}], "ext_temperature": {"0": {"tC": 1}}, "gas_sensor": {"alarm_state": "none"}},
    {"ENERGY": {"Power": [1, 2]}, "TempUnit": "C", "StatusSNS": {"A": {"Temperature": 1}}, "POWER": "ON"},
    DEVICES,
    {"local_temperature": 1, "mode": "heat", "state": "ON"},
    {"stat_t": "~/x", "~": "t", "cmd_t": "c", "val_tpl": "{{ value_json.a }}", "avty": [{"topic": "t"}], "min": 1, "max": 3},
    True,
    "on",
]
JUNK: list[Any] = [None, True, -1, 1e308, 10**400, "", "x" * 300, "NaN", [], {}, [[]], {"a": {}}, [None], "\x00", -0.0]


def _damaged(choice: random.Random, value: Any, depth: int = 0) -> Any:
    if choice.random() < 0.12:
        return choice.choice(JUNK)
    if isinstance(value, dict) and depth < 8:
        return {
            (key if choice.random() < 0.95 else choice.choice(["", "switch:999", "id", "x/y"])): _damaged(choice, item, depth + 1)
            for key, item in value.items()
        }
    if isinstance(value, list) and depth < 8:
        return [_damaged(choice, item, depth + 1) for item in value]
    return value


def test_damage_of_any_kind_ends_in_readings_or_a_refusal() -> None:
    choice = random.Random(11)
    refused = told = 0
    for _ in range(6000):
        profile, topics = choice.choice(PROFILES)
        payload = json.dumps(_damaged(choice, choice.choice(SEEDS))).encode()
        if choice.random() < 0.3:
            payload = payload[: choice.randrange(len(payload) + 1)]
        if choice.random() < 0.1:
            payload = choice.randbytes(40)
        try:
            said = profile.hear(choice.choice(topics), payload)
        except BadPayload:
            refused += 1
            continue
        told += len(said)
        for item in said:
            if isinstance(item, Said):
                assert item.value is None or abs(item.value) < float("inf")
                parse_unit(item.point.unit)
                assert len(item.point.description) <= 200
    assert refused > 500
    assert told > 1000


@given(st.binary(max_size=200))
def test_bytes_of_any_kind_are_json_or_refused(payload: bytes) -> None:
    with contextlib.suppress(BadPayload):
        parse_json(payload)


@pytest.mark.parametrize("payload", [b'{"a": 1, "a": 2}', b"[NaN]", b"[" * 100_000, b" " * 300_000, b"\xff"])
def test_json_that_is_none_is_refused(payload: bytes) -> None:
    with pytest.raises(BadPayload):
        parse_json(payload)


def test_a_command_for_an_entity_that_is_gone_is_refused() -> None:
    with pytest.raises(InputError, match="no longer announced"):
        Discovery("h").command(Point("a/set", states=("on", "off")), "on")
