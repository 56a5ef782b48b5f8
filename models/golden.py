"""Golden runs of a bundle: inputs and the outputs they gave where the model was made, so that any runtime can be held against them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array

NAME = "golden.npz"
MAX_BYTES = 16 * 1024 * 1024


def record(model: LoadedModel, runs: Sequence[Sequence[Array]], path: Path) -> None:
    """Runs the model on every input and writes arrays `in<i>` and `out<i>`, one run per row; the same runs give the same bytes."""
    results = [[np.array(output) for output in model.run(inputs)] for inputs in runs]
    arrays = {f"in{i}": np.stack([run[i] for run in runs]) for i in range(len(model.inputs))}
    arrays |= {f"out{i}": np.stack([outputs[i] for outputs in results]) for i in range(len(model.outputs))}
    np.savez(path, **arrays)


def largest_difference(model: LoadedModel, path: Path) -> float:
    """The largest absolute difference of any output from its golden one; infinity for a NaN that was none.

    Raises ModelRefused(UNREADABLE) when the file does not fit the model.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"larger than {MAX_BYTES} bytes")
        with np.load(path, allow_pickle=False) as archive:
            inputs = [archive[f"in{i}"] for i in range(len(model.inputs))]
            expected = [archive[f"out{i}"] for i in range(len(model.outputs))]
    except (OSError, ValueError, KeyError, EOFError) as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name}: no golden runs of this model: {err}") from err
    worst = 0.0
    for number in range(len(inputs[0])):
        for got, wanted in zip(model.run([array[number] for array in inputs]), expected, strict=True):
            difference = np.abs(np.asarray(got, np.float64) - wanted[number])
            worst = max(worst, float(difference.max()) if np.isfinite(difference).all() else float("inf"))
    return worst
