"""A file on its way to the gateway's disk, whatever it travels over: what of it is whole outlives a lost link, a kill and a restart.

A block of one MiB counts as fetched only when its signed hash agrees and it is on the disk, and only then is that noted: a download goes
on from its whole blocks. The signed size bounds everything. Knows nothing of where pieces come from.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
from pathlib import Path

from cloud_sync.trust import Artifact
from edge_runtime.errors import DeploymentReason, DeploymentRefused

PIECE_BYTES = 64 * 1024
BLOCK_BYTES = 1024 * 1024
MAX_BAD = 5
MIN_RATE = 4096
"""Bytes a second, below which a source is given up."""
SLACK_S = 60.0
_PER_BLOCK = BLOCK_BYTES // PIECE_BYTES
_SPARE_BYTES = 4 * 1024 * 1024


class PartialFile:
    """A file on its way: `<name>.part` and beside it `<name>.map`, a byte for every block that is whole and on the disk."""

    def __init__(self, artifact: Artifact, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._artifact = artifact
        self._path = folder / artifact.name.replace("/", "-")
        self._part = self._path.with_suffix(".part")
        self._map = self._path.with_suffix(".map")
        self._blocks = max(1, -(-artifact.size_bytes // BLOCK_BYTES))
        self._whole = self._read_map()
        self._open: dict[int, set[int]] = {}
        self.bad = 0

    def __enter__(self) -> PartialFile:
        require_room(self._part, self._artifact.size_bytes)
        self._file = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def missing(self) -> set[int]:
        """Pieces of every block that is not whole."""
        pieces = count_pieces(self._artifact.size_bytes)
        return {number for number in range(pieces) if not self._whole[number // _PER_BLOCK]}

    async def take(self, number: int, data: bytes) -> None:
        """Writes one piece; with a block's last one the block is checked, and noted or asked for anew."""
        try:
            os.pwrite(self._file, data, number * PIECE_BYTES)
            block = number // _PER_BLOCK
            have = self._open.setdefault(block, set())
            have.add(number)
            if len(have) == self._pieces_of(block):
                del self._open[block]
                await asyncio.to_thread(self._close_block, block)
        except OSError as err:
            raise DeploymentRefused(DeploymentReason.NO_SPACE, f"{self._part}: {err.strerror or err}") from err

    def check(self) -> None:
        """Raises DeploymentRefused(MODEL_UNAVAILABLE) when too many blocks came damaged."""
        if self.bad > MAX_BAD:
            raise unavailable(f"{self._artifact.name}: {self.bad} blocks came damaged; the source's copy is not what was signed")

    async def finish(self) -> Path:
        """The whole file in its place, once its digest agrees; else everything is fetched anew next time."""
        return await asyncio.to_thread(self._finish)

    def _finish(self) -> Path:
        with self._part.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        self._map.unlink(missing_ok=True)
        if digest != self._artifact.sha256 or self._part.stat().st_size != self._artifact.size_bytes:
            self._part.unlink()
            raise unavailable(f"{self._artifact.name} is not what was signed; it is fetched again")
        self._part.replace(self._path)
        return self._path

    def _close_block(self, block: int) -> None:
        wanted = self._artifact.blocks
        if block < len(wanted):
            data = os.pread(self._file, BLOCK_BYTES, block * BLOCK_BYTES)
            if hashlib.sha256(data).hexdigest() != wanted[block]:
                self.bad += 1
                return
        os.fdatasync(self._file)
        self._whole[block] = 1
        self._map.write_bytes(self._artifact.sha256.encode() + bytes(self._whole))

    def _read_map(self) -> bytearray:
        """What an earlier attempt has fetched of the same file."""
        try:
            noted = self._map.read_bytes()
        except OSError:
            noted = b""
        marks = noted.removeprefix(self._artifact.sha256.encode())
        fits = len(marks) == self._blocks and noted != marks and self._part.exists()
        return bytearray(marks) if fits else bytearray(self._blocks)

    def _pieces_of(self, block: int) -> int:
        return min(_PER_BLOCK, count_pieces(self._artifact.size_bytes) - block * _PER_BLOCK)


def unavailable(message: str) -> DeploymentRefused:
    """A file that could not be had now; trying again later may help."""
    return DeploymentRefused(DeploymentReason.MODEL_UNAVAILABLE, message)


def require_room(path: Path, size: int) -> None:
    """Raises DeploymentRefused(NO_SPACE) where the rest of a file does not fit."""
    have = path.stat().st_blocks * 512 if path.exists() else 0
    stat = os.statvfs(path.parent)
    free = stat.f_bavail * stat.f_frsize
    if size - have + _SPARE_BYTES > free:
        raise DeploymentRefused(DeploymentReason.NO_SPACE, f"{path.parent}: {size} bytes are to come, {free} are free")


def count_pieces(total: int) -> int:
    """Pieces of a file; an empty one has one."""
    return max(1, -(-total // PIECE_BYTES))


def piece_length(number: int, total: int) -> int:
    """Bytes of one piece of a file of `total` bytes."""
    return max(0, min(PIECE_BYTES, total - number * PIECE_BYTES))
