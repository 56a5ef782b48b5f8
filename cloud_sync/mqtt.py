"""MQTT 5 (or 3.1.1) on the asyncio loop: the only module that imports paho.

paho gets a socket that is already connected, reads and writes when the loop says so, and has no thread, no reconnect and no
queue of its own: a publish waits here for a place in the broker's Receive Maximum, and fails when the link does. Received
QoS 1 messages are acknowledged after their handler returned, or when a deferred handler says so.
It does not reconnect (`cloud_sync.session` does) and does not know what the messages mean.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections import deque
from collections.abc import Callable
from typing import Any, Literal

import msgspec
from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags, MQTTMessage, error_string
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

from cloud_sync.dial import BufferedSocket, open_socket, tls_context
from cloud_sync.topics import matches
from edge_runtime.errors import DeadlineExceeded, InputError, MessageTooLarge, TransportError
from edge_runtime.ports import MessageHandler

DeferredHandler = Callable[[str, bytes, Callable[[], None]], None]
"""`(topic, payload, acknowledge)`: the broker keeps the message until `acknowledge` is called; never raises."""
RetainedHandler = Callable[[str, bytes, bool], None]
"""`(topic, payload, retained)`: a retained message is of unknown age; never raises."""

_Handler = Callable[[str, bytes, bool, Callable[[], None]], None]

_log = logging.getLogger(__name__)
_UNLIMITED_PACKET = 268_435_455  # MQTT 5.0, 1.5.5: largest remaining length
_INFLIGHT_CAP = 1000
_INFLIGHT_V311 = 64
_PACKET_OVERHEAD = 32
_TICK_S = 1.0
_GOODBYE_S = 1.0
_V5_PATIENCE_S = 2.0
_V311_MEMORY_S = 3600.0


class MqttOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach one broker. With `ca` the link is TLS; with `cert` and `key` it is mutual TLS."""

    host: str
    port: int
    client_id: str
    ca: str | None = None
    cert: str | None = None
    key: str | None = None
    username: str | None = None
    password: str | None = None
    keepalive_s: int = 30
    protocol: Literal["auto", "5", "3.1.1"] = "auto"
    connect_timeout_s: float = 10.0
    publish_timeout_s: float = 20.0
    session_expiry_s: int = 60
    will_delay_s: int = 30
    receive_maximum: int = 32
    max_packet_bytes: int = 8 * 1024 * 1024

    def __repr__(self) -> str:
        return f"MqttOptions({self.client_id}@{self.host}:{self.port}, tls={self.ca is not None}, protocol={self.protocol})"


def open_transport(options: MqttOptions) -> MqttTransport:
    """A way to the broker that `options` name; connects nothing yet."""
    if options.cert is not None and options.ca is None:
        raise InputError("tls.cert: a client certificate needs tls.ca, the authority of the broker")
    return MqttTransport(options)


class _VersionRefused(TransportError):
    """The broker does not speak the version asked for, or (amqtt) never answers to it."""


class _NoConnack(TransportError):
    """The broker closed the connection where it should have answered: maybe for the version, maybe not."""


class MqttTransport:
    """Connects to one broker; remembers for an hour that it refused MQTT 5."""

    def __init__(self, options: MqttOptions) -> None:
        self.options = options
        self._v311_until = 0.0

    async def connect(self, will_topic: str = "", will_payload: bytes = b"") -> MqttSession:
        """One attempt, MQTT 3.1.1 after MQTT 5 when the protocol is `auto`. An empty `will_topic` leaves no will."""
        options, loop = self.options, asyncio.get_running_loop()
        if options.protocol == "3.1.1" or (options.protocol == "auto" and loop.time() < self._v311_until):
            return await self._attempt(MQTTProtocolVersion.MQTTv311, will_topic, will_payload, options.connect_timeout_s)
        if options.protocol == "5":
            return await self._attempt(MQTTProtocolVersion.MQTTv5, will_topic, will_payload, options.connect_timeout_s)
        patience_s = min(_V5_PATIENCE_S, options.connect_timeout_s)
        try:
            return await self._attempt(MQTTProtocolVersion.MQTTv5, will_topic, will_payload, patience_s)
        except (_VersionRefused, _NoConnack) as err:
            session = await self._attempt(MQTTProtocolVersion.MQTTv311, will_topic, will_payload, options.connect_timeout_s)
            if isinstance(err, _VersionRefused):
                self._v311_until = loop.time() + _V311_MEMORY_S
            return session

    async def _attempt(self, version: MQTTProtocolVersion, will_topic: str, will_payload: bytes, patience_s: float) -> MqttSession:
        """`patience_s` is for the broker's CONNACK; reaching it has the whole connect timeout."""
        options = self.options
        place = f"{options.host}:{options.port}"
        try:
            async with asyncio.timeout(options.connect_timeout_s):
                sock = await open_socket(options.host, options.port, await self._tls())
        except TimeoutError as err:
            raise TransportError(f"cannot connect to {place} within {options.connect_timeout_s:g} s") from err
        session = MqttSession(options, version, BufferedSocket(sock, options.max_packet_bytes))
        try:
            async with asyncio.timeout(patience_s):
                await session.start(will_topic, will_payload)
        except TimeoutError as err:
            raise _VersionRefused(f"{place} did not answer to CONNECT (MQTT {session.protocol}) within {patience_s:g} s") from err
        return session

    async def _tls(self) -> ssl.SSLContext | None:
        if self.options.ca is None:
            return None
        return await asyncio.to_thread(tls_context, self.options.ca, self.options.cert, self.options.key)


