"""Our own small INT8 models with their recipes. A deployment names one as `zoo:NAME`. Importing this imports nothing else."""

from __future__ import annotations

from pathlib import Path

_HERE = Path(__file__).resolve().parent


def names() -> list[str]:
    """The models at hand."""
    return sorted(path.parent.name for path in _HERE.glob("*/manifest.json"))


def path(name: str) -> Path:
    """The model file of a name. Raises KeyError naming the known ones."""
    found = sorted((_HERE / name).glob("*.onnx")) if name in names() else []
    if not found:
        raise KeyError(f"no zoo model `{name}` (known: {', '.join(names())})")
    return found[0]
