"""The anomaly detector's mathematics: what is normal, learnt from rows of normal running in closed form. Pure numpy, no files.

Columns that drift are differenced; every column is scaled robustly; the features of a row are mean and standard deviation of each column
over the last `window` rows. A linear denoising autoencoder, R = C (C + ridge I)^-1, says what it would expect of the features; the
mean squared difference, smoothed, is the score. Chosen by measurement, see docs/models/train.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array
from models.qdq import Graph

LABELS = ("normal", "anomaly")

_DRIFT_BLOCKS = 10
_MAD = 1.4826
_LEAST_SCALE = 1e-9
_LEAST_DEVIATION = 0.05  # of a feature: the spread below which single precision would be what is measured
_TAPS = 3  # of the smoothing, in multiples of its length


@dataclass(frozen=True, slots=True)
class Settings:
    """`window` and `smooth` in rows; `hold` is the share of rows that only sets the threshold; `clip` in standard deviations.

    The threshold is `factor` times the `quantile` of the smoothed scores of those rows.
    """

    window: int = 16
    smooth: int = 5
    hold: float = 0.25
    drift: float = 0.5
    ridge: float = 0.3
    clip: float = 20.0
    quantile: float = 0.99
    factor: float = 2.0

    @property
    def taps(self) -> int:
        """Rows that the smoothing looks back over."""
        return _TAPS * self.smooth if self.smooth > 1 else 1

    @property
    def rows(self) -> int:
        """Rows that one score needs, itself included."""
        return self.window + self.taps

    @property
    def least_rows(self) -> int:
        """Rows without which nothing can be learnt."""
        return 4 * self.rows


@dataclass(frozen=True, slots=True)
class Normal:
    """What normal running looks like. [C] per column, [2C] per feature; `weights` [2C, 2C] with expected = features @ weights."""

    differenced: Array
    centre: Array
    scale: Array
    mean: Array
    deviation: Array
    weights: Array


def learn(parts: Sequence[Array], settings: Settings) -> Normal:
    """Learns from tables [rows, C] of normal running, each in the order of time. Raises InputError for too few rows."""
    for part in parts:
        if len(part) < settings.least_rows:
            raise InputError(f"expected at least {settings.least_rows} rows of normal running in each file, got {len(part)}")
    differenced = np.any([_drifts(part, settings.drift) for part in parts], axis=0)
    prepared = np.concatenate([_differences(part, differenced) for part in parts])
    centre = np.median(prepared, axis=0)
    spread = _MAD * np.median(np.abs(prepared - centre), axis=0)
    scale = np.maximum(spread, 0.5 * prepared.std(axis=0))
    scale[scale < _LEAST_SCALE] = 1.0
    blank = Normal(differenced, centre, scale, np.zeros(2 * len(centre)), np.ones(2 * len(centre)), np.zeros((0, 0)))
    raw = np.concatenate([_features(part, blank, settings)[: fitted_rows(part, settings)] for part in parts])
    mean, deviation = raw.mean(axis=0), np.maximum(raw.std(axis=0), _LEAST_DEVIATION)
    features = np.clip((raw - mean) / deviation, -settings.clip, settings.clip)
    covariance = np.cov(features.T)
    weights = covariance @ np.linalg.inv(covariance + settings.ridge * np.eye(len(covariance)))
    return Normal(differenced, centre, scale, mean, deviation, weights.astype(np.float32))


def fitted_rows(part: Array, settings: Settings) -> int:
    """Feature rows that the model is fitted on; those after them set the threshold."""
    return held_from(part, settings) - settings.window


def held_from(part: Array, settings: Settings) -> int:
    """The first row of a table that only sets the threshold."""
    return int(len(part) * (1 - settings.hold))


def graph(normal: Normal, settings: Settings, threshold: float, *, int8: bool, target: str = "x86") -> Graph:
    """The whole detector as a graph: a window of raw rows [batch, C, settings.rows] in, oldest first, in the units of the recording.

    Outputs: `shares` [batch, 2], normal and anomaly, 0.5 each at the threshold (not probabilities); `score` [batch, 1] as a multiple of
    the threshold.
    """
    columns, limit, taps = len(normal.centre), settings.clip, settings.taps
    g = Graph("anomaly", int8=int8, target=target)  # type: ignore[arg-type]
    x = g.input("rows", ["batch", columns, settings.rows])
    steps = np.stack([-normal.differenced.astype(np.float32), np.ones(columns, np.float32)], axis=1)[:, None, :]
    x = g.op("Conv", x, g.constant(steps), group=columns)
    x = g.op("Mul", g.op("Sub", x, g.constant(normal.centre[:, None])), g.constant(1 / normal.scale[:, None]))
    x = g.clip(x, limit)
    mean = g.op("AveragePool", x, kernel_shape=[settings.window])
    square = g.op("AveragePool", g.op("Mul", x, x), kernel_shape=[settings.window])
    variance = g.op("Relu", g.op("Sub", square, g.op("Mul", mean, mean)))
    f = g.op("Concat", mean, g.op("Sqrt", variance), axis=1)
    f = g.op("Mul", g.op("Sub", f, g.constant(normal.mean[:, None])), g.constant(1 / normal.deviation[:, None]))
    f = g.clip(f, limit)
    expected = g.conv(f, np.ascontiguousarray(normal.weights.T)[:, :, None], (-limit, limit), (-limit, limit))
    difference = g.op("Sub", f, expected)
    error = g.op("ReduceMean", g.op("Mul", difference, difference), g.constant([1], np.int64), keepdims=0)
    score = g.op("MatMul", error, g.constant(_smoothing(taps, settings.smooth)[:, None] / threshold))
    share = g.op("Div", score, g.op("Add", score, g.constant(1.0)))
    shares = g.op("Concat", g.op("Sub", g.constant(1.0), share), share, axis=1)
    g.output(shares, "shares", ["batch", 2])
    g.output(score, "score", ["batch", 1])
    return g


def windows(part: Array, settings: Settings) -> Array:
    """Every window of a table [rows, C] as [n, C, settings.rows]; the last row of each is the one that it judges."""
    view = np.lib.stride_tricks.sliding_window_view(part, settings.rows, axis=0)
    return np.ascontiguousarray(view, np.float32)


def _smoothing(taps: int, length: int) -> Array:
    """Exponential weights, oldest first, that add up to 1."""
    powers = (1 - 2 / (length + 1)) ** np.arange(taps - 1, -1, -1.0)
    result: Array = (powers / powers.sum()).astype(np.float32)
    return result


def _drifts(part: Array, limit: float) -> Array:
    """Columns whose block means hold more than `limit` of their variance: near 1 for a random walk, near 0 for noise."""
    length = len(part) // _DRIFT_BLOCKS
    blocks = part[: length * _DRIFT_BLOCKS].reshape(_DRIFT_BLOCKS, length, -1)
    drifting: Array = blocks.mean(axis=1).var(axis=0) > limit * (part[: length * _DRIFT_BLOCKS].var(axis=0) + 1e-12)
    return drifting


def _differences(part: Array, differenced: Array) -> Array:
    """Rows from the second on, drifting columns as the step from the row before."""
    result: Array = part[1:] - np.where(differenced, part[:-1], 0.0)
    return result


def _features(part: Array, normal: Normal, settings: Settings) -> Array:
    """Mean and standard deviation of each scaled column over every window, [n, 2C]."""
    scaled = np.clip((_differences(part, normal.differenced) - normal.centre) / normal.scale, -settings.clip, settings.clip)
    view = np.lib.stride_tricks.sliding_window_view(scaled, settings.window, axis=0)
    return np.concatenate([view.mean(axis=-1), view.std(axis=-1)], axis=1)
