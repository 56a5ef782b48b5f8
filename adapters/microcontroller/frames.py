"""Frames of the UART link: COBS, zero-terminated, with a CRC-16. Pure; whatever comes in, decoding goes on at the next zero byte."""

from __future__ import annotations

from binascii import crc_hqx
from collections.abc import Iterator
from typing import NamedTuple

from cobs import cobs

from adapters.node.messages import MOST_PAYLOAD_BYTES

MOST_BODY_BYTES = 5 + MOST_PAYLOAD_BYTES
_MOST_CODED_BYTES = MOST_BODY_BYTES + MOST_BODY_BYTES // 254 + 1
_CRC_START = 0xFFFF
_BITS_PER_BYTE = 10  # 8N1


class Frame(NamedTuple):
    """One frame after its CRC was found right."""

    type: int
    seq: int
    payload: bytes


def encode(frame: Frame) -> bytes:
    """The bytes on the wire, with the zero at the end. Raises ValueError for a payload that no frame holds."""
    if len(frame.payload) > MOST_PAYLOAD_BYTES:
        raise ValueError(f"expected a payload of at most {MOST_PAYLOAD_BYTES} bytes, got {len(frame.payload)}")
    body = bytes((frame.type,)) + frame.seq.to_bytes(2, "little") + frame.payload
    coded: bytes = cobs.encode(body + crc_hqx(body, _CRC_START).to_bytes(2, "little"))
    return coded + b"\0"


def wire_time_s(size_bytes: int, baud: int) -> float:
    """How long a wire of this speed takes for so many bytes, 8N1: what an emulated or USB link does not show."""
    return size_bytes * _BITS_PER_BYTE / baud


class Decoder:
    """Turns a stream of bytes into frames. `bad_frames` and `garbage_bytes` count what was thrown away."""

    def __init__(self) -> None:
        self.bad_frames = 0
        self.garbage_bytes = 0
        self._pending = bytearray()
        self._lost = False

    def feed(self, data: bytes) -> Iterator[Frame]:
        """The frames that `data` completes. Bounded: an endless run without a zero is dropped as it comes."""
        *whole, rest = data.split(b"\0")
        for piece in whole:
            self._pending += piece
            frame = self._take()
            if frame is not None:
                yield frame
        self._pending += rest
        if len(self._pending) > _MOST_CODED_BYTES:
            self.garbage_bytes += len(self._pending)
            self._pending.clear()
            self._lost = True

    def _take(self) -> Frame | None:
        coded, self._pending = bytes(self._pending), bytearray()
        if self._lost or len(coded) > _MOST_CODED_BYTES:
            self._lost = False
            self._bad(coded)
            return None
        if not coded:
            return None
        try:
            body = cobs.decode(coded)
        except cobs.DecodeError:
            self._bad(coded)
            return None
        if not 5 <= len(body) <= MOST_BODY_BYTES or crc_hqx(body[:-2], _CRC_START) != int.from_bytes(body[-2:], "little"):
            self._bad(coded)
            return None
        return Frame(body[0], int.from_bytes(body[1:3], "little"), body[3:-2])

    def _bad(self, coded: bytes) -> None:
        self.bad_frames += 1
        self.garbage_bytes += len(coded)


class Sequence:
    """Follows the counters of one link's events, one for each type of event."""

    def __init__(self) -> None:
        self.gaps = 0
        self.duplicates = 0
        self._last: dict[int, int] = {}

    def accept(self, kind: int, seq: int) -> bool:
        """Whether this event is new. One that repeats or comes late is a duplicate; what was skipped is added to `gaps`."""
        last = self._last.get(kind)
        ahead = 1 if last is None else (seq - last) & 0xFFFF
        if ahead == 0 or ahead >= 0x8000:
            self.duplicates += 1
            return False
        self.gaps += ahead - 1
        self._last[kind] = seq
        return True

    def restart(self) -> None:
        """The node booted: its counters begin anew."""
        self._last.clear()
