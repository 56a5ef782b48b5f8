"""Calibration and evaluation data: the inputs of a model, row by row, with labels where there are some."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edge_runtime.errors import InputError
from edge_runtime.types import Array, TensorInfo

LABELS = "y"


@dataclass(frozen=True, slots=True)
class Samples:
    """`inputs` in the model's order, each [n, ...without the batch]; `labels` [n] or None."""

    inputs: tuple[Array, ...]
    labels: Array | None

    def __len__(self) -> int:
        return len(self.inputs[0])

    def feeds(self, tensors: Sequence[TensorInfo]) -> Iterator[list[Array]]:
        """The inputs of each run, one sample at a time, in the shape that the model takes."""
        shapes = [[1, *tensor.shape[1:]] for tensor in tensors]
        for number in range(len(self)):
            yield [array[number].reshape(shape) for array, shape in zip(self.inputs, shapes, strict=True)]

    def part(self, rows: Array | slice) -> Samples:
        """Only these rows."""
        return Samples(tuple(array[rows] for array in self.inputs), None if self.labels is None else self.labels[rows])


def read(paths: Sequence[Path], tensors: Sequence[TensorInfo], labels: str = LABELS) -> Samples:
    """All files together. npz: arrays named as the inputs (or `x`), and `y`; npy and CSV: rows of a single input.

    Raises InputError naming the file, what it holds and what the model takes.
    """
    parts = [_read(path, tensors, labels) for path in paths]
    if any((part.labels is None) != (parts[0].labels is None) for part in parts):
        raise InputError(f"expected labels `{labels}` in all files or in none")
    inputs = tuple(np.concatenate([part.inputs[i] for part in parts]) for i in range(len(tensors)))
    known = [part.labels for part in parts if part.labels is not None]
    return Samples(inputs, np.concatenate(known) if known else None)


def split(samples: Samples, share: float, seed: int) -> tuple[Samples, Samples]:
    """Two disjoint parts, the first with `share` of the rows."""
    if len(samples) < 8:
        raise InputError(f"expected at least 8 samples, got {len(samples)}; a few hundred typical ones are good")
    order = np.random.default_rng(seed).permutation(len(samples))
    edge = max(4, min(len(samples) - 4, round(share * len(samples))))
    return samples.part(np.sort(order[:edge])), samples.part(np.sort(order[edge:]))


def _read(path: Path, tensors: Sequence[TensorInfo], labels: str) -> Samples:
    found = _arrays(path, [tensor.name for tensor in tensors], labels)
    inputs = []
    for tensor in tensors:
        array = found.get(tensor.name, found.get("x") if len(tensors) == 1 else None)
        if array is None:
            raise InputError(f"{path}: expected an array `{tensor.name}`{' or `x`' if len(tensors) == 1 else ''}, got {', '.join(found)}")
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
            return {"x": np.loadtxt(path, delimiter=",", dtype=np.float32, ndmin=2)}
    except (OSError, ValueError, EOFError, KeyError) as err:
        raise InputError(f"{path}: cannot be read: {err}") from err
    raise InputError(f"{path}: expected .npz, .npy or .csv")


def _fitted(path: Path, array: Array, tensor: TensorInfo) -> Array:
    """[n, ...] float32, whatever ones are in between. Raises InputError when a sample has another number of values."""
    wanted = [size for size in tensor.shape[1:] if size != 1]
    if array.ndim < 1 or array.dtype.kind not in "fiub" or [size for size in array.shape[1:] if size != 1] != wanted:
        raise InputError(
            f"{path}: expected samples of shape {list(tensor.shape[1:])} for `{tensor.name}`, got {array.dtype} {list(array.shape)}"
        )
    if not np.isfinite(array).all():
        raise InputError(f"{path}: `{tensor.name}` holds values that are not finite")
    fitted: Array = array.astype(np.float32 if array.dtype.kind == "f" else array.dtype)
    return fitted
