"""Reads labelled windows from the `.ts` files of the UEA archive: one window a line, channels between colons, the class last. No training.

The recordings are the user's to bring; none are kept with the recipe.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array

CHANNELS = ("accelerometer_x", "accelerometer_y", "accelerometer_z", "gyroscope_x", "gyroscope_y", "gyroscope_z")
RATE_HZ = 10.0

_MAX_BYTES = 64 * 1024**2


@dataclass(frozen=True, slots=True)
class Windows:
    """Windows float32 [n, channels, size] and the name of the class of each."""

    x: Array
    names: tuple[str, ...]

    def classes(self, labels: tuple[str, ...]) -> Array:
        """int64 [n], places in `labels`."""
        return np.array([labels.index(name) for name in self.names], np.int64)


def read(path: Path) -> Windows:
    """One `.ts` file of windows of equal length. Raises InputError naming the line."""
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise InputError(f"{path}: larger than {_MAX_BYTES} bytes")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    windows, names = [], []
    for number, line in enumerate(lines, 1):
        text = line.strip()
        if text and text[0] not in "#@":
            values, name = _window(f"{path}:{number}", text)
            windows.append(values)
            names.append(name)
    if len({values.shape for values in windows}) != 1:
        raise InputError(f"{path}: expected windows of {len(CHANNELS)} channels and one length, got {len(windows)} windows")
    return Windows(np.stack(windows), tuple(names))


def _window(place: str, text: str) -> tuple[Array, str]:
    *channels, name = text.split(":")
    try:
        values = np.array([[float(cell) for cell in channel.split(",")] for channel in channels], np.float32)
    except ValueError as err:
        raise InputError(f"{place}: expected channels of numbers, all of one length: {err}") from err
    if values.ndim != 2 or len(values) != len(CHANNELS) or not np.isfinite(values).all() or not name.strip():
        raise InputError(f"{place}: expected {len(CHANNELS)} channels of finite numbers and a class, got {len(channels)} channels")
    return values, name.strip()
