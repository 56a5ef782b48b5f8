"""WAV files as numbers in -1..1, and sound at another sample rate."""

from __future__ import annotations

import math
import wave
from fractions import Fraction
from pathlib import Path

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array, FloatArray

MAX_RATIO = 64.0

_WAV_DTYPES = {1: ("u1", 128.0), 2: ("<i2", 32768.0), 4: ("<i4", 2147483648.0)}
_ZERO_CROSSINGS = 16
_KAISER_BETA = 8.0
_CHUNK_TAPS = 1 << 22


def read_wav(path: Path) -> tuple[Array, str]:
    """Samples float32 [n], channels averaged, and what they are. Raises InputError."""
    samples, rate_hz = read_channels(path)
    return mono(samples), f"{rate_hz} Hz sound in -1..1{', channels averaged' if len(samples) > 1 else ''}"


def read_channels(path: Path) -> tuple[FloatArray, int]:
    """Samples float32 [channels, n] in -1..1 and the sample rate, Hz. Raises InputError for what is no PCM sound."""
    try:
        with wave.open(str(path)) as sound:
            width, channels, rate_hz = sound.getsampwidth(), sound.getnchannels(), sound.getframerate()
            content = sound.readframes(sound.getnframes())
    except (wave.Error, EOFError) as err:
        raise InputError(f"{path}: no WAV sound that can be read: {str(err) or 'it is cut short'}") from err
    whole = len(content) - len(content) % (width * channels)
    return np.ascontiguousarray(_samples(path, content[:whole], width).reshape(-1, channels).T), rate_hz


def mono(samples: FloatArray) -> FloatArray:
    """The mean over the channels of [channels, n]."""
    averaged: FloatArray = samples.mean(axis=0, dtype=np.float32)
    return averaged


def resampled(samples: FloatArray, rate_hz: float, wanted_hz: float) -> FloatArray:
    """Samples [n] at another rate, by a Kaiser-windowed sinc below the lower of the two Nyquist frequencies.

    Raises InputError when the rates differ more than 64 times.
    """
    if not rate_hz / MAX_RATIO <= wanted_hz <= rate_hz * MAX_RATIO:
        raise InputError(f"expected a sound near {wanted_hz:g} Hz, got {rate_hz:g} Hz, which is too far to resample")
    ratio = Fraction(wanted_hz / rate_hz).limit_denominator(4096)
    if ratio == 1:
        return samples
    up, down = ratio.numerator, ratio.denominator
    filters, reach = _filters(up, down)
    padded = np.pad(samples, (reach, reach + 1))
    result = np.empty(math.ceil(len(samples) * up / down), np.float32)
    offsets = np.arange(2 * reach + 1)
    chunk = max(1, _CHUNK_TAPS // len(offsets))
    for start in range(0, len(result), chunk):
        places = np.arange(start, min(start + chunk, len(result)), dtype=np.int64) * down
        taps = padded[(places // up)[:, np.newaxis] + offsets]
        result[start : start + chunk] = np.einsum("nk,nk->n", taps, filters[places % up])
    return result


def _filters(up: int, down: int) -> tuple[FloatArray, int]:
    """For every phase the weights of the samples around it, [up, 2 * reach + 1], each summing to 1."""
    cutoff = min(1.0, up / down)
    reach = math.ceil(_ZERO_CROSSINGS / cutoff)
    distance = np.arange(-reach, reach + 1)[np.newaxis] - (np.arange(up) / up)[:, np.newaxis]
    window = np.i0(_KAISER_BETA * np.sqrt(np.maximum(0.0, 1 - (distance / (reach + 1)) ** 2)))
    weights = np.sinc(cutoff * distance) * window
    weights /= weights.sum(axis=1, keepdims=True)
    return weights.astype(np.float32), reach


def _samples(path: Path, content: bytes, width: int) -> FloatArray:
    if width == 3:
        whole = np.zeros((len(content) // 3, 4), np.uint8)
        whole[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        return whole.view("<i4")[:, 0].astype(np.float32) / np.float32(2147483648.0)
    if width not in _WAV_DTYPES:
        raise InputError(f"{path}: {8 * width}-bit samples; 8, 16, 24 and 32 are read")
    dtype, full_scale = _WAV_DTYPES[width]
    samples = np.frombuffer(content, dtype).astype(np.float32)
    return (samples - np.float32(128.0)) / np.float32(full_scale) if width == 1 else samples / np.float32(full_scale)
