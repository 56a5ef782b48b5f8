"""The local loop: sensor -> window -> inference -> rules -> lease, in one chain of calls, with no network and no disk.

It is the same for a running gateway and for a replay: only the clock, the source of samples and the outputs differ.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from edge_runtime.actuation.arbiter import Arbiter
from edge_runtime.actuation.driver import Actuation, Output
from edge_runtime.bus import Bus
from edge_runtime.clock import Clock
from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import SensorBinding
from edge_runtime.config.verbs import actions
from edge_runtime.errors import InputError
from edge_runtime.ingest import Ingest
from edge_runtime.pipeline.features import Features
from edge_runtime.pipeline.flow import Flow
from edge_runtime.pipeline.runner import ModelHandle
from edge_runtime.reasoning import RuleEngine
from edge_runtime.reasoning.engine import Engine
from edge_runtime.reasoning.facts import fact_types, feature_facts, inference_facts, model_labels
from edge_runtime.recorder import Recorder, RecordSink
from edge_runtime.types import DecisionKind, Inference, Quality, Reading, Timestamp

log = logging.getLogger(__name__)


class LocalLoop:
    """Everything between a sample and an actuator command.

    The order of subscription is the order of effects: a reading is recorded, then windowed, then judged, then acted upon.
    `on_drop(reason, count)` hears of samples and windows that were given up.
    """

    def __init__(
        self, clock: Clock, sink: RecordSink, *, boot: str, on_drop: Callable[[str, int], None], deterministic: bool = False
    ) -> None:
        self.clock = clock
        self.bus = Bus()
        self.recorder = Recorder(self.bus, sink)
        self.ingest = Ingest(self.bus, clock, on_drop)
        self.flow = Flow(self.bus, clock, deterministic=deterministic, on_drop=on_drop)
        self.engine: RuleEngine = Engine((), {}, revision="0", boot=boot)
        self.actuation = Actuation(self.bus, clock, Arbiter({}), {}, boot=boot)
        self.deployment = Deployment(schema=1)
        self.flags: dict[str, bool] = {}
        self._boot = boot
        self._generation = 0
        self._labels: dict[str, tuple[str, ...]] = {}
        self._memory: dict[str, Any] | None = None
        self.bus.subscribe(Reading, self._on_reading)
        self.bus.subscribe(Inference, self._on_inference)
        self.bus.subscribe(Features, self._on_features)

    def configure(
        self,
        deployment: Deployment,
        bindings: Mapping[str, SensorBinding],
        units: Mapping[tuple[str, str], str],
        models: Mapping[str, ModelHandle],
        labels: Mapping[str, tuple[str, ...]],
        outputs: Mapping[str, Output],
    ) -> Mapping[str, str]:
        """Puts a deployment in force between two readings; windows, latched rules and leases that still apply go on.

        `labels` are those of all its models, also of those not loaded, whose pipelines give unknown facts. Returns the pipelines
        that cannot run, with the reason. Raises InputError for rules or units that do not fit, and changes nothing.
        """
        facts = fact_types(deployment, labels)
        for rule in deployment.rules:
            actions(rule.then)  # raises before anything is changed
        self._generation += 1
        engine = Engine(deployment.rules, facts, revision=str(deployment.revision), boot=f"{self._boot}.{self._generation}")
        self.ingest.configure(deployment.sensors, bindings, units)
        self._memory = self._memory or self.engine.snapshot()
        self._carry_over(engine)
        self.deployment, self.engine = deployment, engine
        self._labels = {
            name: model_labels(deployment, spec.model, labels) for name, spec in deployment.pipelines.items() if spec.model is not None
        }
        self.flags = {**deployment.flags, **{name: value for name, value in self.flags.items() if name in deployment.flags}}
        self.recorder.set_mode(deployment.sync.telemetry.mode)
        self.actuation.configure(deployment.rules, deployment.actuators, outputs)
        runnable = {name: spec for name, spec in deployment.pipelines.items() if spec.model is None or spec.model in models}
        refused = self.flow.configure(deployment.sensors, runnable, models, conditions=engine.watch)
        self._set_known_facts()
        self.actuation.restore(self.engine.active.values())
        return refused

    def set_flag(self, name: str, value: bool) -> None:
        """Sets a flag of the deployment, such as `maintenance`. Raises InputError for an unknown one."""
        if name not in self.flags:
            raise InputError(f"no flag `{name}` in the deployment (known: {', '.join(self.flags) or 'none'})")
        self.flags[name] = value
        now = self.clock.now()
        if self.engine.set(name, value, at_ns=now.mono_ns):
            self._step(now)

    def tick(self, now: Timestamp) -> None:
        """What follows from time alone: stale channels, scheduled inferences, `for` times, leases."""
        self.ingest.tick(now)
        self.flow.tick(now)
        self._step(now)
        self.actuation.renew(self.engine.sustained())

    def next_deadline_ns(self) -> int | None:
        """Monotonic time at which `tick` has something to do, besides renewing leases."""
        due = (self.ingest.next_deadline_ns(), self.flow.next_deadline_ns(), self.engine.next_deadline_ns())
        return min((at for at in due if at is not None), default=None)

    def snapshot(self) -> bytes:
        """What must survive a restart: latched rules, elapsed `for` times, flags."""
        rules = self.engine.snapshot() if self._memory is None else self._memory
        return msgspec.msgpack.encode({"rules": rules, "flags": self.flags})

    def restore(self, data: bytes) -> None:
        """Takes up a snapshot before `configure`. One that cannot be read is reported and left."""
        try:
            kept = msgspec.msgpack.decode(data, type=dict[str, dict[str, Any]])
            self._memory = kept["rules"]
            self.flags = {str(name): bool(value) for name, value in kept["flags"].items()}
        except (msgspec.MsgspecError, KeyError) as err:
            log.warning("the rules' memory cannot be read; they start afresh error=%s", err)

    # -- facts ------------------------------------------------------------------------------------------------------------

    def _on_reading(self, reading: Reading) -> None:
        if reading.block is None:
            self._take_reading(reading)
            self._step(reading.at)

    def _take_reading(self, reading: Reading) -> None:
        stale = reading.quality is Quality.STALE
        self.engine.set(reading.channel, reading.value, at_ns=reading.at.mono_ns, seq=reading.seq, stale=stale)

    def _on_inference(self, inference: Inference) -> None:
        spec = self.deployment.pipelines.get(inference.pipeline)
        if spec is None:
            return
        facts = inference_facts(inference, self._labels.get(inference.pipeline, ()), spec.output)
        self._set_facts(facts, inference.at, inference.last_seq, inference.digest)

    def _on_features(self, features: Features) -> None:
        spec = self.deployment.pipelines.get(features.pipeline)
        if spec is not None:
            self._set_facts(feature_facts(features, spec.output), features.at, features.last_seq, "")

    def _set_facts(self, facts: Mapping[str, Any], at: Timestamp, seq: int, digest: str) -> None:
        for name, value in facts.items():
            self.engine.set(name, value, at_ns=at.mono_ns, seq=seq, digest=digest)
        self._step(self.clock.now())

    def _set_known_facts(self) -> None:
        now = self.clock.now()
        for name, value in self.flags.items():
            self.engine.set(name, value, at_ns=now.mono_ns)
        for reading in self.ingest.latest.values():
            if reading.block is None:
                self._take_reading(reading)

    # -- decisions --------------------------------------------------------------------------------------------------------

    def _step(self, now: Timestamp) -> None:
        """Publishes every decision before any inference that one of them triggers, which may decide in its turn."""
        self._memory = None
        decisions = self.engine.step(now)
        for decision in decisions:
            self.bus.publish(decision)
        for decision in decisions:
            if decision.kind is DecisionKind.FIRED:
                self.flow.notify(decision.rule)

    def _carry_over(self, engine: Engine) -> None:
        """Latched rules and elapsed times go on under the new rules, where those did not change."""
        try:
            if self._memory is not None:
                engine.restore(self._memory)
        except InputError as err:
            log.warning("the rules' memory does not fit; they start afresh error=%s", err)
