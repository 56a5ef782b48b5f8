"""Judges documents beyond their types: references, units, rules, shapes, bindings. Static: nothing is started, no hardware is touched."""

from __future__ import annotations

import asyncio
import difflib
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime.access.address import is_loopback, parse_listen
from edge_runtime.clock import VirtualClock
from edge_runtime.config.deployment import Deployment, PipelineSpec
from edge_runtime.config.gateway import COAP_SERVER, GatewayFile, SensorBinding
from edge_runtime.config.load import decode, read
from edge_runtime.config.positions import Document, parse_document
from edge_runtime.config.references import manifest_labels, manifest_of, resolve_model
from edge_runtime.config.trained import mismatches
from edge_runtime.config.verbs import actions
from edge_runtime.errors import ConfigError, InputError, MissingDependency, ModelRefused, Problem, RefusalReason
from edge_runtime.pipeline.preprocess import output_shape, parse_steps
from edge_runtime.pipeline.triggers import make_trigger
from edge_runtime.ports import ModelBackend
from edge_runtime.reasoning.facts import FactType, fact_types
from edge_runtime.reasoning.language import parse
from edge_runtime.reasoning.semantics import check as check_condition
from edge_runtime.reasoning.semantics import check_present
from edge_runtime.registry import ADAPTERS, SYNC_TRANSPORTS, find, load
from edge_runtime.serving import choose_backend, on_providers
from edge_runtime.types import ProbeReport, TensorInfo
from edge_runtime.units import conversion, parse_unit

T = TypeVar("T")

_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LONGEST_WINDOW_S = 3600.0
_WRONG_TIMES = "this window takes {:.0f} s to fill (at most {:.0f} s); lower `size` or correct `rate_hz`"


def check_files(paths: Iterable[Path], gateway: Path | None = None, models: Path | None = None) -> list[Problem]:
    """Every problem of the documents, each judged as what it is; a deployment also against `gateway`, when that is given.

    `models` is a model store (a folder per bundle, named by digest) in which a deployment's models by digest are looked for.
    """
    problems: list[Problem] = []
    bound: GatewayFile | None = None
    if gateway is not None:
        try:
            bound = decode(parse_document(read(gateway), str(gateway)), GatewayFile)
        except ConfigError as err:
            problems += err.problems
    for path in paths:
        problems += check_file(path, bound, models)
    return problems


def check_file(path: Path, gateway: GatewayFile | None = None, models: Path | None = None) -> list[Problem]:
    """Every problem of one document."""
    try:
        document = parse_document(read(path), str(path))
        if kind_of(document) == "gateway":
            return _check_gateway(document, path, models)
        return _check_deployment(document, path, gateway, models)
    except ConfigError as err:
        return list(err.problems)


def check_tried(text: bytes, file: str, gateway: GatewayFile, store: Path, reports: Mapping[str, ProbeReport]) -> list[Problem]:
    """Every problem of a deployment whose models, in the folder `store` or the zoo, were probed here; `reports` by their names."""
    try:
        document = parse_document(text, file)
        return _check_deployment(document, Path(file), gateway, store, reports)
    except ConfigError as err:
        return list(err.problems)


def kind_of(document: Document) -> str:
    """`gateway` or `deployment`, told by the keys that only one of them has."""
    keys = set(document.value) if isinstance(document.value, dict) else set()
    return "gateway" if keys & {"gateway", "adapters", "broker", "store", "deployment"} else "deployment"


# -- gateway file ---------------------------------------------------------------------------------------------------------


def _check_gateway(document: Document, path: Path, models: Path | None) -> list[Problem]:
    config = decode(document, GatewayFile)
    for name, spec in config.adapters.items():
        _try(document, f"adapters.{name}.driver", lambda driver=spec.driver: find(ADAPTERS, driver))  # type: ignore[misc]
        _try(document, f"adapters.{name}.options", lambda name=name: _build_adapter(config, name, path.parent))  # type: ignore[misc]
    served = _check_coap(document, config)
    for section, bindings in (("sensors", config.sensors), ("actuators", config.actuators)):
        for name, binding in bindings.items():
            if binding.adapter == COAP_SERVER and section == "sensors" and config.coap is not None:
                if binding.channel not in served:
                    document.report(f"sensors.{name}.channel", _unknown("channel of coap.ingest", binding.channel, served))
            elif binding.adapter not in config.adapters:
                document.report(f"{section}.{name}.adapter", _unknown("adapter", binding.adapter, config.adapters))
    for name, sensor in config.sensors.items():
        if sensor.unit is not None:
            _try(document, f"sensors.{name}.unit", lambda unit=sensor.unit: parse_unit(unit))  # type: ignore[misc]
    _check_broker(document, config, path.parent)
    problems = _sorted(document)
    if config.deployment is not None:
        problems += check_file(path.parent / config.deployment, config, models)
    return problems


