"""Recorded data through the whole local loop under a virtual clock: the same windows, models, rules and leases as on a gateway.

Nothing depends on the machine's speed or clock, so two replays of the same data give the same bits. Every row is accounted for.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.actuation.driver import Output
from edge_runtime.clock import BUILD_WALL_NS, VirtualClock
from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import SensorBinding
from edge_runtime.errors import InputError
from edge_runtime.loop import LocalLoop
from edge_runtime.recordings import KNOWN_LABELS, Recording, canonical, open_recordings
from edge_runtime.records import RecordKind
from edge_runtime.serving import Served
from edge_runtime.types import Action, Decision, Inference, Notice, Priority, Quality, Sample, Timestamp

_SOURCE = "recording"
_BLOCK = 1024
_BOOT = "replay"


@dataclass
class Score:
    """Alarms against labels, row by row. A row is alarmed when an alarming rule is active after it."""

    tp: int = 0
    fp: int = 0
    fn: int = 0
    tn: int = 0

    def add(self, alarm: bool, label: bool) -> None:
        """Counts one row."""
        key = ("tn", "fn", "fp", "tp")[2 * alarm + label]
        setattr(self, key, getattr(self, key) + 1)

    def as_dict(self) -> dict[str, Any]:
        """Precision, recall and F1 in 0..1; false and missed alarm rates in %."""
        precision, recall = _ratio(self.tp, self.tp + self.fp), _ratio(self.tp, self.tp + self.fn)
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        far, mar = 100 * _ratio(self.fp, self.fp + self.tn), 100 * _ratio(self.fn, self.fn + self.tp)
        counts = {"tp": self.tp, "fp": self.fp, "fn": self.fn, "tn": self.tn}
        rates = {"precision": precision, "recall": recall, "f1": f1, "far": far, "mar": mar}
        return counts | {name: round(value, 4) for name, value in rates.items()}


@dataclass
class Outcome:
    """What a replay gave: its decisions and actions as lines, and the accounting."""

    lines: list[dict[str, Any]] = field(default_factory=list)
    rows: int = 0
    cells: int = 0
    cells_missing: int = 0
    readings: int = 0
    inferences: int = 0
    duplicates: int = 0
    out_of_order: int = 0
    malformed: int = 0
    dropped: dict[str, int] = field(default_factory=dict)
    notices: dict[str, int] = field(default_factory=dict)
    score: Score | None = None

    def digest(self) -> str:
        """sha256 over all lines: equal digests are equal decisions, bit for bit."""
        return hashlib.sha256(b"\n".join(msgspec.json.encode(line, order="sorted") for line in self.lines)).hexdigest()

    def summary(self) -> dict[str, Any]:
        """The accounting as plain values."""
        document: dict[str, Any] = {
            "rows": self.rows,
            "duplicates": self.duplicates,
            "out_of_order": self.out_of_order,
            "malformed": self.malformed,
            "cells": self.cells,
            "cells_missing": self.cells_missing,
            "readings": self.readings,
            "dropped": dict(sorted(self.dropped.items())),
            "accounted": self.cells == self.readings + sum(n for reason, n in self.dropped.items() if not reason.startswith("inference")),
            "inferences": self.inferences,
            "decisions": sum(line["event"] == "decision" for line in self.lines),
            "actions": sum(line["event"] == "action" for line in self.lines),
            "notices": dict(sorted(self.notices.items())),
            "digest": f"sha256:{self.digest()}",
        }
        return document | ({"score": self.score.as_dict()} if self.score else {})


class Replay:
    """One deployment over recordings, each with a fresh loop. `label` names the column that `score` compares alarms with."""

    def __init__(
        self,
        deployment: Deployment,
        served: Callable[[], Served],
        *,
        columns: Mapping[str, str] | None = None,
        label: str | None = None,
        alarms: Sequence[str] = (),
        speed: float | None = None,
        progress: Callable[[int], None] = lambda rows: None,
    ) -> None:
        known = [rule.rule for rule in deployment.rules]
        for rule in alarms:
            if rule not in known:
                raise InputError(f"--alarm: no rule `{rule}` in the deployment (known: {', '.join(known) or 'none'})")
        self._deployment = deployment
        self._served = served
        self._columns = dict(columns or {})
        self._label = label
        self._alarms = frozenset(alarms or known)
        self._speed = speed
        self._progress = progress
        self.outcome = Outcome(score=Score() if label else None)

    async def run(self, recording: Recording) -> None:
        """Adds one recording to the outcome. Raises InputError when its columns do not fit the deployment's sensors."""
        columns = self._match(recording)
        clock = VirtualClock(wall_ns=int(recording.t_ns[0]) if recording.t_ns is not None and len(recording.t_ns) else BUILD_WALL_NS)
        run = _Run(self.outcome, clock, recording, columns)
        loop = run.loop
        bindings = {sensor: SensorBinding(adapter=_SOURCE, channel=sensor) for sensor in columns}
        served = self._served()
        outputs = {name: Output(run, name) for name in self._deployment.actuators}
        refused = loop.configure(self._deployment, bindings, {}, served.handles, served.labels, outputs)
        for subject, reason in {**served.refused, **refused}.items():
            raise InputError(f"{subject}: {reason}")
        acting = asyncio.create_task(loop.actuation.run(), name="replay:actuation")
        try:
            await asyncio.sleep(0)  # the actuators' task starts them
            await run.settle()
            await self._feed(run, columns)
            await run.settle()
        finally:
            acting.cancel()
            await asyncio.gather(acting, return_exceptions=True)
            loop.flow.close()
        self._account(recording, run)

    def _match(self, recording: Recording) -> dict[str, str]:
        """Sensor to column: as told, by the same name (letters and digits count), or the one column of a segment."""
        by_name = {canonical(column): column for column in recording.columns}
        sensors = list(self._deployment.sensors)
        found = {s: self._columns.get(s) or by_name.get(canonical(s)) for s in sensors}
        if recording.t_ns is None and len(sensors) == 1:
            found = {sensors[0]: next(iter(recording.columns))}
        matched = {sensor: column for sensor, column in found.items() if column in recording.columns}
        if not matched:
            usable = [column for column in recording.columns if column not in KNOWN_LABELS]
            raise InputError(
                f"{recording.path}: no column fits a sensor of the deployment ({', '.join(sensors) or 'none'}); "
                f"columns: {', '.join(usable)}; name them with --map sensor=column"
            )
        if self._label is not None and self._label not in recording.columns:
            raise InputError(f"{recording.path}: no label column `{self._label}` (columns: {', '.join(recording.columns)})")
        return matched

    async def _feed(self, run: _Run, columns: Mapping[str, str]) -> None:
        labels = run.recording.columns[self._label] if self._label else None
        for row, step_ns, samples in run.rows(self._deployment, columns):
            if self._speed and step_ns:
                await asyncio.sleep(step_ns * 1e-9 / self._speed)
            await run.advance(step_ns)
            for sample in samples:
                run.offer(sample)
            await run.settle()
            if labels is not None and self.outcome.score is not None:
                alarm = not self._alarms.isdisjoint(run.loop.engine.active)
                self.outcome.score.add(alarm, bool(labels[row] > 0.5))
            if row % 256 == 0:
                self._progress(row)
                await asyncio.sleep(0)

    def _account(self, recording: Recording, run: _Run) -> None:
        outcome, report = self.outcome, recording.report
        outcome.rows += report.rows
        outcome.duplicates += report.duplicates
        outcome.out_of_order += report.out_of_order
        outcome.malformed += report.malformed
        outcome.readings += run.offered_readings


