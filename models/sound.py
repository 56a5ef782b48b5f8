"""WAV files as numbers in -1..1; channels are averaged."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array

_WAV_DTYPES = {1: ("u1", 128.0), 2: ("<i2", 32768.0), 4: ("<i4", 2147483648.0)}


def read_wav(path: Path) -> tuple[Array, str]:
    """Samples float32 [n] and what they are. Raises InputError."""
    try:
        with wave.open(str(path)) as sound:
            width, channels, rate = sound.getsampwidth(), sound.getnchannels(), sound.getframerate()
            content = sound.readframes(sound.getnframes())
    except wave.Error as err:
        raise InputError(f"{path}: {err}") from err
    if width not in _WAV_DTYPES:
        raise InputError(f"{path}: {8 * width}-bit samples; 8, 16 and 32 are read")
    dtype, full_scale = _WAV_DTYPES[width]
    samples = np.frombuffer(content, dtype).astype(np.float32)
    samples = (samples - 128.0) / full_scale if width == 1 else samples / full_scale
    mono = samples.reshape(-1, channels).mean(axis=1, dtype=np.float32)
    return mono, f"{rate} Hz sound in -1..1{', channels averaged' if channels > 1 else ''}"
