"""Finds whole frames in a stream of bytes that may begin, break or be noisy anywhere. It knows no protocol: a `Shape` tells it.

Which frames are found depends on the bytes alone, never on how they were cut into pieces. Memory and work are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

_CANDIDATES = 4
"""How many beginnings within a broken frame are tried before its bytes are given up."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How frames look. `mark` is found within a frame; its group `end` ends one, its group `start` begins another.

    `mark_bytes` is the longest that `mark` can be. `check` is given the bytes of a frame, from its start to the end of its mark.
    """

    start: bytes
    mark: re.Pattern[bytes]
    mark_bytes: int
    max_bytes: int
    check: Callable[[bytes], bool]


@dataclass(slots=True)
class Counts:
    """What became of the bytes. `resyncs` counts frames that were cut off by another one or too long."""

    frames: int = 0
    bad_checks: int = 0
    resyncs: int = 0
    dropped_bytes: int = 0


@dataclass
class Framer:
    """Bytes in, whole frames out."""

    shape: Shape
    counts: Counts = field(default_factory=Counts)
    _buffer: bytearray = field(default_factory=bytearray)
    _inside: bool = False
    _looked: int = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The frames that `data` completes, each checked. Never raises. Is to be run to its end."""
        self._buffer += data
        while True:
            frame = self._step()
            if frame is None:
                return
            if frame:
                self.counts.frames += 1
                yield frame

    def _step(self) -> bytes | None:
        """One decision: a frame, nothing yet (b""), or None when more bytes are needed."""
        if not self._inside and not self._find_start():
            return None
        shape = self.shape
        mark = shape.mark.search(self._buffer, self._looked, shape.max_bytes)
        if mark is None:
            return self._wait()
        if mark.lastgroup == "end":
            return self._end(mark.start(), mark.end())
        if mark.lastgroup == "start":
            self.counts.resyncs += 1
            self._drop(mark.start("start"))
            self._looked = len(shape.start)
        else:
            self._looked = mark.end()
        return b""

    def _find_start(self) -> bool:
        at = self._buffer.find(self.shape.start)
        self._inside = at >= 0
        self._drop(at if at >= 0 else max(0, len(self._buffer) - len(self.shape.start) + 1))
        self._looked = len(self.shape.start)
        return self._inside

    def _wait(self) -> bytes | None:
        """For more bytes, or until it is clear that they would be too many: then half of them go."""
        limit = self.shape.max_bytes
        if len(self._buffer) < limit:
            self._looked = max(self._looked, len(self._buffer) - self.shape.mark_bytes + 1)
            return None
        self.counts.resyncs += 1
        self._drop(limit // 2)
        self._inside = False
        return b""

    def _end(self, mark_start: int, end: int) -> bytes:
        """The frame that ends here, begun at its start or at the last starts within it."""
        start, step = 0, len(self.shape.start)
        tried = end
        for _ in range(_CANDIDATES):
            frame = bytes(self._buffer[start:end])
            if self.shape.check(frame):
                self._drop(start)
                del self._buffer[: len(frame)]
                self._inside = False
                return frame
            start = self._buffer.rfind(self.shape.start, step, tried)
            if start < 0:
                break
            tried = start + step - 1
        self.counts.bad_checks += 1
        self._drop(mark_start + 1)
        self._inside = False
        return b""

    def _drop(self, count: int) -> None:
        self.counts.dropped_bytes += count
        del self._buffer[:count]
