"""What onnxruntime's optimiser makes of a graph: nodes, operators, speed and load time at every level. The caller's side.

The work is done in a child process under limits (`models.inspection.optimise_process`), as the probe does it. TensorFlow Lite has no such
levels to compare.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec

from edge_runtime.errors import InputError
from models import confined
from models.confined import Confined
from models.inspection.report import OperatorCount

DEADLINE_S = 90.0
MEMORY_MB = 4096

CHILD = "models.inspection.optimise_process"


class OptimiseOrder(msgspec.Struct, frozen=True):
    """What the child shall do. `folder` is an empty one for its files; `providers` None leaves the choice to the environment."""

    path: str
    folder: str
    deadline_s: float
    memory_mb: int
    providers: tuple[str, ...] | None = None


class LevelReport(msgspec.Struct, frozen=True):
    """One optimisation level. Times are of one run on zeros: the median, and the 10th and 90th percentile of all `runs`.

    `load_ms` is the lowest of a few loads.
    """

    level: str
    nodes: int
    operators: dict[str, int]
    load_ms: float
    run_ms: float
    run_p10_ms: float
    run_p90_ms: float
    runs: int


class OptimiseReport(msgspec.Struct, frozen=True):
    """All levels in one run, taking turns. `source` are the operators of the file itself.

    `load_cached_ms` is with the cache of optimised graphs filled; it holds `hash_ms` for the file's digest, 0 for a bundle.
    `same_bits` says whether a run from the cache gives what one without it gives. Like `runs`, it is None (0) when the model has free
    dimensions beyond the first and does not run with them at 1.
    """

    runtime: str
    providers: tuple[str, ...]
    available: tuple[str, ...]
    source: dict[str, int]
    levels: tuple[LevelReport, ...]
    load_cached_ms: float
    hash_ms: float
    same_bits: bool | None


def optimise(
    path: Path, *, deadline_s: float = DEADLINE_S, memory_mb: int = MEMORY_MB, providers: tuple[str, ...] | None = None
) -> OptimiseReport:
    """Loads and runs an .onnx file at every level in a child process and waits for it.

    Raises InputError for another format, and what `models.probe.probe` raises.
    """
    if path.suffix.lower() != ".onnx":
        raise InputError(f"--optimise: expected an .onnx model, got {path.name}; its runtime has no levels to compare")
    with tempfile.TemporaryDirectory(prefix="optimise-") as folder:
        order = OptimiseOrder(str(path), folder, deadline_s, memory_mb, providers)
        job = Confined(CHILD, msgspec.json.encode(order).decode(), path, deadline_s, memory_mb)
        return msgspec.convert(confined.run(job), OptimiseReport)


def operator_counts(operators: tuple[OperatorCount, ...]) -> dict[str, int]:
    """Operators by name."""
    return {operator.name: operator.count for operator in operators}


def changes(before: dict[str, int], after: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Operators that went and that came between two graphs, with their numbers."""
    difference = {name: after.get(name, 0) - before.get(name, 0) for name in sorted({*before, *after})}
    gone = {name: -count for name, count in difference.items() if count < 0}
    return gone, {name: count for name, count in difference.items() if count > 0}


def optimise_lines(report: OptimiseReport) -> Iterator[str]:
    """The report for people."""
    yield f"optimisation by {report.runtime}, {' then '.join(report.providers)} (available: {', '.join(report.available)})"
    yield f"  {'level':9s} {'nodes':>6s} {'run p50 ms':>11s} {'p10 .. p90 ms':>18s} {'against off':>12s} {'load ms':>8s}"
    base = report.levels[0].run_ms
    for level in report.levels:
        spread = f"{level.run_p10_ms:.3f} .. {level.run_p90_ms:.3f}"
        gain = f"{base / level.run_ms:.2f}x" if level.run_ms else "-"
        yield f"  {level.level:9s} {level.nodes:6d} {level.run_ms:11.3f} {spread:>18s} {gain:>12s} {level.load_ms:8.1f}"
    yield f"  the file itself has {sum(report.source.values())} nodes; {_runs(report)}"
    yield from _changes(report)
    hashed = f" ({report.hash_ms:.1f} ms of it to hash the file, which a bundle saves)" if report.hash_ms else ""
    yield f"  load from the cache of optimised graphs: {report.load_cached_ms:.1f} ms{hashed}{_same(report)}"


def _changes(report: OptimiseReport) -> Iterator[str]:
    name, before = "file", report.source
    for level in report.levels:
        gone, come = changes(before, level.operators)
        if gone or come:
            yield f"  {name} -> {level.level}: {_listed(gone) or 'nothing'} became {_listed(come) or 'nothing (merged into the others)'}"
        name, before = level.level, level.operators


def _same(report: OptimiseReport) -> str:
    if report.same_bits is None:
        return ""
    return ", the same bits" if report.same_bits else ", OTHER bits: do not use the cache for this model"


def _runs(report: OptimiseReport) -> str:
    if not report.levels[0].runs:
        return "not run: it has free dimensions that 1 does not fit"
    return "levels took turns: " + ", ".join(f"{level.runs} runs at {level.level}" for level in report.levels)


def _listed(operators: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(operators.items(), key=lambda item: -item[1]))
