"""The wire and disk form of what the gateway reports: records, batched and compressed. No I/O.

A record is the MessagePack array `[seq, kind, mono_ns, wall_ns, wall_err_ns, body]`; a batch is a zlib stream of an array of
records. Decoding is bounded in size, so a decompression bomb is refused before it is unpacked.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

import msgspec

from edge_runtime.errors import InputError
from edge_runtime.types import Reading

MAX_BATCH_BYTES = 4 * 1024 * 1024
_LEVEL = 1


class RecordKind(StrEnum):
    """What a record's body holds: the fields of the value of that name in `edge_runtime.types`."""

    READING = "r"
    INFERENCE = "i"
    DECISION = "d"
    ACTION = "a"
    NOTICE = "n"


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One numbered report. `body` is MessagePack already, so that it is encoded once."""

    seq: int
    kind: str
    mono_ns: int
    wall_ns: int
    wall_err_ns: int
    body: msgspec.Raw


class ReadingBody(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Body of a READING record. `block` is little-endian float32."""

    channel: str
    source: str
    seq: int
    value: float | None
    unit: str
    quality: int
    source_wall_ns: int | None = None
    rate_hz: float = 0.0
    block: bytes | None = None


def reading_body(reading: Reading) -> ReadingBody:
    """The wire form of a reading."""
    block = None if reading.block is None else reading.block.astype("<f4", copy=False).tobytes()
    return ReadingBody(
        reading.channel,
        reading.source,
        reading.seq,
        reading.value,
        reading.unit,
        reading.quality,
        reading.source_wall_ns,
        reading.rate_hz,
        block,
    )


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[Record])
_body_decoder = msgspec.msgpack.Decoder()


def encode_batch(records: Sequence[Record]) -> bytes:
    """Records to one compressed batch."""
    return zlib.compress(_encoder.encode(records), _LEVEL)


def decode_batch(data: bytes, max_bytes: int = MAX_BATCH_BYTES) -> list[Record]:
    """One batch to its records. Raises InputError when it is damaged, of another form, or larger than `max_bytes` unpacked."""
    inflater = zlib.decompressobj()
    try:
        plain = inflater.decompress(data, max_bytes)
        if not inflater.eof:
            problem = "is cut short" if not inflater.unconsumed_tail else f"unpacks to more than {max_bytes} bytes"
            raise InputError(f"batch of {len(data)} bytes {problem}")
        return _decoder.decode(plain)
    except (zlib.error, msgspec.MsgspecError) as err:
        raise InputError(f"batch of {len(data)} bytes cannot be decoded: {err}") from err


def encode_body(body: object) -> msgspec.Raw:
    """A body (dict, list or Struct) to its MessagePack form."""
    return msgspec.Raw(_encoder.encode(body))


def decode_body(body: msgspec.Raw) -> Any:
    """A body back to plain dicts, lists and scalars. Raises InputError when damaged."""
    try:
        return _body_decoder.decode(body)
    except msgspec.MsgspecError as err:
        raise InputError(f"record body cannot be decoded: {err}") from err
