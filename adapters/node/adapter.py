"""A node as an adapter: its sensor, its inferences and its lines as channels, leases renewed, resets noticed and made up for.

What carries the messages is a `Node`; back-off and schedules are the runtime's.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches

import msgspec

from adapters.node.interface import Node
from adapters.node.messages import (
    MOST_LEASE_MS,
    Capability,
    Hello,
    ModelState,
    NodeReading,
    NodeRefused,
    Notice,
    NoticeKind,
    Result,
    Status,
)
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.ports import SampleSink
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

TEMPERATURE = "temperature"
TOP = "inference/top"

_OUTPUT = "inference/"
_ALIVE_S = 5.0
_GOODBYE_S = 1.0
_RENEWALS_PER_LEASE = 3
_COLDEST, _WARMEST = -128.0, 128.0


class LineSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An output of the node: its number, what its levels 0 and 1 are called, and how long it stays away from its safe level unheard."""

    line: int
    states: tuple[str, str] = ("off", "on")
    lease_s: float = 5.0


class NodeOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What both links share. With `period_ms` 0 the node is read when asked and does not speak by itself."""

    period_ms: int = 100
    node_inference: bool = False
    lines: dict[str, LineSpec] | None = None


class NodeAdapter:
    """One node: `PlatformAdapter` with sensors (sampled or streaming, by `period_ms`), actuators and hot-plug."""

    def __init__(self, name: str, options: NodeOptions, node: Node) -> None:
        self.name = name
        self._options = options
        self._node = node
        self._hello: Hello | None = None
        self._model: ModelState | None = None
        self._lines: dict[str, LineSpec] = {}
        self._safe: dict[str, int] = {}
        self._commanded: dict[str, int] = {}
        self._renewal: asyncio.Task[None] | None = None
        self._feeds: list[tuple[frozenset[str], SampleSink]] = []
        self._lost = "not open"
        self._boots = 0
        self._changed = asyncio.Event()
        self._counters = {"boots_seen": 0, "leases_expired": 0, "leases_renewed": 0, "sensor_errors": 0, "rolled_back": 0}

    async def open(self) -> None:
        await self.close()
        self._lost, self._hello = "", None
        try:
            await self._node.open(self)
            await self._learn()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        self._lost = self._lost or "not open"
        self._commanded.clear()
        renewal, self._renewal = self._renewal, None
        if renewal is not None:
            renewal.cancel()
            with suppress(asyncio.CancelledError):
                await renewal
        await self._node.close()

    def channels(self) -> Sequence[ChannelInfo]:
        kind = ChannelKind.STREAMING if self._options.period_ms else ChannelKind.SAMPLED
        board = self._hello.board if self._hello else ""
        infos = [ChannelInfo(TEMPERATURE, kind, "degC", minimum=_COLDEST, maximum=_WARMEST, description=f"sensor of the node ({board})")]
        if self._options.node_inference and self._model is not None:
            name = f"{self._model.name} version {self._model.version}, run by the node"
            infos.append(ChannelInfo(TOP, kind, "count", description=f"largest output of {name}"))
            if self._model.output_scale:
                infos += [ChannelInfo(f"{_OUTPUT}{index}", kind, description=name) for index in range(self._model.outputs)]
        for channel, spec in self._lines.items():
            infos.append(ChannelInfo(channel, ChannelKind.ACTUATOR, states=spec.states, description=f"line {spec.line} of the node"))
        return infos

    def health(self) -> Health:
        model = f"; model {self._model.name} version {self._model.version}" if self._model else ""
        return Health(not self._lost, self._lost or self._node.describe() + model, self._counters | self._node.counters())

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        for channel in channels:
            self._require(channel, ChannelKind.SAMPLED)
        samples: dict[str, Sample] = {}
        if TEMPERATURE in channels:
            samples |= self._sensed(await self._reading())
        if any(channel.startswith(_OUTPUT) for channel in channels):
            samples |= await self._inferred()
        return [samples.get(channel) or Sample(channel, quality=Quality.BAD) for channel in channels]

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        for channel in channels:
            self._require(channel, ChannelKind.STREAMING)
        feed = (frozenset(channels), sink)
        self._feeds.append(feed)
        try:
            while True:
                boots = self._boots
                await self._subscribe()
                while boots == self._boots:
                    self._check_link()
                    await self._changed.wait()
        finally:
            self._feeds.remove(feed)
            with suppress(AdapterError, TimeoutError):
                async with asyncio.timeout(_GOODBYE_S):
                    await self._subscribe()

    async def actuate(self, channel: str, state: str) -> None:
        spec = self._line(channel)
        if state not in spec.states:
            raise InputError(f"{self.name}: {channel} has the states {', '.join(spec.states)}; got `{state}`")
        level = spec.states.index(state)
        self._commanded[channel] = level
        await self._set(channel, spec, level)
        if level == self._safe[channel]:
            self._commanded.pop(channel, None)
        elif self._renewal is None:
            self._renewal = asyncio.create_task(self._renew(), name=f"{self.name}:leases")

    async def actuator_state(self, channel: str) -> str | None:
        spec = self._line(channel)
        level = await self._node.level(spec.line)
        return spec.states[level] if level in (0, 1) else None

    async def changes(self) -> AsyncIterator[Sequence[ChannelInfo]]:
        """Looks after the node: a reset is found and its channels are told anew; raises AdapterDisconnected when it is gone."""
        boots = self._boots
        while True:
            self._check_link()
            with suppress(TimeoutError):
                async with asyncio.timeout(_ALIVE_S):
                    await self._changed.wait()
            before = self._hello
            if boots == self._boots:
                self._hello = await self._node.hello()
                if before is not None and self._hello.boots != before.boots:
                    self._booted()
            if boots != self._boots:
                boots = self._boots
                await self._learn()
                yield self.channels()

    # -- what the node says by itself -----------------------------------------------------------------------------------------

    def on_reading(self, reading: NodeReading) -> None:
        self._hand_out(self._sensed(reading))

    def on_result(self, result: Result) -> None:
        self._hand_out(self._outputs(result))

    def on_notice(self, notice: Notice) -> None:
        if notice.kind == NoticeKind.BOOTED:
            self._booted()
        elif notice.kind == NoticeKind.LEASE_EXPIRED:
            self._counters["leases_expired"] += 1
        elif notice.kind == NoticeKind.ROLLED_BACK:
            self._counters["rolled_back"] += 1
            self._booted()

    def on_lost(self, reason: str) -> None:
        self._lost = self._lost or reason
        self._wake()

    # -- samples --------------------------------------------------------------------------------------------------------------

    def _hand_out(self, samples: Mapping[str, Sample]) -> None:
        for wanted, sink in self._feeds:
            for channel, sample in samples.items():
                if channel in wanted:
                    sink(sample)

    def _sensed(self, reading: NodeReading) -> dict[str, Sample]:
        if reading.celsius is None:
            self._counters["sensor_errors"] += 1
            return {TEMPERATURE: Sample(TEMPERATURE, quality=Quality.BAD)}
        good = _COLDEST <= reading.celsius <= _WARMEST
        return {TEMPERATURE: Sample(TEMPERATURE, reading.celsius, quality=Quality.GOOD if good else Quality.UNCERTAIN)}

    def _outputs(self, result: Result) -> dict[str, Sample]:
        samples = {TOP: Sample(TOP, float(result.top))}
        if self._model is not None and self._model.output_scale:
            for index, value in enumerate(result.values(self._model)):
                samples[f"{_OUTPUT}{index}"] = Sample(f"{_OUTPUT}{index}", value)
        return samples

    async def _reading(self) -> NodeReading:
        try:
            return await self._node.read()
        except NodeRefused as err:
            if err.status is not Status.HARDWARE:
                raise
            return NodeReading(0, 0, None)

    async def _inferred(self) -> dict[str, Sample]:
        """Nothing while the node's window is not full."""
        try:
            return self._outputs(await self._node.infer())
        except NodeRefused as err:
            if err.status not in (Status.STATE, Status.HARDWARE):
                raise
            return {}

    # -- the node's state -------------------------------------------------------------------------------------------------------

    async def _learn(self) -> None:
        hello, self._model = await self._node.hello(), await self._node.model()
        states = await self._node.lines() if hello.capabilities & Capability.LINES else ()
        specs = self._options.lines
        self._lines = {f"line{number}": LineSpec(number) for number in range(len(states))} if specs is None else dict(specs)
        for channel, spec in self._lines.items():
            if spec.line >= len(states):
                raise AdapterError(
                    f"{self.name}.options.lines.{channel}: the node has {len(states)} lines, counted from 0; got {spec.line}"
                )
        self._safe = {channel: states[spec.line].safe_level for channel, spec in self._lines.items()}
        self._hello = hello

    async def _subscribe(self) -> None:
        """Asks the node for what all feeds together want."""
        wanted = frozenset[str]().union(*(channels for channels, _ in self._feeds))
        results = any(channel.startswith(_OUTPUT) for channel in wanted)
        self._check_link()
        period_ms = self._options.period_ms if wanted else 0
        await self._node.subscribe(period_ms, readings=TEMPERATURE in wanted, results=results)

    async def _set(self, channel: str, spec: LineSpec, level: int) -> None:
        self._check_link()
        lease_ms = 0 if level == self._safe[channel] else round(spec.lease_s * 1000)
        await self._node.actuate(spec.line, level, lease_ms)

    async def _renew(self) -> None:
        """Keeps every commanded line away from its safe level, also over a reset, until the runtime takes it back."""
        try:
            while self._commanded:
                shortest_s = min(self._lines[channel].lease_s for channel in self._commanded)
                await asyncio.sleep(shortest_s / _RENEWALS_PER_LEASE)
                for channel, level in list(self._commanded.items()):
                    with suppress(NodeRefused):
                        await self._set(channel, self._lines[channel], level)
                        self._counters["leases_renewed"] += 1
        except AdapterError as err:
            self.on_lost(str(err))
        finally:
            if self._renewal is asyncio.current_task():
                self._renewal = None

    def _booted(self) -> None:
        self._counters["boots_seen"] += 1
        self._boots += 1
        self._wake()

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _check_link(self) -> None:
        if self._lost:
            raise AdapterDisconnected(f"{self.name}: {self._lost}")
        if self._hello is None:
            raise AdapterDisconnected(f"{self.name}: not known yet, the node is being asked")

    def _line(self, channel: str) -> LineSpec:
        self._require(channel, ChannelKind.ACTUATOR)
        return self._lines[channel]

    def _require(self, channel: str, kind: ChannelKind) -> None:
        self._check_link()
        known = [info.channel for info in self.channels() if info.kind is kind]
        if channel not in known:
            near = get_close_matches(channel, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: no such {kind.value} channel `{channel}` here{hint} (known: {', '.join(known) or 'none'})")


def check_options(options: NodeOptions, name: str) -> None:
    """Raises InputError for options that cannot be."""
    if not 0 <= options.period_ms <= 60_000:
        raise InputError(f"{name}.options.period_ms: expected 0 (read when asked) or 1 to 60000, got {options.period_ms}")
    for channel, spec in (options.lines or {}).items():
        where = f"{name}.options.lines.{channel}"
        if channel == TEMPERATURE or channel.startswith(_OUTPUT) or not channel:
            raise InputError(f"{where}: this name is taken by a channel of the node; choose another")
        if not 0 <= spec.line <= 255 or spec.states[0] == spec.states[1] or not all(spec.states):
            raise InputError(f"{where}: expected a line of 0 to 255 and two different states, got {spec.line} and {list(spec.states)}")
        if not 0.1 <= spec.lease_s <= MOST_LEASE_MS / 1000:
            raise InputError(f"{where}.lease_s: expected 0.1 to {MOST_LEASE_MS // 1000} seconds, got {spec.lease_s:g}")
