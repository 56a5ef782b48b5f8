"""Sensor chips on I2C and SPI from user space, against models of them: values, wrong wiring, garbage."""

from __future__ import annotations

import ctypes
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.linux import LinuxAdapter, open_adapter
from adapters.linux import buses as bus_files
from adapters.linux.bme280 import Calibration, compensate
from adapters.linux.chip_probe import Chips
from adapters.linux.chips import CHIPS, SensorSpec, checksum
from edge_runtime.clock import VirtualClock
from edge_runtime.errors import InputError
from edge_runtime.testing.chip_buses import AdsModel, ChipBuses, I2cModel, McpModel, RegisterFile
from edge_runtime.types import Quality

# The worked example of the BMP280's data sheet: 25.08 degC and 100,653 Pa.
EXAMPLE = Calibration((27504, 26435, -1000), (36477, -10685, 3024, 2855, 140, -7, 15500, -14600, 6000), None)
EXAMPLE_DATA = (415148 << 4).to_bytes(3, "big") + (519888 << 4).to_bytes(3, "big")
HUMIDITY = (75, 355, 0, 0x13A, 0x32, 30)


def words(*pairs: tuple[int, int]) -> RegisterFile:
    return RegisterFile({register: struct.pack(">H", value & 0xFFFF) for register, value in pairs}, wide=True)


def bme280(identity: int = 0x60) -> RegisterFile:
    h1, h2, h3, h4, h5, h6 = HUMIDITY
    blocks = {
        0x88: struct.pack("<HhhHhhhhhhhh", *EXAMPLE.t, *EXAMPLE.p),
        0xA1: bytes([h1]),
        0xD0: bytes([identity]),
        0xE1: struct.pack("<hBbBbb", h2, h3, h4 >> 4, (h4 & 15) | (h5 & 15) << 4, h5 >> 4, h6),
        0xF7: EXAMPLE_DATA + (28_000).to_bytes(2, "big"),
    }
    return RegisterFile({first + at: bytes([byte]) for first, block in blocks.items() for at, byte in enumerate(block)})


class Sht3x:
    def __init__(self, answer: bytes) -> None:
        self.answer = answer

    def write(self, data: bytes) -> None:
        assert data == b"\x24\x00"

    def read(self, count: int) -> bytes:
        return self.answer[:count]


def worded(value: int) -> bytes:
    word = value.to_bytes(2, "big")
    return word + bytes([checksum(word)])


def read_once(root: Path, buses: ChipBuses, **spec: Any) -> dict[str, float]:
    probe = Chips(str(root), {"x": SensorSpec(**spec)}, buses.ioctl)
    values = probe.read([info.channel for info in probe.discover()])
    return {name.removeprefix("sensor/x/"): round(float(value), 5) for name, value in values.items()}  # type: ignore[arg-type]


ON_I2C = (
    ("tmp102", 0x48, words((0, -25 * 16 << 4)), {"temperature": -25.0}),
    ("lm75", 0x48, words((0, 51 << 7)), {"temperature": 25.5}),
    ("tmp117", 0x48, words((0, 3200), (0x0F, 0x2117)), {"temperature": 25.0}),
    ("mcp9808", 0x18, words((5, 0xE000 | 0x1FFF & -10 * 16), (6, 0x0054)), {"temperature": -10.0}),
    ("ina219", 0x40, words((2, 3000 << 3 | 2), (1, -500)), {"voltage": 12.0, "shunt": -0.005}),
    ("bme280", 0x76, bme280(), {"temperature": 25.08247, "pressure": 1006.53258, "humidity": 42.66628}),
    ("bmp280", 0x76, bme280(0x58), {"temperature": 25.08247, "pressure": 1006.53258}),
    ("sht3x", 0x44, Sht3x(worded(0x6666) + worded(0x8000)), {"temperature": 25.0, "humidity": 50.00076}),
    ("ads1115", 0x48, AdsModel((1.0, -0.5, 3.3, 5.0)), {"in0": 1.0, "in1": -0.5, "in2": 3.3, "in3": 4.09588}),
)


@pytest.mark.parametrize(("chip", "address", "model", "values"), ON_I2C)
def test_a_chip_on_i2c_is_read_in_its_units(tmp_path: Path, chip: str, address: int, model: I2cModel, values: dict[str, float]) -> None:
    assert read_once(tmp_path, ChipBuses(tmp_path, {(1, address): model}), chip=chip) == pytest.approx(values, abs=1e-4)


