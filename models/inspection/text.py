"""An inspection for people: lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from edge_runtime.types import TensorInfo
from models.inspection.report import Inspection, OperatorCount
from models.tensors import shape_text

_PREFIXES = ("", "k", "M", "G", "T", "P")
_SHOWN_IN_MANIFEST = ("name", "version", "task", "target", "license", "labels", "window")


def lines(found: Inspection) -> Iterator[str]:
    """The whole inspection."""
    yield f"{found.file}: {found.format}, {found.precision}, {found.size_bytes / 1024:,.1f} KiB"
    yield f"  format      {found.version}"
    if found.producer:
        yield f"  made by     {found.producer}"
    yield f"  sha256      {found.sha256}"
    for word, tensors in (("input", found.inputs), ("output", found.outputs)):
        for tensor in tensors:
            yield f"  {word:11s} {tensor_text(tensor)}"
    yield f"  parameters  {short(found.parameters)} ({found.parameters:,})"
    yield f"  arithmetic  {_macs(found)}"
    yield f"  operators   {found.nodes}"
    yield from _operators(found.operators)
    yield from _bundle(found)


def tensor_text(tensor: TensorInfo) -> str:
    """One input or output on a line: name, shape, dtype and what its stored values stand for."""
    text = f"{tensor.name}  {shape_text(tensor.shape)} {tensor.dtype}"
    if tensor.axis_scales:
        return f"{text}, {len(tensor.axis_scales)} scales along axis {tensor.axis}"
    return f"{text}, scale {tensor.scale:.6g}, zero point {tensor.zero_point}" if tensor.scale else text


def short(number: int) -> str:
    """`3.54 M`: a large number in three figures."""
    value, step = float(number), 0
    while value >= 1000 and step < len(_PREFIXES) - 1:
        value, step = value / 1000, step + 1
    return f"{value:.3g} {_PREFIXES[step]}".strip()


def _macs(found: Inspection) -> str:
    if found.macs_unknown and not found.macs:
        return f"not told: the shapes inside {found.macs_unknown} operators are free"
    least = f"at least ({found.macs_unknown} operators of unknown shape left out) " if found.macs_unknown else ""
    return f"{least}{short(found.macs)} multiply-accumulates a run"


def _operators(operators: tuple[OperatorCount, ...]) -> Iterator[str]:
    width = max((len(operator.name) for operator in operators), default=0)
    for operator in operators:
        split = {"INT8": operator.int8, "float": operator.float, "convert": operator.convert, "no arithmetic": operator.other}
        kinds = [f"{word}" if count == operator.count else f"{count} {word}" for word, count in split.items() if count]
        yield f"    {operator.name:{width}s} {operator.count:5d}  {', '.join(kinds)}"


def _bundle(found: Inspection) -> Iterator[str]:
    if found.bundle is None:
        return
    yield f"  bundle      {found.bundle['digest']}"
    for key in _SHOWN_IN_MANIFEST:
        if key in found.bundle:
            value = found.bundle[key]
            yield f"    {key:9s} {_value(value)}"
    golden = found.bundle.get("golden")
    yield f"    golden    {golden['file']}, tolerance {golden['tolerance']:g}" if golden else "    golden    none"
    for key, value in found.bundle.get("measured", {}).items():
        if isinstance(value, int | float | str):
            yield f"    measured  {key} {value}"


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {inner}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
