"""Picks the backend for a model file: the one named, or the first usable one in a fixed order. Never falls back after a failure.

Order where several open the same suffix: onnx, litert, tflite, then others by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from edge_runtime.errors import InputError, MissingDependency, ModelRefused, RefusalReason
from edge_runtime.ports import ModelBackend

GROUP = "edge_runtime.model_backends"
ORDER = ("onnx", "litert", "tflite")


@dataclass(frozen=True, slots=True)
class Choice:
    """The backend taken, and the names of usable ones that were passed over."""

    name: str
    backend: ModelBackend
    others: tuple[str, ...] = ()


def choose(path: Path, name: str | None = None) -> Choice:
    """The backend for `path`; `name` is an explicit choice.

    Raises InputError for an unknown name, MissingDependency with the install command, ModelRefused(MISSING | UNSUPPORTED_FORMAT).
    """
    if not path.exists():
        raise ModelRefused(RefusalReason.MISSING, f"there is no file {path}")
    return _named(name) if name is not None else _first_usable(path)


def registered() -> dict[str, EntryPoint]:
    """Every registered backend by name, in the order of preference."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    return {name: points[name] for name in sorted(points, key=_rank)}


def _named(name: str) -> Choice:
    points = registered()
    if name not in points:
        raise InputError(f"`{name}` is no model backend (known: {', '.join(points)})")
    return Choice(name, points[name].load()())


def _first_usable(path: Path) -> Choice:
    usable: list[tuple[str, ModelBackend]] = []
    missing: list[MissingDependency] = []
    suffixes: set[str] = set()
    for name, point in registered().items():
        factory = point.load()
        suffixes.update(factory.suffixes if isinstance(factory.suffixes, tuple) else ())
        try:
            backend: ModelBackend = factory()
        except MissingDependency as err:
            missing += [err] if path.suffix.lower() in getattr(factory, "suffixes", ()) else []
            continue
        if path.suffix.lower() in backend.suffixes:
            usable.append((name, backend))
    if usable:
        (name, backend), *rest = usable
        return Choice(name, backend, tuple(other for other, _ in rest))
    if missing:
        raise missing[0]
    known = ", ".join(sorted(suffixes))
    raise ModelRefused(RefusalReason.UNSUPPORTED_FORMAT, f"no backend opens `{path.suffix}` files (known: {known}): {path.name}")


def _rank(name: str) -> tuple[int, str]:
    return (ORDER.index(name) if name in ORDER else len(ORDER), name)
