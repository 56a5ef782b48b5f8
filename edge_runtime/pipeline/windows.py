"""Sliding windows over readings: [channels, size] float32, cut every `hop` rows, free of gaps. No model, no bus, no clock.

Samples are written once into a linear buffer that slides, so a window is a view, never a copy. A row is complete when every
channel has one value for it:

- channels of one rate: blocks are zipped sample by sample; scalars are zipped one by one, and a channel that speaks twice
  before the others have spoken once overwrites its own pending value;
- channels of different rates: the slowest sets the pace, the others contribute their latest value.

What makes a window unknown: a reading that is BAD, STALE or without a finite value, a source that restarts, a channel that
falls silent, a gap in time. Nothing that was collected survives it: the next window needs `size` fresh rows.
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from math import isfinite
from typing import Literal

import msgspec
import numpy as np

from edge_runtime.pipeline.preprocess import SMALL, is_finite
from edge_runtime.types import FloatArray, Quality, Reading, Timestamp

_FLOAT32_MAX = 3.4028234e38
_STALE = Quality.STALE
_GOOD = Quality.GOOD
_UNCERTAIN = Quality.UNCERTAIN
_MIN_SLACK_ROWS = 1024
_MAX_LEAD_ROWS = 4 * 65_536  # how far one channel may run ahead of another before the window is given up


@dataclass(frozen=True, slots=True)
class GapPolicy:
    """When time between two readings means that something is missing between them.

    A period is the sample period for scalars and the duration of the block for blocks (the longer of two neighbours).
    Above `mark_periods`, scalars mark the window UNCERTAIN and blocks reset it (a spliced waveform is a false impulse);
    above `reset_periods`, scalars reset it too. Channels that hold when stale are only ever marked.
    `by`: `source` the source's own time, `ingest` the time of arrival with `jitter_s` of grace, `auto` source time where
    there is one, `off` no check.
    """

    by: Literal["auto", "source", "ingest", "off"] = "auto"
    mark_periods: float = 1.5
    reset_periods: float = 3.0
    jitter_s: float = 0.1


@dataclass(frozen=True, slots=True)
class ChannelTiming:
    """What a window must know of one of its channels."""

    rate_hz: float
    stale_after_s: float
    hold: bool = False  # a silent channel repeats its last value instead of making the window unknown


class Snapshot(msgspec.Struct, gc=False):
    """One full window. `data` is a view, [channels, size] float32, oldest first, valid until the next push.

    `first_seq` and `since_ns` are of the earliest reading in it, `last_seq` and `at` of the one that completed it. `end` counts the
    samples since the window began or was last lost: two windows follow each other when their ends are a hop apart.
    """

    data: FloatArray
    first_seq: int
    last_seq: int
    since_ns: int
    at: Timestamp
    quality: Quality
    end: int = 0


OnFull = Callable[[Snapshot], None]
OnLost = Callable[[str, Timestamp, int], None]
"""`(reason, when, seq of the reading that caused it or 0)`."""


class _Continuity(IntEnum):
    WHOLE = 0
    MARKED = 1
    BROKEN = 2


_WHOLE, _MARKED, _BROKEN = _Continuity


class _Lane:
    """One channel of a window: where it writes, and the readings behind its rows."""

    __slots__ = (
        "block_ns", "by_source", "end_ns", "ends", "head", "heard_ns", "held", "hold", "last", "longest_ns", "period_ns", "row",
        "seqs", "source", "stale_ns", "start_ns", "started_with", "times",
    )  # fmt: skip

    def __init__(self, timing: ChannelTiming, row: FloatArray) -> None:
        self.row = row
        self.period_ns = 1e9 / timing.rate_hz
        self.stale_ns = int(timing.stale_after_s * 1e9)
        self.hold = timing.hold
        self.held = False
        self.last = math.nan
        self.source: str | None = None
        self.heard_ns: int | None = None
        self.longest_ns = 0.0
        self.restart()

    def restart(self) -> None:
        """Forgets every row; the time of the last word and the last value stay."""
        self.head = 0
        self.ends = array("q")
        self.seqs = array("q")
        self.times = array("q")
        self.end_ns: int | None = None
        self.by_source = False
        self.block_ns = 0.0
        self.start_ns = 0
        self.started_with = 0

    def note(self, seq: int, mono_ns: int) -> None:
        self.ends.append(self.head)
        self.seqs.append(seq)
        self.times.append(mono_ns)

    def drop_newest(self) -> None:
        """Takes the last scalar back."""
        self.head -= 1
        self.ends.pop()
        self.seqs.pop()
        self.times.pop()

    def drop_oldest(self, rows: int) -> None:
        """Takes the first `rows` rows off and moves the rest to the front."""
        kept = max(0, self.head - rows)
        self.row[:kept] = self.row[self.head - kept : self.head].copy()
        behind = bisect_right(self.ends, rows)
        self.ends = array("q", (end - rows for end in self.ends[behind:]))
        del self.seqs[:behind], self.times[:behind]
        self.head = kept

    def forget_before(self, row: int) -> None:
        behind = bisect_right(self.ends, row)
        del self.ends[:behind], self.seqs[:behind], self.times[:behind]

    def deadline_ns(self) -> int | None:
        """When this channel counts as silent. A block that lasts longer than the limit stretches it."""
        if self.heard_ns is None or self.held:
            return None
        return self.heard_ns + max(self.stale_ns, int(2 * self.longest_ns))


class Window:
    """The sliding window of one set of channels. `push` calls `on_full` once per window completed, in order."""

    def __init__(
        self,
        channels: Sequence[ChannelTiming],
        size: int,
        hop: int,
        on_full: OnFull,
        on_lost: OnLost,
        gap: GapPolicy = GapPolicy(),
    ) -> None:
        self.size = size
        self.hop = hop
        self.lost: dict[str, int] = {}
        self.unpaired = 0  # scalars given up because their row never completed
        self._on_full = on_full
        self._on_lost = on_lost
        self._gap = gap
        self._timed = gap.by != "off"
        self._by_source = gap.by in ("auto", "source")
        self._by_ingest = gap.by in ("auto", "ingest")
        self._mark_units = gap.mark_periods - 1
        self._jitter_ns = gap.jitter_s * 1e9
        self._buffer: FloatArray = np.zeros((len(channels), size + max(size, _MIN_SLACK_ROWS)), np.float32)
        self._lanes = [_Lane(timing, row) for timing, row in zip(channels, self._buffer, strict=True)]
        self._single = len(self._lanes) == 1
        self._mixed = len({timing.rate_hz for timing in channels}) > 1
        self._slowest_ns = max(lane.period_ns for lane in self._lanes)
        self._last: tuple[int, Timestamp] | None = None
        self._restart()

    @property
    def rows(self) -> int:
        """Complete rows since the last reset."""
        return self._rows

    def push(self, channel: int, reading: Reading) -> None:
        """Takes the next reading of the channel with that index."""
        lane = self._lanes[channel]
        at = reading.at
        lane.heard_ns = at.mono_ns
        quality = reading.quality
        block = reading.block
        if quality >= _STALE:
            if quality is _STALE and lane.hold:
                self._hold(lane)
            else:
                self._lose(quality.name.lower(), at, reading.seq)
            return
        lane.held = False
        value = reading.value
        if block is not None:
            count = len(block)
            if count == 0:
                return
            if (count > SMALL or not isfinite(block.dot(block))) and not is_finite(block):
                self._lose("not_finite", at, reading.seq)
                return
            if self._mixed:
                value = float(block[-1])
        elif value is None or not -_FLOAT32_MAX <= value <= _FLOAT32_MAX:
            self._lose("not_finite", at, reading.seq)
            return
        if reading.source != lane.source:
            if lane.source is not None:
                self._lose("source_changed", at, reading.seq)
            lane.source = reading.source
        if self._timed:
            continuity = self._judge(lane, reading)
            if continuity is not _WHOLE:
                quality = _UNCERTAIN
                if continuity is _BROKEN:
                    self._lose("gap", at, reading.seq)
                    self._judge(lane, reading)
                    quality = reading.quality
        if value is not None:
            self._write_scalar(lane, value, reading, quality)
        elif block is not None:
            self._write_block(lane, block, reading, quality)

    def latest(self) -> Snapshot | None:
        """The last `size` rows, whatever the hop; None until there are that many."""
        if self._rows < self.size or self._last is None:
            return None
        return self._snapshot(self._rows, *self._last)

    def deadline_ns(self) -> int | None:
        """When the next channel will have been silent for too long."""
        return min((at for lane in self._lanes if (at := lane.deadline_ns()) is not None), default=None)

    def expire(self, now: Timestamp) -> None:
        """Gives up on channels silent for too long: held where the channel says so, else the window is lost."""
        for lane in self._lanes:
            deadline = lane.deadline_ns()
            if deadline is None or now.mono_ns < deadline:
                continue
            lane.heard_ns = None
            if lane.hold:
                self._hold(lane)
            else:
                self._lose("stale", now, 0)

    def _restart(self) -> None:
        for lane in self._lanes:
            lane.restart()
        self._base = 0  # row number of the buffer's first column
        self._rows = 0
        self._next = self.size
        self._aligned = self._single or self._mixed
        self._marks: deque[tuple[int, int]] = deque()  # row ranges that are UNCERTAIN

    def _lose(self, reason: str, at: Timestamp, seq: int) -> None:
        self.lost[reason] = self.lost.get(reason, 0) + 1
        self._restart()
        self._on_lost(reason, at, seq)

    def _hold(self, lane: _Lane) -> None:
        lane.held = True
        if not self._single and self._last is not None:
            self._advance(*self._last)

    def _judge(self, lane: _Lane, reading: Reading) -> _Continuity:
        """Whether this reading follows the channel's last one; moves the channel's time on."""
        block = reading.block
        period = duration = lane.period_ns
        if block is not None:
            if reading.rate_hz > 0:
                period = 1e9 / reading.rate_hz
            duration = len(block) * period
            if duration > lane.longest_ns:
                lane.longest_ns = duration
        span = int(duration - period)
        start = reading.source_wall_ns if self._by_source else None
        by_source = start is not None
        if start is None:
            if not self._by_ingest:
                return _WHOLE
            start = reading.at.mono_ns - span
        previous = lane.end_ns
        unit = duration if duration > lane.block_ns else lane.block_ns
        comparable = by_source is lane.by_source
        lane.block_ns, lane.by_source, lane.end_ns = duration, by_source, start + span
        if previous is None or not comparable:
            if lane.head == 0:
                lane.start_ns, lane.started_with = start, 0 if block is None else len(block)
            return _WHOLE
        missing = start - previous - period
        if not by_source:
            missing -= self._jitter_ns
        if missing > self._mark_units * unit:
            forgiven = lane.hold or (block is None and missing <= (self._gap.reset_periods - 1) * unit)
            return _MARKED if forgiven else _BROKEN
        if by_source and start - previous <= (period - unit if block is None else (period - unit) / 2):
            return self._went_back(lane, previous, start)
        return _WHOLE

    @staticmethod
    def _went_back(lane: _Lane, previous: int, start: int) -> _Continuity:
        """The source's time repeats or went back: late or out of order, or, beyond the stale limit, started anew."""
        if previous - start > lane.stale_ns:
            return _MARKED if lane.hold else _BROKEN
        if lane.end_ns is not None and lane.end_ns < previous:
            lane.end_ns = previous
        return _MARKED

    def _write_scalar(self, lane: _Lane, value: float, reading: Reading, quality: Quality) -> None:
        if not self._single:
            self._unpair(lane, reading)
            if lane.head > self._rows:
                lane.drop_newest()
        index = lane.head - self._base
        if index == len(lane.row):
            if not self._make_room(lane):
                self._lose("unaligned", reading.at, reading.seq)
                return
            index = lane.head - self._base
        lane.row[index] = value
        lane.last = value
        lane.head += 1
        if quality is not _GOOD:
            self._marks.append((lane.head - 1, lane.head))
        lane.note(reading.seq, reading.at.mono_ns)
        self._advance(reading.seq, reading.at)

    def _write_block(self, lane: _Lane, block: FloatArray, reading: Reading, quality: Quality) -> None:
        count = len(block)
        if quality is not _GOOD:
            self._marks.append((lane.head, lane.head + count))
        end = lane.head - self._base + count
        if end <= len(lane.row):
            lane.row[end - count : end] = block
            lane.head += count
            lane.note(reading.seq, reading.at.mono_ns)
        elif not self._write_in_parts(lane, block, reading):
            self._lose("unaligned", reading.at, reading.seq)
            return
        if lane.hold:
            lane.last = float(block[-1])
        self._advance(reading.seq, reading.at)

    def _write_in_parts(self, lane: _Lane, block: FloatArray, reading: Reading) -> bool:
        """As much at a time as the buffer takes. False when this channel has run too far ahead of the others."""
        done, count = 0, len(block)
        while done < count:
            index = lane.head - self._base
            taken = min(count - done, len(lane.row) - index)
            if taken:
                lane.row[index : index + taken] = block[done : done + taken]
                done += taken
                lane.head += taken
                lane.note(reading.seq, reading.at.mono_ns)
                if self._single:
                    self._advance(reading.seq, reading.at)
            elif not self._make_room(lane):
                return False
        return True

    def _unpair(self, lane: _Lane, reading: Reading) -> None:
        """Gives up pending scalars of other channels that are too old to share a row with this one."""
        if reading.source_wall_ns is None:
            return
        oldest = reading.source_wall_ns - 0.75 * self._slowest_ns
        for other in self._lanes:
            if other is not lane and other.head > self._rows and other.by_source and other.end_ns is not None and other.end_ns < oldest:
                if other.head != self._rows + 1:
                    continue
                other.drop_newest()
                self.unpaired += 1

    def _advance(self, seq: int, at: Timestamp) -> None:
        """Counts complete rows and hands out every window that they complete."""
        rows = self._lanes[0].head if self._single else self._complete_rows()
        if rows > self._rows:
            self._rows = rows
            self._last = (seq, at)
            while self._next <= self._rows:
                end = self._next
                self._next = end + self.hop
                self._on_full(self._snapshot(end, seq, at))

    def _complete_rows(self) -> int:
        if not self._aligned and not self._align():
            return 0
        rows = min((lane.head for lane in self._lanes if not self._fills(lane)), default=self._rows)
        for lane in self._lanes:
            if lane.head < rows and self._fills(lane):
                begin = lane.head
                lane.row[begin - self._base : rows - self._base] = lane.last
                lane.head = rows
                self._marks.append((begin, rows))
        return rows

    @staticmethod
    def _fills(lane: _Lane) -> bool:
        return lane.held and lane.last == lane.last

    def _align(self) -> bool:
        """Brings the first rows of all channels to one moment; True once they are."""
        speaking = [lane for lane in self._lanes if not self._fills(lane)]
        if not all(lane.head for lane in speaking):
            return False
        begin = max((lane.start_ns for lane in speaking), default=0)
        for lane in speaking:
            late_ns = begin - lane.start_ns
            if lane.started_with == 0 or late_ns <= 0:
                continue
            skip = round(late_ns / lane.period_ns)
            if not lane.by_source:
                skip = lane.started_with if late_ns > 0.5 * lane.started_with * lane.period_ns else 0
            if skip:
                lane.start_ns += int(skip * lane.period_ns)
                lane.drop_oldest(skip)
        self._aligned = all(lane.head for lane in speaking)
        return self._aligned

    def _make_room(self, lane: _Lane) -> bool:
        """Slides the buffer to its last window, and lets it grow for a channel that runs ahead. False: too far ahead."""
        keep_from = max(0, self._rows - self.size)
        if keep_from > self._base:
            self._slide(keep_from)
        if lane.head - self._base < len(lane.row):
            return True
        if lane.head - self._rows >= _MAX_LEAD_ROWS:
            return False
        grown = np.zeros((len(self._lanes), 2 * self._buffer.shape[1]), np.float32)
        grown[:, : self._buffer.shape[1]] = self._buffer
        self._buffer = grown
        for each, row in zip(self._lanes, grown, strict=True):
            each.row = row
        return True

    def _slide(self, keep_from: int) -> None:
        shift = keep_from - self._base
        used = max(lane.head for lane in self._lanes) - self._base
        self._buffer[:, : used - shift] = self._buffer[:, shift:used]
        self._base = keep_from
        for lane in self._lanes:
            lane.forget_before(keep_from)
        while self._marks and self._marks[0][1] <= keep_from:
            self._marks.popleft()

    def _snapshot(self, end: int, seq: int, at: Timestamp) -> Snapshot:
        start = end - self.size
        if self._single:
            lane = self._lanes[0]
            first = bisect_right(lane.ends, start)
            first_seq, since_ns = lane.seqs[first], lane.times[first]
        else:
            first_seq, since_ns = self._earliest(start, seq, at.mono_ns)
        quality = _GOOD
        if self._marks and any(begin < end and stop > start for begin, stop in self._marks):
            quality = _UNCERTAIN
        data = self._buffer[:, start - self._base : end - self._base]
        return Snapshot(data, first_seq, seq, since_ns, at, quality, end)

    def _earliest(self, start: int, seq: int, mono_ns: int) -> tuple[int, int]:
        for lane in self._lanes:
            first = bisect_right(lane.ends, start)
            if first < len(lane.seqs):
                seq = min(seq, lane.seqs[first])
                mono_ns = min(mono_ns, lane.times[first])
        return seq, mono_ns
