"""Facts: the names that rules speak of, their types, and their values out of inferences and features. Keeps nothing.

    sensor                     `temp`                                         number in the sensor's unit
    flag                       `maintenance`                                  true or false
    pipeline, labelled model   `bearing`, `bearing.score`, `bearing.<label>`  label, and scores in 0..1
    pipeline, other model      `bearing`                                      number: the first value
    pipeline without model     `vib.rms`, `vib.<channel>.rms`                 numbers: `edge_runtime.pipeline.features.FEATURES`

With a label named `score`, `<output>.score` is the score of the label that won.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_runtime.config.deployment import Deployment, PipelineSpec
from edge_runtime.errors import InputError
from edge_runtime.pipeline.features import FeatureChain, Features
from edge_runtime.types import Inference, Quality

Value = float | bool | str | None
"""Of a fact; None is unknown."""

_UNITLESS = frozenset({"crest", "kurtosis"})
_UNIT_KEPT = frozenset({"demean", "detrend"})


@dataclass(frozen=True, slots=True)
class FactType:
    """What a fact holds: a number in `unit`, a flag, or one of `labels` (none given: any text)."""

    kind: Literal["number", "flag", "label"]
    unit: str = ""
    labels: tuple[str, ...] = ()


def fact_types(deployment: Deployment, labels: Mapping[str, Sequence[str]]) -> dict[str, FactType]:
    """Every fact of a deployment. `labels` are those of the models, by model name; else the deployment's own are taken.

    Raises InputError when two things would give a fact of the same name, or a pipeline cannot be built.
    """
    types: dict[str, FactType] = {}
    origin: dict[str, str] = {}

    def add(name: str, kind: FactType, source: str) -> None:
        if name in types:
            raise InputError(f"{source} gives the fact `{name}`, which {origin[name]} gives already; rename one of them")
        types[name], origin[name] = kind, source

    for name, sensor in deployment.sensors.items():
        add(name, FactType("number", sensor.unit), f"sensor `{name}`")
    for name in deployment.flags:
        add(name, FactType("flag"), f"flag `{name}`")
    for name, pipeline in deployment.pipelines.items():
        for fact, kind in _pipeline_types(deployment, pipeline, labels).items():
            add(fact, kind, f"pipeline `{name}`")
    return types


def model_labels(deployment: Deployment, model: str, labels: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The labels of a model: those it brings itself, else those of the deployment."""
    spec = deployment.models.get(model)
    return tuple(labels.get(model) or (spec.labels if spec else ()))


def inference_facts(inference: Inference, labels: Sequence[str], output: str = "") -> dict[str, Value]:
    """The facts that an inference gives, named after `output` (default: the pipeline's name); all unknown when it is BAD."""
    name = output or inference.pipeline
    known = inference.quality < Quality.STALE
    values = inference.values
    if not labels:
        return {name: values[0] if known and values else None}
    scores = values if known and len(values) == len(labels) else (None,) * len(labels)
    facts: dict[str, Value] = {f"{name}.{label}": score for label, score in zip(labels, scores, strict=True)}
    facts[name] = inference.label if known else None
    facts[f"{name}.score"] = inference.score if known else None
    return facts


def feature_facts(features: Features, output: str = "") -> dict[str, Value]:
    """The facts that a window's features give, named after `output` (default: the pipeline's name)."""
    name = output or features.pipeline
    known = features.quality < Quality.STALE
    return {f"{name}.{feature}": value if known else None for feature, value in features.values.items()}


def _pipeline_types(deployment: Deployment, spec: PipelineSpec, labels: Mapping[str, Sequence[str]]) -> dict[str, FactType]:
    if spec.model is None:
        return {f"{spec.output}.{name}": FactType("number", unit) for name, unit in _feature_units(deployment, spec).items()}
    names = model_labels(deployment, spec.model, labels)
    if not names:
        return {spec.output: FactType("number")}
    types = {f"{spec.output}.{label}": FactType("number") for label in names}
    return {**types, spec.output: FactType("label", labels=names), f"{spec.output}.score": FactType("number")}


def _feature_units(deployment: Deployment, spec: PipelineSpec) -> dict[str, str]:
    """By feature name. Preprocessing that rescales (all but removing the mean or trend) leaves numbers without a unit."""
    units = [sensor.unit if (sensor := deployment.sensors.get(channel)) else "" for channel in spec.input]
    names = FeatureChain(spec).names
    per_channel = len(names) // len(units) if len(names) % len(units) == 0 and {*spec.preprocess} <= _UNIT_KEPT else 0
    return {
        name: units[index // per_channel] if per_channel and name.rpartition(".")[2] not in _UNITLESS else ""
        for index, name in enumerate(names)
    }
