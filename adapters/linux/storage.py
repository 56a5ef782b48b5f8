"""File systems and block devices of the machine."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator
from contextlib import suppress

from adapters.linux.probe import Count, Values, folders, read_attribute, read_number, read_proc, sampled
from edge_runtime.types import ChannelInfo

_ALWAYS_FULL = ("squashfs", "iso9660", "erofs", "cramfs", "romfs")
_ESCAPE = re.compile(r"\\([0-7]{3})")


class FileSystems:
    """How full the file systems are: the root, and every writable kind of one on a device of its own. Never a network mount."""

    def __init__(self, root: str) -> None:
        self._root = root

    def discover(self) -> list[ChannelInfo]:
        return [sampled(name, "%", f"space in use on {name[3:]}") for name in self.read([f"fs:{mount}" for mount in self._mounts()])]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        for channel in channels:
            with suppress(OSError, ZeroDivisionError):
                info = os.statvfs(self._root + channel[3:])
                values[channel] = 100 * (1 - info.f_bavail / (info.f_blocks - info.f_bfree + info.f_bavail))
        return values

    def _mounts(self) -> Iterator[str]:
        devices = set()
        with suppress(OSError):
            for line in read_proc(f"{self._root}/proc/self/mounts").splitlines():
                fields = [_ESCAPE.sub(lambda match: chr(int(match[1], 8)), field) for field in line.split()]
                if len(fields) < 3:
                    continue
                device, mount, kind = fields[:3]
                real = device.startswith("/dev/") or kind == "zfs" or mount == "/"
                if real and kind not in _ALWAYS_FULL and device not in devices and os.path.isdir(self._root + mount):  # noqa: PTH112
                    devices.add(device)
                    yield mount


class BlockDevices:
    """Traffic of the block devices and how busy they are (Documentation/admin-guide/iostats.rst; sectors of 512 bytes)."""

    _FIELDS = {  # noqa: RUF012 - never changed
        "read": (2, 512.0, "B/s", "bytes read from the device"),
        "write": (6, 512.0, "B/s", "bytes written to the device"),
        "busy": (9, 0.1, "%", "share of time with a request under way"),  # ms to percent-seconds
    }

    def __init__(self, root: str) -> None:
        self._root = f"{root}/sys/block"

    def discover(self) -> list[ChannelInfo]:
        devices = [
            name for name, path in folders(self._root) if not name.startswith(("loop", "ram", "zram")) and read_number(f"{path}/size")
        ]
        return [
            sampled(name, *self._FIELDS[kind][2:])
            for name in self.read([f"disk/{device}/{kind}" for device in devices for kind in self._FIELDS])
            for kind in [name.rpartition("/")[2]]
        ]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        for device in dict.fromkeys(channel.split("/")[1] for channel in channels):
            with suppress(OSError, ValueError, IndexError):
                fields = read_attribute(f"{self._root}/{device}/stat").split()
                for kind, (index, scale, unit, _) in self._FIELDS.items():
                    values[f"disk/{device}/{kind}"] = Count(scale * float(fields[index]), 100.0 if unit == "%" else math.inf)
        return values
