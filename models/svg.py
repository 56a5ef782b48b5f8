"""Plots as SVG text, for reports that open anywhere: lines, bars and matrices. No scripts, no fonts, no network."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np

from edge_runtime.types import Array

WIDTH, HEIGHT = 720, 260
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a")

_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 16, 28, 34
_MOST_POINTS = 1500


def lines(title: str, series: Sequence[tuple[str, Array]], *, x_label: str = "", limit: tuple[str, float] | None = None) -> str:
    """Curves over their index; `limit` is a named horizontal line. Long curves show the largest value of each step."""
    shown = [(name, _thinned(np.asarray(values, np.float64))) for name, values in series]
    finite = np.concatenate([values[np.isfinite(values)] for _, values in shown] + [np.array([limit[1]] if limit else [])])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high = min(low, 0.0), high + (high - low or 1.0) * 0.05
    body = _axes(low, high)
    for index, (name, values) in enumerate(shown):
        colour = COLOURS[index % len(COLOURS)]
        xs = np.linspace(_LEFT, WIDTH - _RIGHT, len(values)) if len(values) > 1 else np.array([_LEFT])
        points = " ".join(f"{x:.1f},{_y(v, low, high):.1f}" for x, v in zip(xs, values, strict=True) if np.isfinite(v))
        body.append(f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>')
        body.append(_text(_LEFT + 130 * index, HEIGHT - 8, name, colour))
    if limit:
        y = _y(limit[1], low, high)
        body.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="{COLOURS[1]}" stroke-dasharray="6 4"/>')
        body.append(_text(_LEFT + 8, y - 4, limit[0], COLOURS[1]))
    return _figure(title, body, x_label)


def bars(title: str, values: Sequence[tuple[str, float]], *, unit: str = "") -> str:
    """Horizontal bars with their values written out."""
    top = max((abs(value) for _, value in values), default=0.0) or 1.0
    body = []
    for index, (name, value) in enumerate(values):
        y = _TOP + 22 * index
        width = abs(value) / top * (WIDTH - 380)
        body.append(_text(210, y + 14, name, "#24292f", "end"))
        body.append(f'<rect x="220" y="{y + 3}" width="{max(width, 1):.1f}" height="15" fill="{COLOURS[value < 0]}"/>')
        body.append(_text(226 + width, y + 14, f"{value:,.4g} {unit}".strip(), "#24292f"))
    return _figure(title, body, "", _TOP + 22 * len(values) + 10)


def matrix(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    """A confusion matrix: a row per true class, a column per guessed one."""
    cell = min(56, (WIDTH - 200) // max(1, len(names)))
    body = []
    for i, row in enumerate(counts):
        total = sum(row) or 1
        body.append(_text(150, _TOP + 30 + cell * i + cell / 2, names[i], "#24292f", "end"))
        body.append(_text(160 + cell * i + cell / 2, _TOP + 16, names[i][:8], "#24292f", "middle"))
        for j, count in enumerate(row):
            x, y, share = 160 + cell * j, _TOP + 24 + cell * i, count / total
            fill = (
                f"rgb({255 - int(190 * share)},{255 - int(120 * share)},255)"
                if i == j
                else f"rgb(255,{255 - int(200 * share)},{255 - int(200 * share)})"
            )
            body.append(f'<rect x="{x}" y="{y}" width="{cell - 2}" height="{cell - 2}" fill="{fill}" stroke="#d0d7de"/>')
            body.append(_text(x + cell / 2, y + cell / 2 + 4, str(count), "#24292f", "middle"))
    return _figure(title, body, "rows: true class, columns: guessed class", _TOP + 60 + cell * len(names))


def page(title: str, parts: Sequence[str]) -> str:
    """One HTML page of figures, tables and paragraphs that are HTML already."""
    style = (
        "body{font:15px/1.5 system-ui,sans-serif;max-width:760px;margin:2em auto;padding:0 1em;color:#24292f}"
        "table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #d0d7de;padding:.3em .7em;text-align:right}"
        "td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}"
    )
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{style}</style>'
    return f"{head}<h1>{escape(title)}</h1>\n" + "\n".join(parts) + "</html>\n"


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """An HTML table of plain values."""
    cells = ["<tr>" + "".join(f"<th>{escape(str(cell))}</th>" for cell in head) + "</tr>"]
    cells += ["<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return "<table>" + "".join(cells) + "</table>"


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def _axes(low: float, high: float) -> list[str]:
    body = []
    for step in range(5):
        value = low + (high - low) * step / 4
        y = _y(value, low, high)
        body.append(f'<line x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#eaeef2"/>')
        body.append(_text(_LEFT - 6, y + 4, f"{value:.3g}", "#57606a", "end"))
    return body


def _y(value: float, low: float, high: float) -> float:
    return HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM)


def _thinned(values: Array) -> Array:
    if len(values) <= _MOST_POINTS:
        return values
    step = -(-len(values) // _MOST_POINTS)
    padded = np.pad(values, (0, -len(values) % step), mode="edge")
    result: Array = padded.reshape(-1, step).max(axis=1)
    return result


def _text(x: float, y: float, text: str, colour: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" fill="{colour}" text-anchor="{anchor}">{escape(text)}</text>'


def _figure(title: str, body: Sequence[str], note: str, height: int = HEIGHT) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui,sans-serif" role="img">'
    words = [_text(8, 18, title, "#24292f"), _text(WIDTH - _RIGHT, height - 8, note, "#57606a", "end")]
    return head + f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>' + "".join([*words, *body]) + "</svg>"
