"""The health gate: what the deployment before did, what the new one does, and whether that is well. Pure but for watching the bus.

errors    failed runs and windows passed over, beyond what there was before plus `max_error_rate`
latency   the 99th percentile of the last 256 runs above `max_p99_ms`
hang      a model that does not answer
rules     a rule that fires far more often: over 10 and over five times what was to be expected; a new one, more than once a second
drift     classifiers: half the summed difference of the label frequencies (total variation distance), less what chance gives for so
          few answers, above `max_drift`; other models: the share of answers farther outside the range before than that range is
          wide, or answers that no longer vary. Not judged where model, input and preprocessing are the same as before, where the
          classes are others, and with fewer than 20 answers on either side.
canary    errors and, in shadow, a canary that most windows had to be denied for time; a divergence (`pipeline.canary`) above its
          `max_divergence`. What a canary answers in a split is no part of the drift of the active model.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import msgspec

from edge_runtime.bus import Bus
from edge_runtime.config.deployment import Deployment, HealthSpec
from edge_runtime.pipeline.canary import CanaryFigures
from edge_runtime.types import Decision, DecisionKind, Inference

RECENT = 512  # answers of each pipeline that are compared
LATENCIES = 256
MIN_ANSWERS = 20
MIN_FAILURES = 3
_STRETCH = 50  # runs over which a rate of errors is taken
_STUCK = 50
_NEW_RULE_PER_S = 1.0
_MIN_FIRINGS = 10
_TIMES_MORE = 5.0


class Answers(msgspec.Struct, frozen=True):
    """What one pipeline answered lately: labels with their counts, or the range of its first value."""

    fingerprint: str
    classes: tuple[str, ...]
    count: int
    labels: dict[str, int] = {}
    low: float = 0.0
    high: float = 0.0
    distinct: int = 0


class Vitals(msgspec.Struct, frozen=True):
    """A deployment's normal: kept with the candidate that is to be held against it."""

    seconds: float = 0.0
    error_rate: float = 0.0
    answers: dict[str, Answers] = {}
    firings: dict[str, int] = {}


class Totals(msgspec.Struct, frozen=True):
    """Counters of the pipelines since the process began."""

    inferences: int = 0
    errors: int = 0
    overruns: int = 0
    hangs: int = 0

    @property
    def runs(self) -> int:
        return self.inferences + self.errors + self.overruns

    @property
    def failures(self) -> int:
        return self.errors + self.overruns


@dataclass(slots=True)
class _Pipeline:
    fingerprint: str
    classes: tuple[str, ...]
    model: str
    labels: deque[str] = field(default_factory=lambda: deque(maxlen=RECENT))
    values: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))


