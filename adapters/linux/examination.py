"""What `doctor` tells of a machine's inputs and outputs: found, missing, or there but closed to this user."""

from __future__ import annotations

import fcntl
import grp
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress

from adapters.linux.gpio_uapi import Ioctl
from adapters.linux.iio import devices
from adapters.linux.lines import chips
from adapters.linux.probe import folders, read_attribute
from edge_runtime.types import Finding

Access = Callable[[str], bool]
"""Whether this user may read and write a device."""

MOST_NAMED = 8

_CAMERA_TOOLS = ("rpicam-hello --list-cameras", "libcamera-hello --list-cameras", "cam -l")


def examine(root: str, *, ioctl: Ioctl = fcntl.ioctl, access: Access | None = None) -> Iterator[Finding]:
    """The buses and devices below `root`. Looks only."""
    may = access or (lambda path: os.access(path, os.R_OK | os.W_OK))
    yield _gpio(root, ioctl, may)
    yield _sensors(root)
    yield _i2c(root, may)
    yield _nodes("SPI", root, r"spidev\d+\.\d+", may)
    yield _serial(root, may)
    yield _watchdog(root)
    yield _cameras(root)


def _gpio(root: str, ioctl: Ioctl, may: Access) -> Finding:
    found, closed = chips(root, ioctl)
    nodes = _named(root, r"gpiochip\d+")
    closed = closed or [path for path in nodes if not may(path)]
    if closed:
        return _closed("GPIO", closed)
    told = [f"{os.path.basename(chip.path)} {chip.label}, {chip.lines} lines" for chip in found]  # noqa: PTH119 - plain strings
    return Finding("GPIO", "ok", _listed(told or [os.path.basename(path) for path in nodes]))  # noqa: PTH119 - plain strings


def _sensors(root: str) -> Finding:
    found = [device.name for device in devices(root)]
    for _, path in folders(f"{root}/sys/class/hwmon"):
        with suppress(OSError):
            found.append(read_attribute(f"{path}/name"))
    return Finding("sensors", "ok", _listed(found))


def _i2c(root: str, may: Access) -> Finding:
    buses = [name for name, _ in folders(f"{root}/sys/bus/i2c/devices") if re.fullmatch(r"i2c-\d+", name)]
    nodes = _named(root, r"i2c-\d+")
    if buses and not nodes:
        return Finding(
            "I2C", "warn", f"{_listed(buses)}, without device files", "modprobe i2c-dev (and `echo i2c-dev > /etc/modules-load.d/i2c.conf`)"
        )
    return _told("I2C", nodes, may)


def _serial(root: str, may: Access) -> Finding:
    nodes = _named(root, r"tty(USB|ACM|AMA|SC|mxc|STM)\d+|rfcomm\d+")
    nodes += [path for path in _named(root, r"ttyS\d+") if _wired(root, path)]
    return _told("serial ports", nodes, may)


def _wired(root: str, path: str) -> bool:
    """A ttyS with a chip behind it: the kernel makes files for ports that are not there."""
    with suppress(OSError):
        return read_attribute(f"{root}/sys/class/tty/{path.rpartition('/')[2]}/type") != "0"
    return False


def _watchdog(root: str) -> Finding:
    found = [name for name, _ in folders(f"{root}/sys/class/watchdog") if re.fullmatch(r"watchdog\d+", name)]
    if not found:
        return Finding("watchdog", "warn", "none: a machine that hangs stays so", "modprobe softdog, or enable the board's in its firmware")
    told = []
    for name in found:
        with suppress(OSError):
            told.append(f"{name} {read_attribute(f'{root}/sys/class/watchdog/{name}/identity')}")
    return Finding("watchdog", "ok", f"{_listed(told or found)}; systemd feeds it with `RuntimeWatchdogSec=20` in system.conf")


def _cameras(root: str) -> Finding:
    found = []
    for name, path in folders(f"{root}/sys/class/video4linux"):
        with suppress(OSError):
            found.append(f"{name} {read_attribute(f'{path}/name')}")
    tool = next((tool for tool in _CAMERA_TOOLS if shutil.which(tool.split()[0])), None) if root == "" else None
    more = f"; `{tool}` lists those of libcamera" if tool else ""
    return Finding("cameras", "ok", f"{_listed(found)}{more}")


def _nodes(what: str, root: str, pattern: str, may: Access) -> Finding:
    return _told(what, _named(root, pattern), may)


def _told(what: str, nodes: list[str], may: Access) -> Finding:
    closed = [path for path in nodes if not may(path)]
    if closed:
        return _closed(what, closed)
    return Finding(what, "ok", _listed([path.rpartition("/")[2] for path in nodes]))


def _closed(what: str, paths: list[str]) -> Finding:
    group = "root"
    with suppress(OSError, KeyError):
        group = grp.getgrgid(os.stat(paths[0]).st_gid).gr_name  # noqa: PTH116 - plain strings
    if group == "root":
        remedy = "give it a group by a udev rule, and this user that group"
    else:
        remedy = f"sudo usermod -aG {group} $USER, then log in again"
    return Finding(what, "warn", f"{_listed([path.rpartition('/')[2] for path in paths])}: closed to this user", remedy)


def _named(root: str, pattern: str) -> list[str]:
    return [path for name, path in folders(f"{root}/dev") if re.fullmatch(pattern, name)]


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return f"{shown} and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else shown or "none found"
