"""Names of classes from a file: one a line, plain or as `index name`. It names outputs; it never reorders them."""

from __future__ import annotations

import re
from pathlib import Path

from edge_runtime.errors import InputError

_NUMBERED = re.compile(r"(\d+)\s*[:,\s]\s*(\S.*)")
_BACKGROUND = "background"


def read(path: Path) -> list[str]:
    """The labels by class index; "" where a numbered file skips one. Raises InputError."""
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as err:
        raise InputError(f"cannot read the labels {path}: {err}") from err
    lines = lines[: max((index for index, line in enumerate(lines, 1) if line), default=0)]
    if not lines:
        raise InputError(f"{path}: holds no labels")
    numbered = [_NUMBERED.fullmatch(line) for line in lines if line]
    if not all(numbered):
        return lines
    names = {int(match[1]): match[2] for match in numbered if match}
    return [names.get(index, "") for index in range(max(names) + 1)] if len(names) == len(numbered) else lines


def fit(labels: list[str], classes: int) -> list[str]:
    """`labels` for an output of `classes`: a first line `background` goes when the model has no such class. Raises InputError."""
    if len(labels) == classes + 1 and labels[0].lower() == _BACKGROUND:
        return labels[1:]
    if len(labels) != classes:
        raise InputError(f"{len(labels)} labels for {classes} classes; give one label a line, in the order of the model's output")
    return labels
