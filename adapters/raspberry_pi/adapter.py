"""The adapter `raspberry_pi`: the driver `linux` with the names of the header, the firmware's flags, 1-wire and sensors on its buses.

It wires; everything it offers is found by the probes that it hands to `LinuxAdapter`.
"""

from __future__ import annotations

import fcntl
from collections.abc import Mapping
from typing import Any

from adapters.linux import LinuxAdapter, Options
from adapters.linux.adapter import check_options
from adapters.linux.gpio_uapi import Chip, Ioctl
from adapters.linux.lines import Lines, LineSpec, Place, find_line
from adapters.raspberry_pi.board import gpio_number, require
from adapters.raspberry_pi.firmware import Firmware, OneWire
from edge_runtime.clock import Clock
from edge_runtime.options import decode_options


class PiOptions(Options, frozen=True, kw_only=True):
    """Those of `linux`; a line is also named `GPIO17` or `pin 11`."""


class HeaderLines(Lines):
    """Lines by the names of the header, on the chip that carries it."""

    def __init__(self, name: str, root: str, specs: Mapping[str, LineSpec], clock: Clock, ioctl: Ioctl = fcntl.ioctl) -> None:
        super().__init__(root, specs, clock, ioctl)
        self._name = name

    def open(self) -> None:
        self._board = require(self._root, self._name)
        super().open()

    def find(self, text: str, found: list[Chip]) -> Place:
        number = gpio_number(text)
        return find_line(text if number is None else f"{self._board.header_chip}:{number}", found, self._ioctl)


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock, *, ioctl: Ioctl = fcntl.ioctl) -> LinuxAdapter:
    """The factory behind the driver `raspberry_pi`. Raises InputError on options that cannot be; `open` fails on other boards."""
    decoded = decode_options(options, PiOptions, name)
    check_options(decoded, name)
    root = decoded.root.rstrip("/")
    lines = HeaderLines(name, root, decoded.lines, clock, ioctl)
    return LinuxAdapter(name, decoded, clock, probes=(Firmware(root), OneWire(root)), lines=lines, ioctl=ioctl)
