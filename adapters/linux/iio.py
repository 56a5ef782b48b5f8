"""Industrial I/O: converters and motion, light and air sensors that the kernel has drivers for, one reading at a time.

Names, units and scaling are the kernel's (Documentation/ABI/testing/sysfs-bus-iio): a value is (raw + offset) * scale in the unit of its
type. Capture at a steady rate is the business of `iio_buffer`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from adapters.linux.probe import folders, read_attribute, read_number, spelled
from adapters.linux.sensors import Attribute, Attributes

DEVICES = "sys/bus/iio/devices"

_INPUT = re.compile(r"in_(?P<stem>(?P<type>[a-z]+)\d*(?:-[a-z]+\d*)?(?:_[A-Za-z0-9_]+?)?)_(?P<form>raw|input)")
_MILLI = 1e-3
_MOST_CHANNELS = 256


class Kind(NamedTuple):
    """What the values of one type of channel are: unit, factor to it, words."""

    unit: str
    factor: float
    words: str


KINDS = {
    "voltage": Kind("V", _MILLI, "voltage"),
    "altvoltage": Kind("V", _MILLI, "alternating voltage"),
    "current": Kind("A", _MILLI, "current"),
    "power": Kind("W", _MILLI, "power"),
    "energy": Kind("J", 1.0, "energy"),
    "resistance": Kind("Ohm", 1.0, "resistance"),
    "capacitance": Kind("", 1.0, "capacitance in nF"),
    "accel": Kind("m/s2", 1.0, "acceleration"),
    "gravity": Kind("m/s2", 1.0, "gravity"),
    "anglvel": Kind("rad/s", 1.0, "angular velocity"),
    "angl": Kind("rad", 1.0, "angle"),
    "incli": Kind("deg", 1.0, "inclination"),
    "rot": Kind("deg", 1.0, "rotation"),
    "magn": Kind("", 1.0, "magnetic field in gauss"),
    "velocity": Kind("m/s", 1.0, "velocity"),
    "distance": Kind("m", 1.0, "distance"),
    "temp": Kind("degC", _MILLI, "temperature"),
    "humidityrelative": Kind("%RH", _MILLI, "relative humidity"),
    "pressure": Kind("kPa", 1.0, "pressure"),
    "illuminance": Kind("lx", 1.0, "illuminance"),
    "intensity": Kind("", 1.0, "light intensity"),
    "uvindex": Kind("", 1.0, "UV index"),
    "proximity": Kind("", 1.0, "proximity"),
    "concentration": Kind("%", 1.0, "concentration"),
    "electricalconductivity": Kind("", 1.0, "electrical conductivity in S/m"),
    "ph": Kind("", 1.0, "pH"),
    "count": Kind("count", 1.0, "count"),
    "steps": Kind("count", 1.0, "steps"),
    "activity": Kind("%", 1.0, "activity"),
}


class Device(NamedTuple):
    """One IIO device; `name` is its name in channels."""

    path: str
    node: str
    name: str


def devices(root: str) -> list[Device]:
    """Those below one root. Two of one name are told apart by the bus address, else by their number."""
    paths = [(node, path) for node, path in folders(f"{root}/{DEVICES}") if node.startswith("iio:device")]
    names = {node: _device_name(node, path) for node, path in paths}
    shared = Counter(names.values())
    return [Device(path, node, names[node] if shared[names[node]] == 1 else f"{names[node]}-{_place(node, path)}") for node, path in paths]


def kind_of(stem: str) -> Kind:
    """The kind of a channel such as `accel_x` or `voltage0-voltage1`; an unknown type has no unit."""
    match = re.match(r"[a-z]+", stem)
    known = match and KINDS.get(match[0])
    return known or Kind("", 1.0, stem)


def attribute_paths(device: str, stem: str, attribute: str) -> list[str]:
    """Where an attribute of a channel can be: its own, or shared by its type, its direction or the device; most particular first."""
    parts = stem.split("_")
    bare = re.sub(r"\d+", "", parts[0])
    stems = dict.fromkeys(["_".join(parts[:length]) for length in range(len(parts), 0, -1)] + ["_".join([bare, *parts[1:]]), bare])
    return [f"{device}/in_{one}_{attribute}" for one in stems] + [f"{device}/in_{attribute}", f"{device}/{attribute}"]


def shared_number(device: str, stem: str, attribute: str, otherwise: float) -> float:
    """The first of `attribute_paths` that holds a number."""
    for path in attribute_paths(device, stem, attribute):
        value = read_number(path)
        if value is not None:
            return value
    return otherwise


class Iio(Attributes):
    """A channel is `iio/<device>/<label or channel>`, the channel as the kernel names it: `accel_x`, `voltage0`, `voltage0-voltage1`."""

    def _attributes(self) -> Iterator[tuple[str, Attribute]]:
        for device in devices(self._root):
            found = dict(self._channels(device))
            labels = {stem: self._label(device.path, stem) for stem in found}
            shared = Counter(labels.values())
            for stem, attribute in found.items():
                yield f"iio/{device.name}/{labels[stem] if shared[labels[stem]] == 1 else stem}", attribute

    def _channels(self, device: Device) -> Iterator[tuple[str, Attribute]]:
        forms: dict[str, str] = {}
        for name, _ in folders(device.path):
            match = _INPUT.fullmatch(name)
            if match and (len(forms) < _MOST_CHANNELS or match["stem"] in forms):
                forms[match["stem"]] = "input" if "input" in (match["form"], forms.get(match["stem"])) else "raw"
        for stem, form in forms.items():
            kind, path = kind_of(stem), f"{device.path}/in_{stem}_{form}"
            words = f"{kind.words}, {device.name} {stem}"
            if form == "input":
                yield stem, Attribute(path, kind.unit, kind.factor, words)
            else:
                scale, offset = shared_number(device.path, stem, "scale", 1.0), shared_number(device.path, stem, "offset", 0.0)
                yield stem, Attribute(path, kind.unit, scale * kind.factor, words, offset)

    def _label(self, device: str, stem: str) -> str:
        with suppress(OSError):
            return spelled(read_attribute(f"{device}/in_{stem}_label")) or stem
        return stem


def _device_name(node: str, path: str) -> str:
    for file in ("label", "name"):
        with suppress(OSError):
            name = spelled(read_attribute(f"{path}/{file}"))
            if name:
                return name
    return spelled(node)


def _place(node: str, path: str) -> str:
    """The bus address, such as `1-0048`, as the device's folder is called that holds it; else its number."""
    holder = Path(path).resolve().parent.name
    return (
        spelled(holder) if re.fullmatch(r"[0-9a-z]+-[0-9a-f]{4}|spi\d+\.\d+|[0-9a-f]+\.[a-z]+", holder) else node.removeprefix("iio:device")
    )
