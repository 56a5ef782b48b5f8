"""The figures of the gate's report as SVG: float beside INT8, what was tried, what each layer costs. Measures nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from html import escape

from models.quantize.judge import METRICS
from models.quantize.ptq import Recipe
from models.quantize.search import Outcome, Trial

WIDTH = 760

_Scale = Callable[[float], float]

_FLOAT, _INT8, _BAD, _INK, _FAINT, _GRID = "#8c959f", "#1f6feb", "#d1242f", "#24292f", "#57606a", "#d8dee4"
_ROW, _LEFT, _RIGHT, _HEAD = 24, 190, 110, 34
_MOST_LAYERS, _LONGEST_NAME = 30, 26


def overview(outcome: Outcome) -> str:
    """All panels below one another, as one picture."""
    panels = [_comparison(outcome), _tried(outcome)]
    if outcome.sensitivity:
        panels.append(_sensitivity(outcome))
    body, top = [], 0
    for drawn, height in panels:
        body.append(f'<g transform="translate(0 {top})">{"".join(drawn)}</g>')
        top += height + 14
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" font-family="system-ui,sans-serif" role="img">'
    return f'{head}<title>Float beside INT8</title><rect width="{WIDTH}" height="{top}" fill="#ffffff"/>{"".join(body)}</svg>'


def _comparison(outcome: Outcome) -> tuple[list[str], int]:
    """Four small pictures in a row, a pair of bars each."""
    final, (before, after) = outcome.final, outcome.costs
    pairs = [
        (METRICS[final.metric], "%", final.float_value, final.int8_value),
        ("Latency, median", "ms", before.latency_ms, after.latency_ms),
        ("Size", "KiB", before.size_bytes / 1024, after.size_bytes / 1024),
        ("Memory at peak", "MB", before.memory_mb, after.memory_mb),
    ]
    width, body = WIDTH / len(pairs), []
    for index, (title, unit, *values) in enumerate(pairs):
        left, scale = index * width + 12, (width - 36) / (max(*values, 0.0) or 1.0)
        body.append(_text(left, 18, title, _INK, weight="600"))
        for row, (name, value, colour) in enumerate(zip(("float", "INT8"), values, (_FLOAT, _INT8), strict=True)):
            top = 30 + 40 * row
            body.append(_text(left, top + 10, name, _FAINT))
            body.append(_text(left + width - 36, top + 10, f"{_figure(value)} {unit}", _INK, "end"))
            body.append(_bar(left, top + 15, max(1.0, value * scale), 12, colour))
    return body, 116


def _tried(outcome: Outcome) -> tuple[list[str], int]:
    """The drop of every trial with its standard error; the limit; the one that was taken."""
    drops = [(trial.quality.drop, trial.quality.error) for trial in outcome.trials]
    low = min(0.0, *(drop - error for drop, error in drops))
    high = max(outcome.max_drop, *(drop + error for drop, error in drops))
    room = 0.04 * (high - low or 1.0)
    low, high = low - (room if low < 0 else 0.0), high + room

    def at(value: float) -> float:
        return _LEFT + (value - low) / (high - low or 1.0) * (WIDTH - _LEFT - _RIGHT)

    bottom = _HEAD + _ROW * len(drops)
    body = [_text(12, 18, f"Drop of what was tried, in points of {outcome.final.metric} (lines: standard error)", _INK, weight="600")]
    body.append(_line(at(0), _HEAD - 6, at(0), bottom, _GRID))
    for row, trial in enumerate(outcome.trials):
        body += _trial(trial, _HEAD + _ROW * row + _ROW / 2, at, outcome)
    limit = at(outcome.max_drop)
    body.append(_line(limit, _HEAD - 6, limit, bottom + 4, _BAD, "5 4"))
    near_end = limit > WIDTH - _RIGHT - 60
    body.append(_text(limit, bottom + 17, f"limit {outcome.max_drop:g}", _BAD, "end" if near_end else "middle"))
    return body, bottom + 20


def _trial(trial: Trial, y: float, at: _Scale, outcome: Outcome) -> list[str]:
    taken, quality = trial.recipe == outcome.recipe, trial.quality
    colour = _INT8 if taken else _FLOAT
    left, right = sorted((at(0.0), at(quality.drop)))
    error = at(quality.drop - quality.error), at(quality.drop + quality.error)
    return [
        _text(_LEFT - 10, y + 4, title(trial.recipe), _INK, "end", "600" if taken else "400"),
        _bar(left, y - 7, max(1.5, right - left), 14, colour),
        _line(error[0], y, error[1], y, _INK),
        _text(WIDTH - 12, y + 4, f"{_figure(quality.drop)}{', taken' if taken else ''}", _INK, "end", "600" if taken else "400"),
    ]


def _sensitivity(outcome: Outcome) -> tuple[list[str], int]:
    """The noise that each layer brings alone, in decades."""
    shown = outcome.sensitivity[:_MOST_LAYERS]
    top = max(1.0, *(noise for _, noise in shown))
    least = max(1e-4, min((noise for _, noise in shown if noise > 0), default=1e-4))
    first, last = math.floor(math.log10(least)), math.ceil(math.log10(top))

    def at(noise: float) -> float:
        share = (math.log10(max(noise, 10.0**first)) - first) / max(1, last - first)
        return _LEFT + share * (WIDTH - _LEFT - _RIGHT)

    bottom, kept = _HEAD + _ROW * len(shown), set(outcome.recipe.keep_float)
    body = [_text(12, 18, "Noise that each layer brings alone, in % of the outputs' variance (each step is tenfold)", _INK, weight="600")]
    for decade in range(first, last + 1):
        x = at(10.0**decade)
        body += [_line(x, _HEAD - 6, x, bottom, _GRID), _text(x, bottom + 14, f"{10.0**decade:g}", _FAINT, "middle")]
    for row, (name, noise) in enumerate(shown):
        y = _HEAD + _ROW * row + _ROW / 2
        colour = _FLOAT if name in kept else _INT8
        body += [
            _text(_LEFT - 10, y + 4, shortened(name), _INK, "end"),
            _bar(_LEFT, y - 7, max(1.5, at(noise) - _LEFT), 14, colour),
            _text(WIDTH - 12, y + 4, f"{_figure(noise)}{', in float' if name in kept else ''}", _INK, "end"),
        ]
    hidden = len(outcome.sensitivity) - len(shown)
    if hidden:
        body.append(_text(12, bottom + 14, f"and {hidden} quieter layers", _FAINT))
    return body, bottom + 20


def title(recipe: Recipe) -> str:
    """A recipe in a few words."""
    name = "trained in INT8" if recipe.method == "qat" else recipe.method
    return name + (f", {len(recipe.keep_float)} in float" if recipe.keep_float else "")


def shortened(name: str) -> str:
    """The end of a long name, where exporters say what a layer is."""
    return name if len(name) <= _LONGEST_NAME else "..." + name[3 - _LONGEST_NAME :]


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.3g}" if abs(value) < 10 else f"{value:.4g}"


def _bar(x: float, y: float, width: float, height: float, colour: str) -> str:
    return f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:g}" rx="2" fill="{colour}"/>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="1.3"{dashed}/>'


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start", weight: str = "400") -> str:
    style = f'font-size="12.5" fill="{colour}" text-anchor="{anchor}" font-weight="{weight}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'
