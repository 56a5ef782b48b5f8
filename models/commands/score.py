"""`edge-runtime model score`: a bundle on recordings that it has not seen."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

import msgspec


class ScoreCommand:
    """Precision, recall, F1, false and missed alarms of a detector; accuracy and confusion of a classifier."""

    summary = "how good a bundle is on labelled recordings"
    example = "edge-runtime model score pump-anomaly --data january.csv --label anomaly --skip-rows 400"

    def configure(self, parser: ArgumentParser) -> None:
        parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="a bundle's folder")
        parser.add_argument("--data", nargs="+", type=Path, required=True, metavar="FILE", help="recordings with labels")
        parser.add_argument("--label", default="anomaly", metavar="COLUMN", help="label column of tables (default: %(default)s)")
        parser.add_argument("--skip-rows", type=int, default=0, metavar="N", help="leave out the first N rows of each file")
        parser.add_argument("--backend", metavar="NAME", help="onnx, litert or tflite (default: the first usable one)")
        parser.add_argument("--json", action="store_true", help="one JSON document")

    def run(self, args: Namespace) -> int:
        from edge_runtime.bundle import read_bundle, verify
        from models.backends import choose
        from models.train.scoring import as_text, result_of

        bundle = read_bundle(args.bundle)
        verify(bundle)
        model = choose(bundle.model, args.backend).backend.load(bundle.model)
        try:
            score = result_of(bundle, model, args.data, args.label, max(0, args.skip_rows))
        finally:
            model.close()
        print(msgspec.json.encode(score).decode() if args.json else "\n".join(as_text(score)))
        return 0
