"""What `infer` found, as values and as text. Knows no file and no runtime."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import msgspec
import numpy as np

from edge_runtime.types import Array, ProbeReport, TensorInfo

_SHOWN_RUNS = 12
_SHOWN_VALUES = 8


class OutputInfo(msgspec.Struct, frozen=True):
    """One output as it came. `dtype` is how the model stores it; values are dequantized."""

    name: str
    shape: tuple[int, ...]
    dtype: str


class Scored(msgspec.Struct, frozen=True):
    """One class and its dequantized score."""

    index: int
    label: str
    score: float


class Result(msgspec.Struct, frozen=True, omit_defaults=True):
    """One run. `values` are all outputs, flattened in order. `reconstruction_mse` is set when the model gives back what it takes."""

    input: str
    run: int
    latency_ms: float
    outputs: tuple[OutputInfo, ...]
    top: tuple[Scored, ...]
    values: list[float]
    reconstruction_mse: float | None = None


class Report(msgspec.Struct, frozen=True):
    """The whole of one `infer`."""

    model: str
    backend: str
    precision: str
    probe: ProbeReport | None
    results: tuple[Result, ...]
    notes: tuple[str, ...] = ()


def result(
    name: str,
    run: int,
    latency_ms: float,
    given: Sequence[Array],
    got: Sequence[Array],
    tensors: Sequence[TensorInfo],
    labels: Sequence[str],
    top: int,
) -> Result:
    """A run's outputs as a Result. Scores are ranked on the first output when it is more than one number and no reconstruction."""
    error = _reconstruction_mse(given, got)
    scores = got[0].reshape(-1) if got and error is None else np.zeros(0, np.float32)
    return Result(
        input=name,
        run=run,
        latency_ms=round(latency_ms, 4),
        outputs=tuple(OutputInfo(tensor.name, array.shape, tensor.dtype) for tensor, array in zip(tensors, got, strict=True)),
        top=_best(scores, labels, top) if scores.size > 1 else (),
        values=[value for array in got for value in array.reshape(-1).astype(np.float64).tolist()],
        reconstruction_mse=error,
    )


def as_text(report: Report, passed_over: Sequence[str] = ()) -> str:
    """The report for people."""
    also = f" (also possible: {', '.join(passed_over)})" if passed_over else ""
    lines = [f"{report.model}: backend {report.backend}{also}, precision {report.precision}"]
    if report.probe is not None:
        lines.append(f"probe: loads in {report.probe.load_ms:.1f} ms, adds {report.probe.rss_mb:.1f} MB")
    lines += _notes(report.notes)
    width = max((len(_title(entry)) for entry in report.results), default=0)
    for _, group in groupby(report.results, key=lambda entry: entry.input):
        text = list(_source_text(list(group), width))
        lines += ["", *text] if len(text) > 1 else text
    return "\n".join(lines)


def _notes(notes: Sequence[str]) -> list[str]:
    """One line for all files that were read in the same way."""
    sources: dict[str, list[str]] = {}
    for note in notes:
        source, _, text = note.partition(": ")
        sources.setdefault(text, []).append(source)
    return [f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}: {text}" for text, names in sources.items()]


def _source_text(results: list[Result], width: int) -> Iterator[str]:
    for entry in results[:_SHOWN_RUNS]:
        for index, text in enumerate(_findings(entry)):
            head = f"{_title(entry):{width}}  {entry.latency_ms:9.3f} ms" if index == 0 else " " * (width + 14)
            yield f"{head}  {text}"
    if len(results) > _SHOWN_RUNS:
        yield f"... {len(results) - _SHOWN_RUNS} more runs (--json has them all)"
    if len(results) > 1:
        yield _summary(results)


def _findings(entry: Result) -> Iterator[str]:
    if entry.reconstruction_mse is not None:
        yield f"reconstruction error {entry.reconstruction_mse:.4f} (mean squared)"
    for scored in entry.top:
        yield f"{scored.score:8.4f}  {scored.label or 'class'} ({scored.index})"
    if not entry.top and entry.reconstruction_mse is None:
        values = ", ".join(f"{value:.6g}" for value in entry.values[:_SHOWN_VALUES])
        yield values + (f", ... {len(entry.values)} values" if len(entry.values) > _SHOWN_VALUES else "")


def _summary(results: list[Result]) -> str:
    latencies = np.array([entry.latency_ms for entry in results])
    text = f"{len(results)} runs: latency p50 {np.percentile(latencies, 50):.3f} ms, p99 {np.percentile(latencies, 99):.3f} ms"
    errors = [entry.reconstruction_mse for entry in results if entry.reconstruction_mse is not None]
    return f"{text}; reconstruction error mean {np.mean(errors):.4f}, max {np.max(errors):.4f}" if errors else text


def _title(entry: Result) -> str:
    return f"{entry.input} #{entry.run}" if entry.run else entry.input


def _best(scores: Array, labels: Sequence[str], top: int) -> tuple[Scored, ...]:
    """The `top` highest scores; equal ones in the order of their index. NaN ranks last."""
    order = np.argsort(-np.nan_to_num(scores.astype(np.float64), nan=-np.inf), kind="stable")[:top]
    return tuple(Scored(int(index), labels[index] if labels else "", float(scores[index])) for index in order)


def _reconstruction_mse(given: Sequence[Array], got: Sequence[Array]) -> float | None:
    if len(given) != 1 or len(got) != 1 or given[0].shape != got[0].shape or got[0].size < 2 or given[0].dtype.kind != "f":
        return None
    difference: Any = given[0].astype(np.float64) - got[0]
    return float(np.mean(difference * difference))
