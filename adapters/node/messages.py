"""The node's messages as values, and the bytes that they are on a wire (adapters/firmware/PROTOCOL.md, version 1).

Pure: no link, no time. A payload of the wrong length or with a value that cannot be is MalformedMessage, never anything else.
"""

from __future__ import annotations

import math
import struct
from enum import IntEnum, IntFlag
from typing import Any, NamedTuple

import msgspec

from edge_runtime.errors import AdapterError

PROTOCOL_VERSION = 1
MOST_PAYLOAD_BYTES = 1040
MOST_CHUNK_BYTES = 1024
MOST_LEASE_MS = 600_000

STATS = (
    "uptime_s", "frames_in", "frames_out", "bad_frames", "overruns", "samples", "sensor_errors", "inferences", "inference_ticks",
    "leases_expired", "events_dropped", "packets_in", "packets_out", "bad_packets", "coap_requests", "coap_retransmissions",
)  # fmt: skip

_HELLO = struct.Struct("<B3s16sIIIHBBIIBBHI16sI")
_MODEL = struct.Struct("<BBBBI16s3H3HfifiIIHBB")
_READING = struct.Struct("<IIib3x")
_RESULT = struct.Struct("<BBHI")
_LINE = struct.Struct("<BBI")
_NOTICE = struct.Struct("<BBH")


class Request(IntEnum):
    """What a gateway asks; the reply has this type + 0x80."""

    PING = 0x01
    HELLO = 0x02
    MODEL = 0x03
    READ = 0x04
    SUBSCRIBE = 0x05
    INFER = 0x06
    ACTUATE = 0x07
    LINES = 0x08
    STATS = 0x09
    RESET = 0x0A
    OTA_BEGIN = 0x10
    OTA_DATA = 0x11
    OTA_COMMIT = 0x12
    OTA_TRIAL = 0x13
    OTA_CONFIRM = 0x14
    OTA_ROLLBACK = 0x15


class Event(IntEnum):
    """What a node says by itself."""

    READING = 0x40
    INFERENCE = 0x41
    LOG = 0x42
    NOTICE = 0x43


class What(IntEnum):
    """What a subscription sends."""

    READINGS = 1
    INFERENCES = 2
    BOTH = 3


class Status(IntEnum):
    """How a request ended."""

    OK = 0
    UNKNOWN = -1
    CORRUPT = -2
    SIGNATURE = -3
    TOO_LARGE = -4
    DOWNGRADE = -5
    STATE = -6
    OFFSET = -7
    MALFORMED = -8
    HARDWARE = -9
    UNSUPPORTED = -10
    FORBIDDEN = -11  # over CoAP only


_REASONS = {
    Status.UNKNOWN: "it knows no such request, sensor or line",
    Status.CORRUPT: "the model's checksum or structure is wrong: export it again and send it again",
    Status.SIGNATURE: "the model is not signed with this node's key: export it with --key",
    Status.TOO_LARGE: "it does not fit the node's slot, arena or frame",
    Status.DOWNGRADE: "the model's version is not above the highest one confirmed: raise it",
    Status.STATE: "not now: no upload is open, nothing is on trial, or its window of samples is not full yet",
    Status.OFFSET: "the chunk does not continue the upload",
    Status.MALFORMED: "the request has the wrong length or a value out of range",
    Status.HARDWARE: "the sensor does not answer: look at its wiring and address",
    Status.UNSUPPORTED: "the model uses something that this firmware does not know",
    Status.FORBIDDEN: "its page in flash keeps CoAP from this (node provision --readonly): use the UART",
}


class Capability(IntFlag):
    """What a node can do."""

    READING = 1
    STREAM = 2
    INFERENCE = 4
    LINES = 8
    OTA = 16
    COAP = 32
    WATCHDOG = 64
    NOT_PROVISIONED = 128


class Source(IntEnum):
    """Where the model that runs lies."""

    FACTORY = 0
    SLOT_A = 1
    SLOT_B = 2


class NoticeKind(IntEnum):
    """What a notice tells."""

    BOOTED = 1
    LEASE_EXPIRED = 2
    ROLLED_BACK = 3


