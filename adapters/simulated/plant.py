"""A centrifugal pump on an induction motor, as differential equations: it turns, shakes, warms up, pumps and can be broken.

The plant advances in blocks of samples and knows no wall clock: the same seed and the same commands at the same block give the
same bits. Units in the names; accelerations in m/s2. It is a physical model for demonstrations and tests, not of one product.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import exp, pi, sqrt

import numpy as np

from adapters.simulated.bearing import DEFECTS, DefectTrain, Geometry, Wave
from edge_runtime.types import FloatArray

PLANT_FAULTS = (*DEFECTS, "unbalance", "cavitation", "blocked_valve", "overheat")

_LINE_HZ = 50.0
_POLE_PAIRS = 2
_RATED_SLIP = 0.033
_START_S, _STOP_S = 0.6, 1.8
_VALVE_TRAVEL_S = 1.5
_ONSET_S = 0.4
_AMBIENT_DEGC = 22.0
_WINDING_S, _BEARING_S = 240.0, 120.0
_HEAD_BAR, _PUMP_DROP, _PIPE_DROP = 4.0, 0.9e-4, 3.1e-4  # bar, bar/(l/min)^2
_BLADES = 6


@dataclass(frozen=True, slots=True)
class PlantSettings:
    """What differs from pump to pump."""

    rate_hz: float = 1600.0
    line_hz: float = _LINE_HZ
    ambient_degc: float = _AMBIENT_DEGC
    noise: float = 0.35  # broadband vibration at rated speed, m/s2 rms
    geometry: Geometry = field(default_factory=Geometry)


class Pump:
    """One pump with its motor, valve and bearing. `advance` moves it on and returns the vibration meanwhile."""

    def __init__(self, settings: PlantSettings, seed: int) -> None:
        self.settings = settings
        self._rng = np.random.default_rng(seed)
        resonance_hz = 0.34 * settings.rate_hz
        self._trains = {
            defect: DefectTrain(defect, settings.geometry, settings.rate_hz, resonance_hz, np.random.default_rng([seed, index]))
            for index, defect in enumerate(DEFECTS)
        }
        self.faults = dict.fromkeys(PLANT_FAULTS, 0.0)
        self.commands = {"motor": "running", "valve": "closed"}
        self._severity = dict(self.faults)
        self._turns = 0.0
        self.valve_position = 0.0
        self.speed_hz = self._target_speed_hz()
        self.winding_degc = settings.ambient_degc + 28.0
        self.bearing_degc = settings.ambient_degc + 14.0

    def command(self, actuator: str, state: str) -> None:
        """Sets `motor` to running | stopped or `valve` to open | closed; the plant follows in its own time."""
        self.commands[actuator] = state

    def settle(self) -> None:
        """Jumps the valve to where it was commanded, for a plant that is met while it already runs."""
        self.valve_position = self._valve_target()

    def advance(self, samples: int, *, vibration: bool = True) -> FloatArray:
        """Moves on by `samples` sample times. Returns the vibration, float32 [samples], or [0] when it is not wanted."""
        step_s = samples / self.settings.rate_hz
        before_hz = self.speed_hz
        self._follow(step_s)
        turns = self._turns + np.cumsum(np.linspace(before_hz, self.speed_hz, samples)) / self.settings.rate_hz
        self._turns = float(turns[-1])
        if not vibration:
            return np.empty(0, np.float32)
        return self._shake(turns)

    @property
    def flow_lpm(self) -> float:
        """l/min: where the pump curve meets the pipe's resistance through the valve."""
        opening = self.valve_position * (1 - 0.95 * self._severity["blocked_valve"])
        if opening < 0.02:
            return 0.0
        drop = _PUMP_DROP + _PIPE_DROP / opening**2
        return self._speed_ratio() * sqrt(_HEAD_BAR / drop) * (1 - 0.3 * self._severity["cavitation"])

    @property
    def pressure_bar(self) -> float:
        return _HEAD_BAR * self._speed_ratio() ** 2 - _PUMP_DROP * self.flow_lpm**2

    @property
    def current_a(self) -> float:
        if self.commands["motor"] == "stopped":
            return 0.0
        slip_ratio = max(0.0, 1 - self.speed_hz * _POLE_PAIRS / self.settings.line_hz) / _RATED_SLIP
        return sqrt(1.9**2 + (4.2 * min(6.0, slip_ratio)) ** 2)

    @property
    def power_kw(self) -> float:
        return 0.0 if self.commands["motor"] == "stopped" else sqrt(3) * 400 * self.current_a * 0.82 / 1000

    @property
    def speed_rpm(self) -> float:
        return self.speed_hz * 60

    def _follow(self, step_s: float) -> None:
        for fault, severity in self.faults.items():
            self._severity[fault] += (severity - self._severity[fault]) * (1 - exp(-step_s / _ONSET_S))
        time_s = _STOP_S if self.commands["motor"] == "stopped" else _START_S
        self.speed_hz += (self._target_speed_hz() - self.speed_hz) * (1 - exp(-step_s / time_s))
        travel = step_s / _VALVE_TRAVEL_S
        self.valve_position += min(travel, max(-travel, self._valve_target() - self.valve_position))
        self._warm(step_s)

    def _warm(self, step_s: float) -> None:
        ambient, ratio = self.settings.ambient_degc, self._speed_ratio()
        cooling = 1 + 2.2 * self._severity["overheat"]
        winding = ambient + (6.0 * ratio + 0.9 * self.current_a**2) * cooling
        friction = 14.0 * ratio * (1 + 1.5 * max(self._severity[defect] for defect in DEFECTS))
        self.winding_degc += (winding - self.winding_degc) * (1 - exp(-step_s / _WINDING_S))
        self.bearing_degc += (ambient + friction * cooling - self.bearing_degc) * (1 - exp(-step_s / _BEARING_S))

    def _shake(self, turns: Wave) -> FloatArray:
        ratio, severity = self._speed_ratio(), self._severity
        angle = 2 * pi * turns
        wave = (0.5 + 4.0 * severity["unbalance"]) * ratio**2 * np.sin(angle)
        wave += 0.22 * ratio**2 * np.sin(2 * angle + 0.7)
        wave += 0.3 * ratio * (self.flow_lpm / 100 + 0.2) * np.sin(_BLADES * angle + 0.2)
        noise = 0.02 + self.settings.noise * ratio * (1 + 2.5 * severity["cavitation"])
        wave += noise * self._rng.standard_normal(len(turns))
        for defect, train in self._trains.items():
            wave += train.block(turns, 9.0 * severity[defect] * ratio**1.5)
        shaken: FloatArray = wave.astype(np.float32)
        return shaken

    def _speed_ratio(self) -> float:
        return self.speed_hz / (_LINE_HZ / _POLE_PAIRS * (1 - _RATED_SLIP))

    def _target_speed_hz(self) -> float:
        if self.commands["motor"] == "stopped":
            return 0.0
        load = 0.45 + 0.55 * min(1.0, self.valve_position)
        return self.settings.line_hz / _POLE_PAIRS * (1 - _RATED_SLIP * load)

    def _valve_target(self) -> float:
        return 1.0 if self.commands["valve"] == "open" else 0.0
