"""Sensor chips that are read from user space where the kernel has no driver for them bound: what they measure and how they are asked.

Most are rows of a table: a register, its format, a factor. A new chip of that sort is one more row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from adapters.linux import bme280
from adapters.linux.buses import I2cDevice, SpiDevice
from adapters.linux.records import Records, parse_element

ADS_RANGES = {6.144: 0, 4.096: 1, 2.048: 2, 1.024: 3, 0.512: 4, 0.256: 5}
"""Full scale in V of the ADS1115 and ADS1015, and its code."""

_ADS_LONGEST_S = 0.1
_PAUSE_S = 0.001


class SensorSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One chip. `address` (118 or `"0x76"`) is for I2C, `select` for SPI; `range_v` for the ADS1x15, `reference_v` for the MCP300x."""

    chip: str
    bus: int | None = None
    address: int | str | None = None
    select: int = 0
    range_v: float = 4.096
    reference_v: float = 3.3


class Quantity(NamedTuple):
    """What a chip measures, in which unit."""

    name: str
    unit: str
    words: str


class Register(NamedTuple):
    """One quantity in one register: the value is scale * stored."""

    quantity: Quantity
    register: int
    format: str
    scale: float


class Identity(NamedTuple):
    """A register that tells the chip from others at its address."""

    register: int
    mask: int
    value: int


class I2cChip(NamedTuple):
    """A chip on I2C; `addresses` begins with the usual one."""

    addresses: tuple[int, ...]
    quantities: tuple[Quantity, ...]
    read: Callable[[I2cDevice, SensorSpec], Mapping[str, float]]


class SpiChip(NamedTuple):
    """A chip on SPI."""

    quantities: tuple[Quantity, ...]
    read: Callable[[SpiDevice, SensorSpec], Mapping[str, float]]


TEMPERATURE = Quantity("temperature", "degC", "temperature")
HUMIDITY = Quantity("humidity", "%RH", "relative humidity")
PRESSURE = Quantity("pressure", "hPa", "pressure")
VOLTAGE = Quantity("voltage", "V", "bus voltage")
SHUNT = Quantity("shunt", "V", "voltage over the shunt")


def _table(addresses: range, *registers: Register, identity: Identity | None = None) -> I2cChip:
    def read(device: I2cDevice, spec: SensorSpec) -> Mapping[str, float]:
        if identity is not None and int.from_bytes(device.register(identity.register, 2), "big") & identity.mask != identity.value:
            raise OSError(f"another chip than a {spec.chip} is at this address")
        return {one.quantity.name: one.scale * _stored(device, one) for one in registers}

    return I2cChip(tuple(addresses), tuple(one.quantity for one in registers), read)


def _stored(device: I2cDevice, register: Register) -> int:
    records = Records([parse_element("value", "0", register.format)])
    return int(records.columns(device.register(register.register, records.size_bytes))["value"][0])


def _bme280(device: I2cDevice, spec: SensorSpec) -> Mapping[str, float]:
    return bme280.measure(device)


def _sht3x(device: I2cDevice, spec: SensorSpec) -> Mapping[str, float]:
    device.write(b"\x24\x00")  # one measurement of high repeatability, without holding the clock
    time.sleep(0.016)
    answer = device.read(6)
    for word in (answer[:3], answer[3:]):
        if checksum(word[:2]) != word[2]:
            raise OSError("a word came with a wrong checksum")
    return {
        "temperature": -45.0 + 175.0 * int.from_bytes(answer[:2], "big") / 65535.0,
        "humidity": 100.0 * int.from_bytes(answer[3:5], "big") / 65535.0,
    }


def checksum(data: bytes) -> int:
    """CRC-8 of Sensirion's chips: polynomial 0x31 from 0xFF."""
    crc = 0xFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x31 if crc & 0x80 else crc << 1) & 0xFF
    return crc


def _ads1x15(device: I2cDevice, spec: SensorSpec) -> Mapping[str, float]:
    """Each input against ground, one conversion each at 128 samples/s."""
    return {f"in{channel}": spec.range_v * _ads_convert(device, channel, ADS_RANGES[spec.range_v]) / 32768.0 for channel in range(4)}


def _ads_convert(device: I2cDevice, channel: int, gain: int) -> int:
    config = 0x8000 | (4 + channel) << 12 | gain << 9 | 0x0100 | 0x0080 | 0x0003
    device.write(b"\x01" + config.to_bytes(2, "big"))
    deadline = time.monotonic() + _ADS_LONGEST_S
    while not device.register(1, 1)[0] & 0x80:
        if time.monotonic() > deadline:
            raise OSError("the converter does not end its conversion")
        time.sleep(_PAUSE_S)
    return int.from_bytes(device.register(0, 2), "big", signed=True)


def _mcp300x(channels: int) -> SpiChip:
    def read(device: SpiDevice, spec: SensorSpec) -> Mapping[str, float]:
        values = {}
        for channel in range(channels):
            _, high, low = device.exchange(bytes([1, (8 | channel) << 4, 0]))
            values[f"in{channel}"] = spec.reference_v * ((high & 3) << 8 | low) / 1024.0
        return values

    return SpiChip(_inputs(channels), read)


def _inputs(count: int) -> tuple[Quantity, ...]:
    return tuple(Quantity(f"in{channel}", "V", f"voltage at input {channel}") for channel in range(count))


CHIPS: Mapping[str, I2cChip | SpiChip] = {
    "lm75": _table(range(0x48, 0x50), Register(TEMPERATURE, 0, "be:s9/16>>7", 0.5)),
    "tmp102": _table(range(0x48, 0x4C), Register(TEMPERATURE, 0, "be:s12/16>>4", 0.0625)),
    "tmp117": _table(range(0x48, 0x4C), Register(TEMPERATURE, 0, "be:s16/16", 0.0078125), identity=Identity(0x0F, 0x0FFF, 0x0117)),
    "mcp9808": _table(range(0x18, 0x20), Register(TEMPERATURE, 5, "be:s13/16", 0.0625), identity=Identity(0x06, 0xFFFF, 0x0054)),
    "ina219": _table(range(0x40, 0x50), Register(VOLTAGE, 2, "be:u13/16>>3", 0.004), Register(SHUNT, 1, "be:s16/16", 1e-5)),
    "bmp280": I2cChip((0x76, 0x77), (TEMPERATURE, PRESSURE), _bme280),
    "bme280": I2cChip((0x76, 0x77), (TEMPERATURE, PRESSURE, HUMIDITY), _bme280),
    "sht3x": I2cChip((0x44, 0x45), (TEMPERATURE, HUMIDITY), _sht3x),
    "ads1115": I2cChip((0x48, 0x49, 0x4A, 0x4B), _inputs(4), _ads1x15),
    "ads1015": I2cChip((0x48, 0x49, 0x4A, 0x4B), _inputs(4), _ads1x15),
    "mcp3004": _mcp300x(4),
    "mcp3008": _mcp300x(8),
}
