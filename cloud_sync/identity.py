"""A gateway's identity on disk: its key, its certificate, and what it trusts. Files replaced whole; needs no cryptography library."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from edge_runtime.errors import InputError

_MAX_BYTES = 256 * 1024
_SEQUENCE, _INTEGER, _VERSION, _UTC_TIME, _GENERALIZED_TIME = 0x30, 0x02, 0xA0, 0x17, 0x18


@dataclass(frozen=True, slots=True)
class Identity:
    """Where the files of one gateway are."""

    folder: Path

    @property
    def key(self) -> Path:
        return self.folder / "gateway.key"

    @property
    def cert(self) -> Path:
        return self.folder / "gateway.pem"

    @property
    def ca(self) -> Path:
        return self.folder / "ca.pem"

    @property
    def trust_root(self) -> Path:
        return self.folder / "root.json"


@dataclass(frozen=True, slots=True)
class Validity:
    """From when to when a certificate holds, wall ns."""

    not_before_ns: int
    not_after_ns: int

    @property
    def life_ns(self) -> int:
        return self.not_after_ns - self.not_before_ns


def replace(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Writes, syncs, renames: `path` is the old file or the new one, never a part; on the disk when this returns."""
    part = path.with_name(f".{path.name}.part")
    part.unlink(missing_ok=True)
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def read_validity(pem: Path) -> Validity:
    """The validity of the first certificate in a PEM file. Raises InputError when there is none that can be read."""
    try:
        with pem.open("rb") as file:
            return parse_validity(file.read(_MAX_BYTES).decode("ascii"))
    except OSError as err:
        raise InputError(f"{pem}: {err.strerror}; join again: edge-runtime join") from err
    except ValueError as err:
        raise InputError(f"{pem} holds no certificate that can be read ({err}); join again: edge-runtime join") from err


def parse_validity(pem: str) -> Validity:
    """The validity of the first certificate in a text (RFC 5280, section 4.1). Raises ValueError."""
    begin, end = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
    start, stop = pem.find(begin), pem.find(end)
    if start < 0 or stop < start:
        raise ValueError("no certificate in it")
    der = ssl.PEM_cert_to_DER_cert(pem[start : stop + len(end)])
    fields = _Fields(_Fields(_Fields(der).take(_SEQUENCE)).take(_SEQUENCE))
    if fields.tag == _VERSION:
        fields.take(_VERSION)
    fields.take(_INTEGER)
    fields.take(_SEQUENCE)  # signature
    fields.take(_SEQUENCE)  # issuer
    times = _Fields(fields.take(_SEQUENCE))
    return Validity(times.take_time(), times.take_time())


class _Fields:
    """The fields of a DER sequence, one after the other. Raises ValueError for anything that is not as expected."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def tag(self) -> int:
        return self._byte(self._at)

    def take(self, tag: int) -> bytes:
        if self.tag != tag:
            raise ValueError(f"expected a field of type {tag:#x}, got {self.tag:#x}")
        length, start = self._byte(self._at + 1), self._at + 2
        if length & 0x80:
            count = length & 0x7F
            if not 1 <= count <= 4:
                raise ValueError("a field of no plain length")
            length, start = int.from_bytes(self._data[start : start + count], "big"), start + count
        if start + length > len(self._data):
            raise ValueError("it is cut off")
        self._at = start + length
        return self._data[start : self._at]

    def take_time(self) -> int:
        """A time, as wall ns."""
        kind = self.tag
        text = self.take(kind).decode("ascii")
        if kind == _UTC_TIME:
            text = ("19" if text[:2] >= "50" else "20") + text
        elif kind != _GENERALIZED_TIME:
            raise ValueError(f"expected a time, got a field of type {kind:#x}")
        return int(datetime.strptime(text, "%Y%m%d%H%M%SZ").replace(tzinfo=UTC).timestamp()) * 10**9

    def _byte(self, at: int) -> int:
        if at >= len(self._data):
            raise ValueError("it is cut off")
        return self._data[at]
