"""Recipe: learns the simulated pump's normal running, writes an INT8 anomaly detector and measures it on faults it has never seen.

`python -m models.zoo.pump.train --out DIR` (extra `quantize`). Closed form, no torch: the same seeds give the same bytes. Mathematics and
threshold are those of `model train anomaly`; with `--data` the method is also judged on the user's SKAB tables.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edge_runtime.bundle import Bundle, Manifest, Port, Window
from edge_runtime.recordings import open_recordings
from edge_runtime.types import Array
from models import svg
from models.progress import progress
from models.qdq import OPSET
from models.train.anomaly import calibrate, held_out, read_table
from models.train.detector import LABELS, Settings, learn, windows
from models.train.finish import FLOAT, MODEL, run_all, spread
from models.train.scoring import count
from models.zoo import recipe
from models.zoo.pump.data import CHANNELS, FAULTS, RATE_HZ, UNITS, Run, faulty, normal, record

NAME = "pump-int8.onnx"
SEEDS = {"train": 11, "normal": 53, "faults": 1000}
SEVERITIES = (0.25, 0.5, 1.0)
SETTINGS = Settings(window=32, drift=9.0, ridge=0.005, clip=6.0, quantile=0.999, factor=1.5)
FEW_ROWS = Settings()
ALARM_S = 3.0

_GOLDEN_RUNS = 8
_SKAB_FIT_ROWS = 400
_SCORE = 1


@dataclass(frozen=True, slots=True)
class Size:
    """How much is recorded: training runs, runs for false alarms, and runs of each fault and severity."""

    runs: int = 24
    seconds: float = 1200.0
    normal_runs: int = 72
    fault_runs: int = 12
    fault_seconds: float = 1200.0


def main(argv: list[str] | None = None) -> int:
    """The whole recipe; returns the exit code."""
    parser = recipe.parser("pump", __doc__, "SKAB tables (CSV with a column `anomaly`) to judge the method on as well")
    parser.add_argument("--quick", action="store_true", help="few and short recordings, to try the recipe")
    args = parser.parse_args(argv)
    size = Size(6, 400.0, 2, 1, 200.0) if args.quick else Size()
    made = make(args.out, size, skab=args.data, timed=args.time)
    if args.picture:
        args.picture.write_text(draw(made.model) + "\n")
    recipe.tell(made)
    return 0


def make(out: Path, size: Size, *, skab: Sequence[Path] = (), timed: bool = False) -> Bundle:
    """Records, learns, quantizes, measures and writes the bundle `out`."""
    out.mkdir(parents=True, exist_ok=True)
    parts = _recordings("recording normal running", list(normal(SEEDS["train"], size.runs, size.seconds)))
    learnt, held = learn(parts, SETTINGS), held_out(parts, SETTINGS)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        thresholds, scores = calibrate(scratch, learnt, SETTINGS, "x86", held)
        graphs = {"float": scratch / FLOAT, "int8": scratch / MODEL}
        measured: dict[str, Any] = {
            "rows": {"recorded": sum(map(len, parts)), "held_out": len(held)},
            "threshold": {kind: round(value, 6) for kind, value in thresholds.items()},
            "agreement": round(float(((scores["int8"] > 1) == (scores["float"] > 1)).mean()), 5),
            "size_bytes_float": graphs["float"].stat().st_size,
            "alarm_s": ALARM_S,
            "normal": _false_alarms(graphs, size),
            "faults": _detection(graphs, size),
        }
        if skab:
            measured["skab"] = {"files": len(skab), "these_settings": _skab(skab, SETTINGS), "few_rows_settings": _skab(skab, FEW_ROWS)}
        (out / NAME).write_bytes(graphs["int8"].read_bytes())
    golden = [row[None] for row in spread(held, _GOLDEN_RUNS)]
    return recipe.seal(out, _manifest(measured, size), golden, tolerance=0.05, timed=timed)


def alarms(graph: Path, rows: Array) -> Array:
    """For each row of a recording whether the score has been above the threshold for ALARM_S; false before the first whole window."""
    above = np.zeros(len(rows), bool)
    above[SETTINGS.rows - 1 :] = run_all(graph, windows(rows, SETTINGS), _SCORE)[:, 0] > 1
    needed = round(ALARM_S * RATE_HZ) + 1
    lasting: Array = np.convolve(above, np.ones(needed))[: len(above)] >= needed - 0.5
    return lasting


def draw(graph: Path) -> str:
    """The detector's trace over four faults that begin half-way, as SVG."""
    chosen = ("overheat", "outer_race", "blocked_valve", "cavitation")
    series = []
    for fault in chosen:
        (run,) = faulty(SEEDS["faults"] - 1, 1, 200.0, fault, 0.5)
        shares = run_all(graph, windows(record(run), SETTINGS))[:, 1]
        series.append((fault, shares[60:]))
    first = SETTINGS.rows - 1 + 60
    return svg.lines(
        "zoo:pump, share of anomaly; each fault begins at 100 s with severity 0.5",
        series,
        x_label=f"{first / RATE_HZ:g} s to 200 s",
        limit=("alarm above", 0.5),
    )