def _check_coap(document: Document, config: GatewayFile) -> Collection[str]:
    """The channels that readings may be pushed to."""
    spec = config.coap
    if spec is None:
        return ()
    if COAP_SERVER in config.adapters:
        document.report(f"adapters.{COAP_SERVER}", "this name is taken by the section `coap`; rename the adapter")
    listen = _try(document, "coap.listen", lambda: parse_listen(spec.listen, "coap.listen"))
    if listen is not None and not is_loopback(listen[0]):
        message = f"{listen[0]} is reached from outside, and CoAP here is not encrypted: whoever reaches it reads the status"
        message += ", and pushes readings" if spec.ingest else ""
        document.report("coap.listen", f"{message}; keep it within a network that you trust", fatal=False)
    for name, channel in spec.ingest.items():
        _try(document, f"coap.ingest.{name}.unit", lambda unit=channel.unit: parse_unit(unit) if unit else None)  # type: ignore[misc]
        if channel.minimum is not None and channel.maximum is not None and channel.minimum >= channel.maximum:
            document.report(f"coap.ingest.{name}.minimum", f"expected less than maximum {channel.maximum:g}, got {channel.minimum:g}")
    return spec.ingest


def _check_broker(document: Document, config: GatewayFile, base: Path) -> None:
    broker = config.broker
    if broker is None:
        return
    _try(document, "broker.transport", lambda: find(SYNC_TRANSPORTS, broker.transport))
    tls = broker.tls
    files = {"broker.password_file": broker.password_file}
    if tls is not None:
        files |= {"broker.tls.ca": tls.ca, "broker.tls.cert": tls.cert, "broker.tls.key": tls.key}
        if (tls.cert is None) != (tls.key is None):
            document.report("broker.tls", "expected both `cert` and `key` or neither: a client certificate needs its key")
    for key, name in files.items():
        if name is not None and not (base / name).is_file():
            document.report(key, f"file {base / name} does not exist")


def _build_adapter(config: GatewayFile, name: str, base: Path) -> None:
    spec = config.adapters[name]
    try:
        factory = load(ADAPTERS, spec.driver)
    except InputError:
        return  # reported at the driver
    factory(name, absolute_options(spec.options, base), VirtualClock())


def absolute_options(options: Mapping[str, Any], base: Path) -> dict[str, Any]:
    """Paths in an adapter's options (keys `file`, `files`, `path`, `panel`) made relative to the gateway file."""
    resolved = dict(options)
    for key in ("file", "files", "path", "panel"):
        value = resolved.get(key)
        if isinstance(value, str):
            resolved[key] = str(base / value)
        elif isinstance(value, list):
            resolved[key] = [str(base / item) if isinstance(item, str) else item for item in value]
    return resolved


# -- deployment -----------------------------------------------------------------------------------------------------------


def _check_deployment(
    document: Document, path: Path, gateway: GatewayFile | None, models: Path | None, probed: Mapping[str, ProbeReport] | None = None
) -> list[Problem]:
    """`probed`: what is known already of its models, by name."""
    deployment = decode(document, Deployment)
    for name, sensor in deployment.sensors.items():
        _try(document, f"sensors.{name}.unit", lambda unit=sensor.unit: parse_unit(unit))  # type: ignore[misc]
        if sensor.minimum is not None and sensor.maximum is not None and sensor.minimum >= sensor.maximum:
            document.report(f"sensors.{name}.minimum", f"expected less than maximum {sensor.maximum:g}, got {sensor.minimum:g}")
    labels = _check_models(document, deployment, path.parent, models, probed or {})
    _check_actuators(document, deployment)
    facts = _check_pipelines(document, deployment, labels)
    if facts is not None:
        _check_rules(document, deployment, facts, _unknown_facts(deployment, labels))
    if gateway is not None:
        _check_bindings(document, deployment, gateway)
    return _sorted(document)


