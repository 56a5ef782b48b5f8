"""Records survive the wire, and hostile bytes are refused before they are unpacked."""

from __future__ import annotations

import contextlib
import zlib

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.errors import InputError
from edge_runtime.records import ReadingBody, Record, decode_batch, decode_body, encode_batch, encode_body, reading_body
from edge_runtime.types import Quality, Reading, Timestamp

numbers = st.integers(min_value=0, max_value=2**63 - 1)
records = st.builds(
    lambda seq, kind, mono, wall, body: Record(seq, kind, mono, wall, -1, encode_body(body)),
    numbers,
    st.sampled_from("riadn"),
    numbers,
    numbers,
    st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=20), max_size=4),
)


@given(st.lists(records, max_size=20))
def test_a_batch_comes_back_as_it_went(batch: list[Record]) -> None:
    back = decode_batch(encode_batch(batch))
    assert [(r.seq, r.kind, r.mono_ns, r.wall_ns, decode_body(r.body)) for r in back] == [
        (r.seq, r.kind, r.mono_ns, r.wall_ns, decode_body(r.body)) for r in batch
    ]


@given(st.binary(max_size=200))
def test_any_bytes_are_decoded_or_refused(data: bytes) -> None:
    with contextlib.suppress(InputError):
        decode_batch(data)


def test_a_decompression_bomb_is_refused_by_its_unpacked_size() -> None:
    bomb = zlib.compress(b"\x00" * 50_000_000, 9)
    with pytest.raises(InputError, match="unpacks to more than 1000 bytes"):
        decode_batch(bomb, max_bytes=1000)


def test_a_batch_that_is_cut_short_says_so() -> None:
    data = encode_batch([Record(1, "n", 0, 0, -1, encode_body({"a": 1}))])
    with pytest.raises(InputError, match="cut short"):
        decode_batch(data[:-6])


def test_a_block_reading_travels_as_little_endian_float32() -> None:
    reading = Reading("sim", "vibration", 7, Timestamp(1, 2, 3), None, "m/s2", Quality.GOOD, np.array([1, -2], np.float32), 1600.0)
    body = msgspec.convert(decode_body(encode_body(reading_body(reading))), ReadingBody)
    assert body.block is not None
    assert np.frombuffer(body.block, "<f4").tolist() == [1.0, -2.0]
    assert (body.channel, body.seq, body.rate_hz) == ("vibration", 7, 1600.0)
