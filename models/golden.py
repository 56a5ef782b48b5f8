"""Golden runs of a bundle: inputs and the outputs they gave where the model was made, so that any runtime can be held against them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from zipfile import BadZipFile

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array
from models.tensors import shape_text

NAME = "golden.npz"
MAX_BYTES = 16 * 1024 * 1024


def record(model: LoadedModel, runs: Sequence[Sequence[Array]], path: Path) -> None:
    """Runs the model on every input and writes arrays `in<i>` and `out<i>`, one run per row; the same runs give the same bytes."""
    results = [[np.array(output) for output in model.run(inputs)] for inputs in runs]
    arrays = {f"in{i}": np.stack([run[i] for run in runs]) for i in range(len(model.inputs))}
    arrays |= {f"out{i}": np.stack([outputs[i] for outputs in results]) for i in range(len(model.outputs))}
    np.savez(path, **arrays)


def largest_difference(model: LoadedModel, path: Path) -> float:
    """The largest absolute difference of any output from its golden one; see `compare`."""
    return compare(model, path)[1]


def compare(model: LoadedModel, path: Path) -> tuple[int, float]:
    """The number of golden runs, at least one, and the largest absolute difference of any output from its golden one.

    A value that is not finite must be the same in both, else the difference is infinite. Raises ModelRefused(UNREADABLE) when the file
    does not fit the model, and what the model's `run` raises.
    """
    inputs, expected = _read(model, path)
    worst = 0.0
    for number in range(len(inputs[0])):
        results = model.run([array[number] for array in inputs])
        for got, wanted in zip(results, expected, strict=True):
            worst = max(worst, _difference(np.asarray(got), wanted[number], path))
    return len(inputs[0]), worst


def _read(model: LoadedModel, path: Path) -> tuple[list[Array], list[Array]]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as archive:
            inputs = [archive[f"in{i}"] for i in range(len(model.inputs))]
            expected = [archive[f"out{i}"] for i in range(len(model.outputs))]
        counts = {array.shape[:1] for array in (*inputs, *expected)}
        if len(counts) != 1 or counts & {(), (0,)}:
            raise ValueError(f"expected as many runs in every array and at least one, got {sorted(counts)}")
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name}: no golden runs of this model: {err}") from err
    return inputs, expected


def _difference(got: Array, wanted: Array, path: Path) -> float:
    if got.shape != wanted.shape:
        raise ModelRefused(
            RefusalReason.UNREADABLE,
            f"{path.name}: no golden runs of this model: an output is {shape_text(got.shape)}, the golden one {shape_text(wanted.shape)}",
        )
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    apart = ~((got == wanted) | (np.isnan(got) & np.isnan(wanted)))
    difference = np.abs(got[apart] - wanted[apart])
    if not np.isfinite(difference).all():
        return float("inf")
    return float(difference.max(initial=0.0))
