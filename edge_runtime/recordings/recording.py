"""What a recording is, and the account of its rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

KNOWN_LABELS = ("anomaly", "changepoint")

Column = npt.NDArray[np.float64]
Times = npt.NDArray[np.int64]

_GAP = 1.5


@dataclass(frozen=True, slots=True)
class Report:
    """What was found; only rows that could be read are in `rows`.

    `duplicates` are rows whose time came before, `out_of_order` rows earlier than one before them, `gaps` steps on of more than
    1.5 times the median step, `malformed` rows left out, with `reasons` and the first few `problems` as file:line:column.
    """

    rows: int
    duplicates: int = 0
    out_of_order: int = 0
    missing: int = 0
    gaps: int = 0
    malformed: int = 0
    problems: tuple[str, ...] = ()
    reasons: Mapping[str, int] = field(default_factory=dict)
    columns: tuple[str, ...] = ()
    first_ns: int | None = None
    last_ns: int | None = None
    step_ns: int = 0
    time_format: str = ""


@dataclass(frozen=True, slots=True)
class Recording:
    """Columns over rows, in file order. `t_ns` is wall time since the epoch, or None for evenly spaced samples without times."""

    path: Path
    name: str
    t_ns: Times | None
    columns: dict[str, Column]
    report: Report

    @property
    def channels(self) -> dict[str, Column]:
        """The columns that a machine measured."""
        return {name: values for name, values in self.columns.items() if canonical(name) not in KNOWN_LABELS}

    @property
    def labels(self) -> dict[str, Column]:
        """The columns that only people know (`anomaly`, `changepoint`)."""
        return {name: values for name, values in self.columns.items() if canonical(name) in KNOWN_LABELS}


def canonical(name: str) -> str:
    """A name without case and punctuation: `Volume Flow RateRMS` -> `volumeflowraterms`."""
    return "".join(character for character in name.casefold() if character.isalnum())


def describe(
    times: Times | None,
    columns: Mapping[str, Column],
    *,
    reasons: Mapping[str, int] | None = None,
    problems: tuple[str, ...] = (),
    time_format: str = "",
) -> Report:
    """The account of a recording; without `times` only rows and missing cells are told."""
    missing = int(sum(np.isnan(values).sum() for values in columns.values()))
    if times is None:
        return Report(rows=max(map(len, columns.values()), default=0), missing=missing, columns=tuple(columns))
    highest = np.maximum.accumulate(times) if len(times) else times
    steps = np.diff(highest)
    rising = steps[steps > 0]
    typical = int(np.median(rising)) if len(rising) else 0
    return Report(
        rows=len(times),
        duplicates=len(times) - len(np.unique(times)),
        out_of_order=int((times < highest).sum()),
        missing=missing,
        gaps=int((rising > _GAP * typical).sum()),
        malformed=sum((reasons or {}).values()),
        problems=problems,
        reasons=dict(reasons or {}),
        columns=tuple(columns),
        first_ns=int(times[0]) if len(times) else None,
        last_ns=int(times[-1]) if len(times) else None,
        step_ns=typical,
        time_format=time_format,
    )
