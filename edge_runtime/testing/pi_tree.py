"""A Raspberry Pi as files: the parts of its device tree, firmware and buses that are read, for machines that are none."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple


class PiModel(NamedTuple):
    """One model as its device tree tells it."""

    model: str
    board: str
    processor: str
    revision: int


PI_3 = PiModel("Raspberry Pi 3 Model B Rev 1.2", "3-model-b", "bcm2837", 0xA02082)
PI_4 = PiModel("Raspberry Pi 4 Model B Rev 1.4", "4-model-b", "bcm2711", 0xC03114)
CM_4 = PiModel("Raspberry Pi Compute Module 4 Rev 1.0", "4-compute-module", "bcm2711", 0xB03140)
PI_5 = PiModel("Raspberry Pi 5 Model B Rev 1.0", "5-model-b", "bcm2712", 0xD04170)
ZERO_2 = PiModel("Raspberry Pi Zero 2 W Rev 1.0", "model-zero-2-w", "bcm2837", 0x902120)
ZERO_W = PiModel("Raspberry Pi Zero W Rev 1.1", "model-zero-w", "bcm2835", 0x9000C1)


def write_pi_tree(root: Path, pi: PiModel, *, throttled: str | None = "0") -> None:
    """Its device tree below `root`, with serial and revision; `throttled` is what the firmware tells, in hexadecimal."""
    tree = root / "sys/firmware/devicetree/base"
    (tree / "system").mkdir(parents=True, exist_ok=True)
    (tree / "model").write_text(f"{pi.model}\0")
    (tree / "compatible").write_text(f"raspberrypi,{pi.board}\0brcm,{pi.processor}\0")
    (tree / "serial-number").write_text("100000001a2b3c4d\0")
    (tree / "system/linux,revision").write_bytes(pi.revision.to_bytes(4, "big"))
    (root / "proc").mkdir(exist_ok=True)
    (root / "proc/device-tree").symlink_to("../sys/firmware/devicetree/base")
    if throttled is not None:
        firmware = root / "sys/devices/platform/soc/soc:firmware"
        firmware.mkdir(parents=True)
        (firmware / "get_throttled").write_text(f"{throttled}\n")


def write_thermometer(root: Path, name: str = "28-00000a1b2c3d", *, celsius: float = 23.125, answer: str | None = None) -> Path:
    """A DS18B20 on the 1-wire bus; `answer` is what its file holds instead of a good reading. Gives that file."""
    raw = round(celsius * 16) & 0xFFFF
    row = f"{raw & 0xFF:02x} {raw >> 8:02x} 4b 46 7f ff {0x10 - (raw & 0xF):02x} 10 2d"
    path = root / "sys/bus/w1/devices" / name / "w1_slave"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(answer if answer is not None else f"{row} : crc=2d YES\n{row} t={round(celsius * 1000)}\n")
    return path
