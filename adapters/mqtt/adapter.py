"""The adapter `mqtt`: devices behind a broker of the plant as channels. What the messages mean is the business of the profiles.

One connection serves all devices of an instance. A channel is there once its device has spoken of it (or it is spelled out); what
the broker had kept is of unknown age and comes as UNCERTAIN. Messages that cannot be read are counted, never passed on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import msgspec

from adapters.mqtt.client import MqttOptions, MqttSession, client_id, matches, open_transport, parse_broker, read_password
from adapters.mqtt.generic import ChannelSpec, Generic
from adapters.mqtt.homeassistant import Discovery, EntitySpec, OwnEntities
from adapters.mqtt.points import BadPayload, Point, Presence, Profile, Publish, Said, chosen_number
from adapters.mqtt.shelly import open_profile
from adapters.mqtt.tasmota import Tasmota
from adapters.mqtt.zigbee2mqtt import Zigbee2Mqtt
from edge_runtime.clock import Clock
from edge_runtime.errors import AdapterDisconnected, InputError, TransportError
from edge_runtime.options import decode_options
from edge_runtime.ports import SampleSink
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

MAX_CHANNELS = 4096
OWN = "entities"
"""The device that this gateway's own entities are channels of."""

_MAX_PACKET_BYTES = 8 * 1024 * 1024
_MAX_TO_SEND = 256
_log = logging.getLogger(__name__)


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device or bridge. `topic`: a Shelly's id or prefix, a Tasmota's topic, the base of Zigbee2MQTT, the discovery prefix."""

    profile: Literal["shelly", "tasmota", "zigbee2mqtt", "homeassistant", "generic"]
    topic: str = ""
    generation: int = 2
    channels: dict[str, ChannelSpec] = {}
    availability_topic: str = ""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`devices` by name; `entities` are shown by Home Assistant as those of this gateway, under `identity`."""

    broker: str
    devices: dict[str, DeviceSpec] = {}
    entities: dict[str, EntitySpec] = {}
    identity: str = ""
    discovery_prefix: str = "homeassistant"
    username: str | None = None
    password_file: str | None = None
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    keepalive_s: int = 30
    first_s: float = 5.0


