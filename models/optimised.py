"""Device-local cache of optimised graphs, so that a model is optimised once per machine and not at every start. Knows no runtime.

An optimised graph holds only for the graph, the runtime, the CPU and the level it was made with: these are its key. An entry that is
damaged, cut short, renamed or put there by something else does not match its seal and is made anew. Losing the folder costs time only.
"""

from __future__ import annotations

import hashlib
import os
import platform
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

MAX_BYTES = 256 * 1024 * 1024

_CPUINFO = Path("/proc/cpuinfo")
_STALE_S = 3600.0
_KEY_CHARACTERS = 32
_PARTIAL = ".partial-"


class Key(msgspec.Struct, frozen=True):
    """All that decides what an optimised graph looks like. `graph` is the sha256 of the source; `runtime` is name and version."""

    graph: str
    runtime: str
    cpu: str
    level: str
    providers: tuple[str, ...]

    @property
    def name(self) -> str:
        """The key in a file's name."""
        return hashlib.sha256(msgspec.json.encode(self)).hexdigest()[:_KEY_CHARACTERS]


@dataclass(frozen=True, slots=True)
class OptimisedCache:
    """A folder of optimised graphs with at most `max_bytes` in it; the least recently used go first.

    Several processes may share it. A folder that cannot be read or written only makes every look-up a miss.
    """

    folder: Path
    max_bytes: int = MAX_BYTES

    def find(self, key: Key) -> Path | None:
        """The entry whose bytes match their seal, or None; what does not match is removed."""
        for path in self._entries(key.name):
            if not path.is_symlink() and _name(key, path) == path.name:
                with suppress(OSError):
                    os.utime(path)
                return path
            self.forget(path)
        return None

    def partial(self) -> Path | None:
        """A new file to write an entry into, for `keep`; None when the folder takes none."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=_PARTIAL, suffix=".onnx", dir=self.folder)
        except OSError:
            return None
        os.close(handle)
        return Path(name)

    def keep(self, key: Key, partial: Path) -> Path | None:
        """Turns a finished partial file into the key's entry, atomically, and makes room. None when it cannot be kept."""
        self._sweep()
        try:
            name = _name(key, partial)
            if name is None or not 0 < partial.stat().st_size <= self.max_bytes:
                self.forget(partial)
                return None
            _sync(partial)
            entry = partial.replace(self.folder / name)
        except OSError:
            self.forget(partial)
            return None
        self._make_room(entry)
        return entry

    def forget(self, path: Path) -> None:
        """Removes one file of the folder; says nothing when that fails."""
        with suppress(OSError):
            path.unlink()

    def _entries(self, key_name: str = "*") -> Iterator[Path]:
        with suppress(OSError):
            yield from sorted(self.folder.glob(f"{key_name}-*.onnx"))

    def _make_room(self, newest: Path) -> None:
        """Removes the least recently used entries, and older ones of the newest's own key."""
        others = [(used, size, path) for path in self._entries() if path != newest for used, size in _usage(path)]
        left = self.max_bytes - sum(size for _, size in _usage(newest))
        for _, size, path in sorted(others, reverse=True):
            left -= size
            if left < 0 or path.name.startswith(newest.name[:_KEY_CHARACTERS]):
                self.forget(path)

    def _sweep(self) -> None:
        """Removes what a process that died while writing has left."""
        with suppress(OSError):
            for path in self.folder.glob(f"{_PARTIAL}*"):
                if time.time() - path.stat().st_mtime > _STALE_S:
                    self.forget(path)


def digest(path: Path) -> str:
    """The sha256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def instruction_sets() -> frozenset[str]:
    """What the kernel says that this machine's processor has; empty where it does not say."""
    with suppress(OSError, UnicodeDecodeError):
        for line in _CPUINFO.read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip().lower() in ("flags", "features"):
                return frozenset(value.split())
    return frozenset()


@cache
def cpu_flags() -> str:
    """A digest of the machine's architecture and instruction sets: a graph laid out for one CPU is not for another."""
    flags = " ".join(sorted(instruction_sets()))
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:16]


def _name(key: Key, path: Path) -> str | None:
    """The only name under which these bytes are this key's entry: the key and a checksum over both.

    It guards against damage, not against whoever may write into the folder; a checksum costs a tenth of a digest at every start.
    """
    seal = zlib.crc32(key.name.encode())
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                seal = zlib.crc32(chunk, seal)
            size = file.tell()
    except OSError:
        return None
    return f"{key.name}-{size}-{seal:08x}.onnx"


def _usage(path: Path) -> list[tuple[float, int]]:
    """When an entry was last used and its bytes; nothing when another process has removed it meanwhile."""
    try:
        found = path.lstat()
    except OSError:
        return []
    return [(found.st_mtime, found.st_size)]


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
