"""The graph of a deployment's pipelines, driven by readings on the bus: reading -> windows -> trigger -> inference or features.

Everything happens in the call that publishes a reading, on the event loop, except the inference of models too slow for it.
The graph is changed between two readings: windows whose inputs did not change stay full, readings are never lost, inferences
under way are finished and published under the digest of the model that made them, and models no longer named are closed.
No rules, no facts: whoever keeps facts listens for `Inference` and `Features`. An unknown pipeline says so once: quality BAD,
no values, no label.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import msgspec

from edge_runtime.bus import Bus
from edge_runtime.clock import Clock
from edge_runtime.config.deployment import PipelineSpec, SensorSpec
from edge_runtime.ingest import stale_after_s
from edge_runtime.pipeline.canary import CanaryFigures
from edge_runtime.pipeline.features import FeatureChain, Features
from edge_runtime.pipeline.plan import Draft, Plan, WindowKey, make_plan
from edge_runtime.pipeline.preprocess import NotFinite
from edge_runtime.pipeline.runner import Binding, ModelHandle, Runner, Worker, update_cost
from edge_runtime.pipeline.triggers import Conditions, EveryHop, Trigger
from edge_runtime.pipeline.windows import ChannelTiming, GapPolicy, Snapshot, Window
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Inference, Quality, Reading, Timestamp

__all__ = ["Flow", "FlowCounters", "ModelHandle", "Plan"]

log = logging.getLogger(__name__)

OVERRUN = "inference_overrun"
OUTDATED = "inference_outdated"


@dataclass
class FlowCounters:
    """What the flow did since it was made."""

    windows: int = 0  # windows that a trigger let through
    inferences: int = 0
    features: int = 0
    unknown: int = 0  # transitions to unknown
    errors: int = 0
    overruns: int = 0  # windows replaced by a newer one before their model was free
    hangs: int = 0  # models that did not answer in time
    outdated: int = 0  # results that arrived after their pipeline became unknown
    lost: dict[str, int] = field(default_factory=dict)  # windows reset, by reason


@dataclass(slots=True)
class _State:
    """What outlives a change of the graph: the standing of one pipeline's facts, by name."""

    pipeline: str
    model: str = ""
    digest: str = ""
    names: tuple[str, ...] = ()  # of features; empty for models
    known: bool | None = None  # None: nothing said yet
    epoch: int = 0  # rises when results under way lose their worth
    last_seq: int = 0
    waiting: int = 0  # inferences in a thread
    waiting_since_ns: int | None = None  # None: nothing waits, or it is already known to hang
    forget_when_idle: bool = False
    failing_since_ns: int | None = None
    failures: int = 0


class _Pipeline:
    """One pipeline in force."""

    __slots__ = ("binding", "draft", "features", "seen_seq", "state", "trigger", "window")

    def __init__(self, draft: Draft, state: _State) -> None:
        self.draft = draft
        self.state = state
        self.trigger: Trigger | None = None if type(draft.trigger) is EveryHop else draft.trigger
        self.binding = draft.binding
        self.features = draft.features
        self.window: Window | None = None
        self.seen_seq = -1


class _Source:
    """One window in force and the pipelines that share it."""

    __slots__ = ("flow", "pipelines", "window")

    def __init__(self, flow: Flow, key: WindowKey, gap: GapPolicy) -> None:
        _, size, hop, specs = key
        timings = [ChannelTiming(spec.rate_hz, stale_after_s(spec), spec.on_stale == "hold") for spec in specs]
        self.flow = flow
        self.window = Window(timings, size, hop, self.full, self.lost, gap)
        self.pipelines: tuple[_Pipeline, ...] = ()

    def full(self, window: Snapshot) -> None:
        for pipeline in self.pipelines:
            if pipeline.trigger is None or pipeline.trigger.on_hop():
                self.flow.infer(pipeline, window)

    def lost(self, reason: str, at: Timestamp, seq: int) -> None:
        lost = self.flow.counters.lost
        lost[reason] = lost.get(reason, 0) + 1
        for pipeline in self.pipelines:
            self.flow.become_unknown(pipeline.state, at, seq)


