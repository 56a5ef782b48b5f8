"""The message layer of a CoAP server on one UDP socket (RFC 7252, section 4): replies, duplicates, confirmable notifications.

Everything that a stranger can fill is bounded: replies kept for duplicates, messages under way, bytes waiting to be sent, and the
share of the event loop's time that requests may take. What a request means is the handler's business. There is no DTLS here.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple, cast

from adapters.coap.message import HEADER_BYTES, Code, MalformedMessage, Message, Type, decode, encode
from edge_runtime.clock import Clock

Address = tuple[Any, ...]
"""As asyncio tells it: host and port first."""

Handler = Callable[[Message, Address], Message]
"""Makes the reply to a request; its type and id are set here. Never raises."""

_ACK_TIMEOUT_S = 2.0
_ACK_RANDOM_FACTOR = 1.5
_MOST_RETRANSMITS = 4
_EXCHANGE_LIFETIME_NS = 247 * 10**9
_MOST_REPLIES = 1024
_MOST_UNDER_WAY = 2048
_SHARE_OF_TIME = 0.2
_BURST_NS = 10**9


class _Kept(NamedTuple):
    at_ns: int
    reply: bytes


class _Transmission:
    """One confirmable message until it is acknowledged, refused or given up."""

    def __init__(self, data: bytes, done: Callable[[bool], None]) -> None:
        self.data = data
        self.done = done
        self.tries = 0
        self.timeout_s = _ACK_TIMEOUT_S * random.uniform(1, _ACK_RANDOM_FACTOR)
        self.timer: asyncio.TimerHandle | None = None

    def end(self) -> None:
        if self.timer is not None:
            self.timer.cancel()


class Endpoint(asyncio.DatagramProtocol):
    """`on_refused` hears the (address, token) of a notification that its receiver did not want, or never acknowledged."""

    def __init__(self, clock: Clock, handler: Handler, on_refused: Callable[[Address, bytes], None]) -> None:
        self.counters = dict.fromkeys(
            ("datagrams", "malformed", "requests", "duplicates", "overload_dropped", "sent", "send_dropped", "retransmitted", "given_up"), 0
        )
        self.lost = asyncio.Event()
        self._clock = clock
        self._handler = handler
        self._on_refused = on_refused
        self._transport: asyncio.DatagramTransport | None = None
        self._blocked = False
        self._replies: OrderedDict[tuple[Address, int], _Kept] = OrderedDict()
        self._under_way: dict[tuple[Address, int], _Transmission] = {}
        self._tokens: OrderedDict[tuple[Address, int], bytes] = OrderedDict()
        self._next_id = random.randrange(1 << 16)
        self._budget_ns, self._refilled_ns = _BURST_NS, clock.monotonic_ns()

    # -- asyncio ----------------------------------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def pause_writing(self) -> None:
        """The socket takes nothing now, and asyncio keeps some 64 KiB: what else would be sent is dropped, as datagrams may be."""
        self._blocked = True

    def resume_writing(self) -> None:
        self._blocked = False

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    def error_received(self, exc: Exception) -> None:
        """A receiver that is gone; what it did not acknowledge is given up in its time."""

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.counters["datagrams"] += 1
        try:
            message = decode(data)
        except MalformedMessage:
            self._refuse(data, addr)
            return
        if message.code == Code.EMPTY and message.type is not Type.NON:
            self._take_empty(message, addr)
        elif 0 < message.code < 32 and message.type in (Type.CON, Type.NON):
            self._take_request(message, addr)
        else:  # responses to nothing that was asked, and codes that are reserved
            self._refuse(data, addr)

    # -- what comes -------------------------------------------------------------------------------------------------------------

    def _take_empty(self, message: Message, addr: Address) -> None:
        if message.type is Type.CON:
            self._send(encode(Message(Type.RST, 0, message.id)), addr)
            return
        transmission = self._under_way.pop((addr, message.id), None)
        token = self._tokens.pop((addr, message.id), None)
        if transmission is not None:
            transmission.end()
            transmission.done(message.type is Type.ACK)
        if message.type is Type.RST and token is not None:
            self._on_refused(addr, token)

    def _take_request(self, message: Message, addr: Address) -> None:
        now_ns = self._clock.monotonic_ns()
        if not self._affords(now_ns):
            self.counters["overload_dropped"] += 1
            return
        kept = self._replies.get((addr, message.id))
        if kept is not None and now_ns - kept.at_ns < _EXCHANGE_LIFETIME_NS:
            self.counters["duplicates"] += 1
            self._send(kept.reply, addr)
        else:
            self.counters["requests"] += 1
            self._reply(message, addr, now_ns)
        self._budget_ns -= self._clock.monotonic_ns() - now_ns

    def _reply(self, message: Message, addr: Address, now_ns: int) -> None:
        reply = self._handler(message, addr)
        type_, id_ = (Type.ACK, message.id) if message.type is Type.CON else (Type.NON, self._take_id())
        data = encode(reply._replace(type=type_, id=id_))
        self._send(data, addr)
        self._replies[addr, message.id] = _Kept(now_ns, data)
        self._replies.move_to_end((addr, message.id))
        if len(self._replies) > _MOST_REPLIES:
            self._replies.popitem(last=False)

    def _affords(self, now_ns: int) -> bool:
        """Requests take at most a fifth of the loop's time, so that a flood of them keeps no actuator waiting."""
        self._budget_ns = min(_BURST_NS, self._budget_ns + int((now_ns - self._refilled_ns) * _SHARE_OF_TIME))
        self._refilled_ns = now_ns
        return self._budget_ns > 0

    def _refuse(self, data: bytes, addr: Address) -> None:
        """Of what cannot be understood, the confirmable is reset, and the rest is passed over."""
        self.counters["malformed"] += 1
        if len(data) >= HEADER_BYTES and data[0] >> 4 == 4:
            self._send(encode(Message(Type.RST, 0, int.from_bytes(data[2:4], "big"))), addr)

    # -- what goes --------------------------------------------------------------------------------------------------------------

    def notify(self, message: Message, addr: Address, done: Callable[[bool], None] | None) -> None:
        """Sends a notification. With `done` it is confirmable, and `done` hears once whether it was acknowledged."""
        id_ = self._take_id()
        data = encode(message._replace(type=Type.NON if done is None else Type.CON, id=id_))
        self._tokens[addr, id_] = message.token
        if len(self._tokens) > _MOST_UNDER_WAY:
            self._tokens.popitem(last=False)
        if done is not None:
            self._under_way[addr, id_] = transmission = _Transmission(data, done)
            self._transmit(addr, id_, transmission)
        else:
            self._send(data, addr)

    def close(self) -> None:
        """Lets go of the socket and of what is under way; `done` hears nothing more."""
        for transmission in self._under_way.values():
            transmission.end()
        self._under_way.clear()
        if self._transport is not None:
            self._transport.abort()

    def _transmit(self, addr: Address, id_: int, transmission: _Transmission) -> None:
        if transmission.tries > _MOST_RETRANSMITS:
            del self._under_way[addr, id_]
            token = self._tokens.pop((addr, id_), None)
            self.counters["given_up"] += 1
            transmission.done(False)
            if token is not None:
                self._on_refused(addr, token)
            return
        self.counters["retransmitted"] += transmission.tries > 0
        self._send(transmission.data, addr)
        delay_s = transmission.timeout_s * 2**transmission.tries
        transmission.tries += 1
        transmission.timer = asyncio.get_running_loop().call_later(delay_s, self._transmit, addr, id_, transmission)

    def _send(self, data: bytes, addr: Address) -> None:
        if self._blocked or self._transport is None or self._transport.is_closing():
            self.counters["send_dropped"] += 1
            return
        self.counters["sent"] += 1
        self._transport.sendto(data, addr)

    def _take_id(self) -> int:
        self._next_id = (self._next_id + 1) & 0xFFFF
        return self._next_id
