"""Frames of the UART: everything that goes in comes out, whatever comes between, in whatever pieces."""

from __future__ import annotations

from collections.abc import Sequence as Many
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.microcontroller.frames import Decoder, Frame, Sequence, encode, wire_time_s

FRAMES = st.builds(Frame, st.integers(0, 255), st.integers(0, 0xFFFF), st.binary(max_size=1040))


def decode(decoder: Decoder, pieces: Many[bytes]) -> list[Frame]:
    return [frame for piece in pieces for frame in decoder.feed(piece)]


def cut(data: bytes, at: Many[int]) -> list[bytes]:
    edges = [0, *sorted(position % (len(data) + 1) for position in at), len(data)]
    return [data[start:end] for start, end in pairwise(edges)]


@given(st.lists(FRAMES, max_size=5), st.lists(st.integers(0, 10_000), max_size=8))
def test_frames_survive_any_cutting(frames: list[Frame], at: list[int]) -> None:
    decoder = Decoder()
    assert decode(decoder, cut(b"".join(map(encode, frames)), at)) == frames
    assert decoder.bad_frames == 0


@given(FRAMES, st.binary(max_size=3000), st.lists(st.integers(0, 10_000), max_size=8))
def test_after_garbage_and_one_zero_the_next_frame_is_read(frame: Frame, garbage: bytes, at: list[int]) -> None:
    assert decode(Decoder(), cut(garbage + b"\0" + encode(frame), at))[-1:] == [frame]


@given(FRAMES, st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_never_passes_as_this_frame(frame: Frame, at: int, flip: int) -> None:
    coded = bytearray(encode(frame))
    coded[at % len(coded)] ^= flip
    assert frame not in decode(Decoder(), [bytes(coded), b"\0"])


def test_an_endless_run_without_a_zero_is_dropped_as_it_comes_and_counted_once() -> None:
    decoder = Decoder()
    assert not decode(decoder, [b"\x55" * 1000] * 1000)
    assert decode(decoder, [b"\x55\0", encode(Frame(1, 2, b"3"))]) == [Frame(1, 2, b"3")]
    assert decoder.bad_frames == 1
    assert decoder.garbage_bytes == 1_000_001


def test_a_payload_that_no_frame_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="at most 1040"):
        encode(Frame(1, 0, bytes(1041)))


def test_wire_time_of_200_bytes() -> None:
    assert wire_time_s(200, 115_200) == pytest.approx(0.01736, abs=1e-5)


@given(st.integers(0, 0xFFFF), st.lists(st.integers(1, 100), max_size=30))
def test_what_was_skipped_is_counted_across_the_wrap(start: int, steps: list[int]) -> None:
    sequence, seq = Sequence(), start
    assert sequence.accept(0x40, seq)
    for step in steps:
        seq = (seq + step) & 0xFFFF
        assert sequence.accept(0x40, seq)
        assert not sequence.accept(0x40, seq)
    assert sequence.gaps == sum(step - 1 for step in steps)
    assert sequence.duplicates == len(steps)


def test_types_of_events_have_counters_of_their_own() -> None:
    sequence = Sequence()
    assert sequence.accept(0x40, 10)
    assert sequence.accept(0x41, 3)
    sequence.restart()
    assert sequence.accept(0x40, 0)
    assert sequence.gaps == 0
