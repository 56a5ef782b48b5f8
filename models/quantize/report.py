"""What a quantization came to, for people (text, one HTML page) and for machines. Draws; measures nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from models import svg
from models.quantize.ptq import Recipe
from models.quantize.search import Outcome

_SHOWN_LAYERS = 40
_METRICS = {"accuracy": "accuracy %", "agreement": "same class as float %", "sqnr": "variance explained %"}


def verdict(outcome: Outcome) -> str:
    """One sentence with the figures."""
    final = outcome.final
    what = f"INT8 loses {final.drop:g} points of {final.metric} on {final.samples} samples, at most {outcome.max_drop:g} are allowed"
    return f"{'passed' if outcome.passed else 'refused'}: {what}"


def rows(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    """(what, float, INT8, change) of the gate's table."""
    before, after = outcome.costs
    final = outcome.final
    smaller, faster = before.size_bytes / max(1, after.size_bytes), before.latency_ms / max(1e-9, after.latency_ms)
    return [
        (_METRICS[final.metric], f"{final.float_value:g}", f"{final.int8_value:g}", f"drop {final.drop:g} (limit {outcome.max_drop:g})"),
        ("signal over quantization noise dB", "", f"{final.sqnr_db:g}", ""),
        ("size bytes", f"{before.size_bytes}", f"{after.size_bytes}", f"{smaller:.2f}x smaller"),
        ("latency p50 ms, one thread", f"{before.latency_ms:g}", f"{after.latency_ms:g}", f"{faster:.2f}x faster"),
        ("peak memory MB, child process", f"{before.memory_mb:g}", f"{after.memory_mb:g}", ""),
    ]


def as_text(outcome: Outcome) -> list[str]:
    """The gate's table, what was tried, the layers that cost most."""
    lines = [f"{what:36s} {a:>12s} {b:>12s}  {change}" for what, a, b, change in [("", "float", "INT8", ""), *rows(outcome)]]
    lines.append("tried, judged on samples of their own (* taken)")
    for trial in outcome.trials:
        mark = "*" if trial.recipe == outcome.recipe else " "
        figures = f"drop {trial.quality.drop:8g}  {trial.quality.sqnr_db:6g} dB"
        lines.append(f"{mark} {trial.recipe.method:10s}  {figures}{_floats(trial.recipe)}")
    if outcome.sensitivity:
        worst = ", ".join(f"{name} {noise:.3g} %" for name, noise in outcome.sensitivity[:5])
        lines.append(f"noise that a layer brings alone: {worst}")
    return [*lines, *outcome.notes, verdict(outcome)]


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
    parts = [svg.paragraph(verdict(outcome)), svg.table(["", "float", "INT8", ""], rows(outcome)), *plots(outcome).values()]
    head = ["method", "drop", "SQNR dB", "layers in float"]
    tried = [
        (trial.recipe.method, f"{trial.quality.drop:g}", f"{trial.quality.sqnr_db:g}", ", ".join(trial.recipe.keep_float))
        for trial in outcome.trials
    ]
    return svg.page(f"Quantization of {name}", [*parts, svg.table(head, tried), *map(svg.paragraph, outcome.notes)])


def plots(outcome: Outcome) -> dict[str, str]:
    """SVG figures by name."""
    before, after = outcome.costs
    final = outcome.final
    tried = [(_title(trial.recipe), trial.quality.drop) for trial in outcome.trials]
    drawn = {
        "quality": svg.bars(_METRICS[final.metric], [("float", final.float_value), ("INT8", final.int8_value)], unit="%"),
        "latency": svg.bars("Latency p50", [("float", before.latency_ms), ("INT8", after.latency_ms)], unit="ms"),
        "size": svg.bars("Size", [("float", before.size_bytes / 1024), ("INT8", after.size_bytes / 1024)], unit="KiB"),
        "tried": svg.bars("Drop by what was tried", tried, unit="points"),
    }
    if outcome.sensitivity:
        shown = [(name[-30:], noise) for name, noise in outcome.sensitivity[:_SHOWN_LAYERS]]
        drawn["sensitivity"] = svg.bars("Noise that each layer brings alone", shown, unit="% of the outputs' variance")
    return drawn


def _title(recipe: Recipe) -> str:
    return recipe.method + (f", {len(recipe.keep_float)} in float" if recipe.keep_float else "")


def _floats(recipe: Recipe) -> str:
    return f"  float: {', '.join(recipe.keep_float)}" if recipe.keep_float else ""


def _recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "target": recipe.target,
        "method": recipe.method,
        "per_channel": recipe.per_channel,
        "keep_float": list(recipe.keep_float),
    }
