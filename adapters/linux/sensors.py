"""Sensor chips, thermal zones and power supplies that the kernel has drivers for."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass

from adapters.linux.probe import Values, folders, read_attribute, read_number, sampled, spelled
from edge_runtime.types import ChannelInfo


@dataclass(frozen=True, slots=True)
class Attribute:
    """A file of sysfs; the value is (file + offset) * scale."""

    path: str
    unit: str
    scale: float
    description: str
    offset: float = 0.0


class Attributes:
    """A probe whose every channel is one sysfs attribute, scaled."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._found: dict[str, Attribute] = {}

    def discover(self) -> list[ChannelInfo]:
        self._found = dict(self._attributes())
        readable = self.read(self._found)
        return [sampled(name, found.unit, found.description) for name, found in self._found.items() if name in readable]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        for channel in channels:
            found = self._found.get(channel)
            value = read_number(found.path) if found is not None and not self._faulty(found.path) else None
            if found is not None and value is not None:
                values[channel] = (value + found.offset) * found.scale
        return values

    def _attributes(self) -> Iterator[tuple[str, Attribute]]:
        raise NotImplementedError

    def _faulty(self, path: str) -> bool:
        return False


class Hwmon(Attributes):
    """Sensors of the hwmon class, scaled as Documentation/hwmon/sysfs-interface.rst says.

    A channel is `hwmon/<chip>/<label or input>`, or an alarm such as `hwmon/rpi_volt/in0_lcrit_alarm`. Two chips of one name are told
    apart by their device, such as `lm75-0-0048`.
    """

    _KINDS = {  # noqa: RUF012 - never changed
        "temp": ("degC", 1e-3, "temperature"),
        "fan": ("rpm", 1.0, "fan speed"),
        "in": ("V", 1e-3, "voltage"),
        "curr": ("A", 1e-3, "current"),
        "power": ("W", 1e-6, "power"),
        "energy": ("J", 1e-6, "energy used"),
        "humidity": ("%RH", 1e-3, "relative humidity"),
        "freq": ("Hz", 1.0, "frequency"),
    }
    _INPUT = re.compile(r"([a-z]+)(\d+)_input|(power)(\d+)_average")
    _ALARM = re.compile(r"([a-z]+\d+)_((?:[a-z]+_)?alarm)")

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self._faults: dict[str, str] = {}

    def _attributes(self) -> Iterator[tuple[str, Attribute]]:
        self._faults = {}
        chips = {path: self._chip(name, path) for name, path in folders(f"{self._root}/sys/class/hwmon")}
        names = Counter(chips.values())
        for path, chip in chips.items():
            name = chip if names[chip] == 1 else f"{chip}-{self._device(path)}"
            yield from self._inputs(path, f"hwmon/{name}", chip)

    def _inputs(self, chip_path: str, prefix: str, chip: str) -> Iterator[tuple[str, Attribute]]:
        files = dict(folders(chip_path))
        inputs: dict[str, tuple[str, tuple[str, float, str]]] = {}
        for name, path in files.items():
            match = self._INPUT.fullmatch(name)
            kind = match and (match[1] or match[3])
            if match and kind in self._KINDS:
                inputs.setdefault(f"{kind}{match[2] or match[4]}", (path, self._KINDS[kind]))
        labels = {stem: self._label(files.get(f"{stem}_label"), stem) for stem in inputs}
        shared = Counter(labels.values())
        for stem, (path, (unit, scale, words)) in inputs.items():
            if f"{stem}_fault" in files:
                self._faults[path] = files[f"{stem}_fault"]
            label = labels[stem] if shared[labels[stem]] == 1 else stem
            yield f"{prefix}/{label}", Attribute(path, unit, scale, f"{words}, {chip} {labels[stem]}")
        for name, path in files.items():
            if match := self._ALARM.fullmatch(name):
                yield (
                    f"{prefix}/{name}",
                    Attribute(path, "bool", 1.0, f"{match[2].replace('_', ' ')}, {chip} {labels.get(match[1], match[1])}"),
                )

    def _faulty(self, path: str) -> bool:
        return path in self._faults and read_number(self._faults[path]) == 1

    def _chip(self, name: str, path: str) -> str:
        with suppress(OSError):
            return spelled(read_attribute(f"{path}/name")) or name
        return name

    def _device(self, path: str) -> str:
        device = f"{path}/device"
        return spelled(os.path.basename(os.path.realpath(device if os.path.lexists(device) else path)))  # noqa: PTH119

    def _label(self, path: str | None, stem: str) -> str:
        if path is not None:
            with suppress(OSError):
                return spelled(read_attribute(path)) or stem
        return stem


class Thermal(Attributes):
    """Thermal zones (Documentation/driver-api/thermal/sysfs-api.rst) by their type; two of one type by their number."""

    def _attributes(self) -> Iterator[tuple[str, Attribute]]:
        zones = [(name, path) for name, path in folders(f"{self._root}/sys/class/thermal") if name.startswith("thermal_zone")]
        types = {name: self._type(name, path) for name, path in zones}
        shared = Counter(types.values())
        for name, path in zones:
            kind = types[name] if shared[types[name]] == 1 else f"{types[name]}/{name.removeprefix('thermal_zone')}"
            yield f"thermal/{kind}", Attribute(f"{path}/temp", "degC", 1e-3, f"thermal zone {types[name]}")

    def _type(self, name: str, path: str) -> str:
        with suppress(OSError):
            return spelled(read_attribute(f"{path}/type")) or name
        return name


class PowerSupply(Attributes):
    """Batteries and chargers (Documentation/ABI/testing/sysfs-class-power)."""

    _FILES = {  # noqa: RUF012 - never changed
        "capacity": ("%", 1.0, "charge"),
        "voltage_now": ("V", 1e-6, "voltage"),
        "current_now": ("A", 1e-6, "current"),
        "power_now": ("W", 1e-6, "power"),
        "temp": ("degC", 0.1, "temperature"),
        "online": ("bool", 1.0, "connected"),
    }

    def _attributes(self) -> Iterator[tuple[str, Attribute]]:
        for supply, path in folders(f"{self._root}/sys/class/power_supply"):
            for file, (unit, scale, words) in self._FILES.items():
                if os.path.exists(f"{path}/{file}"):  # noqa: PTH110 - plain strings are what makes a read cheap
                    yield f"power/{supply}/{file.removesuffix('_now')}", Attribute(f"{path}/{file}", unit, scale, f"{words} of {supply}")
