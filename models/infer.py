"""`edge-runtime infer`: one model on files, to see what it says and how fast. Probed in a child process first.

A bundle's manifest says how its inputs are read and which outputs are carried to the next run; such a state begins anew with every file.
It serves nothing and stores nothing. Exit 1 with a named reason when the model is refused, 2 when an input or label file is wrong.
"""

from __future__ import annotations

import sys
import time
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec

from edge_runtime.bundle import Manifest, find_model, verify
from edge_runtime.errors import InputError, ModelRefused
from edge_runtime.ports import LoadedModel
from edge_runtime.recurrence import Recurrent, Streams
from edge_runtime.types import Array, ProbeReport
from models import inputs, labels, results, zoo
from models.backends import Choice, choose
from models.declared import declared_inputs
from models.feeding import sources
from models.inputs import Source
from models.probe import DEADLINE_S, MEMORY_MB
from models.results import Report, Result

ZOO = "zoo:"


@runtime_checkable
class StatesPrecision(Protocol):
    """A loaded model that knows what it computes in."""

    @property
    def precision(self) -> str: ...


class Command:
    """Runs one model on files."""

    summary = "run one model on pictures, arrays, CSV, sound or raw values"
    example = "edge-runtime infer mobilenet.tflite --input cat.bmp bird.bmp --labels imagenet_labels.txt --top 3"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", metavar="MODEL", help="a .onnx or .tflite file, a bundle folder, or zoo:NAME")
        parser.add_argument(
            "--input", nargs="+", type=Path, required=True, metavar="FILE", help=f"{inputs.KNOWN}; NAME=FILE for a model of several inputs"
        )
        parser.add_argument("--labels", type=Path, metavar="FILE", help="class names, one a line, plain or `index name`")
        parser.add_argument("--top", type=_positive, default=5, metavar="N", help="classes shown per run (default: %(default)s)")
        parser.add_argument("--backend", metavar="NAME", help="onnx, litert or tflite (default: the first usable one, which is said)")
        parser.add_argument("--threads", type=_positive, default=1, metavar="N", help="threads of the runtime (default: %(default)s)")
        parser.add_argument(
            "--mean", type=_numbers, metavar="M[,M...]", help="values become (value - mean) / scale; for floats 127.5 in pictures"
        )
        parser.add_argument("--scale", type=_numbers, metavar="S[,S...]", help="see --mean")
        parser.add_argument("--dtype", choices=("float32", "float64", "int8", "uint8", "int16", "int32"), help="of raw files")
        parser.add_argument("--window", type=_positive, metavar="N", help="cut windows of N values from each file")
        parser.add_argument("--hop", type=_positive, metavar="M", help="values between two windows (default: the window)")
        parser.add_argument("--no-probe", action="store_true", help="load at once, in this process: a model that crashes takes it down")
        parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="of the probe (default: %(default)g s)")
        parser.add_argument("--memory", type=_positive, default=MEMORY_MB, metavar="MB", help="the model may take (default: %(default)s)")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def run(self, args: Namespace) -> int:
        try:
            report, choice = infer(args)
        except ModelRefused as err:
            if args.json:
                _print_json(
                    {
                        "model": args.model,
                        "refused": {"reason": err.reason.value, "message": str(err).removeprefix(f"{err.reason.value}: ")},
                    }
                )
            print(f"edge-runtime: model refused: {err}", file=sys.stderr)
            return 1
        if args.json:
            _print_json(report)
        else:
            print(results.as_text(report, choice.others))
        return 0


def infer(args: Namespace) -> tuple[Report, Choice]:
    """Probes, loads and runs as the arguments say. Raises ModelRefused, InputError, MissingDependency."""
    path = locate(args.model)
    _, bundle = find_model(path)
    if bundle is not None:
        verify(bundle)
    choice = choose(path, args.backend)
    if choice.others:
        print(f"backend {choice.name} taken (also possible: --backend {' or '.join(choice.others)})", file=sys.stderr)
    names = labels.read(args.labels) if args.labels else []
    probed = None if args.no_probe else _probe(choice, path, args)
    model = choice.backend.load(path, args.threads)
    try:
        notes: list[str] = []
        found = tuple(_results(model, bundle.manifest if bundle else None, args, names, notes))
    finally:
        model.close()
    precision = model.precision if isinstance(model, StatesPrecision) else model.inputs[0].dtype
    return Report(path.name, choice.name, precision, probed, found, tuple(notes)), choice


def locate(model: str) -> Path:
    """The graph's file of a model named on the command line: a file, a bundle's folder, or `zoo:NAME`."""
    if not model.startswith(ZOO):
        return find_model(Path(model))[0]
    try:
        return zoo.path(model.removeprefix(ZOO))
    except KeyError as err:
        raise InputError(err.args[0]) from err


def _probe(choice: Choice, path: Path, args: Namespace) -> ProbeReport:
    import asyncio

    return asyncio.run(choice.backend.probe(path, deadline_s=args.deadline, memory_mb=args.memory))


def _results(model: LoadedModel, manifest: Manifest | None, args: Namespace, names: list[str], notes: list[str]) -> Iterator[Result]:
    options = inputs.Options(args.mean, args.scale, args.dtype, args.window, args.hop)
    runnable = Recurrent(model, manifest.state) if manifest is not None and manifest.state else model
    declared = declared_inputs(manifest, runnable.inputs) if manifest is not None else {}
    fitted: Sequence[str] | None = None
    for source in sources(args.input, runnable.inputs, declared, options):
        if source.note:
            notes.append(f"{source.name}: {source.note}")
        for number, given, got, latency_ms in _runs(runnable, source):
            if fitted is None:
                fitted = labels.fit(names, got[0].size) if names else _own_labels(manifest, got[0].size)
            run = number if len(source.runs) > 1 else 0
            yield results.result(source.name, run, latency_ms, given, got, runnable.outputs, fitted, args.top)


def _own_labels(manifest: Manifest | None, classes: int) -> Sequence[str]:
    return manifest.labels if manifest is not None and len(manifest.labels) == classes else []


def _runs(model: LoadedModel, source: Source) -> Iterator[tuple[int, Sequence[Array], Sequence[Array], float]]:
    """Each run of a source with its latency; the very first goes twice, so that none pays for the warm-up. A state starts from zero."""
    stream = model.stream() if isinstance(model, Streams) else None
    run = model.run if stream is None else stream.run
    if source.runs:
        run(source.runs[0])
    if stream is not None:
        stream.reset()
    for number, given in enumerate(source.runs, 1):
        begin = time.perf_counter()
        got = run(given)
        yield number, given, got, (time.perf_counter() - begin) * 1e3


def _print_json(document: object) -> None:
    print(msgspec.json.encode(document).decode())


def _numbers(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as err:
        raise ArgumentTypeError(f"`{text}` is not a number or numbers with commas between") from err


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise ArgumentTypeError(f"`{text}` is not a whole number above 0")
    return int(text)
