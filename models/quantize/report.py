"""What a quantization came to, for people (text, one HTML page) and for machines. Measures nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from models import svg
from models.quantize import plots
from models.quantize.judge import METRICS
from models.quantize.ptq import Recipe
from models.quantize.search import Outcome

_SAME = 0.02


def verdict(outcome: Outcome) -> str:
    """One sentence with the figures."""
    final = outcome.final
    changed = f"loses {final.drop:g}" if final.drop >= 0 else f"gains {-final.drop:g}"
    what = f"INT8 {changed} points of {final.metric} on {final.samples} samples, it may lose {outcome.max_drop:g}"
    return f"{'passed' if outcome.passed else 'refused'}: {what}"


def rows(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    """(what, float, INT8, change) of the gate's table."""
    before, after = outcome.costs
    final = outcome.final
    error = f" +-{final.error:.2g}" if final.error else ""
    table = [(f"{METRICS[final.metric]}, %", f"{final.float_value:g}", f"{final.int8_value:g}", f"drop {final.drop:g}{error}")]
    if final.agreement is not None and final.metric != "agreement":
        table.append((f"{METRICS['agreement']}, %", "", f"{final.agreement:g}", ""))
    faster = _times(before.latency_ms, after.latency_ms, "fast")
    return [
        *table,
        ("Signal over quantization noise, dB", "", f"{final.sqnr_db:g}", ""),
        ("Latency p50, ms, one thread", f"{before.latency_ms:g}", f"{after.latency_ms:g}", faster),
        ("Size, bytes", f"{before.size_bytes:,}", f"{after.size_bytes:,}", _times(before.size_bytes, after.size_bytes, "small")),
        ("Memory at peak, MB", f"{before.memory_mb:g}", f"{after.memory_mb:g}", _times(before.memory_mb, after.memory_mb, "small")),
    ]


def as_text(outcome: Outcome) -> list[str]:
    """The gate's table, what was tried, the layers that cost most."""
    table = [("", "float", "INT8", ""), *rows(outcome)]
    lines = [f"{what:36s} {a:>12s} {b:>12s}  {change}".rstrip() for what, a, b, change in table]
    lines += ["", "tried, judged on samples of their own        drop      +-     SNR dB"]
    for trial in outcome.trials:
        mark = "*" if trial.recipe == outcome.recipe else " "
        figures = f"{trial.quality.drop:8g} {trial.quality.error:7.2g} {trial.quality.sqnr_db:10g}"
        lines.append(f"{mark} {plots.title(trial.recipe):38s} {figures}{_floats(trial.recipe)}")
    if outcome.sensitivity:
        worst = ", ".join(f"{plots.shortened(name)} {noise:.3g} %" for name, noise in outcome.sensitivity[:5])
        lines += ["", f"noise that a layer brings alone: {worst}"]
    return [*lines, *(f"note: {note}" for note in outcome.notes), verdict(outcome)]


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The same as plain values."""
    return summary(outcome) | {
        "trials": [{"recipe": _recipe(trial.recipe), "quality": msgspec.to_builtins(trial.quality)} for trial in outcome.trials],
        "sensitivity": [{"layer": name, "noise_percent": noise} for name, noise in outcome.sensitivity],
        "notes": outcome.notes,
    }


def summary(outcome: Outcome) -> dict[str, Any]:
    """What the manifest of the bundle says."""
    return {
        "passed": outcome.passed,
        "max_drop": outcome.max_drop,
        "quality": msgspec.to_builtins(outcome.final),
        "float": msgspec.to_builtins(outcome.costs[0]),
        "int8": msgspec.to_builtins(outcome.costs[1]),
        "recipe": _recipe(outcome.recipe),
    }


def as_page(name: str, outcome: Outcome) -> str:
    """One self-contained HTML page."""
    recipe = outcome.recipe
    scales = "one scale per channel" if recipe.per_channel else "one scale per tensor"
    how = f"For {recipe.target}, {scales}, {_made(recipe)}."
    head = ["tried", "drop", "+-", "signal to noise, dB", "layers in float"]
    tried = [
        (plots.title(t.recipe), f"{t.quality.drop:g}", f"{t.quality.error:.2g}", f"{t.quality.sqnr_db:g}", ", ".join(t.recipe.keep_float))
        for t in outcome.trials
    ]
    parts = [
        svg.paragraph(f"{verdict(outcome)}. {how}"),
        *map(svg.paragraph, outcome.notes),
        svg.table(["", "float", "INT8", "change"], rows(outcome)),
        plots.overview(outcome),
        svg.table(head, tried),
        svg.paragraph("+- is the standard error: what chance in the samples does to a drop. What is taken has the least noise among"
                      " those whose drop with its error stays within the limit."),
    ]  # fmt: skip
    return svg.page(f"{name} in INT8", parts)


def _times(before: float, after: float, what: str) -> str:
    """How many times faster, smaller, or the opposite."""
    opposite = {"fast": "slower", "small": "larger"}[what]
    ratio = before / after if after else 1.0
    if abs(ratio - 1) < _SAME or not ratio:
        return ""
    return f"{ratio:.2f}x {what}er" if ratio > 1 else f"{1 / ratio:.2f}x {opposite}"


def _made(recipe: Recipe) -> str:
    return "trained in INT8" if recipe.method == "qat" else f"ranges by {recipe.method}"


def _floats(recipe: Recipe) -> str:
    return f"  {', '.join(recipe.keep_float)}" if recipe.keep_float else ""


def _recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "target": recipe.target,
        "method": recipe.method,
        "per_channel": recipe.per_channel,
        "keep_float": list(recipe.keep_float),
    }