@pytest.mark.parametrize(("chip", "address", "model", "values"), [case for case in ON_I2C if case[0] != "sht3x"])
def test_a_chip_behind_an_smbus_host_is_read_the_same(
    tmp_path: Path, chip: str, address: int, model: I2cModel, values: dict[str, float]
) -> None:
    buses = ChipBuses(tmp_path, {(1, address): model}, smbus_only=True)
    assert read_once(tmp_path, buses, chip=chip) == pytest.approx(values, abs=1e-4)


def test_a_chip_that_smbus_cannot_ask_is_said_so(tmp_path: Path) -> None:
    model = Sht3x(worded(0x6666) + worded(0x8000))
    probe = Chips(str(tmp_path), {"x": SensorSpec(chip="sht3x")}, ChipBuses(tmp_path, {(1, 0x44): model}, smbus_only=True).ioctl)
    assert probe.discover() is not None
    assert probe.read(["sensor/x/temperature"]) == {}
    assert "SMBus only" in probe.complaints["x"]


def test_a_chip_on_spi_is_read_in_its_units(tmp_path: Path) -> None:
    buses = ChipBuses(tmp_path, {}, {(0, 1): McpModel((0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.3))})
    values = read_once(tmp_path, buses, chip="mcp3008", select=1)
    assert values == pytest.approx({f"in{n}": min(3.3, n / 2) for n in range(8)}, abs=0.0033)


def test_compensation_is_that_of_the_data_sheet() -> None:
    values = compensate(EXAMPLE, EXAMPLE_DATA)
    assert (round(values["temperature"], 2), round(values["pressure"] * 100, 2)) == (25.08, 100653.27)


def integer_humidity(raw: int, fine: int) -> float:
    """The data sheet's other way, in 32-bit integers, to 1/1024 %RH."""
    h1, h2, h3, h4, h5, h6 = HUMIDITY
    x = fine - 76800
    gain = (((x * h6 >> 10) * ((x * h3 >> 11) + 32768) >> 10) + 2097152) * h2 + 8192 >> 14
    value = ((raw << 14) - (h4 << 20) - h5 * x + 16384 >> 15) * gain
    value -= ((value >> 15) * (value >> 15) >> 7) * h1 >> 4
    return (min(max(value, 0), 419430400) >> 12) / 1024


@given(st.integers(0, 65535).filter(lambda raw: raw != 0x8000))
def test_humidity_is_that_of_the_data_sheets_integers(raw: int) -> None:
    values = compensate(EXAMPLE._replace(h=HUMIDITY), EXAMPLE_DATA + raw.to_bytes(2, "big"))
    assert values["humidity"] == pytest.approx(integer_humidity(raw, round(values["temperature"] * 5120)), abs=0.02)


def test_the_checksum_is_that_of_the_data_sheet() -> None:
    assert checksum(b"\xbe\xef") == 0x92


def adapter(root: Path, buses: ChipBuses, **sensors: Any) -> LinuxAdapter:
    return open_adapter("board", {"root": str(root), "sensors": sensors, "rescan_s": 0.01}, VirtualClock(), ioctl=buses.ioctl)


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/uptime").write_text("1 1\n")
    return tmp_path


async def test_a_chip_that_falls_off_is_bad_and_comes_back(machine: Path) -> None:
    bus = machine / "dev/i2c-1"
    buses = ChipBuses(machine, {(1, 0x48): words((0, 0x1900))})
    board = adapter(machine, buses, room={"chip": "tmp102"})
    await board.open()
    (info,) = [info for info in board.channels() if info.channel.startswith("sensor/")]
    assert (info.channel, info.unit) == ("sensor/room/temperature", "degC")
    chip = buses.remove(bus, 0x48)
    (sample,) = await board.read(["sensor/room/temperature"])
    assert (sample.value, sample.quality) == (None, Quality.BAD)
    assert "room: tmp102 at 0x48 on i2c-1: no answer; check wiring and address" in board.health().detail
    buses.add(bus, 0x48, chip)
    (sample,) = await board.read(["sensor/room/temperature"])
    assert (sample.value, sample.quality) == (25.0, Quality.GOOD)
    assert "no answer" not in board.health().detail
    await board.close()


