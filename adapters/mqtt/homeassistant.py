"""Home Assistant's MQTT discovery, both ways: what other devices announce becomes points, and points of this gateway are announced.

Of the templates only those are read that pick a value out of the message: `{{ value }}`, `{{ value_json.a.b[0] }}`, with `| float`,
`| int`, `| round(n)` or `| default(n)` behind. Nothing is ever evaluated; an entity with another template is counted and left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from adapters.mqtt.points import (
    BadPayload,
    Point,
    Presence,
    Publish,
    Said,
    at,
    chosen_number,
    known_unit,
    number,
    parse_json,
    parse_object,
    text_of,
    truth,
)
from edge_runtime.errors import InputError

MAX_ENTITIES = 512
_MAX_TEMPLATE = 200
_LONG = {
    "stat_t": "state_topic",
    "cmd_t": "command_topic",
    "val_tpl": "value_template",
    "unit_of_meas": "unit_of_measurement",
    "avty_t": "availability_topic",
    "pl_on": "payload_on",
    "pl_off": "payload_off",
    "pl_avail": "payload_available",
    "pl_not_avail": "payload_not_available",
    "pl_open": "payload_open",
    "pl_cls": "payload_close",
    "pl_stop": "payload_stop",
    "pl_lock": "payload_lock",
    "pl_unlk": "payload_unlock",
    "stat_on": "state_on",
    "stat_off": "state_off",
}
_COMMANDS: dict[str, tuple[tuple[str, str, str], ...]] = {
    "switch": (("on", "payload_on", "ON"), ("off", "payload_off", "OFF")),
    "light": (("on", "payload_on", "ON"), ("off", "payload_off", "OFF")),
    "fan": (("on", "payload_on", "ON"), ("off", "payload_off", "OFF")),
    "siren": (("on", "payload_on", "ON"), ("off", "payload_off", "OFF")),
    "valve": (("open", "payload_open", "OPEN"), ("close", "payload_close", "CLOSE")),
    "cover": (("open", "payload_open", "OPEN"), ("close", "payload_close", "CLOSE"), ("stop", "payload_stop", "STOP")),
    "lock": (("lock", "payload_lock", "LOCK"), ("unlock", "payload_unlock", "UNLOCK")),
}
_TEMPLATE = re.compile(
    r"\{\{\s*(?P<root>value_json|value)(?P<path>(?:\.[A-Za-z_]\w*|\[(?:\d{1,4}|'[^']{1,64}'|\"[^\"]{1,64}\")\])*)\s*"
    r"(?:\|\s*(?:float|int|round|default)\s*(?:\([^(){}]{0,16}\))?\s*)*\}\}"
)
_STEP = re.compile(r"\.([A-Za-z_]\w*)|\[(\d+)\]|\['([^']+)'\]|\[\"([^\"]+)\"\]")


@dataclass(frozen=True, slots=True)
class _Entity:
    """One announced entity."""

    component: str
    config: Mapping[str, Any]
    point: Point | None
    actuator: Point | None
    path: tuple[str | int, ...] | None  # into the JSON of the message; None: the message itself


class Discovery:
    """What is announced below a prefix. Points are named by the entity's `object_id`, below its node where there is one."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._entities: dict[str, _Entity] = {}
        self._readers: dict[str, set[str]] = {}  # topic -> entities that read it

    @property
    def filters(self) -> Sequence[str]:
        topics = sorted(self._readers)
        return (f"{self._prefix}/+/+/config", f"{self._prefix}/+/+/+/config", *topics)

    @property
    def complete(self) -> bool:
        """Nobody says that all has been announced."""
        return bool(self._entities)

    def hello(self) -> Sequence[Publish]:
        return ()

    def hear(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        told: list[Said | Presence] = []
        if topic.startswith(f"{self._prefix}/") and topic.endswith("/config"):
            told += self._announced(topic, payload)
        for name in sorted(self._readers.get(topic, ())):
            told += self._read(name, self._entities[name], topic, payload)
        return told

    def command(self, point: Point, state: str) -> Publish:
        entity = self._entities.get(point.name.removesuffix("/set"))
        if entity is None:
            raise InputError(f"{point.name}: it is no longer announced")
        if point.writable:
            payload = f"{chosen_number(point, state):g}"
        else:
            payload = next(str(entity.config.get(key, usual)) for word, key, usual in _COMMANDS[entity.component] if word == state)
        return Publish(str(entity.config["command_topic"]), payload.encode())

    def _announced(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        component, *rest = topic.removeprefix(f"{self._prefix}/").removesuffix("/config").split("/")
        name = "/".join(rest)
        self._forget(name)
        if not payload:
            return (Presence(name, False),)
        entity = _entity(name, component, _spelled_out(parse_object(payload)))
        if entity is None:
            return ()
        if len(self._entities) >= MAX_ENTITIES:
            raise BadPayload(f"more than {MAX_ENTITIES} entities")
        self._entities[name] = entity
        for heard in (entity.config.get("state_topic"), *_availability(entity.config)):
            if isinstance(heard, str) and heard:
                self._readers.setdefault(heard, set()).add(name)
        return [Said(point) for point in (entity.point, entity.actuator) if point is not None]

    def _forget(self, name: str) -> None:
        self._entities.pop(name, None)
        for topic, names in list(self._readers.items()):
            names.discard(name)
            if not names:
                del self._readers[topic]

    def _read(self, name: str, entity: _Entity, topic: str, payload: bytes) -> Iterator[Said | Presence]:
        config = entity.config
        if topic in _availability(config):
            yield Presence(name, text_of(payload) == str(config.get("payload_available", "online")))
        if topic != config.get("state_topic"):
            return
        raw: Any = text_of(payload) if entity.path is None else at(parse_json(payload), entity.path)
        word = None
        if entity.component in _COMMANDS or entity.component == "binary_sensor":
            word = _word(entity, raw)
            value = truth(word) if word is not None else None
        else:
            value = number(raw)
            word = None if value is None else f"{value:g}"
        if entity.point is not None:
            yield Said(entity.point, value)
        if entity.actuator is not None:
            yield Said(entity.actuator, state=word if word in entity.actuator.states or entity.actuator.writable else None)


def _spelled_out(config: Mapping[str, Any]) -> dict[str, Any]:
    """Long names for the usual short ones, `~` replaced by the base topic."""
    base = config.get("~")
    found: dict[str, Any] = {}
    for key, value in config.items():
        key = _LONG.get(key, key)
        if isinstance(base, str) and isinstance(value, str) and key.endswith("_topic"):
            value = f"{base}{value[1:]}" if value.startswith("~") else f"{value[:-1]}{base}" if value.endswith("~") else value
        found[key] = value
    return found


def _entity(name: str, component: str, config: Mapping[str, Any]) -> _Entity | None:
    """None for a kind of entity that is neither a value nor an actuator here."""
    if component not in ("sensor", "binary_sensor", "number") and component not in _COMMANDS:
        return None
    template = config.get("value_template")
    path = None if template is None else template_path(template)
    about = str(config.get("name") or "")[:100]
    point = actuator = None
    if isinstance(config.get("state_topic"), str):
        unit = known_unit(config.get("unit_of_measurement")) if component in ("sensor", "number") else "bool"
        point = Point(name, unit, about)
    if isinstance(config.get("command_topic"), str):
        if component == "number":
            low, high = number(config.get("min", 1)), number(config.get("max", 100))
            unit = known_unit(config.get("unit_of_measurement"))
            actuator = Point(f"{name}/set", unit, about, minimum=low, maximum=high, writable=True)
        elif component in _COMMANDS:
            actuator = Point(f"{name}/set", description=about, states=tuple(word for word, _, _ in _COMMANDS[component]))
    return _Entity(component, config, point, actuator, path)


def template_path(template: object) -> tuple[str | int, ...] | None:
    """The path that a template picks; None for the message itself. Raises BadPayload for one that does more."""
    text = template.strip() if isinstance(template, str) else ""
    match = _TEMPLATE.fullmatch(text) if len(text) <= _MAX_TEMPLATE else None
    if match is None or (match["root"] == "value" and match["path"]):
        raise BadPayload("a template that does more than pick a value; only {{ value }} and {{ value_json.a.b }} are read")
    if match["root"] == "value":
        return None
    steps = _STEP.findall(match["path"])
    return tuple(int(index) if index else word or single or double for word, index, single, double in steps)


def _availability(config: Mapping[str, Any]) -> tuple[str, ...]:
    topics = [config.get("availability_topic")]
    listed = config.get("availability")
    topics += [entry.get("topic") for entry in (listed if isinstance(listed, list) else [])[:8] if isinstance(entry, Mapping)]
    return tuple(topic for topic in topics if isinstance(topic, str) and topic)


def _word(entity: _Entity, raw: object) -> str | None:
    """The state that a message names, by what the entity says of its payloads."""
    said = str(raw) if not isinstance(raw, bool) else ("ON" if raw else "OFF")
    config = entity.config
    if entity.component == "binary_sensor":
        pairs: tuple[tuple[str, object], ...] = (("on", config.get("payload_on", "ON")), ("off", config.get("payload_off", "OFF")))
    elif entity.component in ("valve", "cover"):
        pairs = (("open", config.get("state_open", "open")), ("close", config.get("state_closed", "closed")))
    elif entity.component == "lock":
        pairs = (("lock", config.get("state_locked", "LOCKED")), ("unlock", config.get("state_unlocked", "UNLOCKED")))
    else:
        pairs = (
            ("on", config.get("state_on", config.get("payload_on", "ON"))),
            ("off", config.get("state_off", config.get("payload_off", "OFF"))),
        )
    return next((word for word, told in pairs if str(told) == said), None)


class EntitySpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One entity of this gateway that Home Assistant shows. What it shows is set by rules; what people do there is a reading.

    sensor, binary_sensor: an actuator here, whose state is shown. switch, number, button: a reading here, moved by people.
    """

    component: Literal["sensor", "binary_sensor", "switch", "number", "button"]
    name: str = ""
    unit: str = ""
    states: tuple[str, ...] = ()
    minimum: float = 0.0
    maximum: float = 100.0
    device_class: str = ""


class OwnEntities:
    """This gateway as a device of Home Assistant: announced when the link is up, shown as gone when it is down."""

    def __init__(self, prefix: str, identity: str, entities: Mapping[str, EntitySpec]) -> None:
        self._prefix, self._identity, self._entities = prefix, identity, entities
        self.complete = True
        self._root = f"edge-runtime/{identity}"
        self.availability = f"{self._root}/online"

    @property
    def filters(self) -> Sequence[str]:
        return (f"{self._root}/+/set", f"{self._prefix}/status")

    def hello(self) -> Sequence[Publish]:
        announced = tuple(self._announce(name, spec) for name, spec in self._entities.items())
        return (*announced, Publish(self.availability, b"online", retain=True))

    def points(self) -> Sequence[Said]:
        """What exists from the start: nothing was heard of it yet."""
        return [Said(_own_point(name, spec)) for name, spec in self._entities.items()]

    def hear(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        name = topic.removeprefix(f"{self._root}/").removesuffix("/set")
        spec = self._entities.get(name)
        if spec is None:
            return ()
        text = text_of(payload)
        value = number(text) if spec.component == "number" else 1.0 if spec.component == "button" else truth(text)
        if value is None or (spec.component == "number" and not spec.minimum <= value <= spec.maximum):
            raise BadPayload(f"`{text}` is no value of the {spec.component} `{name}`")
        return (Said(_own_point(name, spec), value),)

    def echo(self, topic: str, payload: bytes) -> Publish | None:
        """What a switch or a number shows after people moved it: the value that the gateway took."""
        name = topic.removeprefix(f"{self._root}/").removesuffix("/set")
        spec = self._entities.get(name)
        return Publish(f"{self._root}/{name}", payload, retain=True) if spec and spec.component in ("switch", "number") else None

    def command(self, point: Point, state: str) -> Publish:
        return Publish(f"{self._root}/{point.name}", state.encode(), retain=True)

    def _announce(self, name: str, spec: EntitySpec) -> Publish:
        topic = f"{self._root}/{name}"
        config: dict[str, Any] = {
            "name": spec.name or name,
            "unique_id": f"{self._identity}_{name}",
            "availability_topic": self.availability,
            "device": {"identifiers": [f"edge-runtime-{self._identity}"], "name": self._identity, "manufacturer": "edge-runtime"},
            "origin": {"name": "edge-runtime"},
        }
        if spec.component != "button":
            config["state_topic"] = topic
        if spec.component in ("switch", "number", "button"):
            config["command_topic"] = f"{topic}/set"
        if spec.component == "number":
            config |= {"min": spec.minimum, "max": spec.maximum}
        if spec.component in ("switch", "binary_sensor"):
            on, off = spec.states or ("on", "off")
            config |= {"payload_on": on, "payload_off": off}
        config |= {key: value for key, value in (("unit_of_measurement", spec.unit), ("device_class", spec.device_class)) if value}
        return Publish(f"{self._prefix}/{spec.component}/{self._identity}/{name}/config", json.dumps(config).encode(), retain=True)


def _own_point(name: str, spec: EntitySpec) -> Point:
    if spec.component == "sensor":
        return Point(name, known_unit(spec.unit), spec.name, states=spec.states, writable=not spec.states)
    if spec.component == "binary_sensor":
        return Point(name, description=spec.name, states=spec.states or ("on", "off"))
    return Point(name, known_unit(spec.unit) if spec.component == "number" else "bool", spec.name)
