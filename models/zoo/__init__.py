"""Our own small INT8 models with their recipes. A deployment names one as `zoo:NAME`. Importing this loads none of them."""

from __future__ import annotations

from pathlib import Path

from edge_runtime.bundle import MANIFEST, read_bundle

_HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """The models at hand."""
    return sorted(path.parent.name for path in _HERE.glob(f"*/{MANIFEST}"))


def path(name: str) -> Path:
    """The model file of a name. Raises KeyError naming the known ones."""
    if name not in names():
        raise KeyError(f"no zoo model `{name}` (known: {', '.join(names())})")
    return read_bundle(_HERE / name).model
