"""One model file, screened and walked: the entry to inspection, whatever the format."""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.bundle import Bundle, find_model, verify
from edge_runtime.errors import ModelRefused, RefusalReason
from models.inspection import onnx, tflite
from models.inspection.report import Inspection
from models.optimised import digest
from models.protobuf import Malformed
from models.screening import onnx_facts, screen

SUFFIXES = (".onnx", ".tflite")


def inspect(path: Path) -> Inspection:
    """Reads a model file, or the graph of a bundle whose files are as its manifest lists them. Runs nothing.

    Raises ModelRefused: MISSING, UNREADABLE (damaged, or of absurd shapes), TOO_LARGE, UNSUPPORTED_FORMAT or EXTERNAL_DATA.
    """
    graph, bundle = find_model(path)
    if bundle is not None:
        verify(bundle)
    screen(graph, SUFFIXES)
    try:
        return _onnx(graph, bundle) if graph.suffix.lower() == ".onnx" else _tflite(graph, bundle)
    except Malformed as err:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{graph.name} is not a whole model ({err}); copy or export it again") from err


def _onnx(path: Path, bundle: Bundle | None) -> Inspection:
    precision = onnx_facts(path).precision
    return _inspection(onnx.inspect(_bytes(path)), path, bundle, format="onnx", precision=precision)


def _tflite(path: Path, bundle: Bundle | None) -> Inspection:
    found = tflite.read(_bytes(path))
    return _inspection(found, path, bundle, format="tflite", precision=found.precision)


def _inspection(found: onnx.Inspected | tflite.Model, path: Path, bundle: Bundle | None, **more: Any) -> Inspection:
    return Inspection(
        file=path.name,
        version=found.version,
        producer=found.producer,
        size_bytes=path.stat().st_size,
        sha256=digest(path),
        inputs=found.inputs,
        outputs=found.outputs,
        operators=found.operators,
        parameters=found.parameters,
        macs=found.macs,
        macs_unknown=found.macs_unknown,
        bundle=_summary(bundle) if bundle is not None else None,
        **more,
    )


def _summary(bundle: Bundle) -> dict[str, Any]:
    """The digest and the manifest, its list of files left out."""
    manifest: dict[str, Any] = msgspec.to_builtins(bundle.manifest)
    manifest.pop("files")
    return {"digest": bundle.digest, **manifest}


def _bytes(path: Path) -> memoryview:
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
