"""A model's way onto a node: what is sent next, what the answer means, and where the update stands. Pure; the links do the sending.

CHECKED -> UPLOADED -> ON_TRIAL -> CONFIRMED
     \\-> REFUSED  \\-> REFUSED  \\-> ROLLED_BACK
"""

from __future__ import annotations

import struct
import zlib
from enum import StrEnum
from typing import NamedTuple

import msgspec

from adapters.node.messages import ModelState, Source
from edge_runtime.errors import AdapterError, InputError

MAGIC = 0x314E5245

_HEADER = struct.Struct("<IHBBIII")
_NAME = slice(64, 80)
_HEADER_BYTES = 96
_TRAILER_BYTES = 36
_MOST_REWINDS = 8


class Phase(StrEnum):
    """Where an update stands."""

    CHECKED = "checked"
    UPLOADED = "uploaded"
    ON_TRIAL = "on_trial"
    CONFIRMED = "confirmed"
    REFUSED = "refused"
    ROLLED_BACK = "rolled_back"


_MOVES = {
    Phase.CHECKED: {Phase.UPLOADED, Phase.REFUSED},
    Phase.UPLOADED: {Phase.ON_TRIAL, Phase.REFUSED},
    Phase.ON_TRIAL: {Phase.CONFIRMED, Phase.ROLLED_BACK},
    Phase.CONFIRMED: set(),
    Phase.REFUSED: set(),
    Phase.ROLLED_BACK: set(),
}


def move(phase: Phase, to: Phase) -> Phase:
    """Raises AdapterError for a move that is none."""
    if to not in _MOVES[phase]:
        raise AdapterError(f"an update that is {phase.value} cannot become {to.value}")
    return to


class Image(msgspec.Struct, frozen=True):
    """What a blob says of itself."""

    name: str
    version: int
    size_bytes: int
    arena_bytes: int


def image(blob: bytes) -> Image:
    """Looks at a blob before anything is sent. Raises InputError for what no node would take."""
    if len(blob) < _HEADER_BYTES + _TRAILER_BYTES:
        raise InputError(f"expected a model blob of {_HEADER_BYTES + _TRAILER_BYTES} bytes or more, got {len(blob)}")
    magic, form, _rounding, _flags, size, version, arena = _HEADER.unpack_from(blob)
    if magic != MAGIC or form != 1:
        raise InputError("not a model blob for a node: make one with `edge-runtime model export-c MODEL --out FILE`")
    if size != len(blob) or size % 4:
        raise InputError(f"the blob says that it has {size} bytes, and there are {len(blob)}: it was cut or changed")
    if zlib.crc32(blob[:-_TRAILER_BYTES]) != int.from_bytes(blob[-_TRAILER_BYTES:-32], "little"):
        raise InputError("the blob's checksum is wrong: it was changed after it was exported")
    name = blob[_NAME].split(b"\0", 1)[0].decode("ascii", "replace")
    return Image(name, version, size, arena)


def check(blob: Image, *, slot_bytes: int, arena_bytes: int, highest_confirmed: int) -> None:
    """Raises InputError for a model that this node will refuse, before its link is used for it."""
    if blob.size_bytes > slot_bytes:
        raise InputError(f"the model has {blob.size_bytes} bytes and the node's slot {slot_bytes}: use a smaller network")
    if blob.arena_bytes > arena_bytes:
        raise InputError(f"the model needs {blob.arena_bytes} bytes of RAM for its tensors and the node has {arena_bytes}")
    if blob.version <= highest_confirmed:
        raise InputError(
            f"version {blob.version} is not above {highest_confirmed}, the highest one that this node confirmed: "
            f"export the model again with --version {highest_confirmed + 1}"
        )


class Upload(NamedTuple):
    """Bytes under way: `offset` is what the node has."""

    size: int
    chunk: int
    offset: int = 0
    rewinds: int = 0


def next_chunk(upload: Upload) -> tuple[int, int] | None:
    """From where to where to send next; None when the node has everything."""
    if upload.offset >= upload.size:
        return None
    return upload.offset, min(upload.offset + max(1, upload.chunk), upload.size)


def after_data(upload: Upload, there: int) -> Upload:
    """The upload after the node said how many bytes it has. Raises AdapterError when it makes no sense or never ends."""
    chunk = next_chunk(upload)
    if chunk is not None and there == chunk[1]:
        return upload._replace(offset=there)
    if not 0 <= there <= upload.size or upload.rewinds >= _MOST_REWINDS:
        raise AdapterError(f"the node has {there} of {upload.size} bytes after {upload.offset} were sent: start the update again")
    return upload._replace(offset=there, rewinds=upload.rewinds + 1)


def after_boot(phase: Phase, wanted: Image, running: ModelState) -> Phase:
    """What a node that came back from its reset tells of the update: still on trial, confirmed, or not the new model at all."""
    if running.source is Source.FACTORY or running.version != wanted.version:
        return move(phase, Phase.ROLLED_BACK)
    return phase if running.on_trial else move(phase, Phase.CONFIRMED)
