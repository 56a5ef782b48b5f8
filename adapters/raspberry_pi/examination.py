"""What `doctor` tells of a Raspberry Pi: which one, what its power and heat are like, which interfaces are off and how to turn them on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from adapters.linux.probe import folders
from adapters.raspberry_pi.board import detect
from adapters.raspberry_pi.firmware import Firmware
from edge_runtime.types import Finding

CONFIG = "/boot/firmware/config.txt"

_POWER = {
    "pi/undervoltage": ("the supply is too weak just now", "use the official supply and a short cable"),
    "pi/throttled": ("the processor is throttled just now", "cool it, or use a stronger supply"),
    "pi/hot": ("the processor is at its soft temperature limit", "cool it"),
    "pi/undervoltage_since_boot": ("the supply was too weak since boot", "use the official supply and a short cable"),
    "pi/throttled_since_boot": ("the processor was throttled since boot", "cool it, or use a stronger supply"),
}


def examine(root: str) -> Iterator[Finding]:
    """Nothing on other boards."""
    board = detect(root)
    if board is None:
        return
    memory = f", {board.memory_mb} MiB" if board.memory_mb else ""
    yield Finding("Raspberry Pi", "ok", f"{board.model}, {board.processor}{memory}, GPIO header on {board.header_chip}")
    yield _power(root)
    yield from _interfaces(root)


def _power(root: str) -> Finding:
    values = Firmware(root).read(())
    if not values:
        return Finding("power and heat", "warn", "the firmware tells nothing", "use the vendor's kernel, or load raspberrypi-hwmon")
    for channel, (words, remedy) in _POWER.items():
        if values.get(channel) == 1.0:
            return Finding("power and heat", "warn", words, remedy)
    return Finding("power and heat", "ok", "no under-voltage, no throttling")


def _interfaces(root: str) -> Iterator[Finding]:
    """What is off until config.txt turns it on."""
    wanted = (
        ("I2C of the header", f"{root}/dev", r"i2c-1", "dtparam=i2c_arm=on"),
        ("SPI of the header", f"{root}/dev", r"spidev0\.\d", "dtparam=spi=on"),
        ("1-wire", f"{root}/sys/bus/w1/devices", r"w1_bus_master\d+", "dtoverlay=w1-gpio"),
        ("serial of the header", f"{root}/dev", r"serial0|ttyAMA\d+", "enable_uart=1"),
    )
    for name, folder, pattern, line in wanted:
        found = [entry for entry, _ in folders(folder) if re.fullmatch(pattern, entry)]
        if found:
            yield Finding(name, "ok", ", ".join(found[:4]))
        else:
            yield Finding(name, "warn", "off", f"add `{line}` to {CONFIG} and reboot, where something is wired to it")