def _recordings(title: str, runs: Sequence[Run]) -> list[Array]:
    taken = []
    with progress(title) as step:
        for number, run in enumerate(runs, 1):
            taken.append(record(run))
            step(number, len(runs), "")
    return taken


def _false_alarms(graphs: dict[str, Path], size: Size) -> dict[str, Any]:
    """On normal days that nothing was chosen on."""
    days = _recordings("recording other normal days", list(normal(SEEDS["normal"], size.normal_runs, size.seconds)))
    found = {kind: [alarms(path, rows) for rows in days] for kind, path in graphs.items()}
    return {
        "hours": round(sum(map(len, days)) / RATE_HZ / 3600, 2),
        "false_alarms": {kind: sum(_begins(day) for day in sets) for kind, sets in found.items()},
        "alarmed_percent": {kind: round(100 * float(np.concatenate(sets).mean()), 4) for kind, sets in found.items()},
    }


def _detection(graphs: dict[str, Path], size: Size) -> dict[str, Any]:
    """Per fault and severity: recordings, how many raised an alarm after the onset, the median seconds until then, and its share after."""
    result: dict[str, Any] = {fault: {} for fault in FAULTS}
    cases = [(seed, fault, severity) for seed, fault in enumerate(FAULTS, SEEDS["faults"]) for severity in SEVERITIES]
    with progress("breaking the pump") as step:
        for number, (seed, fault, severity) in enumerate(cases, 1):
            days = [record(run) for run in faulty(seed, size.fault_runs, size.fault_seconds, fault, severity)]
            onset = round(size.fault_seconds / 2 * RATE_HZ)
            found = {kind: _summary([alarms(path, rows)[onset:] for rows in days]) for kind, path in graphs.items()}
            result[fault][f"{severity:g}"] = {"runs": len(days), **found}
            step(number, len(cases), fault)
    return result


def _summary(broken: Sequence[Array]) -> dict[str, Any]:
    """Of the alarms while a fault lasts, run by run. `alarmed_percent` is of the time from the first alarm to the end."""
    heard = [(int(alarmed.argmax()), alarmed) for alarmed in broken if alarmed.any()]
    if not heard:
        return {"found": 0}
    return {
        "found": len(heard),
        "median_s": round(float(np.median([(first + 1) / RATE_HZ for first, _ in heard])), 2),
        "alarmed_percent": round(100 * float(np.median([alarmed[first:].mean() for first, alarmed in heard])), 1),
    }


def _begins(alarmed: Array) -> int:
    return int((np.diff(alarmed.astype(np.int8), prepend=0) == 1).sum())


def _skab(paths: Sequence[Path], settings: Settings) -> dict[str, Any]:
    """The leaderboard's protocol: per file fit on the first 400 rows, score the rest, all files together."""
    found: dict[str, list[Array]] = {"float": [], "int8": []}
    truth = []
    with progress("SKAB") as step, tempfile.TemporaryDirectory() as name:
        for number, path in enumerate(sorted(paths), 1):
            rows = read_table(path).rows
            fit = [rows[:_SKAB_FIT_ROWS]]
            calibrate(Path(name), learn(fit, settings), settings, "x86", held_out(fit, settings))
            for kind, file in (("float", FLOAT), ("int8", MODEL)):
                guess = run_all(Path(name) / file, windows(rows, settings)).argmax(axis=1) == 1
                found[kind].append(np.concatenate([np.zeros(settings.rows - 1, bool), guess])[_SKAB_FIT_ROWS:])
            truth.append(open_recordings(path)[0].columns["anomaly"][_SKAB_FIT_ROWS:] > 0.5)
            step(number, len(paths), path.name)
    scores = {kind: count(np.concatenate(parts), np.concatenate(truth)) for kind, parts in found.items()}
    return {kind: {"f1": score.f1, "far": score.far, "mar": score.mar} for kind, score in scores.items()}


def _manifest(measured: dict[str, Any], size: Size) -> Manifest:
    columns = len(CHANNELS)
    return Manifest(
        schema=1,
        name="pump",
        version=1,
        task="detector",
        model=NAME,
        files={},
        inputs=(
            Port(
                name="rows",
                shape=(-1, columns, SETTINGS.rows),
                dtype="float32",
                channels=CHANNELS,
                units=UNITS,
                rate_hz=RATE_HZ,
                kind="tabular",
            ),
        ),
        outputs=(Port(name="shares", shape=(-1, 2), dtype="float32"), Port(name="score", shape=(-1, 1), dtype="float32")),
        labels=LABELS,
        window=Window(SETTINGS.rows, 1),
        precision="int8 (QDQ, uint8 activations, int8 weights per channel)",
        license="Apache-2.0",
        provenance={
            "recipe": "models/zoo/pump/train.py",
            "command": "python -m models.zoo.pump.train --out DIR",
            "data": "adapter `simulated`",
            "data_license": "Apache-2.0 (made by the recipe)",
            "seeds": SEEDS,
            "recorded": asdict(size),
            "settings": asdict(SETTINGS),
            "opset": OPSET,
        },
        measured=measured,
    )


if __name__ == "__main__":
    sys.exit(main())
