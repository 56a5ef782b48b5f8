"""Runs one model on windows: fits the window to the model's input, infers inline or in the model's own thread, names the class.

Inline when the model's measured cost is small, so that no queue stands between a reading and its inference; else in one worker
thread per model, where every pipeline has one place to wait and the latest window takes it. No windows are kept here.

A model with labels is a classifier. Whether its first output already holds probabilities is measured once, at load: when it
sums to 1 within 0.01 (or the rounding of its quantization) for every warm-up input. Otherwise a softmax is applied. A
multi-label model (independent sigmoids) must be used without labels.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.pipeline.preprocess import SMALL, Chain, NotFinite, Shape, Step, is_finite, output_shape
from edge_runtime.pipeline.windows import Snapshot
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array, Inference, TensorInfo

WARM_UP_RUNS = 7
_COST_WEIGHT = 0.05  # of the newest run in the running cost
_PROMOTE_FACTOR = 2.0  # above this multiple of the inline limit a model moves to a thread
_SUM_TOLERANCE = 1e-2
_SMALL = 64


@dataclass(frozen=True, slots=True)
class ModelHandle:
    """A loaded model under its deployment name. `labels` empty: not a classifier."""

    name: str
    digest: str
    labels: tuple[str, ...]
    model: LoadedModel


class Fit:
    """Copies an array of one shape into the model's input tensor. The tensor is reused by the next call."""

    def __init__(self, shape: Shape, tensor_shape: Shape, transposed: bool, dtype: str) -> None:
        self.tensor: Array = np.zeros(tensor_shape, dtype)
        self.target: Array = self.tensor.reshape(shape[::-1]).T if transposed else self.tensor.reshape(shape)
        self.flat: Array = self.tensor.reshape(-1)

    def __call__(self, data: Array) -> Array:
        self.target[...] = data
        return self.tensor


def fit_input(shape: Shape, info: TensorInfo) -> Fit:
    """How an array of `shape`, [channels, samples] or [values], becomes the tensor `info`, decided once.

    Tried in this order: as it is, with dimensions of 1 put in or left out ([1,C,N], [C,N,1], [1,C,1,N]); transposed
    ([1,N,C]); flattened channel after channel ([1,C*N]). Free dimensions (-1) take what is needed.
    Raises ModelRefused: WRONG_SHAPE with both shapes, WRONG_DTYPE for an integer tensor without a quantization scale.
    """
    dense = tuple(size for size in shape if size != 1)
    for arrangement, transposed in ((dense, False), (dense[::-1], True), ((math.prod(shape),), False)):
        tensor_shape = _place(arrangement, info.shape)
        if tensor_shape is not None:
            return Fit(shape, tensor_shape, transposed, _float_dtype(info))
    raise ModelRefused(
        RefusalReason.WRONG_SHAPE,
        f"the pipeline gives {list(shape)}, the model's input `{info.name}` is {list(info.shape)}; "
        "change window.size, the input channels or preprocess, or use the model's own window",
    )


def _place(dense: Shape, tensor: Shape) -> Shape | None:
    """The tensor's shape with `dense` in it, in order, and 1 elsewhere; leading dimensions become 1 first."""
    if not tensor:
        return () if not dense else None
    last = tensor[-1]
    if dense and last in (-1, dense[-1]):
        rest = _place(dense[:-1], tensor[:-1])
        if rest is not None:
            return (*rest, dense[-1])
    if last in (-1, 1):
        rest = _place(dense, tensor[:-1])
        if rest is not None:
            return (*rest, 1)
    return None


def _float_dtype(info: TensorInfo) -> str:
    if info.dtype in ("float16", "float32", "float64"):
        return info.dtype
    if info.scale or info.axis_scales:
        return "float32"
    raise ModelRefused(
        RefusalReason.WRONG_DTYPE,
        f"the model's input `{info.name}` is {info.dtype} without a quantization scale; expected a float input or a quantized one",
    )


class Runner:
    """One loaded model: its cost, what its outputs mean, and the thread it runs in, if any."""

    def __init__(self, model: LoadedModel) -> None:
        if len(model.inputs) != 1:
            names = ", ".join(info.name for info in model.inputs)
            raise ModelRefused(RefusalReason.WRONG_SHAPE, f"a pipeline feeds one input, the model has {len(model.inputs)}: {names}")
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
    """One pipeline on one model. `infer` is not thread-safe: the loop calls it, or the model's thread, never both."""

    def __init__(self, pipeline: str, handle: ModelHandle, steps: Sequence[Step], shape: Shape, runner: Runner) -> None:
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
        self._run = handle.model.run
        self._name, self._digest, self._labels = handle.name, handle.digest, handle.labels

    def check_labels(self) -> None:
        """Raises ModelRefused when the labels do not match the first output (known after the runner's warm-up)."""
        if self._labels and len(self._labels) != self.runner.classes:
            raise ModelRefused(
                RefusalReason.WRONG_SHAPE,
                f"{len(self._labels)} labels for a model whose first output has {self.runner.classes} values; give one label each",
            )

    def infer(self, window: Snapshot, now: Callable[[], int]) -> Inference:
        """One inference; `now` times it in ns. Raises NotFinite, and whatever the model raises."""
        if self._plain:
            self._target[...] = window.data
        else:
            self._chain(window.data)
        if not (isfinite(self._energy(self._flat)) or is_finite(self._flat)):
            raise NotFinite(f"pipeline {self.pipeline}: NaN or infinity after preprocessing; the model was not run")
        begun = now()
        outputs = self._run(self._inputs)
        latency = now() - begun
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


def update_cost(runner: Runner, latency_ns: int, inline_limit_ns: float) -> bool:
    """Moves the running cost on; True when the model has become too slow to run inline."""
    runner.cost_ns += _COST_WEIGHT * (latency_ns - runner.cost_ns)
    return runner.cost_ns > _PROMOTE_FACTOR * inline_limit_ns


Settle = Callable[[Inference | Exception], None]


class Worker:
    """The thread of one slow model. Each binding has one waiting place; the latest window takes it. Never blocks the loop."""

    def __init__(self, name: str, now: Callable[[], int], post: Callable[[Callable[[], None]], None]) -> None:
        self._now = now
        self._post = post
        self._wake = threading.Condition()
        self._waiting: dict[Binding, tuple[Snapshot, Settle]] = {}
        self._then: Callable[[], None] | None = None
        self._thread = threading.Thread(target=self._serve, name=f"model-{name}", daemon=True)
        self._thread.start()

    def submit(self, binding: Binding, window: Snapshot, settle: Settle) -> bool:
        """Leaves a copy of the window; `settle` is posted to the loop. True when a window that waited was replaced."""
        kept = Snapshot(window.data.copy(), window.first_seq, window.last_seq, window.since_ns, window.at, window.quality)
        with self._wake:
            replaced = binding in self._waiting
            self._waiting[binding] = (kept, settle)
            self._wake.notify()
        return replaced

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
                while not self._waiting and self._then is None:
                    self._wake.wait()
                if not self._waiting:
                    break
                binding = next(iter(self._waiting))
                window, settle = self._waiting.pop(binding)
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
