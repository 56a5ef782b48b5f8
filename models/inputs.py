"""Files as inputs of a model: pictures, .npy, .npz, CSV, WAV and raw values, cut into as many runs as they hold.

It reads and reshapes; quantizing is the loaded model's. A file of K inputs becomes K runs, never one batch, so each has its own result.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array, TensorInfo
from models import images
from models.sound import read_wav
from models.tables import TIME_COLUMNS, read_table
from models.tensors import element_count, is_quantized, numpy_dtype, shape_fits, shape_text

RAW_SUFFIXES = (".bin", ".raw", ".dat", ".f32", ".pcm")
KNOWN = "pictures, .npy, .npz, .csv, .txt, .wav, " + ", ".join(RAW_SUFFIXES)


@dataclass(frozen=True, slots=True)
class Options:
    """How to read files. `window` and `hop` count values; `dtype` is that of raw files (default: float32, else the model's)."""

    mean: tuple[float, ...] | None = None
    scale: tuple[float, ...] | None = None
    dtype: str | None = None
    window: int | None = None
    hop: int | None = None


@dataclass(frozen=True, slots=True)
class Source:
    """What one file (or one array of an .npz) gives: the inputs of each run, in the model's order, and how it was read."""

    name: str
    runs: Sequence[Sequence[Array]]
    note: str = ""


def read(path: Path, inputs: Sequence[TensorInfo], options: Options) -> Iterator[Source]:
    """Every source of one file. Raises InputError naming the file, what it holds and what the model takes."""
    if not path.is_file():
        raise InputError(f"there is no input file {path}")
    try:
        if len(inputs) != 1:
            yield _several(path, inputs)
        else:
            yield from _single(path, inputs[0], options)
    except InputError:
        raise
    except (OSError, ValueError, EOFError) as err:
        raise InputError(f"{path}: cannot be read: {err}") from err


def as_input(values: Array, tensor: TensorInfo, path: Path) -> Array:
    """In a dtype that the model takes without losing anything: stored values as they are, others as real numbers. Raises InputError."""
    dtype = numpy_dtype(tensor)
    if values.dtype.kind not in "fiub":
        raise InputError(f"{path}: holds {values.dtype}, not numbers")
    if values.dtype == dtype:
        return values
    if is_quantized(tensor) or dtype.kind == "f":
        return values.astype(np.float32 if is_quantized(tensor) else dtype)
    cast = values.astype(dtype)
    if not np.array_equal(cast, values):
        raise InputError(f"{path}: holds values that are no {tensor.dtype}; input `{tensor.name}` takes {tensor.dtype}")
    return cast


def raw_values(path: Path, dtype: np.dtype[Any]) -> Array:
    """Every value of a raw file. Raises InputError when the file is no whole number of them."""
    content = path.read_bytes()
    if len(content) % dtype.itemsize:
        raise InputError(f"{path}: {len(content)} bytes are no whole number of {dtype} values; name another --dtype")
    return np.frombuffer(content, dtype)


def cut(values: Array, tensor: TensorInfo, options: Options) -> tuple[list[Array], str]:
    """`values` as inputs of the model, each of its whole shape, and a note when they are more than one or some were left over."""
    shape = _one_run(tensor.shape)
    if options.window is not None:
        return _windows(values.reshape(-1), tensor, options.window, options.hop or options.window)
    if shape_fits(values.shape, shape):
        return [values], ""
    if shape_fits((1, *values.shape), shape):
        return [values[np.newaxis]], ""
    if values.ndim == len(shape) and shape[0] == 1 and shape_fits(values.shape[1:], shape[1:]):
        return [values[i : i + 1] for i in range(len(values))], f"{len(values)} inputs of shape {shape_text(shape)}"
    return _reshaped(values, tensor, shape)


def _single(path: Path, tensor: TensorInfo, options: Options) -> Iterator[Source]:
    suffix = path.suffix.lower()
    if suffix in images.SUFFIXES:
        array, note = images.read(path, tensor, options.mean, options.scale)
        yield Source(path.name, [[array]], note)
        return
    for name, values, origin in _arrays(path, suffix, tensor, options):
        given = as_input(_shifted(values, options), tensor, path)
        try:
            arrays, note = cut(given, tensor, options)
        except InputError as err:
            raise InputError(f"{path.parent / name}: {err}") from err
        yield Source(name, [[array] for array in arrays], "; ".join(filter(None, (origin, note))))


def _arrays(path: Path, suffix: str, tensor: TensorInfo, options: Options) -> Iterator[tuple[str, Array, str]]:
    """(source name, values, note) of every array in a file that is no picture."""
    if suffix == ".npy":
        yield path.name, np.load(path, allow_pickle=False), ""
    elif suffix == ".npz":
        with np.load(path, allow_pickle=False) as archive:
            names = [tensor.name] if tensor.name in archive.files else [name for name in archive.files if name not in TIME_COLUMNS]
            for name in names:
                yield (path.name if len(names) == 1 else f"{path.name}[{name}]"), archive[name], ""
    elif suffix in (".csv", ".txt"):
        table = read_table(path)
        yield path.name, table.values, f"time column `{table.time}` left out" if table.time else ""
    elif suffix == ".wav":
        yield path.name, *read_wav(path)
    elif suffix in RAW_SUFFIXES:
        yield path.name, *_raw(path, tensor, options)
    else:
        raise InputError(f"{path}: `{suffix}` is no known kind of input (known: {KNOWN})")


def _several(path: Path, inputs: Sequence[TensorInfo]) -> Source:
    wanted = ", ".join(f"{tensor.name} {shape_text(tensor.shape)} {tensor.dtype}" for tensor in inputs)
    if path.suffix.lower() != ".npz":
        raise InputError(f"{path}: the model takes {len(inputs)} inputs; give one .npz with the arrays {wanted}")
    with np.load(path, allow_pickle=False) as archive:
        missing = [tensor.name for tensor in inputs if tensor.name not in archive.files]
        if missing:
            raise InputError(f"{path}: has no array {', '.join(missing)}; the model takes {wanted}")
        return Source(path.name, [[as_input(archive[tensor.name], tensor, path) for tensor in inputs]])


def _windows(values: Array, tensor: TensorInfo, window: int, hop: int) -> tuple[list[Array], str]:
    shape = _shape_of(tensor, window)
    if shape is None:
        raise InputError(f"--window {window}: input `{tensor.name}` takes {element_count(tensor)} values ({shape_text(tensor.shape)})")
    if len(values) < window:
        raise InputError(f"--window {window}: there are only {len(values)} values")
    cuts = np.lib.stride_tricks.sliding_window_view(values, window)[::hop]
    rest = len(values) - (len(cuts) - 1) * hop - window
    left = f", {rest} values left over" if rest else ""
    return [np.ascontiguousarray(one).reshape(shape) for one in cuts], f"{len(cuts)} windows of {window} values every {hop}{left}"


def _reshaped(values: Array, tensor: TensorInfo, shape: tuple[int, ...]) -> tuple[list[Array], str]:
    count = element_count(tensor)
    if -1 in shape:
        whole = _shape_of(tensor, values.size)
        if whole is not None:
            return [values.reshape(whole)], f"read as shape {shape_text(whole)}"
    elif values.size and values.size % count == 0:
        runs = values.reshape(-1, *shape)
        note = f"{len(runs)} inputs of shape {shape_text(shape)}" if len(runs) > 1 else f"read as shape {shape_text(shape)}"
        return list(runs), note
    raise InputError(
        f"holds {values.size} values of shape {shape_text(values.shape)}; input `{tensor.name}` takes {shape_text(tensor.shape)}. "
        f"Give a multiple of {count} values, or cut windows with --window N --hop M"
    )


def _one_run(shape: Sequence[int]) -> tuple[int, ...]:
    """A free first dimension is the batch: one at a time."""
    return (1, *shape[1:]) if shape and shape[0] == -1 else tuple(shape)


def _shape_of(tensor: TensorInfo, size: int) -> tuple[int, ...] | None:
    """The shape of `size` values in one run when at most one inner dimension is free, else None."""
    shape, count = _one_run(tensor.shape), element_count(tensor)
    if shape.count(-1) > 1 or size == 0 or size % count or (-1 not in shape and size != count):
        return None
    return tuple(size // count if extent == -1 else extent for extent in shape)


def _shifted(values: Array, options: Options) -> Array:
    """(values - mean) / scale where asked for."""
    if options.mean is None and options.scale is None:
        return values
    mean, scale = (np.asarray(numbers, np.float32) for numbers in (options.mean or (0.0,), options.scale or (1.0,)))
    return (values.astype(np.float32) - mean) / scale


def _raw(path: Path, tensor: TensorInfo, options: Options) -> tuple[Array, str]:
    dtype = np.dtype(options.dtype) if options.dtype else _raw_dtype(path.stat().st_size, tensor, options)
    values = raw_values(path, dtype)
    return values, f"{values.size} raw {dtype} values"


def _raw_dtype(size_bytes: int, tensor: TensorInfo, options: Options) -> np.dtype[Any]:
    """float32 when the size is whole inputs (or windows) of it, else the model's own dtype."""
    unit = 1 if options.window is not None or -1 in tensor.shape[1:] else element_count(tensor)
    return np.dtype(np.float32) if size_bytes % (4 * unit) == 0 else numpy_dtype(tensor)