class MalformedMessage(AdapterError):
    """A node said something that is not the protocol."""


class NodeRefused(AdapterError):
    """The node answered a request with another status than ok."""

    def __init__(self, what: str, status: int, detail: bytes = b"") -> None:
        self.status = Status(status) if status in Status._value2member_map_ else None
        self.detail = detail
        name = self.status.name.lower() if self.status is not None else "unknown status"
        reason = _REASONS.get(self.status, "see PROTOCOL.md") if self.status is not None else "see PROTOCOL.md"
        super().__init__(f"the node refused `{what}` with {status} {name}: {reason}")


class Hello(msgspec.Struct, frozen=True, kw_only=True):
    """Who a node is. `clock_hz` is 0 where the node did not tell."""

    board: str
    node: int
    build: str
    boots: int
    capabilities: Capability
    lines: int
    slot_bytes: int
    arena_bytes: int
    reset_cause: int
    window: int = 0
    clock_hz: int = 0
    firmware: str = ""
    highest_confirmed: int = 0
    most_payload_bytes: int = MOST_PAYLOAD_BYTES


class ModelState(msgspec.Struct, frozen=True, kw_only=True):
    """The model that runs. Without `output_scale` (0) the outputs are what the model stores."""

    name: str
    version: int
    source: Source
    on_trial: bool
    boots_on_trial: int
    seconds_left: int
    inputs: int
    outputs: int
    rounding: str = ""
    input_scale: float = 0.0
    input_zero_point: int = 0
    output_scale: float = 0.0
    output_zero_point: int = 0
    uint8_input: bool = False
    uint8_output: bool = False


class NodeReading(NamedTuple):
    """One sample; `celsius` is None when the sensor did not answer. `number` and `uptime_ms` wrap at 32 bits."""

    number: int
    uptime_ms: int
    celsius: float | None


class Result(NamedTuple):
    """One inference on the node. `ticks` are of the node's clock; under an emulator they are no time on hardware."""

    source: int
    top: int
    ticks: int
    outputs: bytes

    def values(self, model: ModelState) -> list[float]:
        """Real outputs: scale * (stored - zero point)."""
        signed = model.uint8_output is False
        stored = struct.unpack(f"{len(self.outputs)}{'b' if signed else 'B'}", self.outputs)
        scale = model.output_scale or 1.0
        return [scale * (value - model.output_zero_point) for value in stored]


class LineState(NamedTuple):
    """One output line."""

    level: int
    safe_level: int
    left_ms: int


class Notice(NamedTuple):
    """Something about the node itself; `a` and `b` as the protocol says for each kind."""

    kind: int
    a: int
    b: int


def subscribe(period_ms: int, what: What) -> bytes:
    """A period of 0 ends the subscription."""
    return struct.pack("<HB", period_ms, what)


def actuate(line: int, level: int, lease_ms: int) -> bytes:
    """A lease of 0 gives the line back to its safe level."""
    return struct.pack("<BBI", line, level, lease_ms)


def ota_begin(size: int, crc32: int, version: int) -> bytes:
    return struct.pack("<III", size, crc32, version)


def ota_data(offset: int, chunk: bytes) -> bytes:
    return struct.pack("<I", offset) + chunk


def ota_trial(confirm_s: int) -> bytes:
    return struct.pack("<H", confirm_s)


def u16(payload: bytes) -> int:
    return int(_exactly(payload, struct.Struct("<H"), "a 16-bit number")[0])


def u32(payload: bytes) -> int:
    return int(_exactly(payload, struct.Struct("<I"), "a 32-bit number")[0])


