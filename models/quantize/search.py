"""From a float graph to the INT8 graph that loses least: calibration methods compared, costly layers kept in float, one gate at the end."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from edge_runtime.errors import EdgeRuntimeError
from models.onnx import OnnxBackend
from models.progress import progress
from models.quantize import ptq
from models.quantize.judge import Cost, Quality, costs, quality
from models.quantize.samples import Samples, split

_CALIBRATION_SHARE = 0.8
_MOST_CALIBRATION = 512
_SENSITIVITY_SAMPLES = 64


class GateFailed(EdgeRuntimeError):
    """INT8 loses more than allowed; no bundle is written."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe and what came of it on the samples that chose it."""

    recipe: ptq.Recipe
    quality: Quality


@dataclass(slots=True)
class Outcome:
    """The whole search. `final` is judged on the evaluation samples; `sensitivity` is the noise in percent that each layer brings alone."""

    recipe: ptq.Recipe
    final: Quality
    costs: tuple[Cost, Cost]
    trials: list[Trial] = field(default_factory=list)
    sensitivity: list[tuple[str, float]] = field(default_factory=list)
    max_drop: float = 0.5

    @property
    def passed(self) -> bool:
        return self.final.drop <= self.max_drop


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_drop` in points; at most `max_float_layers` layers stay in float to keep it."""

    max_drop: float = 0.5
    max_float_layers: int = 3
    seed: int = 0


def search(
    source: Path, int8: Path, scratch: Path, calibration: Samples, evaluation: Samples | None, recipe: ptq.Recipe,
    methods: Sequence[ptq.Method], limits: Limits,
) -> Outcome:  # fmt: skip
    """Writes the best INT8 graph to `int8`, whether it passes or not. Raises ModelRefused and InputError as `models.quantize.ptq` does."""
    fitted, chosen = split(calibration, _CALIBRATION_SHARE, limits.seed)
    fitted = fitted.part(slice(None, None, max(1, -(-len(fitted) // _MOST_CALIBRATION))))
    prepared = scratch / "prepared.onnx"
    ptq.prepare(source, prepared)
    bench = _Bench(source, prepared, scratch, fitted, chosen)
    with progress("quantizing") as step:
        for number, method in enumerate(methods, 1):
            bench.attempt(replace(recipe, method=method))
            step(number, len(methods), method)
    best = bench.best()
    sensitivity: list[tuple[str, float]] = []
    if best.quality.drop > limits.max_drop:
        sensitivity = bench.sensitivity(best.recipe)
        for count in range(1, min(limits.max_float_layers, len(sensitivity)) + 1):
            names = (*recipe.keep_float, *(name for name, _ in sensitivity[:count]))
            best = min(best, bench.attempt(replace(best.recipe, keep_float=names)), key=lambda trial: trial.quality.drop)
            if best.quality.drop <= limits.max_drop:
                break
    shutil.copyfile(bench.path(best.recipe), int8)
    judged = quality(source, int8, evaluation or chosen)
    cost = costs([source, int8], chosen)
    return Outcome(best.recipe, judged, (cost[0], cost[1]), bench.trials, sensitivity, limits.max_drop)


class _Bench:
    """Tries recipes on one model."""

    def __init__(self, source: Path, prepared: Path, scratch: Path, fitted: Samples, chosen: Samples) -> None:
        self.trials: list[Trial] = []
        self._source = source
        self._prepared = prepared
        self._scratch = scratch
        self._fitted = fitted
        self._chosen = chosen
        self._tensors = OnnxBackend().load(source).inputs

    def path(self, recipe: ptq.Recipe) -> Path:
        """Where the graph of a recipe that was attempted lies."""
        return self._scratch / f"{[trial.recipe for trial in self.trials].index(recipe)}.onnx"

    def attempt(self, recipe: ptq.Recipe) -> Trial:
        path = self._scratch / f"{len(self.trials)}.onnx"
        ptq.quantize(self._prepared, path, recipe, self._fitted, self._tensors)
        trial = Trial(recipe, quality(self._source, path, self._chosen))
        self.trials.append(trial)
        return trial

    def best(self) -> Trial:
        """The least drop; among equals the least noise."""
        return min(self.trials, key=lambda trial: (trial.quality.drop, -trial.quality.snr_db))

    def sensitivity(self, recipe: ptq.Recipe) -> list[tuple[str, float]]:
        """Noise in percent of the signal when only that layer is quantized, the worst first."""
        few = self._fitted.part(slice(0, _SENSITIVITY_SAMPLES))
        names = [name for name, _ in ptq.layers(self._prepared) if name not in recipe.keep_float]
        path, found = self._scratch / "one.onnx", []
        with progress("sensitivity of layers") as step:
            for number, name in enumerate(names, 1):
                ptq.quantize(self._prepared, path, replace(recipe, method="minmax", only=(name,)), few, self._tensors)
                noise = 100 * 10 ** (-quality(self._source, path, few).snr_db / 20)
                found.append((name, round(noise, 4)))
                step(number, len(names), name)
        return sorted(found, key=lambda entry: -entry[1])