class _NoRecords:
    """A replay keeps no outbox: its decisions are the result."""

    def offer(self, kind: RecordKind, at: Timestamp, body: object, priority: Priority, *, urgent: bool = False) -> int:
        return 0


class _Run:
    """One recording on its way through one loop; also the actuators that a replay pretends to have."""

    def __init__(self, outcome: Outcome, clock: VirtualClock, recording: Recording, columns: Mapping[str, str]) -> None:
        self.recording = recording
        self.offered_readings = 0
        self._outcome = outcome
        self._clock = clock
        self._pending = False
        self.loop = LocalLoop(clock, _NoRecords(), boot=_BOOT, on_drop=self._drop, deterministic=True)
        self._sink = self.loop.ingest.sink(_SOURCE)
        bus = self.loop.bus
        bus.subscribe(Decision, self._on_decision)
        bus.subscribe(Action, self._on_action)
        bus.subscribe(Inference, self._on_inference)
        bus.subscribe(Notice, self._on_notice)

    def rows(self, deployment: Deployment, columns: Mapping[str, str]) -> Iterator[tuple[int, int, list[Sample]]]:
        """`(row, step since the last row in ns, samples)` in file order; a step is never negative."""
        if self.recording.t_ns is None:
            yield from self._blocks(deployment, columns)
            return
        times = self.recording.t_ns
        cells = [(sensor, self.recording.columns[column]) for sensor, column in columns.items()]
        latest = int(times[0]) if len(times) else 0
        for row in range(len(times)):
            wall_ns = int(times[row])
            quality = Quality.UNCERTAIN if wall_ns < latest else Quality.GOOD
            step_ns = max(0, wall_ns - latest)
            latest = max(latest, wall_ns)
            yield row, step_ns, [_cell(sensor, float(values[row]), quality, wall_ns) for sensor, values in cells]

    def _blocks(self, deployment: Deployment, columns: Mapping[str, str]) -> Iterator[tuple[int, int, list[Sample]]]:
        (sensor, column), *_ = columns.items()
        rate_hz = deployment.sensors[sensor].rate_hz
        values = self.recording.columns[column].astype(np.float32)
        for start in range(0, len(values), _BLOCK):
            block = values[start : start + _BLOCK]
            yield start // _BLOCK, round(len(block) / rate_hz * 1e9), [Sample(sensor, block=block, rate_hz=rate_hz)]

    async def advance(self, step_ns: int) -> None:
        """Moves the clock on, stopping at every deadline of the loop in between."""
        target = self._clock.monotonic_ns() + step_ns
        while (due := self._next_deadline()) is not None and due <= target:
            self._clock.advance_ns(max(0, due - self._clock.monotonic_ns()))
            self._tick()
            await self.settle()
            if self._next_deadline() == due:
                break  # a deadline that a tick cannot clear is met by the data that follows
        self._clock.advance_ns(target - self._clock.monotonic_ns())
        self._tick()

    def offer(self, sample: Sample) -> None:
        """Hands one sample to the loop and counts it."""
        self._outcome.cells += 1
        if sample.value is None and sample.block is None:
            self._outcome.cells_missing += 1
        before = self.loop.ingest.counters.readings
        self._sink(sample)
        self.offered_readings += self.loop.ingest.counters.readings - before

    async def settle(self) -> None:
        """Returns when every actuator has done what it was told so far."""
        while self.loop.actuation.busy or self._pending:
            self._pending = False
            await asyncio.sleep(0)

    # -- actuators --------------------------------------------------------------------------------------------

    async def actuate(self, channel: str, state: str) -> None:
        """A replay's actuator takes every state at once."""

    async def actuator_state(self, channel: str) -> str | None:
        return None

    def _next_deadline(self) -> int | None:
        due = [at for at in (self.loop.next_deadline_ns(), self.loop.actuation.next_deadline_ns()) if at is not None]
        return min(due, default=None)

    def _tick(self) -> None:
        self.loop.tick(self._clock.now())
        self.loop.actuation.tick()

    def _drop(self, reason: str, count: int) -> None:
        self._outcome.dropped[reason] = self._outcome.dropped.get(reason, 0) + count

    def _on_decision(self, decision: Decision) -> None:
        self._pending = True
        self._outcome.lines.append(_line("decision", self.recording, decision))

    def _on_action(self, action: Action) -> None:
        self._outcome.lines.append(_line("action", self.recording, action))

    def _on_inference(self, inference: Inference) -> None:
        self._outcome.inferences += 1

    def _on_notice(self, notice: Notice) -> None:
        self._outcome.notices[notice.kind] = self._outcome.notices.get(notice.kind, 0) + 1


