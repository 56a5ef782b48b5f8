"""`edge-runtime model train`: from a recording to a quantized, judged bundle, on a workstation."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.errors import InputError

if TYPE_CHECKING:
    from edge_runtime.bundle import Bundle


class TrainCommand:
    """`anomaly` learns normal running, `classify` labelled states."""

    summary = "learn a small INT8 model from recordings"
    example = "edge-runtime model train anomaly --data normal.csv --out pump-anomaly"

    def configure(self, parser: ArgumentParser) -> None:
        kinds = parser.add_subparsers(dest="train_kind", metavar="KIND", required=True, title="kinds")
        _configure_anomaly(kinds.add_parser("anomaly", help="a detector, from rows of normal running", epilog=f"example: {self.example}"))
        example = "edge-runtime model train classify --data load0.npz --out bearing-state"
        _configure_classify(kinds.add_parser("classify", help="a classifier, from labelled signals", epilog=f"example: {example}"))

    def run(self, args: Namespace) -> int:
        bundle = _anomaly(args) if args.train_kind == "anomaly" else _classify(args)
        if args.json:
            answer = {"bundle": str(bundle.folder), "digest": bundle.digest, "measured": bundle.manifest.measured}
            print(msgspec.json.encode(answer).decode())
        else:
            print("\n".join(_summary(bundle)))
        return 0


def _configure_anomaly(parser: ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FILE", help="CSV or npz of normal running")
    parser.add_argument("--fit-rows", type=int, metavar="N", help="use only the first N rows of each file")
    parser.add_argument("--window", type=int, default=16, metavar="ROWS", help="rows that a feature looks back over (default: %(default)s)")
    parser.add_argument("--smooth", type=int, default=5, metavar="ROWS", help="length of the score's smoothing (default: %(default)s)")
    parser.add_argument("--factor", type=float, default=2.0, metavar="F", help="threshold over held-out scores (default: %(default)s)")
    _configure_common(parser)


def _configure_classify(parser: ArgumentParser) -> None:
    parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FILE", help="npz of <class>_<anything>, or class folders")
    parser.add_argument("--window", type=int, metavar="SAMPLES", help="samples per window (default: 1024, or what fits)")
    parser.add_argument("--hop", type=int, metavar="SAMPLES", help="samples between windows (default: a quarter of the window)")
    parser.add_argument("--rate-hz", type=float, default=0.0, metavar="HZ", help="samples per second, noted in the manifest")
    parser.add_argument("--epochs", type=int, metavar="N", help="default: 20, or more where there are few windows")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="default: %(default)s")
    parser.add_argument("--max-drop", type=float, default=0.5, metavar="POINTS", help="accuracy INT8 may lose (default: %(default)s)")
    _configure_common(parser)


def _configure_common(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="the bundle's folder")
    parser.add_argument("--name", default="", help="the model's name (default: the folder's)")
    parser.add_argument("--target", choices=("x86", "arm", "mcu"), default="x86", help="where it will run (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document")


def _anomaly(args: Namespace) -> Bundle:
    from models.train.anomaly import train
    from models.train.detector import Settings

    for name in ("window", "smooth", "fit_rows"):
        _expect(name, getattr(args, name), least=1)
    if not 0 < args.factor < 1e6:
        raise InputError(f"--factor: expected a number above 0, got {args.factor:g}")
    settings = Settings(window=args.window, smooth=args.smooth, factor=args.factor)
    return train(args.data, args.out, settings, fit_rows=args.fit_rows, target=args.target, name=args.name)


def _classify(args: Namespace) -> Bundle:
    from models.train.classify import Settings, train

    _expect("window", args.window, least=8)
    _expect("hop", args.hop, least=1)
    _expect("epochs", args.epochs, least=1)
    settings = Settings(window=args.window, hop=args.hop, epochs=args.epochs, seed=args.seed, max_drop=args.max_drop)
    return train(args.data, args.out, settings, target=args.target, name=args.name, rate_hz=args.rate_hz)


def _expect(name: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise InputError(f"--{name.replace('_', '-')}: expected at least {least}, got {value}")


def _summary(bundle: Bundle) -> list[str]:
    manifest, measured = bundle.manifest, bundle.manifest.measured
    lines = [
        f"{bundle.folder}: {manifest.task} {manifest.name}, {measured['size_bytes']} bytes, {manifest.precision}",
        f"  {bundle.digest}",
    ]
    if manifest.task == "classifier":
        accuracy = measured["accuracy"]
        lines.append(f"  classes {', '.join(manifest.labels)}")
        lines.append(f"  held-out windows {measured['windows']['held_out']}: float {accuracy['float']} %, INT8 {accuracy['int8']} %")
    else:
        alarms = measured["held_out_alarms_percent"]
        lines.append(f"  columns {', '.join(manifest.inputs[0].channels)}")
        lines.append(f"  judged by their steps, for they drift: {', '.join(measured['differenced_columns']) or 'none'}")
        lines.append(f"  held-out rows {measured['rows']['held_out']}: alarms float {alarms['float']} %, INT8 {alarms['int8']} %")
    assert manifest.window is not None
    lines.append(
        f"  in a deployment: window: {{size: {manifest.window.size}, hop: {manifest.window.hop}}}; report: {bundle.folder}/report.html"
    )
    return lines