class _Paho(Client):
    """paho on a socket that we opened."""

    connected_socket: Any = None

    def _create_socket(self) -> Any:
        return self.connected_socket


class MqttSession:
    """One live connection. Every method runs on the loop that opened it."""

    def __init__(self, options: MqttOptions, version: MQTTProtocolVersion, sock: BufferedSocket) -> None:
        self._options = options
        self._v5 = version is MQTTProtocolVersion.MQTTv5
        self._sock = sock
        self._fd = sock.fileno()
        self._loop = asyncio.get_running_loop()
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._closed: asyncio.Future[str] = self._loop.create_future()
        self._pending: dict[int, asyncio.Future[ReasonCode]] = {}
        self._subscribing: dict[int, asyncio.Future[list[ReasonCode]]] = {}
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._handlers: list[tuple[str, _Handler]] = []
        self._free = 0
        self._max_inflight = _INFLIGHT_V311
        self._max_packet = _UNLIMITED_PACKET
        self._writing = False
        self._reading = False
        self._forgotten = False
        self._tick: asyncio.TimerHandle | None = None
        self._client = self._paho(version)

    @property
    def protocol(self) -> str:
        """`5` or `3.1.1`, as agreed with the broker."""
        return "5" if self._v5 else "3.1.1"

    @property
    def max_inflight(self) -> int:
        return self._max_inflight

    @property
    def max_packet_bytes(self) -> int:
        return self._max_packet

    async def start(self, will_topic: str, will_payload: bytes) -> None:
        """Sends CONNECT and waits for CONNACK. Raises TransportError naming the broker's reason."""
        client, options = self._client, self._options
        if will_topic:
            client.will_set(will_topic, will_payload, qos=1, retain=True, properties=self._will_properties())
        if options.username is not None:
            client.username_pw_set(options.username, options.password)
        self._loop.add_reader(self._fd, self._readable)
        try:
            if self._v5:
                client.connect(options.host, options.port, options.keepalive_s, clean_start=True, properties=self._connect_properties())
            else:
                client.connect(options.host, options.port, options.keepalive_s)
            self._flush()
            await self._connack
        except BaseException:
            self._end("connection attempt given up")
            raise
        self._tick = self._loop.call_later(_TICK_S, self._keep_alive)

    async def publish(self, topic: str, payload: bytes, *, qos: int = 1, retain: bool = False, expiry_s: int = 0) -> None:
        size = len(topic) + len(payload) + _PACKET_OVERHEAD
        if size > self._max_packet:
            raise MessageTooLarge(f"{topic}: {size} bytes is over the broker's maximum packet size of {self._max_packet}")
        await self._take_place(topic)
        info = self._client.publish(topic, payload, qos, retain, self._publish_properties(expiry_s))
        if info.rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
            self._end(f"publish failed: {error_string(info.rc)}")
            raise TransportError(f"{topic}: not sent: {error_string(info.rc)}")
        if qos == 0 and info.is_published():
            self._give_place()
            return
        answer: asyncio.Future[ReasonCode] = self._loop.create_future()
        self._pending[info.mid] = answer
        self._flush()
        reason = await self._answer(answer, f"{topic}: no acknowledgement of the broker")
        if reason.is_failure:
            raise TransportError(f"{topic}: the broker refused the message: {reason.getName()}")

    async def subscribe(self, topic_filter: str, handler: MessageHandler, qos: int = 1) -> None:
        await self.subscribe_retained(topic_filter, lambda topic, payload, _: handler(topic, payload), qos)

    async def subscribe_retained(self, topic_filter: str, handler: RetainedHandler, qos: int = 1) -> None:
        """As `subscribe`, but the handler is told which messages the broker had kept."""

        def handle(topic: str, payload: bytes, retained: bool, acknowledge: Callable[[], None]) -> None:
            handler(topic, payload, retained)
            acknowledge()

        await self._subscribe(topic_filter, handle, qos)

    async def subscribe_deferred(self, topic_filter: str, handler: DeferredHandler, qos: int = 1) -> None:
        """As `subscribe`, but the handler says when a message is acknowledged to the broker."""
        await self._subscribe(topic_filter, lambda topic, payload, _, acknowledge: handler(topic, payload, acknowledge), qos)

    async def _subscribe(self, topic_filter: str, handler: _Handler, qos: int) -> None:
        self._handlers.append((topic_filter, handler))
        if self._v5:
            result, mid = self._client.subscribe(topic_filter, options=SubscribeOptions(qos=qos))
        else:
            result, mid = self._client.subscribe(topic_filter, qos)
        if result is not MQTTErrorCode.MQTT_ERR_SUCCESS or mid is None:
            raise TransportError(f"{topic_filter}: not subscribed: {error_string(result)}")
        answer: asyncio.Future[list[ReasonCode]] = self._loop.create_future()
        self._subscribing[mid] = answer
        self._flush()
        for reason in await self._answer(answer, f"{topic_filter}: no answer to the subscription"):
            if reason.is_failure:
                raise TransportError(f"{topic_filter}: the broker refused the subscription: {reason.getName()}")

    async def closed(self) -> str:
        return await asyncio.shield(self._closed)

    async def close(self) -> None:
        if self._closed.done():
            return
        self._client.disconnect()
        self._flush()
        await asyncio.wait((self._closed,), timeout=_GOODBYE_S)
        self._end("closed by this side")

    # -- the window ---------------------------------------------------------------------------------------------------

    async def _take_place(self, topic: str) -> None:
        while self._free <= 0 and not self._closed.done():
            place: asyncio.Future[None] = self._loop.create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._wake_next()
                raise
        if self._closed.done():
            raise TransportError(f"{topic}: not sent: {self._closed.result()}")
        self._free -= 1

    def _give_place(self) -> None:
        self._free += 1
        self._wake_next()

    def _wake_next(self) -> None:
        while self._waiting:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                return

    async def _answer(self, answer: asyncio.Future[Any], problem: str) -> Any:
        """Waits for the broker; a broker that takes and then forgets costs the session."""
        limit = self._options.publish_timeout_s
        try:
            async with asyncio.timeout(limit):
                return await answer
        except TimeoutError as err:
            self._end(f"{problem} within {limit:g} s")
            raise DeadlineExceeded(f"{problem} within {limit:g} s") from err

    # -- what the loop calls --------------------------------------------------------------------------------------------

    def _readable(self) -> None:
        self._reading = True
        try:
            while True:
                rc = self._client.loop_read()
                if rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                    refused = rc is MQTTErrorCode.MQTT_ERR_PROTOCOL and not self._connack.done()  # paho tells no more than that
                    self._end("refused MQTT 3.1.1, or is no broker" if refused else f"connection lost: {error_string(rc)}")
                    return
                if self._closed.done() or not self._sock.pending:
                    break
        except Exception as err:  # noqa: BLE001 - paho raises what its parser trips over on bytes that are no MQTT
            self._end(f"connection closed: the broker sent what is not MQTT ({type(err).__name__}: {err})")
            return
        finally:
            self._reading = False
        self._flush()

    def _flush(self) -> None:
        if self._reading or self._closed.done():
            return
        if self._client.want_write():
            rc = self._client.loop_write()
            if rc is not MQTTErrorCode.MQTT_ERR_SUCCESS:
                self._end(f"connection lost: {error_string(rc)}")
                return
        wants = self._client.want_write()
        if wants != self._writing and not self._closed.done():
            self._writing = wants
            if wants:
                self._loop.add_writer(self._fd, self._flush)
            else:
                self._loop.remove_writer(self._fd)

    def _keep_alive(self) -> None:
        self._client.loop_misc()
        self._flush()
        if not self._closed.done():
            self._tick = self._loop.call_later(_TICK_S, self._keep_alive)

    def _end(self, reason: str) -> None:
        if self._closed.done():
            return
        if self._sock.alert:
            reason = f"{reason}; the broker ended TLS: {self._sock.alert}"
        self._closed.set_result(reason)
        if self._tick is not None:
            self._tick.cancel()
        self._forget_socket()
        self._sock.close()
        self._fail_all(TransportError(reason))

    def _forget_socket(self) -> None:
        if self._forgotten:  # the number may belong to another socket by now
            return
        self._forgotten = True
        self._loop.remove_reader(self._fd)
        self._loop.remove_writer(self._fd)

    def _fail_all(self, problem: TransportError) -> None:
        if not self._connack.done():
            self._connack.set_exception(_NoConnack(f"{self._options.host}:{self._options.port} did not answer to CONNECT: {problem}"))
        answers: list[asyncio.Future[Any]] = [*self._pending.values(), *self._subscribing.values()]
        for answer in answers:
            if not answer.done():
                answer.set_exception(problem)
        self._pending.clear()
        self._subscribing.clear()
        while self._waiting:
            self._wake_next()

    # -- what paho calls --------------------------------------------------------------------------------------------------

    def _paho(self, version: MQTTProtocolVersion) -> _Paho:
        clean = None if self._v5 else True
        client = _Paho(
            CallbackAPIVersion.VERSION2,
            self._options.client_id,
            clean_session=clean,
            protocol=version,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.connected_socket = self._sock
        client.max_inflight_messages_set(0)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_publish = self._on_publish
        client.on_subscribe = self._on_subscribe
        client.on_socket_close = self._on_socket_close
        return client

    def _on_connect(self, _client: Client, _data: Any, _flags: ConnectFlags, reason: ReasonCode, properties: Properties | None) -> None:
        if self._connack.done():
            return
        if reason.is_failure:
            refused = reason.getName()
            kind = _VersionRefused if refused == "Unsupported protocol version" else TransportError
            self._connack.set_exception(kind(f"{self._options.host}:{self._options.port} refused the connection: {refused}"))
            return
        if self._v5 and properties is not None:
            self._max_inflight = min(_INFLIGHT_CAP, getattr(properties, "ReceiveMaximum", 65535))
            self._max_packet = getattr(properties, "MaximumPacketSize", _UNLIMITED_PACKET)
        self._free = self._max_inflight
        self._connack.set_result(None)

    def _on_disconnect(self, _client: Client, _data: Any, flags: DisconnectFlags, reason: ReasonCode, _properties: Any) -> None:
        who = "the broker closed the connection" if flags.is_disconnect_packet_from_server else "connection lost"
        self._loop.call_soon(self._end, f"{who}: {reason.getName()}")

    def _on_message(self, client: Client, _data: Any, message: MQTTMessage) -> None:
        def acknowledge() -> None:
            if message.qos > 0 and not self._closed.done():
                client.ack(message.mid, message.qos)
                self._flush()

        try:
            topic = message.topic
            handler = next((handle for pattern, handle in self._handlers if matches(pattern, topic)), None)
            if handler is None:
                acknowledge()
            else:
                handler(topic, bytes(message.payload), bool(message.retain), acknowledge)
        except Exception:  # noqa: BLE001 - a broken handler must not stop the others; it is named in the log
            _log.error("mqtt_handler_failed", exc_info=True)
            acknowledge()

    def _on_publish(self, _client: Client, _data: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        answer = self._pending.pop(mid, None)
        if answer is None:
            return
        self._give_place()
        if not answer.done():
            answer.set_result(reason)

    def _on_subscribe(self, _client: Client, _data: Any, mid: int, reasons: list[ReasonCode], _properties: Any) -> None:
        answer = self._subscribing.pop(mid, None)
        if answer is not None and not answer.done():
            answer.set_result(reasons)

    def _on_socket_close(self, _client: Client, _data: Any, _sock: Any) -> None:
        self._forget_socket()

    # -- MQTT 5 properties --------------------------------------------------------------------------------------------------

    def _connect_properties(self) -> Properties:
        options = self._options
        return _properties(
            PacketTypes.CONNECT,
            SessionExpiryInterval=options.session_expiry_s,
            ReceiveMaximum=options.receive_maximum,
            MaximumPacketSize=options.max_packet_bytes,
        )

    def _will_properties(self) -> Properties | None:
        delay_s = self._options.will_delay_s
        return _properties(PacketTypes.WILLMESSAGE, WillDelayInterval=delay_s) if self._v5 and delay_s else None

    def _publish_properties(self, expiry_s: int) -> Properties | None:
        return _properties(PacketTypes.PUBLISH, MessageExpiryInterval=expiry_s) if self._v5 and expiry_s else None


def _properties(packet: int, **values: int) -> Properties:
    properties = Properties(packet)  # type: ignore[no-untyped-call]  # paho leaves this one untyped
    for name, value in values.items():
        setattr(properties, name, value)
    return properties
