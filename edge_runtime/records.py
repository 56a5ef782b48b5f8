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


def encode_record(seq: int, kind: str, mono_ns: int, wall_ns: int, wall_err_ns: int, body: object) -> bytes:
    """One record in its wire form, uncompressed. `body` is a Struct, dict, list or Raw; TypeError when it holds anything foreign."""
    return _encoder.encode((seq, kind, mono_ns, wall_ns, wall_err_ns, body))


def pack_batch(encoded: Sequence[bytes]) -> bytes:
    """Records from `encode_record` to one compressed batch, the same bytes as `encode_batch` makes of them."""
    return zlib.compress(b"".join((_array_header(len(encoded)), *encoded)), _LEVEL)


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


def _array_header(length: int) -> bytes:
    """MessagePack's header of an array (specification, "array format family")."""
    if length < 16:
        return bytes((0x90 | length,))
    return b"\xdc" + length.to_bytes(2, "big") if length < 65_536 else b"\xdd" + length.to_bytes(4, "big")
