"""What a quantization came to, for people (text, one HTML page) and for machines. Draws; measures nothing."""

from __future__ import annotations

from typing import Any

import msgspec

from models import svg
from models.quantize.ptq import Recipe
from models.quantize.search import Outcome

_SHOWN_LAYERS = 30


def rows(outcome: Outcome) -> list[tuple[str, str, str, str]]:
    """(what, float, INT8, change) of the gate's table."""
    before, after = outcome.costs
    final = outcome.final
    name = {"accuracy": "accuracy %", "agreement": "same class as float %", "snr": "signal without noise %"}[final.metric]
    return [
        (name, f"{final.float_value:g}", f"{final.int8_value:g}", f"drop {final.drop:g} (limit {outcome.max_drop:g})"),
        ("quantization noise of the output dB", "", f"{final.snr_db:g}", ""),
        ("size bytes", f"{before.size_bytes}", f"{after.size_bytes}", f"{before.size_bytes / max(1, after.size_bytes):.2f}x smaller"),
        (
            "latency ms, one thread",
            f"{before.latency_ms:g}",
            f"{after.latency_ms:g}",
            f"{before.latency_ms / max(1e-9, after.latency_ms):.2f}x",
        ),
        ("memory MB", f"{before.memory_mb:g}", f"{after.memory_mb:g}", ""),
    ]


def as_text(outcome: Outcome) -> list[str]:
    """The gate's table, the methods tried, the layers kept in float."""
    recipe = outcome.recipe
    lines = [f"{what:38s} {a:>12s} {b:>12s}  {change}" for what, a, b, change in [("", "float", "INT8", ""), *rows(outcome)]]
    for trial in outcome.trials:
        kept = f", float: {', '.join(trial.recipe.keep_float)}" if trial.recipe.keep_float else ""
        mark = "*" if trial.recipe == recipe else " "
        lines.append(f"{mark} {trial.recipe.method:10s} drop {trial.quality.drop:g}, noise {trial.quality.snr_db:g} dB{kept}")
    return lines


def as_json(outcome: Outcome) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "passed": outcome.passed,
        "max_drop": outcome.max_drop,
        "quality": msgspec.to_builtins(outcome.final),
        "float": msgspec.to_builtins(outcome.costs[0]),
        "int8": msgspec.to_builtins(outcome.costs[1]),
        "recipe": _recipe(outcome.recipe),
        "trials": [{"recipe": _recipe(trial.recipe), "quality": msgspec.to_builtins(trial.quality)} for trial in outcome.trials],
        "sensitivity": [{"layer": name, "noise_percent": noise} for name, noise in outcome.sensitivity],
    }


def as_page(name: str, outcome: Outcome) -> str:
    """One self-contained HTML page."""
    before, after = outcome.costs
    parts = [
        svg.paragraph(
            f"{'Passed' if outcome.passed else 'Refused'}: {outcome.final.metric} drop {outcome.final.drop:g}, limit {outcome.max_drop:g}."
        ),
        svg.table(["", "float", "INT8", ""], rows(outcome)),
        svg.bars("Latency", [("float", before.latency_ms), ("INT8", after.latency_ms)], unit="ms"),
        svg.bars("Size", [("float", before.size_bytes / 1024), ("INT8", after.size_bytes / 1024)], unit="KiB"),
        svg.bars("Drop by what was tried", [(_title(trial.recipe), trial.quality.drop) for trial in outcome.trials], unit="points"),
    ]
    if outcome.sensitivity:
        parts.append(svg.bars("Noise that each layer brings alone", outcome.sensitivity[:_SHOWN_LAYERS], unit="% of the output"))
    return svg.page(f"Quantization of {name}", parts)


def _title(recipe: Recipe) -> str:
    return recipe.method + (f", {len(recipe.keep_float)} in float" if recipe.keep_float else "")


def _recipe(recipe: Recipe) -> dict[str, Any]:
    return {
        "target": recipe.target,
        "method": recipe.method,
        "per_channel": recipe.per_channel,
        "keep_float": list(recipe.keep_float),
    }
