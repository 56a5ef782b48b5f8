"""Runs one model on windows: fits the window to the model's input, infers inline or in the model's own thread, names the class.

Inline when the model's measured cost is small, so that no queue stands between a reading and its inference; else in one worker
thread per model, where every pipeline has one place to wait and the latest window takes it. No windows are kept here.

A model with labels is a classifier. Whether its first output already holds probabilities is measured once, at load: when it
sums to 1 within 0.01 (or the rounding of its quantization) for every warm-up input. Otherwise a softmax is applied. A
multi-label model (independent sigmoids) must be used without labels.

A model with a state (`edge_runtime.recurrence`) keeps one for every pipeline. It starts from zero whenever a window does not follow the
one inferred before by exactly a hop: after a gap, a window passed over or refused, and a change of the deployment.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from edge_runtime.config.deployment import CanarySpec
from edge_runtime.errors import InputError, ModelRefused, RefusalReason
from edge_runtime.fitting import Fit, fit_input
from edge_runtime.pipeline.canary import Canary
from edge_runtime.pipeline.preprocess import SMALL, Chain, NotFinite, Shape, Step, is_finite, output_shape
from edge_runtime.pipeline.rows import several_inputs
from edge_runtime.pipeline.windows import Snapshot
from edge_runtime.ports import LoadedModel
from edge_runtime.recurrence import Stream, Streams
from edge_runtime.types import Array, Inference

__all__ = ["Binding", "Fit", "ModelHandle", "Runner", "Worker", "fit_input", "softmax", "update_cost"]

WARM_UP_RUNS = 7
_COST_WEIGHT = 0.05  # of the newest run in the running cost
_PROMOTE_FACTOR = 2.0  # above this multiple of the inline limit a model moves to a thread
_SUM_TOLERANCE = 1e-2
_SMALL = 64


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A loaded model under its deployment name. `labels` empty: not a classifier. `preprocess`: steps that its manifest declares.

    `canary`: how the model of that name with `@canary` runs beside it, if any.
    """

    name: str
    digest: str
    labels: tuple[str, ...]
    model: LoadedModel
    preprocess: tuple[str, ...] = ()
    canary: CanarySpec | None = None
    slo_ms: float = 100.0


