"""The INT8 graph beside its float one: accuracy or likeness, speed, size, memory. It decides nothing."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array, TensorInfo
from models.onnx import OnnxBackend
from models.probe import probe
from models.quantize.samples import Samples

Metric = Literal["accuracy", "agreement", "sqnr"]

METRICS: dict[Metric, str] = {"accuracy": "Accuracy", "agreement": "Same class as float", "sqnr": "Variance explained"}
"""What each is called; all are in percent."""

_ROUNDS = 60
_BUDGET_S = 10.0
_MOST_SQNR_DB = 200.0
_MOST_NOISE = 1e6


class Quality(msgspec.Struct, frozen=True):
    """`metric` is `accuracy` (with labels), `agreement` (a classifier without) or `sqnr` (other outputs); `drop` is in points of it.

    Accuracy and agreement are in percent. For `sqnr` the values are the share of the float outputs' variance that INT8 gives back, in
    percent (99.5 is 23 dB). `sqnr_db` is that variance over the quantization noise, of the output where it is worst. `error` is the
    standard error of `drop`: what chance in the samples does to it. `agreement` is the percentage of samples that keep their class, None
    for `sqnr`.
    """

    metric: Metric
    float_value: float
    int8_value: float
    drop: float
    sqnr_db: float
    samples: int
    error: float = 0.0
    agreement: float | None = None

    @property
    def likely_drop(self) -> float:
        """What it may well be on other samples: one standard error more. Recipes are chosen by it, so that luck chooses none."""
        return self.drop + self.error


class Cost(msgspec.Struct, frozen=True):
    """What one graph costs here. `latency_ms` is the median of interleaved runs, `memory_mb` what a process grows by at its peak."""

    size_bytes: int
    latency_ms: float
    memory_mb: float


def choose_metric(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], labelled: bool, task: str) -> Metric:
    """`accuracy` with labels; `agreement` when the bundle's `task` or a single row of scores says classifier; else `sqnr`."""
    if labelled:
        return "accuracy"
    scores = len(outputs) == 1 and len(outputs[0].shape) <= 2 and outputs[0].shape[-1:] > (1,)
    echoes = any(tensor.shape[1:] == outputs[0].shape[1:] for tensor in inputs)
    return "agreement" if task == "classifier" or (task not in ("detector",) and scores and not echoes) else "sqnr"


def outputs(path: Path, samples: Samples) -> list[Array]:
    """Every output of every sample, [n, values] each."""
    model = OnnxBackend().load(path)
    try:
        runs = [[np.array(array, np.float64).reshape(-1) for array in model.run(feed)] for feed in samples.feeds(model.inputs)]
    finally:
        model.close()
    return [np.stack(column) for column in zip(*runs, strict=True)]


def compare(metric: Metric, expected: Sequence[Array], got: Sequence[Array], labels: Array | None) -> Quality:
    """What is left of the float model's `expected` outputs. Raises InputError for labels that the model cannot give."""
    noise = max(noise_share(*pair) for pair in zip(expected, got, strict=True))
    decibels = _MOST_SQNR_DB if noise <= 0 else round(min(_MOST_SQNR_DB, -10 * float(np.log10(noise))), 2)
    count = len(expected[0])
    if metric == "sqnr":
        error = max(_noise_error(*pair) for pair in zip(expected, got, strict=True))
        return Quality(metric, 100.0, round(100 * (1 - noise), 3), round(100 * noise, 3), decibels, count, round(100 * error, 3))
    guesses = classes(expected[0]), classes(got[0], expected[0])
    truth = guesses[0] if metric == "agreement" or labels is None else _checked(labels, expected[0])
    right, still = (guess == truth for guess in guesses)
    before, after = 100 * float(right.mean()), 100 * float(still.mean())
    error = 100 * float((right.astype(float) - still).std()) / math.sqrt(count)
    same = round(100 * float((guesses[0] == guesses[1]).mean()), 3)
    return Quality(metric, round(before, 3), round(after, 3), round(before - after, 3), decibels, count, round(error, 3), same)


def noise_share(expected: Array, got: Array) -> float:
    """Squared error over the variance of the expected output over the samples (over its power when it never varies)."""
    noise = float(((expected - got) ** 2).mean())
    return min(noise / _signal(expected), _MOST_NOISE) if np.isfinite(noise) else _MOST_NOISE


def classes(scores: Array, like: Array | None = None) -> Array:
    """The class of each row: the highest score; of a single one, whether it is over 0.5 (probabilities, by `like`) or 0 (logits)."""
    if scores.shape[1] > 1:
        best: Array = scores.argmax(axis=1)
        return best
    judged = scores if like is None else like
    probable = bool((judged >= 0).all() and (judged <= 1).all())
    return (scores[:, 0] > (0.5 if probable else 0.0)).astype(np.int64)


def costs(paths: Sequence[Path], samples: Samples) -> list[Cost]:
    """Each graph's cost, their runs interleaved so that a busy moment falls on all."""
    models: list[LoadedModel] = [OnnxBackend().load(path) for path in paths]
    feed = next(samples.feeds(models[0].inputs))
    times: list[list[float]] = [[] for _ in models]
    stop = time.perf_counter() + _BUDGET_S
    for number in range(_ROUNDS + 5):
        for model, taken in zip(models, times, strict=True):
            begun = time.perf_counter()
            model.run(feed)
            taken.append((time.perf_counter() - begun) * 1e3)
        if number > 10 and time.perf_counter() > stop:
            break
    for model in models:
        model.close()
    return [
        Cost(path.stat().st_size, round(statistics.median(taken[5:]), 4), probe(path, "onnx").rss_mb)
        for path, taken in zip(paths, times, strict=True)
    ]


def _signal(expected: Array) -> float:
    return float(((expected - expected.mean(axis=0)) ** 2).mean()) or float((expected**2).mean()) or 1.0


def _noise_error(expected: Array, got: Array) -> float:
    """The standard error of `noise_share`."""
    by_sample = ((expected - got) ** 2).mean(axis=1)
    error = float(by_sample.std()) / math.sqrt(len(by_sample)) / _signal(expected)
    return min(error, _MOST_NOISE) if math.isfinite(error) else _MOST_NOISE


def _checked(labels: Array, scores: Array) -> Array:
    count = max(2, scores.shape[1])
    if labels.min() < 0 or labels.max() >= count:
        raise InputError(f"labels are {labels.min()} to {labels.max()}, the model tells {count} classes apart (0 to {count - 1})")
    return labels
