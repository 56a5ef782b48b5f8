"""The graph: readings in, inferences and features out; change while running; slow and failing models."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pytest

from edge_runtime.bus import Bus
from edge_runtime.clock import VirtualClock
from edge_runtime.config.deployment import PipelineSpec, SensorSpec, TriggerSpec, WindowSpec
from edge_runtime.pipeline.features import Features
from edge_runtime.pipeline.flow import Flow, ModelHandle
from edge_runtime.types import Array, Inference, Quality, Reading, TensorInfo

DEADLINE_S = 20


class Mean:
    """Tells `low` or `high` by the mean; fails, or waits at a gate, when told to."""

    def __init__(self, size: int = 4) -> None:
        self.inputs = (TensorInfo("x", (1, size), "float32"),)
        self.outputs = (TensorInfo("y", (1, 2), "float32"),)
        self.fails = False
        self.closed = False
        self.gate: threading.Semaphore | None = None
        self.entered = threading.Semaphore(0)
        self.threads: set[int] = set()

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        assert not self.closed
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            self.entered.release()
            assert self.gate.acquire(timeout=DEADLINE_S)
        if self.fails:
            raise RuntimeError("device lost")
        high = float(inputs[0].mean() > 10)
        return [np.array([[1 - high, high]], np.float32)]

    def close(self) -> None:
        self.closed = True

    def handle(self, digest: str = "sha256:a") -> ModelHandle:
        return ModelHandle("bearing", digest, ("low", "high"), self)


class Rig:
    """A bus, a clock that stands still, a flow, and everything that it published."""

    def __init__(self, deterministic: bool = True, **options: float) -> None:
        self.bus = Bus()
        self.clock = VirtualClock()
        self.drops: list[str] = []
        self.flow = Flow(self.bus, self.clock, deterministic=deterministic, on_drop=lambda reason, n: self.drops.append(reason), **options)
        self.inferences: list[Inference] = []
        self.features: list[Features] = []
        self.bus.subscribe(Inference, self.inferences.append)
        self.bus.subscribe(Features, self.features.append)
        self.seq = 0

    def say(self, *values: float | None, channel: str = "vib", quality: Quality = Quality.GOOD) -> None:
        for value in values:
            self.seq += 1
            self.bus.publish(Reading("rig", channel, self.seq, self.clock.now(), value, "", quality))
            self.clock.advance(0.1)

    def say_block(self, *values: float) -> None:
        self.seq += 1
        self.clock.advance(0.1 * len(values))
        block = np.array(values, np.float32)
        self.bus.publish(Reading("rig", "vib", self.seq, self.clock.now(), None, "", block=block, rate_hz=10.0))

    def use(
        self, pipelines: Mapping[str, PipelineSpec], *handles: ModelHandle, sensors: Mapping[str, SensorSpec] | None = None
    ) -> Mapping[str, str]:
        return self.flow.configure(sensors or SENSORS, pipelines, {handle.name: handle for handle in handles})

    def tick(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.flow.tick(self.clock.now())

    @property
    def labels(self) -> list[str | None]:
        return [inference.label for inference in self.inferences]


SENSORS = {"vib": SensorSpec(rate_hz=10.0), "temp": SensorSpec(rate_hz=10.0)}


def on_model(size: int = 4, hop: int | None = None, trigger: TriggerSpec = TriggerSpec(), **options: object) -> PipelineSpec:  # noqa: B008
    window = WindowSpec(size=size, hop=hop)
    return PipelineSpec(input=("vib",), window=window, model="bearing", output="bearing", trigger=trigger, **options)  # type: ignore[arg-type]


def on_features(*channels: str, size: int = 2) -> PipelineSpec:
    return PipelineSpec(input=channels, window=WindowSpec(size=size), output="f")


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


def test_readings_become_inferences_in_the_call_that_publishes_them() -> None:
    rig = Rig()
    assert rig.use({"b": on_model(hop=2)}, Mean().handle()) == {}
    rig.say(1, 2, 3, 4, 50, 60)
    assert rig.labels == ["low", "high"]
    first, second = rig.inferences
    assert (first.pipeline, first.model, first.digest, first.values) == ("b", "bearing", "sha256:a", (1.0, 0.0))
    assert (first.first_seq, first.last_seq, second.first_seq, second.last_seq) == (1, 4, 3, 6)
    assert (second.score, second.quality, second.latency_ns) == (1.0, Quality.GOOD, 0)


def test_one_block_can_complete_several_windows() -> None:
    rig = Rig()
    rig.use({"b": on_model()}, Mean().handle())
    rig.say_block(0, 0, 0, 0, 99, 99, 99, 99, 0)
    assert rig.labels == ["low", "high"]


def test_pipelines_without_a_model_publish_features() -> None:
    rig = Rig()
    rig.use({"f": on_features("vib"), "g": on_features("vib", "temp", size=1)})
    rig.say(3, -4)
    rig.say(7, channel="temp")
    assert [(event.pipeline, event.first_seq, event.last_seq) for event in rig.features] == [("f", 1, 2), ("g", 2, 3)]
    assert rig.features[0].values["peak"] == 4
    assert rig.features[1].values["vib.rms"] == 4
    assert rig.features[1].values["temp.mean"] == 7
    rig.say(None, quality=Quality.BAD)
    assert [event.quality for event in rig.features[2:]] == [Quality.BAD, Quality.BAD]
    assert set(rig.features[2].values.values()) == {None}


def test_an_unknown_window_says_so_once_and_needs_fresh_samples() -> None:
    rig = Rig()
    rig.use({"b": on_model(hop=1)}, Mean().handle())
    rig.say(1, 2, None)
    assert rig.inferences == []
    rig.say(1, 2, 3, 4, None, None, None)
    assert rig.labels == ["low", None]
    unknown = rig.inferences[-1]
    assert (unknown.quality, unknown.values, unknown.score, unknown.digest) == (Quality.BAD, (), None, "sha256:a")
    rig.say(5, 5, 5, 5)
    assert rig.labels == ["low", None, "low"]
    assert rig.flow.counters.unknown == 1


def test_a_silent_sensor_makes_its_pipelines_unknown() -> None:
    rig = Rig()
    rig.use({"b": on_model()}, Mean().handle())
    assert rig.flow.next_deadline_ns() is None
    rig.say(1, 2, 3, 4)
    deadline_ns = rig.flow.next_deadline_ns()
    assert deadline_ns == 300_000_000 + 10**9
    rig.tick((deadline_ns - rig.clock.monotonic_ns() - 1) / 1e9)
    assert rig.labels == ["low"]
    rig.tick(1e-9)
    assert rig.labels == ["low", None]
    assert rig.flow.next_deadline_ns() is None


def test_a_schedule_infers_the_latest_window_only_when_it_is_new() -> None:
    rig = Rig()
    rig.use({"b": on_model(trigger=TriggerSpec(kind="schedule", every_s=0.5))}, Mean().handle())
    assert rig.flow.next_deadline_ns() == 500_000_000
    rig.say(1, 2, 3, 4, 99)
    rig.tick(0)
    assert rig.labels == ["high"]
    assert rig.inferences[0].last_seq == 5
    rig.tick(0.5)
    assert rig.labels == ["high"]


def test_an_event_infers_when_its_rule_fires() -> None:
    rig = Rig()
    rig.use({"b": on_model(trigger=TriggerSpec(kind="event", event="hot"))}, Mean().handle())
    rig.flow.notify("hot")
    rig.say(1, 2, 3, 4, 5)
    rig.flow.notify("cold")
    assert rig.labels == []
    rig.flow.notify("hot")
    assert rig.labels == ["low"]


def test_a_threshold_asks_its_condition_at_every_hop() -> None:
    rig = Rig()
    truths: list[bool | None] = [None, False, True]
    spec = on_model(trigger=TriggerSpec(kind="threshold", when="rms > 1"))
    rig.flow.configure(SENSORS, {"b": spec}, {"bearing": Mean().handle()}, conditions=lambda text: lambda: truths.pop(0))
    rig.say(*range(12))
    assert truths == []
    assert [inference.last_seq for inference in rig.inferences] == [12]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (on_model(size=5), "the pipeline gives [1, 5], the model's input `x` is [1, 4]"),
        (on_model(preprocess=("standardise",)), "did you mean `standardize`"),
        (
            PipelineSpec(input=("vob",), window=WindowSpec(size=4), model="bearing", output="o"),
            "input vob is no sensor; known sensors: vib",
        ),
        (PipelineSpec(input=("vib",), window=WindowSpec(size=4), model="gear", output="o"), "model gear is not loaded; loaded: bearing"),
        (on_model(trigger=TriggerSpec(kind="schedule")), "needs `every_s`"),
    ],
)
def test_a_pipeline_that_cannot_run_is_unknown_and_the_others_run(spec: PipelineSpec, message: str) -> None:
    rig = Rig()
    refused = rig.use({"bad": spec, "good": on_model()}, Mean().handle())
    assert list(refused) == ["bad"]
    assert message in refused["bad"]
    assert [(event.pipeline, event.quality) for event in rig.inferences] == [("bad", Quality.BAD)]
    rig.say(1, 2, 3, 4)
    assert rig.labels == [None, "low"]


def test_a_change_of_the_model_keeps_the_window_and_closes_the_old_model() -> None:
    rig = Rig()
    old, new = Mean(), Mean()
    rig.use({"b": on_model(), "f": on_features("vib", size=3)}, old.handle())
    rig.say(1, 2, 3)
    rig.use({"b": on_model(), "f": on_features("vib", size=3)}, new.handle("sha256:b"))
    assert (old.closed, new.closed) == (True, False)
    rig.say(4, 5, 6)
    assert [(inference.digest, inference.first_seq, inference.last_seq) for inference in rig.inferences] == [("sha256:b", 1, 4)]
    assert [(event.first_seq, event.last_seq) for event in rig.features] == [(1, 3), (4, 6)]
    rig.flow.close()
    assert new.closed
    rig.say(1, 2, 3, 4, 5, 6)
    assert len(rig.inferences) == 1


def test_a_change_of_the_window_or_the_sensor_starts_afresh_and_says_so() -> None:
    rig = Rig()
    model = Mean()
    rig.use({"b": on_model()}, model.handle())
    rig.say(1, 2, 3, 4, 5)
    rig.use({"b": on_model(hop=1)}, model.handle())
    assert rig.labels == ["low", None]
    rig.say(6, 7, 8)
    assert len(rig.inferences) == 2
    rig.say(9)
    assert rig.labels == ["low", None, "low"]
    rig.use({"b": on_model(hop=1)}, model.handle(), sensors={"vib": SensorSpec(rate_hz=20.0)})
    assert rig.labels[-1] is None
    rig.use({}, model.handle())
    assert len(rig.inferences) == 4
    assert not model.closed


def test_a_pipeline_that_is_taken_off_becomes_unknown() -> None:
    rig = Rig()
    rig.use({"b": on_model()}, Mean().handle())
    rig.say(1, 2, 3, 4)
    rig.use({})
    assert rig.labels == ["low", None]


def test_no_reading_is_lost_whenever_the_graph_changes() -> None:
    for change_at in range(1, 12):
        rig = Rig()
        rig.use({"b": on_model(size=4, hop=2)}, Mean().handle())
        for step in range(12):
            if step == change_at:
                rig.use({"b": on_model(size=4, hop=2)}, Mean().handle("sha256:b"))
            rig.say(step)
        assert [(inference.first_seq, inference.last_seq) for inference in rig.inferences] == [(1, 4), (3, 6), (5, 8), (7, 10), (9, 12)]


def test_a_change_asked_for_by_a_handler_comes_after_the_present_reading() -> None:
    rig = Rig()
    old, new = Mean(), Mean()
    both = {"b": on_model(), "c": on_model()}

    def change(inference: Inference) -> None:
        if inference.digest == "sha256:a" and inference.pipeline == "b":
            rig.use(both, new.handle("sha256:b"))

    rig.bus.subscribe(Inference, change)
    rig.use(both, old.handle())
    rig.say_block(*range(8))
    assert [(event.pipeline, event.digest, event.last_seq) for event in rig.inferences] == [
        ("b", "sha256:a", 1), ("c", "sha256:a", 1), ("b", "sha256:a", 1), ("c", "sha256:a", 1),
    ]  # fmt: skip
    assert old.closed
    rig.say_block(*range(4))
    assert {event.digest for event in rig.inferences[4:]} == {"sha256:b"}


def test_a_reading_published_by_a_handler_is_taken_after_the_present_one() -> None:
    rig = Rig()
    seen: list[tuple[int, list[float]]] = []
    rig.bus.subscribe(Inference, lambda event: rig.say(1000) if event.last_seq == 1 else None)
    rig.bus.subscribe(Inference, lambda event: seen.append((event.last_seq, list(event.values))))
    rig.use({"b": on_model(size=4, hop=4)}, Mean().handle())
    rig.say_block(*range(11))
    assert [last for last, _ in seen] == [1, 1, 2]


def test_a_failing_model_is_logged_once_and_unknown_until_it_works_again(caplog: pytest.LogCaptureFixture) -> None:
    rig = Rig()
    model = Mean()
    rig.use({"b": on_model(size=4, hop=1)}, model.handle())
    rig.say(1, 2, 3, 4)
    model.fails = True
    with caplog.at_level(logging.INFO, "edge_runtime.pipeline.flow"):
        rig.say(5, 6, 7)
        model.fails = False
        rig.say(8, 9)
    assert rig.labels == ["low", None, "low", "low"]
    assert [record.getMessage().split(" pipeline")[0] for record in caplog.records] == ["inference failing", "inference works again"]
    assert "failures=3" in caplog.text
    assert rig.flow.counters.errors == 3


def test_two_runs_give_the_same_events_bit_for_bit() -> None:
    def run() -> list[object]:
        rig = Rig()
        events: list[object] = []
        for kind in (Inference, Features):
            rig.bus.subscribe(kind, events.append)
        rig.use({"b": on_model(hop=3, preprocess=("standardize", "hann")), "f": on_features("vib", "temp")}, Mean().handle())
        noise = np.random.default_rng(5)
        for step in range(300):
            if noise.random() < 0.05:
                rig.say(None, quality=Quality.BAD)
            rig.say(float(noise.normal(10, 5)))
            rig.say(float(noise.normal()), channel="temp")
            if step % 20 == 0:
                rig.tick(float(noise.random()) * 2)
        return events

    first = run()
    assert len(first) > 100
    assert first == run()


def slow_rig() -> Rig:
    return Rig(deterministic=False, inline_limit_ms=0.0)


async def test_a_slow_model_runs_in_its_thread_and_never_holds_the_loop() -> None:
    rig = slow_rig()
    model = Mean()
    rig.use({"b": on_model()}, model.handle())
    model.threads.clear()
    model.gate = threading.Semaphore(0)
    rig.say(1, 2, 3, 4)
    assert (rig.inferences, rig.flow.in_flight) == ([], 1)
    await until(lambda: model.entered.acquire(blocking=False))
    rig.say(91, 92, 93, 94, 81, 82, 83, 84, 1, 1, 1, 1)
    assert (rig.drops, rig.flow.in_flight, rig.flow.counters.overruns) == (["inference_overrun"] * 2, 2, 2)
    model.gate.release(2)
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    assert [(inference.last_seq, inference.label) for inference in rig.inferences] == [(4, "low"), (16, "low")]
    assert threading.get_ident() not in model.threads
    assert rig.flow.counters.windows == len(rig.inferences) + len(rig.drops)
    rig.flow.close()
    assert model.closed


async def test_deterministic_is_inline_however_slow() -> None:
    rig = Rig(deterministic=True, inline_limit_ms=0.0)
    rig.use({"b": on_model()}, Mean().handle())
    rig.say(1, 2, 3, 4)
    assert rig.labels == ["low"]


async def test_a_model_that_becomes_slow_moves_to_a_thread() -> None:
    rig = Rig(deterministic=False, inline_limit_ms=1e-5)
    model = Mean()
    rig.use({"b": on_model()}, model.handle())
    (runner,) = rig.flow._runners.values()
    assert runner.worker is not None
    rig.flow.close()

    rig = Rig(deterministic=False, inline_limit_ms=10_000)
    rig.use({"b": on_model()}, Mean().handle())
    (runner,) = rig.flow._runners.values()
    assert runner.worker is None
    runner.cost_ns = 3e10
    rig.say(1, 2, 3, 4)
    assert rig.labels == ["low"]
    assert runner.worker is not None
    rig.say(5, 6, 7, 8)
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    assert rig.labels == ["low", "low"]
    rig.flow.close()


async def test_results_under_way_are_published_under_the_old_digest_after_a_change() -> None:
    rig = slow_rig()
    old, new = Mean(), Mean()
    rig.use({"b": on_model()}, old.handle())
    old.gate = threading.Semaphore(0)
    rig.say(1, 2, 3, 4)
    await until(lambda: old.entered.acquire(blocking=False))
    rig.say(5, 6, 7, 8)
    rig.use({"b": on_model()}, new.handle("sha256:b"))
    rig.say(9, 10, 11, 12)
    await until(lambda: len(rig.inferences) == 1)
    assert not old.closed
    old.gate.release(2)
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    assert [(event.digest, event.last_seq, event.quality) for event in rig.inferences] == [
        ("sha256:b", 12, Quality.GOOD),
        ("sha256:a", 4, Quality.UNCERTAIN),
        ("sha256:a", 8, Quality.UNCERTAIN),
    ]
    await until(lambda: old.closed)
    assert not new.closed
    rig.flow.close()


async def test_a_pipeline_taken_off_with_results_under_way_ends_unknown() -> None:
    rig = slow_rig()
    model = Mean()
    rig.use({"b": on_model()}, model.handle())
    model.gate = threading.Semaphore(0)
    rig.say(1, 2, 3, 4)
    rig.use({})
    model.gate.release()
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    assert rig.labels == ["low", None]
    rig.flow.close()


async def test_a_result_of_a_window_that_was_lost_meanwhile_does_not_make_facts_known_again() -> None:
    rig = slow_rig()
    model = Mean()
    rig.use({"b": on_model()}, model.handle())
    rig.say(1, 2, 3, 4)
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    model.gate = threading.Semaphore(0)
    rig.say(5, 6, 7, 8, None)
    assert rig.labels == ["low", None]
    model.gate.release()
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    assert rig.labels == ["low", None]
    assert rig.drops == ["inference_outdated"]
    rig.flow.close()


async def test_a_model_that_hangs_makes_its_pipeline_unknown_until_it_answers() -> None:
    rig = slow_rig()
    model = Mean()
    rig.use({"b": on_model()}, model.handle(), sensors={"vib": SensorSpec(rate_hz=10.0, stale_after_s=1000)})
    rig.say(1, 2, 3, 4)
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    model.gate = threading.Semaphore(0)
    rig.say(5, 6, 7, 8)
    deadline_ns = rig.flow.next_deadline_ns()
    assert deadline_ns is not None
    assert 10 * 10**9 <= deadline_ns <= 11 * 10**9
    rig.tick(10)
    rig.tick(10)
    assert rig.labels == ["low", None]
    model.gate.release(2)
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    assert rig.drops == ["inference_outdated"]
    rig.say(9, 9, 9, 9)
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    assert rig.labels == ["low", None, "low"]
    rig.flow.close()


async def test_a_failure_in_the_thread_is_reported_on_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    rig = slow_rig()
    model = Mean()
    rig.use({"b": on_model()}, model.handle())
    model.fails = True
    rig.say(1, 2, 3, 4)
    await asyncio.wait_for(rig.flow.idle(), DEADLINE_S)
    assert rig.labels == [None]
    assert "device lost" in caplog.text
    rig.flow.close()


async def test_a_plan_may_be_prepared_in_a_thread_while_readings_flow() -> None:
    rig = Rig(deterministic=False)
    rig.use({"b": on_model()}, Mean().handle())
    rig.say(1, 2)
    new = Mean()
    plan = await asyncio.to_thread(rig.flow.prepare, SENSORS, {"b": on_model()}, {"bearing": new.handle("sha256:b")})
    rig.say(3)
    rig.flow.apply(plan)
    rig.say(4)
    assert [(event.digest, event.first_seq) for event in rig.inferences] == [("sha256:b", 1)]
    rig.flow.close()


async def test_closing_does_not_wait_for_a_model_that_hangs() -> None:
    rig = slow_rig()
    model = Mean()
    rig.use({"b": on_model()}, model.handle())
    model.gate = threading.Semaphore(0)
    rig.say(1, 2, 3, 4)
    rig.flow.close(timeout_s=0)
    assert not model.closed
    model.gate.release()
    await until(lambda: model.closed)
