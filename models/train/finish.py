"""The end of every training: float and INT8 graph side by side, the gate between them, golden runs, manifest and report, all or nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import Bundle, Golden, Manifest, write_manifest
from edge_runtime.errors import EdgeRuntimeError, InputError
from edge_runtime.ports import LoadedModel
from edge_runtime.types import Array
from models.golden import NAME as GOLDEN
from models.golden import record
from models.onnx import OnnxBackend

MODEL = "model.onnx"
FLOAT = "float.onnx"
REPORT = "report.html"

_GOLDEN_RUNS = 8
_BATCH = 256


class GateFailed(EdgeRuntimeError):
    """The INT8 model lost more than allowed against the float one; nothing was written."""


@contextmanager
def bundle_folder(out: Path) -> Iterator[Path]:
    """A scratch folder that becomes `out` when the work in it succeeds. Raises InputError when `out` is something else already."""
    if out.exists() and not (out / "manifest.json").exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is no bundle; name another folder with --out")
    out.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        old = scratch.with_suffix(".old")
        if out.exists():
            out.rename(old)
        scratch.rename(out)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def run_all(path: Path, inputs: Array, output: int = 0) -> Array:
    """One output of a single-input graph for every row of `inputs`, [n, ...]."""
    model = OnnxBackend().load(path)
    try:
        parts = [np.array(model.run([inputs[start : start + _BATCH]])[output]) for start in range(0, len(inputs), _BATCH)]
    finally:
        model.close()
    return np.concatenate(parts)


def write(folder: Path, manifest: Manifest, golden_inputs: Array, page: str, tolerance: float) -> Bundle:
    """Golden runs of `golden_inputs` [n, ...], the report and the manifest beside the model."""
    model: LoadedModel = OnnxBackend().load(folder / MODEL)
    record(model, [[row[None]] for row in spread(golden_inputs, _GOLDEN_RUNS)], folder / GOLDEN)
    model.close()
    (folder / REPORT).write_text(page)
    golden = Golden(file=GOLDEN, tolerance=tolerance)
    changed: dict[str, Any] = {"golden": golden, "model": MODEL}
    whole = Manifest(**{**{name: getattr(manifest, name) for name in manifest.__struct_fields__}, **changed})
    return write_manifest(folder, whole, [MODEL, GOLDEN, REPORT])


def spread(rows: Array, count: int) -> Array:
    """At most `count` rows, evenly from first to last."""
    chosen: Array = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]
    return chosen


def model_name(out: Path) -> str:
    """A name for the manifest from the folder's: lower case, digits, `-` and `_`."""
    kept = "".join(c if c.isascii() and (c.isalnum() or c in "-_") else "-" for c in out.name.lower()).strip("-_")
    return kept[:64] or "model"
