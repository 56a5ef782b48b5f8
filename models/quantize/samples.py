"""Calibration and evaluation data: the inputs of a model, row by row, with labels where there are some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array, TensorInfo

LABELS = "y"
FEWEST = 12


@dataclass(frozen=True, slots=True)
class Samples:
    """`inputs` in the model's order, each [n, ...without the batch]; `labels` [n] or None."""

    inputs: tuple[Array, ...]
    labels: Array | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def feeds(self, tensors: Sequence[TensorInfo]) -> Iterator[list[Array]]:
        """The inputs of each run, one sample at a time, in the shape that the model takes."""
        shapes = [_filled(tensor, array) for tensor, array in zip(tensors, self.inputs, strict=True)]
        for number in range(len(self)):
            yield [array[number].reshape(shape) for array, shape in zip(self.inputs, shapes, strict=True)]

    def part(self, rows: Array | slice) -> Samples:
        """Only these rows."""
        return Samples(tuple(array[rows] for array in self.inputs), None if self.labels is None else self.labels[rows])


@dataclass(frozen=True, slots=True)
class Parts:
    """Disjoint samples: `fitted` gives ranges and trains, `chosen` picks among recipes, `judged` decides at the gate."""

    fitted: Samples
    chosen: Samples
    judged: Samples


def divide(calibration: Samples, evaluation: Samples | None, seed: int) -> Parts:
    """Two fifths of the calibration samples choose; without `evaluation` a quarter chooses and another judges. InputError for too few."""
    if len(calibration) < FEWEST:
        raise InputError(f"expected at least {FEWEST} samples, got {len(calibration)}; a few hundred typical ones are good")
    order = np.random.default_rng(seed).permutation(len(calibration))
    first = len(order) * 2 // 5 if evaluation is not None else len(order) // 4
    second = first if evaluation is not None else 2 * first
    chosen, judged, fitted = (calibration.part(np.sort(rows)) for rows in np.split(order, [first, second]))
    return Parts(fitted, chosen, judged if evaluation is None else evaluation)


def read(paths: Sequence[Path], tensors: Sequence[TensorInfo], labels: str = LABELS) -> Samples:
    """All files together. npz: arrays named as the inputs (or `x`), and `y`; npy and CSV: rows of a single input.

    A CSV may have a header; its column `y` then holds labels. Raises InputError naming the file, what it holds and what the model takes.
    """
    parts = [_read(path, tensors, labels) for path in paths]
    if any((part.labels is None) != (parts[0].labels is None) for part in parts):
        raise InputError(f"expected labels `{labels}` in all files or in none")
    inputs = tuple(np.concatenate([part.inputs[i] for part in parts]) for i in range(len(tensors)))
    known = [part.labels for part in parts if part.labels is not None]
    return Samples(inputs, np.concatenate(known) if known else None)


def _read(path: Path, tensors: Sequence[TensorInfo], labels: str) -> Samples:
    found = _arrays(path, [tensor.name for tensor in tensors], labels)
    inputs = []
    for tensor in tensors:
        array = found.get(tensor.name, found.get("x") if len(tensors) == 1 else None)
        if array is None:
            held = ", ".join(found) or "none of them"
            raise InputError(f"{path}: expected an array `{tensor.name}`{' or `x`' if len(tensors) == 1 else ''}, got {held}")
        inputs.append(_fitted(path, array, tensor))
    if len({len(array) for array in inputs}) > 1:
        raise InputError(f"{path}: the inputs have different numbers of rows")
    truth = found.get(labels)
    if truth is not None and (truth.shape != (len(inputs[0]),) or truth.dtype.kind not in "iu"):
        raise InputError(f"{path}: expected {len(inputs[0])} whole numbers as labels `{labels}`, got {truth.dtype} {truth.shape}")
    return Samples(tuple(inputs), truth)


def _arrays(path: Path, names: Sequence[str], labels: str) -> dict[str, Array]:
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files if name in (*names, "x", labels)}
        if path.suffix.lower() == ".npy":
            return {"x": np.load(path, allow_pickle=False)}
        if path.suffix.lower() in (".csv", ".txt"):
            return _table(path, labels)
    except (OSError, ValueError, EOFError, KeyError, BadZipFile) as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    raise InputError(f"{path}: expected .npz, .npy or .csv")


def _table(path: Path, labels: str) -> dict[str, Array]:
    """The rows of a CSV without the column of labels, which only a header can name."""
    with path.open(encoding="utf-8-sig") as file:
        head = [cell.strip() for cell in file.readline().split(",")]
    named = not _is_number(head[0])
    rows = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2, skiprows=int(named), encoding="utf-8-sig")
    if not named or labels not in head:
        return {"x": rows.astype(np.float32)}
    column = head.index(labels)
    truth = rows[:, column]
    if (truth != np.rint(truth)).any():
        raise ValueError(f"column `{labels}` holds labels that are no whole numbers")
    return {"x": np.delete(rows, column, axis=1).astype(np.float32), labels: truth.astype(np.int64)}


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True


def _fitted(path: Path, array: Array, tensor: TensorInfo) -> Array:
    """[n, ...] float32, whatever ones are in between. Raises InputError when a sample has another number of values."""
    wanted = [size for size in _sample_shape(tensor) if size != 1]
    held = [size for size in array.shape[1:] if size != 1]
    fits = len(held) == len(wanted) and all(w in (-1, h) for w, h in zip(wanted, held, strict=True))
    if array.ndim < 1 or array.dtype.kind not in "fiub" or not fits:
        raise InputError(
            f"{path}: expected samples of shape {list(_sample_shape(tensor))} for `{tensor.name}`, got {array.dtype} {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{path}: `{tensor.name}` holds values that are not finite")
    fitted: Array = array.astype(np.float32) if tensor.dtype == "float32" else array.astype(tensor.dtype)
    return fitted


def _sample_shape(tensor: TensorInfo) -> tuple[int, ...]:
    """Without the batch: a first dimension that is free or 1."""
    return tensor.shape[1:] if tensor.shape[:1] in ((-1,), (1,)) else tensor.shape


def _filled(tensor: TensorInfo, array: Array) -> tuple[int, ...]:
    """The model's input shape for one sample of `array`, free dimensions taken from it."""
    sizes = iter([size for size in array.shape[1:] if size != 1])
    inner = tuple(1 if size == 1 else next(sizes) for size in _sample_shape(tensor))
    return inner if len(inner) == len(tensor.shape) else (1, *inner)
