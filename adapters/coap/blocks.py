"""Long contents in blocks (RFC 7959, Block2). Keeps what it cut, so that every block of a transfer is of one and the same content."""

from __future__ import annotations

import zlib
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import NamedTuple

from adapters.coap.message import Code, MalformedMessage, Message, Option, uint
from adapters.coap.resources import Content, Refused

LARGEST_EXPONENT = 6
_MOST_KEPT = 16


class Block(NamedTuple):
    """Which block is asked for; of 2 ** (`exponent` + 4) bytes."""

    number: int
    exponent: int

    @classmethod
    def of(cls, message: Message) -> Block | None:
        """Raises Refused for the size that is reserved."""
        try:
            told = message.uint(Option.BLOCK2)
        except MalformedMessage as err:
            raise Refused(Code.BAD_OPTION, str(err)) from err
        if told is not None and told & 7 > LARGEST_EXPONENT:
            raise Refused(Code.BAD_REQUEST, "expected blocks of 16 to 1024 bytes")
        return None if told is None else cls(told >> 4, told & 7)


class Blocks:
    """The contents lately cut, by who asked for what."""

    def __init__(self) -> None:
        self._kept: OrderedDict[Hashable, Content] = OrderedDict()

    def cut(self, key: Hashable, asked: Block | None, render: Callable[[], Content]) -> Content:
        """The block that is asked for, or the whole where that fits in one. A first block is of the content as it is now."""
        number, exponent = asked or Block(0, LARGEST_EXPONENT)
        size = 1 << exponent + 4
        content = self._kept.get(key) if number else None
        content = render() if content is None else content
        if len(content.payload) <= size and not number:
            return content
        if number * size >= len(content.payload):
            raise Refused(Code.BAD_REQUEST, f"there is no block {number} of {size} bytes: the content has {len(content.payload)} bytes")
        self._keep(key, content)
        more = (number + 1) * size < len(content.payload)
        told = (
            (Option.ETAG, zlib.crc32(content.payload).to_bytes(4, "big")),
            (Option.BLOCK2, uint(number << 4 | more << 3 | exponent)),
            (Option.SIZE2, uint(len(content.payload))),
        )
        return content._replace(payload=content.payload[number * size : (number + 1) * size], options=content.options + told)

    def _keep(self, key: Hashable, content: Content) -> None:
        self._kept[key] = content
        self._kept.move_to_end(key)
        if len(self._kept) > _MOST_KEPT:
            self._kept.popitem(last=False)
