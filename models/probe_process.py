"""The probe's child: `python -m models.probe_process ORDER`, ORDER being the JSON of `models.probe.Order`. Only `models.probe` starts it.

The verdict goes to a copy of stdout; stdout itself becomes stderr, so a library that prints cannot spoil it.
"""

from __future__ import annotations

import importlib
import math
import os
import resource
import signal
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.errors import MissingDependency, ModelRefused
from edge_runtime.ports import LoadedModel
from edge_runtime.types import ProbeReport, TensorInfo
from models.probe import Order, Verdict, is_out_of_memory, out_of_memory
from models.tensors import zeros

RUNS = 10

_MEBIBYTE = 1024 * 1024
_SHARE_OF_DEADLINE = 0.25


def main() -> int:
    """Obeys the order in argv, writes the verdict, exits 0; anything else is a crash to the parent."""
    verdict_fd = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    order = msgspec.json.decode(sys.argv[1], type=Order)
    _limit_time(order.deadline_s)
    with os.fdopen(verdict_fd, "wb") as out:
        out.write(msgspec.json.encode(_verdict(order)))
    return 0


def _verdict(order: Order) -> Verdict:
    try:
        return Verdict(report=_try(order))
    except MissingDependency as err:
        return Verdict(missing=(err.library, err.extra))
    except ModelRefused as err:
        if not is_out_of_memory(err.__cause__ or err):
            return _refused(err)
    except MemoryError:
        pass
    return _refused(out_of_memory(Path(order.path).name, order.memory_mb))


def _refused(err: ModelRefused) -> Verdict:
    return Verdict(refused=(err.reason.value, str(err).removeprefix(f"{err.reason.value}: ")))


def _try(order: Order) -> ProbeReport:
    backend = _backend(order.backend)
    before_mb = _limit_memory(order.memory_mb)
    begin = time.perf_counter()
    model: LoadedModel = backend.load(Path(order.path))
    load_ms = (time.perf_counter() - begin) * 1e3
    times_ms = _run(model, order.deadline_s * _SHARE_OF_DEADLINE)
    return ProbeReport(
        backend=getattr(backend, "name", order.backend),
        load_ms=round(load_ms, 3),
        run_ms=round(statistics.median(times_ms), 4) if times_ms else 0.0,
        runs=len(times_ms),
        rss_mb=round(max(0.0, _status_kb("VmHWM") / 1024 - before_mb), 1),
        inputs=model.inputs,
        outputs=model.outputs,
    )


def _backend(specification: str) -> Any:
    module, _, attribute = specification.partition(":")
    backend = getattr(importlib.import_module(module), attribute)()
    import_library = getattr(backend, "import_library", None)
    if import_library is not None:
        import_library()
    return backend


def _run(model: LoadedModel, budget_s: float) -> list[float]:
    """Milliseconds of each run after a warm-up, as many as the budget allows; none when its free dimensions stand in the way."""
    inputs = [zeros(tensor) for tensor in model.inputs]
    try:
        model.run(inputs)
    except ModelRefused as err:
        if any(map(_has_inner_freedom, model.inputs)) and not is_out_of_memory(err.__cause__ or err):
            return []
        raise
    times_ms: list[float] = []
    stop = time.perf_counter() + budget_s
    while len(times_ms) < RUNS and (not times_ms or time.perf_counter() < stop):
        begin = time.perf_counter()
        model.run(inputs)
        times_ms.append((time.perf_counter() - begin) * 1e3)
    return times_ms


def _has_inner_freedom(tensor: TensorInfo) -> bool:
    return -1 in tensor.shape[1:]


def _limit_time(deadline_s: float) -> None:
    """Ends this process by itself should the parent die first; also when it only sleeps."""
    seconds = math.ceil(deadline_s) + 1
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _lower(resource.RLIMIT_CPU, seconds)
    _lower(resource.RLIMIT_FSIZE, _MEBIBYTE)
    signal.alarm(seconds)


def _limit_memory(memory_mb: int) -> float:
    """Limits the address space to what it is plus `memory_mb`; returns the resident MB now."""
    _lower(resource.RLIMIT_AS, _status_kb("VmSize") * 1024 + memory_mb * _MEBIBYTE)
    return _status_kb("VmRSS") / 1024


def _lower(kind: int, limit: int) -> None:
    _, hard = resource.getrlimit(kind)
    wanted = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
    resource.setrlimit(kind, (wanted, wanted))


def _status_kb(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