class Flow:
    """Runs the pipelines. Lives on one event loop; only `prepare` may be called elsewhere.

    `deterministic`: every inference is inline and the same readings give the same events, bit for bit; use it with a virtual
    clock, for latencies are read from `clock`. Without a running event loop at `apply`, everything is inline too.
    A model in a thread that does not answer within `hang_s` makes its pipelines unknown.
    `on_drop(reason, count)` is told of windows not inferred: `inference_overrun`, `inference_outdated`.
    """

    def __init__(
        self,
        bus: Bus,
        clock: Clock,
        *,
        deterministic: bool = False,
        on_drop: Callable[[str, int], None],
        gap: GapPolicy = GapPolicy(),  # noqa: B008 - frozen value
        inline_limit_ms: float = 2.0,
        hang_s: float = 10.0,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._now = clock.monotonic_ns
        self._deterministic = deterministic
        self._on_drop = on_drop
        self._gap = gap
        self._inline_limit_ns = inline_limit_ms * 1e6
        self._hang_ns = int(hang_s * 1e9)
        self._routes: dict[str, tuple[tuple[Callable[[int, Reading], None], int], ...]] = {}
        self._sources: dict[WindowKey, _Source] = {}
        self._pipelines: tuple[_Pipeline, ...] = ()
        self._states: dict[str, _State] = {}
        self._runners: dict[int, Runner] = {}
        self._models: dict[int, LoadedModel] = {}
        self._guests: dict[int, Runner] = {}  # canary models, and in whose thread they run
        self._loop: asyncio.AbstractEventLoop | None = None
        self._busy = False
        self._later: deque[Callable[[], None]] = deque()
        self._retiring: list[Worker] = []
        self._in_flight = 0
        self._idle: list[asyncio.Future[None]] = []
        self._unsubscribe: Callable[[], None] | None = bus.subscribe(Reading, self._on_reading)
        self.counters = FlowCounters()

    def configure(
        self,
        sensors: Mapping[str, SensorSpec],
        pipelines: Mapping[str, PipelineSpec],
        models: Mapping[str, ModelHandle],
        *,
        conditions: Conditions | None = None,
    ) -> Mapping[str, str]:
        """`prepare` and `apply` in one: the graph is in force on return. Returns the pipelines refused, with the reason.

        A refused pipeline (its model is missing or does not fit, an unknown step) is unknown; the others run. A refused canary, named
        PIPELINE@canary, leaves its pipeline to the active model.
        """
        plan = self.prepare(sensors, pipelines, models, conditions=conditions)
        self.apply(plan)
        return {**plan.refused, **plan.alone}

    def prepare(
        self,
        sensors: Mapping[str, SensorSpec],
        pipelines: Mapping[str, PipelineSpec],
        models: Mapping[str, ModelHandle],
        *,
        conditions: Conditions | None = None,
    ) -> Plan:
        """Checks and compiles a graph and warms its new models up; changes nothing.

        May run in a worker thread; one plan at a time: apply it or leave it before the next is made.
        """
        return make_plan(sensors, pipelines, models, runners=self._runners, now_ns=self._now(), conditions=conditions)

    def apply(self, plan: Plan) -> None:
        """Puts a plan in force between two readings; inside a handler, after the present reading.

        From here on the flow owns the plan's models: those that a later plan does not name are closed.
        """
        self._do(lambda: self._swap(plan))

    def tick(self, now: Timestamp) -> None:
        """Runs what is due: channels that fell silent, schedules, pipelines whose model hangs."""
        self._do(lambda: self._tick(now))

    def notify(self, rule: str) -> None:
        """Tells the event triggers that a rule fired; inside a handler, they run after the present reading."""
        self._do(lambda: self._notify(rule))

    def next_deadline_ns(self) -> int | None:
        """Monotonic time at which `tick` has something to do."""
        silent = [at for source in self._sources.values() if (at := source.window.deadline_ns()) is not None]
        due = [at for p in self._pipelines if p.trigger is not None and (at := p.trigger.deadline_ns()) is not None]
        hangs = [s.waiting_since_ns + self._hang_ns for s in self._states.values() if s.waiting_since_ns is not None]
        return min(silent + due + hangs, default=None)

    @property
    def in_flight(self) -> int:
        """Inferences waiting for or running in a thread."""
        return self._in_flight

    async def idle(self) -> None:
        """Returns when no inference is under way in a thread."""
        if self._in_flight:
            waiter = asyncio.get_running_loop().create_future()
            self._idle.append(waiter)
            await waiter

    def close(self, timeout_s: float = 2.0) -> None:
        """Takes no more readings, closes every model; waits at most `timeout_s` for those that run in threads."""
        if self._unsubscribe is not None:
            self._unsubscribe()
            self._unsubscribe = None
        self._routes = {}
        self._sources = {}
        self._pipelines = ()
        self._retire({})
        deadline_s = time.monotonic() + timeout_s
        for worker in self._retiring:
            if not worker.join(max(0.0, deadline_s - time.monotonic())):
                log.warning("model still running at close; it is left to end by itself")
        self._retiring = []

    def infer(self, pipeline: _Pipeline, window: Snapshot) -> None:
        """Infers one full window, inline or in the model's thread."""
        self.counters.windows += 1
        pipeline.seen_seq = window.last_seq
        binding = pipeline.binding
        if binding is None:
            self._features(pipeline, window)
            return
        worker = binding.runner.worker
        if worker is not None:
            self._submit(worker, binding, pipeline.state, window)
            return
        try:
            result = binding.infer(window, self._now)
        except Exception as err:  # noqa: BLE001 - border: any inference runtime
            self._failed(pipeline.state, err, window.at, window.last_seq)
            return
        self._publish(pipeline.state, result)
        binding.follow(window, result, self._now)
        if not self._deterministic and update_cost(binding, result.latency_ns, self._inline_limit_ns):
            self._start_worker(binding.runner, binding.handle.name)

    def canaries(self) -> list[CanaryFigures]:
        """Every canary that runs, in the order of the pipelines."""
        return [p.binding.canary.figures() for p in self._pipelines if p.binding is not None and p.binding.canary is not None]

    def become_unknown(self, state: _State, at: Timestamp, seq: int) -> None:
        """Says once that a pipeline's facts are unknown; results under way have lost their worth."""
        state.epoch += 1
        if state.known:
            self._say_unknown(state, at, seq)

    def _on_reading(self, reading: Reading) -> None:
        routes = self._routes.get(reading.channel)
        if routes is None:
            return
        if self._busy:
            self._later.append(lambda: self._route(reading))
            return
        self._busy = True
        try:
            for push, channel in routes:
                push(channel, reading)
        finally:
            self._busy = False
            if self._later:
                self._drain()

    def _route(self, reading: Reading) -> None:
        for push, channel in self._routes.get(reading.channel, ()):
            push(channel, reading)

    def _do(self, action: Callable[[], None]) -> None:
        """Runs an action now, or after the reading whose handlers asked for it."""
        self._later.append(action)
        if not self._busy:
            self._drain()

    def _drain(self) -> None:
        self._busy = True
        try:
            while self._later:
                self._later.popleft()()
        finally:
            self._busy = False

    def _swap(self, plan: Plan) -> None:
        self._loop = None if self._deterministic else _running_loop()
        old_keys = {pipeline.state.pipeline: pipeline.draft.key for pipeline in self._pipelines}
        self._sources = {key: self._sources.get(key) or _Source(self, key, self._gap) for key in plan.windows()}
        self._pipelines = tuple(self._pipeline(draft) for draft in plan.drafts)
        for key, source in self._sources.items():
            source.pipelines = tuple(pipeline for pipeline in self._pipelines if pipeline.draft.key == key)
        self._routes = _routes(self._sources)
        self._retire({id(handle.model): handle.model for handle in plan.models.values()})
        self._runners.update(plan.runners)
        self._guests |= {id(d.binding.second.handle.model): d.binding.runner for d in plan.drafts if d.binding and d.binding.second}
        for binding in [draft.binding for draft in plan.drafts if draft.binding]:
            if binding.runner.worker is None and binding.cost_ns > self._inline_limit_ns:
                self._start_worker(binding.runner, binding.handle.name)
        new_keys = {draft.name: draft.key for draft in plan.drafts}
        self._forget_changed({name for name, key in old_keys.items() if new_keys.get(name) != key}, plan)

    def _pipeline(self, draft: Draft) -> _Pipeline:
        state = self._states.setdefault(draft.name, _State(draft.name))
        if draft.binding is not None:
            state.model, state.digest, state.names = draft.binding.handle.name, draft.binding.handle.digest, ()
        elif draft.features is not None:
            state.model, state.digest, state.names = "", "", draft.features.names
        pipeline = _Pipeline(draft, state)
        pipeline.window = self._sources[draft.key].window
        return pipeline

    def _forget_changed(self, changed: set[str], plan: Plan) -> None:
        """Facts of pipelines that are gone, refused, or start with an empty window become unknown."""
        at = self._clock.now()
        for name, reason in plan.refused.items():
            state = self._states.setdefault(name, _State(name))
            state.model, state.digest = plan.pipelines[name].model or "", ""
            state.known = True if state.known is None else state.known
            changed.add(name)
            log.debug("pipeline unknown pipeline=%s reason=%s", name, reason)
        for name in sorted(changed):
            state = self._states[name]
            if state.waiting:
                state.forget_when_idle = True
            elif state.known:
                self._say_unknown(state, at, 0)
        self._states = {name: state for name, state in self._states.items() if name in plan.pipelines or state.waiting}

    def _retire(self, kept: Mapping[int, LoadedModel]) -> None:
        """Closes the models that are not kept: now, or in their thread after what waits there. Canaries first: they have none."""
        self._retiring = [worker for worker in self._retiring if not worker.join(0)]
        gone = {key: model for key, model in self._models.items() if key not in kept}
        for key in gone.keys() & self._guests.keys():
            host, model = self._guests.pop(key), gone.pop(key)
            self._runners.pop(key, None)
            if host.worker is not None:
                host.worker.do(lambda model=model: _close(model))  # type: ignore[misc]
            else:
                _close(model)
        for key, model in gone.items():
            runner = self._runners.pop(key, None)
            if runner is not None and runner.worker is not None:
                runner.worker.retire(lambda model=model: _close(model))  # type: ignore[misc]
                self._retiring.append(runner.worker)
            else:
                _close(model)
        self._models = dict(kept)

    def _start_worker(self, runner: Runner, name: str) -> None:
        loop = self._loop
        if loop is None:
            return
        log.info("model runs in its own thread model=%s cost_ms=%.2f", name, runner.cost_ns / 1e6)

        def post(action: Callable[[], None]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to tell
                loop.call_soon_threadsafe(action)

        runner.worker = Worker(name, self._now, post)

    def _submit(self, worker: Worker, binding: Binding, state: _State, window: Snapshot) -> None:
        epoch = state.epoch

        def settle(result: Inference | Exception) -> None:
            self._do(lambda: self._settle(state, epoch, result, window.at, window.last_seq))

        if worker.submit(binding, window, settle):
            self.counters.overruns += 1
            self._on_drop(OVERRUN, 1)
        else:
            if not state.waiting:
                state.waiting_since_ns = self._now()
            state.waiting += 1
            self._in_flight += 1

    def _settle(self, state: _State, epoch: int, result: Inference | Exception, at: Timestamp, seq: int) -> None:
        state.waiting -= 1
        state.waiting_since_ns = self._now() if state.waiting else None
        self._in_flight -= 1
        if epoch != state.epoch:
            self.counters.outdated += 1
            self._on_drop(OUTDATED, 1)
        elif isinstance(result, Exception):
            self._failed(state, result, at, seq)
        else:
            self._publish_late(state, result)
        if not state.waiting and state.forget_when_idle:
            state.forget_when_idle = False
            if state.known:
                self._say_unknown(state, at, seq)
        if not self._in_flight:
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle.clear()

    def _publish_late(self, state: _State, result: Inference) -> None:
        """A result of the old graph may come after one of the new: it is recorded, and marked as out of order."""
        if result.last_seq >= state.last_seq:
            self._publish(state, result)
            return
        self.counters.inferences += 1
        quality = max(result.quality, Quality.UNCERTAIN)
        self._bus.publish(_with_quality(result, quality))

    def _publish(self, state: _State, result: Inference) -> None:
        state.known = True
        state.last_seq = result.last_seq
        if state.failing_since_ns is not None:
            self._recovered(state)
        self.counters.inferences += 1
        self._bus.publish(result)

    def _features(self, pipeline: _Pipeline, window: Snapshot) -> None:
        chain: FeatureChain | None = pipeline.features
        state = pipeline.state
        assert chain is not None
        try:
            values = chain(window.data)
        except NotFinite as err:
            self._failed(state, err, window.at, window.last_seq)
            return
        state.known = True
        state.last_seq = window.last_seq
        if state.failing_since_ns is not None:
            self._recovered(state)
        self.counters.features += 1
        self._bus.publish(Features(state.pipeline, window.at, values, window.first_seq, window.last_seq, window.quality))

    def _say_unknown(self, state: _State, at: Timestamp, seq: int) -> None:
        state.known = False
        self.counters.unknown += 1
        event: Features | Inference
        if state.names:
            event = Features(state.pipeline, at, dict.fromkeys(state.names), seq, seq, Quality.BAD)
        else:
            event = Inference(state.pipeline, state.model, state.digest, at, seq, seq, (), quality=Quality.BAD)
        self._bus.publish(event)

    def _failed(self, state: _State, err: Exception, at: Timestamp, seq: int) -> None:
        self.counters.errors += 1
        state.failures += 1
        if state.failing_since_ns is None:
            state.failing_since_ns = self._now()
            log.error("inference failing pipeline=%s model=%s digest=%s error=%s", state.pipeline, state.model, state.digest, err)
        if state.known is not False:
            self._say_unknown(state, at, seq)

    def _recovered(self, state: _State) -> None:
        assert state.failing_since_ns is not None
        failed_s = (self._now() - state.failing_since_ns) / 1e9
        log.info("inference works again pipeline=%s after_s=%.1f failures=%d", state.pipeline, failed_s, state.failures)
        state.failing_since_ns = None
        state.failures = 0

    def _tick(self, now: Timestamp) -> None:
        for source in self._sources.values():
            source.window.expire(now)
        for pipeline in self._pipelines:
            if pipeline.trigger is not None and pipeline.trigger.due(now.mono_ns):
                self._infer_latest(pipeline, only_new=True)

        for state in self._states.values():
            if state.waiting_since_ns is not None and now.mono_ns - state.waiting_since_ns >= self._hang_ns:
                state.waiting_since_ns = None
                self.counters.hangs += 1
                log.error("inference hangs pipeline=%s model=%s digest=%s", state.pipeline, state.model, state.digest)
                self.become_unknown(state, now, state.last_seq)

    def _notify(self, rule: str) -> None:
        for pipeline in self._pipelines:
            if pipeline.trigger is not None and pipeline.trigger.on_rule(rule):
                self._infer_latest(pipeline, only_new=False)

    def _infer_latest(self, pipeline: _Pipeline, only_new: bool) -> None:
        window = pipeline.window.latest() if pipeline.window is not None else None
        if window is not None and not (only_new and window.last_seq == pipeline.seen_seq):
            self.infer(pipeline, window)


def _routes(sources: Mapping[WindowKey, _Source]) -> dict[str, tuple[tuple[Callable[[int, Reading], None], int], ...]]:
    routes: dict[str, tuple[tuple[Callable[[int, Reading], None], int], ...]] = {}
    for (channels, *_), source in sources.items():
        for index, channel in enumerate(channels):
            routes[channel] = (*routes.get(channel, ()), (source.window.push, index))
    return routes


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _close(model: LoadedModel) -> None:
    try:
        model.close()
    except Exception as err:  # noqa: BLE001 - border: any inference runtime; the graph is already changed
        log.warning("model did not close error=%s", err)


def _with_quality(result: Inference, quality: Quality) -> Inference:
    return msgspec.structs.replace(result, quality=quality)
