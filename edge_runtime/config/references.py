"""Where the models of a deployment are: `path` (a file or a bundle) beside the document, `zoo:NAME` in the installed zoo, or the
digest of a bundle in the local store."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import msgspec

from edge_runtime.bundle import MANIFEST, Bundle, Manifest, find_model, read_bundle
from edge_runtime.config.deployment import Deployment, ModelSpec
from edge_runtime.errors import ModelRefused, RefusalReason

_ZOO = "zoo:"
_CANARY = "@canary"


def resolve_model(spec: ModelSpec, document_dir: Path, store_dir: Path | None = None) -> Path:
    """The file of a model. Raises ModelRefused(MISSING) saying where it was looked for and what to do."""
    if spec.path is not None:
        return _zoo_model(spec.path.removeprefix(_ZOO)) if spec.path.startswith(_ZOO) else _existing(document_dir / spec.path)
    if spec.digest is None:
        raise ModelRefused(RefusalReason.MISSING, "the model has neither `path` nor `digest`; name a file, `zoo:NAME` or a sha256 digest")
    if store_dir is not None and (store_dir / spec.digest.removeprefix("sha256:") / MANIFEST).is_file():
        return read_bundle(store_dir / spec.digest.removeprefix("sha256:")).model
    raise ModelRefused(RefusalReason.MISSING, f"{spec.digest} is not in the local model store ({store_dir or 'none'})")


def canary_name(model: str) -> str:
    """Under which name the canary of a model is loaded and reported."""
    return model + _CANARY


def canary_host(name: str) -> str:
    """The model that a canary stands beside; of any other name, the name itself."""
    return name.removesuffix(_CANARY)


def with_canaries(deployment: Deployment) -> dict[str, ModelSpec]:
    """Every model of a deployment; a canary as `NAME@canary`, on the backend of the model that it runs beside."""
    found = dict(deployment.models)
    for name, spec in deployment.models.items():
        if spec.canary is not None:
            found[canary_name(name)] = msgspec.structs.replace(spec, digest=spec.canary.digest, path=None, canary=None)
    return found


def declared_labels(deployment: Deployment, document_dir: Path, store_dir: Path | None = None) -> dict[str, tuple[str, ...]]:
    """The labels of every model and canary, by name, without loading any: the deployment's own, else those of the model's manifest."""
    labels: dict[str, tuple[str, ...]] = {}
    for name, spec in with_canaries(deployment).items():
        try:
            labels[name] = spec.labels or manifest_labels(resolve_model(spec, document_dir, store_dir))
        except ModelRefused:
            labels[name] = spec.labels
    return labels


def manifest_labels(path: Path) -> tuple[str, ...]:
    """The labels in the manifest of the bundle that a model file is of, or none."""
    bundle = _bundle_of(path)
    return bundle.manifest.labels if bundle else ()


def manifest_of(path: Path) -> Manifest | None:
    """The manifest of the bundle that a model file is of, or None for a file by itself."""
    bundle = _bundle_of(path)
    return bundle.manifest if bundle else None


def zoo_names() -> list[str]:
    """The models of the installed zoo."""
    folder = _zoo_dir()
    return sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST}")) if folder else []


def _zoo_model(name: str) -> Path:
    folder = _zoo_dir()
    if folder is not None and name in zoo_names():
        return read_bundle(folder / name).model
    raise ModelRefused(RefusalReason.MISSING, f"no model `{name}` in the zoo (known: {', '.join(zoo_names()) or 'none'})")


def _bundle_of(path: Path) -> Bundle | None:
    try:
        return find_model(path)[1]
    except ModelRefused:
        return None


def _zoo_dir() -> Path | None:
    """Found without importing it: the core knows the package `models` only by name."""
    spec = find_spec("models")
    locations = list(spec.submodule_search_locations or ()) if spec else []
    return Path(locations[0]) / "zoo" if locations else None


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ModelRefused(RefusalReason.MISSING, f"{path} does not exist; check `path` (it is relative to the deployment)")
    return find_model(path)[0]
