"""The driver `replay`: a recording as hardware, in real time, faster, or as fast as it can be taken.

Cells come in file order with the source's own time; a missing cell comes as BAD, a row out of order as uncertain. Labels that only
people know (`anomaly`, `changepoint`) are no channels. For repeatable decisions use the command `replay` instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from edge_runtime.clock import Clock, SystemClock
from edge_runtime.errors import AdapterDisconnected, AdapterError, InputError
from edge_runtime.options import decode_options
from edge_runtime.ports import SampleSink
from edge_runtime.recordings import Column, Recording, Times, open_recordings
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

FAULTS = ("dropout", "freeze", "disconnect", "babble")

_YIELD_EVERY = 256
_LONGEST_WAIT_S = 0.25
_BABBLE_FACTOR = 20
_CHUNK = 4096
_SEED = 1


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """Options of the gateway file. `rate_hz` and `block` (samples) are for segments without times.

    `channel` gives all segments one name, so that they follow each other on one channel. A step of the recording longer than
    `longest_gap_s` is shortened to that.
    """

    file: str | None = None
    files: tuple[str, ...] = ()
    speed: float | Literal["max"] = 1.0
    loop: bool = False
    rate_hz: float = 1.0
    block: int = 256
    channel: str | None = None
    channels: tuple[str, ...] = ()
    units: dict[str, str] = {}
    longest_gap_s: float = 60.0


class ReplayAdapter:
    """Streams every channel of its recordings, which are read at `open`."""

    def __init__(self, name: str, options: Options, clock: Clock) -> None:
        self.name = name
        self._options = options
        self._clock = clock
        self._live = isinstance(clock, SystemClock)
        self._recordings: list[Recording] = []
        self._faults = dict.fromkeys(FAULTS, 0.0)
        self._frozen: dict[str, Sample] = {}
        self._random = np.random.default_rng(_SEED)
        self._session = 0
        self._open = False
        self._counters = dict.fromkeys(("rows", "samples", "missing", "dropped", "out_of_order", "duplicates", "malformed"), 0)

    async def open(self) -> None:
        self._check_link()
        paths = [Path(file) for file in (*([self._options.file] if self._options.file else []), *self._options.files)]
        try:
            self._recordings = await asyncio.to_thread(lambda: [r for path in paths for r in open_recordings(path)])
        except InputError as err:
            raise AdapterError(f"{self.name}: {err}") from err
        for count in ("out_of_order", "duplicates", "malformed"):
            self._counters[count] = sum(getattr(recording.report, count) for recording in self._recordings)
        columns = dict.fromkeys(name for recording in self._recordings for name in recording.channels)
        for option, names in (("channels", self._options.channels), ("units", self._options.units)):
            for name in names:
                if name not in columns and name != self._options.channel:
                    raise AdapterError(f"{self.name}.options.{option}: {_unknown(name, list(columns))}")
        self._session += 1
        self._open = True

    async def close(self) -> None:
        self._open = False

    def channels(self) -> Sequence[ChannelInfo]:
        infos: dict[str, ChannelInfo] = {}
        for recording in self._recordings:
            rate_hz = 1e9 / recording.report.step_ns if recording.report.step_ns else self._options.rate_hz
            for channel in self._columns(recording):
                unit = self._options.units.get(channel, "")
                infos.setdefault(channel, ChannelInfo(channel, ChannelKind.STREAMING, unit, rate_hz, description=str(recording.path)))
        return list(infos.values())

    def health(self) -> Health:
        faults = [fault for fault, severity in self._faults.items() if severity]
        return Health(self._open and not faults, ", ".join(faults) or f"{len(self._recordings)} recordings", dict(self._counters))

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        known = [info.channel for info in self.channels()]
        self._check_open(self._session)
        for channel in channels:
            if channel not in known:
                raise InputError(f"{self.name}: {_unknown(channel, known)}")
        while True:
            for recording in self._recordings:
                await self._play(recording, frozenset(channels), sink)
            if not self._options.loop:
                return
            await asyncio.sleep(0)

    def inject(self, fault: str, severity: float) -> None:
        """Starts (severity > 0) or ends (0) a fault of the source.

        `dropout` loses that share of the samples, `freeze` repeats the last values, `babble` sends each up to 20 times more,
        `disconnect` breaks the link. Raises InputError naming the known faults.
        """
        if fault not in self._faults:
            near = get_close_matches(fault, FAULTS, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise InputError(f"{self.name}: unknown fault `{fault}`{hint} (known: {', '.join(FAULTS)})")
        if not 0 <= severity <= 1:
            raise InputError(f"{self.name}: severity of `{fault}`: expected a number in 0..1, got {severity!r}")
        self._faults[fault] = severity
        self._frozen.clear()

    # -- rows and blocks ------------------------------------------------------------------------------------------------------

    async def _play(self, recording: Recording, wanted: frozenset[str], sink: SampleSink) -> None:
        columns = {channel: values for channel, values in self._columns(recording).items() if channel in wanted}
        steps = self._blocks(columns) if recording.t_ns is None else _rows(recording.t_ns, columns)
        session = self._session
        due_ns = self._clock.monotonic_ns()
        for index, (step_ns, samples) in enumerate(steps):
            due_ns += self._scaled(step_ns)
            await self._pace(due_ns, index, session)
            self._counters["rows"] += 1
            for sample in samples:
                self._emit(sample, sink)

    def _blocks(self, columns: Mapping[str, Column]) -> Iterator[tuple[int, list[Sample]]]:
        """A block is due when its last sample was taken."""
        rate_hz, size = self._options.rate_hz, self._options.block
        for channel, values in columns.items():
            data = values.astype(np.float32)
            for start in range(0, len(data), size):
                block = data[start : start + size]
                yield round(len(block) / rate_hz * 1e9), [Sample(channel, block=block, rate_hz=rate_hz)]

    def _columns(self, recording: Recording) -> dict[str, Column]:
        chosen = {
            name: values for name, values in recording.channels.items() if not self._options.channels or name in self._options.channels
        }
        if self._options.channel is None or recording.t_ns is not None:
            return chosen
        return dict.fromkeys([self._options.channel], next(iter(chosen.values()))) if chosen else {}

    def _emit(self, sample: Sample, sink: SampleSink) -> None:
        faults = self._faults
        if faults["dropout"] and self._random.random() < faults["dropout"]:
            self._counters["dropped"] += 1
            return
        if faults["freeze"]:
            sample = _frozen(sample, self._frozen.setdefault(sample.channel, sample))
        self._counters["missing"] += sample.value is None and sample.block is None
        for _ in range(1 + round(_BABBLE_FACTOR * faults["babble"])):
            self._counters["samples"] += 1
            sink(sample)

    # -- time and link --------------------------------------------------------------------------------------------------------

    def _scaled(self, step_ns: int) -> int:
        """A long gap of the recording is shortened: nobody waits for a weekend."""
        speed = self._options.speed
        return 0 if speed == "max" else round(min(step_ns / speed, self._options.longest_gap_s * 1e9))

    async def _pace(self, due_ns: int, index: int, session: int) -> None:
        """Waits until the row is due; a virtual clock is only looked at, once a turn of the loop."""
        if index % _YIELD_EVERY == 0:
            await asyncio.sleep(0)
        while True:
            self._check_open(session)
            wait_ns = due_ns - self._clock.monotonic_ns()
            if wait_ns <= 0:
                return
            await asyncio.sleep(min(wait_ns * 1e-9, _LONGEST_WAIT_S) if self._live else 0)

    def _check_open(self, session: int) -> None:
        if not self._open or session != self._session:
            raise AdapterDisconnected(f"{self.name}: not open")
        self._check_link()

    def _check_link(self) -> None:
        if self._faults["disconnect"]:
            raise AdapterDisconnected(f"{self.name}: the source is disconnected")


def _rows(times: Times, columns: Mapping[str, Column]) -> Iterator[tuple[int, list[Sample]]]:
    """`(step on since the latest time, samples)`; a row out of order is due at once and uncertain."""
    latest = int(times[0]) if len(times) else 0
    for start in range(0, len(times), _CHUNK):
        chunk = slice(start, start + _CHUNK)
        lists = {channel: values[chunk].tolist() for channel, values in columns.items()}
        for row, wall_ns in enumerate(times[chunk].tolist()):
            quality = Quality.UNCERTAIN if wall_ns < latest else Quality.GOOD
            step_ns = max(0, wall_ns - latest)
            latest += step_ns
            yield step_ns, [_cell(channel, values[row], quality, wall_ns) for channel, values in lists.items()]


def _cell(channel: str, value: float, quality: Quality, wall_ns: int) -> Sample:
    if value != value:
        return Sample(channel, None, quality=Quality.BAD, wall_ns=wall_ns)
    return Sample(channel, value, quality=quality, wall_ns=wall_ns)


def _frozen(sample: Sample, first: Sample) -> Sample:
    """Time goes on, the value does not; a block repeats its first value."""
    if sample.block is None or first.block is None:
        return Sample(sample.channel, first.value, quality=first.quality, wall_ns=sample.wall_ns)
    return Sample(sample.channel, block=np.full_like(sample.block, first.block[0]), rate_hz=sample.rate_hz, wall_ns=sample.wall_ns)


def _unknown(channel: str, known: Sequence[str]) -> str:
    near = get_close_matches(channel, known, n=1)
    hint = f"; did you mean `{near[0]}`?" if near else ""
    return f"no such channel `{channel}` in the recordings{hint} (known: {', '.join(known) or 'none'})"


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> ReplayAdapter:
    """The factory behind the driver `replay`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    if decoded.file is None and not decoded.files:
        raise InputError(f"{name}.options: expected `file` or `files`, got neither; name a CSV or npz recording")
    if decoded.speed != "max" and not decoded.speed > 0:
        raise InputError(f"{name}.options.speed: expected a number above 0 or `max`, got {decoded.speed}")
    if not decoded.rate_hz > 0 or decoded.block < 1:
        raise InputError(f"{name}.options: expected rate_hz above 0 and block of at least 1, got {decoded.rate_hz:g} and {decoded.block}")
    if not decoded.longest_gap_s > 0:
        raise InputError(f"{name}.options.longest_gap_s: expected a number above 0, got {decoded.longest_gap_s:g}")
    return ReplayAdapter(name, decoded, clock)