@pytest.mark.parametrize(
    ("spec", "words_"),
    [
        ({"chip": "tmp102", "bus": 7}, "room: tmp102 at 0x48 on i2c-7: there is no such bus"),
        ({"chip": "tmp102", "address": "0x49"}, "0x49 on i2c-1: no answer"),
        ({"chip": "tmp117"}, "another chip than a tmp117 is at this address"),
        ({"chip": "bme280"}, "says 0x99 of itself"),
        ({"chip": "sht3x"}, "wrong checksum"),
        ({"chip": "lm75", "address": 0x4F}, "a driver of the kernel holds the chip"),
        ({"chip": "mcp3008"}, "spidev0.0: there is no such bus"),
    ],
)
async def test_a_chip_that_is_not_as_declared_has_no_channel_and_a_reason(machine: Path, spec: dict[str, Any], words_: str) -> None:
    chips: dict[tuple[int, int], I2cModel] = {
        (1, 0x48): words((0, 0)),
        (1, 0x76): bme280(0x99),
        (1, 0x44): Sht3x(b"\1\2\3\4\5\6"),
        (1, 0x4F): words((0, 0)),
    }
    (machine / "sys/bus/i2c/devices/1-004f/driver").mkdir(parents=True)
    board = adapter(machine, ChipBuses(machine, chips), room=spec)
    await board.open()
    assert not [info for info in board.channels() if info.channel.startswith("sensor/")]
    assert words_ in board.health().detail
    await board.close()


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"chip": "bme28"}, r"sensors\.x\.chip: unknown chip `bme28`; did you mean `bme280`"),
        ({"chip": "bme280", "address": 0x48}, r"x\.address: a bme280 has one of 0x76, 0x77, got 72"),
        ({"chip": "bme280", "address": "76"}, r"x\.address: a bme280 has one of 0x76, 0x77, got 76"),
        ({"chip": "ads1115", "range_v": 5}, r"x\.range_v: expected one of 6\.144"),
        ({"chip": "mcp3008", "reference_v": 0}, r"x\.reference_v: expected a voltage"),
        ({"chip": "mcp3008", "select": -1}, "expected `bus` and `select` from 0"),
        ({}, "missing required field `chip`"),
    ],
)
def test_contradicting_options_are_refused(spec: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_adapter("board", {"sensors": {"x": spec}}, VirtualClock())


class Noise:
    """A chip that says anything."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.at = 0

    def write(self, data: bytes) -> None:
        pass

    def read(self, count: int) -> bytes:
        self.at += count
        return bytes(self.content[(self.at + n) % len(self.content)] for n in range(count))

    def exchange(self, data: bytes) -> bytes:
        return self.read(len(data))


@given(st.sampled_from(sorted(set(CHIPS) - {"sht3x"})), st.binary(min_size=1, max_size=64))
def test_whatever_a_chip_says_is_a_number_or_nothing(tmp_path_factory: pytest.TempPathFactory, chip: str, content: bytes) -> None:
    root = tmp_path_factory.mktemp("noise")
    noise = Noise(content)
    buses = ChipBuses(root, {(1, address): noise for address in range(0x18, 0x78)}, {(0, 0): noise})
    probe = Chips(str(root), {"x": SensorSpec(chip=chip)}, buses.ioctl)
    for info in probe.discover():
        assert info.channel.startswith("sensor/x/")
    probe.read([f"sensor/x/{quantity.name}" for quantity in CHIPS[chip].quantities])


_PROBE = """
#include <stddef.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <linux/i2c.h>
#include <linux/i2c-dev.h>
#include <linux/spi/spidev.h>
int main(void) {
    printf("%zu %zu %zu %zu ", sizeof(struct i2c_msg), offsetof(struct i2c_msg, buf), sizeof(struct i2c_rdwr_ioctl_data), (size_t)I2C_RDWR);
    printf("%zu %zu %zu", sizeof(struct spi_ioc_transfer), offsetof(struct spi_ioc_transfer, bits_per_word), (size_t)SPI_IOC_MESSAGE(1));
}
"""


@pytest.mark.skipif(
    not Path("/usr/include/linux/spi/spidev.h").exists() or shutil.which("cc") is None, reason="no C compiler or no kernel headers"
)
def test_layouts_are_those_of_the_kernels_headers(tmp_path: Path) -> None:
    (tmp_path / "probe.c").write_text(_PROBE)
    subprocess.run(["cc", "probe.c", "-o", "probe"], cwd=tmp_path, check=True, timeout=30)
    told = subprocess.run([tmp_path / "probe"], check=True, capture_output=True, text=True, timeout=10).stdout
    message, messages, transfer = bus_files._I2cMessage, bus_files._I2cMessages, bus_files._SpiTransfer
    ours = [ctypes.sizeof(message), message.data.offset, ctypes.sizeof(messages), bus_files._I2C_RDWR]
    assert [int(word) for word in told.split()] == [*ours, ctypes.sizeof(transfer), transfer.bits_per_word.offset, bus_files._SPI_TRANSFER]
