"""Tries what is offered before anything is switched: its text, its models in a child process, its fit here. Changes nothing that runs.

Every refusal is a DeploymentRefused with its reason; every step has a deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edge_runtime.config.deployment import Deployment
from edge_runtime.config.gateway import GatewayFile
from edge_runtime.config.load import parse_deployment
from edge_runtime.config.references import canary_host, declared_labels, manifest_of, resolve_model, with_canaries
from edge_runtime.deploy.fit import available_mb, judge_fit
from edge_runtime.deploy.slots import DOCUMENT, MAX_DOCUMENT_BYTES, digest_of
from edge_runtime.errors import (
    ConfigError,
    DeploymentReason,
    DeploymentRefused,
    InputError,
    MissingDependency,
    ModelRefused,
    RefusalReason,
)
from edge_runtime.types import DesiredDeployment, ProbeReport

_ZOO = "zoo:"
_CHECK_S = 30.0
_PROBE_S = 20.0
_PROBE_MB = 1024


@dataclass(frozen=True, slots=True)
class Tried:
    """A deployment that may be switched to, and what the probes of its models told, by name. `keys`: how those are remembered."""

    deployment: Deployment
    reports: dict[str, ProbeReport]
    keys: tuple[str, ...]


def read_offer(desired: DesiredDeployment) -> Deployment:
    """The document, typed, under its revision. Raises DeploymentRefused(MALFORMED | INVALID | UNKNOWN_MODEL)."""
    if len(desired.document) > MAX_DOCUMENT_BYTES:
        raise DeploymentRefused(DeploymentReason.MALFORMED, f"expected at most {MAX_DOCUMENT_BYTES} bytes, got {len(desired.document)}")
    if digest_of(desired.document) != desired.digest:
        raise DeploymentRefused(DeploymentReason.MALFORMED, f"expected a document of {desired.digest}, got {digest_of(desired.document)}")
    try:
        deployment = parse_deployment(desired.document, DOCUMENT)
    except (ConfigError, UnicodeDecodeError, RecursionError) as err:
        raise DeploymentRefused(DeploymentReason.INVALID, str(err)) from err
    local = [name for name, spec in deployment.models.items() if spec.path is not None and not spec.path.startswith(_ZOO)]
    if local:
        raise DeploymentRefused(
            DeploymentReason.INVALID, f"models.{local[0]}.path: a pushed deployment names models by digest, or zoo:NAME"
        )
    unsigned = named_models(deployment) - set(desired.models)
    if unsigned:
        raise DeploymentRefused(
            DeploymentReason.UNKNOWN_MODEL, f"{min(unsigned)} is named and not among the models signed with this revision"
        )
    return msgspec.structs.replace(deployment, revision=desired.revision)


def named_models(deployment: Deployment) -> set[str]:
    """The digests that a deployment names, canaries too; not those beside a path, which only hold it to what it is."""
    named = {spec.digest for spec in deployment.models.values() if spec.path is None}
    named |= {spec.canary.digest for spec in deployment.models.values() if spec.canary}
    return {digest for digest in named if digest is not None}


async def try_out(
    desired: DesiredDeployment, deployment: Deployment, config: GatewayFile, store: Path, has: Callable[[str], bool]
) -> Tried:
    """Models are here, run in a child, fit; then the whole document is checked against this gateway. Raises DeploymentRefused."""
    missing = sorted(digest for digest in named_models(deployment) if not has(digest))
    if missing:
        raise DeploymentRefused(DeploymentReason.MODEL_UNAVAILABLE, f"{missing[0]} is not in the model store; fetch it first")
    reports, keys = await _probe_all(deployment, store)
    judge_fit(deployment, reports, available_mb())
    async with step_deadline("check", _CHECK_S):
        problems = await asyncio.to_thread(_check, desired.document, config, store, reports)
        problems += await asyncio.to_thread(_check_canaries, deployment, store, reports)
    if problems:
        raise DeploymentRefused(DeploymentReason.INVALID, "; ".join(problems))
    return Tried(deployment, reports, keys)


@asynccontextmanager
async def step_deadline(step: str, seconds: float) -> AsyncIterator[None]:
    """The body ends in time or the offer ends in DEADLINE."""
    try:
        async with asyncio.timeout(seconds):
            yield
    except TimeoutError as err:
        raise DeploymentRefused(DeploymentReason.DEADLINE, f"{step} did not end within {seconds:g} s") from err


def _check(document: bytes, config: GatewayFile, store: Path, reports: dict[str, ProbeReport]) -> list[str]:
    from edge_runtime.config.check import check_tried

    return [str(problem) for problem in check_tried(document, DOCUMENT, config, store, reports) if problem.fatal]


def _check_canaries(deployment: Deployment, store: Path, reports: dict[str, ProbeReport]) -> list[str]:
    """A canary takes the windows of the pipelines that it stands in, and names what it sees as the active model does."""
    from edge_runtime.config.trained import mismatches

    problems, labels, specs = [], declared_labels(deployment, store, store), with_canaries(deployment)
    for name in reports.keys() - deployment.models.keys():
        active, manifest = canary_host(name), manifest_of(resolve_model(specs[name], store, store))
        if set(labels[name]) != set(labels[active]):
            expected = ", ".join(labels[active]) or "none"
            problems.append(
                f"models.{name}: its labels are {', '.join(labels[name]) or 'none'}; expected {expected}, as the active model's"
            )
        for pipeline, spec in deployment.pipelines.items():
            if spec.model == active:
                found = mismatches(spec, deployment.sensors, manifest, reports[name])
                problems += [f"models.{name} in pipelines.{pipeline}: {each.message}" for each in found if each.fatal]
    return problems


async def _probe_all(deployment: Deployment, store: Path) -> tuple[dict[str, ProbeReport], tuple[str, ...]]:
    from edge_runtime.serving import model_backend, probe_key, verified

    reports: dict[str, ProbeReport] = {}
    keys: list[str] = []
    for name, spec in with_canaries(deployment).items():
        try:
            path = await asyncio.to_thread(resolve_model, spec, store, store)
            digest, _ = await asyncio.to_thread(verified, path)
            if spec.digest is not None and spec.digest != digest:
                raise ModelRefused(RefusalReason.UNREADABLE, f"expected {spec.digest}, the store holds {digest}; fetch it again")
            backend_name, backend = await asyncio.to_thread(model_backend, path, spec)
            memory_mb = max(64, min(_PROBE_MB, int(min(available_mb(), 2**20))))
            async with step_deadline(f"models.{name}: the probe", 2 * _PROBE_S):
                reports[name] = await backend.probe(path, deadline_s=_PROBE_S, memory_mb=memory_mb)
        except ModelRefused as err:
            raise DeploymentRefused(_reason(err), f"models.{name}: {err}") from err
        except DeploymentRefused:
            raise
        except (InputError, MissingDependency) as err:
            raise DeploymentRefused(DeploymentReason.MODEL_REFUSED, f"models.{name}: {err}") from err
        keys.append(probe_key(spec, digest, backend_name))
    return reports, tuple(keys)


def _reason(err: ModelRefused) -> DeploymentReason:
    return DeploymentReason.DOES_NOT_FIT if err.reason is RefusalReason.PROBE_MEMORY else DeploymentReason.MODEL_REFUSED
