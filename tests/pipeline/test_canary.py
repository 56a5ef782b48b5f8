"""A second model beside the first: what it may cost, which windows it has, and how far apart the two are."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bus import Bus
from edge_runtime.clock import VirtualClock
from edge_runtime.config.deployment import CanarySpec, PipelineSpec, SensorSpec, WindowSpec
from edge_runtime.errors import InputError
from edge_runtime.pipeline.canary import Canary, CanaryFigures
from edge_runtime.pipeline.flow import Flow, ModelHandle
from edge_runtime.pipeline.windows import Snapshot
from edge_runtime.types import Array, Inference, Quality, Reading, TensorInfo, Timestamp

AT = Timestamp(0, 0, 0)
DIGEST = "sha256:" + "b" * 64
LABELS = ("low", "high")


class Threshold:
    """`high` above a limit, or the mean times a gain; fails, waits, and counts when told to."""

    def __init__(self, limit: float | None = 10.0, *, outputs: int = 2, gain: float = 1.0) -> None:
        self.inputs = (TensorInfo("x", (1, 4), "float32"),)
        self.outputs = (TensorInfo("y", (1, outputs), "float32"),)
        self._limit, self._outputs, self._gain = limit, outputs, gain
        self.fails = False
        self.runs = 0
        self.closed_in: int | None = None
        self.threads: set[int] = set()
        self.gate: threading.Semaphore | None = None

    def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
        assert self.closed_in is None
        self.runs += 1
        self.threads.add(threading.get_ident())
        if self.gate is not None:
            assert self.gate.acquire(timeout=20)
        if self.fails:
            raise RuntimeError("device lost")
        mean = float(inputs[0].mean())
        if self._limit is None:
            return [np.full((1, self._outputs), self._gain * mean, np.float32)]
        high = float(mean > self._limit)
        return [np.array([[1 - high, high]], np.float32)]

    def close(self) -> None:
        self.closed_in = threading.get_ident()


class Rig:
    """A flow with one pipeline on an active model and its canary."""

    def __init__(
        self,
        active: Threshold,
        second: Threshold | None,
        spec: CanarySpec,
        *,
        labels: tuple[str, ...] = LABELS,
        others: tuple[str, ...] | None = None,
        deterministic: bool = True,
        inline_limit_ms: float = 2.0,
        slo_ms: float = 100.0,
    ) -> None:
        self.bus, self.clock = Bus(), VirtualClock()
        self.flow = Flow(self.bus, self.clock, deterministic=deterministic, on_drop=lambda reason, n: None, inline_limit_ms=inline_limit_ms)
        self.seen: list[Inference] = []
        self.bus.subscribe(Inference, self.seen.append)
        self.handles = {"m": ModelHandle("m", "sha256:a", labels, active, (), spec, slo_ms)}
        if second is not None:
            self.handles["m@canary"] = ModelHandle("m@canary", DIGEST, labels if others is None else others, second)
        self.refused = self.configure(self.handles)
        self._seq = 0

    def configure(self, handles: dict[str, ModelHandle]) -> dict[str, str]:
        pipelines = {"p": PipelineSpec(input=("s",), window=WindowSpec(size=4), model="m", output="p")} if handles else {}
        return dict(self.flow.configure({"s": SensorSpec(rate_hz=1000)}, pipelines, handles))

    def window(self, value: float) -> None:
        """One full window of one value."""
        block = np.full(4, value, np.float32)
        self._seq += 1
        self.clock.advance(0.004)
        self.bus.publish(Reading("rig", "s", self._seq, self.clock.now(), None, "", block=block, rate_hz=1000.0))

    @property
    def figures(self) -> CanaryFigures:
        [figures] = self.flow.canaries()
        return figures


def shadow(**options: float) -> CanarySpec:
    return CanarySpec(digest=DIGEST, **options)  # type: ignore[arg-type]


def split(percent: float = 20) -> CanarySpec:
    return CanarySpec(digest=DIGEST, mode="split", percent=percent)


def test_in_shadow_both_run_and_only_the_active_model_is_heard() -> None:
    active, second = Threshold(10), Threshold(15)
    rig = Rig(active, second, shadow())
    for value in [5.0, 12.0, 20.0, 5.0] * 25:
        rig.window(value)
    assert {inference.digest for inference in rig.seen} == {"sha256:a"}
    assert [inference.label for inference in rig.seen[:4]] == ["low", "high", "high", "low"]
    figures = rig.figures
    assert (figures.windows, figures.runs, figures.differed, figures.skipped, figures.failures) == (100, 100, 25, 0, 0)
    assert figures.divergence == 0.25
    assert figures.distance == 0.25
    assert (figures.pipeline, figures.model, figures.digest, figures.mode, figures.percent) == ("p", "m@canary", DIGEST, "shadow", 100)


def test_too_few_windows_have_no_divergence() -> None:
    rig = Rig(Threshold(10), Threshold(0), shadow())
    for _ in range(19):
        rig.window(5.0)
    assert rig.figures.divergence is None
    rig.window(5.0)
    assert rig.figures.divergence == 1.0


def test_labels_in_another_order_are_the_same_labels() -> None:
    class Turned(Threshold):
        def run(self, inputs: Sequence[Array]) -> Sequence[Array]:
            return [super().run(inputs)[0][:, ::-1]]

    rig = Rig(Threshold(10), Turned(10), shadow(), others=("high", "low"))
    for value in [5.0, 20.0] * 20:
        rig.window(value)
    assert (rig.figures.divergence, rig.figures.distance) == (0.0, 0.0)


@pytest.mark.parametrize(("gain", "divergence"), [(1.02, 0.0), (3.0, 0.95)])
def test_numbers_are_far_apart_by_a_tenth_of_the_range_of_the_active_model(gain: float, divergence: float) -> None:
    rig = Rig(Threshold(None, outputs=1), Threshold(None, outputs=1, gain=gain), shadow(), labels=())
    for value in range(100):
        rig.window(float(value % 20))
    assert rig.figures.divergence == divergence


def test_a_shadow_that_fails_is_counted_and_harms_nobody() -> None:
    second = Threshold(10)
    rig = Rig(Threshold(10), second, shadow())
    second.fails = True
    for _ in range(30):
        rig.window(5.0)
    assert (rig.figures.failures, rig.figures.error, rig.figures.divergence) == (30, "device lost", None)
    assert len(rig.seen) == 30
    assert rig.flow.counters.errors == 0


def test_a_share_of_the_windows_is_shadowed_when_the_deployment_says_so() -> None:
    second = Threshold(10)
    rig = Rig(Threshold(10), second, shadow(percent=20))
    warm = second.runs
    for _ in range(500):
        rig.window(5.0)
    assert 60 <= second.runs - warm <= 140
    assert rig.figures.windows == 500


def test_a_split_gives_each_window_to_one_model_and_always_to_the_same() -> None:
    def once() -> tuple[list[str], CanaryFigures]:
        rig = Rig(Threshold(10), Threshold(10), split())
        for number in range(1000):
            rig.window(float(number % 20))
        return [f"{inference.model} {inference.digest}" for inference in rig.seen], rig.figures

    models, figures = once()
    assert (models, figures) == once()
    assert 150 <= models.count(f"m@canary {DIGEST}") <= 250
    assert models.count("m sha256:a") + models.count(f"m@canary {DIGEST}") == len(models) == 1000
    assert (figures.windows, figures.runs) == (1000, models.count(f"m@canary {DIGEST}"))
    assert figures.divergence == 0.0


@pytest.mark.parametrize("labels", [LABELS, ()])
def test_a_split_measures_how_far_the_two_distributions_are_apart(labels: tuple[str, ...]) -> None:
    active, second = (Threshold(10), Threshold(-1)) if labels else (Threshold(None, outputs=1), Threshold(None, outputs=1, gain=9.0))
    rig = Rig(active, second, split(50), labels=labels)
    for number in range(400):
        rig.window(float(number % 20))
    assert rig.figures.divergence is not None
    assert rig.figures.divergence > 0.3


def test_a_window_on_which_the_canary_fails_goes_to_the_active_model() -> None:
    second = Threshold(10)
    rig = Rig(Threshold(10), second, split(50))
    second.fails = True
    for _ in range(100):
        rig.window(5.0)
    assert [inference.digest for inference in rig.seen] == ["sha256:a"] * 100
    assert 30 <= rig.figures.failures <= 70
    assert rig.flow.counters.errors == 0


@pytest.mark.parametrize("share", [0.0, 20.0, 100.0])
def test_the_share_of_a_split_is_what_was_asked_for(share: float) -> None:
    canary = Canary("p", "m@canary", DIGEST, split(share), 1.0, (LABELS, LABELS), _never)
    assert abs(sum(canary.chosen(number) for number in range(20_000)) / 200 - share) < 1


@given(st.integers(0, 2**63))
def test_which_model_has_a_window_depends_on_nothing_but_its_number(number: int) -> None:
    one, other = (Canary("p", "m@canary", DIGEST, split(), slo, (LABELS, LABELS), _never) for slo in (1.0, 99.0))
    assert one.chosen(number) == other.chosen(number)


def _never(window: Snapshot, now: object) -> Inference:
    raise AssertionError("not to be run")


def _answer(latency_ms: float) -> Inference:
    return Inference("p", "m", "sha256:a", AT, 0, 0, (1.0, 0.0), "low", 1.0, round(latency_ms * 1e6))


def test_a_shadow_that_would_break_the_latency_budget_is_passed_over_counted_and_tried_again() -> None:
    ran = []

    def slow(window: Snapshot, now: object) -> Inference:
        ran.append(1)
        return _answer(60)

    canary = Canary("p", "m@canary", DIGEST, shadow(), 50.0, (LABELS, LABELS), slow)
    window = Snapshot(np.zeros((1, 4), np.float32), 0, 1, 0, AT, Quality.GOOD)
    for _ in range(1000):
        canary.follow(window, _answer(5), _zero)
    figures = canary.figures()
    assert figures.skipped + figures.runs == 1000
    assert 2 <= figures.runs == len(ran) <= 100
    before = figures.skipped
    canary.follow(window, _answer(1), _zero, busy=True)
    assert canary.figures().skipped == before + 1


def _zero() -> int:
    return 0


@given(st.integers(0, 2**32))
def test_equal_models_are_not_apart_in_a_split(seed: int) -> None:
    draw = random.Random(seed)
    for numbers in (False, True):
        canary = Canary("p", "m@canary", DIGEST, split(50), 1.0, ((), ()) if numbers else (LABELS, LABELS), _never)
        for _ in range(draw.randrange(40, 400)):
            value = draw.random()
            label = None if numbers else ("low" if value < 0.7 else "high")
            canary.answered(Inference("p", draw.choice(("m", "m@canary")), "", AT, 0, 0, (value,), label))
        divergence = canary.figures().divergence
        assert divergence is None or divergence < 0.25


def test_a_canary_that_does_not_fit_leaves_the_pipeline_to_the_active_model() -> None:
    for second, others in ((Threshold(10), ("low", "broken")), (Threshold(None, outputs=3), LABELS), (None, LABELS)):
        rig = Rig(Threshold(10), second, shadow(), others=others)
        assert list(rig.refused) == ["p@canary"]
        rig.window(5.0)
        assert [inference.digest for inference in rig.seen] == ["sha256:a"]
        assert rig.flow.canaries() == []


def test_other_classes_are_told_by_name() -> None:
    with pytest.raises(InputError, match="its labels are low, broken; expected low, high"):
        Canary("p", "m@canary", DIGEST, shadow(), 1.0, (LABELS, ("low", "broken")), _never)


async def test_in_a_thread_the_shadow_runs_behind_its_model_and_is_closed_there() -> None:
    active, second = Threshold(10), Threshold(15)
    rig = Rig(active, second, shadow(), deterministic=False, inline_limit_ms=0.0, slo_ms=10_000)
    active.threads.clear()
    second.threads.clear()
    for value in (5.0, 12.0, 20.0):
        rig.window(value)
        await rig.flow.idle()
    await _until(lambda: rig.figures.runs + rig.figures.skipped == 3)
    assert active.threads == second.threads
    assert threading.get_ident() not in active.threads
    [thread] = active.threads
    rig.configure({"m": rig.handles["m"]})
    await _until(lambda: second.closed_in == thread)
    assert active.closed_in is None
    rig.configure({})
    await _until(lambda: active.closed_in is not None)
    rig.flow.close()


async def test_a_shadow_never_goes_before_a_window_that_waits() -> None:
    active, second = Threshold(10), Threshold(10)
    rig = Rig(active, second, shadow(), deterministic=False, inline_limit_ms=0.0, slo_ms=60_000)
    active.gate = threading.Semaphore(0)
    warm = active.runs
    rig.window(5.0)
    await _until(lambda: active.runs == warm + 1)
    rig.window(6.0)
    rig.window(7.0)
    for _ in range(3):
        active.gate.release()
    await _until(lambda: len(rig.seen) == 2)
    await _until(lambda: rig.figures.windows == 2)
    assert rig.figures.skipped == 1
    active.gate = None
    rig.flow.close()


async def _until(condition: object) -> None:
    assert callable(condition)
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)
