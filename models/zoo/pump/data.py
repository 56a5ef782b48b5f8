"""Recordings of the simulated pump's process values, normal and faulty, taken through the adapter port under a virtual clock.

The adapter is found by its entry point, as a gateway finds it; the same seeds give the same bits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from importlib.metadata import entry_points

import numpy as np

from edge_runtime.clock import VirtualClock
from edge_runtime.types import Array

CHANNELS = ("temperature", "bearing_temperature", "current", "flow", "pressure", "speed")
UNITS = ("degC", "degC", "A", "l/min", "bar", "rpm")
RATE_HZ = 2.0
FAULTS = ("outer_race", "inner_race", "ball", "unbalance", "cavitation", "blocked_valve", "overheat", "sensor_stuck")


@dataclass(frozen=True, slots=True)
class Run:
    """One recording of a running pump whose valve is moved at `moves_s`, first to open or first to closed; `fault` begins at `onset_s`."""

    seed: int
    seconds: float
    line_hz: float
    ambient_degc: float
    moves_s: tuple[float, ...]
    opens_first: bool
    fault: str = ""
    severity: float = 0.0
    onset_s: float = 0.0


def normal(seed: int, runs: int, seconds: float) -> Iterator[Run]:
    """`runs` random days: mains of 49.8 to 50.2 Hz, 15 to 30 degC around, a valve moved every one to six minutes."""
    rng = np.random.default_rng(seed)
    for _ in range(runs):
        moves, at = [], float(rng.uniform(0, 120))
        while at < seconds:
            moves.append(at)
            at += float(rng.uniform(60, 360))
        yield Run(
            seed=int(rng.integers(1, 2**31)),
            seconds=seconds,
            line_hz=float(rng.uniform(49.8, 50.2)),
            ambient_degc=float(rng.uniform(15, 30)),
            moves_s=tuple(moves),
            opens_first=bool(rng.random() < 0.5),
        )


def faulty(seed: int, runs: int, seconds: float, fault: str, severity: float) -> Iterator[Run]:
    """`runs` random days of a pump that supplies from the start and breaks half-way: without flow some faults have no effect."""
    for run in normal(seed, runs, seconds):
        yield replace(run, moves_s=(0.0,), opens_first=True, fault=fault, severity=severity, onset_s=seconds / 2)


def record(run: Run) -> Array:
    """Rows float64 [seconds * RATE_HZ, channels] in the order of CHANNELS."""
    return asyncio.run(_record(run))


async def _record(run: Run) -> Array:
    (factory,) = (point.load() for point in entry_points(group="edge_runtime.adapters", name="simulated"))
    clock = VirtualClock()
    adapter = factory("train", {"seed": run.seed, "line_hz": run.line_hz, "ambient_degc": run.ambient_degc}, clock)
    await adapter.open()
    names = [f"pump/{channel}" for channel in CHANNELS]
    moves, opening, rows = list(run.moves_s), run.opens_first, []
    for row in range(round(run.seconds * RATE_HZ)):
        now_s = row / RATE_HZ
        if moves and now_s >= moves[0]:
            moves.pop(0)
            await adapter.actuate("pump/valve", "open" if opening else "closed")
            opening = not opening
        if run.fault and now_s == run.onset_s:
            adapter.inject(run.fault, run.severity)
        clock.advance(1 / RATE_HZ)
        rows.append([sample.value for sample in await adapter.read(names)])
    await adapter.close()
    return np.array(rows, np.float64)
