"""How good a bundle is on recordings that it was not made from. Runs it as a gateway would; never refits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from edge_runtime.bundle import Bundle, Manifest
from edge_runtime.errors import InputError
from edge_runtime.ports import LoadedModel
from edge_runtime.recordings import Recording, canonical, open_recordings
from edge_runtime.recurrence import Recurrent, Streams
from edge_runtime.steps import Chain, output_shape, parse_steps
from edge_runtime.types import Array
from models.train import labelled

_BATCH = 256


class DetectorScore(msgspec.Struct, frozen=True):
    """Counts over rows; rates in percent, `f1` in 0..1. `far` is false alarms among normal rows, `mar` missed among anomalous ones."""

    rows: int
    tp: int
    fp: int
    fn: int
    tn: int
    precision: float
    recall: float
    f1: float
    far: float
    mar: float


class ClassifierScore(msgspec.Struct, frozen=True):
    """`accuracy` in percent; `confusion` has a row per true class and a column per guessed one, in the order of `labels`."""

    windows: int
    accuracy: float
    confusion: list[list[int]]
    labels: tuple[str, ...]


def score_detector(bundle: Bundle, model: LoadedModel, paths: Sequence[Path], label: str, skip_rows: int) -> DetectorScore:
    """All files together, without the first `skip_rows` of each. A row before the first whole window raises no alarm."""
    alarms, truth = [], []
    for path in paths:
        for recording in open_recordings(path):
            alarms.append(_alarms(bundle, model, recording)[skip_rows:])
            truth.append(_truth(path, recording, label)[skip_rows:])
    return count(np.concatenate(alarms), np.concatenate(truth))


def count(alarms: Array, truth: Array) -> DetectorScore:
    """The score of alarms [rows] against the truth [rows], both bool."""
    tp, fp = int((alarms & truth).sum()), int((alarms & ~truth).sum())
    fn, tn = int((~alarms & truth).sum()), int((~alarms & ~truth).sum())
    return DetectorScore(
        rows=len(truth),
        tp=tp,
        fp=fp,
        fn=fn,
        tn=tn,
        precision=_percent(tp, tp + fp),
        recall=_percent(tp, tp + fn),
        f1=round(2 * tp / (2 * tp + fp + fn), 4) if tp else 0.0,
        far=_percent(fp, fp + tn),
        mar=_percent(fn, fn + tp),
    )


def score_classifier(bundle: Bundle, model: LoadedModel, paths: Sequence[Path]) -> ClassifierScore:
    """Windows side by side, none overlapping, of every labelled signal."""
    labels = bundle.manifest.labels
    size = _window(bundle)
    counts = np.zeros((len(labels), len(labels)), np.int64)
    for signal in labelled.read(paths, labels):
        guess = _run(bundle, model, labelled.windows_of(signal, size, size)).argmax(axis=1)
        np.add.at(counts, (labels.index(signal.label), guess), 1)
    confusion: list[list[int]] = counts.tolist()
    return ClassifierScore(int(counts.sum()), _percent(int(np.trace(counts)), int(counts.sum()), 3), confusion, labels)


def _alarms(bundle: Bundle, model: LoadedModel, recording: Recording) -> Array:
    columns = {canonical(name): values for name, values in recording.channels.items()}
    wanted = bundle.manifest.inputs[0].channels
    missing = [name for name in wanted if canonical(name) not in columns]
    if missing:
        raise InputError(
            f"{recording.path}: expected the model's columns; there is no `{missing[0]}` (there are: {', '.join(recording.channels)})"
        )
    rows = np.stack([columns[canonical(name)] for name in wanted], axis=1)
    size = _window(bundle)
    alarms = np.zeros(len(rows), bool)
    if len(rows) >= size:
        windows = np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(rows, size, axis=0), np.float32)
        whole = np.isfinite(windows).all(axis=(1, 2))
        found = np.zeros(len(windows), bool)
        if whole.any():
            found[whole] = _run(bundle, model, windows[whole]).argmax(axis=1) == 1
        alarms[size - 1 :] = found
    return alarms


def _truth(path: Path, recording: Recording, label: str) -> Array:
    column = next((values for name, values in recording.columns.items() if canonical(name) == canonical(label)), None)
    if column is None:
        raise InputError(f"{path}: there is no label column `{label}` (there are: {', '.join(recording.columns)})")
    truth: Array = column > 0.5
    return truth


def _run(bundle: Bundle, model: LoadedModel, windows: Array) -> Array:
    """The first output of every window [n, channels, size], through the manifest's steps, in their order where a state is carried."""
    manifest = bundle.manifest
    prepared = _prepared(manifest, windows)
    runnable = Recurrent(model, manifest.state) if manifest.state else model
    run = runnable.stream().run if isinstance(runnable, Streams) else runnable.run
    shape = runnable.inputs[0].shape
    batch = _BATCH if shape and shape[0] == -1 and not manifest.state else 1
    fitted = prepared.reshape(-1, *[size if size > 0 else prepared.shape[axis] for axis, size in enumerate(shape)][1:])
    results = [np.array(run([fitted[start : start + batch]])[0]) for start in range(0, len(fitted), batch)]
    return np.concatenate(results)


def _prepared(manifest: Manifest, windows: Array) -> Array:
    steps = parse_steps(manifest.preprocess)
    if not steps:
        return windows
    shape = windows.shape[1:]
    result = np.empty((len(windows), *output_shape(steps, shape)), np.float32)
    target = np.empty(result.shape[1:], np.float32)
    chain = Chain(steps, shape, target)
    for window, into in zip(windows, result, strict=True):
        chain(window)
        into[...] = target
    return result


def _window(bundle: Bundle) -> int:
    if bundle.manifest.window is None:
        raise InputError(f"{bundle.folder}: the manifest names no window; this model cannot be scored on recordings")
    return bundle.manifest.window.size


def _percent(part: int, whole: int, digits: int = 2) -> float:
    return round(100 * part / whole, digits) if whole else 0.0


def as_text(score: DetectorScore | ClassifierScore) -> list[str]:
    """The score for people."""
    if isinstance(score, DetectorScore):
        return [
            f"{score.rows} rows: F1 {score.f1:.3f}, false alarms (FAR) {score.far:.2f} %, missed (MAR) {score.mar:.2f} %",
            f"  precision {score.precision:.2f} %, recall {score.recall:.2f} %; tp {score.tp}, fp {score.fp}, fn {score.fn}, tn {score.tn}",
        ]
    width = max(map(len, score.labels))
    rows = [f"  {label:>{width}}  {'  '.join(f'{n:5d}' for n in row)}" for label, row in zip(score.labels, score.confusion, strict=True)]
    return [f"{score.windows} windows: accuracy {score.accuracy:.2f} %", *rows]


def result_of(bundle: Bundle, model: LoadedModel, paths: Sequence[Path], label: str, skip_rows: int) -> Any:
    """The score that fits the bundle's task. Raises InputError for a bundle that is neither classifier nor detector."""
    if bundle.manifest.task == "detector":
        return score_detector(bundle, model, paths, label, skip_rows)
    if bundle.manifest.task == "classifier":
        return score_classifier(bundle, model, paths)
    raise InputError(f"{bundle.folder}: expected a classifier or a detector, the manifest says `{bundle.manifest.task}`")
