"""Ranges of activations from typical inputs: min/max, percentile, entropy and least squared error, all from one histogram per tensor.

Samples pass one at a time, so memory stays that of one run however many there are. Knows nothing of how a graph is quantized.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np

from edge_runtime.errors import MissingDependency
from edge_runtime.types import Array, TensorInfo
from models.onnx import OnnxBackend
from models.quantize.samples import Samples

Method = Literal["minmax", "percentile", "entropy", "mse"]
METHODS: tuple[Method, ...] = get_args(Method)

Ranges = dict[str, tuple[float, float]]
"""Lowest and highest value by name of tensor."""

_BINS = 2048
_LEVELS = 128
_TAIL = 1e-4
_SHRINKAGES = np.linspace(0.2, 1.0, 81)
_MOST_VALUES = 400_000_000


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts of the values of one tensor in equal bins from `low` to `high`."""

    low: float
    high: float
    counts: Array

    @property
    def centres(self) -> Array:
        """Of the bins."""
        width = (self.high - self.low) / len(self.counts)
        return self.low + width * (np.arange(len(self.counts)) + 0.5)


def observe(prepared: Path, scratch: Path, samples: Samples, tensors: Sequence[TensorInfo]) -> dict[str, Histogram]:
    """A histogram of every float tensor between nodes, over all samples (fewer in the bins when they are very large)."""
    names = _expose(prepared, scratch / "observed.onnx")
    model = OnnxBackend().load(scratch / "observed.onnx")
    lows, highs, values = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0), 0
    feeds = list(tensors)
    for outputs in _runs(model, samples, feeds):
        for name, array in zip(names, outputs, strict=True):
            lows[name], highs[name] = min(lows[name], float(array.min())), max(highs[name], float(array.max()))
        values = sum(array.size for array in outputs)
    counts = {name: np.zeros(_BINS, np.int64) for name in names}
    step = max(1, values * len(samples) // _MOST_VALUES)
    for outputs in _runs(model, samples.part(slice(None, None, step)), feeds):
        for name, array in zip(names, outputs, strict=True):
            counts[name] += _binned(array, lows[name], highs[name])
    model.close()
    return {name: Histogram(lows[name], highs[name], counts[name]) for name in names}


def ranges(histograms: dict[str, Histogram], method: Method, *, symmetric: bool) -> Ranges:
    """What to represent of each tensor; always holds 0. `symmetric`: the target's zero point is 0, so both signs share one scale."""
    return {name: _choose(histogram, method, symmetric) for name, histogram in histograms.items()}


def _choose(histogram: Histogram, method: Method, symmetric: bool) -> tuple[float, float]:
    if method == "minmax" or histogram.high <= histogram.low:
        return histogram.low, histogram.high
    if method == "percentile":
        return _percentile(histogram)
    return _entropy(histogram) if method == "entropy" else _least_error(histogram, symmetric)


def _percentile(histogram: Histogram) -> tuple[float, float]:
    """Without the outermost hundredth of a percent on either side."""
    share = np.cumsum(histogram.counts) / histogram.counts.sum()
    edges = np.linspace(histogram.low, histogram.high, len(histogram.counts) + 1)
    first, last = int(np.searchsorted(share, _TAIL, side="right")), int(np.searchsorted(share, 1 - _TAIL))
    return min(float(edges[first]), 0.0), max(float(edges[min(last, len(share) - 1) + 1]), 0.0)


def _least_error(histogram: Histogram, symmetric: bool) -> tuple[float, float]:
    """Both ends drawn in until rounding and clipping together have the least squared error."""
    centres, counts, total = histogram.centres, histogram.counts, float(histogram.counts.sum())

    def error(low: float, high: float) -> float:
        step = 2 * max(-low, high) / 254 if symmetric else (high - low) / 255
        clipped = float((counts * (centres - np.clip(centres, low, high)) ** 2).sum())
        return clipped / total + step * step / 12

    low, high = histogram.low, histogram.high
    if symmetric:
        top = max(-low, high)
        limit = min((top * share for share in _SHRINKAGES), key=lambda t: error(max(low, -t), min(high, t)))
        return max(low, -limit), min(high, limit)
    for _ in range(2):
        high = min((histogram.high * share for share in _SHRINKAGES), key=lambda top: error(low, top))
        low = min((histogram.low * share for share in _SHRINKAGES), key=lambda bottom: error(bottom, high))
    return low, high


def _entropy(histogram: Histogram) -> tuple[float, float]:
    """The magnitude at which clipping loses least information by Kullback and Leibler (Migacz, 8-bit inference with TensorRT, 2017)."""
    top = max(-histogram.low, histogram.high)
    bins = np.minimum((np.abs(histogram.centres) / top * _BINS).astype(int), _BINS - 1)
    counts = np.bincount(bins, histogram.counts, _BINS)
    counts[0] = 0  # what is 0 is exact at any scale
    if not counts.any():
        return histogram.low, histogram.high
    limit = top * min(range(_LEVELS, _BINS + 1, 16), key=lambda width: _divergence(counts, width)) / _BINS
    return max(histogram.low, -limit), min(histogram.high, limit)


def _divergence(counts: Array, width: int) -> float:
    """Of the first `width` bins at 128 levels from themselves with all that lies beyond on the last one."""
    inside = counts[:width]
    reference = inside.copy()
    reference[-1] += counts[width:].sum()
    edges = (np.arange(_LEVELS) * width) // _LEVELS
    filled = inside > 0
    sums, found = np.add.reduceat(inside, edges), np.add.reduceat(filled.astype(float), edges)
    level = np.repeat(sums / np.maximum(found, 1), np.diff(np.append(edges, width)))
    coarse = np.where(filled, level, 0.0) + 1e-9
    p, q = reference / reference.sum(), coarse / coarse.sum()
    held = p > 0
    return float((p[held] * np.log(p[held] / q[held])).sum())


def _binned(array: Array, low: float, high: float) -> Array:
    if high <= low:
        return np.zeros(_BINS, np.int64)
    places = ((array.reshape(-1) - np.float32(low)) * np.float32(_BINS / (high - low))).astype(np.int32)
    return np.bincount(np.clip(places, 0, _BINS - 1), minlength=_BINS)


def _runs(model: Any, samples: Samples, tensors: Sequence[TensorInfo]) -> Iterator[list[Array]]:
    for feed in samples.feeds(tensors):
        yield [*feed, *model.run(feed)]


def _expose(prepared: Path, target: Path) -> list[str]:
    """Writes the graph with every float tensor as an output; the names of inputs and outputs, in this order."""
    try:
        import onnx
    except ImportError as err:
        raise MissingDependency("onnx", "quantize") from err
    model = onnx.shape_inference.infer_shapes(onnx.load(str(prepared)))
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}
    made = {name for node in graph.node for name in node.output} - {value.name for value in graph.output}
    inner = [value for value in graph.value_info if value.name in made and value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT]
    graph.output.extend(inner)
    onnx.save(model, str(target))
    inputs = [value.name for value in graph.input if value.name not in constants]
    return [*inputs, *(value.name for value in graph.output)]
