"""`edge-runtime model quantize`: a float ONNX model to a judged INT8 bundle. When it loses too much: exit 1, a report and no bundle."""

from __future__ import annotations

import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import InputError

if TYPE_CHECKING:
    from models.quantize.search import Outcome

_NO_TFLITE = (
    "--format tflite: the converters from ONNX to .tflite need TensorFlow, which is not part of this toolchain. Ship the ONNX bundle"
    " (--format onnx), or quantize with the tools of the framework that the model comes from and run the .tflite by the litert backend"
)
_REMEDY = "Give more typical calibration data, keep more layers in float, train it in INT8 (--method qat), or allow more (--max-drop)."


class QuantizeCommand:
    """Post-training quantization, or training with quantization in the loop, with a gate."""

    summary = "a float ONNX model to INT8, measured and gated"
    example = "edge-runtime model quantize model.onnx --calibration typical.npz --eval labelled.npz --target arm --out model-int8"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("model", type=Path, metavar="MODEL", help="a float .onnx file or a bundle")
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
        parser.add_argument("--picture", type=Path, metavar="FILE", help="the report's figures as one SVG, passed or not")
        parser.add_argument("--json", action="store_true", help="one JSON document")
        parser.add_argument("--format", choices=("onnx", "tflite"), default="onnx", help="tflite is refused, and says why (default: onnx)")
        _configure_data(parser)
        _configure_recipe(parser)

    def run(self, args: Namespace) -> int:
        from models.quantize.plots import overview
        from models.quantize.report import as_json, as_text, verdict

        outcome, where = quantize(args)
        if args.picture:
            args.picture.write_text(overview(outcome))
        if args.json:
            print(msgspec.json.encode(as_json(outcome) | {"bundle": str(where) if outcome.passed else None}).decode())
        else:
            print("\n".join(as_text(outcome)))
        if not outcome.passed:
            print(f"edge-runtime: {verdict(outcome)}; no bundle was written, see {where}/report.html. {_REMEDY}", file=sys.stderr)
            return 1
        if not args.json:
            print(f"{where}: bundle written; report: {where}/report.html")
        return 0


def quantize(args: Namespace) -> tuple[Outcome, Path]:
    """The search, and the folder of the bundle when it passed, else of the report."""
    import tempfile

    from edge_runtime.bundle import find_model
    from models.onnx import OnnxBackend
    from models.quantize import bundle, ptq, search
    from models.quantize.calibration import METHODS
    from models.quantize.judge import choose_metric
    from models.quantize.samples import divide, read

    if args.format == "tflite":
        raise InputError(_NO_TFLITE)
    source, given = find_model(args.model)
    if source.suffix.lower() != ".onnx":
        raise InputError(f"{source}: expected a float .onnx model; a .tflite is quantized where it is made")
    model = OnnxBackend().load(source)
    if getattr(model, "precision", "") == "int8":
        raise InputError(f"{source.name} is quantized already; give the float model")
    calibration = read(args.calibration, model.inputs, args.labels_array)
    evaluation = read(args.eval, model.inputs, args.labels_array) if args.eval else None
    parts = divide(calibration, evaluation, args.seed)
    metric = args.metric
    if metric == "auto":
        labelled = parts.chosen.labels is not None and parts.judged.labels is not None
        metric = choose_metric(model.inputs, model.outputs, labelled, given.manifest.task if given else "")
    recipe = ptq.Recipe(target=args.target, per_channel=not args.per_tensor, keep_float=tuple(args.keep_float))
    methods = METHODS if args.calibrate == "auto" else (args.calibrate,)
    plan = search.Plan(metric, methods, args.method, args.max_drop, args.max_float_layers, args.opset, args.seed, args.train_limit)
    with tempfile.TemporaryDirectory() as scratch:
        int8 = Path(scratch) / "int8.onnx"
        outcome = search.search(source, int8, Path(scratch), parts, recipe, plan)
        if not outcome.passed:
            return outcome, bundle.write_refusal(args.out, source, outcome)
        return outcome, bundle.write(args.out, int8, source, outcome, calibration, given).folder


def _configure_data(parser: ArgumentParser) -> None:
    parser.add_argument("--calibration", nargs="+", type=Path, required=True, metavar="FILE", help="typical inputs: npz, npy or CSV")
    parser.add_argument("--eval", nargs="+", type=Path, default=[], metavar="FILE", help="inputs that judge it (default: a fifth of them)")
    parser.add_argument("--labels-array", default="y", metavar="NAME", help="array or column of true classes (default: %(default)s)")
    parser.add_argument(
        "--metric",
        choices=("auto", "agreement", "sqnr"),
        default="auto",
        help="of the gate without labels (default: by the outputs)",
    )
    parser.add_argument("--max-drop", type=float, default=0.5, metavar="POINTS", help="what INT8 may lose (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the split of the samples and of training (default: 0)")


def _configure_recipe(parser: ArgumentParser) -> None:
    methods = ("auto", "minmax", "percentile", "entropy", "mse")
    parser.add_argument("--target", choices=("x86", "arm", "mcu"), default="x86", help="where it will run (default: %(default)s)")
    parser.add_argument("--method", choices=("auto", "ptq", "qat"), default="auto", help="train in INT8: when needed, never, always")
    parser.add_argument("--qat", action="store_const", const="qat", dest="method", help="the same as --method qat")
    parser.add_argument("--calibrate", choices=methods, default="auto", help="how ranges are found (default: the best of all)")
    parser.add_argument("--per-tensor", action="store_true", help="one scale per weight tensor; per channel is better")
    parser.add_argument("--keep-float", nargs="+", default=[], metavar="LAYER", help="layers that stay in float")
    parser.add_argument(
        "--max-float-layers", type=int, default=3, metavar="N", help="more of them to pass the gate, at most (default: %(default)s)"
    )
    parser.add_argument("--train-limit", type=float, default=900.0, metavar="S", help="seconds of training at most (default: 900)")
    parser.add_argument(
        "--opset",
        type=int,
        choices=range(13, 22),
        default=21,
        metavar="N",
        help="13 to 21; older ones are converted (default: %(default)s)",
    )