class Watch:
    """Listens to one deployment from `begin` on. `totals` and `canaries` read the pipelines' counters; `now_ns` is monotonic."""

    def __init__(
        self, totals: Callable[[], Totals], now_ns: Callable[[], int], canaries: Callable[[], Sequence[CanaryFigures]] = tuple
    ) -> None:
        self.canaries = canaries
        self._totals = totals
        self._now_ns = now_ns
        self._pipelines: dict[str, _Pipeline] = {}
        self._latencies: deque[int] = deque(maxlen=LATENCIES)
        self._firings: Counter[str] = Counter()
        self._begun_ns = now_ns()
        self._before = Totals()
        self._stretches: deque[Totals] = deque(maxlen=256)

    def listen(self, bus: Bus) -> None:
        """Hears of every inference and decision from now on."""
        bus.subscribe(Inference, self._on_inference)
        bus.subscribe(Decision, self._on_decision)

    def begin(self, deployment: Deployment, digests: Mapping[str, str], labels: Mapping[str, tuple[str, ...]]) -> None:
        """A deployment is in force from now on; `digests` and `labels` are those of its models, by name."""
        self._pipelines = {
            name: _Pipeline(_fingerprint(deployment, name, digests.get(spec.model, "")), labels.get(spec.model, ()), spec.model)
            for name, spec in deployment.pipelines.items()
            if spec.model is not None
        }
        self._latencies.clear()
        self._firings.clear()
        self._begun_ns = self._now_ns()
        self._before = self._totals()
        self._stretches.clear()

    def vitals(self) -> Vitals:
        """What has been normal since `begin`."""
        now, before = self._totals(), self._before
        runs = now.runs - before.runs
        rate = (now.failures - before.failures) / runs if runs else 0.0
        answers = {name: _answers(pipeline) for name, pipeline in self._pipelines.items()}
        return Vitals(self.seconds, rate, answers, dict(self._firings))

    @property
    def seconds(self) -> float:
        return (self._now_ns() - self._begun_ns) / 1e9

    def fault(self, spec: HealthSpec, before: Vitals, *, last: bool = False) -> str:
        """What is not well, or nothing. `last`: the probation ends, so that few runs must do."""
        return (
            self._hang()
            or self._errors(spec, before, last)
            or self._latency(spec, last)
            or self._rules(before)
            or next(filter(None, (_canary(figures, spec, last) for figures in self.canaries())), "")
            or next(filter(None, (self._drift(name, spec, before) for name in self._pipelines)), "")
        )

    def _hang(self) -> str:
        hangs = self._totals().hangs - self._before.hangs
        return f"hang: a model did not answer {hangs} times" if hangs else ""

    def _errors(self, spec: HealthSpec, before: Vitals, last: bool) -> str:
        """Over the whole, and over the last runs: a model may begin to fail late."""
        now = self._totals()
        allowed = before.error_rate + spec.max_error_rate
        recent = next((then for then in reversed(self._stretches) if now.runs - then.runs >= _STRETCH), self._before)
        self._stretches.append(now)
        for then in (self._before, recent):
            runs, failures = now.runs - then.runs, now.failures - then.failures
            enough = failures >= MIN_FAILURES and (runs >= MIN_ANSWERS or last)
            if (enough or (last and runs and failures == runs)) and failures / runs > allowed:
                return f"errors: {failures} of {runs} runs failed or were passed over; allowed are {allowed:.1%}"
        return ""

    def _latency(self, spec: HealthSpec, last: bool) -> str:
        limit_ns = spec.max_p99_ms * 1e6
        slow = sum(latency > limit_ns for latency in self._latencies)
        count = len(self._latencies)
        if slow >= MIN_FAILURES and slow > 0.01 * count and (last or count >= MIN_ANSWERS or slow == count):
            p99 = sorted(self._latencies)[min(count - 1, math.ceil(0.99 * count) - 1)] / 1e6
            return f"latency: the 99th percentile of {count} runs is {p99:.1f} ms; max_p99_ms is {spec.max_p99_ms:g}"
        return ""

    def _rules(self, before: Vitals) -> str:
        for rule, count in self._firings.items():
            if rule in before.firings and before.seconds > 0:
                expected = before.firings[rule] / before.seconds * self.seconds
                limit = max(_MIN_FIRINGS, _TIMES_MORE * expected)
            else:
                limit = max(3 * _MIN_FIRINGS, _NEW_RULE_PER_S * self.seconds)
            if count > limit:
                return f"rules: `{rule}` fired {count} times in {self.seconds:.0f} s; at most {limit:.0f} were to be expected"
        return ""

    def _drift(self, name: str, spec: HealthSpec, before: Vitals) -> str:
        old, new = before.answers.get(name), _answers(self._pipelines[name])
        if old is None or spec.max_drift >= 1 or min(old.count, new.count) < MIN_ANSWERS:
            return ""
        if old.fingerprint == new.fingerprint or set(old.classes) != set(new.classes):
            return ""
        return _label_drift(name, old, new, spec.max_drift) if new.classes else self._value_drift(name, old, new, spec.max_drift)

    def _value_drift(self, name: str, old: Answers, new: Answers, limit: float) -> str:
        values = self._pipelines[name].values
        span = max(old.high - old.low, 1e-9 * max(1.0, abs(old.high)))
        outside = sum(not old.low - span <= value <= old.high + span for value in values) / len(values)
        if outside > limit:
            return f"drift: pipelines.{name}: {outside:.0%} of {new.count} answers are far outside {old.low:.4g}..{old.high:.4g}, as before"
        if new.distinct == 1 and new.count >= _STUCK and old.distinct > max(5, 0.05 * old.count):
            return f"drift: pipelines.{name}: {new.count} answers are all {new.low:.4g}; before they varied"
        return ""

    def _on_inference(self, inference: Inference) -> None:
        pipeline = self._pipelines.get(inference.pipeline)
        if pipeline is None or not inference.values:
            return
        self._latencies.append(inference.latency_ns)
        if inference.model != pipeline.model:
            return
        if inference.label is not None:
            pipeline.labels.append(inference.label)
        else:
            pipeline.values.append(inference.values[0])

    def _on_decision(self, decision: Decision) -> None:
        if decision.kind is DecisionKind.FIRED:
            self._firings[decision.rule] += 1


