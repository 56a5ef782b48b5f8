"""The driver `replay`: a recording as hardware, in real time, faster, or as fast as it can be taken.

Cells come in file order with the source's own time; a missing cell comes as unknown, a row out of order as uncertain. Labels that
only people know (`anomaly`, `changepoint`) are no channels. For repeatable decisions use the command `replay` instead.
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
from edge_runtime.recordings import KNOWN_LABELS, Recording, open_recordings
from edge_runtime.types import ChannelInfo, ChannelKind, Health, Quality, Sample

FAULTS = ("dropout", "freeze", "disconnect", "babble")
_YIELD_EVERY = 256
_LONGEST_GAP_S = 60.0
_BABBLE_FACTOR = 20


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`speed` times real time, or `max`. `rate_hz` and `block` (samples) are for segments without times."""

    file: str | None = None
    files: tuple[str, ...] = ()
    speed: float | Literal["max"] = 1.0
    loop: bool = False
    rate_hz: float = 1.0
    block: int = 256
    channels: tuple[str, ...] = ()
    units: dict[str, str] = {}


class ReplayAdapter:
    """Streams every channel of its recordings; the files are read at `open`."""

    def __init__(self, name: str, options: Options, clock: Clock) -> None:
        self.name = name
        self._options = options
        self._clock = clock
        self._paced = isinstance(clock, SystemClock) and options.speed != "max"
        self._recordings: list[Recording] = []
        self._faults = dict.fromkeys(FAULTS, 0.0)
        self._frozen: dict[str, Sample] = {}
        self._open = False
        self._counters = {"rows": 0, "samples": 0, "missing": 0, "out_of_order": 0, "duplicates": 0, "malformed": 0}

    async def open(self) -> None:
        self._check_link()
        paths = [Path(file) for file in (*([self._options.file] if self._options.file else []), *self._options.files)]
        try:
            self._recordings = await asyncio.to_thread(lambda: [r for path in paths for r in open_recordings(path)])
        except InputError as err:
            raise AdapterError(f"{self.name}: {err}") from err
        for recording in self._recordings:
            self._counters["out_of_order"] += recording.report.out_of_order
            self._counters["duplicates"] += recording.report.duplicates
            self._counters["malformed"] += recording.report.malformed
        unknown = sorted(set(self._options.channels) - {name for r in self._recordings for name in r.columns})
        if unknown:
            raise AdapterError(f"{self.name}.options.channels: no column {', '.join(unknown)} in the recordings")
        self._open = True

    async def close(self) -> None:
        self._open = False

    def channels(self) -> Sequence[ChannelInfo]:
        names = dict.fromkeys(name for recording in self._recordings for name in recording.columns if self._wanted(name))
        rate_hz = self._options.rate_hz
        return [ChannelInfo(name, ChannelKind.STREAMING, self._options.units.get(name, ""), rate_hz) for name in names]

    def health(self) -> Health:
        faults = [fault for fault, severity in self._faults.items() if severity]
        return Health(self._open and not faults, ", ".join(faults) or f"{len(self._recordings)} recordings", dict(self._counters))

    async def stream(self, channels: Sequence[str], sink: SampleSink) -> None:
        known = [info.channel for info in self.channels()]
        for channel in channels:
            if channel not in known:
                near = get_close_matches(channel, known, n=1)
                hint = f"; did you mean `{near[0]}`?" if near else ""
                raise InputError(f"{self.name}: no such channel `{channel}`{hint} (known: {', '.join(known)})")
        while True:
            for recording in self._recordings:
                await self._play(recording, frozenset(channels), sink)
            if not self._options.loop:
                return
            await asyncio.sleep(0)

    def inject(self, fault: str, severity: float) -> None:
        """Starts (severity > 0) or ends (0) a fault of the source."""
        if fault not in self._faults:
            raise InputError(f"{self.name}: unknown fault `{fault}` (known: {', '.join(FAULTS)})")
        if not 0 <= severity <= 1:
            raise InputError(f"{self.name}: severity of `{fault}`: expected 0..1, got {severity}")
        self._faults[fault] = severity
        self._frozen.clear()

    async def _play(self, recording: Recording, wanted: frozenset[str], sink: SampleSink) -> None:
        columns = {name: values for name, values in recording.columns.items() if name in wanted}
        rows = self._rows(recording, columns) if recording.t_ns is not None else self._blocks(columns)
        due_ns = self._clock.monotonic_ns()
        for index, (step_ns, samples) in enumerate(rows):
            due_ns += self._scaled(step_ns)
            await self._pace(due_ns, index)
            self._check_link()
            self._counters["rows"] += 1
            for sample in samples:
                self._emit(sample, sink)

    def _rows(self, recording: Recording, columns: Mapping[str, Any]) -> Iterator[tuple[int, list[Sample]]]:
        assert recording.t_ns is not None
        latest = int(recording.t_ns[0]) if len(recording.t_ns) else 0
        for row, wall_ns in enumerate(recording.t_ns.tolist()):
            quality = Quality.UNCERTAIN if wall_ns < latest else Quality.GOOD
            step_ns = max(0, wall_ns - latest)
            latest = max(latest, wall_ns)
            yield step_ns, [_cell(name, float(values[row]), quality, wall_ns) for name, values in columns.items()]

    def _blocks(self, columns: Mapping[str, Any]) -> Iterator[tuple[int, list[Sample]]]:
        rate_hz, size = self._options.rate_hz, self._options.block
        for name, values in columns.items():
            data = values.astype(np.float32)
            for start in range(0, len(data), size):
                block = data[start : start + size]
                yield round(len(block) / rate_hz * 1e9), [Sample(name, block=block, rate_hz=rate_hz)]

    def _emit(self, sample: Sample, sink: SampleSink) -> None:
        if self._faults["dropout"]:
            return
        if self._faults["freeze"]:
            sample = self._frozen.setdefault(sample.channel, sample)
        self._counters["missing"] += sample.value is None and sample.block is None
        for _ in range(_BABBLE_FACTOR if self._faults["babble"] else 1):
            self._counters["samples"] += 1
            sink(sample)

    def _scaled(self, step_ns: int) -> int:
        """Gaps of a recording are shortened to a minute: nobody waits for a weekend."""
        speed = self._options.speed
        return 0 if speed == "max" else round(min(step_ns / speed, _LONGEST_GAP_S * 1e9))

    async def _pace(self, due_ns: int, index: int) -> None:
        wait_ns = due_ns - self._clock.monotonic_ns()
        if self._paced and wait_ns > 0:
            await asyncio.sleep(wait_ns * 1e-9)
        elif index % _YIELD_EVERY == 0:
            await asyncio.sleep(0)

    def _check_link(self) -> None:
        if self._faults["disconnect"]:
            raise AdapterDisconnected(f"{self.name}: the source is disconnected")

    def _wanted(self, column: str) -> bool:
        return column not in KNOWN_LABELS and (not self._options.channels or column in self._options.channels)


def _cell(channel: str, value: float, quality: Quality, wall_ns: int) -> Sample:
    if value != value:
        return Sample(channel, None, quality=Quality.BAD, wall_ns=wall_ns)
    return Sample(channel, value, quality=quality, wall_ns=wall_ns)


def open_adapter(name: str, options: Mapping[str, Any], clock: Clock) -> ReplayAdapter:
    """The factory behind the driver `replay`. Raises InputError on options that cannot be."""
    decoded = decode_options(options, Options, name)
    if decoded.file is None and not decoded.files:
        raise InputError(f"{name}.options: expected `file` or `files`, got neither; name a CSV or npz recording")
    if decoded.speed != "max" and not decoded.speed > 0:
        raise InputError(f"{name}.options.speed: expected a number above 0 or `max`, got {decoded.speed}")
    if not decoded.rate_hz > 0 or decoded.block < 1:
        raise InputError(f"{name}.options: expected rate_hz above 0 and block of at least 1, got {decoded.rate_hz:g} and {decoded.block}")
    return ReplayAdapter(name, decoded, clock)
