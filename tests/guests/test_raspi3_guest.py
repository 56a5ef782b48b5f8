"""The driver `raspberry_pi` in an emulated Raspberry Pi 3, over Debian's kernel and device tree: nightly, `make test-guests`.

Python and our code run in the guest. The levels are those that the kernel tells in its debugfs, not those that we believe.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).resolve().parent
QEMU = "qemu-system-aarch64"
BOOT_S, BUILD_S = 400, 900
APPEND = "earlycon=pl011,mmio32,0x3f201000 console=ttyAMA0 PYTHONHASHSEED=0 printk.devkmsg=on loglevel=7"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(BOOT_S + BUILD_S),
    pytest.mark.skipif("EDGE_GUESTS" not in os.environ, reason="boots a machine: `make test-guests` does it"),
    pytest.mark.skipif(shutil.which(QEMU) is None, reason=f"{QEMU} is not installed"),
]


@pytest.fixture(scope="module")
def told() -> list[dict[str, Any]]:
    """What the guest said, line by line. EDGE_GUESTS is the folder in which it is built and kept."""
    folder = Path(os.environ["EDGE_GUESTS"]).resolve() / "raspi3"
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([sys.executable, str(HERE / "build.py"), "raspi3", str(folder)], check=True, timeout=BUILD_S)
    log = folder / "log.txt"
    log.unlink(missing_ok=True)
    command = [QEMU, "-M", "raspi3b", "-kernel", "vmlinuz", "-initrd", "initramfs", "-dtb", "board.dtb", "-append", APPEND]
    guest = subprocess.Popen([*command, "-display", "none", "-serial", f"file:{log}", "-no-reboot"], cwd=folder)
    try:
        deadline = time.monotonic() + BOOT_S
        while not any(word in _read(log) for word in ('"done"', "Kernel panic", "System halted")):
            assert guest.poll() is None, "the emulator ended by itself"
            assert time.monotonic() < deadline, f"not done within {BOOT_S} s:\n{_read(log)[-2000:]}"
            time.sleep(0.2)
    finally:
        guest.kill()
        guest.wait()
    return list(_lines(_read(log)))


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


def _lines(log: str) -> Iterator[dict[str, Any]]:
    for line in log.splitlines():
        _, mark, text = line.partition("] EDGE ")
        if mark:
            yield json.loads(text)


def findings(told: list[dict[str, Any]]) -> dict[str, tuple[str, str]]:
    return {line["finding"]: (line["state"], line["detail"]) for line in told if "finding" in line}


def test_it_ran_to_its_end_without_an_error(told: list[dict[str, Any]]) -> None:
    assert not [line for line in told if "error" in line]
    assert told[-1] == {"done": True}


def test_the_doctor_knows_the_board(told: list[dict[str, Any]]) -> None:
    found = findings(told)
    assert found["machine"][1].startswith("Raspberry Pi 3 Model B, aarch64, 4 cores, Linux 6.")
    assert found["Raspberry Pi"] == ("ok", "Raspberry Pi 3 Model B, bcm2837, GPIO header on pinctrl-bcm2835")
    assert found["GPIO"] == ("ok", "gpiochip0 pinctrl-bcm2835, 54 lines, gpiochip1 raspberrypi-exp-gpio, 8 lines")
    assert found["watchdog"][0] == "ok"
    assert "i2c-1" in found["I2C"][1]


def test_lines_move_as_the_kernel_tells(told: list[dict[str, Any]]) -> None:
    steps = [(line["asked"], line["told"], line["kernel"]) for line in told if "asked" in line]
    assert [asked for asked, _, _ in steps] == ["on", "off", "on"]
    for asked, states, kernel in steps:
        assert states == {"relay": asked, "low": asked}
        assert kernel["relay"] == ("out hi" if asked == "on" else "out lo")
        assert kernel["low"] == ("out lo" if asked == "on" else "out hi")
        assert kernel["key"].startswith("in")
    (closed,) = [line["closed"] for line in told if "closed" in line]
    assert closed == {}


def test_readings_and_streams_work(told: list[dict[str, Any]]) -> None:
    (values,) = [line["values"] for line in told if "values" in line]
    assert values["uptime"] > 0
    assert values["memory/available"] > 100
    assert values["gpio/key"] in (0.0, 1.0)
    assert 0 < values["thermal/cpu-thermal"] < 120
    assert [line["streamed"] for line in told if "streamed" in line] == ["gpio/door"]
