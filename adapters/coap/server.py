"""The gateway's own CoAP resources on a UDP port: status, readings and decisions to be read and observed, readings to be pushed.

To the runtime it is an adapter that listens: it is supervised as one, and what is pushed to it goes the way of every sample. It moves
no actuator. There is no DTLS and no OSCORE here: what may be reached by strangers belongs on loopback, or behind a tunnel.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Sequence

from adapters.coap.blocks import Block, Blocks
from adapters.coap.endpoint import Address, Endpoint
from adapters.coap.message import Code, MalformedMessage, Message, Option, Type, uint
from adapters.coap.observers import Observer, Observers
from adapters.coap.resources import Content, Refused, Request, Resources
from edge_runtime.clock import Clock
from edge_runtime.errors import AdapterDisconnected
from edge_runtime.ports import GatewayView, SampleSink
from edge_runtime.types import ChannelInfo, Health, Sample, ServerSettings

log = logging.getLogger(__name__)

_REGISTER, _DEREGISTER = 0, 1


def open_server(name: str, settings: ServerSettings, clock: Clock, view: GatewayView) -> CoapServer:
    """The factory behind the section `coap` of the gateway file. Nothing listens until `open`."""
    return CoapServer(name, settings, clock, view)


class CoapServer:
    """`PlatformAdapter` and `StreamingSensors`: a supervised server whose channels are those that readings are pushed to."""

    def __init__(self, name: str, settings: ServerSettings, clock: Clock, view: GatewayView) -> None:
        self.name = name
        self._settings = settings
        self._clock = clock
        self._view = view
        self._resources = Resources(view, settings.pushed, self._push)
        self._blocks = Blocks()
        self._observers = Observers(settings.max_observers, settings.notify_interval_s, self._tell)
        self._endpoint: Endpoint | None = None
        self._unwatch: Callable[[], None] | None = None
        self._wanted: frozenset[str] = frozenset()
        self._sink: SampleSink | None = None
        self._sequence = 0
        self._counters = {"pushed": 0, "refused": 0, "failed": 0}
        self.port = 0

    # -- as an adapter ----------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Listens. Raises AdapterDisconnected, to be tried again, when the address cannot be taken."""
        await self.close()
        endpoint = Endpoint(self._clock, self._answer, self._observers.remove)
        try:
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: endpoint, local_addr=(self._settings.host, self._settings.port)
            )
        except OSError as err:
            raise AdapterDisconnected(self._why_not(err)) from err
        self._endpoint = endpoint
        self.port = transport.get_extra_info("sockname")[1]
        self._unwatch = self._view.watch(self._observers.changed)
        log.info("coap resources served at=%s:%d", self._settings.host, self.port)

    async def close(self) -> None:
        unwatch, self._unwatch = self._unwatch, None
        if unwatch is not None:
            unwatch()
        self._observers.close()
        endpoint, self._endpoint = self._endpoint, None
        if endpoint is not None:
            endpoint.close()
            await endpoint.lost.wait()

    def channels(self) -> Sequence[ChannelInfo]:
        return self._settings.pushed

    def health(self) -> Health:
        counters = self._counters | {"observers": len(self._observers), "observers_refused": self._observers.refused}
        counters |= {"notifications": self._observers.notified}
        if self._endpoint is None:
            return Health(False, "not open", counters)
        return Health(True, f"coap://{self._settings.host}:{self.port}", counters | self._endpoint.counters)

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        """Hands over what is pushed to these channels."""
        endpoint = self._endpoint
        if endpoint is None:
            raise AdapterDisconnected(f"{self.name}: not open")
        self._wanted, self._sink = frozenset(channels), sink
        try:
            await endpoint.lost.wait()
        finally:
            self._wanted, self._sink = frozenset(), None
        raise AdapterDisconnected(f"{self.name}: the socket was closed")

    def _push(self, sample: Sample) -> bool:
        if self._sink is None or sample.channel not in self._wanted:
            return False
        self._counters["pushed"] += 1
        self._sink(sample)
        return True

    def _why_not(self, err: OSError) -> str:
        where = f"{self._settings.host}:{self._settings.port}"
        if err.errno == errno.EADDRINUSE:
            return f"cannot listen on {where}: another process has it; see which: ss -ulpn 'sport = :{self._settings.port}'"
        if err.errno == errno.EADDRNOTAVAIL:
            return f"cannot listen on {where}: this machine has no such address; set coap.listen to one of: ip -brief address"
        if err.errno == errno.EACCES:
            return f"cannot listen on {where}: not allowed; choose a port from 1024 on, or grant CAP_NET_BIND_SERVICE"
        return f"cannot listen on {where}: {err.strerror or err}; correct coap.listen in the gateway file"

    # -- as a server ------------------------------------------------------------------------------------------------------------

    def _answer(self, message: Message, address: Address) -> Message:
        try:
            request, observe = Request.of(message), message.uint(Option.OBSERVE)
            content = self._content(request, message, address)
            return _reply(message, content, self._observe(observe, request, message, address, content))
        except Refused as err:
            self._counters["refused"] += 1
            return _reply(message, err.content)
        except MalformedMessage as err:
            self._counters["refused"] += 1
            return _reply(message, Content(Code.BAD_OPTION, str(err).encode()))
        except Exception:  # the border to strangers: whatever they sent, the server goes on
            self._counters["failed"] += 1
            log.exception("a CoAP request failed")
            return _reply(message, Content(Code.INTERNAL_ERROR, b"the gateway failed to answer; its log says why"))

    def _content(self, request: Request, message: Message, address: Address) -> Content:
        key = (address, request.path, tuple(request.query.items()), request.accept)
        return self._blocks.cut(key, Block.of(message), lambda: self._resources.answer(request, message))

    def _observe(self, asked: int | None, request: Request, message: Message, address: Address, content: Content) -> int | None:
        """The sequence number of an observation that begins; None when none does."""
        if asked == _DEREGISTER:
            self._observers.remove(address, message.token)
        if asked != _REGISTER or not content.observable or (message.uint(Option.BLOCK2) or 0) >> 4:
            return None
        return self._next() if self._observers.add(Observer(address, request.path, message)) else None

    def _tell(self, observer: Observer, done: Callable[[bool], None] | None) -> None:
        if self._endpoint is None:
            return
        try:
            request = Request.of(observer.request)
            content = self._content(request, observer.request, observer.address)
            self._endpoint.notify(_reply(observer.request, content, self._next()), observer.address, done)
        except Refused as err:  # a resource that is gone: the last that its observers hear (RFC 7641, section 4.2)
            self._endpoint.notify(_reply(observer.request, err.content), observer.address, None)
            self._observers.remove(*observer.key)
        except Exception:  # as in `_answer`
            self._counters["failed"] += 1
            log.exception("a CoAP notification failed")
            self._observers.remove(*observer.key)

    def _next(self) -> int:
        self._sequence = (self._sequence + 1) & 0xFFFFFF
        return self._sequence


def _reply(message: Message, content: Content, sequence: int | None = None) -> Message:
    options = list(content.options)
    if content.format is not None:
        options.append((Option.CONTENT_FORMAT, uint(content.format)))
    if content.format is not None and sequence is None:
        options.append((Option.MAX_AGE, uint(0)))
    if sequence is not None:
        options.append((Option.OBSERVE, uint(sequence)))
    if content.code == Code.TOO_LARGE:
        options += [(Option.BLOCK1, block) for block in message.values(Option.BLOCK1)[:1]]
    return Message(Type.NON, content.code, 0, message.token, tuple(options), content.payload)
