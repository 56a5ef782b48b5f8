"""The classifier's features: logarithmic band spectra of a window, as numpy for training and as nodes of the graph for serving.

Each channel is cut into half-overlapping Hann frames; their mean power is averaged in equal bands. Knows no classes and no files.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edge_runtime.types import Array
from models.qdq import Graph

_LARGEST_FRAME = 256
_MOST_BANDS = 64
_FLOOR = 1e-9
_CHUNK = 2048


@dataclass(frozen=True, slots=True)
class Spectrum:
    """How a window [channels, size] becomes features.

    Without `level` a channel's mean log power is taken away, so that the gain of a sensor does not matter; with it, one more feature per
    channel is its mean (what a constant part such as gravity needs).
    """

    channels: int
    size: int
    level: bool

    @property
    def frame(self) -> int:
        """Samples in one frame: a power of two, at most half the window where that can be."""
        return min(_LARGEST_FRAME, 1 << max(3, (self.size // 2).bit_length() - 1), 1 << (self.size.bit_length() - 1))

    @property
    def bands(self) -> int:
        """Bands per channel."""
        return min(_MOST_BANDS, self.frame // 2)

    @property
    def features(self) -> int:
        """Features of one window."""
        return self.channels * (self.bands + self.level)

    def of(self, windows: Array) -> Array:
        """Features float32 [n, features] of windows [n, channels, size]."""
        parts = [self._of(windows[start : start + _CHUNK]) for start in range(0, len(windows), _CHUNK)]
        return np.concatenate(parts).astype(np.float32)

    def nodes(self, g: Graph, x: str) -> str:
        """The same as nodes: a tensor [batch, channels, size] becomes [batch, features]."""
        mean = g.op("ReduceMean", x, g.constant([2], np.int64), keepdims=1)
        centred = g.op("Sub", x, mean)
        single = g.op("Reshape", centred, g.constant([-1, 1, self.size], np.int64))
        spectra = g.op("Conv", single, g.constant(self._basis()), strides=[self.frame // 2])
        power = g.op("ReduceMean", g.op("Mul", spectra, spectra), g.constant([2], np.int64), keepdims=0)
        banded = g.op("MatMul", power, g.constant(self._banding()))
        log = g.op("Log", g.op("Add", banded, g.constant(_FLOOR)))
        if not self.level:
            log = g.op("Sub", log, g.op("ReduceMean", log, g.constant([1], np.int64), keepdims=1))
        shaped = g.op("Reshape", log, g.constant([-1, self.channels * self.bands], np.int64))
        if not self.level:
            return shaped
        levels = g.op("Reshape", mean, g.constant([-1, self.channels], np.int64))
        return g.op("Concat", shaped, levels, axis=1)

    def _of(self, windows: Array) -> Array:
        mean = windows.mean(axis=2, keepdims=True, dtype=np.float64)
        view = np.lib.stride_tricks.sliding_window_view(windows - mean, self.frame, axis=2)[:, :, :: self.frame // 2]
        spectra = np.fft.rfft(view * np.hanning(self.frame), axis=-1)[..., 1:]
        power = (spectra.real**2 + spectra.imag**2).mean(axis=2)
        log = np.log(power.reshape(*power.shape[:2], self.bands, -1).mean(axis=-1) + _FLOOR)
        if not self.level:
            log -= log.mean(axis=-1, keepdims=True)
            result: Array = log.reshape(len(windows), -1)
            return result
        return np.concatenate([log.reshape(len(windows), -1), mean[:, :, 0]], axis=1)

    def _basis(self) -> Array:
        """Hann-weighted cosines, then sines, of the frame's frequencies above 0: [frame, 1, frame]."""
        n, k = np.arange(self.frame), np.arange(1, self.frame // 2 + 1)[:, None]
        phase = 2 * np.pi * k * n / self.frame
        waves = np.concatenate([np.cos(phase), np.sin(phase)]) * np.hanning(self.frame)
        result: Array = waves[:, None, :].astype(np.float32)
        return result

    def _banding(self) -> Array:
        """From the squares of the basis to mean power per band: [frame, bands]."""
        half, wide = self.frame // 2, self.frame // 2 // self.bands
        bands = np.kron(np.eye(self.bands), np.full((wide, 1), 1 / wide))
        result: Array = np.concatenate([bands[:half], bands[:half]]).astype(np.float32)
        return result


def augmented(windows: Array, rng: np.random.Generator, gain_db: float = 3.0, noise: float = 0.05) -> Array:
    """Another copy with random gain and noise, a share of each channel's deviation, so that a mounting is not learnt by heart."""
    count = len(windows)
    gain = 10 ** (rng.uniform(-gain_db, gain_db, (count, 1, 1)) / 20)
    share = noise * rng.uniform(0, 1, (count, 1, 1)) * windows.std(axis=2, keepdims=True)
    result: Array = ((windows + share * rng.standard_normal(windows.shape)) * gain).astype(np.float32)
    return result
