"""From tables of normal running to an INT8 detector in a bundle: read, learn, quantize, set the threshold, judge, write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.bundle import Bundle, Manifest, Port, Window, read_bundle
from edge_runtime.errors import InputError
from edge_runtime.recordings import open_recordings
from edge_runtime.types import Array
from models import svg
from models.qdq import OPSET, Target
from models.train.detector import LABELS, Normal, Settings, fitted_rows, graph, held_from, learn, windows
from models.train.finish import FLOAT, MODEL, GateFailed, bundle_folder, model_name, run_all, write

_SCORE = 1
_FEW_ROWS = 2000


@dataclass(frozen=True, slots=True)
class Table:
    """One recording: rows [n, C] float64, its columns' names, and its samples per second where it has times."""

    path: Path
    names: tuple[str, ...]
    rows: Array
    rate_hz: float


def read_table(path: Path, first_rows: int | None = None) -> Table:
    """One CSV or npz with times, without label columns. A missing cell takes the value before it.

    Raises InputError when there is nothing to learn from.
    """
    recordings = open_recordings(path)
    if len(recordings) != 1:
        raise InputError(f"{path}: expected one table with a time column, got {len(recordings)} recordings without times")
    (recording,) = recordings
    channels = recording.channels
    if not channels:
        raise InputError(f"{path}: expected at least one column besides time and labels")
    rows = np.stack(list(channels.values()), axis=1)[:first_rows]
    step_ns = recording.report.step_ns
    return Table(path, tuple(channels), _filled(path, rows, tuple(channels)), 1e9 / step_ns if step_ns else 0.0)


def train(
    paths: Sequence[Path], out: Path, settings: Settings, *, fit_rows: int | None = None, target: Target = "x86", name: str = ""
) -> Bundle:
    """Learns, quantizes, judges and writes the bundle `out`. Deterministic: the same rows give the same bytes.

    Raises InputError for data that cannot be used, GateFailed when INT8 alarms differ from float ones on too many rows.
    """
    tables = [read_table(path, fit_rows) for path in paths]
    for table in tables:
        if table.names != tables[0].names:
            raise InputError(f"{table.path}: expected the columns {', '.join(tables[0].names)}, got {', '.join(table.names)}")
    parts = [table.rows for table in tables]
    normal = learn(parts, settings)
    with bundle_folder(out) as folder:
        held = held_out(parts, settings)
        thresholds, scores = calibrate(folder, normal, settings, target, held)
        (folder / FLOAT).unlink()
        agreement = float(((scores["int8"] > 1) == (scores["float"] > 1)).mean())
        if agreement < 0.99:
            raise GateFailed(f"INT8 and float agree on {100 * agreement:.1f} % of the held-out rows, expected 99 %; nothing was written")
        measured = {
            "rows": {"fitted": int(sum(fitted_rows(part, settings) for part in parts)), "held_out": len(held)},
            "held_out_alarms_percent": {kind: round(100 * float((score > 1).mean()), 3) for kind, score in scores.items()},
            "agreement": round(agreement, 5),
            "largest_score_difference": round(float(np.abs(scores["int8"] - scores["float"]).max()), 5),
            "threshold": {kind: round(value, 6) for kind, value in thresholds.items()},
            "size_bytes": (folder / MODEL).stat().st_size,
            "differenced_columns": [column for column, drifts in zip(tables[0].names, normal.differenced, strict=True) if drifts],
        }
        manifest = _manifest(name or model_name(out), tables, settings, target, measured)
        write(folder, manifest, held, _page(manifest, tables, settings, scores), tolerance=0.02)
    return read_bundle(out)


def held_out(parts: Sequence[Array], settings: Settings) -> Array:
    """Windows whose last rows the model was not fitted on."""
    return np.concatenate([windows(part[held_from(part, settings) - settings.rows + 1 :], settings) for part in parts])


