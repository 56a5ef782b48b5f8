"""The driver `linux`: real readings of the machine it runs on. Everything it offers exists; nothing is invented."""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import msgspec

from adapters.linux.leds import Leds
from adapters.linux.probes import Probe, Values, all_probes
from edge_runtime.clock import Clock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.options import decode_options
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`root` is where /proc and /sys are looked for; `include` and `exclude` are globs over channel names."""

    root: str = "/"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    rescan_s: float = 10.0


class LinuxAdapter:
    """Reads in a thread of its own: a slow sensor chip must not hold the event loop."""

    def __init__(self, name: str, options: Options) -> None:
        self.name = name
        self._options = options
        self._probes = all_probes(Path(options.root))
        self._leds = Leds(Path(options.root))
        self._thread: ThreadPoolExecutor | None = None
        self._channels: dict[str, ChannelInfo] = {}
        self._by_channel: dict[str, Probe] = {}
        self._before: dict[str, tuple[float, float]] = {}
        self._counters = {"reads": 0, "unreadable": 0, "rescans": 0}

    async def open(self) -> None:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, f"adapter-{self.name}")
        await self._in_thread(self._scan)
        if not self._channels:
            raise AdapterError(
                f"{self.name}: nothing to read below {self._options.root}; is /proc mounted, and do `include`/`exclude` leave any?"
            )

    async def close(self) -> None:
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.shutdown(wait=False, cancel_futures=True)
        self._before.clear()

    def channels(self) -> Sequence[ChannelInfo]:
        return list(self._channels.values())

    def health(self) -> Health:
        return Health(self._thread is not None, f"{len(self._channels)} channels below {self._options.root}", dict(self._counters))

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        for channel in channels:
            self._require(channel, ChannelKind.SAMPLED)
        samples: list[Sample] = await self._in_thread(self._read, tuple(channels))
        return samples

    async def actuate(self, channel: str, state: str) -> None:
        self._require(channel, ChannelKind.ACTUATOR)
        await self._in_thread(self._leds.set, channel, state)

    async def actuator_state(self, channel: str) -> str | None:
        self._require(channel, ChannelKind.ACTUATOR)
        state: str | None = await self._in_thread(self._leds.get, channel)
        return state

    async def changes(self) -> AsyncIterator[Sequence[ChannelInfo]]:
        """Looks again every `rescan_s`; a device that was plugged in or out gives a new list."""
        while True:
            await asyncio.sleep(self._options.rescan_s)
            before = set(self._channels)
            await self._in_thread(self._scan)
            self._counters["rescans"] += 1
            if set(self._channels) != before:
                yield self.channels()

    def _scan(self) -> None:
        channels: dict[str, ChannelInfo] = {}
        by_channel: dict[str, Probe] = {}
        for probe in self._probes:
            for info in probe.discover():
                if self._wanted(info.channel):
                    channels[info.channel] = info
                    by_channel[info.channel] = probe
        channels |= {info.channel: info for info in self._leds.channels() if self._wanted(info.channel)}
        self._channels, self._by_channel = channels, by_channel

    def _read(self, channels: tuple[str, ...]) -> list[Sample]:
        """One pass over each source, whatever number of its channels is asked for."""
        values: dict[Probe, Values] = {}
        samples = []
        for channel in channels:
            probe = self._by_channel[channel]
            if probe not in values:
                values[probe] = probe.read()
            samples.append(self._sample(channel, probe, values[probe].get(channel)))
        self._counters["reads"] += 1
        return samples

    def _sample(self, channel: str, probe: Probe, value: float | None) -> Sample:
        if value is None:
            self._counters["unreadable"] += 1
            return Sample(channel, None, quality=Quality.BAD)
        if not probe.totals:
            return Sample(channel, value)
        now = time.monotonic()
        then, before = self._before.get(channel, (now, value))
        self._before[channel] = (now, value)
        if now <= then or value < before:
            return Sample(channel, None, quality=Quality.UNCERTAIN)  # the first reading, or a counter that began afresh
        return Sample(channel, (value - before) / (now - then))

    async def _in_thread(self, call: Any, *arguments: Any) -> Any:
        if self._thread is None:
            raise AdapterDisconnected(f"{self.name}: not open")
        return await asyncio.get_running_loop().run_in_executor(self._thread, call, *arguments)

    def _wanted(self, channel: str) -> bool:
        matches = [any(fnmatch.fnmatchcase(channel, glob) for glob in globs) for globs in (self._options.include, self._options.exclude)]
        return matches[0] and not matches[1]

    def _require(self, channel: str, kind: ChannelKind) -> None:
        info = self._channels.get(channel)
        if info is None or info.kind is not kind:
            known = [name for name, other in self._channels.items() if other.kind is kind]
            near = get_close_matches(channel, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: no such {kind.value} channel `{channel}` here{hint} (known: {', '.join(known) or 'none'})")


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> LinuxAdapter:
    """The factory behind the driver `linux`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    if not decoded.rescan_s > 0:
        raise InputError(f"{name}.options.rescan_s: expected a number above 0, got {decoded.rescan_s:g}")
    return LinuxAdapter(name, decoded)
