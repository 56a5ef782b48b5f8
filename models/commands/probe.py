"""`edge-runtime model probe`: one model loaded and run in a process of its own, as a gateway does it before the model may serve."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.bundle import find_model, verify
from edge_runtime.errors import InputError, ModelRefused
from edge_runtime.types import ProbeReport
from models.backends import choose
from models.declared import require_fit
from models.infer import locate
from models.inspection.text import tensor_text
from models.probe import DEADLINE_S, MEMORY_MB, GoldenRuns, probe


class ProbeCommand:
    """Exit 0 when the model may serve here, 1 with the named reason when it is refused, 2 when the command is wrong."""

    summary = "load and run a model in a process of its own: time, memory, golden runs"
    example = "edge-runtime model probe pump-anomaly --deadline 5 --memory 256"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", metavar="MODEL", help="a .onnx or .tflite file, a bundle folder, or zoo:NAME")
        parser.add_argument("--backend", metavar="NAME", help="onnx, litert or tflite (default: the first usable one)")
        parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="for all of it (default: %(default)g s)")
        parser.add_argument("--memory", type=int, default=MEMORY_MB, metavar="MB", help="the model may take (default: %(default)s)")
        parser.add_argument("--golden", action="store_true", help="insist on golden runs (a bundle's are run in any case)")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def run(self, args: Namespace) -> int:
        if args.deadline <= 0 or args.memory <= 0:
            raise InputError("--deadline and --memory: expected numbers above 0")
        try:
            report = _probe(args)
        except ModelRefused as err:
            return refused(args.model, err, as_json=args.json)
        print(msgspec.json.encode({"model": args.model, "probe": report}).decode() if args.json else "\n".join(_lines(args.model, report)))
        return 0


def refused(model: str, err: ModelRefused, *, as_json: bool) -> int:
    """Says a refusal, as JSON too where that was asked for; the exit code."""
    if as_json:
        reason = err.reason.value
        answer: dict[str, Any] = {"model": model, "refused": {"reason": reason, "message": str(err).removeprefix(f"{reason}: ")}}
        print(msgspec.json.encode(answer).decode())
    print(f"edge-runtime: model refused: {err}", file=sys.stderr)
    return 1


def _probe(args: Namespace) -> ProbeReport:
    path = locate(args.model)
    _, bundle = find_model(path)
    if bundle is not None:
        verify(bundle)
    golden = GoldenRuns.of(bundle)
    if args.golden and golden is None:
        raise InputError(f"--golden: {args.model} has no golden runs; only a bundle that names them in its manifest has")
    choice = choose(Path(path), args.backend)
    report = probe(path, choice.name, deadline_s=args.deadline, memory_mb=args.memory, golden=golden)
    if bundle is not None:
        require_fit(bundle.manifest, report.inputs, report.outputs)
    return report


def _lines(model: str, report: ProbeReport) -> Iterator[str]:
    yield f"{model}: may serve here (backend {report.backend})"
    yield f"  load    {report.load_ms:.1f} ms"
    yield f"  run     {report.run_ms:.3f} ms, median of {report.runs}" if report.runs else "  run     not timed: it has free dimensions"
    yield f"  memory  {report.rss_mb:.1f} MB"
    if report.golden_difference is not None:
        yield f"  golden  {report.golden_runs} of {report.golden_runs} runs agree, largest difference {report.golden_difference:.3g}"
    for word, tensors in (("input", report.inputs), ("output", report.outputs)):
        for tensor in tensors:
            yield f"  {word:7s} {tensor_text(tensor)}"
