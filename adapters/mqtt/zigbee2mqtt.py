"""Zigbee devices behind Zigbee2MQTT: what each can do is read from `BASE/bridge/devices`, so no device needs to be known here."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapters.mqtt.points import (
    MAX_LIST_BYTES,
    BadPayload,
    Point,
    Presence,
    Publish,
    Said,
    chosen_number,
    known_unit,
    number,
    parse_json,
    parse_object,
    place,
    truth,
)

MAX_DEVICES = 512
_MAX_POINTS = 64
_MAX_DEPTH = 3
_MAX_CHOICES = 64
_SET = 2
_PUBLISHED = 1


class Zigbee2Mqtt:
    """One bridge. Points are `DEVICE/PROPERTY`; a property that can be set has a second one, `DEVICE/PROPERTY/set`."""

    def __init__(self, base: str) -> None:
        self._base = base
        self._devices: dict[str, dict[str, _Property]] = {}

    @property
    def filters(self) -> Sequence[str]:
        return (f"{self._base}/#",)

    @property
    def complete(self) -> bool:
        return bool(self._devices)

    def hello(self) -> Sequence[Publish]:
        return ()

    def hear(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        told = topic.removeprefix(f"{self._base}/")
        if told == "bridge/devices":
            return self._learn(parse_json(payload, MAX_LIST_BYTES))
        if told == "bridge/state":
            return (Presence("", _online(payload)),)
        if told.startswith("bridge/") or told.endswith(("/set", "/get")) or "/set/" in told or "/get/" in told:
            return ()
        if told.endswith("/availability"):
            return (Presence(f"{told.removesuffix('/availability')}/", _online(payload)),)
        properties = self._devices.get(told)
        if properties is None:
            return ()
        values = parse_object(payload)
        return [said for name, known in properties.items() if name in values for said in known.say(values[name])]

    def command(self, point: Point, state: str) -> Publish:
        device, _, name = point.name.removesuffix("/set").rpartition("/")
        known = self._devices.get(device, {}).get(name)
        value = known.wanted(point, state) if known is not None else state
        return Publish(f"{self._base}/{device}/set", json.dumps({name: value}).encode())

    def _learn(self, devices: object) -> Sequence[Said]:
        """What every device can do; a point that nothing was heard of yet is there and unknown."""
        if not isinstance(devices, list):
            raise BadPayload("expected a list of devices")
        self._devices = {}
        for entry in devices[:MAX_DEVICES]:
            if not isinstance(entry, Mapping) or not isinstance(entry.get("friendly_name"), str):
                continue
            definition = entry.get("definition")
            exposes = definition.get("exposes") if isinstance(definition, Mapping) else None
            name = entry["friendly_name"]
            found = {known.name: known for known in _properties(name, exposes, 0)}
            self._devices[name] = dict(list(found.items())[:_MAX_POINTS])
        return [said for properties in self._devices.values() for known in properties.values() for said in known.silent()]


class _Property:
    """One exposed value of one device."""

    def __init__(self, device: str, entry: Mapping[str, Any]) -> None:
        self.name: str = entry["property"]
        self._kind, access = entry.get("type"), entry.get("access")
        self._access = access if isinstance(access, int) else _PUBLISHED
        self._words = self._read_words(entry)
        low, high = number(entry.get("value_min")), number(entry.get("value_max"))
        about = str(entry.get("description", ""))[:200]
        unit = {"binary": "bool", "enum": "state"}.get(str(self._kind)) or known_unit(entry.get("unit"))
        choices = tuple(self._words) if self._kind == "enum" else ()
        self._point = Point(f"{device}/{self.name}", unit, about, choices, minimum=low, maximum=high)
        settable = bool(self._access & _SET)
        number_ = self._kind == "numeric" and low is not None and high is not None
        self._actuator = None
        if settable and (self._words or number_):
            self._actuator = Point(
                f"{device}/{self.name}/set", unit if number_ else "", about, (), tuple(self._words), low, high, writable=number_
            )

    def _read_words(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        """Each state by the word that stands for it here, with what the device calls it."""
        if self._kind == "binary":
            pair = (("on", entry.get("value_on", True)), ("off", entry.get("value_off", False)))
            return {word: value for word, value in pair if isinstance(value, (str, bool, int))}
        values = entry.get("values")
        if self._kind == "enum" and isinstance(values, list):
            return {value: value for value in values[:_MAX_CHOICES] if isinstance(value, str)}
        return {}

    def silent(self) -> Iterator[Said]:
        if self._access & _PUBLISHED:
            yield Said(self._point)
        if self._actuator is not None:
            yield Said(self._actuator)

    def say(self, value: Any) -> Iterator[Said]:
        if self._kind == "binary":
            word = next((word for word, told in self._words.items() if told == value), None)
            yield Said(self._point, truth(word) if word is not None else None)
        elif self._kind == "enum":
            word = value if isinstance(value, str) and value in self._words else None
            yield Said(self._point, place(value, self._point.choices))
        else:
            found = number(value) if not isinstance(value, str) else None
            word = None if found is None else f"{found:g}"
            yield Said(self._point, found)
        if self._actuator is not None:
            yield Said(self._actuator, state=word)

    def wanted(self, point: Point, state: str) -> Any:
        return chosen_number(point, state) if point.writable else self._words.get(state, state)


def _properties(device: str, exposes: object, depth: int) -> Iterator[_Property]:
    """Flat: the features of a switch or a light are properties of the device."""
    if not isinstance(exposes, list) or depth > _MAX_DEPTH:
        return
    for entry in exposes[:_MAX_POINTS]:
        if not isinstance(entry, Mapping):
            continue
        if entry.get("type") in ("numeric", "binary", "enum") and isinstance(entry.get("property"), str):
            yield _Property(device, entry)
        elif entry.get("type") not in ("composite", "list"):
            yield from _properties(device, entry.get("features"), depth + 1)


def _online(payload: bytes) -> bool:
    """`online`, or `{"state": "online"}`."""
    found = parse_object(payload).get("state") if payload.lstrip().startswith(b"{") else payload.decode(errors="replace").strip()
    if found not in ("online", "offline"):
        raise BadPayload("expected online or offline")
    return found == "online"
