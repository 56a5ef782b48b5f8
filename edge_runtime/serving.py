"""From a deployment's model references to loaded models: resolve, choose the backend, probe in a child, load; then what serves is noted.

A model that is refused never stops the gateway: its name comes back with the refusal, and its pipelines give unknown facts.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_runtime.bundle import Manifest, find_model, verify
from edge_runtime.config.deployment import Deployment, ModelSpec
from edge_runtime.config.references import declared_labels, resolve_model, with_canaries
from edge_runtime.errors import DeploymentReason, DeploymentRefused, InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.pipeline.rows import compose
from edge_runtime.pipeline.runner import ModelHandle
from edge_runtime.ports import ChoosesProviders, KeepsOptimised, ModelBackend, ModelFolder
from edge_runtime.registry import MODEL_BACKENDS, MODEL_STORES, load, names

log = logging.getLogger(__name__)

Probed = Callable[[str], Awaitable[bool]]
"""Whether a model of that key (digest and backend) has already passed its probe on this machine."""


@dataclass(frozen=True, slots=True)
class GraphCache:
    """Where backends keep what they made of a model, and the most bytes it may take."""

    folder: Path
    max_bytes: int


@dataclass(frozen=True, slots=True)
class Served:
    """The models of one deployment: those ready, those refused with the reason, and the labels of both."""

    handles: Mapping[str, ModelHandle]
    refused: Mapping[str, str]
    labels: Mapping[str, tuple[str, ...]]

    def require_all(self) -> None:
        """Raises DeploymentRefused(MODEL_REFUSED) naming every model that was refused."""
        if self.refused:
            reasons = "; ".join(f"models.{name}: {reason}" for name, reason in self.refused.items())
            raise DeploymentRefused(DeploymentReason.MODEL_REFUSED, reasons)

    def close(self) -> None:
        """Lets go of models that will not serve after all."""
        for handle in self.handles.values():
            handle.model.close()


def open_models(folder: Path) -> ModelFolder:
    """The model store in a folder of this gateway."""
    store: ModelFolder = load(MODEL_STORES, "folder")(folder)
    return store


def choose_backend(path: Path, wanted: str | None) -> tuple[str, ModelBackend]:
    """The backend asked for, or the first registered one (by name) that opens the suffix and is installed.

    Raises InputError for an unknown name, MissingDependency when every candidate's library is absent, ModelRefused otherwise.
    """
    if wanted is not None:
        return wanted, load(MODEL_BACKENDS, wanted)()
    missing: MissingDependency | None = None
    for name in names(MODEL_BACKENDS):
        try:
            backend: ModelBackend = load(MODEL_BACKENDS, name)()
        except MissingDependency as err:
            missing = err
            continue
        if path.suffix.lower() in backend.suffixes:
            return name, backend
    if missing is not None:
        raise missing
    raise ModelRefused(
        RefusalReason.UNSUPPORTED_FORMAT, f"{path.name}: no backend opens `{path.suffix}` (known: {', '.join(names(MODEL_BACKENDS))})"
    )


def model_backend(path: Path, spec: ModelSpec) -> tuple[str, ModelBackend]:
    """The backend that a deployment's model runs on, with its execution providers. Raises as `choose_backend` and `on_providers`."""
    name, backend = choose_backend(path, spec.backend)
    return name, on_providers(name, backend, spec.providers)


def on_providers(name: str, backend: ModelBackend, providers: Sequence[str]) -> ModelBackend:
    """The backend on these execution providers; none leaves it as it is. Raises InputError for one that is not here."""
    if not providers:
        return backend
    if not isinstance(backend, ChoosesProviders):
        raise InputError(f"backend {name} has no execution providers to choose from; leave `providers` out")
    return backend.with_providers(providers)


def unserved(deployment: Deployment, document_dir: Path, store_dir: Path) -> Served:
    """What is known of a deployment's models before any is loaded."""
    return Served({}, {}, declared_labels(deployment, document_dir, store_dir))


