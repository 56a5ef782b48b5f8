"""A second model beside the first of a pipeline: in shadow or on a share of the windows, and how far the two are apart.

shadow    both run on a window; what the active model says is the result, and is published before the canary runs
split     each window is for one of the two; which, follows from the pipeline's name and the window's last sequence number alone, so that a
          replay divides the windows alike. A window on which the canary fails goes to the active model.

A canary never costs the active model its time: after a run that left too little of `slo_ms` for both, or while another window waits for the
model's thread, the shadow is passed over and counted. Nothing here judges: the health gate does.
"""

from __future__ import annotations

import math
import zlib
from collections import Counter, deque
from collections.abc import Callable, Sequence
from itertools import pairwise

import msgspec

from edge_runtime.config.deployment import CanarySpec
from edge_runtime.errors import InputError
from edge_runtime.pipeline.windows import Snapshot
from edge_runtime.types import Inference

RECENT = 512  # windows of each kind that are compared
MIN_ANSWERS = 20  # fewer give no divergence
FAR = 0.1  # numbers farther apart than this share of the active model's range differ
_COST_WEIGHT = 0.05  # of the newest run in the running cost, when that falls
_FORGIVEN = 0.98  # of the running cost, for each window passed over: a canary that was slow once is tried again


class CanaryFigures(msgspec.Struct, frozen=True):
    """What is known of one canary since its deployment is in force.

    `divergence`, 0..1, is of the latest windows and None while there are too few. In shadow it is the share of windows on which the
    models differ: in the label, or by over a tenth of the range of the active model's answers. In a split, the distance of the two
    distributions: total variation of labels, Kolmogorov-Smirnov of numbers, less what chance gives for so few. `distance` is the mean
    over shadowed windows of half the summed difference of scores, or of the largest difference of the answers.
    """

    pipeline: str
    model: str
    digest: str
    mode: str
    percent: float
    limit: float  # `max_divergence`
    windows: int  # those that both could have had
    runs: int  # of the canary
    compared: int  # of the latest windows, in shadow: those that both answered
    differed: int
    skipped: int  # passed over to keep within `slo_ms`
    failures: int
    error: str  # of the last failure
    divergence: float | None
    distance: float | None
    p99_ms: float | None

    def __str__(self) -> str:
        part = "in shadow" if self.mode == "shadow" else f"on {self.percent:g}% of the windows"
        apart = "too few windows to compare"
        if self.divergence is not None:
            apart = (
                f"differs on {self.differed} of {self.compared} windows" if self.mode == "shadow" else f"divergence {self.divergence:.2f}"
            )
            apart += f" (limit {self.limit:g})"
        slow = f", p99 {self.p99_ms:.2f} ms" if self.p99_ms is not None else ""
        return f"{self.model} {part}: {apart}, {self.runs} runs{slow}, {self.skipped} passed over, {self.failures} failed"


