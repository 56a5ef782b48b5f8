"""Labelled recordings: an npz with arrays `<class>_<anything>`, or a folder with one folder per class. Cut into windows; trains nothing.

An array is one channel [n], several [channels, n], or ready windows [windows, channels, n].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.recordings import open_recordings
from edge_runtime.types import Array
from models.sound import read_wav

MAX_BYTES = 4 * 1024**3


@dataclass(frozen=True, slots=True)
class Signal:
    """One recording of one class: float32 [channels, n], or windows float32 [windows, channels, size] when `cut` already."""

    name: str
    label: str
    values: Array

    @property
    def cut(self) -> bool:
        return self.values.ndim == 3

    @property
    def channels(self) -> int:
        return int(self.values.shape[-2])


def read(paths: Sequence[Path], labels: Sequence[str] | None = None) -> list[Signal]:
    """Every labelled signal. With `labels` only these are taken as classes. Raises InputError for what cannot be used, by name."""
    named = [(name, values) for path in paths for name, values in _named(path)]
    classes = _classes([name for name, _ in named], labels)
    signals = [Signal(name, label, _shaped(name, values)) for (name, values), label in zip(named, classes, strict=True)]
    if not signals:
        raise InputError(f"{', '.join(map(str, paths))}: expected arrays named <class>_<anything>, got none")
    for signal in signals:
        if signal.channels != signals[0].channels:
            raise InputError(f"{signal.name}: expected {signals[0].channels} channels as in {signals[0].name}, got {signal.channels}")
    return signals


def windows_of(signal: Signal, size: int, hop: int) -> Array:
    """Windows float32 [n, channels, size]; ready windows as they are. Raises InputError for a signal shorter than one window."""
    if signal.cut:
        if signal.values.shape[-1] != size:
            raise InputError(f"{signal.name}: expected windows of {size} samples, got {signal.values.shape[-1]}")
        return signal.values
    if signal.values.shape[-1] < size:
        raise InputError(f"{signal.name}: expected at least one window of {size} samples, got {signal.values.shape[-1]}; set --window")
    view = np.lib.stride_tricks.sliding_window_view(signal.values, size, axis=1)[:, ::hop]
    return np.ascontiguousarray(view.transpose(1, 0, 2), np.float32)


def _named(path: Path) -> Iterator[tuple[str, Array]]:
    """(name with its class in front, values) of one npz or one folder of class folders."""
    if path.is_dir():
        for folder in sorted(child for child in path.iterdir() if child.is_dir()):
            for file in sorted(child for child in folder.iterdir() if child.is_file() and not child.name.startswith(".")):
                yield f"{folder.name}/{file.name}", _file(file)
    elif path.suffix.lower() == ".npz":
        yield from _npz(path)
    else:
        raise InputError(f"{path}: expected an .npz with arrays <class>_<anything>, or a folder with one folder per class")


def _npz(path: Path) -> Iterator[tuple[str, Array]]:
    try:
        with np.load(path, allow_pickle=False) as archive:
            if sum(member.file_size for member in archive.zip.infolist()) > MAX_BYTES:
                raise InputError(f"{path}: unpacks to more than {MAX_BYTES} bytes; split it")
            for name in archive.files:
                yield name, archive[name]
    except (OSError, ValueError, EOFError, KeyError) as err:
        raise InputError(f"{path}: not a readable npz of plain arrays: {err}") from err


def _file(path: Path) -> Array:
    suffix = path.suffix.lower()
    if suffix == ".npy":
        try:
            return np.load(path, allow_pickle=False)  # type: ignore[no-any-return]
        except (OSError, ValueError, EOFError) as err:
            raise InputError(f"{path}: not a readable npy of plain numbers: {err}") from err
    if suffix == ".wav":
        return read_wav(path)[0]
    if suffix in (".csv", ".npz"):
        (recording,) = open_recordings(path)
        return np.stack(list(recording.channels.values()))
    raise InputError(f"{path}: expected .csv, .npy, .npz or .wav in a class folder")


def _classes(names: Sequence[str], labels: Sequence[str] | None) -> list[str]:
    """The class of every name: its folder, the longest known label it begins with, or what stands before the first underscore.

    Where the latter gives one class only, what stands before the last underscore.
    """
    if labels:
        return [_known(name, labels) for name in names]
    first = [name.partition("/")[0] if "/" in name else name.partition("_")[0] for name in names]
    if len(set(first)) > 1 or any("/" in name for name in names):
        return first
    return [name.rpartition("_")[0] or name for name in names]


def _known(name: str, labels: Sequence[str]) -> str:
    fits = [label for label in labels if name == label or name.startswith((f"{label}_", f"{label}/"))]
    if not fits:
        raise InputError(f"{name}: begins with none of the model's classes ({', '.join(labels)})")
    return max(fits, key=len)


def _shaped(name: str, values: Array) -> Array:
    """float32 in one of the three forms. Raises InputError for other shapes, for text and for values that are not finite."""
    array: Any = np.asarray(values)
    if array.dtype.kind not in "fiub" or array.ndim not in (1, 2, 3) or not array.size:
        raise InputError(f"{name}: expected numbers as [n], [channels, n] or [windows, channels, n], got {array.dtype} {array.shape}")
    array = array.astype(np.float32)
    if not np.isfinite(array).all():
        raise InputError(f"{name}: holds values that are missing or infinite; fill them or cut them out")
    result: Array = array[None] if array.ndim == 1 else array
    return result
