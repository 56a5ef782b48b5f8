"""Training data for the bearing model: the simulated pump, recorded through the adapter port under a virtual clock.

The adapter is found by its entry point, as a gateway finds it; the same seeds give the same bits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import Any

import numpy as np

from edge_runtime.clock import VirtualClock
from edge_runtime.types import FloatArray, Sample

LABELS = ("normal", "outer_race", "inner_race", "ball")
RATE_HZ = 1600
WINDOW = 1024
HOP = 512
_BLOCK = 128
_WARM_UP_S = 3.0


@dataclass(frozen=True, slots=True)
class Run:
    """One recording: a pump with its faults, in one state of operation."""

    label: int
    seed: int
    faults: dict[str, float]
    noise: float
    line_hz: float
    valve: str
    motor: str
    starting: bool = False


def plan(seed: int, runs: int) -> Iterator[Run]:
    """`runs` random recordings, the classes in equal parts; `normal` covers idle, starting, unbalanced and cavitating pumps too."""
    rng = np.random.default_rng(seed)
    for index in range(runs):
        label = index % len(LABELS)
        faults: dict[str, float] = {}
        if label:
            faults[LABELS[label]] = float(rng.uniform(0.25, 1.0))
        if rng.random() < 0.25:
            faults["unbalance"] = float(rng.uniform(0.1, 0.9))
        if rng.random() < 0.15:
            faults["cavitation"] = float(rng.uniform(0.1, 0.6))
        idle = label == 0 and rng.random() < 0.2
        yield Run(
            label=label,
            seed=int(rng.integers(1, 2**31)),
            faults=faults,
            noise=float(rng.uniform(0.2, 0.6)),
            line_hz=float(rng.uniform(49.5, 50.5)),
            valve="open" if rng.random() < 0.6 else "closed",
            motor="stopped" if idle else "running",
            starting=label == 0 and not idle and rng.random() < 0.2,
        )


def windows(run: Run, seconds: float = 6.0) -> FloatArray:
    """One recording cut into windows, float32 [n, WINDOW], standardized as the pipeline step `standardize` does."""
    signal = asyncio.run(_record(run, seconds))
    starts = range(0, len(signal) - WINDOW + 1, HOP)
    cut = np.stack([signal[start : start + WINDOW] for start in starts])
    return standardize(cut)


def dataset(seed: int, runs: int) -> tuple[FloatArray, Any]:
    """Windows float32 [n, 1, 1, WINDOW] and labels int64 [n] of a whole plan."""
    xs, ys = [], []
    for run in plan(seed, runs):
        cut = windows(run)
        xs.append(cut)
        ys.append(np.full(len(cut), run.label))
    return np.concatenate(xs)[:, None, None, :], np.concatenate(ys).astype(np.int64)


def standardize(cut: FloatArray) -> FloatArray:
    """Zero mean and unit standard deviation per window."""
    centred = cut - cut.mean(axis=-1, keepdims=True)
    scaled: FloatArray = (centred / (centred.std(axis=-1, keepdims=True) + 1e-6)).astype(np.float32)
    return scaled


async def _record(run: Run, seconds: float) -> FloatArray:
    (factory,) = (point.load() for point in entry_points(group="edge_runtime.adapters", name="simulated"))
    clock = VirtualClock()
    options = {"seed": run.seed, "noise": run.noise, "line_hz": run.line_hz, "rate_hz": RATE_HZ, "block": _BLOCK, "faults": run.faults}
    adapter = factory("train", options, clock)
    await adapter.open()
    await adapter.actuate("pump/valve", run.valve)
    await adapter.actuate("pump/motor", "stopped" if run.starting else run.motor)
    blocks: list[FloatArray] = []

    def take(sample: Sample) -> None:
        assert sample.block is not None
        blocks.append(sample.block)

    wanted = round((seconds + _WARM_UP_S) * RATE_HZ / _BLOCK)
    streaming = asyncio.create_task(adapter.stream(["pump/vibration"], take))
    while len(blocks) < wanted and not streaming.done():
        if run.starting and len(blocks) == wanted // 2:
            await adapter.actuate("pump/motor", "running")
        clock.advance(_BLOCK / RATE_HZ)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    streaming.cancel()
    await asyncio.gather(streaming, return_exceptions=True)
    await adapter.close()
    return np.concatenate(blocks)[round(_WARM_UP_S * RATE_HZ) :]
