"""Processors, memory, pressure, load and clock of the machine, from /proc (proc(5))."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import suppress

from adapters.linux.probe import Count, Share, Values, folders, read_number, read_proc, sampled
from edge_runtime.clock import UNKNOWN_ERROR_NS, wall_error_ns
from edge_runtime.types import ChannelInfo


class Processors:
    """Utilisation of all cores and of each, and context switches, from /proc/stat."""

    def __init__(self, root: str) -> None:
        self._path = f"{root}/proc/stat"

    def discover(self) -> list[ChannelInfo]:
        words = {"cpu": ("%", "utilisation of all cores"), "cpu/switches": ("1/s", "context switches")}
        return [sampled(name, *words.get(name, ("%", f"utilisation of core {name[4:]}"))) for name in self.read(())]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        with suppress(OSError, ValueError, IndexError):
            for line in read_proc(self._path).splitlines():
                if line.startswith("cpu"):
                    name, *fields = line.split()
                    ticks = [int(field) for field in fields[:8]]
                    idle = sum(ticks[3:5])  # idle and waiting for a disk
                    values["cpu" if name == "cpu" else f"cpu/{name[3:]}"] = Share(sum(ticks) - idle, sum(ticks))
                elif line.startswith("ctxt "):
                    values["cpu/switches"] = Count(float(line.split()[1]))
                    break
        return values


class Frequency:
    """Present frequency of the cores, where the machine tells it."""

    def __init__(self, root: str) -> None:
        self._root = f"{root}/sys/devices/system/cpu"
        self._paths: list[str] = []

    def discover(self) -> list[ChannelInfo]:
        cores = [path for name, path in folders(self._root) if name.startswith("cpu") and name[3:].isdigit()]
        paths = [f"{path}/cpufreq/scaling_cur_freq" for path in cores]
        self._paths = [path for path in paths if read_number(path) is not None]
        return [sampled("cpu/frequency", "MHz", "mean frequency of the cores")] if self._paths else []

    def read(self, channels: Collection[str]) -> Values:
        found = [khz for path in self._paths if (khz := read_number(path)) is not None]
        return {"cpu/frequency": sum(found) / len(found) / 1000} if found else {}


class Load:
    """Load averages: how many tasks run or wait to run."""

    _NAMES = ("load/1min", "load/5min", "load/15min")

    def __init__(self, root: str) -> None:
        self._path = f"{root}/proc/loadavg"

    def discover(self) -> list[ChannelInfo]:
        return [sampled(name, "", f"load average over {name[5:]}") for name in self.read(())]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        with suppress(OSError, ValueError):
            values.update(zip(self._NAMES, map(float, read_proc(self._path).split()), strict=False))
        return values


class Uptime:
    """Time since boot."""

    def __init__(self, root: str) -> None:
        self._path = f"{root}/proc/uptime"

    def discover(self) -> list[ChannelInfo]:
        return [sampled(name, "s", "time since boot") for name in self.read(())]

    def read(self, channels: Collection[str]) -> Values:
        with suppress(OSError, ValueError, IndexError):
            return {"uptime": float(read_proc(self._path).split()[0])}
        return {}


class Memory:
    """Memory and swap from /proc/meminfo."""

    _WORDS = {  # noqa: RUF012 - never changed
        "memory/used": ("%", "memory in use, without what can be reclaimed"),
        "memory/available": ("MiB", "memory that programs can have without swapping"),
        "swap/used": ("%", "swap in use"),
    }

    def __init__(self, root: str) -> None:
        self._path = f"{root}/proc/meminfo"

    def discover(self) -> list[ChannelInfo]:
        return [sampled(name, *self._WORDS[name]) for name in self.read(())]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        with suppress(OSError, ValueError, IndexError, KeyError):
            kib = {key: float(rest.split()[0]) for key, _, rest in (line.partition(":") for line in read_proc(self._path).splitlines())}
            if kib.get("SwapTotal"):
                values["swap/used"] = 100 * (1 - kib["SwapFree"] / kib["SwapTotal"])
            available = kib["MemAvailable"]
            values |= {"memory/used": 100 * (1 - available / kib["MemTotal"]), "memory/available": available / 1024}
        return values


class Pressure:
    """Pressure stall information (Documentation/accounting/psi.rst): the share of the last 10 s in which work waited."""

    _KINDS = {"some": "some work", "full": "all work"}  # noqa: RUF012 - never changed

    def __init__(self, root: str) -> None:
        self._root = f"{root}/proc/pressure"

    def discover(self) -> list[ChannelInfo]:
        return [
            sampled(name, "%", f"share of 10 s in which {self._KINDS[kind]} waited for {resource}")
            for name in self.read([f"pressure/{resource}/" for resource in ("cpu", "memory", "io", "irq")])
            for _, resource, kind in [name.split("/")]
        ]

    def read(self, channels: Collection[str]) -> Values:
        values: Values = {}
        for resource in dict.fromkeys(channel.split("/")[1] for channel in channels):
            with suppress(OSError, ValueError):
                values |= {f"pressure/{resource}/{kind}": value for kind, value in self._averages(resource)}
        return values

    def _averages(self, resource: str) -> Iterator[tuple[str, float]]:
        for line in read_proc(f"{self._root}/{resource}").splitlines():
            kind, average, *_ = line.split()
            if kind in self._KINDS:
                yield kind, float(average.removeprefix("avg10="))


class SystemClock:
    """Whether the kernel's clock is synchronised and how wrong it may be (adjtimex(2)); only of this machine itself."""

    def __init__(self, root: str) -> None:
        self._here = root == ""

    def discover(self) -> list[ChannelInfo]:
        words = {"clock/synchronised": ("bool", "kernel clock synchronised"), "clock/error": ("ms", "bound on the wall clock's error")}
        return [sampled(name, *words[name]) for name in self.read(())]

    def read(self, channels: Collection[str]) -> Values:
        if not self._here:
            return {}
        error_ns = wall_error_ns(time.time_ns())
        if error_ns == UNKNOWN_ERROR_NS:
            return {"clock/synchronised": 0.0}
        return {"clock/synchronised": 1.0, "clock/error": error_ns / 1e6}