def hello(payload: bytes) -> Hello:
    """Raises MalformedMessage; also for another version of the protocol, naming both."""
    fields = _exactly(payload, _HELLO, "hello")
    protocol, version, board, node, boots, capabilities, largest, _sensors, lines, slot, arena, cause, _link, window, clock, build, top = (
        fields
    )
    if protocol != PROTOCOL_VERSION:
        raise MalformedMessage(
            f"the node speaks version {protocol} of the protocol, this gateway {PROTOCOL_VERSION}: update the older of the two"
        )
    return Hello(
        board=_text(board), node=node, build=_text(build), boots=boots, capabilities=Capability(capabilities & 0xFF), lines=lines,
        slot_bytes=slot, arena_bytes=arena, reset_cause=cause, window=window, clock_hz=clock,
        firmware=".".join(f"{part}" for part in version),
        highest_confirmed=top, most_payload_bytes=largest,
    )  # fmt: skip


def model(payload: bytes) -> ModelState:
    """Raises MalformedMessage."""
    fields = _exactly(payload, _MODEL, "model")
    source, state, rounding, flags, version, name = fields[:6]
    in_h, in_w, in_c, out_h, out_w, out_c, in_scale, in_zero, out_scale, out_zero, _size, _arena, left, boots, _upload = fields[6:]
    if source not in Source._value2member_map_ or not (math.isfinite(in_scale) and math.isfinite(out_scale)):
        raise MalformedMessage(f"expected a model in the factory place or slot 1 or 2 with finite scales, got source {source}")
    return ModelState(
        name=_text(name), version=version, source=Source(source), on_trial=state == 1, boots_on_trial=boots, seconds_left=left,
        inputs=in_h * in_w * in_c, outputs=out_h * out_w * out_c, rounding="double" if rounding else "half-even",
        input_scale=in_scale, input_zero_point=in_zero, output_scale=out_scale, output_zero_point=out_zero,
        uint8_input=bool(flags & 4), uint8_output=bool(flags & 8),
    )  # fmt: skip


def reading(payload: bytes) -> NodeReading:
    """Raises MalformedMessage."""
    number, uptime_ms, milli, status = _exactly(payload, _READING, "reading")
    return NodeReading(number, uptime_ms, milli / 1000 if status == 0 else None)


def result(payload: bytes) -> Result:
    """Raises MalformedMessage, also when there are fewer outputs than announced."""
    if len(payload) < _RESULT.size:
        raise MalformedMessage(f"expected a result of {_RESULT.size} bytes or more, got {len(payload)}")
    source, top, count, ticks = _RESULT.unpack_from(payload)
    outputs = payload[_RESULT.size :]
    if len(outputs) != count:
        raise MalformedMessage(f"expected {count} outputs in a result, got {len(outputs)}")
    return Result(source, top, ticks, outputs)


def inference(payload: bytes) -> tuple[int, Result]:
    """The sample's number and the result on the window that ends with it. Raises MalformedMessage."""
    return u32(payload[:4]), result(payload[4:])


def lines(payload: bytes) -> tuple[LineState, ...]:
    """Raises MalformedMessage."""
    if len(payload) % _LINE.size:
        raise MalformedMessage(f"expected {_LINE.size} bytes per line, got {len(payload)}")
    return tuple(LineState(*fields) for fields in _LINE.iter_unpack(payload))


def stats(payload: bytes) -> dict[str, int]:
    """Raises MalformedMessage."""
    return dict(zip(STATS, _exactly(payload, struct.Struct(f"<{len(STATS)}I"), "stats"), strict=True))


def notice(payload: bytes) -> Notice:
    """Raises MalformedMessage."""
    return Notice(*_exactly(payload, _NOTICE, "notice"))


def log(payload: bytes) -> tuple[int, str]:
    """Level and printable text. Raises MalformedMessage."""
    if not payload:
        raise MalformedMessage("expected a log of a level and a text, got nothing")
    text = payload[1:].decode("ascii", "replace")
    return payload[0], "".join(letter if letter.isprintable() else "?" for letter in text)


def _exactly(payload: bytes, form: struct.Struct, what: str) -> tuple[Any, ...]:
    if len(payload) != form.size:
        raise MalformedMessage(f"expected {form.size} bytes of {what}, got {len(payload)}")
    return form.unpack(payload)


def _text(padded: bytes) -> str:
    text = padded.split(b"\0", 1)[0].decode("ascii", "replace")
    return "".join(letter if letter.isprintable() else "?" for letter in text)
