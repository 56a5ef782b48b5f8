"""CoAP messages to and from bytes (RFC 7252, section 3). Pure: no sockets, no times, no meaning of what a message asks for."""

from __future__ import annotations

import struct
from enum import IntEnum
from typing import NamedTuple

from edge_runtime.errors import InputError

HEADER_BYTES = 4
_MARKER = 0xFF
_MOST_TOKEN_BYTES = 8
_MOST_OPTION_NUMBER = 0xFFFF


class Type(IntEnum):
    """What the message layer is to do with a message."""

    CON = 0
    NON = 1
    ACK = 2
    RST = 3


class Code(IntEnum):
    """Methods and response codes, class in the upper three bits: 2.05 is 0x45."""

    EMPTY = 0x00
    GET = 0x01
    POST = 0x02
    PUT = 0x03
    DELETE = 0x04
    FETCH = 0x05
    PATCH = 0x06
    IPATCH = 0x07
    CHANGED = 0x44
    CONTENT = 0x45
    BAD_REQUEST = 0x80
    BAD_OPTION = 0x82
    NOT_FOUND = 0x84
    METHOD_NOT_ALLOWED = 0x85
    NOT_ACCEPTABLE = 0x86
    TOO_LARGE = 0x8D
    UNSUPPORTED_FORMAT = 0x8F
    INTERNAL_ERROR = 0xA0
    UNAVAILABLE = 0xA3
    NO_PROXY = 0xA5


class Option(IntEnum):
    """Options by number (RFC 7252, 7641, 7959). An odd one is critical: who does not know it must refuse the request."""

    URI_HOST = 3
    ETAG = 4
    OBSERVE = 6
    URI_PORT = 7
    URI_PATH = 11
    CONTENT_FORMAT = 12
    MAX_AGE = 14
    URI_QUERY = 15
    ACCEPT = 17
    BLOCK2 = 23
    BLOCK1 = 27
    SIZE2 = 28
    PROXY_URI = 35
    PROXY_SCHEME = 39
    SIZE1 = 60


class MalformedMessage(InputError):
    """Bytes that are no CoAP message."""


class Message(NamedTuple):
    """One message. `code` may be one that `Code` does not name; options are by number, and equal numbers in their order."""

    type: Type
    code: int
    id: int
    token: bytes = b""
    options: tuple[tuple[int, bytes], ...] = ()
    payload: bytes = b""

    def values(self, number: int) -> list[bytes]:
        return [value for option, value in self.options if option == number]

    def uint(self, number: int) -> int | None:
        """The first value of an option as a number; None when it is not there. Raises MalformedMessage when it is over 4 bytes."""
        for option, value in self.options:
            if option == number:
                if len(value) > 4:
                    raise MalformedMessage(f"option {number}: expected at most 4 bytes, got {len(value)}")
                return int.from_bytes(value, "big")
        return None


def uint(value: int) -> bytes:
    """A number as an option has it: no leading zeros, nothing for 0."""
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def encode(message: Message) -> bytes:
    """The bytes of a message whose fields fit."""
    out = bytearray(struct.pack(">BBH", 0x40 | message.type << 4 | len(message.token), message.code, message.id))
    out += message.token
    last = 0
    for number, value in sorted(message.options, key=lambda option: option[0]):
        delta, delta_more = _nibble(number - last)
        length, length_more = _nibble(len(value))
        out.append(delta << 4 | length)
        out += delta_more + length_more + value
        last = number
    if message.payload:
        out.append(_MARKER)
        out += message.payload
    return bytes(out)


def decode(data: bytes) -> Message:
    """Raises MalformedMessage."""
    if len(data) < HEADER_BYTES or data[0] >> 6 != 1:
        raise MalformedMessage(f"expected a CoAP header of version 1, got {data[:HEADER_BYTES]!r}")
    first, code, id_ = struct.unpack_from(">BBH", data)
    token_bytes = first & 15
    at = HEADER_BYTES + token_bytes
    if token_bytes > _MOST_TOKEN_BYTES or len(data) < at:
        raise MalformedMessage(f"expected a token of at most {_MOST_TOKEN_BYTES} bytes, got {token_bytes} told")
    if code == Code.EMPTY and len(data) > HEADER_BYTES:
        raise MalformedMessage("expected nothing after the header of an empty message")
    options, payload = _options(data, at)
    return Message(Type(first >> 4 & 3), code, id_, data[HEADER_BYTES:at], options, payload)


def _options(data: bytes, at: int) -> tuple[tuple[tuple[int, bytes], ...], bytes]:
    options: list[tuple[int, bytes]] = []
    number = 0
    while at < len(data):
        if data[at] == _MARKER:
            if at + 1 == len(data):
                raise MalformedMessage("expected a payload after its marker")
            return tuple(options), data[at + 1 :]
        head = data[at]
        delta, at = _extended(data, at + 1, head >> 4)
        length, at = _extended(data, at, head & 15)
        number += delta
        if at + length > len(data) or number > _MOST_OPTION_NUMBER:
            raise MalformedMessage(f"option {number} is cut off or out of range")
        options.append((number, data[at : at + length]))
        at += length
    return tuple(options), b""


def _extended(data: bytes, at: int, nibble: int) -> tuple[int, int]:
    if nibble < 13:
        return nibble, at
    size = nibble - 12
    if nibble == 15 or at + size > len(data):
        raise MalformedMessage("an option's head is cut off or has the reserved value 15")
    return int.from_bytes(data[at : at + size], "big") + (13 if size == 1 else 269), at + size


def _nibble(value: int) -> tuple[int, bytes]:
    if value < 13:
        return value, b""
    if value < 269:
        return 13, bytes([value - 13])
    return 14, (value - 269).to_bytes(2, "big")
