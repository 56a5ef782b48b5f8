"""The bundle around an INT8 graph that passed, or only the report of one that did not. Judges nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.bundle import Bundle, Golden, Manifest, Port, read_bundle, write_manifest
from edge_runtime.types import TensorInfo
from models.golden import NAME as GOLDEN
from models.golden import record
from models.onnx import OnnxBackend
from models.quantize.report import as_json, as_page, summary
from models.quantize.samples import Samples
from models.quantize.search import Outcome
from models.train.finish import MODEL, REPORT, bundle_folder, model_name

FIGURES = "report.json"

_GOLDEN_RUNS = 8
_TOLERANCE = 0.05


def write(out: Path, int8: Path, source: Path, outcome: Outcome, samples: Samples, given: Bundle | None) -> Bundle:
    """A bundle in `out`, whole or not at all. What is known from the float model's bundle stays."""
    with bundle_folder(out) as folder:
        shutil.copyfile(int8, folder / MODEL)
        model = OnnxBackend().load(folder / MODEL)
        rows = np.unique(np.linspace(0, len(samples) - 1, _GOLDEN_RUNS).astype(int))
        record(model, list(samples.part(rows).feeds(model.inputs)), folder / GOLDEN)
        _write_report(folder, source.name, outcome)
        golden = Golden(file=GOLDEN, tolerance=_tolerance(folder / GOLDEN))
        manifest = _manifest(out, source, outcome, model.inputs, model.outputs, golden, given)
        model.close()
        write_manifest(folder, manifest, [MODEL, GOLDEN, REPORT, FIGURES])
    return read_bundle(out)


def write_refusal(out: Path, source: Path, outcome: Outcome) -> Path:
    """The report beside `out`, in `<out>-refused`, so that a bundle there stays as it is."""
    folder = out.with_name(out.name + "-refused")
    folder.mkdir(parents=True, exist_ok=True)
    _write_report(folder, source.name, outcome)
    return folder


def _write_report(folder: Path, name: str, outcome: Outcome) -> None:
    (folder / REPORT).write_text(as_page(name, outcome))
    (folder / FIGURES).write_bytes(msgspec.json.format(msgspec.json.encode(as_json(outcome)), indent=2) + b"\n")


def _tolerance(golden: Path) -> float:
    """A twentieth of the largest golden output: another processor rounds some values to the next level."""
    with np.load(golden) as archive:
        peak = max((float(np.abs(archive[name]).max()) for name in archive.files if name.startswith("out")), default=1.0)
    return float(f"{max(_TOLERANCE * peak, 1e-6):.3g}")


def _manifest(
    out: Path, source: Path, outcome: Outcome, inputs: tuple[TensorInfo, ...], outputs: tuple[TensorInfo, ...], golden: Golden,
    given: Bundle | None,
) -> Manifest:  # fmt: skip
    ports = [tuple(Port(name=t.name, shape=t.shape, dtype=t.dtype) for t in tensors) for tensors in (inputs, outputs)]
    kept = ("task", "labels", "window", "preprocess", "license", "inputs", "outputs", "name")
    known: dict[str, Any] = {} if given is None else {name: getattr(given.manifest, name) for name in kept}
    origin = {} if given is None else {"float_bundle": given.digest}
    values: dict[str, Any] = {
        "name": model_name(out),
        "version": 1 if given is None else given.manifest.version + 1,
        "inputs": ports[0],
        "outputs": ports[1],
        "task": "classifier" if outcome.final.metric in ("accuracy", "agreement") else "other",
        "license": "that of the float model",
        "precision": f"int8 (QDQ, {'per channel' if outcome.recipe.per_channel else 'per tensor'}, {outcome.recipe.method})",
        "target": outcome.recipe.target,
        "golden": golden,
        "provenance": {"made_by": "edge-runtime model quantize", "float_model": source.name, **origin},
        "measured": summary(outcome),
    }
    return Manifest(schema=1, model=MODEL, files={}, **(values | known))
