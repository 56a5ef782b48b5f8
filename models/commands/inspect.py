"""`edge-runtime model inspect`: what a model file is made of; with --optimise, what onnxruntime makes of it and how fast that is."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import msgspec

from edge_runtime.errors import InputError, ModelRefused
from models.commands.probe import refused
from models.infer import locate
from models.inspection.file import inspect
from models.inspection.optimise import DEADLINE_S, MEMORY_MB, OptimiseReport, optimise, optimise_lines
from models.inspection.text import lines


class InspectCommand:
    """Exit 0, or 1 with the named reason when the model is refused, or 2 when the command is wrong."""

    summary = "what a model is made of, and what the runtime's optimiser makes of it"
    example = "edge-runtime model inspect zoo:bearing --optimise"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", metavar="MODEL", help="a .onnx or .tflite file, a bundle folder, or zoo:NAME")
        parser.add_argument("--optimise", action="store_true", help="also run it at every optimisation level, in a child process (.onnx)")
        parser.add_argument(
            "--providers", metavar="NAME[,NAME]", help="execution providers for --optimise, first choice first (default: CPU)"
        )
        parser.add_argument("--deadline", type=float, default=DEADLINE_S, metavar="S", help="for --optimise (default: %(default)g s)")
        parser.add_argument("--memory", type=int, default=MEMORY_MB, metavar="MB", help="for --optimise (default: %(default)s)")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def run(self, args: Namespace) -> int:
        if args.deadline <= 0 or args.memory <= 0:
            raise InputError("--deadline and --memory: expected numbers above 0")
        try:
            path = locate(args.model)
            found = inspect(path)
            report = _optimise(path, args) if args.optimise else None
        except ModelRefused as err:
            return refused(args.model, err, as_json=args.json)
        if args.json:
            print(msgspec.json.encode({"model": args.model, "inspection": found, "optimisation": report}).decode())
        else:
            print("\n".join([*lines(found), *(["", *optimise_lines(report)] if report is not None else [])]))
        return 0


def _optimise(path: Path, args: Namespace) -> OptimiseReport:
    providers = tuple(name.strip() for name in args.providers.split(",")) if args.providers else None
    return optimise(path, deadline_s=args.deadline, memory_mb=args.memory, providers=providers)