class MqttAdapter:
    """Devices behind one broker. Everything happens on the event loop; nothing blocks."""

    def __init__(self, name: str, options: Options, clock: Clock) -> None:
        self.name = name
        self._options = options
        self._clock = clock
        self._asker = client_id(f"{name}-{secrets.token_hex(4)}")
        self._link = open_transport(_mqtt_options(name, options, self._asker))
        self._own = OwnEntities(options.discovery_prefix, options.identity or name, options.entities) if options.entities else None
        self._profiles: dict[str, Profile] = {}
        self._channels: dict[str, tuple[Profile, Point, ChannelInfo]] = {}
        self._latest: dict[str, Sample] = {}
        self._states: dict[str, str | None] = {}
        self._gone: set[str] = set()
        self._sinks: dict[object, tuple[frozenset[str], SampleSink]] = {}
        self._counters = {"messages": 0, "bad_messages": 0, "commands": 0, "channels_left_out": 0}
        self._session: MqttSession | None = None
        self._tending: asyncio.Task[None] | None = None
        self._lost = f"{name}: not open"
        self._to_send: deque[Publish] = deque(maxlen=_MAX_TO_SEND)
        self._spoke, self._grew, self._ended, self._news = asyncio.Event(), asyncio.Event(), asyncio.Event(), asyncio.Event()
        _check_devices(name, options)

    async def open(self) -> None:
        await self.close()
        self._profiles = self._built()
        self._channels, self._latest, self._states, self._gone = {}, {}, {}, set()
        will = (self._own.availability, b"offline") if self._own is not None else ("", b"")
        try:
            self._session = await self._link.connect(*will)
            self._lost = ""
            self._ended.clear()
            for device, profile in self._profiles.items():
                if isinstance(profile, (Generic, OwnEntities)):
                    self._take(device, profile, profile.points(), retained=False)
            subscribed = await self._subscribe(self._session, set())
            self._tending = asyncio.ensure_future(self._tend(self._session, subscribed))
            for profile in self._profiles.values():
                for message in profile.hello():
                    await self._send(self._session, message)
            await self._hear_first()
        except TransportError as err:
            await self.close()
            raise AdapterDisconnected(f"{self.name}: {err}") from err
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        tending, self._tending = self._tending, None
        session, self._session = self._session, None
        self._end(f"{self.name}: not open")
        if tending is not None:
            tending.cancel()
            await asyncio.wait((tending,))
        if session is not None:
            with contextlib.suppress(TransportError):
                if self._own is not None:
                    await self._send(session, Publish(self._own.availability, b"offline", retain=True))
            await session.close()

    def channels(self) -> Sequence[ChannelInfo]:
        return [info for _, _, info in self._channels.values()]

    def health(self) -> Health:
        counters = dict(self._counters)
        if self._lost:
            return Health(False, self._lost, counters)
        away = f", gone: {', '.join(sorted(self._gone))}" if self._gone else ""
        return Health(True, f"{len(self._channels)} channels of {len(self._profiles)} devices at {self._options.broker}{away}", counters)

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        for channel in channels:
            self._require(channel)
        asked, key = frozenset(channels), object()
        for channel in channels:
            if channel in self._latest:
                sink(self._latest[channel])
        self._sinks[key] = (asked, sink)
        try:
            await self._ended.wait()
            raise AdapterDisconnected(self._lost)
        finally:
            del self._sinks[key]

    async def changes(self) -> AsyncIterator[Sequence[ChannelInfo]]:
        """A new list when a device tells of something that it never told of before."""
        while True:
            self._grew.clear()
            await self._grew.wait()
            yield self.channels()

    async def actuate(self, channel: str, state: str) -> None:
        profile, point, info = self._require(channel)
        if info.kind is not ChannelKind.ACTUATOR:
            raise InputError(f"{self.name}: `{channel}` is not an actuator")
        if point.writable:
            chosen_number(point, state)
        elif state not in point.states:
            raise InputError(f"{self.name}: `{channel}` has the states {', '.join(point.states)}, not `{state}`")
        session = self._session
        if session is None:
            raise AdapterDisconnected(self._lost)
        try:
            await self._send(session, profile.command(point, state))
        except TransportError as err:
            raise AdapterDisconnected(f"{self.name}: {err}") from err
        self._counters["commands"] += 1
        if isinstance(profile, OwnEntities):
            self._states[channel] = state

    async def actuator_state(self, channel: str) -> str | None:
        """What the device said last; None when it never did, or is gone."""
        self._require(channel)
        return self._states.get(channel)

    # -- what comes from the broker --------------------------------------------------------------------------------------------

    def _heard(self, topic: str, payload: bytes, retained: bool) -> None:
        self._counters["messages"] += 1
        for device, profile in self._profiles.items():
            if not any(matches(wanted, topic) for wanted in profile.filters):
                continue
            try:
                said = profile.hear(topic, payload)
            except BadPayload as err:
                self._counters["bad_messages"] += 1
                _log.debug("mqtt_payload_unreadable adapter=%s topic=%r problem=%r", self.name, topic[:200], str(err))
                continue
            self._take(device, profile, said, retained)
            if isinstance(profile, OwnEntities) and (echo := profile.echo(topic, payload)):
                self._to_send.append(echo)
            if isinstance(profile, (OwnEntities, Discovery)):
                self._news.set()

    def _take(self, device: str, profile: Profile, said: Sequence[Said | Presence], retained: bool) -> None:
        for item in said:
            if isinstance(item, Presence):
                if item.online and f"{device}/{item.prefix}" in self._gone:
                    self._to_send.extend(profile.hello())
                    self._news.set()
                self._present(f"{device}/{item.prefix}", item.online)
                continue
            channel = f"{device}/{item.point.name}"
            if not self._know(channel, profile, item.point):
                continue
            if item.point.states or item.point.writable:
                if item.state is not None or channel not in self._states:
                    self._states[channel] = item.state
                continue
            quality = Quality.BAD if item.value is None else Quality.UNCERTAIN if retained else Quality.GOOD
            self._pass(Sample(channel, item.value, quality=quality, wall_ns=item.wall_ns))
        self._spoke.set()

    def _know(self, channel: str, profile: Profile, point: Point) -> bool:
        known = self._channels.get(channel)
        if known is not None and known[1] == point:
            return True
        if known is None and len(self._channels) >= MAX_CHANNELS:
            self._counters["channels_left_out"] += 1
            return False
        self._channels[channel] = (profile, point, _info(channel, point))
        self._grew.set()
        return True

    def _present(self, prefix: str, online: bool) -> None:
        """A device that is gone knows nothing: its channels are BAD until it speaks again."""
        if online:
            self._gone.discard(prefix)
            return
        if any(channel.startswith(prefix) for channel in self._channels):
            self._gone.add(prefix)
        for channel, (_, _, info) in self._channels.items():
            if not channel.startswith(prefix):
                continue
            if info.kind is ChannelKind.ACTUATOR:
                self._states[channel] = None
            else:
                self._pass(Sample(channel, None, quality=Quality.BAD))

    def _pass(self, sample: Sample) -> None:
        self._latest[sample.channel] = sample
        for asked, sink in list(self._sinks.values()):
            if sample.channel in asked:
                sink(sample)

    # -- the link --------------------------------------------------------------------------------------------------------------

    async def _tend(self, session: MqttSession, subscribed: set[str]) -> None:
        """While the link lasts: subscribes to what is announced, echoes what people moved, asks who is back. Then tells of the end."""
        closed = asyncio.ensure_future(session.closed())
        try:
            while not closed.done():
                news = asyncio.ensure_future(self._news.wait())
                try:
                    await asyncio.wait((closed, news), return_when=asyncio.FIRST_COMPLETED)
                finally:
                    news.cancel()
                if closed.done():
                    break
                self._news.clear()
                subscribed = await self._subscribe(session, subscribed)
                while self._to_send:
                    await self._send(session, self._to_send.popleft())
            self._end(f"{self.name}: {closed.result()}")
        except TransportError as err:
            self._end(f"{self.name}: {err}")
        finally:
            closed.cancel()

    async def _subscribe(self, session: MqttSession, before: set[str]) -> set[str]:
        wanted = self._filters()
        for topic in sorted(wanted - before):
            await session.subscribe_retained(topic, self._heard)
        return before | wanted

    def _filters(self) -> set[str]:
        return {topic for profile in self._profiles.values() for topic in profile.filters}

    async def _send(self, session: MqttSession, message: Publish) -> None:
        await session.publish(message.topic, message.payload, qos=1, retain=message.retain)

    async def _hear_first(self) -> None:
        """Until every device has told all that it has, or the time for that is over. Raises AdapterDisconnected when none has spoken."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._options.first_s):
                while not self._lost and not all(profile.complete for profile in self._profiles.values()):
                    self._spoke.clear()
                    await self._spoke.wait()
        if self._lost:
            raise AdapterDisconnected(self._lost)
        if not self._channels:
            topics = ", ".join(sorted(self._filters())[:4])
            raise AdapterDisconnected(
                f"{self.name}: none of {', '.join(self._profiles)} has spoken within {self._options.first_s:g} s (listening to {topics}); "
                "is its topic right, and is MQTT switched on in it?"
            )

    def _end(self, reason: str) -> None:
        self._lost = reason
        self._ended.set()
        self._spoke.set()

    def _require(self, channel: str) -> tuple[Profile, Point, ChannelInfo]:
        if self._lost:
            raise AdapterDisconnected(self._lost)
        if channel not in self._channels:
            near = get_close_matches(channel, self._channels, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: nothing was heard of `{channel}`{hint} (known: {', '.join(list(self._channels)[:20])})")
        return self._channels[channel]

    def _built(self) -> dict[str, Profile]:
        profiles: dict[str, Profile] = {name: _profile(name, spec, self._asker) for name, spec in self._options.devices.items()}
        if self._own is not None:
            profiles[OWN] = self._own
        return profiles


def _info(channel: str, point: Point) -> ChannelInfo:
    about = "; ".join(filter(None, (point.description, f"0..: {', '.join(point.choices)}" if point.choices else "")))
    if point.states or point.writable:
        unit = point.unit if point.writable else ""
        return ChannelInfo(channel, ChannelKind.ACTUATOR, unit, 0.0, point.minimum, point.maximum, point.states, about)
    return ChannelInfo(channel, ChannelKind.STREAMING, point.unit, description=about)


def _profile(name: str, spec: DeviceSpec, asker: str) -> Profile:
    if spec.profile == "generic":
        return Generic(name, spec.channels, spec.availability_topic)
    if spec.profile == "shelly":
        return open_profile(spec.topic, spec.generation, f"{asker}/{name}")
    kinds: dict[str, type[Tasmota] | type[Zigbee2Mqtt] | type[Discovery]] = {
        "tasmota": Tasmota,
        "zigbee2mqtt": Zigbee2Mqtt,
        "homeassistant": Discovery,
    }
    return kinds[spec.profile](spec.topic)


def _check_devices(name: str, options: Options) -> None:
    if not options.devices and not options.entities:
        raise InputError(f"{name}.options.devices: expected at least one device, or `entities`")
    for device, spec in options.devices.items():
        where = f"{name}.options.devices.{device}"
        if not device or any(letter in device for letter in "/+#") or device == OWN:
            raise InputError(f"{where}: expected a name without / + #, other than `{OWN}`")
        if spec.profile == "generic":
            if not spec.channels:
                raise InputError(f"{where}.channels: expected at least one channel")
        elif not spec.topic or any(letter in spec.topic for letter in "+#"):
            raise InputError(f"{where}.topic: expected the device's topic without + and #, got `{spec.topic}`")
        try:
            _profile(where, spec, name)
        except InputError as err:
            raise InputError(f"{where}: {err}") from err


def _mqtt_options(name: str, options: Options, client: str) -> MqttOptions:
    address = parse_broker(name, options.broker)
    if address.tls and options.ca is None:
        raise InputError(f"{name}.options.ca: mqtts:// needs the file of the authority that signed the broker's certificate")
    for key in ("ca", "cert", "key"):
        path = getattr(options, key)
        if path is not None and not Path(path).is_file():
            raise InputError(f"{name}.options.{key}: no file {path}")
    return MqttOptions(
        host=address.host,
        port=address.port,
        client_id=client,
        ca=options.ca if address.tls else None,
        cert=options.cert,
        key=options.key,
        username=options.username,
        password=read_password(name, options.password_file),
        keepalive_s=options.keepalive_s,
        session_expiry_s=0,
        will_delay_s=0,
        receive_maximum=1000,
        max_packet_bytes=_MAX_PACKET_BYTES,
    )


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> MqttAdapter:
    """The factory behind the driver `mqtt`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    if not decoded.first_s > 0:
        raise InputError(f"{name}.options.first_s: expected a number above 0, got {decoded.first_s:g}")
    return MqttAdapter(name, decoded, clock)