class Canary:
    """One pipeline's canary. `run` is the second model's inference on a window, called where the pipeline's own model runs."""

    def __init__(
        self,
        pipeline: str,
        model: str,
        digest: str,
        spec: CanarySpec,
        slo_ms: float,
        labels: tuple[Sequence[str], Sequence[str]],
        run: Callable[[Snapshot, Callable[[], int]], Inference],
    ) -> None:
        self.pipeline, self.model, self.digest, self.spec = pipeline, model, digest, spec
        self._slo_ns = slo_ms * 1e6
        self._run = run
        self._order = _order(*labels)
        self._salt = zlib.crc32(pipeline.encode())
        self._share = spec.share / 100
        self._cost_ns = 0.0
        self._pairs: deque[_Pair] = deque(maxlen=RECENT)
        self._answers: tuple[deque[str | float], deque[str | float]] = (deque(maxlen=RECENT), deque(maxlen=RECENT))
        self._latencies: deque[int] = deque(maxlen=RECENT)
        self._windows = self._runs = self._skipped = self._failures = 0
        self._error = ""

    @property
    def splits(self) -> bool:
        return self.spec.mode == "split"

    def chosen(self, last_seq: int) -> bool:
        """Whether the canary has a part in the window that ends with this sequence number."""
        return _fraction(self._salt, last_seq) < self._share

    def instead(self, window: Snapshot, now: Callable[[], int]) -> Inference | None:
        """In a split: the canary's answer, or None where the active model is to answer."""
        self._windows += 1
        return self._try(window, now) if self.chosen(window.last_seq) else None

    def answered(self, result: Inference) -> None:
        """In a split: what either model published."""
        kind = int(result.model == self.model)
        self._answers[kind].append(result.values[0] if result.label is None else result.label)

    def follow(self, window: Snapshot, active: Inference, now: Callable[[], int], *, busy: bool = False) -> None:
        """In shadow: runs on the window that the active model has answered, when there is time. `busy`: another window waits."""
        self._windows += 1
        if not self.chosen(window.last_seq):
            return
        if busy or active.latency_ns + self._cost_ns > self._slo_ns:
            self._skipped += 1
            self._cost_ns *= _FORGIVEN
            return
        second = self._try(window, now)
        if second is not None:
            self._pairs.append(_pair(active, second, self._order))

    def _try(self, window: Snapshot, now: Callable[[], int]) -> Inference | None:
        try:
            result = self._run(window, now)
        except Exception as err:  # noqa: BLE001 - border: any inference runtime; the gate is told
            self._failures += 1
            self._error = str(err)[:200]
            return None
        self._runs += 1
        self._latencies.append(result.latency_ns)
        self._cost_ns = max(float(result.latency_ns), self._cost_ns + _COST_WEIGHT * (result.latency_ns - self._cost_ns))
        return result

    def figures(self) -> CanaryFigures:
        """A snapshot; from any thread."""
        pairs, latencies = list(self._pairs), sorted(self._latencies)
        differ = _differing(pairs)
        if self.splits:
            divergence = _apart(list(self._answers[0]), list(self._answers[1]))
        else:
            divergence = differ / len(pairs) if len(pairs) >= MIN_ANSWERS else None
        return CanaryFigures(
            self.pipeline,
            self.model,
            self.digest,
            self.spec.mode,
            self._share * 100,
            self.spec.max_divergence,
            self._windows,
            self._runs,
            len(pairs),
            differ,
            self._skipped,
            self._failures,
            self._error,
            divergence,
            sum(pair.distance for pair in pairs) / len(pairs) if pairs else None,
            latencies[max(0, -(-99 * len(latencies) // 100) - 1)] / 1e6 if latencies else None,
        )


class _Pair(msgspec.Struct, frozen=True, gc=False):
    """Both answers on one window. `same`: None where the answers are numbers, whose range is `low` to `high` in the active one."""

    same: bool | None
    distance: float
    low: float
    high: float


def _pair(active: Inference, second: Inference, order: Sequence[int]) -> _Pair:
    values = [second.values[index] for index in order] if order else second.values
    apart = [abs(one - other) for one, other in zip(active.values, values, strict=False)]
    if active.label is not None:
        return _Pair(active.label == second.label, sum(apart[: len(order)]) / 2, 0.0, 0.0)
    return _Pair(None, max(apart), min(active.values), max(active.values))


def _differing(pairs: Sequence[_Pair]) -> int:
    if not pairs or pairs[0].same is not None:
        return sum(not pair.same for pair in pairs)
    low, high = min(pair.low for pair in pairs), max(pair.high for pair in pairs)
    limit = FAR * (high - low) or 1e-6 * max(1.0, abs(high))
    return sum(pair.distance > limit for pair in pairs)


def _apart(active: Sequence[str | float], canary: Sequence[str | float]) -> float | None:
    """Distance of two samples, less the part that equal distributions show by chance; None when either is small."""
    if min(len(active), len(canary)) < MIN_ANSWERS:
        return None
    sizes = 1 / len(active) + 1 / len(canary)
    if isinstance(active[0], str):
        one, other = Counter(active), Counter(canary)
        seen = one.keys() | other.keys()
        distance = sum(abs(one[label] / len(active) - other[label] / len(canary)) for label in seen) / 2
        return max(0.0, distance - math.sqrt(len(seen) * sizes) / 2)
    return max(0.0, _kolmogorov([float(value) for value in active], [float(value) for value in canary]) - 1.36 * math.sqrt(sizes))


def _kolmogorov(one: Sequence[float], other: Sequence[float]) -> float:
    """Largest distance of the two empirical distribution functions."""
    steps = sorted([(value, 1 / len(one)) for value in one] + [(value, -1 / len(other)) for value in other])
    total, largest = 0.0, 0.0
    for (value, step), (following, _) in pairwise([*steps, (float("inf"), 0.0)]):
        total += step
        if value != following:
            largest = max(largest, abs(total))
    return largest


def _order(active: Sequence[str], canary: Sequence[str]) -> list[int]:
    """Where the canary has each label of the active model. Raises InputError where their classes differ."""
    if set(active) != set(canary):
        raise InputError(f"its labels are {', '.join(canary) or 'none'}; expected {', '.join(active) or 'none'}, as the active model's")
    return [list(canary).index(label) for label in active]


def _fraction(salt: int, number: int) -> float:
    """0..1, the same for the same arguments on every machine (the finalizer of SplitMix64)."""
    mask = 2**64 - 1
    mixed = (number + (salt << 32) + 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return ((mixed ^ (mixed >> 31)) >> 11) / 2**53
