"""Industrial I/O of the driver `linux`: a real Raspberry Pi's recording, and the shapes that other sensors have."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adapters.linux import open_adapter
from adapters.linux.iio import Iio
from adapters.linux.probe import Values
from edge_runtime.clock import VirtualClock
from edge_runtime.testing.iio_tree import write_iio_tree
from edge_runtime.types import Quality

RECORDING = Path(__file__).resolve().parents[3] / "../shared/data/iio/adxl345.xml"
recorded = pytest.mark.skipif(not RECORDING.exists(), reason="the recordings are not beside this checkout")


def device(root: Path, number: int = 0, at: str = "", **files: str) -> Path:
    """One device; `at` makes it a link to where its bus has it, as the kernel does."""
    link = root / f"sys/bus/iio/devices/iio:device{number}"
    folder = root / f"sys/devices/{at}/iio:device{number}" if at else link
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name).write_text(f"{text}\n")
    if at:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(folder)
    return folder


def readings(root: Path) -> dict[str, tuple[float, str]]:
    probe = Iio(str(root))
    infos = probe.discover()
    values: Values = probe.read([info.channel for info in infos])
    return {info.channel: (round(float(values[info.channel]), 9), info.unit) for info in infos}  # type: ignore[arg-type]


@recorded
async def test_the_accelerometer_of_a_recorded_raspberry_pi_shows_its_channels(tmp_path: Path) -> None:
    write_iio_tree(RECORDING, tmp_path)
    adapter = open_adapter("pi", {"root": str(tmp_path)}, VirtualClock())
    await adapter.open()
    infos = {info.channel: info for info in adapter.channels()}
    samples = await adapter.read([f"iio/adxl345/accel_{axis}" for axis in "xyz"])
    assert [(sample.channel, sample.quality) for sample in samples] == [(f"iio/adxl345/accel_{axis}", Quality.GOOD) for axis in "xyz"]
    assert [sample.value for sample in samples] == pytest.approx([raw * 0.0383 for raw in (192, 104, 334)])
    assert {infos[sample.channel].unit for sample in samples} == {"m/s2"}
    assert infos["hwmon/rpi_volt/in0_lcrit_alarm"].unit == "bool"
    await adapter.close()


def test_converters_give_volts_with_scale_and_offset_shared_or_own(tmp_path: Path) -> None:
    device(
        tmp_path,
        name="ads1015",
        in_voltage0_raw="291",
        in_voltage0_scale="3.0",
        in_voltage1_raw="-100",
        in_voltage_scale="2.0",
        in_voltage1_label="pump motor",
        **{"in_voltage0-voltage1_raw": "50", "in_voltage0-voltage1_scale": "1.0", "in_voltage-voltage_scale": "4"},
    )
    device(tmp_path, 1, name="soc-adc", in_temp_raw="1000", in_temp_offset="-600", in_temp_scale="100")
    assert readings(tmp_path) == {
        "iio/ads1015/voltage0": (0.873, "V"),
        "iio/ads1015/pump_motor": (-0.2, "V"),
        "iio/ads1015/voltage0-voltage1": (0.05, "V"),
        "iio/soc-adc/temp": (40.0, "degC"),
    }


def test_processed_values_win_over_raw_ones(tmp_path: Path) -> None:
    device(
        tmp_path,
        name="bme280",
        in_temp_input="23450",
        in_pressure_input="101.325000",
        in_humidityrelative_input="45500",
        in_humidityrelative_raw="7",
        in_temp_sampling_frequency="1",
    )
    assert readings(tmp_path) == {
        "iio/bme280/temp": (23.45, "degC"),
        "iio/bme280/pressure": (101.325, "kPa"),
        "iio/bme280/humidityrelative": (45.5, "%RH"),
    }


def test_what_is_no_single_number_is_no_channel(tmp_path: Path) -> None:
    device(
        tmp_path,
        name="imu",
        in_rot_quaternion_raw="1 2 3 4",
        in_accel_x_raw="nan",
        in_accel_y_raw="",
        in_wobble_raw="3",
        in_accel_z_raw="1e400",
    )
    assert readings(tmp_path) == {"iio/imu/wobble": (3.0, "")}


def test_two_of_one_name_are_told_apart_by_their_address(tmp_path: Path) -> None:
    for number, at in ((0, "i2c-1/1-0048"), (1, "i2c-1/1-0049"), (2, "spi0/spi0.1"), (3, "odd")):
        device(tmp_path, number, at, name="adc", in_voltage0_raw="1", in_voltage_scale="1000")
    assert list(readings(tmp_path)) == [f"iio/adc-{place}/voltage0" for place in ("1-0048", "1-0049", "spi0.1", "3")]


UMOCKDEV = """\
P: /devices/platform/i2c-1/1-0053/iio:device0
E: DEVTYPE=iio_device
E: SUBSYSTEM=iio
A: name=adxl345\\n
A: in_accel_scale=0.038300\\n
A: in_accel_x_raw=192\\n
"""
READ = """
from adapters.linux.iio import Iio
probe = Iio("")
print({info.channel: (probe.read([info.channel])[info.channel], info.unit) for info in probe.discover()})
"""


@pytest.mark.skipif(shutil.which("umockdev-run") is None, reason="umockdev-run is not installed")
def test_a_device_in_the_places_where_a_kernel_has_it(tmp_path: Path) -> None:
    """No root is given: the paths are those of a real machine, in a faked /sys."""
    (tmp_path / "sensor.umockdev").write_text(UMOCKDEV)
    command = ["umockdev-run", "--device", str(tmp_path / "sensor.umockdev"), "--", sys.executable, "-c", READ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, check=True, cwd=Path(__file__).resolve().parents[3])
    assert done.stdout.strip() == "{'iio/adxl345/accel_x': (7.3536, 'm/s2')}"
