"""The SKAB leaderboard's protocol with our detector: per file fit on the first 400 rows, score the rest, all files together.

    python -m benchmarks.skab FOLDER/*.csv

The settings are those of `model train anomaly`. How they were chosen: docs/models/train.md.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.recordings import open_recordings
from edge_runtime.types import Array
from models.progress import progress
from models.train.anomaly import calibrate, held_out, read_table
from models.train.detector import Settings, learn, windows
from models.train.finish import FLOAT, MODEL, run_all
from models.train.scoring import count

FIT_ROWS = 400
PUBLISHED = {
    "Conv-AE": (0.78, 13.55, 28.02),
    "MSET": (0.78, 39.73, 14.13),
    "T2+Q": (0.76, 26.62, 24.92),
}


def run(paths: list[Path], settings: Settings) -> dict[str, Any]:
    """F1, FAR and MAR of both precisions over all files."""
    alarms: dict[str, list[Array]] = {"float": [], "int8": []}
    truth = []
    with progress("SKAB") as step, tempfile.TemporaryDirectory() as name:
        for number, path in enumerate(paths, 1):
            rows = read_table(path).rows
            fit = [rows[:FIT_ROWS]]
            calibrate(Path(name), learn(fit, settings), settings, "x86", held_out(fit, settings))
            for kind, file in (("float", FLOAT), ("int8", MODEL)):
                found = run_all(Path(name) / file, windows(rows, settings)).argmax(axis=1) == 1
                alarms[kind].append(np.concatenate([np.zeros(settings.rows - 1, bool), found])[FIT_ROWS:])
            truth.append(open_recordings(path)[0].columns["anomaly"][FIT_ROWS:] > 0.5)
            step(number, len(paths), path.name)
    scores = {kind: count(np.concatenate(found), np.concatenate(truth)) for kind, found in alarms.items()}
    return {kind: {"f1": score.f1, "far": score.far, "mar": score.mar, "rows": score.rows} for kind, score in scores.items()}


def main() -> int:
    """Command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.skab", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--factor", type=float, default=Settings().factor)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    result = run(args.files, Settings(factor=args.factor))
    if args.json:
        print(json.dumps(result))
        return 0
    print(f"{'':32s} {'F1':>6s} {'FAR %':>7s} {'MAR %':>7s}")
    for kind, score in result.items():
        print(f"{'ours, ' + kind:32s} {score['f1']:6.3f} {score['far']:7.2f} {score['mar']:7.2f}")
    for name, (f1, far, mar) in PUBLISHED.items():
        print(f"{name + ' (published, 34 files)':32s} {f1:6.2f} {far:7.2f} {mar:7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