class Runner:
    """One loaded model: its cost, what its outputs mean, and the thread it runs in, if any."""

    def __init__(self, model: LoadedModel) -> None:
        if len(model.inputs) != 1:
            raise several_inputs(model)
        self.model = model
        self.cost_ns = 0.0
        self.probabilities = False
        self.classes = 0  # values in the first output
        self.worker: Worker | None = None

    def warm_up(self, tensor: Array, runs: int = WARM_UP_RUNS) -> None:
        """Runs the model on noise, always the same, and takes its cost (median) and outputs. Raises ModelRefused."""
        noise = np.random.default_rng(0)
        costs, sums = [], []
        for _ in range(max(5, runs)):
            tensor[...] = noise.standard_normal(tensor.shape, np.float32)
            begun = time.perf_counter_ns()
            try:
                outputs = self.model.run([tensor])
            except ModelRefused:
                raise
            except Exception as err:  # border: any inference runtime
                raise ModelRefused(RefusalReason.RUN_FAILED, f"the warm-up failed: {err}") from err
            costs.append(time.perf_counter_ns() - begun)
            first = np.asarray(outputs[0])
            self.classes = int(first.size)
            sums.append(_sums_to_one(first, self._tolerance()))
        tensor[...] = 0
        self.cost_ns = float(sorted(costs)[len(costs) // 2])
        self.probabilities = all(sums)

    def _tolerance(self) -> float:
        """0.01, or the rounding of a quantized softmax (its scale is 1/256) over all classes."""
        scale = self.model.outputs[0].scale if self.model.outputs else 0.0
        return max(_SUM_TOLERANCE, 0.5 * scale * self.classes) if scale <= 1 / 200 else _SUM_TOLERANCE


def _sums_to_one(values: Array, tolerance: float) -> bool:
    low, total = float(values.min(initial=0.0)), float(values.sum(dtype=np.float64))
    return low >= -tolerance and abs(total - 1.0) <= tolerance


class Binding:
    """One pipeline on one model. `infer` is not thread-safe: the loop calls it, or the model's thread, never both.

    `hop`: samples between two windows that follow each other; only a model with a state asks for it.
    """

    def __init__(self, pipeline: str, handle: ModelHandle, steps: Sequence[Step], shape: Shape, runner: Runner, *, hop: int = 0) -> None:
        info = handle.model.inputs[0]
        self.fit = fit_input(output_shape(steps, shape), info)
        self.pipeline = pipeline
        self.handle = handle
        self.runner = runner
        self._chain = Chain(steps, shape, self.fit.target)
        self._plain = not steps
        self._target = self.fit.target
        self._flat = self.fit.flat
        self._energy: Callable[[Array], float] = self._flat.dot if self._flat.size <= SMALL else _unknown_energy
        self._inputs = [self.fit.tensor]
        self._stream = handle.model.stream() if isinstance(handle.model, Streams) else None
        self._run = handle.model.run if self._stream is None else self._stream.run
        self._hop = hop
        self._next_end = 0
        self._name, self._digest, self._labels = handle.name, handle.digest, handle.labels
        self.canary: Canary | None = None
        self.second: Binding | None = None

    @property
    def cost_ns(self) -> float:
        """What one window takes, the canary's part included."""
        return self.runner.cost_ns + (self.second.runner.cost_ns if self.second else 0.0)

    def accompany(self, second: Binding, spec: CanarySpec, slo_ms: float) -> None:
        """From now on the canary `second` runs beside. Raises InputError when the two cannot be compared."""
        canaries = second.handle
        if spec.mode == "split" and (self._stream or second._stream):
            raise InputError("a model with a state misses no window; let the canary run in shadow")
        self.canary = Canary(
            self.pipeline, canaries.name, canaries.digest, spec, slo_ms, (self._labels, canaries.labels), second.answer
        )  # fmt: skip
        self.second = second

    def check_labels(self) -> None:
        """Raises ModelRefused when the labels do not match the first output (known after the runner's warm-up)."""
        if self._labels and len(self._labels) != self.runner.classes:
            raise ModelRefused(
                RefusalReason.WRONG_SHAPE,
                f"{len(self._labels)} labels for a model whose first output has {self.runner.classes} values; give one label each",
            )

    def infer(self, window: Snapshot, now: Callable[[], int]) -> Inference:
        """One inference; `now` times it in ns. Raises NotFinite, and whatever the model raises."""
        canary = self.canary
        if canary is None or not canary.splits:
            return self.answer(window, now)
        result = canary.instead(window, now) or self.answer(window, now)
        canary.answered(result)
        return result

    def follow(self, window: Snapshot, result: Inference, now: Callable[[], int], *, busy: bool = False) -> None:
        """To be called when the result is out: a canary in shadow has the same window. `busy`: another window waits already."""
        if self.canary is not None and not self.canary.splits:
            self.canary.follow(window, result, now, busy=busy)

    def answer(self, window: Snapshot, now: Callable[[], int]) -> Inference:
        """This model's own inference, whatever runs beside it."""
        if self._stream is not None:
            self._continue(self._stream, window.end)
        if self._plain:
            self._target[...] = window.data
        else:
            self._chain(window.data)
        if not (isfinite(self._energy(self._flat)) or is_finite(self._flat)):
            raise NotFinite(f"pipeline {self.pipeline}: NaN or infinity after preprocessing; the model was not run")
        begun = now()
        outputs = self._run(self._inputs)
        latency = now() - begun
        self._next_end = window.end + self._hop
        values = _flatten(outputs)
        label, score = None, None
        if self._labels:
            values = self._classify(values)
            score = max(values[: len(self._labels)])
            label = self._labels[values.index(score)]
            score = min(1.0, score)
        return Inference(
            self.pipeline, self._name, self._digest, window.at, window.first_seq, window.last_seq, tuple(values),
            label, score, latency, window.quality,
        )  # fmt: skip

    def _continue(self, stream: Stream, end: int) -> None:
        """The state goes on only from the window right before; one that then fails leaves none to go on from."""
        if end != self._next_end:
            stream.reset()
        self._next_end = 0

    def _classify(self, values: list[float]) -> list[float]:
        if self.runner.probabilities:
            return values
        count = len(self._labels)
        return softmax(values[:count]) + values[count:]


def _unknown_energy(flat: Array) -> float:
    """For large tensors, whose product BLAS may spread over threads: `is_finite` looks for itself."""
    return math.nan


def _flatten(outputs: Sequence[Array]) -> list[float]:
    """All outputs as floats, in order. Raises NotFinite."""
    values: list[float] = outputs[0].ravel().tolist()
    for output in outputs[1:]:
        values += output.ravel().tolist()
    total = sum(values)
    if total - total != 0.0:
        raise NotFinite("the model's output holds NaN or infinity")
    return values


def softmax(values: Sequence[float]) -> list[float]:
    """exp(x) / sum(exp(x)), safe for large x."""
    top = max(values)
    if len(values) <= _SMALL:
        powers = [math.exp(value - top) for value in values]
        total = math.fsum(powers)
        return [power / total for power in powers]
    array = np.exp(np.asarray(values, np.float64) - top)
    array /= array.sum()
    result: list[float] = array.tolist()
    return result


def update_cost(binding: Binding, latency_ns: int, inline_limit_ns: float) -> bool:
    """Moves the running cost on; True when the model has become too slow to run inline."""
    binding.runner.cost_ns += _COST_WEIGHT * (latency_ns - binding.runner.cost_ns)
    return binding.cost_ns > _PROMOTE_FACTOR * inline_limit_ns


Settle = Callable[[Inference | Exception], None]


class Worker:
    """The thread of one slow model. Each binding has one waiting place; the latest window takes it. Never blocks the loop."""

    def __init__(self, name: str, now: Callable[[], int], post: Callable[[Callable[[], None]], None]) -> None:
        self._now = now
        self._post = post
        self._wake = threading.Condition()
        self._waiting: dict[Binding, tuple[Snapshot, Settle]] = {}
        self._jobs: list[Callable[[], None]] = []
        self._then: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._serve, name=f"model-{name}", daemon=True)
        self._thread.start()

    def submit(self, binding: Binding, window: Snapshot, settle: Settle) -> bool:
        """Leaves a copy of the window; `settle` is posted to the loop. True when a window that waited was replaced."""
        kept = Snapshot(window.data.copy(), window.first_seq, window.last_seq, window.since_ns, window.at, window.quality, window.end)
        with self._wake:
            replaced = binding in self._waiting
            self._waiting[binding] = (kept, settle)
            self._wake.notify()
        return replaced

    def do(self, job: Callable[[], None]) -> None:
        """Calls `job` in this thread when no window waits. Returns at once."""
        with self._wake:
            self._jobs.append(job)
            self._wake.notify()

    def retire(self, then: Callable[[], None]) -> None:
        """Finishes what waits, then calls `then` in this thread and ends. Returns at once."""
        with self._wake:
            self._then = then
            self._wake.notify()

    def join(self, timeout_s: float) -> bool:
        """Waits for the end after `retire`; False when the model is still running."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        while True:
            with self._wake:
                while not (self._waiting or self._jobs or self._then):
                    self._wake.wait()
                job = self._jobs.pop(0) if self._jobs and not self._waiting else None
                if self._waiting:
                    binding = next(iter(self._waiting))
                    window, settle = self._waiting.pop(binding)
                elif job is None:
                    break
            if job is not None:
                job()
            else:
                self._infer(binding, window, settle)
        assert self._then is not None
        self._then()

    def _infer(self, binding: Binding, window: Snapshot, settle: Settle) -> None:
        result: Inference | Exception
        try:
            result = binding.infer(window, self._now)
        except Exception as err:  # noqa: BLE001 - border: any inference runtime; the loop reports it
            result = err
        self._post(lambda: settle(result))
        if isinstance(result, Inference):
            binding.follow(window, result, self._now, busy=bool(self._waiting))