def _check_models(
    document: Document, deployment: Deployment, base: Path, models: Path | None, known: Mapping[str, ProbeReport]
) -> dict[str, tuple[str, ...]]:
    """The labels of every model that could be looked at."""
    labels: dict[str, tuple[str, ...]] = {}
    for name, spec in deployment.models.items():
        key = f"models.{name}"
        if spec.path is None and spec.digest is None:
            document.report(key, "expected `path` (a file beside this document, or zoo:NAME) or `digest`, got neither")
            continue
        stored = spec.path is None
        try:
            path = resolve_model(spec, base, models)
            labels[name] = spec.labels or manifest_labels(path)
            backend_name, backend = choose_backend(path, spec.backend)
            backend = _try(document, f"{key}.providers", partial(on_providers, backend_name, backend, spec.providers)) or backend
            probed = known.get(name) or (_declared(path) if stored else _probe(backend, path))
        except MissingDependency as err:
            document.report(key, f"not checked against its pipelines: {err}", fatal=False)
        except ModelRefused as err:
            absent = stored and err.reason is RefusalReason.MISSING
            where = "digest" if stored else "path"
            hint = "; checked without it, and rules on its results not at all" if absent and not spec.labels else ""
            document.report(f"{key}.{where}", f"{err}{hint}", fatal=not absent)
            labels |= {name: spec.labels} if spec.labels else {}
        except InputError as err:
            document.report(f"{key}.backend", str(err))
        else:
            if probed is not None:
                _check_fit(document, deployment, name, path, probed)
    return labels


def _declared(path: Path) -> ProbeReport | None:
    """What the manifest of a stored bundle says of its tensors; it was probed when it came, and will be before it serves."""
    manifest = manifest_of(path)
    if manifest is None or not manifest.inputs:
        return None
    inputs, outputs = (
        tuple(TensorInfo(p.name, p.shape, p.dtype, p.scale, p.zero_point) for p in ports) for ports in (manifest.inputs, manifest.outputs)
    )
    return ProbeReport(backend="", load_ms=0.0, run_ms=0.0, runs=0, rss_mb=0.0, inputs=inputs, outputs=outputs)