async def serve(
    deployment: Deployment,
    document_dir: Path,
    store_dir: Path,
    *,
    probed: Probed,
    passed: Callable[[str], None],
    cache: GraphCache | None = None,
) -> Served:
    """Loads every model of a deployment, off the loop. `passed` remembers a probe so that the next start is quick."""
    handles: dict[str, ModelHandle] = {}
    refused: dict[str, str] = {}
    labels = declared_labels(deployment, document_dir, store_dir)
    for name, spec in with_canaries(deployment).items():
        try:
            path = resolve_model(spec, document_dir, store_dir)
            handles[name] = await _serve_one(name, spec, path, labels[name], probed, passed, cache)
        except (InputError, MissingDependency) as err:
            refused[name] = str(err)
            log.error("model refused model=%s reason=%s", name, err)
    return Served(handles, refused, labels)


async def _serve_one(
    name: str, spec: ModelSpec, path: Path, labels: tuple[str, ...], probed: Probed, passed: Callable[[str], None], cache: GraphCache | None
) -> ModelHandle:
    backend_name, backend = await asyncio.to_thread(model_backend, path, spec)
    digest, manifest = await asyncio.to_thread(verified, path)
    if spec.digest is not None and spec.digest != digest:
        raise ModelRefused(RefusalReason.UNREADABLE, f"{path.name}: expected {spec.digest}, the store holds {digest}; fetch it again")
    key = probe_key(spec, digest, backend_name)
    if not await probed(key):
        report = await backend.probe(path)
        log.info("model probed model=%s backend=%s load_ms=%.1f run_ms=%.3f", name, backend_name, report.load_ms, report.run_ms)
        passed(key)
    loading = backend.with_cache(cache.folder, cache.max_bytes) if cache and isinstance(backend, KeepsOptimised) else backend
    model = await asyncio.to_thread(loading.load, path, spec.threads)
    try:
        steps = manifest.preprocess if manifest else ()
        return ModelHandle(name, digest, labels, compose(model, manifest), steps, spec.canary, spec.slo_ms)
    except ModelRefused:
        model.close()
        raise


def probe_key(spec: ModelSpec, digest: str, backend: str) -> str:
    """Under which a probe that was passed is remembered: the same model on the same backend need not be tried again."""
    return "/".join(("probed", digest, backend, *spec.providers))


def note_serving(models: ModelFolder, deployment: Deployment, before: Deployment, max_bytes: int, keep: Collection[str] = ()) -> list[str]:
    """Marks the bundles that a deployment serves from now on, and clears away what nothing uses, down to `max_bytes`. Blocks.

    Names that only the deployment before had are released; `keep` are digests that other slots name. Returns the digests deleted.
    Never raises: a store that cannot be written costs room, not service.
    """
    try:
        for name in before.models.keys() - deployment.models.keys():
            models.release(name)
        for name, spec in deployment.models.items():
            if spec.path is None and spec.digest is not None and models.has(spec.digest):
                models.use(name, spec.digest)
        return models.collect(max_bytes, {*keep, *named_digests(deployment)})
    except (OSError, InputError) as err:
        log.warning("model store not tidied error=%s", err)
        return []


def named_digests(deployment: Deployment) -> set[str]:
    """Every bundle that a deployment names, canaries too."""
    named = {spec.digest for spec in deployment.models.values()} | {
        spec.canary.digest for spec in deployment.models.values() if spec.canary
    }
    return {digest for digest in named if digest is not None}


def verified(path: Path) -> tuple[str, Manifest | None]:
    """The digest that names a model: its bundle's, after every file of that was compared, else that of the file alone."""
    _, bundle = find_model(path)
    if bundle is None:
        return file_digest(path), None
    verify(bundle)
    return bundle.digest, bundle.manifest


def file_digest(path: Path) -> str:
    """`sha256:<hex>` of a file's bytes. Raises ModelRefused(MISSING) when it cannot be read."""
    try:
        with path.open("rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as err:
        raise ModelRefused(RefusalReason.MISSING, f"{path}: {err.strerror}") from err
