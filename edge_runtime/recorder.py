"""Decides which events of the bus become durable records, and of which priority. It writes nothing itself.

The deployment's `sync.telemetry.mode` draws the line: readings on this side of it stay on the gateway and are counted as kept.
"""

from __future__ import annotations

from typing import Protocol

from edge_runtime.bus import Bus
from edge_runtime.records import RecordKind, reading_body
from edge_runtime.types import Action, Decision, Inference, Notice, Priority, Reading, Timestamp

_MODES = ("none", "results", "scalars", "all")


class RecordSink(Protocol):
    """Where records go: the durable store, or a list in a replay."""

    def offer(self, kind: RecordKind, at: Timestamp, body: object, priority: Priority, *, urgent: bool = False) -> int: ...


class Recorder:
    """Offers events to the store. A reading costs one call, and its encoding is left to the store."""

    def __init__(self, bus: Bus, sink: RecordSink) -> None:
        self._sink = sink
        self._level = _MODES.index("results")
        self.kept_local = 0
        bus.subscribe(Reading, self._reading)
        bus.subscribe(Inference, self._inference)
        bus.subscribe(Decision, self._decision)
        bus.subscribe(Action, self._action)
        bus.subscribe(Notice, self._notice)

    def set_mode(self, mode: str) -> None:
        """One of `none`, `results`, `scalars`, `all`. Decisions, actions and notices are recorded in every mode."""
        self._level = _MODES.index(mode)

    def _reading(self, reading: Reading) -> None:
        if self._level < (2 if reading.block is None else 3):
            self.kept_local += 1
            return
        self._sink.offer(RecordKind.READING, reading.at, reading_body(reading), Priority.BULK)

    def _inference(self, inference: Inference) -> None:
        if self._level >= 1:
            self._sink.offer(RecordKind.INFERENCE, inference.at, inference, Priority.RESULT)

    def _decision(self, decision: Decision) -> None:
        self._sink.offer(RecordKind.DECISION, decision.at, decision, Priority.EVENT, urgent=True)

    def _action(self, action: Action) -> None:
        self._sink.offer(RecordKind.ACTION, action.at, action, Priority.EVENT, urgent=True)

    def _notice(self, notice: Notice) -> None:
        self._sink.offer(RecordKind.NOTICE, notice.at, notice, Priority.EVENT)
