"""Tries a model in a process of its own (`models.confined`): load, golden runs where it has some, time, memory. The caller's side.

A report holds as long as the model's digest and the runtime do: keep it by both.
"""

from __future__ import annotations

from importlib.metadata import entry_points
from pathlib import Path

import msgspec

from edge_runtime.bundle import Bundle
from edge_runtime.errors import InputError
from edge_runtime.types import ProbeReport
from models import confined
from models.confined import Confined

DEADLINE_S = 20.0
MEMORY_MB = 1024

CHILD = "models.probe_process"


class GoldenRuns(msgspec.Struct, frozen=True):
    """The golden runs' file of a bundle, and the largest absolute difference that its maker allows."""

    file: str
    tolerance: float

    @classmethod
    def of(cls, bundle: Bundle | None) -> GoldenRuns | None:
        """Those of a bundle that has some."""
        if bundle is None or bundle.manifest.golden is None:
            return None
        return cls(str(bundle.folder / bundle.manifest.golden.file), bundle.manifest.golden.tolerance)


class Order(msgspec.Struct, frozen=True):
    """What the child shall do. `backend` is `module:attribute` of a ModelBackend class; `providers` are for one that chooses them."""

    path: str
    backend: str
    deadline_s: float
    memory_mb: int
    golden: GoldenRuns | None = None
    providers: tuple[str, ...] = ()


def probe(
    path: Path, backend: str, *, deadline_s: float = DEADLINE_S, memory_mb: int = MEMORY_MB, golden: GoldenRuns | None = None
) -> ProbeReport:
    """Loads and runs `path` in a child process and waits for it. `backend` is a registered name or `module:attribute`.

    Raises ModelRefused(PROBE_CRASHED | PROBE_TIMEOUT | PROBE_MEMORY | GOLDEN_MISMATCH) or whatever refusal the load or the run ended in.
    """
    order = Order(str(path), specification(backend), deadline_s, memory_mb, golden)
    return msgspec.convert(confined.run(_job(order)), ProbeReport)


async def probe_async(
    path: Path,
    backend: str,
    *,
    deadline_s: float = DEADLINE_S,
    memory_mb: int = MEMORY_MB,
    golden: GoldenRuns | None = None,
    providers: tuple[str, ...] = (),
) -> ProbeReport:
    """As `probe`, without blocking the loop, on the execution providers named. A cancelled call takes its child down with it."""
    order = Order(str(path), specification(backend), deadline_s, memory_mb, golden, providers)
    return msgspec.convert(await confined.run_async(_job(order)), ProbeReport)


def specification(backend: str) -> str:
    """`module:attribute` of a backend's class. Raises InputError for a name that is not registered."""
    if ":" in backend:
        return backend
    for point in entry_points(group="edge_runtime.model_backends", name=backend):
        return point.value
    raise InputError(f"`{backend}` is not a registered model backend")


def _job(order: Order) -> Confined:
    return Confined(CHILD, msgspec.json.encode(order).decode(), Path(order.path), order.deadline_s, order.memory_mb)
