"""What the recipes of the zoo share: their command line, and the end in which graph, golden runs and figures become a bundle.

A bundle made without `--time` depends on data and seed alone: twice the same digest. `--time` adds what it costs on this machine.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.bundle import Bundle, Golden, Manifest, write_manifest
from edge_runtime.types import Array
from models.golden import NAME as GOLDEN
from models.golden import record
from models.onnx import OnnxBackend
from models.probe import probe


def parser(name: str, description: str | None, data: str) -> argparse.ArgumentParser:
    """The options of every recipe; `data` says what `--data` takes."""
    made = argparse.ArgumentParser(prog=f"python -m models.zoo.{name}.train", description=description)
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the graph, its golden runs and its manifest")
    made.add_argument("--data", nargs="+", type=Path, default=[], metavar="FILE", help=data)
    made.add_argument("--picture", type=Path, metavar="FILE.svg", help="also draw what was measured")
    made.add_argument("--time", action="store_true", help="also note latency and memory on this machine in the manifest")
    return made


def seal(folder: Path, manifest: Manifest, golden_inputs: Sequence[Array], *, tolerance: float, timed: bool) -> Bundle:
    """Golden runs of `golden_inputs` and the manifest beside the graph that lies in `folder` already."""
    graph = folder / manifest.model
    model = OnnxBackend().load(graph)
    try:
        record(model, [[row] for row in golden_inputs], folder / GOLDEN)
    finally:
        model.close()
    measured = {**manifest.measured, "size_bytes": graph.stat().st_size, **({"cost": cost(graph)} if timed else {})}
    whole = msgspec.structs.replace(manifest, golden=Golden(file=GOLDEN, tolerance=tolerance), measured=measured)
    return write_manifest(folder, whole, [manifest.model, GOLDEN])


def cost(graph: Path) -> dict[str, Any]:
    """Latency and memory as the probe finds them in a process of its own: ONNX Runtime, one thread."""
    report = probe(graph, "onnx")
    return {"machine": platform.machine(), "latency_ms": report.run_ms, "memory_mb": report.rss_mb}


def tell(bundle: Bundle) -> None:
    """The digest and the figures, on stdout."""
    sys.stdout.write(json.dumps({"digest": bundle.digest, "measured": bundle.manifest.measured}, indent=2) + "\n")
