"""The adapter `meter`: listens to one meter's serial line and streams what it says. It never writes to the meter.

Channels are those of telegrams that came: `open` waits for the first whole one. New codes (a PIN was entered, a gas meter was
paired) become channels as they appear.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Any, Literal, Protocol

import msgspec

from adapters.meters.dsmr import DsmrStream
from adapters.meters.framing import Counts
from adapters.meters.readings import MeterReading, channel_name, parse_obis
from adapters.meters.sml import SmlStream
from adapters.serial_port import Line, SerialPort
from edge_runtime.clock import Clock
from edge_runtime.errors import AdapterDisconnected, InputError
from edge_runtime.options import decode_options
from edge_runtime.ports import SampleSink
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

MAX_CHANNELS = 512
_SILENCES = 4
"""After how many silences in a row the line is opened again."""

_BAUD = {"sml": 9_600, "dsmr": 115_200}


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`obis` names channels by code: `{heat_pump: "1-1:1.8.0"}`; `silence_s` is how long a meter may say nothing."""

    port: str
    protocol: Literal["sml", "dsmr"]
    baud: int | None = None
    frame: str = "8N1"
    silence_s: float = 30.0
    first_s: float = 15.0
    obis: dict[str, str] = {}


class MeterStream(Protocol):
    """A protocol: bytes into the readings of whole telegrams."""

    bad_messages: int

    @property
    def counts(self) -> Counts: ...

    def feed(self, data: bytes) -> Iterator[list[MeterReading]]: ...