def calibrate(folder: Path, normal: Normal, settings: Settings, target: Target, held: Array) -> tuple[dict[str, float], dict[str, Array]]:
    """Writes both graphs, each with a threshold from its own scores of held-out rows. Returns thresholds and scores by precision."""
    thresholds, scores = {}, {}
    for kind, path in (("float", folder / FLOAT), ("int8", folder / MODEL)):
        graph(normal, settings, 1.0, int8=kind == "int8", target=target).save(path)
        raw = run_all(path, held, _SCORE)[:, 0]
        thresholds[kind] = max(settings.factor * float(np.quantile(raw, settings.quantile)), 1e-9)
        graph(normal, settings, thresholds[kind], int8=kind == "int8", target=target).save(path)
        scores[kind] = run_all(path, held, _SCORE)[:, 0]
    return thresholds, scores


def _manifest(name: str, tables: Sequence[Table], settings: Settings, target: Target, measured: dict[str, Any]) -> Manifest:
    columns = tables[0].names
    return Manifest(
        schema=1,
        name=name,
        version=1,
        task="detector",
        model=MODEL,
        files={},
        inputs=(
            Port(
                name="rows",
                shape=(-1, len(columns), settings.rows),
                dtype="float32",
                channels=columns,
                rate_hz=round(tables[0].rate_hz, 6),
                kind="tabular",
            ),
        ),
        outputs=(Port(name="shares", shape=(-1, 2), dtype="float32"), Port(name="score", shape=(-1, 1), dtype="float32")),
        labels=LABELS,
        window=Window(settings.rows, 1),
        precision="int8 (QDQ, weights per channel)",
        target=target,
        license="the owner's of the training data",
        provenance={
            "made_by": "edge-runtime model train anomaly",
            "opset": OPSET,
            "data": [{"file": table.path.name, "rows": len(table.rows)} for table in tables],
            "settings": asdict(settings),
        },
        measured=measured,
    )


def _page(manifest: Manifest, tables: Sequence[Table], settings: Settings, scores: dict[str, Array]) -> str:
    measured = manifest.measured
    advice = (
        "Fewer than 2,000 rows are seldom all that is normal: watch the alarms of the first days." if len(tables[0].rows) < 2000 else ""
    )
    differenced = ", ".join(measured["differenced_columns"]) or "none"
    return svg.page(
        f"Anomaly detector {manifest.name}",
        [
            svg.paragraph(
                f"Learnt from {measured['rows']['fitted']} rows of {len(manifest.inputs[0].channels)} columns; the threshold comes from "
                f"{measured['rows']['held_out']} rows that it was not fitted on. {advice}"
            ),
            svg.lines(
                "Score of held-out normal rows",
                [("INT8", scores["int8"]), ("float", scores["float"])],
                x_label="held-out rows",
                limit=("alarm above", 1.0),
            ),
            svg.table(
                ["", "float", "INT8"],
                [
                    ["alarms on held-out normal rows, %", *(measured["held_out_alarms_percent"][kind] for kind in ("float", "int8"))],
                    ["threshold", *(measured["threshold"][kind] for kind in ("float", "int8"))],
                ],
            ),
            svg.paragraph(
                f"INT8 and float agree on {100 * measured['agreement']:.2f} % of them. The model is {measured['size_bytes']} bytes."
            ),
            svg.paragraph(
                f"Columns judged by their steps because they drift: {differenced}. A slow fault in such a column is not seen: "
                "give it a rule with a limit of its own."
            ),
            svg.table(["setting", "value"], [[key, msgspec.json.encode(value).decode()] for key, value in asdict(settings).items()]),
        ],
    )


def _filled(path: Path, rows: Array, names: Sequence[str]) -> Array:
    for index, name in enumerate(names):
        column = rows[:, index]
        known = np.flatnonzero(np.isfinite(column))
        if not known.size:
            raise InputError(f"{path}: column `{name}` holds no number; leave it out")
        last = np.maximum.accumulate(np.where(np.isfinite(column), np.arange(len(column)), known[0]))
        rows[:, index] = column[last]
    return rows
