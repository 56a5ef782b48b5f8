"""What travels on the topics: telemetry envelope (MessagePack), acknowledgement, status and state (JSON). No I/O.

Every decoder takes hostile bytes: sizes and counts are bounded before anything is built, and InputError is all it raises.
A batch's `data` is opaque here. Its CRC-32 tells damage on the way (sent again) from damage at the source (quarantined).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Protocol, TypeVar

import msgspec

from edge_runtime.errors import InputError
from edge_runtime.ports import OutboxBatch

VERSION = 1
MAX_MESSAGE_BYTES = 8 * 1024 * 1024
MAX_JSON_BYTES = 256 * 1024
MAX_BATCHES = 1024
ENVELOPE_OVERHEAD_BYTES = 96
BATCH_OVERHEAD_BYTES = 24

Boot = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
Seq = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


class PackedBatch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One outbox batch in an envelope; satisfies what `Envelope` needs of an OutboxBatch except its boot."""

    first_seq: Seq
    count: Annotated[int, msgspec.Meta(ge=1, le=1_000_000)]
    crc: Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
    data: bytes

    @property
    def intact(self) -> bool:
        """Whether `data` arrived as it was sent."""
        return zlib.crc32(self.data) == self.crc


class Envelope(msgspec.Struct, frozen=True):
    """Payload of up/tlm: batches of one boot, in sending order."""

    v: int
    boot: Boot
    batches: Annotated[tuple[PackedBatch, ...], msgspec.Meta(min_length=1, max_length=MAX_BATCHES)]


class Ack(msgspec.Struct, frozen=True):
    """Payload of dn/ack: first_seq of the batches that are in the controller's database for good.

    `refused` are a part of `batches`: kept in quarantine, because their content could not be decoded.
    """

    v: int
    boot: Boot
    batches: Annotated[tuple[Seq, ...], msgspec.Meta(max_length=MAX_BATCHES)]
    refused: Annotated[tuple[Seq, ...], msgspec.Meta(max_length=MAX_BATCHES)] = ()


class Status(msgspec.Struct, frozen=True, omit_defaults=True):
    """Payload of up/status, retained: birth (online) or will (offline) of one boot."""

    v: int
    boot: Boot
    online: bool
    version: Annotated[str, msgspec.Meta(max_length=64)] = ""


class State(msgspec.Struct, frozen=True):
    """Payload of up/state. `seq` rises within a boot; `ledger` and `status` are for the controller's audit and console."""

    v: int
    boot: Boot
    seq: Seq
    wall_ns: int
    ledger: dict[str, Any]
    status: dict[str, Any]


_Message = TypeVar("_Message", Envelope, Ack, Status, State)
_Decoded = TypeVar("_Decoded", covariant=True)


class _Decoder(Protocol[_Decoded]):
    def decode(self, payload: bytes, /) -> _Decoded: ...


_pack = msgspec.msgpack.Encoder()
_json = msgspec.json.Encoder()
_envelopes = msgspec.msgpack.Decoder(Envelope)
_acks = msgspec.json.Decoder(Ack)
_statuses = msgspec.json.Decoder(Status)
_states = msgspec.json.Decoder(State)


def encode_envelope(boot: str, batches: Sequence[OutboxBatch]) -> bytes:
    """Batches of one boot to one up/tlm payload."""
    packed = tuple(PackedBatch(batch.first_seq, batch.count, zlib.crc32(batch.data), batch.data) for batch in batches)
    return _pack.encode(Envelope(VERSION, boot, packed))


def packed_size(batch: OutboxBatch) -> int:
    """Upper bound of what a batch adds to an envelope."""
    return len(batch.data) + BATCH_OVERHEAD_BYTES


def decode_envelope(payload: bytes) -> Envelope:
    """One up/tlm payload. Raises InputError."""
    return _decode(_envelopes, payload, MAX_MESSAGE_BYTES, "telemetry")


def encode_ack(boot: str, batches: Sequence[int], refused: Sequence[int] = ()) -> bytes:
    return _json.encode(Ack(VERSION, boot, tuple(batches), tuple(refused)))


def decode_ack(payload: bytes) -> Ack:
    """One dn/ack payload. Raises InputError."""
    return _decode(_acks, payload, MAX_JSON_BYTES, "acknowledgement")


def encode_status(boot: str, online: bool, version: str = "") -> bytes:
    return _json.encode(Status(VERSION, boot, online, version))


def decode_status(payload: bytes) -> Status:
    """One up/status payload. Raises InputError."""
    return _decode(_statuses, payload, MAX_JSON_BYTES, "status")


def encode_state(boot: str, seq: int, wall_ns: int, ledger: Mapping[str, Any], status: Mapping[str, Any]) -> bytes:
    return _json.encode(State(VERSION, boot, seq, wall_ns, dict(ledger), dict(status)))


def decode_state(payload: bytes) -> State:
    """One up/state payload. Raises InputError."""
    return _decode(_states, payload, MAX_JSON_BYTES, "state")


def _decode(decoder: _Decoder[_Message], payload: bytes, limit: int, what: str) -> _Message:
    if len(payload) > limit:
        raise InputError(f"{what} of {len(payload)} bytes is over the limit of {limit}")
    try:
        message = decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, ValueError) as err:
        raise InputError(f"{what} of {len(payload)} bytes cannot be decoded: {err}") from err
    if message.v != VERSION:
        raise InputError(f"{what} has version {message.v}, this program knows {VERSION}: update it")
    return message
