"""The probe's child: `python -m models.probe_process ORDER`, ORDER the JSON of a `models.probe.Order`. Only `models.probe` starts it."""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import msgspec

from edge_runtime.errors import ModelRefused, RefusalReason
from edge_runtime.ports import LoadedModel
from edge_runtime.types import ProbeReport, TensorInfo
from models.confined import is_out_of_memory
from models.confinement import answer, build_backend, limit_memory, peak_mb
from models.golden import compare
from models.probe import GoldenRuns, Order
from models.tensors import zeros

RUNS = 10

_SHARE_OF_DEADLINE = 0.25


def main() -> int:
    """Obeys the order in argv."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    return answer(lambda: _try(order), path=order.path, deadline_s=order.deadline_s, memory_mb=order.memory_mb)


def _try(order: Order) -> ProbeReport:
    backend = build_backend(order.backend)
    if order.providers:
        backend = backend.with_providers(order.providers)
    before_mb = limit_memory(order.memory_mb)
    begin = time.perf_counter()
    model: LoadedModel = backend.load(Path(order.path))
    load_ms = (time.perf_counter() - begin) * 1e3
    times_ms = _run(model, order.deadline_s * _SHARE_OF_DEADLINE)
    rss_mb = max(0.0, peak_mb() - before_mb)
    golden_runs, difference = _check_golden(model, order.golden) if order.golden is not None else (0, None)
    return ProbeReport(
        backend=getattr(backend, "name", order.backend),
        load_ms=round(load_ms, 3),
        run_ms=round(statistics.median(times_ms), 4) if times_ms else 0.0,
        runs=len(times_ms),
        rss_mb=round(rss_mb, 1),
        inputs=model.inputs,
        outputs=model.outputs,
        golden_runs=golden_runs,
        golden_difference=difference,
    )


def _check_golden(model: LoadedModel, golden: GoldenRuns) -> tuple[int, float]:
    """The number of golden runs and the largest difference. Raises ModelRefused(GOLDEN_MISMATCH) when it exceeds the tolerance."""
    runs, difference = compare(model, Path(golden.file))
    if not difference <= golden.tolerance:
        raise ModelRefused(
            RefusalReason.GOLDEN_MISMATCH,
            f"an output differs by {difference:.6g} from its golden run, the manifest allows {golden.tolerance:g}: this runtime does not "
            "compute what the maker's did; try another backend, or make the bundle again here",
        )
    return runs, difference


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


if __name__ == "__main__":
    sys.exit(main())
