"""What the firmware says of power and heat: under-voltage, capped frequency, throttling; and 1-wire thermometers."""

from __future__ import annotations

import re
from collections.abc import Collection
from contextlib import suppress

from adapters.linux.probe import Values, folders, read_attribute, read_number, sampled
from edge_runtime.types import ChannelInfo

_BITS = {
    "undervoltage": (0, "supply below 4.63 V"),
    "frequency_capped": (1, "processor's frequency capped"),
    "throttled": (2, "processor throttled"),
    "hot": (3, "soft temperature limit reached"),
}
_SINCE_BOOT = 16


class Firmware:
    """`pi/undervoltage` and its like: the flags of `vcgencmd get_throttled`, now and since boot.

    The vendor's kernel shows them all; others have the hwmon chip `rpi_volt`, which tells of under-voltage only.
    """

    def __init__(self, root: str) -> None:
        self._root = root

    def discover(self) -> list[ChannelInfo]:
        return [sampled(name, "bool", self._words(name)) for name in self.read(())]

    def read(self, channels: Collection[str]) -> Values:
        flags = self._flags()
        if flags is None:
            alarm = self._alarm()
            return {} if alarm is None else {"pi/undervoltage": alarm}
        values: Values = {f"pi/{name}": float(flags >> bit & 1) for name, (bit, _) in _BITS.items()}
        return values | {f"pi/{name}_since_boot": float(flags >> bit + _SINCE_BOOT & 1) for name, (bit, _) in _BITS.items()}

    def _flags(self) -> int | None:
        for soc, path in folders(f"{self._root}/sys/devices/platform"):
            if re.fullmatch(r"soc(@[0-9a-f]+)?", soc):
                with suppress(OSError, ValueError):
                    return int(read_attribute(f"{path}/{soc}:firmware/get_throttled"), 16) & 0xFFFFFFFF
        with suppress(OSError, ValueError):
            return int(read_attribute(f"{self._root}/sys/devices/platform/soc/soc:firmware/get_throttled"), 16) & 0xFFFFFFFF
        return None

    def _alarm(self) -> float | None:
        for _, path in folders(f"{self._root}/sys/class/hwmon"):
            with suppress(OSError):
                if read_attribute(f"{path}/name") == "rpi_volt":
                    return read_number(f"{path}/in0_lcrit_alarm")
        return None

    def _words(self, channel: str) -> str:
        name = channel.removeprefix("pi/")
        words = _BITS[name.removesuffix("_since_boot")][1]
        return f"{words}, at some time since boot" if name.endswith("_since_boot") else words


class OneWire:
    """Thermometers on the 1-wire bus, as `w1/28-00000a1b2c3d`. Each reading takes the sensor up to 0.75 s."""

    _FAMILIES = ("10", "22", "28", "3b", "42")
    _ANSWER = re.compile(r"((?:[0-9a-f]{2} ){9}): crc=[0-9a-f]{2} YES\n.* t=(-?\d{1,6})", re.DOTALL)
    _POWER_ON = ("85000", "0c")  # what is in the register before the first conversion, and the seventh byte that tells so

    def __init__(self, root: str) -> None:
        self._folder = f"{root}/sys/bus/w1/devices"

    def discover(self) -> list[ChannelInfo]:
        return [
            sampled(f"w1/{name}", "degC", "temperature, 1-wire")
            for name, _ in folders(self._folder)
            if re.fullmatch(r"[0-9a-f]{2}-[0-9a-f]{12}", name) and name[:2] in self._FAMILIES
        ]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        for channel in channels:
            with suppress(OSError):
                match = self._ANSWER.search(read_attribute(f"{self._folder}/{channel.removeprefix('w1/')}/w1_slave"))
                if match and (match[2], match[1].split()[6]) != self._POWER_ON:
                    values[channel] = int(match[2]) / 1000
        return values
