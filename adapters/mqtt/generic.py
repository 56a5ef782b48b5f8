"""A device by hand: each channel has its topic, and a JSON pointer where the message is JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from adapters.mqtt.points import Point, Presence, Publish, Said, at, known_unit, number, parse_json, text_of, truth
from edge_runtime.errors import InputError


class ChannelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`topic` is heard, `command_topic` told. `pointer` (RFC 6901, such as `/sensors/0/value`) leads to the value in JSON.

    `values` turns words into numbers; `states` turns the states of an actuator into the payloads to send.
    """

    topic: str = ""
    pointer: str = ""
    unit: str = ""
    values: dict[str, float] = {}
    command_topic: str = ""
    states: dict[str, str] = {}


class Generic:
    """A device whose channels are spelled out."""

    def __init__(self, name: str, channels: Mapping[str, ChannelSpec], availability_topic: str = "") -> None:
        for channel, spec in channels.items():
            if bool(spec.command_topic) != bool(spec.states) or not (spec.topic or spec.command_topic):
                raise InputError(f"{name}.channels.{channel}: expected `topic`, or `command_topic` with `states`, or both")
            if spec.unit and not known_unit(spec.unit):
                raise InputError(f"{name}.channels.{channel}.unit: `{spec.unit}` is not a known unit")
            if spec.pointer and not spec.pointer.startswith("/"):
                raise InputError(f"{name}.channels.{channel}.pointer: expected a JSON pointer such as /sensors/0, got `{spec.pointer}`")
        self.complete = True
        self._channels = dict(channels)
        self._availability = availability_topic

    @property
    def filters(self) -> Sequence[str]:
        topics = {spec.topic for spec in self._channels.values() if spec.topic} | ({self._availability} - {""})
        return sorted(topics)

    def hello(self) -> Sequence[Publish]:
        return ()

    def points(self) -> Sequence[Said]:
        """Declared, so they exist before anything was heard."""
        return [
            Said(point)
            for name, spec in self._channels.items()
            for point in (_reading(name, spec) if spec.topic else None, _actuator(name, spec))
            if point
        ]

    def hear(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        if topic == self._availability:
            return (Presence("", bool(truth(text_of(payload)))),)
        told: list[Said] = []
        for name, spec in self._channels.items():
            if spec.topic == topic:
                raw = _pointed(parse_json(payload), spec.pointer) if spec.pointer else text_of(payload)
                value = spec.values.get(str(raw)) if spec.values else number(raw)
                told.append(Said(_reading(name, spec), truth(raw) if value is None and spec.unit == "bool" else value))
                if actuator := _actuator(name, spec):
                    state = next((state for state, sent in spec.states.items() if sent == str(raw)), None)
                    told.append(Said(actuator, state=state))
        return told

    def command(self, point: Point, state: str) -> Publish:
        spec = self._channels[point.name.removesuffix("/set")]
        return Publish(spec.command_topic, spec.states[state].encode())


def _reading(name: str, spec: ChannelSpec) -> Point:
    return Point(name, known_unit(spec.unit))


def _actuator(name: str, spec: ChannelSpec) -> Point | None:
    if not spec.command_topic:
        return None
    return Point(f"{name}/set" if spec.topic else name, states=tuple(spec.states))


def _pointed(value: object, pointer: str) -> object:
    steps: list[str | int] = []
    for step in pointer[1:].split("/"):
        word = step.replace("~1", "/").replace("~0", "~")
        steps.append(int(word) if word.isdecimal() and len(word) < 8 else word)
    found = value
    for taken in steps:
        found = at(found, (str(taken) if isinstance(found, Mapping) else taken,))
    return found
