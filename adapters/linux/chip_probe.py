"""The declared chips of `chips` as channels `sensor/NAME/QUANTITY`; one that does not answer has none, and the adapter's health says so."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

from adapters.linux.buses import i2c_device, spi_device
from adapters.linux.chips import ADS_RANGES, CHIPS, I2cChip, SensorSpec
from adapters.linux.gpio_uapi import Ioctl
from adapters.linux.probe import Values, sampled
from edge_runtime.errors import InputError
from edge_runtime.types import ChannelInfo

_PREFIX = "sensor/"
_SILENT = {errno.EREMOTEIO, errno.ENXIO, errno.EIO, errno.ETIMEDOUT}
_MOST_BUSES = 256


def check_sensors(sensors: Mapping[str, SensorSpec], name: str) -> None:
    """Raises InputError for what cannot be, before any hardware is touched."""
    for key, spec in sensors.items():
        where = f"{name}.options.sensors.{key}"
        if not re.fullmatch(r"[A-Za-z0-9_.-]+", key):
            raise InputError(f"{where}: expected a name of letters, digits, `_`, `.` and `-`")
        if spec.chip not in CHIPS:
            near = get_close_matches(spec.chip, CHIPS, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{where}.chip: unknown chip `{spec.chip}`{hint} (known: {', '.join(CHIPS)})")
        chip = CHIPS[spec.chip]
        if isinstance(chip, I2cChip) and _address(chip, spec) not in chip.addresses:
            known = ", ".join(f"0x{address:02x}" for address in chip.addresses)
            raise InputError(f"{where}.address: a {spec.chip} has one of {known}, got {spec.address}")
        if (spec.bus is not None and not 0 <= spec.bus < _MOST_BUSES) or not 0 <= spec.select < _MOST_BUSES:
            raise InputError(f"{where}: expected `bus` and `select` from 0, got {spec.bus} and {spec.select}")
        if spec.range_v not in ADS_RANGES:
            raise InputError(f"{where}.range_v: expected one of {', '.join(map(str, ADS_RANGES))}, got {spec.range_v:g}")
        if not 0 < spec.reference_v <= 10:
            raise InputError(f"{where}.reference_v: expected a voltage above 0 and up to 10, got {spec.reference_v:g}")


class Chips:
    """A probe over all declared chips."""

    def __init__(self, root: str, sensors: Mapping[str, SensorSpec], ioctl: Ioctl = fcntl.ioctl) -> None:
        self._root, self._sensors, self._ioctl = root, sensors, ioctl
        self.complaints: dict[str, str] = {}

    def discover(self) -> list[ChannelInfo]:
        return [
            sampled(f"{_PREFIX}{name}/{quantity.name}", quantity.unit, f"{quantity.words}, {spec.chip} {name}")
            for name, spec in self._sensors.items()
            for values in [self._measure(name, spec)]
            for quantity in CHIPS[spec.chip].quantities
            if quantity.name in values
        ]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        for name in dict.fromkeys(channel.removeprefix(_PREFIX).rpartition("/")[0] for channel in channels):
            measured = self._measure(name, self._sensors[name])
            values |= {f"{_PREFIX}{name}/{quantity}": value for quantity, value in measured.items() if math.isfinite(value)}
        return values

    def _measure(self, name: str, spec: SensorSpec) -> Mapping[str, float]:
        chip = CHIPS[spec.chip]
        try:
            if isinstance(chip, I2cChip):
                address = _address(chip, spec)
                bus = 1 if spec.bus is None else spec.bus
                where = f"0x{address:02x} on i2c-{bus}"
                if os.path.exists(f"{self._root}/sys/bus/i2c/devices/{bus}-{address:04x}/driver"):  # noqa: PTH110 - plain strings
                    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))
                with i2c_device(self._root, bus, address, self._ioctl) as device:
                    values = chip.read(device, spec)
            else:
                where = f"spidev{spec.bus or 0}.{spec.select}"
                with spi_device(self._root, spec.bus or 0, spec.select, self._ioctl) as spi:
                    values = chip.read(spi, spec)
        except OSError as err:
            self.complaints[name] = f"{name}: {spec.chip} at {where}: {_words(err)}"
            return {}
        self.complaints.pop(name, None)
        return values


def _address(chip: I2cChip, spec: SensorSpec) -> int:
    """The chip's usual address unless another is given; -1 for what is none."""
    if isinstance(spec.address, str):
        return int(spec.address, 16) if re.fullmatch(r"0x[0-9a-fA-F]{2}", spec.address) else -1
    return chip.addresses[0] if spec.address is None else spec.address


def _words(err: OSError) -> str:
    if err.errno in _SILENT:
        return "no answer; check wiring and address"
    if err.errno == errno.ENOENT:
        return "there is no such bus; turn it on (`edge-runtime doctor` says how)"
    if err.errno in (errno.EACCES, errno.EPERM):
        return "closed to this user; add it to the group that owns the device file"
    if err.errno == errno.EBUSY:
        return "a driver of the kernel holds the chip; read it under `hwmon/` or `iio/` instead"
    return err.strerror or str(err)
