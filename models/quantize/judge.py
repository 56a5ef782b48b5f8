"""The INT8 graph beside its float one: accuracy or likeness, speed, size, memory. It decides nothing."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array
from models.onnx import OnnxBackend
from models.probe import probe
from models.quantize.samples import Samples

_ROUNDS = 60
_MOST_SNR_DB = 200.0


class Quality(msgspec.Struct, frozen=True):
    """`metric` is `accuracy` (with labels), `agreement` (a classifier without) or `snr` (other outputs); `drop` is in points of it.

    Accuracy and agreement are in percent. `snr_db` is signal over quantization noise of the first output; the drop of `snr` is the
    noise as a share of the signal in percent.
    """

    metric: str
    float_value: float
    int8_value: float
    drop: float
    snr_db: float


class Cost(msgspec.Struct, frozen=True):
    """What one graph costs here. `latency_ms` is the median of interleaved runs."""

    size_bytes: int
    latency_ms: float
    memory_mb: float


def quality(float_path: Path, int8_path: Path, samples: Samples) -> Quality:
    """Compares first outputs over all samples."""
    expected, got = outputs(float_path, samples), outputs(int8_path, samples)
    snr_db = snr(expected, got)
    classes = expected.shape[1] > 1
    if samples.labels is not None and classes:
        before, after = (100 * float((found.argmax(axis=1) == samples.labels).mean()) for found in (expected, got))
        return Quality("accuracy", round(before, 3), round(after, 3), round(before - after, 3), snr_db)
    if classes:
        agreement = 100 * float((expected.argmax(axis=1) == got.argmax(axis=1)).mean())
        return Quality("agreement", 100.0, round(agreement, 3), round(100 - agreement, 3), snr_db)
    noise = 100 * 10 ** (-snr_db / 20)
    return Quality("snr", 100.0, round(100 - noise, 3), round(noise, 3), snr_db)


def outputs(path: Path, samples: Samples) -> Array:
    """First output of every sample, [n, values]."""
    model = OnnxBackend().load(path)
    try:
        return np.stack([np.array(model.run(feed)[0], np.float64).reshape(-1) for feed in samples.feeds(model.inputs)])
    finally:
        model.close()


def snr(expected: Array, got: Array) -> float:
    """Signal over noise in dB, at most 200."""
    noise = float(((expected - got) ** 2).mean())
    signal = float((expected**2).mean())
    if noise == 0:
        return _MOST_SNR_DB
    return round(min(_MOST_SNR_DB, 10 * float(np.log10(max(signal, 1e-30) / noise))), 2)


def costs(paths: Sequence[Path], samples: Samples) -> list[Cost]:
    """Each graph's cost, their runs interleaved so that a busy moment falls on all."""
    models: list[LoadedModel] = [OnnxBackend().load(path) for path in paths]
    feed = next(samples.feeds(models[0].inputs))
    times: list[list[float]] = [[] for _ in models]
    for number in range(_ROUNDS + 5):
        for model, taken in zip(models, times, strict=True):
            begun = time.perf_counter()
            model.run(feed)
            if number >= 5:
                taken.append((time.perf_counter() - begun) * 1e3)
    for model in models:
        model.close()
    return [
        Cost(path.stat().st_size, round(statistics.median(taken), 4), probe(path, "onnx").rss_mb)
        for path, taken in zip(paths, times, strict=True)
    ]
