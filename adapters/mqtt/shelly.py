"""Shelly devices. Gen1: a topic per value below `shellies/ID`. Gen2 and later: status notifications and JSON-RPC below the device's prefix.

A gen2 device needs MQTT with `RPC status notifications` on (the factory setting). Values that this page does not know are left out:
their unit would be a guess.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapters.mqtt.points import BadPayload, Point, Presence, Publish, Said, at, number, parse_object, place, text_of, truth
from edge_runtime.errors import InputError

_COVER = ("open", "close", "stop")
_COVER_STATES = ("closed", "open", "opening", "closing", "stopped", "calibrating")
_ALARM = ("none", "mild", "heavy", "test")
_COMPONENT = re.compile(r"[a-z0-9_]{1,24}(:[0-9]{1,3})?")
_PHASES = ("a", "b", "c", "n", "total")

# attribute of a gen2 component: (name, unit)
_NUMBERS: dict[tuple[str, ...], tuple[str, str]] = {
    ("apower",): ("power", "W"),
    ("voltage",): ("voltage", "V"),
    ("current",): ("current", "A"),
    ("freq",): ("frequency", "Hz"),
    ("pf",): ("power_factor", ""),
    ("aenergy", "total"): ("energy", "Wh"),
    ("ret_aenergy", "total"): ("energy_returned", "Wh"),
    ("temperature", "tC"): ("temperature", "degC"),
    ("tC",): ("temperature", "degC"),
    ("rh",): ("humidity", "%"),
    ("percent",): ("percent", "%"),
    ("current_pos",): ("position", "%"),
    ("brightness",): ("brightness", "%"),
    ("battery", "V"): ("battery_voltage", "V"),
    ("battery", "percent"): ("battery", "%"),
    ("act_power",): ("power", "W"),
    ("aprt_power",): ("apparent_power", "VA"),
    ("total_act_energy",): ("energy", "Wh"),
    ("total_act_ret_energy",): ("energy_returned", "Wh"),
    ("total_act",): ("energy", "Wh"),
    ("total_act_ret",): ("energy_returned", "Wh"),
    ("uptime",): ("uptime", "s"),
    ("ram_free",): ("ram_free", "B"),
    **{
        (f"{phase}_{kind}",): (f"{phase}_{name}", unit)
        for phase in _PHASES
        for kind, name, unit in (
            ("act_power", "power", "W"),
            ("aprt_power", "apparent_power", "VA"),
            ("current", "current", "A"),
            ("voltage", "voltage", "V"),
            ("freq", "frequency", "Hz"),
            ("pf", "power_factor", ""),
            ("total_act_energy", "energy", "Wh"),
            ("total_act_ret_energy", "energy_returned", "Wh"),
        )
    },
}
_TRUTHS = {"output": "output", "alarm": "alarm", "flood": "flood", "motion": "motion"}

# value of a gen1 status, and the topic that tells it alone: (name, unit, factor)
_GEN1: tuple[tuple[re.Pattern[str], str, str, float], ...] = tuple(
    (re.compile(pattern), name, unit, factor)
    for pattern, name, unit, factor in (
        (r"relay/(\d)/power", "relay:{}/power", "W", 1),
        (r"relay/(\d)/energy", "relay:{}/energy", "Wh", 1 / 60),
        (r"roller/(\d)/power", "roller:{}/power", "W", 1),
        (r"roller/(\d)/energy", "roller:{}/energy", "Wh", 1 / 60),
        (r"roller/(\d)/pos", "roller:{}/position", "%", 1),
        (r"emeter/(\d)/power", "emeter:{}/power", "W", 1),
        (r"emeter/(\d)/reactive_power", "emeter:{}/reactive_power", "var", 1),
        (r"emeter/(\d)/voltage", "emeter:{}/voltage", "V", 1),
        (r"emeter/(\d)/current", "emeter:{}/current", "A", 1),
        (r"emeter/(\d)/pf", "emeter:{}/power_factor", "", 1),
        (r"emeter/(\d)/total", "emeter:{}/energy", "Wh", 1),
        (r"emeter/(\d)/total_returned", "emeter:{}/energy_returned", "Wh", 1),
        (r"ext_temperature/(\d)", "temperature:{}", "degC", 1),
        (r"ext_humidity/(\d)", "humidity:{}", "%", 1),
        (r"sensor/temperature", "sensor/temperature", "degC", 1),
        (r"sensor/humidity", "sensor/humidity", "%", 1),
        (r"sensor/battery", "sensor/battery", "%", 1),
        (r"sensor/concentration", "sensor/concentration", "ppm", 1),
        (r"temperature", "device/temperature", "degC", 1),
        (r"voltage", "device/voltage", "V", 1),
    )
)
_GEN1_TRUTHS = (
    (re.compile(r"input/(\d)"), "input:{}"),
    (re.compile(r"sensor/(motion|flood|smoke|vibration)"), "sensor/{}"),
    (re.compile(r"sensor/state"), "sensor/open"),
)


class ShellyGen2:
    """One device of the second generation or later (Plus, Pro, Gen3, Gen4). Its answers come to `asker`, which no other device is told."""

    def __init__(self, prefix: str, asker: str) -> None:
        self.complete = False
        self._prefix = prefix
        self._asker = asker
        self._number = 0

    @property
    def filters(self) -> Sequence[str]:
        return (f"{self._prefix}/online", f"{self._prefix}/events/rpc", f"{self._prefix}/status/+", f"{self._asker}/rpc")

    def hello(self) -> Sequence[Publish]:
        return (self._call("Shelly.GetStatus", {}),)

    def hear(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        if topic == f"{self._prefix}/online":
            return _presence(payload)
        if topic.startswith(f"{self._prefix}/status/"):
            return list(_component(topic.rpartition("/")[2], parse_object(payload), None))
        message = parse_object(payload)
        if topic == f"{self._asker}/rpc":
            told = _status(message.get("result"), None)
            self.complete = self.complete or bool(told)
            return told
        if message.get("method") not in ("NotifyStatus", "NotifyFullStatus"):
            return ()
        params = message.get("params")
        stamp = number(params.get("ts")) if isinstance(params, Mapping) else None
        return _status(params, round(stamp * 1000) * 1_000_000 if stamp is not None and 1e9 < stamp < 1e10 else None)

    def command(self, point: Point, state: str) -> Publish:
        component, _, place_ = point.name.partition(":")
        identity = int(place_.partition("/")[0])
        if component == "cover":
            return self._call(f"Cover.{state.capitalize()}", {"id": identity})
        return self._call(f"{component.capitalize()}.Set", {"id": identity, "on": state == "on"})

    def _call(self, method: str, params: Mapping[str, Any]) -> Publish:
        self._number += 1
        message = {"id": self._number, "src": self._asker, "method": method, "params": params}
        return Publish(f"{self._prefix}/rpc", json.dumps(message).encode())


class ShellyGen1:
    """One device of the first generation."""

    def __init__(self, identity: str) -> None:
        self.complete = False
        self._root = f"shellies/{identity}"

    @property
    def filters(self) -> Sequence[str]:
        return (f"{self._root}/#",)

    def hello(self) -> Sequence[Publish]:
        return (Publish(f"{self._root}/command", b"update"),)

    def hear(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        told = topic.removeprefix(f"{self._root}/")
        if told == "online":
            return _presence(payload)
        if told in ("info", "status"):
            status = list(_gen1_status(parse_object(payload)))
            self.complete = True
            return status
        return list(_gen1_value(told, text_of(payload)))

    def command(self, point: Point, state: str) -> Publish:
        kind, _, index = point.name.partition(":")
        return Publish(f"{self._root}/{kind}/{index}/command", state.encode())


def _presence(payload: bytes) -> Sequence[Presence]:
    there = truth(text_of(payload))
    if there is None:
        raise BadPayload("expected true or false")
    return (Presence("", bool(there)),)


def _status(params: object, wall_ns: int | None) -> Sequence[Said]:
    if not isinstance(params, Mapping):
        raise BadPayload("expected a status")
    return [said for key, value in params.items() if isinstance(value, Mapping) for said in _component(key, value, wall_ns)]


def _component(key: str, values: Mapping[str, Any], wall_ns: int | None) -> Iterator[Said]:
    """The values of a component such as `switch:0`; only those that came, for a notification tells what changed."""
    if not _COMPONENT.fullmatch(key):
        return
    kind = key.partition(":")[0]
    for path, (name, unit) in _NUMBERS.items():
        found = at(values, path)
        if isinstance(found, (int, float)):
            yield Said(Point(f"{key}/{name}", unit), number(found), wall_ns=wall_ns)
    for attribute, name in _TRUTHS.items():
        if attribute in values:
            yield Said(Point(f"{key}/{name}", "bool"), truth(values[attribute]), wall_ns=wall_ns)
    if kind == "input" and isinstance(values.get("state"), bool):
        yield Said(Point(f"{key}/state", "bool"), truth(values["state"]), wall_ns=wall_ns)
    if kind in ("switch", "light") and isinstance(values.get("output"), bool):
        yield Said(Point(key, states=("on", "off")), state="on" if values["output"] else "off")
    if kind == "cover" and isinstance(values.get("state"), str):
        yield Said(Point(f"{key}/state", "state", choices=_COVER_STATES), place(values["state"], _COVER_STATES), wall_ns=wall_ns)
        yield Said(Point(key, states=_COVER), state={"opening": "open", "closing": "close", "stopped": "stop"}.get(values["state"]))


def _gen1_value(told: str, text: str) -> Iterator[Said]:
    for pattern, name, unit, factor in _GEN1:
        if match := pattern.fullmatch(told):
            value = number(text)
            yield Said(Point(name.format(*match.groups()), unit), None if value is None else value * factor)
            return
    for pattern, name in _GEN1_TRUTHS:
        if match := pattern.fullmatch(told):
            yield Said(Point(name.format(*match.groups()), "bool"), truth(text))
            return
    if match := re.fullmatch(r"(relay|light)/(\d)", told):
        yield from _gen1_switch(match[1], match[2], truth(text))
    elif match := re.fullmatch(r"roller/(\d)", told):
        yield Said(Point(f"roller:{match[1]}", states=_COVER), state=text if text in _COVER else None)
    elif told == "sensor/gas":
        yield Said(Point("sensor/gas", "state", choices=_ALARM), place(text, _ALARM))


def _gen1_switch(kind: str, index: object, on: float | None) -> Iterator[Said]:
    yield Said(Point(f"{kind}:{index}/output", "bool"), on)
    yield Said(Point(f"{kind}:{index}", states=("on", "off")), state=None if on is None else "on" if on else "off")


def _gen1_status(status: Mapping[str, Any]) -> Iterator[Said]:
    """The whole status (`info`), brought to the topics that tell its values one by one."""
    for index, relay in _entries(status, "relays"):
        yield from _gen1_switch("relay", index, truth(relay.get("ison")))
    for index, light in _entries(status, "lights"):
        yield from _gen1_switch("light", index, truth(light.get("ison")))
    for index, meter in _entries(status, "meters"):
        if truth(meter.get("is_valid", True)):
            yield from _gen1_numbers(meter, f"relay/{index}/", {"power": "power", "total": "energy"})
    for index, meter in _entries(status, "emeters"):
        names = {"power": "power", "reactive": "reactive_power", "voltage": "voltage", "current": "current", "pf": "pf"}
        yield from _gen1_numbers(meter, f"emeter/{index}/", names | {"total": "total", "total_returned": "total_returned"})
    for index, roller in _entries(status, "rollers"):
        yield from _gen1_numbers(roller, f"roller/{index}/", {"power": "power", "current_pos": "pos"})
    for index, entry in _entries(status, "inputs"):
        yield Said(Point(f"input:{index}", "bool"), truth(entry.get("input")))
    for key, unit in (("ext_temperature", "tC"), ("ext_humidity", "hum")):
        outside = status.get(key)
        for index, entry in outside.items() if isinstance(outside, Mapping) else ():
            if isinstance(entry, Mapping) and unit in entry:
                yield from _gen1_value(f"{key}/{index}", str(entry[unit]))
    alone = (
        ("tmp", "tC", "sensor/temperature" if "hum" in status else "temperature"),
        ("hum", "value", "sensor/humidity"),
        ("bat", "value", "sensor/battery"),
        ("concentration", "ppm", "sensor/concentration"),
    )
    for key, attribute, told in alone:
        value = at(status, (key, attribute))
        if value is not None:
            yield from _gen1_value(told, str(value))
    gas = status.get("gas_sensor")
    if isinstance(gas, Mapping) and isinstance(gas.get("alarm_state"), str):
        yield from _gen1_value("sensor/gas", gas["alarm_state"])
    if "uptime" in status:
        yield Said(Point("device/uptime", "s"), number(status["uptime"]))


def _gen1_numbers(entry: Mapping[str, Any], told: str, names: Mapping[str, str]) -> Iterator[Said]:
    for key, name in names.items():
        if key in entry:
            yield from _gen1_value(f"{told}{name}", str(entry[key]))


def _entries(status: Mapping[str, Any], key: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    found = status.get(key)
    if isinstance(found, list):
        yield from ((index, entry) for index, entry in enumerate(found[:10]) if isinstance(entry, Mapping))


def open_profile(topic: str, generation: int, asker: str) -> ShellyGen1 | ShellyGen2:
    """The profile of a device by its id (gen1) or topic prefix (gen2). Raises InputError."""
    if generation not in (1, 2):
        raise InputError(f"generation: expected 1, or 2 for all later ones, got {generation}")
    return ShellyGen1(topic.removeprefix("shellies/")) if generation == 1 else ShellyGen2(topic, asker)
