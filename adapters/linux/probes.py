"""Where a Linux machine keeps its readings: one small probe for every source, over /proc and /sys below an injectable root.

A probe discovers only channels that exist and can be read now. `read` returns raw values by channel in the channel's unit; a channel
that cannot be read now is left out. Rates are totals here and become rates in `adapter`. Blocking; runs in the adapter's thread.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Protocol

from edge_runtime.types import ChannelInfo, ChannelKind

Values = dict[str, float]


class Probe(Protocol):
    """One source of channels. `totals` are channels whose value only rises and is wanted per second."""

    totals: bool

    def discover(self) -> list[ChannelInfo]: ...

    def read(self) -> Values: ...


def _channel(name: str, unit: str, description: str) -> ChannelInfo:
    return ChannelInfo(name, ChannelKind.SAMPLED, unit, description=description)


def _text(path: Path) -> str:
    return path.read_text(errors="replace").strip()


def _number(path: Path) -> float | None:
    with suppress(OSError, ValueError):
        return float(_text(path))
    return None


class CpuTime:
    """Seconds spent working and passed, by core, from /proc/stat; the adapter makes a utilisation of them (proc(5))."""

    totals = True

    def __init__(self, root: Path) -> None:
        self._path = root / "proc/stat"

    def discover(self) -> list[ChannelInfo]:
        channels = [_channel(name, "%", f"utilisation of {_core(name)}") for name in self.read() if not name.endswith("/switches")]
        return [*channels, _channel("cpu/switches", "1/s", "context switches")] if channels else []

    def read(self) -> Values:
        """Busy seconds, as percent-seconds: their rise per second is the utilisation in %."""
        values: Values = {}
        with suppress(OSError):
            for line in _text(self._path).splitlines():
                name, *fields = line.split()
                if name.startswith("cpu"):
                    ticks = [int(field) for field in fields]
                    total, idle = sum(ticks[:8]), ticks[3] + (ticks[4] if len(ticks) > 4 else 0)
                    cores = max(1, os.cpu_count() or 1) if name == "cpu" else 1
                    values["cpu" if name == "cpu" else f"cpu/{name[3:]}"] = 100 * (total - idle) / os.sysconf("SC_CLK_TCK") / cores
                elif name == "ctxt":
                    values["cpu/switches"] = float(fields[0])
        return values


class Load:
    """Load averages, uptime and the cores' present frequency."""

    totals = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def discover(self) -> list[ChannelInfo]:
        words = {
            "load/1min": ("", "load average"),
            "uptime": ("s", "time since boot"),
            "cpu/frequency": ("MHz", "mean frequency of the cores"),
        }
        return [_channel(name, *words[name]) for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        with suppress(OSError, ValueError, IndexError):
            values["load/1min"] = float(_text(self._root / "proc/loadavg").split()[0])
        with suppress(OSError, ValueError, IndexError):
            values["uptime"] = float(_text(self._root / "proc/uptime").split()[0])
        paths = (self._root / "sys/devices/system/cpu").glob("cpu[0-9]*/cpufreq/scaling_cur_freq")
        found = [khz for path in paths if (khz := _number(path)) is not None]
        if found:
            values["cpu/frequency"] = sum(found) / len(found) / 1000
        return values


class Memory:
    """Memory and swap from /proc/meminfo."""

    totals = False

    def __init__(self, root: Path) -> None:
        self._path = root / "proc/meminfo"

    def discover(self) -> list[ChannelInfo]:
        words = {
            "memory/used": ("%", "memory in use (without what can be reclaimed)"),
            "memory/available": ("MiB", "memory that programs can have"),
            "swap/used": ("%", "swap in use"),
        }
        return [_channel(name, *words[name]) for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        with suppress(OSError, ValueError):
            kib = {key: float(rest.split()[0]) for key, _, rest in (line.partition(":") for line in _text(self._path).splitlines())}
            if kib.get("MemTotal"):
                available = kib.get("MemAvailable", kib.get("MemFree", 0.0))
                values["memory/used"] = 100 * (1 - available / kib["MemTotal"])
                values["memory/available"] = available / 1024
            if kib.get("SwapTotal"):
                values["swap/used"] = 100 * (1 - kib["SwapFree"] / kib["SwapTotal"])
        return values


class Pressure:
    """Pressure stall information (Documentation/accounting/psi.rst): the share of the last 10 s in which work waited."""

    totals = False

    def __init__(self, root: Path) -> None:
        self._root = root / "proc/pressure"

    def discover(self) -> list[ChannelInfo]:
        return [_channel(name, "%", "share of 10 s in which work waited for it") for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        for resource in ("cpu", "memory", "io"):
            with suppress(OSError, ValueError, IndexError):
                for line in _text(self._root / resource).splitlines():
                    kind, average, *_ = line.split()
                    values[f"pressure/{resource}/{kind}"] = float(average.partition("=")[2])
        return values


class Mounts:
    """How full the file systems on real devices are."""

    totals = False

    def __init__(self, root: Path) -> None:
        self._root = root

    def discover(self) -> list[ChannelInfo]:
        return [_channel(name, "%", f"space in use on {name.removeprefix('disk') or '/'}") for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        with suppress(OSError):
            for line in _text(self._root / "proc/self/mounts").splitlines():
                device, mount, *_ = line.split()
                if device.startswith("/dev/") and f"disk{mount}" not in values:
                    with suppress(OSError, ZeroDivisionError):
                        info = os.statvfs(self._root / mount.lstrip("/"))
                        values[f"disk{mount}"] = 100 * (1 - info.f_bavail / info.f_blocks)
        return values


class DiskTraffic:
    """Bytes read from and written to block devices (Documentation/admin-guide/iostats.rst; sectors of 512 bytes)."""

    totals = True

    def __init__(self, root: Path) -> None:
        self._root = root / "sys/block"

    def discover(self) -> list[ChannelInfo]:
        return [_channel(name, "B/s", "traffic of the block device") for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        for device in _folders(self._root):
            if device.name.startswith(("loop", "ram", "zram")):
                continue
            with suppress(OSError, ValueError, IndexError):
                fields = _text(device / "stat").split()
                values[f"disk/{device.name}/read"] = 512 * float(fields[2])
                values[f"disk/{device.name}/write"] = 512 * float(fields[6])
        return values


class Network:
    """Traffic and errors of the network interfaces."""

    totals = True

    def __init__(self, root: Path) -> None:
        self._root = root / "sys/class/net"

    def discover(self) -> list[ChannelInfo]:
        return [_channel(name, "1/s" if name.endswith("errors") else "B/s", "traffic of the interface") for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        for interface in _folders(self._root):
            statistics = interface / "statistics"
            for name in ("rx", "tx"):
                total = _number(statistics / f"{name}_bytes")
                if total is not None:
                    values[f"net/{interface.name}/{name}"] = total
            errors = [_number(statistics / f"{name}_errors") for name in ("rx", "tx")]
            if None not in errors:
                values[f"net/{interface.name}/errors"] = sum(error for error in errors if error is not None)
        return values


class Hwmon:
    """Sensors of the hwmon class, scaled as Documentation/hwmon/sysfs-interface.rst says."""

    totals = False
    _SCALES: ClassVar = {
        "temp": ("degC", 1e-3),
        "fan": ("rpm", 1.0),
        "in": ("V", 1e-3),
        "curr": ("A", 1e-3),
        "power": ("W", 1e-6),
        "humidity": ("%RH", 1e-3),
    }

    def __init__(self, root: Path) -> None:
        self._root = root / "sys/class/hwmon"
        self._units: dict[str, str] = {}

    def discover(self) -> list[ChannelInfo]:
        return [_channel(name, self._units[name], "hardware monitor") for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        for chip in _folders(self._root):
            for path in sorted(chip.glob("*_input")):
                kind = re.sub(r"\d.*", "", path.name)
                value = _number(path)
                if kind in self._SCALES and value is not None:
                    name = f"hwmon/{self._label(chip, path)}"
                    name = name if name not in values else f"{name}/{chip.name}"
                    self._units[name], scale = self._SCALES[kind]
                    values[name] = value * scale
        return values

    def _label(self, chip: Path, path: Path) -> str:
        """`<chip>/<label or input>` in letters that fit a channel's name."""
        chip_name, label = chip.name, path.name.removesuffix("_input")
        with suppress(OSError):
            chip_name = _text(chip / "name")
        with suppress(OSError):
            label = _text(chip / f"{label}_label") or label
        return "/".join(re.sub(r"[^A-Za-z0-9_.-]+", "_", part) for part in (chip_name, label))


class Thermal:
    """Thermal zones, in degC."""

    totals = False

    def __init__(self, root: Path) -> None:
        self._root = root / "sys/class/thermal"

    def discover(self) -> list[ChannelInfo]:
        return [_channel(name, "degC", "thermal zone") for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        for zone in _folders(self._root):
            value = _number(zone / "temp") if zone.name.startswith("thermal_zone") else None
            if value is not None:
                kind = zone.name
                with suppress(OSError):
                    kind = re.sub(r"[^A-Za-z0-9_.-]+", "_", _text(zone / "type")) or zone.name
                name = f"thermal/{kind}"
                values[name if name not in values else f"{name}/{zone.name}"] = value / 1000
        return values


class PowerSupply:
    """Batteries and chargers: capacity, voltage, current (Documentation/power/power_supply_class.rst)."""

    totals = False
    _FILES: ClassVar = {"capacity": ("%", 1.0), "voltage_now": ("V", 1e-6), "current_now": ("A", 1e-6)}

    def __init__(self, root: Path) -> None:
        self._root = root / "sys/class/power_supply"

    def discover(self) -> list[ChannelInfo]:
        return [_channel(name, self._FILES[name.rpartition("/")[2]][0], "power supply") for name in self.read()]

    def read(self) -> Values:
        values: Values = {}
        for supply in _folders(self._root):
            for file, (_, scale) in self._FILES.items():
                value = _number(supply / file)
                if value is not None:
                    values[f"power/{supply.name}/{file}"] = value * scale
        return values


def all_probes(root: Path) -> list[Probe]:
    """Every probe there is, over one root."""
    kinds = (CpuTime, Load, Memory, Pressure, Mounts, DiskTraffic, Network, Hwmon, Thermal, PowerSupply)
    return [kind(root) for kind in kinds]


def _folders(root: Path) -> Iterator[Path]:
    with suppress(OSError):
        yield from sorted(root.iterdir())


def _core(name: str) -> str:
    return "all cores" if name == "cpu" else f"core {name.rpartition('/')[2]}"
