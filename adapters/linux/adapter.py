"""The adapter `linux`: real readings of the machine it runs on. Everything it offers exists; nothing is invented.

What can be read is the probes' business; here are the thread that they block, the rates, and devices that come and go.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import msgspec

from adapters.linux.leds import Leds
from adapters.linux.network import Network
from adapters.linux.probe import Count, Probe, Rates, Share
from adapters.linux.sensors import Hwmon, PowerSupply, Thermal
from adapters.linux.storage import BlockDevices, FileSystems
from adapters.linux.system import Frequency, Load, Memory, Pressure, Processors, SystemClock, Uptime
from edge_runtime.clock import Clock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.options import decode_options
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

PROBES: tuple[Callable[[str], Probe], ...] = (
    Processors,
    Frequency,
    Load,
    Uptime,
    SystemClock,
    Memory,
    Pressure,
    FileSystems,
    BlockDevices,
    Network,
    Hwmon,
    Thermal,
    PowerSupply,
)

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`root` is where /proc and /sys are looked for; `include` and `exclude` are globs over channel names."""

    root: str = "/"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    rescan_s: float = 10.0


class LinuxAdapter:
    """Reads in a thread of its own: a slow sensor chip must not hold the event loop."""

    def __init__(self, name: str, options: Options, clock: Clock) -> None:
        self.name = name
        self._options = options
        self._clock = clock
        root = options.root.rstrip("/")
        self._probes = [probe(root) for probe in PROBES]
        self._leds = Leds(Path(options.root))
        self._rates = Rates()
        self._thread: ThreadPoolExecutor | None = None
        self._channels: dict[str, ChannelInfo] = {}
        self._seen: dict[str, tuple[ChannelKind, Probe | None]] = {}
        self._counters = {"reads": 0, "unreadable": 0, "rescans": 0}

    async def open(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, f"adapter-{self.name}")
        self._seen = {}
        await self._in_thread(self._scan)
        if not self._channels:
            await self.close()
            raise AdapterError(
                f"{self.name}: nothing to read below {self._options.root}; is /proc mounted, and do `include`/`exclude` leave any?"
            )

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.submit(self._rates.clear)
            thread.shutdown(wait=False)

    def channels(self) -> Sequence[ChannelInfo]:
        return list(self._channels.values())

    def health(self) -> Health:
        return Health(self._thread is not None, f"{len(self._channels)} channels below {self._options.root}", dict(self._counters))

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        for channel in channels:
            self._require(channel, ChannelKind.SAMPLED)
        return await self._in_thread(self._read, tuple(channels))

    async def actuate(self, channel: str, state: str) -> None:
        self._require(channel, ChannelKind.ACTUATOR)
        await self._in_thread(self._leds.set, channel, state)

    async def actuator_state(self, channel: str) -> str | None:
        self._require(channel, ChannelKind.ACTUATOR)
        return await self._in_thread(self._leds.get, channel)

    async def changes(self) -> AsyncIterator[Sequence[ChannelInfo]]:
        """Looks again every `rescan_s`; a device that was plugged in or out gives a new list."""
        while True:
            await asyncio.sleep(self._options.rescan_s)
            before = self._channels
            await self._in_thread(self._scan)
            self._counters["rescans"] += 1
            if self._channels != before:
                yield self.channels()

    # -- in the thread ------------------------------------------------------------------------------------------------------

    def _scan(self) -> None:
        found: list[tuple[ChannelInfo, Probe | None]] = [(info, probe) for probe in self._probes for info in probe.discover()]
        found += [(info, None) for info in self._leds.channels()]
        wanted = {info.channel: (info, probe) for info, probe in found if self._wanted(info.channel)}
        self._channels = {channel: info for channel, (info, _) in wanted.items()}
        self._seen = self._seen | {channel: (info.kind, probe) for channel, (info, probe) in wanted.items()}

    def _read(self, channels: Sequence[str]) -> list[Sample]:
        """Each source once, whatever number of its channels is asked for."""
        asked: dict[Probe, list[str]] = {}
        for channel in channels:
            probe = self._seen[channel][1]
            assert probe is not None
            asked.setdefault(probe, []).append(channel)
        samples: dict[str, Sample] = {}
        for probe, wanted in asked.items():
            values = probe.read(wanted)
            at_ns = self._clock.monotonic_ns()
            samples |= {channel: self._sample(channel, values.get(channel), at_ns) for channel in dict.fromkeys(wanted)}
        self._counters["reads"] += 1
        return [samples[channel] for channel in channels]

    def _sample(self, channel: str, value: float | Count | Share | None, at_ns: int) -> Sample:
        if value is None:
            self._counters["unreadable"] += 1
            self._rates.forget(channel)
            return Sample(channel, None, quality=Quality.BAD)
        if isinstance(value, (Count, Share)):
            rate, quality = self._rates.rate(channel, value, at_ns)
            return Sample(channel, rate, quality=quality)
        return Sample(channel, value)

    # -- on the loop ---------------------------------------------------------------------------------------------------------

    async def _in_thread(self, call: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        thread = self._working()
        result = await asyncio.wrap_future(thread.submit(call, *arguments, **named))
        if self._thread is not thread:
            raise AdapterDisconnected(f"{self.name}: closed meanwhile")
        return result

    def _working(self) -> ThreadPoolExecutor:
        if self._thread is None:
            raise AdapterDisconnected(f"{self.name}: not open")
        return self._thread

    def _wanted(self, channel: str) -> bool:
        included, excluded = (
            any(fnmatch.fnmatchcase(channel, glob) for glob in globs) for globs in (self._options.include, self._options.exclude)
        )
        return included and not excluded

    def _require(self, channel: str, kind: ChannelKind) -> None:
        """A channel that was here since `open` is known; whether it still can be read is told by its quality."""
        self._working()
        if self._seen.get(channel, (None, None))[0] is not kind:
            known = [name for name, info in self._channels.items() if info.kind is kind]
            near = get_close_matches(channel, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: no such {kind.value} channel `{channel}` here{hint} (known: {', '.join(known) or 'none'})")


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> LinuxAdapter:
    """The factory behind the driver `linux`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    if not decoded.rescan_s > 0:
        raise InputError(f"{name}.options.rescan_s: expected a number above 0, got {decoded.rescan_s:g}")
    return LinuxAdapter(name, decoded, clock)
