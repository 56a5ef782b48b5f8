"""Any CoAP device as an adapter: a map of its resources says which are read, which are observed and which are actuators."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches

import msgspec

from adapters.coap.client import Answer, CoapClient
from adapters.coap.content import Form, Unreadable, number
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.ports import SampleSink
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

_OBSERVE_AGAIN_S = 1.0


class ResourceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One resource. With `observe` it streams, with `states` (name to payload of a PUT) it is an actuator, else it is read when asked.

    The value is `scale` * (the number at `field`) + `offset`, in `unit`.
    """

    path: str
    unit: str = ""
    observe: bool = False
    format: Form = "auto"
    field: str = ""
    scale: float = 1.0
    offset: float = 0.0
    states: dict[str, str] | None = None

    @property
    def kind(self) -> ChannelKind:
        if self.states is not None:
            return ChannelKind.ACTUATOR
        return ChannelKind.STREAMING if self.observe else ChannelKind.SAMPLED


class CoapDevice:
    """`PlatformAdapter` with sampled and observed sensors and actuators."""

    def __init__(self, name: str, uri: str, timeout_s: float, resources: Mapping[str, ResourceSpec]) -> None:
        self.name = name
        self._resources = dict(resources)
        self._client = CoapClient(uri, timeout_s)
        self._open = False
        self._counters = {"unreadable": 0, "refused": 0, "observed_again": 0}

    async def open(self) -> None:
        """Takes any answer to `/.well-known/core` as a sign of life."""
        try:
            await self._client.open()
            await self._client.get("/.well-known/core")
        except BaseException:
            await self.close()
            raise
        self._open = True

    async def close(self) -> None:
        self._open = False
        await self._client.close()

    def channels(self) -> Sequence[ChannelInfo]:
        return [
            ChannelInfo(channel, spec.kind, spec.unit, states=tuple(spec.states or ()), description=f"{self._client.uri}{spec.path}")
            for channel, spec in self._resources.items()
        ]

    def health(self) -> Health:
        return Health(self._open, self._client.uri if self._open else "not open", self._counters | self._client.counters())

    async def read(self, channels: Sequence[str]) -> Sequence[Sample]:
        specs = {channel: self._spec(channel, ChannelKind.SAMPLED) for channel in channels}
        answers = await asyncio.gather(*(self._client.get(spec.path) for spec in specs.values()))
        samples = {channel: self._sample(channel, answer) for channel, answer in zip(specs, answers, strict=True)}
        return [samples[channel] for channel in channels]

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        specs = {channel: self._spec(channel, ChannelKind.STREAMING) for channel in channels}
        try:
            async with asyncio.TaskGroup() as tasks:
                for channel, spec in specs.items():
                    tasks.create_task(self._observe(channel, spec, sink), name=f"{self.name}:{channel}")
        except* AdapterError as group:
            raise AdapterDisconnected(f"{self.name}: {group.exceptions[0]}") from group

    async def actuate(self, channel: str, state: str) -> None:
        spec = self._spec(channel, ChannelKind.ACTUATOR)
        states = spec.states or {}
        if state not in states:
            raise InputError(f"{self.name}: {channel} has the states {', '.join(states)}; got `{state}`")
        answer = await self._client.put(spec.path, states[state].encode())
        if not answer.ok:
            self._counters["refused"] += 1
            raise AdapterError(f"{self.name}: {channel} to `{state}` was refused with {answer.said}")

    async def actuator_state(self, channel: str) -> str | None:
        spec = self._spec(channel, ChannelKind.ACTUATOR)
        answer = await self._client.get(spec.path)
        if not answer.ok:
            return None
        said = answer.payload[:64].decode("utf-8", "replace").strip()
        return next((state for state, payload in (spec.states or {}).items() if said == payload.split(" ")[0]), None)

    async def _observe(self, channel: str, spec: ResourceSpec, sink: SampleSink) -> None:
        """Notifications; after a server ends them, it is asked again."""
        while True:
            async for answer in self._client.observe(spec.path):
                sink(self._sample(channel, answer))
            self._counters["observed_again"] += 1
            await asyncio.sleep(_OBSERVE_AGAIN_S)

    def _sample(self, channel: str, answer: Answer) -> Sample:
        spec = self._resources[channel]
        with suppress(Unreadable):
            if answer.ok:
                return Sample(channel, spec.scale * number(answer.payload, answer.format, spec.format, spec.field) + spec.offset)
        self._counters["unreadable"] += 1
        return Sample(channel, quality=Quality.BAD)

    def _spec(self, channel: str, kind: ChannelKind) -> ResourceSpec:
        if not self._open:
            raise AdapterDisconnected(f"{self.name}: not open")
        spec = self._resources.get(channel)
        if spec is None or spec.kind is not kind:
            known = [name for name, other in self._resources.items() if other.kind is kind]
            near = get_close_matches(channel, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: no such {kind.value} channel `{channel}` here{hint} (known: {', '.join(known) or 'none'})")
        return spec


def check_resources(resources: Mapping[str, ResourceSpec], name: str) -> None:
    """Raises InputError for a map that cannot be."""
    if not resources:
        raise InputError(f"{name}.options.resources: expected one or more resources, got none; leave it out for a node of ours")
    for channel, spec in resources.items():
        where = f"{name}.options.resources.{channel}"
        if not spec.path.startswith("/"):
            raise InputError(f"{where}.path: expected a path such as /sensors/temp, got `{spec.path}`")
        if spec.states is not None and (not spec.states or spec.observe):
            raise InputError(f"{where}: expected one or more states and no `observe` for an actuator")
