"""The health gate on values: what it calls ill, and what it leaves in peace."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bus import Bus
from edge_runtime.clock import VirtualClock
from edge_runtime.config.deployment import Deployment, HealthSpec, ModelSpec, PipelineSpec, SensorSpec, WindowSpec
from edge_runtime.deploy.health import Totals, Vitals, Watch
from edge_runtime.pipeline.canary import CanaryFigures
from edge_runtime.types import Decision, DecisionKind, Inference

SPEC = HealthSpec(max_p99_ms=50.0, max_error_rate=0.01)
LABELS = ("normal", "fault")


class Observed:
    """A watch with what it watches."""

    def __init__(self, digest: str = "sha256:a", labels: Sequence[str] = LABELS) -> None:
        self.clock = VirtualClock()
        self.bus = Bus()
        self.totals = Totals()
        self.canaries: list[CanaryFigures] = []
        self.watch = Watch(lambda: self.totals, self.clock.monotonic_ns, lambda: self.canaries)
        self.watch.listen(self.bus)
        self.labels = tuple(labels)
        self.begin(digest)

    def begin(self, digest: str) -> None:
        deployment = Deployment(
            schema=1,
            sensors={"s": SensorSpec()},
            models={"m": ModelSpec(digest="sha256:" + "0" * 64)},
            pipelines={"p": PipelineSpec(input=("s",), window=WindowSpec(size=8), model="m", output="p")},
        )
        self.watch.begin(deployment, {"m": digest}, {"m": self.labels})

    def answers(self, labels: Iterable[str | float], latency_ms: float = 1.0) -> None:
        for label in labels:
            value = (1.0,) if isinstance(label, str) else (label,)
            named = label if isinstance(label, str) else None
            self.bus.publish(
                Inference("p", "m", "sha256:a", self.clock.now(), 0, 7, value, named, 1.0 if named else None, round(latency_ms * 1e6))
            )
            self.totals = Totals(self.totals.inferences + 1, self.totals.errors, self.totals.overruns, self.totals.hangs)

    def fails(self, errors: int = 0, overruns: int = 0, hangs: int = 0) -> None:
        now = self.totals
        self.totals = Totals(now.inferences, now.errors + errors, now.overruns + overruns, now.hangs + hangs)

    def fires(self, rule: str, times: int) -> None:
        for number in range(times):
            self.bus.publish(Decision(f"d-{number}", DecisionKind.FIRED, rule, self.clock.now(), "1"))

    def fault(self, before: Vitals | None = None, spec: HealthSpec = SPEC, *, last: bool = False) -> str:
        return self.watch.fault(spec, before or Vitals(), last=last)


def normal(seed: int, count: int = 200, share: float = 0.9) -> list[str | float]:
    draw = random.Random(seed)
    return ["normal" if draw.random() < share else "fault" for _ in range(count)]


def baseline(labels: Iterable[str | float] = (), kinds: Sequence[str] = LABELS, more: Callable[[Observed], None] | None = None) -> Vitals:
    seen = Observed(labels=kinds)
    seen.answers(labels)
    seen.clock.advance(100.0)
    if more is not None:
        more(seen)
    return seen.watch.vitals()


def test_a_gateway_where_nothing_happens_is_well() -> None:
    seen = Observed("sha256:b")
    seen.clock.advance(60.0)
    assert seen.fault(last=True) == ""


@given(seed=st.integers(0, 2**32), count=st.integers(20, 400), share=st.floats(0.0, 1.0))
def test_equal_models_never_drift(seed: int, count: int, share: float) -> None:
    seen = Observed("sha256:b")
    seen.answers(normal(seed, count, share))
    assert seen.fault(baseline(normal(seed + 1, 200, share)), last=True) == ""


@pytest.mark.parametrize("share", [1.0, 0.9, 0.5])
def test_always_the_one_class_that_was_rare_is_drift(share: float) -> None:
    seen = Observed("sha256:b")
    seen.answers(["fault"] * 40)
    assert "40 of 40 answers are `fault`; before, " in seen.fault(baseline(normal(1, 200, share)))


@pytest.mark.parametrize("case", ["same model", "other classes", "too few before", "too few now", "max_drift 1", "no such pipeline before"])
def test_what_cannot_be_compared_is_no_drift(case: str) -> None:
    before = baseline(["normal"] * (10 if case == "too few before" else 100), ("normal", "broken") if case == "other classes" else LABELS)
    seen = Observed("sha256:a" if case == "same model" else "sha256:b")
    seen.answers(["fault"] * (10 if case == "too few now" else 100))
    spec = HealthSpec(max_drift=1.0) if case == "max_drift 1" else SPEC
    assert seen.fault(Vitals() if case.startswith("no such") else before, spec) == ""


def test_numbers_far_outside_what_was_are_drift_and_so_are_numbers_that_stand_still() -> None:
    before = baseline([1.0 + 0.01 * (number % 50) for number in range(200)], ())
    far, still, near = (Observed("sha256:b", ()) for _ in range(3))
    far.answers([9.0 + 0.01 * number for number in range(40)])
    still.answers([1.2] * 60)
    near.answers([1.3 + 0.01 * (number % 50) for number in range(100)])
    assert "100% of 40 answers are far outside 1..1.49" in far.fault(before)
    assert "60 answers are all 1.2; before they varied" in still.fault(before)
    assert near.fault(before) == ""


def test_errors_count_beyond_what_there_was_and_also_when_they_begin_late() -> None:
    seen = Observed("sha256:b")
    seen.fails(errors=2)
    assert seen.fault() == ""
    seen.answers(["normal"] * 5000)
    assert seen.fault() == ""
    seen.fails(errors=25)
    seen.answers(["normal"] * 25)
    assert seen.fault().startswith("errors: ")
    noisy = baseline(["normal"] * 90, more=lambda before: before.fails(overruns=10))
    same = Observed("sha256:b")
    same.answers(["normal"] * 90)
    same.fails(errors=10)
    assert same.fault(noisy, last=True) == ""
    assert "10 of 100 runs failed" in same.fault(last=True)


def test_few_runs_that_all_failed_are_judged_at_the_end() -> None:
    seen = Observed("sha256:b")
    seen.fails(errors=2)
    assert seen.fault() == ""
    assert seen.fault(last=True).startswith("errors: 2 of 2 runs failed")


def test_one_slow_run_is_no_fault_and_a_slow_model_is() -> None:
    seen = Observed("sha256:b")
    seen.answers(["normal"] * 100)
    seen.answers(["normal"] * 2, latency_ms=500)
    assert seen.fault(last=True) == ""
    seen.answers(["normal"] * 2, latency_ms=70)
    assert "the 99th percentile of 104 runs is 500.0 ms; max_p99_ms is 50" in seen.fault()


def test_a_model_that_hangs_is_a_fault() -> None:
    seen = Observed("sha256:b")
    seen.fails(hangs=1)
    assert seen.fault() == "hang: a model did not answer 1 times"


def test_rules_may_fire_as_they_did_and_not_far_more_often() -> None:
    before = baseline(more=lambda seen: seen.fires("often", 100))
    seen = Observed("sha256:b")
    seen.clock.advance(10.0)
    seen.fires("often", 45)
    seen.fires("new", 25)
    assert seen.fault(before) == ""
    seen.fires("often", 10)
    assert "rules: `often` fired 55 times in 10 s; at most 50 were to be expected" in seen.fault(before)


def test_a_new_rule_that_flaps_is_a_fault() -> None:
    seen = Observed("sha256:b")
    seen.clock.advance(10.0)
    seen.fires("new", 31)
    assert "rules: `new` fired 31 times" in seen.fault()


def canary(**known: object) -> CanaryFigures:
    figures = CanaryFigures("p", "m@canary", "sha256:b", "shadow", 100.0, 0.3, 100, 100, 100, 0, 0, 0, "", 0.0, 0.0, 1.0)
    return msgspec.structs.replace(figures, **known)


@pytest.mark.parametrize(
    ("figures", "told"),
    [
        ({"divergence": 0.5, "differed": 50}, "divergence: models.m@canary of pipelines.p differs on 50 of 100 windows from the active"),
        ({"mode": "split", "compared": 0, "divergence": 0.5}, "divergence: models.m@canary of pipelines.p is 0.50 apart from the active"),
        ({"failures": 3, "error": "device lost"}, "errors: models.m@canary of pipelines.p failed on 3 of 103 windows (device lost)"),
        ({"runs": 10, "skipped": 90}, "latency: models.m@canary of pipelines.p was passed over on 90 of 100 windows to keep within slo_ms"),
    ],
)
def test_a_canary_that_is_not_well_is_a_fault_with_its_reason(figures: dict[str, object], told: str) -> None:
    seen = Observed()
    seen.canaries = [canary(**figures)]
    assert told in seen.fault(last=True)


@pytest.mark.parametrize(
    "figures",
    [
        {},
        {"divergence": None, "compared": 5, "differed": 5},
        {"divergence": 0.3, "differed": 30},
        {"divergence": 0.35, "compared": 20, "differed": 7},  # a limit of 0.3 is well within what 20 windows can tell
        {"divergence": 1.0, "limit": 1.0},
        {"failures": 2},
        {"failures": 1, "runs": 10_000},
        {"runs": 60, "skipped": 40},
    ],
)
def test_a_canary_that_is_well_enough_is_left_in_peace(figures: dict[str, object]) -> None:
    seen = Observed()
    seen.canaries = [canary(**figures)]
    assert seen.fault(last=True) == ""


def test_what_a_canary_answers_is_no_drift_of_the_active_model() -> None:
    seen = Observed("sha256:b")
    seen.answers(normal(5, 100))
    for answer in ["fault"] * 400:
        seen.bus.publish(Inference("p", "m@canary", "sha256:c", seen.clock.now(), 0, 7, (1.0,), answer, 1.0, 1))
    assert seen.fault(baseline(normal(1, 200)), last=True) == ""


def test_vitals_of_an_earlier_start_are_read_again() -> None:
    vitals = baseline(normal(3), more=lambda seen: seen.fires("r", 3))
    assert msgspec.json.decode(msgspec.json.encode(vitals), type=Vitals) == vitals
