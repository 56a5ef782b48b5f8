"""The adapter `linux`: real readings of the machine it runs on. Everything it offers exists; nothing is invented.

What can be read is the probes' business; here are the threads that they block, the rates, streams, and devices that come and go.
"""

from __future__ import annotations

import asyncio
import fcntl
import fnmatch
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, Protocol, TypeVar, cast

import msgspec

from adapters.linux.chip_probe import Chips, check_sensors
from adapters.linux.chips import SensorSpec
from adapters.linux.feeds import Feed, Feeding
from adapters.linux.gpio_uapi import Ioctl
from adapters.linux.iio import Iio
from adapters.linux.iio_buffer import BufferSpec, Capture, check_buffers
from adapters.linux.leds import Leds
from adapters.linux.lines import Lines, LineSpec, check_lines
from adapters.linux.network import Network
from adapters.linux.probe import Count, Probe, Rates, Share, Values
from adapters.linux.sensors import Hwmon, PowerSupply, Thermal
from adapters.linux.storage import BlockDevices, FileSystems
from adapters.linux.system import Frequency, Load, Memory, Pressure, Processors, SystemClock, Uptime
from edge_runtime.clock import Clock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.options import decode_options
from edge_runtime.ports import SampleSink
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
    Iio,
    Thermal,
    PowerSupply,
)

CLOSING_S = 2.0
"""How long giving the lines back may take before it goes on by itself."""

_MALFORMED = (ArithmeticError, LookupError, ValueError)
"""What a probe may raise over a file that holds what no kernel writes; its channels are unreadable then."""

