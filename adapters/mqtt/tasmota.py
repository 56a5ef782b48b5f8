"""Devices with the firmware Tasmota: `tele/TOPIC/...` and `stat/TOPIC/...`, told by `cmnd/TOPIC/...` (its factory setting of topics)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from adapters.mqtt.points import BadPayload, Point, Presence, Publish, Said, known_unit, number, parse_object, text_of, truth

_ASKED = ("STATUS10", "STATUS11")  # sensors, state
_MAX_SENSORS = 64
_POWER = re.compile(r"POWER(\d{0,2})")
_UNITS = {
    "Temperature": "degC",
    "DewPoint": "degC",
    "Humidity": "%",
    "Pressure": "hPa",
    "SeaPressure": "hPa",
    "Power": "W",
    "ApparentPower": "VA",
    "ReactivePower": "var",
    "Factor": "",
    "Voltage": "V",
    "Current": "A",
    "Frequency": "Hz",
    "Total": "kWh",
    "Today": "kWh",
    "Yesterday": "kWh",
    "ExportTotal": "kWh",
    "CarbonDioxide": "ppm",
    "eCO2": "ppm",
    "Distance": "cm",
    "Battery": "%",
    "A0": "",
}


class Tasmota:
    """One device by its topic."""

    def __init__(self, topic: str) -> None:
        self._topic = topic
        self._awaited = set(_ASKED)

    @property
    def filters(self) -> Sequence[str]:
        return (f"tele/{self._topic}/+", f"stat/{self._topic}/+")

    @property
    def complete(self) -> bool:
        return not self._awaited

    def hello(self) -> Sequence[Publish]:
        return tuple(Publish(f"cmnd/{self._topic}/STATUS", kind.removeprefix("STATUS").encode()) for kind in _ASKED)

    def hear(self, topic: str, payload: bytes) -> Sequence[Said | Presence]:
        kind = topic.rpartition("/")[2]
        self._awaited.discard(kind)
        if kind == "LWT":
            there = truth(text_of(payload))
            if there is None:
                raise BadPayload("expected Online or Offline")
            return (Presence("", bool(there)),)
        if _POWER.fullmatch(kind):
            return list(_power(kind, text_of(payload)))
        if kind in ("STATE", "RESULT", "STATUS11"):
            return list(_state(_within(parse_object(payload), "StatusSTS")))
        if kind in ("SENSOR", "STATUS8", "STATUS10"):
            return list(_sensors(_within(parse_object(payload), "StatusSNS")))
        return ()

    def command(self, point: Point, state: str) -> Publish:
        return Publish(f"cmnd/{self._topic}/{point.name.upper()}", state.upper().encode())


def _within(message: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    inner = message.get(key)
    return inner if isinstance(inner, Mapping) else message


def _power(key: str, value: object) -> Iterator[Said]:
    on = truth(value)
    yield Said(Point(f"{key.lower()}/output", "bool"), on)
    yield Said(Point(key.lower(), states=("on", "off")), state=None if on is None else "on" if on else "off")


def _state(message: Mapping[str, Any]) -> Iterator[Said]:
    for key, value in message.items():
        if _POWER.fullmatch(key):
            yield from _power(key, value)
    if "UptimeSec" in message:
        yield Said(Point("uptime", "s"), number(message["UptimeSec"]))


def _sensors(message: Mapping[str, Any]) -> Iterator[Said]:
    """`{"AM2301": {"Temperature": 21.4, ...}, "TempUnit": "C"}`: a sensor's values under its name."""
    temperature, pressure = known_unit(message.get("TempUnit", "C")), known_unit(message.get("PressureUnit", "hPa"))
    sensors = [(name, values) for name, values in message.items() if isinstance(values, Mapping)]
    for sensor, values in sensors[:_MAX_SENSORS]:
        for key, value in values.items():
            if key not in _UNITS:
                continue
            unit = _UNITS[key]
            unit = temperature if unit == "degC" else pressure if unit == "hPa" else unit
            for index, part in enumerate(value if isinstance(value, list) else [value]):
                number_of = f"/{index + 1}" if isinstance(value, list) else ""  # phases
                yield Said(Point(f"{sensor.lower()[:32]}/{key}{number_of}", unit), number(part))