class MeterAdapter:
    """One meter on one line. Bytes are parsed as they come, on the event loop; a telegram costs well below a millisecond."""

    def __init__(self, name: str, options: Options, clock: Clock) -> None:
        self.name = name
        self._options = options
        self._clock = clock
        line = Line(port=options.port, baud=options.baud or _BAUD[options.protocol], frame=options.frame)
        line.check(name)
        self._port = SerialPort(name, line)
        self._names = _names(name, options.obis)
        self._stream = _stream(options.protocol)
        self._channels: dict[str, ChannelInfo] = {}
        self._identity: dict[str, str] = {}
        self._counters = {"telegrams": 0, "received_bytes": 0, "silences": 0}
        self._listeners: set[_Listener] = set()
        self._spoke = asyncio.Event()
        self._grew = asyncio.Event()
        self._lost: AdapterDisconnected | None = None
        self._silent = False

    async def open(self) -> None:
        self._stream, self._lost, self._silent, self._channels = _stream(self._options.protocol), None, False, {}
        self._spoke.clear()
        before = self._counters["received_bytes"]
        await self._port.open(self._received, self._line_lost)
        try:
            async with asyncio.timeout(self._options.first_s):
                while not self._channels:
                    await self._next()
        except TimeoutError:
            await self.close()
            raise AdapterDisconnected(self._nothing(self._counters["received_bytes"] - before)) from None
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._port.close()
        self._line_lost(AdapterDisconnected(f"{self.name}: not open"))

    def channels(self) -> Sequence[ChannelInfo]:
        return list(self._channels.values())

    def health(self) -> Health:
        counts = self._stream.counts
        counters = self._counters | {
            "bad_checksums": counts.bad_checks,
            "bad_messages": self._stream.bad_messages,
            "resyncs": counts.resyncs,
            "dropped_bytes": counts.dropped_bytes,
        }
        if not self._port.is_open or self._lost is not None:
            return Health(False, str(self._lost or f"{self.name}: not open"), counters)
        identity = " ".join(self._identity.values())
        detail = f"silent for more than {self._options.silence_s:g} s" if self._silent else f"{len(self._channels)} channels {identity}"
        return Health(not self._silent, detail.strip(), counters)

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        for channel in channels:
            self._require(channel)
        listener = _Listener(channels, sink)
        self._listeners.add(listener)
        try:
            await self._watch(listener)
        finally:
            self._listeners.discard(listener)

    async def changes(self) -> AsyncIterator[Sequence[ChannelInfo]]:
        """A new list when the meter says something that it never said before."""
        while True:
            self._grew.clear()
            await self._grew.wait()
            yield self.channels()

    # -- what comes over the line ----------------------------------------------------------------------------------------------

    def _received(self, data: bytes) -> None:
        self._counters["received_bytes"] += len(data)
        for readings in self._stream.feed(data):
            self._counters["telegrams"] += 1
            samples = [sample for reading in readings if (sample := self._sample(reading)) is not None]
            if samples:
                self._speak(samples)

    def _speak(self, samples: Sequence[Sample]) -> None:
        self._silent = False
        self._spoke.set()
        for listener in list(self._listeners):
            for sample in samples:
                listener.take(sample)

    def _sample(self, reading: MeterReading) -> Sample | None:
        """None for a text: it tells who the meter is, not what it measures."""
        value = reading.value
        if isinstance(value, str):
            if reading.obis.quantity == 96 and reading.obis.processing in (1, 50) and len(self._identity) < 8:
                self._identity[str(reading.obis)] = value[:64]
            return None
        code = str(reading.obis)
        channel = self._names.get(code) or reading.name or channel_name(reading.obis)
        if channel not in self._channels:
            if len(self._channels) >= MAX_CHANNELS:
                return None
            self._channels[channel] = ChannelInfo(channel, ChannelKind.STREAMING, reading.unit, description=f"OBIS {code}")
            self._grew.set()
        return Sample(channel, value, wall_ns=reading.wall_ns)

    def _line_lost(self, err: AdapterDisconnected) -> None:
        self._lost = err
        self._spoke.set()

    # -- waiting ---------------------------------------------------------------------------------------------------------------

    async def _next(self) -> None:
        """Returns when a telegram came. Raises AdapterDisconnected when the line is gone."""
        if self._lost is None:
            self._spoke.clear()
            await self._spoke.wait()
        if self._lost is not None:
            raise AdapterDisconnected(str(self._lost))

    async def _watch(self, listener: _Listener) -> None:
        """Until the line is gone. A silence makes the channels unknown; a long one is ended by opening the line again."""
        silences = 0
        while True:
            try:
                async with asyncio.timeout(self._options.silence_s):
                    await self._next()
                silences = 0
            except TimeoutError:
                silences += 1
                self._counters["silences"] += 1
                self._silent = True
                listener.silence()
                if silences == _SILENCES:
                    raise AdapterDisconnected(
                        f"{self.name}: no telegram from {self._options.port} for {silences * self._options.silence_s:g} s"
                    ) from None

    def _nothing(self, received: int) -> str:
        counts, options = self._stream.counts, self._options
        came = f"{received} bytes, of them {counts.bad_checks} telegrams with a bad checksum" if received else "nothing at all"
        hint = {
            "sml": "is the reading head on the meter's eye, and is the rate right (9600 for most)?",
            "dsmr": "is the request line (RTS of the P1 port) wired, and is the rate right (115200 8N1; before DSMR 4: 9600 7E1)?",
        }[options.protocol]
        return f"{self.name}: no whole {options.protocol} telegram from {options.port} within {options.first_s:g} s, but {came}; {hint}"

    def _require(self, channel: str) -> None:
        if not self._port.is_open:
            raise AdapterDisconnected(f"{self.name}: not open")
        if channel not in self._channels:
            near = get_close_matches(channel, self._channels, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: the meter has said nothing of `{channel}`{hint} (known: {', '.join(self._channels)})")


class _Listener:
    """One stream: passes on the channels asked for; a value with a time of its own only when that time is new."""

    def __init__(self, channels: Sequence[str], sink: SampleSink) -> None:
        self._sink = sink
        self._last: dict[str, tuple[float, int] | None] = dict.fromkeys(channels)

    def take(self, sample: Sample) -> None:
        if sample.channel not in self._last or sample.value is None:
            return
        if sample.wall_ns is not None:
            said = (sample.value, sample.wall_ns)
            if self._last[sample.channel] == said:
                return
            self._last[sample.channel] = said
        self._sink(sample)

    def silence(self) -> None:
        for channel in self._last:
            self._last[channel] = None
            self._sink(Sample(channel, None, quality=Quality.BAD))


def _stream(protocol: str) -> MeterStream:
    return SmlStream() if protocol == "sml" else DsmrStream()


def _names(name: str, obis: Mapping[str, str]) -> dict[str, str]:
    names: dict[str, str] = {}
    for channel, code in obis.items():
        parsed = parse_obis(code)
        if parsed is None:
            raise InputError(f"{name}.options.obis.{channel}: expected a code such as 1-0:1.8.0, got `{code}`")
        names[str(parsed)] = channel
    return names


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> MeterAdapter:
    """The factory behind the driver `meter`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    for key in ("silence_s", "first_s"):
        if not getattr(decoded, key) > 0:
            raise InputError(f"{name}.options.{key}: expected a number above 0, got {getattr(decoded, key):g}")
    return MeterAdapter(name, decoded, clock)
