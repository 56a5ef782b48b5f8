"""The pressure, temperature and humidity sensors BMP280 and BME280: one forced measurement, compensated as their data sheets say."""

from __future__ import annotations

import struct
import time
from typing import NamedTuple

from adapters.linux.buses import I2cDevice

IDENTITIES = {0x58: "bmp280", 0x60: "bme280"}

_ID, _CALIBRATION, _CALIBRATION_HUMIDITY = 0xD0, 0x88, 0xE1
_CONTROL_HUMIDITY, _STATUS, _CONTROL, _DATA = 0xF2, 0xF3, 0xF4, 0xF7
_ONCE_EACH_FORCED = 0x25
_MEASURING = 0x08
_LONGEST_MEASUREMENT_S = 0.05
_SKIPPED_20, _SKIPPED_16 = 0x80000, 0x8000


class Calibration(NamedTuple):
    """The trimming parameters in the chip, by the data sheets' names."""

    t: tuple[int, int, int]
    p: tuple[int, int, int, int, int, int, int, int, int]
    h: tuple[int, int, int, int, int, int] | None


def read_calibration(device: I2cDevice, humid: bool) -> Calibration:
    """Raises OSError."""
    values = struct.unpack("<HhhHhhhhhhhh", device.register(_CALIBRATION, 24))
    if not humid:
        return Calibration(values[:3], values[3:], None)
    (h1,) = device.register(0xA1, 1)
    h2, h3, e4, e5, e6, h6 = struct.unpack("<hBbBbb", device.register(_CALIBRATION_HUMIDITY, 7))
    return Calibration(values[:3], values[3:], (h1, h2, h3, e4 * 16 | e5 & 0x0F, e6 * 16 | e5 >> 4, h6))


def measure(device: I2cDevice, pause: float = 0.002) -> dict[str, float]:
    """`temperature` in degC, `pressure` in hPa and, of a BME280, `humidity` in %RH. Raises OSError, also for another chip."""
    (identity,) = device.register(_ID, 1)
    if identity not in IDENTITIES:
        raise OSError(f"the chip there says 0x{identity:02x} of itself, a BME280 says 0x60 and a BMP280 0x58")
    humid = IDENTITIES[identity] == "bme280"
    calibration = read_calibration(device, humid)
    if humid:
        device.write(bytes([_CONTROL_HUMIDITY, 1]))
    device.write(bytes([_CONTROL, _ONCE_EACH_FORCED]))
    deadline = time.monotonic() + _LONGEST_MEASUREMENT_S
    time.sleep(pause)
    while device.register(_STATUS, 1)[0] & _MEASURING:
        if time.monotonic() > deadline:
            raise OSError("the chip does not end its measurement")
        time.sleep(pause)
    data = device.register(_DATA, 8 if humid else 6)
    return compensate(calibration, data)


def compensate(calibration: Calibration, data: bytes) -> dict[str, float]:
    """The data registers from 0xF7 on, as physical values; what was not measured is left out."""
    raw_pressure, raw_temperature = (data[at] << 12 | data[at + 1] << 4 | data[at + 2] >> 4 for at in (0, 3))
    if raw_temperature == _SKIPPED_20:
        return {}
    fine = _fine_temperature(calibration.t, raw_temperature)
    values = {"temperature": fine / 5120.0}
    if raw_pressure != _SKIPPED_20 and (pressure := _pressure_pa(calibration.p, raw_pressure, fine)) is not None:
        values["pressure"] = pressure / 100
    if calibration.h is not None and len(data) == 8 and (raw := data[6] << 8 | data[7]) != _SKIPPED_16:
        values["humidity"] = _humidity(calibration.h, raw, fine)
    return values


def _fine_temperature(t: tuple[int, int, int], raw: int) -> float:
    first = (raw / 16384.0 - t[0] / 1024.0) * t[1]
    return first + (raw / 131072.0 - t[0] / 8192.0) ** 2 * t[2]


def _pressure_pa(p: tuple[int, ...], raw: int, fine: float) -> float | None:
    centred = fine / 2.0 - 64000.0
    offset = centred * centred * p[5] / 32768.0 + centred * p[4] * 2.0
    offset = offset / 4.0 + p[3] * 65536.0
    gain = (p[2] * centred * centred / 524288.0 + p[1] * centred) / 524288.0
    gain = (1.0 + gain / 32768.0) * p[0]
    if gain == 0.0:
        return None
    pressure = (1048576.0 - raw - offset / 4096.0) * 6250.0 / gain
    return pressure + (p[8] * pressure * pressure / 2147483648.0 + pressure * p[7] / 32768.0 + p[6]) / 16.0


def _humidity(h: tuple[int, int, int, int, int, int], raw: int, fine: float) -> float:
    centred = fine - 76800.0
    value = (raw - (h[3] * 64.0 + h[4] / 16384.0 * centred)) * (
        h[1] / 65536.0 * (1.0 + h[5] / 67108864.0 * centred * (1.0 + h[2] / 67108864.0 * centred))
    )
    return min(100.0, max(0.0, value * (1.0 - h[0] * value / 524288.0)))
