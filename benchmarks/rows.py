"""The form every benchmark answers in: rows of a figure, its unit, the reference measured in the same run, and the target."""

from __future__ import annotations

from typing import Any

Row = dict[str, Any]


def row(what: str, value: float, unit: str, reference: float | None = None, target: str | None = None) -> Row:
    """One figure. `reference` is a peer or the bare library in the same run; `target` is text such as `<= 5`."""
    return {"what": what, "value": value, "unit": unit, "reference": reference, "target": target}