def _canary(figures: CanaryFigures, spec: HealthSpec, last: bool) -> str:
    """Few comparisons scatter about the truth: the limit is raised by one standard deviation of theirs."""
    who = f"models.{figures.model} of pipelines.{figures.pipeline}"
    tried = figures.runs + figures.failures
    enough = figures.failures >= MIN_FAILURES and (tried >= MIN_ANSWERS or last)
    if enough and figures.failures / tried > spec.max_error_rate:
        return f"errors: {who} failed on {figures.failures} of {tried} windows ({figures.error}); allowed are {spec.max_error_rate:.1%}"
    if last and figures.skipped >= MIN_ANSWERS and figures.skipped > tried:
        return f"latency: {who} was passed over on {figures.skipped} of {figures.skipped + tried} windows to keep within slo_ms"
    if figures.divergence is None or figures.limit >= 1:
        return ""
    chance = math.sqrt(figures.limit * (1 - figures.limit) / figures.compared) if figures.compared else 0.0
    if figures.divergence <= figures.limit + chance:
        return ""
    how = f"differs on {figures.differed} of {figures.compared} windows" if figures.compared else f"is {figures.divergence:.2f} apart"
    return f"divergence: {who} {how} from the active model; max_divergence is {figures.limit:g}"


def _label_drift(name: str, old: Answers, new: Answers, limit: float) -> str:
    """Both samples are small, so that equal models differ too: by about sqrt(k (1/n + 1/m)) / 2 for k labels."""
    seen = set(old.labels) | set(new.labels)
    distance = sum(abs(old.labels.get(label, 0) / old.count - new.labels.get(label, 0) / new.count) for label in seen) / 2
    chance = math.sqrt(len(seen) * (1 / old.count + 1 / new.count)) / 2
    if distance - chance <= limit:
        return ""
    now = max(new.labels, key=lambda label: new.labels[label])
    before = f"before, {old.labels.get(now, 0)} of {old.count} were"
    return f"drift: pipelines.{name}: {new.labels[now]} of {new.count} answers are `{now}`; {before}"


def _answers(pipeline: _Pipeline) -> Answers:
    if pipeline.classes:
        return Answers(pipeline.fingerprint, pipeline.classes, len(pipeline.labels), dict(Counter(pipeline.labels)))
    values = pipeline.values
    low, high = min(values, default=0.0), max(values, default=0.0)
    return Answers(pipeline.fingerprint, (), len(values), {}, low, high, len(set(values)))


def _fingerprint(deployment: Deployment, name: str, digest: str) -> str:
    spec = deployment.pipelines[name]
    sensors = [deployment.sensors.get(channel) for channel in spec.input]
    said = msgspec.json.encode([digest, spec.input, spec.window, spec.preprocess, sensors])
    return hashlib.sha256(said).hexdigest()[:16]