def compare(before: Outcome, after: Outcome) -> dict[str, list[str]]:
    """Actuations that only one of two replays has, as `recording time actuator -> state`."""
    old, new = _actuations(before), _actuations(after)
    return {"only_before": [line for line in old if line not in set(new)], "only_after": [line for line in new if line not in set(old)]}


def _actuations(outcome: Outcome) -> list[str]:
    lines = (line for line in outcome.lines if line["event"] == "action" and line["outcome"] == "done")
    return [f"{line['recording']} {line['at']['wall_ns']} {line['actuator']} -> {line['state']}" for line in lines]


def _line(event: str, recording: Recording, value: msgspec.Struct) -> dict[str, Any]:
    body: dict[str, Any] = msgspec.to_builtins(value)
    return {"event": event, "recording": recording.name, **body}


def _cell(sensor: str, value: float, quality: Quality, wall_ns: int) -> Sample:
    if value != value:
        return Sample(sensor, None, quality=Quality.BAD, wall_ns=wall_ns)
    return Sample(sensor, value, quality=quality, wall_ns=wall_ns)


def _ratio(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def read_all(paths: Sequence[Path], *, strict: bool = False) -> Iterator[Recording]:
    """The recordings of all files, in the order given. Raises InputError naming the file."""
    for path in paths:
        yield from open_recordings(path, strict=strict)
