"""The node's messages: whatever bytes come, they become a value or MalformedMessage, and nothing else."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from math import isfinite

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.node import messages
from adapters.node.messages import MalformedMessage, NodeRefused, Status

PARSERS: list[tuple[Callable[[bytes], object], int]] = [
    (messages.hello, 72),
    (messages.model, 64),
    (messages.reading, 16),
    (messages.result, 8),
    (messages.inference, 12),
    (messages.lines, 24),
    (messages.stats, 64),
    (messages.notice, 4),
    (messages.log, 1),
]


@pytest.mark.parametrize(("parse", "size"), PARSERS)
@given(data=st.data())
def test_any_bytes_are_a_value_or_malformed(parse: Callable[[bytes], object], size: int, data: st.DataObject) -> None:
    payload = data.draw(st.one_of(st.binary(max_size=100), st.binary(min_size=size, max_size=size)))
    with suppress(MalformedMessage):
        parse(payload)


def test_a_reading_with_a_silent_sensor_has_no_value() -> None:
    assert messages.reading(struct.pack("<IIib3x", 7, 1000, 21_500, 0)).celsius == 21.5
    assert messages.reading(struct.pack("<IIib3x", 7, 1000, 21_500, -9)).celsius is None


def test_a_result_shorter_than_announced_is_malformed() -> None:
    with pytest.raises(MalformedMessage, match="3 outputs"):
        messages.result(struct.pack("<BBHI", 0, 1, 3, 99) + b"ab")


@given(st.integers(0, 255), st.floats(allow_nan=False, width=32))
def test_a_scale_is_a_number(source: int, scale: float) -> None:
    fields = (source, 0, 0, 0, 1, b"m", 1, 16, 1, 1, 1, 3, 1.0, 0, scale, -128, 0, 0, 0, 0, 0)
    payload = struct.pack("<BBBBI16s3H3HfifiIIHBB", *fields)
    if source <= 2 and isfinite(scale):
        assert messages.model(payload).outputs == 3
    else:
        with pytest.raises(MalformedMessage):
            messages.model(payload)


def test_another_protocol_is_named() -> None:
    with pytest.raises(MalformedMessage, match="version 2"):
        messages.hello(b"\2" + bytes(71))


@pytest.mark.parametrize("status", [*Status, -100])
def test_a_refusal_says_what_to_do(status: int) -> None:
    assert f"{int(status)} " in str(NodeRefused("ota_commit", status))
