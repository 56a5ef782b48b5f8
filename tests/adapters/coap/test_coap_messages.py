"""CoAP messages: every one comes back as it went, bytes are read as another implementation reads them, and none surprise."""

from __future__ import annotations

import contextlib

import aiocoap
import pytest
from aiocoap.error import UnparsableMessage
from hypothesis import given
from hypothesis import strategies as st

from adapters.coap.message import MalformedMessage, Message, Option, Type, decode, encode, uint

OPTIONS = st.lists(st.tuples(st.integers(1, 3000), st.binary(max_size=300)), max_size=6)
MESSAGES = st.builds(
    Message,
    st.sampled_from(Type),
    st.integers(1, 255),
    st.integers(0, 0xFFFF),
    st.binary(max_size=8),
    OPTIONS.map(lambda options: tuple(sorted(options, key=lambda option: option[0]))),
    st.binary(max_size=100),
)


@given(MESSAGES)
def test_a_message_comes_back_as_it_went(message: Message) -> None:
    assert decode(encode(message)) == message


@given(MESSAGES)
def test_another_implementation_reads_the_same(message: Message) -> None:
    message = message._replace(code=1, options=((Option.URI_PATH, b"a"), (Option.URI_QUERY, b"b=1")))
    other = aiocoap.Message.decode(encode(message))
    assert (other.mtype, other.code, other.mid, other.token, other.payload) == (message.type, 1, message.id, message.token, message.payload)
    assert (other.opt.uri_path, other.opt.uri_query) == (("a",), ("b=1",))


@given(st.binary(max_size=60) | MESSAGES.map(lambda message: encode(message)[:-1]))
def test_what_is_read_here_is_read_there_and_nothing_else_raises(data: bytes) -> None:
    with contextlib.suppress(MalformedMessage):
        message = decode(data)
        with contextlib.suppress(UnparsableMessage, ValueError):  # of options whose values it judges too
            other = aiocoap.Message.decode(data)
            assert (other.mid, other.token, other.payload) == (message.id, message.token, message.payload)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x40\x01\x00",
        b"\x80\x01\x00\x00",  # version 2
        b"\x49\x01\x00\x00" + bytes(9),  # a token of nine bytes
        b"\x42\x01\x00\x00\x00",  # a token cut off
        b"\x40\x00\x00\x00\xff1",  # an empty message that is not empty
        b"\x40\x01\x00\x00\xff",  # a marker with no payload
        b"\x40\x01\x00\x00\xf0",  # the reserved delta
        b"\x40\x01\x00\x00\x0f",  # the reserved length
        b"\x40\x01\x00\x00\xb4tem",  # an option cut off
        b"\x40\x01\x00\x00\xe0\x01",  # an extended delta cut off
        b"\x40\x01\x00\x00\xe0\xff\xff",  # an option beyond 65535
    ],
)
def test_what_is_no_message_is_malformed(data: bytes) -> None:
    with pytest.raises(MalformedMessage):
        decode(data)


@given(st.integers(0, 0xFFFFFFFF))
def test_numbers_of_options(value: int) -> None:
    assert Message(Type.CON, 1, 1, options=((6, uint(value)),)).uint(6) == value


def test_a_number_of_five_bytes_is_none() -> None:
    with pytest.raises(MalformedMessage):
        Message(Type.CON, 1, 1, options=((6, bytes(5)),)).uint(6)
