"""A graph of pipelines, checked and compiled but not in force: what `Flow.apply` swaps in. Touches no running part."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from edge_runtime.config.deployment import CanarySpec, PipelineSpec, SensorSpec
from edge_runtime.config.references import canary_name
from edge_runtime.errors import InputError
from edge_runtime.pipeline.features import FeatureChain
from edge_runtime.pipeline.preprocess import parse_steps
from edge_runtime.pipeline.runner import Binding, ModelHandle, Runner
from edge_runtime.pipeline.triggers import Conditions, Trigger, make_trigger

log = logging.getLogger(__name__)

WindowKey = tuple[tuple[str, ...], int, int, tuple[SensorSpec, ...]]
"""Inputs, size, hop and the inputs' own specs: pipelines with one key share one window, and it survives a change."""


@dataclass(slots=True)
class Draft:
    """One pipeline, compiled: on a model (`binding`) or on features."""

    name: str
    spec: PipelineSpec
    key: WindowKey
    trigger: Trigger
    binding: Binding | None = None
    features: FeatureChain | None = None


@dataclass(slots=True)
class Plan:
    """`refused`: pipelines that cannot run, with the reason; `alone`: those that run without their canary, likewise.

    `runners` by the identity of their model.
    """

    pipelines: Mapping[str, PipelineSpec]
    models: Mapping[str, ModelHandle]
    drafts: list[Draft] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    alone: dict[str, str] = field(default_factory=dict)
    runners: dict[int, Runner] = field(default_factory=dict)

    def windows(self) -> list[WindowKey]:
        """The windows needed, each once, in the order of the pipelines."""
        return list(dict.fromkeys(draft.key for draft in self.drafts))


def make_plan(
    sensors: Mapping[str, SensorSpec],
    pipelines: Mapping[str, PipelineSpec],
    models: Mapping[str, ModelHandle],
    *,
    runners: Mapping[int, Runner],
    now_ns: int,
    conditions: Conditions | None = None,
) -> Plan:
    """Compiles every pipeline; models without a runner among `runners` get one and are warmed up."""
    plan = Plan(dict(pipelines), dict(models))
    for name, spec in pipelines.items():
        try:
            plan.drafts.append(_draft(plan, name, spec, sensors, runners, make_trigger(spec.trigger, now_ns, conditions)))
        except InputError as err:
            plan.refused[name] = str(err)
            log.error("pipeline refused pipeline=%s reason=%s", name, err)
    return plan


def _draft(
    plan: Plan, name: str, spec: PipelineSpec, sensors: Mapping[str, SensorSpec], runners: Mapping[int, Runner], trigger: Trigger
) -> Draft:
    missing = [channel for channel in spec.input if channel not in sensors]
    if missing or not spec.input:
        wanted = f"input {', '.join(missing)} is no sensor" if missing else "input is empty"
        raise InputError(f"pipeline {name}: {wanted}; known sensors: {', '.join(sensors) or 'none'}")
    hop = spec.window.hop or spec.window.size
    key = (spec.input, spec.window.size, hop, tuple(sensors[channel] for channel in spec.input))
    if spec.model is None:
        return Draft(name, spec, key, trigger, features=FeatureChain(spec))
    return Draft(name, spec, key, trigger, binding=_bind(plan, name, spec, runners))


def _bind(plan: Plan, name: str, spec: PipelineSpec, runners: Mapping[int, Runner]) -> Binding:
    handle = plan.models.get(spec.model or "")
    if handle is None:
        raise InputError(f"pipeline {name}: model {spec.model} is not loaded; loaded: {', '.join(plan.models) or 'none'}")
    binding = _bound(plan, name, spec, handle, runners)
    if handle.canary is not None:
        try:
            _accompany(plan, name, spec, binding, handle.canary, runners)
        except InputError as err:
            plan.alone[canary_name(name)] = str(err)
            log.error("canary refused pipeline=%s reason=%s", name, err)
    return binding


def _accompany(plan: Plan, name: str, spec: PipelineSpec, binding: Binding, canary: CanarySpec, runners: Mapping[int, Runner]) -> None:
    """A canary that does not fit never costs the pipeline its own model."""
    second = plan.models.get(canary_name(binding.handle.name))
    if second is None:
        raise InputError(f"the canary of model {binding.handle.name} is not loaded")
    other = _bound(plan, name, spec, second, runners)
    if other.runner.classes != binding.runner.classes:
        raise InputError(f"its first output has {other.runner.classes} values; expected {binding.runner.classes}, as the active model's")
    binding.accompany(other, canary, binding.handle.slo_ms)


def _bound(plan: Plan, name: str, spec: PipelineSpec, handle: ModelHandle, runners: Mapping[int, Runner]) -> Binding:
    key = id(handle.model)
    known = plan.runners.get(key) or runners.get(key)
    runner = known or Runner(handle.model)
    steps = parse_steps(spec.preprocess or handle.preprocess)
    binding = Binding(name, handle, steps, (len(spec.input), spec.window.size), runner, hop=spec.window.hop or spec.window.size)
    if known is None:
        runner.warm_up(binding.fit.tensor)
    binding.check_labels()
    plan.runners[key] = runner
    return binding
