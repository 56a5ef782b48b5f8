"""Features of a window for pipelines without a model: facts such as `rms` and `kurtosis`. No window keeping, no rules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np

from edge_runtime.config.deployment import PipelineSpec
from edge_runtime.pipeline.preprocess import Chain, NotFinite, is_finite, output_shape, parse_steps
from edge_runtime.types import FloatArray, Quality, Timestamp

FEATURES = ("mean", "std", "min", "max", "peak", "rms", "crest", "kurtosis")


class Features(msgspec.Struct, frozen=True):
    """Features of one window, by name: `rms` for one channel, `<channel>.rms` for several.

    `at` is the time of the window's last reading. A value is None when it is not defined for this window (crest factor of
    silence, kurtosis of a constant); all are None when the window is unknown, and then the quality is BAD.
    """

    pipeline: str
    at: Timestamp
    values: dict[str, float | None]
    first_seq: int
    last_seq: int
    quality: Quality = Quality.GOOD


def feature_names(channels: Sequence[str]) -> tuple[str, ...]:
    """Names in the order of `extract`'s values."""
    if len(channels) == 1:
        return FEATURES
    return tuple(f"{channel}.{feature}" for channel in channels for feature in FEATURES)


def extract(data: FloatArray) -> list[float | None]:
    """FEATURES of each row of [rows, samples], row after row, in the data's unit.

    std is the population's; peak = max |x|; crest = peak / rms; kurtosis = m4 / m2**2 (3 for Gaussian noise, about 1.5 for a
    sine, high for impulses).
    """
    values: list[float | None] = []
    for row in data:
        values += _row(row)
    return values


class FeatureChain:
    """Preprocessing and features of the windows of one pipeline."""

    def __init__(self, spec: PipelineSpec) -> None:
        steps = parse_steps(spec.preprocess)
        shape = (len(spec.input), spec.window.size)
        buffer: FloatArray = np.empty(output_shape(steps, shape), np.float32)
        rows = 1 if buffer.ndim == 1 else buffer.shape[0]
        self._chain = Chain(steps, shape, buffer)
        self._rows = buffer.reshape(rows, -1)
        self._flat = buffer.reshape(-1)
        self.names = feature_names(spec.input if rows == len(spec.input) else [f"row{index}" for index in range(rows)])

    def __call__(self, data: FloatArray) -> dict[str, float | None]:
        """Values by name. Raises NotFinite when preprocessing gave NaN or infinity."""
        self._chain(data)
        if not is_finite(self._flat):
            raise NotFinite("NaN or infinity after preprocessing; the features were not computed")
        return dict(zip(self.names, extract(self._rows), strict=True))


def _row(row: FloatArray) -> list[float | None]:
    x = row.astype(np.float64)
    count = x.size
    low, high = float(np.minimum.reduce(x)), float(np.maximum.reduce(x))
    mean = float(np.add.reduce(x)) / count
    rms = math.sqrt(float(np.add.reduce(x * x)) / count)
    x -= mean
    x *= x
    m2 = float(np.add.reduce(x)) / count
    x *= x
    m4 = float(np.add.reduce(x)) / count
    peak = max(-low, high)
    constant = m2 <= (1e-7 * peak) ** 2
    crest = peak / rms if rms > 0 else None
    kurtosis = None if constant else m4 / (m2 * m2)
    return [mean, 0.0 if constant else math.sqrt(m2), low, high, peak, rms, crest, kurtosis]
