"""Which Raspberry Pi this is, from the device tree, and which GPIO chip carries its header. It opens no device."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import NamedTuple

from adapters.linux.probe import read_attribute
from edge_runtime.errors import AdapterError

HEADER_CHIPS = {
    "bcm2835": "pinctrl-bcm2835",
    "bcm2836": "pinctrl-bcm2835",
    "bcm2837": "pinctrl-bcm2835",
    "bcm2711": "pinctrl-bcm2711",
    "bcm2712": "pinctrl-rp1",
}
"""The label of the GPIO chip behind the header, by the processor. The number of the chip differs from kernel to kernel."""

HEADER = {
    3: 2,
    5: 3,
    7: 4,
    8: 14,
    10: 15,
    11: 17,
    12: 18,
    13: 27,
    15: 22,
    16: 23,
    18: 24,
    19: 10,
    21: 9,
    22: 25,
    23: 11,
    24: 8,
    26: 7,
    27: 0,
    28: 1,
    29: 5,
    31: 6,
    32: 12,
    33: 13,
    35: 19,
    36: 16,
    37: 26,
    38: 20,
    40: 21,
}
"""GPIO number by the pin of the 40-pin header; the others are power and ground."""

HEADER_GPIOS = 28

_TREES = ("proc/device-tree", "sys/firmware/devicetree/base")
_NEW_STYLE = 1 << 23


class Board(NamedTuple):
    """One Raspberry Pi. `processor` is such as `bcm2711`; `memory_mb` is 0 where the revision does not tell."""

    model: str
    processor: str
    serial: str
    revision: int

    @property
    def header_chip(self) -> str:
        """The label of the GPIO chip behind the header."""
        return HEADER_CHIPS[self.processor]

    @property
    def memory_mb(self) -> int:
        return 256 << (self.revision >> 20 & 7) if self.revision & _NEW_STYLE else 0


def detect(root: str) -> Board | None:
    """The board below `root`, or None when it is no Raspberry Pi that is known here."""
    for tree in _TREES:
        compatible = _texts(f"{root}/{tree}/compatible")
        processors = [name.partition(",")[2] for name in compatible if name.startswith("brcm,")]
        known = next((name for name in processors if name in HEADER_CHIPS), None)
        if known is not None and any(name.startswith("raspberrypi,") for name in compatible):
            model = (_texts(f"{root}/{tree}/model") or ["Raspberry Pi"])[0]
            serial = (_texts(f"{root}/{tree}/serial-number") or [""])[0]
            return Board(model, known, serial, _revision(root, tree))
    return None


def require(root: str, name: str) -> Board:
    """The board below `root`. Raises AdapterError when there is none."""
    board = detect(root)
    if board is None:
        told = next((texts[0] for tree in _TREES if (texts := _texts(f"{root}/{tree}/model"))), "no device tree")
        raise AdapterError(f"{name}: this is no Raspberry Pi ({told}); on other boards use the driver `linux`, which names lines by chip")
    return board


def gpio_number(text: str) -> int | None:
    """The GPIO of `GPIO17`, `BCM17`, `17`, `pin 11` or `BOARD11`; None for what is named otherwise, such as `gpiochip0:17`.

    Raises AdapterError for a pin or a number that the header does not have.
    """
    match = re.fullmatch(r"(?i)(?:(pin|board|j8:)\s*|(?:gpio|bcm)\s*)?([0-9]{1,3})", text.strip())
    if match is None:
        return None
    number = int(match[2])
    if match[1] is None:
        if number < HEADER_GPIOS:
            return number
        raise AdapterError(f"`{text}`: the header has GPIO0 to GPIO{HEADER_GPIOS - 1}; other lines are named `chip:number`")
    if number not in HEADER:
        kind = "power or ground" if 1 <= number <= 40 else "not there"
        raise AdapterError(f"`{text}`: pin {number} of the header is {kind}; GPIOs are on the pins {', '.join(map(str, sorted(HEADER)))}")
    return HEADER[number]


def _revision(root: str, tree: str) -> int:
    with suppress(OSError), open(f"{root}/{tree}/system/linux,revision", "rb") as file:  # noqa: PTH123 - as the other readers here
        return int.from_bytes(file.read(4), "big")
    with suppress(OSError, ValueError):
        for line in read_attribute(f"{root}/proc/cpuinfo").splitlines():
            if line.startswith("Revision"):
                return int(line.partition(":")[2], 16) & 0xFFFFFFFF
    return 0


def _texts(path: str) -> list[str]:
    """The strings of a device tree property; none when it is not there."""
    with suppress(OSError):
        return [text for text in read_attribute(path).split("\0") if text.isprintable() and text]
    return []