_Arguments = ParamSpec("_Arguments")
_Result = TypeVar("_Result")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`root` is where /proc, /sys and /dev are looked for; `include` and `exclude` are globs over channel names."""

    root: str = "/"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    rescan_s: float = 10.0
    lines: dict[str, LineSpec] = {}
    buffers: dict[str, BufferSpec] = {}
    sensors: dict[str, SensorSpec] = {}


class Output(Protocol):
    """A source of actuators. Blocks, in a thread of its own."""

    def set(self, channel: str, state: str) -> None: ...

    def get(self, channel: str) -> str | None: ...


class _Threads(NamedTuple):
    """A sensor that hangs must not hold an actuator, and neither of them the event loop."""

    sensing: ThreadPoolExecutor
    acting: ThreadPoolExecutor


class LinuxAdapter:
    """Reads and acts in threads of its own; streams on the loop, by descriptors that tell when there is something."""

    def __init__(
        self,
        name: str,
        options: Options,
        clock: Clock,
        *,
        probes: Sequence[Probe] = (),
        lines: Lines | None = None,
        ioctl: Ioctl = fcntl.ioctl,
    ) -> None:
        """`probes` are sources beyond `PROBES`; `lines` is for boards that have names of their own for them."""
        self.name = name
        self._options = options
        self._clock = clock
        root = options.root.rstrip("/")
        self._leds = Leds(Path(options.root))
        self._root = root
        self._lines = lines or Lines(root, options.lines, clock, ioctl)
        self._chips = Chips(root, options.sensors, ioctl)
        self._probes = [*(probe(root) for probe in PROBES), self._chips, *probes]
        self._rates = Rates()
        self._threads: _Threads | None = None
        self._channels: dict[str, ChannelInfo] = {}
        self._seen: dict[str, tuple[ChannelKind, Probe | Output | Feed]] = {}
        self._held: list[tuple[ChannelInfo, Probe | Output | Feed]] = []
        self._feedings: set[Feeding] = set()
        self._captured: dict[str, int] = {}
        self._counters = {"reads": 0, "unreadable": 0, "rescans": 0}

    async def open(self) -> None:
        if self._threads is None:
            self._threads = _Threads(ThreadPoolExecutor(1, f"adapter-{self.name}"), ThreadPoolExecutor(1, f"adapter-{self.name}-acting"))
        self._seen = {}
        try:
            self._held = await self._acting(self._take)
            await self._sensing(self._scan)
        except BaseException:
            await self.close()
            raise
        if not self._channels:
            await self.close()
            raise AdapterError(
                f"{self.name}: nothing to read below {self._options.root}; is /proc mounted, and do `include`/`exclude` leave any?"
            )

    async def close(self) -> None:
        threads, self._threads = self._threads, None
        if threads is None:
            return
        for feeding in list(self._feedings):
            feeding.end(AdapterDisconnected(f"{self.name}: closed meanwhile"))
        threads.sensing.submit(self._rates.clear)
        await asyncio.wait({asyncio.wrap_future(threads.acting.submit(self._give_back))}, timeout=CLOSING_S)
        for thread in threads:
            thread.shutdown(wait=False)

    def channels(self) -> Sequence[ChannelInfo]:
        return list(self._channels.values())

    def health(self) -> Health:
        counters = self._counters | self._lines.counters | self._captured
        words = [f"{len(self._channels)} channels below {self._options.root}", *self._chips.complaints.values()]
        return Health(self._threads is not None, "; ".join(words), counters)

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        for channel in channels:
            self._require(channel, ChannelKind.SAMPLED)
        return await self._sensing(self._read, tuple(channels))

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        feeds: dict[Feed, list[str]] = {}
        for channel in channels:
            feeds.setdefault(cast(Feed, self._require(channel, ChannelKind.STREAMING)), []).append(channel)
        feeding = Feeding(sink)
        self._feedings.add(feeding)
        try:
            for feed, wanted in feeds.items():
                feeding.add(feed, *await self._acting(feed.start, tuple(wanted)))
            await feeding.ended()
        finally:
            self._feedings.discard(feeding)
            feeding.end()
            self._let_go(feeds)

    async def actuate(self, channel: str, state: str) -> None:
        output = cast(Output, self._require(channel, ChannelKind.ACTUATOR))
        await self._acting(output.set, channel, state)

    async def actuator_state(self, channel: str) -> str | None:
        output = cast(Output, self._require(channel, ChannelKind.ACTUATOR))
        return await self._acting(output.get, channel)

    async def changes(self) -> AsyncIterator[Sequence[ChannelInfo]]:
        """Looks again every `rescan_s`; a device that was plugged in or out gives a new list."""
        while True:
            await asyncio.sleep(self._options.rescan_s)
            before = self._channels
            await self._sensing(self._scan)
            self._counters["rescans"] += 1
            if self._channels != before:
                yield self.channels()

    # -- in the threads -----------------------------------------------------------------------------------------------------

    def _take(self) -> list[tuple[ChannelInfo, Probe | Output | Feed]]:
        self._lines.open()
        feeds = self._lines.feeds()
        held: list[tuple[ChannelInfo, Probe | Output | Feed]] = [
            (info, feeds.get(info.channel, self._lines)) for info in self._lines.channels()
        ]
        for name, spec in self._options.buffers.items():
            capture = Capture(self._root, name, spec, self._captured)
            held += [(info, capture) for info in capture.channels()]
        return held

    def _give_back(self) -> None:
        for capture in {source for _, source in self._held if isinstance(source, Capture)}:
            capture.stop()
        self._held = []
        self._lines.close()

    def _scan(self) -> None:
        found: list[tuple[ChannelInfo, Probe | Output | Feed]] = []
        for probe in self._probes:
            with suppress(*_MALFORMED):
                found += [(info, probe) for info in probe.discover()]
        found += [(info, self._leds) for info in self._leds.channels()]
        found += self._held
        wanted = {info.channel: (info, source) for info, source in found if self._wanted(info.channel)}
        self._channels = {channel: info for channel, (info, _) in wanted.items()}
        self._seen = self._seen | {channel: (info.kind, source) for channel, (info, source) in wanted.items()}

    def _read(self, channels: Sequence[str]) -> list[Sample]:
        """Each source once, whatever number of its channels is asked for."""
        asked: dict[Probe, list[str]] = {}
        for channel in channels:
            asked.setdefault(cast(Probe, self._seen[channel][1]), []).append(channel)
        samples: dict[str, Sample] = {}
        for probe, wanted in asked.items():
            values: Values = {}
            with suppress(*_MALFORMED):
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
            if not all(map(isfinite, value[: 2 if isinstance(value, Share) else 1])):
                return self._sample(channel, None, at_ns)
            rate, quality = self._rates.rate(channel, value, at_ns)
            return Sample(channel, rate, quality=quality)
        return Sample(channel, value) if isfinite(value) else self._sample(channel, None, at_ns)

    # -- on the loop ---------------------------------------------------------------------------------------------------------

    async def _sensing(self, call: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        return await self._in(self._working().sensing, call, *arguments, **named)

    async def _acting(self, call: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs) -> _Result:
        return await self._in(self._working().acting, call, *arguments, **named)

    async def _in(
        self, thread: ThreadPoolExecutor, call: Callable[_Arguments, _Result], *arguments: _Arguments.args, **named: _Arguments.kwargs
    ) -> _Result:
        result = await asyncio.wrap_future(thread.submit(call, *arguments, **named))
        if self._threads is None or thread not in self._threads:
            raise AdapterDisconnected(f"{self.name}: closed meanwhile")
        return result

    def _working(self) -> _Threads:
        if self._threads is None:
            raise AdapterDisconnected(f"{self.name}: not open")
        return self._threads

    def _wanted(self, channel: str) -> bool:
        included, excluded = (
            any(fnmatch.fnmatchcase(channel, glob) for glob in globs) for globs in (self._options.include, self._options.exclude)
        )
        return included and not excluded

    def _let_go(self, feeds: Iterable[Feed]) -> None:
        if self._threads is not None:
            for feed in feeds:
                self._threads.acting.submit(feed.stop)

    def _require(self, channel: str, kind: ChannelKind) -> Probe | Output | Feed:
        """A channel that was here since `open` is known; whether it still can be read is told by its quality."""
        self._working()
        known_kind, source = self._seen.get(channel, (None, None))
        if source is None or known_kind is not kind:
            known = [name for name, info in self._channels.items() if info.kind is kind]
            near = get_close_matches(channel, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: no such {kind.value} channel `{channel}` here{hint} (known: {', '.join(known) or 'none'})")
        return source


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock, *, ioctl: Ioctl = fcntl.ioctl) -> LinuxAdapter:
    """The factory behind the driver `linux`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    check_options(decoded, name)
    return LinuxAdapter(name, decoded, clock, ioctl=ioctl)


def check_options(options: Options, name: str) -> None:
    """Raises InputError for options that contradict themselves."""
    if not options.rescan_s > 0:
        raise InputError(f"{name}.options.rescan_s: expected a number above 0, got {options.rescan_s:g}")
    check_lines(options.lines, name)
    check_buffers(options.buffers, name)
    check_sensors(options.sensors, name)
