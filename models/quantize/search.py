"""From a float graph to the INT8 graph that loses least.

Calibration methods are compared, costly layers kept in float, training with INT8 in the loop comes last.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.types import Array
from models.onnx import OnnxBackend
from models.progress import progress
from models.qdq import OPSET
from models.quantize import ptq
from models.quantize.calibration import METHODS, Method, Ranges, observe, ranges
from models.quantize.judge import Cost, Metric, Quality, compare, costs, noise_share, outputs
from models.quantize.samples import Parts

Way = Literal["auto", "ptq", "qat"]

TRAIN_S = 900.0

_MOST_CALIBRATION = 512
_SENSITIVITY_SAMPLES = 64
_SENSITIVITY_S = 0.15
_FAITHFUL = 1e-4


@dataclass(frozen=True, slots=True)
class Trial:
    """One recipe and what came of it on the samples that chose it."""

    recipe: ptq.Recipe
    quality: Quality


@dataclass(slots=True)
class Outcome:
    """The whole search. `final` is judged on samples of its own; `sensitivity` is the noise in percent that each layer brings alone."""

    recipe: ptq.Recipe
    final: Quality
    costs: tuple[Cost, Cost]
    trials: list[Trial] = field(default_factory=list)
    sensitivity: list[tuple[str, float]] = field(default_factory=list)
    max_drop: float = 0.5
    notes: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        return self.final.drop <= self.max_drop


@dataclass(frozen=True, slots=True)
class Plan:
    """`max_drop` in points; at most `max_float_layers` layers, and half of all, stay in float to keep it.

    `way`: training when needed, never, always; it ends after `train_s` at the latest.
    """

    metric: Metric
    methods: Sequence[Method] = METHODS
    way: Way = "auto"
    max_drop: float = 0.5
    max_float_layers: int = 3
    opset: int = OPSET
    seed: int = 0
    train_s: float = TRAIN_S


def search(source: Path, int8: Path, scratch: Path, parts: Parts, recipe: ptq.Recipe, plan: Plan) -> Outcome:
    """Writes the best INT8 graph to `int8`, whether it passes or not.

    Raises ModelRefused and InputError as `models.quantize.ptq` does; MissingDependency when training is asked for and torch is absent.
    """
    if plan.way == "qat" and not _can_train():
        raise MissingDependency("torch", "train")
    prepared = scratch / "prepared.onnx"
    ptq.prepare(source, prepared, plan.opset)
    bench = _Bench(source, prepared, scratch, parts, recipe, plan)
    best = bench.calibrate()
    sensitivity = bench.sensitivity(best.recipe)
    if plan.way == "qat":
        best = bench.train(best.recipe)
    elif best.quality.likely_drop > plan.max_drop:
        best = bench.keep_in_float(best, sensitivity)
    judged = bench.judge(best)
    notes: list[str] = []
    if plan.way == "auto" and not _passes(judged, best.quality.likely_drop, plan):
        best, judged = _rescue(bench, best, judged, recipe, notes)
    shutil.copyfile(bench.path(best), int8)
    before, after = costs([source, int8], parts.chosen)
    outcome = Outcome(best.recipe, judged, (before, after), bench.trials, sensitivity, plan.max_drop, notes)
    notes.extend(_doubts(outcome))
    return outcome


def _passes(judged: Quality, expected: float, plan: Plan) -> bool:
    return max(judged.drop, expected) <= plan.max_drop


def _rescue(bench: _Bench, best: Trial, judged: Quality, recipe: ptq.Recipe, notes: list[str]) -> tuple[Trial, Quality]:
    """Training in INT8 for what ranges alone do not bring under the limit; what there was where it cannot be done or is no better."""
    if not _can_train():
        if judged.drop > bench.limit:
            notes.append("training in INT8 was not tried: torch is not installed (pip install 'edge-runtime[train]')")
        return best, judged
    try:
        trained = bench.train(replace(best.recipe, keep_float=recipe.keep_float))
    except InputError as err:
        notes.append(f"training in INT8 was not tried: {err}")
        return best, judged
    if bench.best([best, trained]) is best and judged.drop <= bench.limit:
        return best, judged
    found = bench.judge(trained)
    return (trained, found) if found.drop <= max(judged.drop, bench.limit) else (best, judged)


def _doubts(outcome: Outcome) -> list[str]:
    """A verdict that chance could turn."""
    final = outcome.final
    if not final.error or abs(final.drop - outcome.max_drop) >= 2 * final.error:
        return []
    how = f"the drop is known to +-{2 * final.error:.2g} points only"
    return [f"with {final.samples} samples {how}: more of them make the verdict certain"]


class _Bench:
    """Tries recipes on one model."""

    def __init__(self, source: Path, prepared: Path, scratch: Path, parts: Parts, recipe: ptq.Recipe, plan: Plan) -> None:
        self.trials: list[Trial] = []
        self._recipe, self._plan = recipe, plan
        self._prepared, self._scratch = prepared, scratch
        self._parts = parts
        self._tensors = OnnxBackend().load(source).inputs
        self._expected = outputs(source, parts.chosen)
        self._ranges: dict[str, Ranges] = {}
        self._source = source
        self._judged: list[Array] | None = None
        self._layers = [name for name, _ in ptq.layers(prepared) if name not in recipe.keep_float]
        self._check(source)

    @property
    def limit(self) -> float:
        """Of the drop, in points."""
        return self._plan.max_drop

    def judge(self, trial: Trial) -> Quality:
        """On the samples that chose nothing."""
        judged = self._parts.judged
        if self._judged is None:
            self._judged = outputs(self._source, judged)
        return compare(self._plan.metric, self._judged, outputs(self.path(trial), judged), judged.labels)

    def path(self, trial: Trial) -> Path:
        """Where its graph lies."""
        return self._scratch / f"{self.trials.index(trial)}.onnx"

    def best(self, trials: Sequence[Trial]) -> Trial:
        """The least noise among those within the limit; else the least drop."""
        return min(trials, key=lambda trial: (max(trial.quality.likely_drop, self._plan.max_drop), -trial.quality.sqnr_db))

    def calibrate(self) -> Trial:
        """Every method tried on the same samples; the best."""
        fitted = self._parts.fitted
        few = fitted.part(slice(None, None, max(1, -(-len(fitted) // _MOST_CALIBRATION))))
        histograms = observe(self._prepared, self._scratch, few, self._tensors)
        with progress("quantizing") as step:
            for number, method in enumerate(self._plan.methods, 1):
                self._ranges[method] = ranges(histograms, method, symmetric=self._recipe.symmetric)
                self.attempt(replace(self._recipe, method=method))
                step(number, len(self._plan.methods), method)
        return self.best(self.trials)

    def attempt(self, recipe: ptq.Recipe, prepared: Path | None = None) -> Trial:
        """Quantizes, judges on the choosing samples and remembers."""
        path = self._scratch / f"{len(self.trials)}.onnx"
        ptq.quantize(prepared or self._prepared, path, recipe, self._ranges[recipe.method])
        found = compare(self._plan.metric, self._expected, outputs(path, self._parts.chosen), self._parts.chosen.labels)
        trial = Trial(recipe, found)
        self.trials.append(trial)
        return trial

    def sensitivity(self, recipe: ptq.Recipe) -> list[tuple[str, float]]:
        """Noise in percent of the outputs' variance when only that layer is quantized, the worst first."""
        few = self._parts.chosen.part(slice(0, self._few()))
        expected = outputs(self._prepared, few)
        path, found = self._scratch / "one.onnx", []
        with progress("sensitivity of layers") as step:
            for number, name in enumerate(self._layers, 1):
                ptq.quantize(self._prepared, path, replace(recipe, only=(name,)), self._ranges[recipe.method])
                noise = max(noise_share(*pair) for pair in zip(expected, outputs(path, few), strict=True))
                found.append((name, round(100 * noise, 5)))
                step(number, len(self._layers), name)
        return sorted(found, key=lambda entry: -entry[1])

    def keep_in_float(self, start: Trial, sensitivity: Sequence[tuple[str, float]]) -> Trial:
        """The noisiest layers left in float one after the other until it passes; then those taken back that were not needed."""
        best, kept = start, list(self._recipe.keep_float)
        for name, _ in sensitivity[: min(self._plan.max_float_layers, len(sensitivity) // 2)]:
            kept.append(name)
            best = self.best([best, self.attempt(replace(start.recipe, keep_float=tuple(kept)))])
            if best.quality.likely_drop <= self._plan.max_drop:
                break
        for name in best.recipe.keep_float[len(self._recipe.keep_float) : -1]:
            fewer = self.attempt(replace(best.recipe, keep_float=tuple(other for other in best.recipe.keep_float if other != name)))
            if fewer.quality.likely_drop <= max(self._plan.max_drop, best.quality.likely_drop):
                best = fewer
        return best

    def train(self, recipe: ptq.Recipe) -> Trial:
        """Weights and ranges tuned with INT8 in the loop, from the best calibration on."""
        from models.quantize.qat.training import Material, tune

        guide, tuned = self._scratch / "guide.onnx", self._scratch / "tuned.onnx"
        ptq.quantize(self._prepared, guide, recipe, self._ranges[recipe.method])
        material = Material(self._prepared, guide, self._parts.fitted, self._parts.chosen, self._plan.metric != "sqnr", self._plan.train_s)
        self._ranges["qat"] = self._ranges[recipe.method] | tune(material, tuned, self._plan.seed)
        return self.attempt(replace(recipe, method="qat"), tuned)

    def _few(self) -> int:
        """So many samples that one layer takes about a seventh of a second."""
        model = OnnxBackend().load(self._prepared)
        feed = next(self._parts.chosen.feeds(self._tensors))
        model.run(feed)
        begun = time.perf_counter()
        model.run(feed)
        return max(4, min(_SENSITIVITY_SAMPLES, int(_SENSITIVITY_S / max(1e-6, time.perf_counter() - begun))))

    def _check(self, source: Path) -> None:
        """Raises ModelRefused when nothing can be quantized, or when the preparation changed what the model computes."""
        if not self._layers:
            kinds = "Conv, Gemm, MatMul"
            raise ModelRefused(RefusalReason.UNSUPPORTED_FORMAT, f"{source.name} has no layer to quantize ({kinds} with constant weights)")
        changed = max(noise_share(*pair) for pair in zip(self._expected, outputs(self._prepared, self._parts.chosen), strict=True))
        if changed > _FAITHFUL:
            why = f"{source.name}: converted to opset {self._plan.opset} it computes something else; export it with that opset"
            raise ModelRefused(RefusalReason.UNSUPPORTED_FORMAT, why)


def _can_train() -> bool:
    return find_spec("torch") is not None
