"""`edge-runtime model quantize`: a float ONNX model to a judged INT8 bundle. When it loses too much: exit 1 and no bundle."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import InputError

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle
    from models.quantize.samples import Samples
    from models.quantize.search import Outcome


_REMEDY = "nothing was written. Give more typical calibration data, keep more layers in float, or allow more."


class QuantizeCommand:
    """Post-training quantization with a gate."""

    summary = "a float ONNX model to INT8, measured and gated"
    example = "edge-runtime model quantize model.onnx --calibration typical.npz --eval labelled.npz --target arm --out model-int8"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", type=Path, metavar="MODEL", help="a float .onnx file or a bundle")
        parser.add_argument("--calibration", nargs="+", type=Path, required=True, metavar="FILE", help="typical inputs: npz, npy or CSV")
        parser.add_argument(
            "--eval", nargs="+", type=Path, default=[], metavar="FILE", help="inputs that judge it (default: a fifth of them)"
        )
        parser.add_argument("--labels-array", default="y", metavar="NAME", help="array of true classes in the npz (default: %(default)s)")
        parser.add_argument("--target", choices=("x86", "arm", "mcu"), default="x86", help="where it will run (default: %(default)s)")
        parser.add_argument(
            "--calibrate", choices=("auto", "minmax", "entropy", "percentile"), default="auto", help="default: the best of all"
        )
        parser.add_argument("--per-tensor", action="store_true", help="one scale per weight tensor; per channel is better")
        parser.add_argument("--keep-float", nargs="+", default=[], metavar="LAYER", help="layers that stay in float")
        parser.add_argument("--max-drop", type=float, default=0.5, metavar="POINTS", help="what INT8 may lose (default: %(default)s)")
        parser.add_argument(
            "--max-float-layers", type=int, default=3, metavar="N", help="kept in float to keep that (default: %(default)s)"
        )
        parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split of the samples (default: %(default)s)")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def run(self, args: Namespace) -> int:
        from models.quantize.report import as_json, as_text

        outcome, bundle = quantize(args)
        if args.json:
            print(msgspec.json.encode(as_json(outcome) | {"bundle": str(bundle.folder) if bundle else None}).decode())
        else:
            print("\n".join(as_text(outcome)))
        if bundle is None:
            lost = f"INT8 loses {outcome.final.drop:g} points of {outcome.final.metric}, at most {outcome.max_drop:g} are allowed"
            print(f"edge-runtime: refused: {lost}; {_REMEDY}", file=sys.stderr)
            return 1
        if not args.json:
            print(f"{bundle.folder}: {bundle.digest}; report: {bundle.folder}/report.html")
        return 0


def quantize(args: Namespace) -> tuple[Outcome, Bundle | None]:
    """The search, and the bundle when it passed."""
    import tempfile

    from edge_runtime.bundle import find_model, read_bundle
    from models.onnx import OnnxBackend
    from models.quantize import ptq
    from models.quantize.samples import read
    from models.quantize.search import Limits, search
    from models.train.finish import MODEL, bundle_folder

    source, given = find_model(args.model)
    if source.suffix.lower() != ".onnx":
        raise InputError(f"{source}: expected a float .onnx model; a .tflite is quantized where it is made")
    model = OnnxBackend().load(source)
    if getattr(model, "precision", "") == "int8":
        raise InputError(f"{source.name} is quantized already; give the float model")
    calibration = read(args.calibration, model.inputs, args.labels_array)
    evaluation = read(args.eval, model.inputs, args.labels_array) if args.eval else None
    recipe = ptq.Recipe(target=args.target, per_channel=not args.per_tensor, keep_float=tuple(args.keep_float))
    methods = ptq.METHODS if args.calibrate == "auto" else (args.calibrate,)
    limits = Limits(args.max_drop, args.max_float_layers, args.seed)
    with tempfile.TemporaryDirectory() as scratch:
        int8 = Path(scratch) / MODEL
        outcome = search(source, int8, Path(scratch), calibration, evaluation, recipe, methods, limits)
        if not outcome.passed:
            return outcome, None
        with bundle_folder(args.out) as folder:
            (folder / MODEL).write_bytes(int8.read_bytes())
            _write(folder, args, outcome, calibration, given)
    return outcome, read_bundle(args.out)


def _write(folder: Path, args: Namespace, outcome: Outcome, calibration: Samples, given: Bundle | None) -> None:
    """The bundle around the model: what is known of the float model's bundle stays."""
    import numpy as np

    from edge_runtime.bundle import Golden, Manifest, Port, write_manifest
    from models.golden import NAME as GOLDEN
    from models.golden import record
    from models.onnx import OnnxBackend
    from models.quantize.report import as_json, as_page
    from models.train.finish import MODEL, REPORT, model_name

    model = OnnxBackend().load(folder / MODEL)
    rows = np.unique(np.linspace(0, len(calibration) - 1, 8).astype(int))
    record(model, list(calibration.part(rows).feeds(model.inputs)), folder / GOLDEN)
    (folder / REPORT).write_text(as_page(args.model.name, outcome))
    ports = [tuple(Port(name=t.name, shape=t.shape, dtype=t.dtype) for t in tensors) for tensors in (model.inputs, model.outputs)]
    known = {} if given is None else {name: getattr(given.manifest, name) for name in ("task", "labels", "window", "preprocess", "license")}
    manifest = Manifest(
        **{
            "schema": 1,
            "name": given.manifest.name if given else model_name(args.out),
            "version": given.manifest.version + 1 if given else 1,
            "model": MODEL,
            "files": {},
            "inputs": given.manifest.inputs if given else ports[0],
            "outputs": given.manifest.outputs if given else ports[1],
            "golden": Golden(file=GOLDEN, tolerance=0.05),
            "precision": f"int8 (QDQ, {'per channel' if outcome.recipe.per_channel else 'per tensor'})",
            "target": args.target,
            "license": "that of the float model",
            "provenance": {"made_by": "edge-runtime model quantize", "float_model": args.model.name},
            "measured": as_json(outcome),
            **known,
        }
    )
    write_manifest(folder, manifest, [MODEL, GOLDEN, REPORT])
