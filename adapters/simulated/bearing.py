"""Vibration of a damaged rolling bearing: characteristic frequencies and the impulse trains that defects make. Pure numpy.

Frequencies follow from geometry and shaft speed; every pass over a defect excites a structural resonance that dies away.
Source: R. B. Randall, J. Antoni, Rolling element bearing diagnostics - a tutorial, MSSP 25 (2011), sections 2 and 3.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, radians

import numpy as np
import numpy.typing as npt

Wave = npt.NDArray[np.float64]

DEFECTS = ("outer_race", "inner_race", "ball")
_TAIL_S = 0.06


@dataclass(frozen=True, slots=True)
class Geometry:
    """A deep-groove ball bearing; the default is a 6205."""

    balls: int = 9
    ball_mm: float = 7.94
    pitch_mm: float = 39.04
    contact_deg: float = 0.0

    def _ratio(self) -> float:
        return self.ball_mm / self.pitch_mm * cos(radians(self.contact_deg))

    @property
    def bpfo(self) -> float:
        """Passes over an outer-race defect per shaft turn."""
        return self.balls / 2 * (1 - self._ratio())

    @property
    def bpfi(self) -> float:
        """Passes over an inner-race defect per shaft turn."""
        return self.balls / 2 * (1 + self._ratio())

    @property
    def bsf(self) -> float:
        """Turns of a ball about its own axis per shaft turn; a ball defect strikes twice as often."""
        return self.pitch_mm / (2 * self.ball_mm) * (1 - self._ratio() ** 2)

    @property
    def ftf(self) -> float:
        """Turns of the cage per shaft turn."""
        return (1 - self._ratio()) / 2

    def passes(self, defect: str) -> float:
        """Impulses per shaft turn of a defect."""
        return {"outer_race": self.bpfo, "inner_race": self.bpfi, "ball": 2 * self.bsf}[defect]

    def modulation(self, defect: str) -> float:
        """Turns, per shaft turn, of what carries the defect through the load zone; 0: it stays in it."""
        return {"outer_race": 0.0, "inner_race": 1.0, "ball": self.ftf}[defect]


class DefectTrain:
    """The impulse train of one defect, continuous from block to block."""

    def __init__(self, defect: str, geometry: Geometry, rate_hz: float, resonance_hz: float, rng: np.random.Generator) -> None:
        self._passes = geometry.passes(defect)
        self._modulation = geometry.modulation(defect)
        self._rng = rng
        self._next_turn = 0.0
        self._kernel = _resonance(rate_hz, resonance_hz)
        self._tail = np.zeros(len(self._kernel) - 1)

    def block(self, turns: Wave, amplitude: float) -> Wave:
        """Acceleration for the shaft positions `turns` (in turns, one per sample, rising), at this peak amplitude."""
        impulses = np.zeros(len(turns))
        if amplitude > 0 and turns[-1] > turns[0]:
            self._strike(turns, impulses, amplitude)
        elif self._next_turn < turns[-1]:
            self._next_turn = float(turns[-1])
        wave = np.convolve(impulses, self._kernel)
        wave[: len(self._tail)] += self._tail
        self._tail = wave[len(turns) :].copy()
        return wave[: len(turns)]

    def _strike(self, turns: Wave, impulses: Wave, amplitude: float) -> None:
        self._next_turn = max(self._next_turn, float(turns[0]))
        while self._next_turn <= turns[-1]:
            index = int(np.searchsorted(turns, self._next_turn))
            load = 0.55 + 0.45 * cos(2 * pi * self._modulation * self._next_turn) if self._modulation else 1.0
            impulses[min(index, len(impulses) - 1)] += amplitude * load * (1 + 0.1 * self._rng.standard_normal())
            self._next_turn += (1 + 0.015 * self._rng.standard_normal()) / self._passes


def _resonance(rate_hz: float, resonance_hz: float) -> Wave:
    t = np.arange(round(_TAIL_S * rate_hz)) / rate_hz
    kernel: Wave = np.exp(-t * 90.0) * np.sin(2 * pi * resonance_hz * t + 0.5)
    return kernel
