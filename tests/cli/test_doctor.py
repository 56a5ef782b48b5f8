"""`doctor` over recorded machines: what it finds, what it says is off and how to turn it on, and that garbage never stops it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.linux.examination import examine as examine_linux
from adapters.raspberry_pi.examination import examine as examine_pi
from edge_runtime.cli.machine import look_at
from edge_runtime.cli.main import main
from edge_runtime.testing import pi_tree
from edge_runtime.testing.gpio_kernel import ChipModel, GpioKernel
from edge_runtime.testing.machine_tree import MachineTree
from edge_runtime.testing.pi_tree import write_pi_tree
from edge_runtime.types import Finding

FULL = {
    "proc/cpuinfo": "processor\t: 0\nFeatures\t: fp asimd asimddp\nprocessor\t: 1\n",
    "proc/meminfo": "MemTotal: 4000000 kB\nMemAvailable: 2048000 kB\n",
    "proc/mounts": "proc /proc proc rw 0 0\n/dev/mmcblk0p2 / ext4 rw 0 0\n",
    "proc/pressure/memory": "",
    "proc/sys/kernel/osrelease": "6.6.31+rpt-rpi-v8\n",
    "sys/fs/cgroup/cgroup.controllers": "cpuset cpu io pids\n",
    "sys/block/mmcblk0/stat": "1 2 3 4 5 6 204800 8\n",
    "sys/block/mmcblk0/device/type": "MMC\n",
    "sys/block/mmcblk0/device/life_time": "0x01 0x03\n",
    "sys/block/mmcblk0/device/pre_eol_info": "0x01\n",
    "sys/class/rtc/rtc0/name": "rpi-rtc\n",
    "sys/class/watchdog/watchdog0/identity": "Broadcom BCM2835 Watchdog timer\n",
    "sys/class/video4linux/video0/name": "unicam\n",
    "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
    "sys/bus/iio/devices/iio:device0/name": "adxl345\n",
    "sys/bus/i2c/devices/i2c-1/name": "bcm2835 (i2c@7e804000)\n",
    "sys/class/tty/ttyS0/type": "4\n",
    "sys/class/tty/ttyS1/type": "0\n",
    **dict.fromkeys(("dev/i2c-1", "dev/spidev0.0", "dev/ttyUSB0", "dev/ttyS0", "dev/ttyS1"), ""),
}


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def told(findings: list[Finding]) -> dict[str, tuple[str, str]]:
    assert len({finding.name for finding in findings}) == len(findings)
    return {finding.name: (finding.state, finding.detail) for finding in findings}


@pytest.fixture
def pi(tmp_path: Path) -> Path:
    write_pi_tree(tmp_path, pi_tree.PI_4)
    write(tmp_path, FULL)
    return tmp_path


def test_a_raspberry_pi_is_told_whole(pi: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json", "--root", str(pi)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert set(document) == {"ok", "findings"}
    findings = [Finding(**finding) for finding in document["findings"]]
    assert told(findings) == {
        "machine": ("ok", "Raspberry Pi 4 Model B Rev 1.4, 2 cores, Linux 6.6.31+rpt-rpi-v8"),
        "INT8": ("ok", "INT8 dot products (Arm dotprod)"),
        "memory": ("ok", "2000 MiB available"),
        "cgroup v2": ("warn", "no memory controller: MemoryMax= of the service does nothing"),
        "pressure": ("ok", "the kernel tells how long work waits for memory, cores and disk"),
        "real-time clock": ("ok", "rtc0 rpi-rtc"),
        "disk": ("ok", "mmcblk0, 30 % of its life used, 100 MiB written since boot"),
        "GPIO": ("ok", "none found"),
        "sensors": ("ok", "adxl345, cpu_thermal"),
        "I2C": ("ok", "i2c-1"),
        "SPI": ("ok", "spidev0.0"),
        "serial ports": ("ok", "ttyUSB0, ttyS0"),
        "watchdog": ("ok", "watchdog0 Broadcom BCM2835 Watchdog timer; systemd feeds it with `RuntimeWatchdogSec=20` in system.conf"),
        "cameras": ("ok", "video0 unicam"),
        "Raspberry Pi": ("ok", "Raspberry Pi 4 Model B Rev 1.4, bcm2711, 4096 MiB, GPIO header on pinctrl-bcm2711"),
        "power and heat": ("ok", "no under-voltage, no throttling"),
        "I2C of the header": ("ok", "i2c-1"),
        "SPI of the header": ("ok", "spidev0.0"),
        "1-wire": ("warn", "off"),
        "serial of the header": ("warn", "off"),
    }
    remedies = {finding.name: finding.remedy for finding in findings if finding.state == "warn"}
    assert "`cgroup_enable=memory` to /boot/firmware/cmdline.txt" in remedies["cgroup v2"]
    assert "`dtoverlay=w1-gpio` to /boot/firmware/config.txt" in remedies["1-wire"]


@pytest.mark.parametrize(
    ("name", "text", "finding", "words"),
    [
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "50005", "power and heat", "too weak just now"),
        ("sys/devices/platform/soc/soc:firmware/get_throttled", "10000", "power and heat", "too weak since boot"),
        ("sys/block/mmcblk0/device/life_time", "0x0a 0x01", "disk", "100 % of its life used"),
        ("sys/block/mmcblk0/device/pre_eol_info", "0x03", "disk", "its reserve is used up"),
        ("sys/block/mmcblk0/device/life_time", "", "disk", "does not tell its wear"),
        ("proc/meminfo", "MemAvailable: 60000 kB\n", "memory", "58 MiB available"),
    ],
)
def test_what_is_wrong_comes_with_a_remedy(pi: Path, name: str, text: str, finding: str, words: str) -> None:
    (pi / name).write_text(text)
    (found,) = [one for one in [*look_at(str(pi)), *examine_pi(str(pi))] if one.name == finding]
    assert found.state == "warn"
    assert words in found.detail
    assert found.remedy


def test_what_is_closed_to_this_user_names_the_way_in(pi: Path) -> None:
    kernel = GpioKernel({pi / "dev/gpiochip0": ChipModel("pinctrl-bcm2711", {}, 58)})
    open_to_all = told(list(examine_linux(str(pi), ioctl=kernel.ioctl)))
    assert open_to_all["GPIO"] == ("ok", "gpiochip0 pinctrl-bcm2711, 58 lines")
    closed = {finding.name: finding for finding in examine_linux(str(pi), ioctl=kernel.ioctl, access=lambda path: False)}
    for name in ("GPIO", "I2C", "SPI", "serial ports"):
        assert closed[name].state == "warn"
        assert "closed to this user" in closed[name].detail
        assert "group" in closed[name].remedy


def test_a_bus_without_device_files_names_the_module(pi: Path) -> None:
    (pi / "dev/i2c-1").unlink()
    found = {finding.name: finding for finding in examine_linux(str(pi))}
    assert found["I2C"].remedy.startswith("modprobe i2c-dev")


def test_another_machine_is_told_without_a_word_of_raspberry_pi(tmp_path: Path) -> None:
    tree = MachineTree(tmp_path)
    assert list(examine_pi(str(tree.root))) == []
    assert told(list(examine_linux(str(tree.root))))["sensors"][1] == "coretemp, lm75, lm75"


def test_a_root_that_is_none_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--root", str(tmp_path / "absent")]) == 1
    assert "is no folder" in capsys.readouterr().out


NAMES = sorted({*FULL, "sys/devices/platform/soc/soc:firmware/get_throttled", "sys/firmware/devicetree/base/system/linux,revision"})


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(NAMES), st.binary(max_size=80), max_size=5))
def test_garbage_below_the_root_never_stops_it(tmp_path_factory: pytest.TempPathFactory, garbage: dict[str, bytes]) -> None:
    root = tmp_path_factory.mktemp("machine")
    write_pi_tree(root, pi_tree.PI_5)
    write(root, FULL)
    for name, content in garbage.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    findings = [*look_at(str(root)), *examine_linux(str(root)), *examine_pi(str(root))]
    assert all(finding.name and finding.detail for finding in findings)
    json.dumps([finding.detail for finding in findings])