def _unknown_facts(deployment: Deployment, labels: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
    """Outputs of pipelines on models that are not here: whether they give classes or numbers is not known."""
    return frozenset(spec.output for spec in deployment.pipelines.values() if spec.model in deployment.models and spec.model not in labels)


def _probe(backend: ModelBackend, path: Path) -> ProbeReport:
    """In a child process, and in a thread of its own, for a loop may be running here."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        return thread.submit(lambda: asyncio.run(backend.probe(path))).result()


def _check_fit(document: Document, deployment: Deployment, model_name: str, path: Path, probed: ProbeReport) -> None:
    """Shapes, and what the model was made for: other units or preprocessing give wrong classes without a word."""
    for name, spec in deployment.pipelines.items():
        if spec.model == model_name:
            for found in mismatches(spec, deployment.sensors, manifest_of(path), probed):
                document.report(f"pipelines.{name}.{found.key}", found.message, fatal=found.fatal)


def _check_pipelines(document: Document, deployment: Deployment, labels: Mapping[str, tuple[str, ...]]) -> dict[str, FactType] | None:
    sound = True
    for name, spec in deployment.pipelines.items():
        before = len(document.problems)
        _check_pipeline(document, deployment, name, spec)
        sound &= len(document.problems) == before
    if not sound:
        return None
    try:
        facts = fact_types(deployment, labels)
    except InputError as err:
        document.report("pipelines", str(err))
        return None
    unknown = _unknown_facts(deployment, labels)
    for name, spec in deployment.pipelines.items():
        if spec.trigger.when and not _mentions(spec.trigger.when, unknown):
            when = spec.trigger.when
            _try(document, f"pipelines.{name}.trigger.when", lambda when=when: check_present(parse(when), facts))  # type: ignore[misc]
        if spec.trigger.event and spec.trigger.event not in {rule.rule for rule in deployment.rules}:
            document.report(f"pipelines.{name}.trigger.event", _unknown("rule", spec.trigger.event, [r.rule for r in deployment.rules]))
    return facts


def _check_pipeline(document: Document, deployment: Deployment, name: str, spec: PipelineSpec) -> None:
    key = f"pipelines.{name}"
    for index, channel in enumerate(spec.input):
        if channel not in deployment.sensors:
            document.report(f"{key}.input[{index}]", _unknown("sensor", channel, deployment.sensors))
    if not spec.input:
        document.report(f"{key}.input", "expected at least one sensor, got an empty list")
    if spec.model is not None and spec.model not in deployment.models:
        document.report(f"{key}.model", _unknown("model", spec.model, deployment.models))
    if spec.window.hop is not None and spec.window.hop > spec.window.size:
        document.report(
            f"{key}.window.hop", f"expected at most size {spec.window.size}, got {spec.window.hop}: samples between would be skipped"
        )
    rates = {deployment.sensors[channel].rate_hz for channel in spec.input if channel in deployment.sensors}
    if len(rates) > 1:
        document.report(f"{key}.input", f"expected sensors of one rate_hz, got {', '.join(f'{rate:g}' for rate in sorted(rates))} Hz")
    elif rates and spec.window.size / min(rates) > _LONGEST_WINDOW_S:
        document.report(f"{key}.window.size", _WRONG_TIMES.format(spec.window.size / min(rates), _LONGEST_WINDOW_S))
    _try(document, f"{key}.preprocess", lambda: output_shape(parse_steps(spec.preprocess), (max(1, len(spec.input)), spec.window.size)))
    _try(document, f"{key}.trigger", lambda: make_trigger(spec.trigger, 0, lambda text: lambda: None))


def _check_actuators(document: Document, deployment: Deployment) -> None:
    for name, spec in deployment.actuators.items():
        if spec.states and spec.safe_state not in spec.states:
            document.report(f"actuators.{name}.safe_state", _unknown("state", spec.safe_state, spec.states))


def _check_rules(document: Document, deployment: Deployment, facts: Mapping[str, FactType], unknown: frozenset[str]) -> None:
    seen: dict[str, int] = {}
    for index, rule in enumerate(deployment.rules):
        key = f"rules[{index}]"
        if rule.rule in seen:
            document.report(f"{key}.rule", f"the name `{rule.rule}` is taken by rules[{seen[rule.rule]}]; rename one of them")
        seen.setdefault(rule.rule, index)
        if not _mentions(rule.when, unknown):
            _check_text(document, f"{key}.when", rule.when, facts)
        if rule.until is not None and not _mentions(rule.until, unknown):
            _check_text(document, f"{key}.until", rule.until, facts)
        try:
            for actuator, state in actions(rule.then):
                _check_action(document, f"{key}.then", deployment, actuator, state)
        except InputError as err:
            document.report(f"{key}.then", str(err))


def _check_action(document: Document, key: str, deployment: Deployment, actuator: str, state: str) -> None:
    spec = deployment.actuators.get(actuator)
    if spec is None:
        document.report(key, _unknown("actuator", actuator, deployment.actuators))
    elif spec.states and state not in spec.states:
        document.report(key, f"{actuator}: " + _unknown("state", state, spec.states))


def _mentions(text: str, names: frozenset[str]) -> bool:
    return not names.isdisjoint(_WORD.findall(text))


def _check_text(document: Document, key: str, text: str, facts: Mapping[str, FactType]) -> None:
    _try(document, key, lambda: check_condition(parse(text), facts))


def _check_bindings(document: Document, deployment: Deployment, gateway: GatewayFile) -> None:
    for name, spec in deployment.sensors.items():
        binding = gateway.sensors.get(name)
        if binding is None:
            document.report(f"sensors.{name}", f"the gateway file binds no channel to `{name}`; add it under sensors: there")
        elif (unit := binding.unit or _pushed_unit(gateway, binding)) and spec.unit:
            _try(document, f"sensors.{name}.unit", lambda a=unit, b=spec.unit: conversion(a, b))  # type: ignore[misc]
    for name in deployment.actuators:
        if name not in gateway.actuators:
            document.report(f"actuators.{name}", f"the gateway file binds no channel to `{name}`; add it under actuators: there")


def _pushed_unit(gateway: GatewayFile, binding: SensorBinding) -> str:
    """The unit of a channel that readings are pushed to; empty for one of an adapter, which tells it when it is open."""
    pushed = gateway.coap.ingest.get(binding.channel) if gateway.coap is not None and binding.adapter == COAP_SERVER else None
    return pushed.unit if pushed is not None else ""


# -- common ---------------------------------------------------------------------------------------------------------------


def _try(document: Document, key: str, judge: Callable[[], T]) -> T | None:
    try:
        return judge()
    except (InputError, MissingDependency) as err:
        document.report(key, str(err))
        return None


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    choices = list(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
    hint = f"did you mean `{near[0]}`?" if near else f"known: {', '.join(choices) or 'none'}"
    return f"no {what} `{name}`; {hint}"


def _sorted(document: Document) -> list[Problem]:
    return sorted(document.problems, key=lambda problem: problem.line)
